"""Normalization inside the model, two heads on one trunk, finding where to split, the user's own network."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from antibackdoor.data.samples import Samples
from antibackdoor.errors import DataError, ModelError
from antibackdoor.models.backbones import BACKBONES, build_backbone
from antibackdoor.models.hooks import trunk_features
from antibackdoor.models.normalization import Normalize, channel_statistics, normalized
from antibackdoor.models.own_network import load_factory
from antibackdoor.models.splitting import check_attach, find_attach, find_last
from antibackdoor.models.two_head import TwoHead, second_head, split_network


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def samples_of(inputs):
    n = len(inputs)
    return Samples(inputs, np.zeros(n, np.int64), np.arange(n).astype(str), np.array(["only"]))


def small_two_head(head_width="light"):
    network = normalized(build_backbone("wrn-10-1", (3, 12, 12), 4), [0.5, 0.4, 0.3], [0.2, 0.2, 0.0])
    model = split_network(network, torch.zeros(2, 3, 12, 12), 4, head_width=head_width)
    nn.init.normal_(model.second[-1].weight)  # zero by design: would make comparisons of its logits empty
    return model


class Residual(nn.Module):
    """Everything hangs on one skip connection from the stem to the end."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(4, 4, 3, padding=1)
        self.outer = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return x + self.outer(self.inner(x).relu())


class BatchMixing(nn.Module):
    """Any number of rows fits behind `first`, but each row's logits depend on the others."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        x = self.first(x)
        return self.fc(x + 10 * x.mean(0) * x)


# --------------------------------------------------------------------------- normalization


def test_channel_statistics_of_images_are_those_of_unit_range():
    images = np.random.default_rng(0).integers(0, 256, (37, 3, 9, 8), dtype=np.uint8)
    mean, std = channel_statistics(samples_of(images))
    np.testing.assert_allclose(mean, (images / 255).mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, (images / 255).std((0, 2, 3)), rtol=1e-12)


def test_channel_statistics_merge_blocks_of_a_memmap_with_a_large_offset(tmp_path):
    shape = (6, 2, 2**19)  # a block holds four rows
    series = np.memmap(tmp_path / "s.dat", np.float32, "w+", shape=shape)
    series[:] = np.random.default_rng(0).normal(size=shape)
    series[:, 1] += 1e4 + 10 * np.arange(6, dtype=np.float32)[:, None]
    mean, std = channel_statistics(samples_of(series))
    np.testing.assert_allclose(mean, series.mean((0, 2), dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(std, series.astype(np.float64).std((0, 2)), rtol=1e-10)


def test_channel_statistics_read_evenly_spread_rows_only():
    series = np.zeros((101, 1, 1), np.float32)
    series[:, 0, 0] = np.arange(101)
    mean, _ = channel_statistics(samples_of(series), max_samples=3)
    assert mean == pytest.approx(50)  # rows 0, 50, 100


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_channel_statistics_refuse_non_finite_inputs(value):
    with pytest.raises(DataError, match="NaN or infinite"):
        channel_statistics(samples_of(np.full((2, 1, 8), value, np.float32)))


def test_channel_statistics_refuse_no_samples():
    with pytest.raises(DataError, match="no samples"):
        channel_statistics(samples_of(np.zeros((0, 1, 8), np.float32)))


@pytest.mark.parametrize("spatial", [(5,), (4, 3)])
def test_normalize_works_on_channels_and_keeps_constant_ones(spatial):
    x = torch.rand(2, 2, *spatial)
    out = Normalize([0.5, 7.0], [0.25, 1e-9])(x)
    torch.testing.assert_close(out[:, 0], (x[:, 0] - 0.5) / 0.25)
    torch.testing.assert_close(out[:, 1], x[:, 1] - 7)


def test_normalize_refuses_other_channels():
    with pytest.raises(ModelError, match="3 channels, the model was made for 1"):
        Normalize([0.5], [0.2])(torch.rand(2, 3, 4, 4))


# --------------------------------------------------------------------------- two heads


@pytest.mark.parametrize("rows", [[4, 0, 2], [1], [], [0, 1, 2, 3, 4]])
def test_both_heads_equal_the_single_ones(rows):
    model, x = small_two_head().eval(), torch.rand(5, 3, 12, 12)
    main, second = model.both(x, torch.tensor(rows, dtype=torch.int64))
    assert main.shape == (len(rows), 4)
    torch.testing.assert_close(main, model(x)[rows])
    torch.testing.assert_close(second, model.second_logits(x))
    assert second.abs().max() > 0


def test_second_logits_compute_nothing_behind_the_layer():
    model, x = small_two_head(), torch.rand(2, 3, 12, 12)
    called = []
    for name, module in model.network.named_modules():
        module.register_forward_hook(lambda _m, _i, _o, name=name: called.append(name))
    model.second_logits(x)
    assert model.attach in called
    assert not [n for n in called if n.startswith(("network.stage3", "network.fc"))]
    called.clear()
    model.both(x, torch.tensor([], dtype=torch.int64))
    assert "network.fc" not in called


def test_main_head_sees_only_its_rows():
    model, sizes = small_two_head(), []
    model.network.get_submodule("network.fc").register_forward_hook(lambda _m, i, _o: sizes.append(len(i[0])))
    model.both(torch.rand(5, 3, 12, 12), torch.tensor([0, 3]))
    assert sizes == [2]


def test_gradients_of_the_second_head_reach_the_trunk_only():
    model = small_two_head()
    model.second_logits(torch.rand(3, 3, 12, 12)).logsumexp(1).sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert {n.split(".")[0] for n in reached} == {"network", "second"}
    trunk = {n for n in reached if n.startswith("network.")}
    assert trunk == {
        n for n, _ in model.named_parameters() if n.startswith(("network.network.stem", "network.network.stage1"))
    }


def test_gradients_of_a_joint_step_equal_those_of_two_passes():
    model, x, rows = small_two_head().eval(), torch.rand(5, 3, 12, 12), torch.tensor([4, 1])
    main, second = model.both(x, rows)
    (main.logsumexp(1).sum() + second.logsumexp(1).sum()).backward()
    joint = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    (model(x)[rows].logsumexp(1).sum() + model.second_logits(x).logsumexp(1).sum()).backward()
    torch.testing.assert_close(joint, [p.grad for p in model.parameters()], rtol=1e-4, atol=1e-4)


def test_a_single_row_can_train_through_batch_norm_on_one_pixel():
    network = build_backbone("resnet18-thin", (1, 8, 8), 3)
    model = TwoHead(network, second_head((32, 4, 4), 3), "stage2")
    before = network.stage4[1].conv2[1].running_mean.clone()
    main, _ = model.both(torch.rand(4, 1, 8, 8), torch.tensor([2]))
    main.sum().backward()
    assert torch.equal(before, network.stage4[1].conv2[1].running_mean)
    assert network.stage1[0].conv1[1].num_batches_tracked == 1
    assert all(m.training for m in model.modules())


def test_in_place_layers_behind_the_split_do_not_change_the_features():
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)).eval()
    model = TwoHead(network, nn.Identity(), "0")
    x = torch.randn(4, 6)
    _, features = model.both(x, torch.arange(4))
    torch.testing.assert_close(features, network[0](x))


def test_copies_and_states_hold_no_hooks():
    model, x = small_two_head(), torch.rand(3, 3, 12, 12)
    keys = list(model.network.state_dict())
    model.both(x, torch.tensor([1]))
    with pytest.raises(IndexError):
        model.both(x, torch.tensor([99]))  # an error inside must not leave a hook either
    twin = copy.deepcopy(model)
    assert list(twin.deliver().state_dict()) == keys
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1.0)
    model.eval(), twin.eval()
    assert not torch.allclose(model.second_logits(x), twin.second_logits(x))
    assert not any(m._forward_hooks for net in (model, twin) for m in net.modules())
    pickle.loads(pickle.dumps(model))  # noqa: S301 - our own bytes
    torch.testing.assert_close(model.deliver()(x), model(x))
    assert model.deliver() is model.network


def test_autocast_and_channels_last():
    model = small_two_head().to(memory_format=torch.channels_last)
    x = torch.rand(4, 3, 12, 12).contiguous(memory_format=torch.channels_last)
    formats = []
    model.network.get_submodule("network.stage2").register_forward_pre_hook(
        lambda _m, i: formats.append(i[0].is_contiguous(memory_format=torch.channels_last))
    )
    with torch.autocast("cpu", torch.bfloat16):
        main, second = model.both(x, torch.tensor([3, 0]))
    assert formats == [True]
    assert main.dtype == second.dtype == torch.bfloat16
    (main.float().sum() + second.float().sum()).backward()


def test_unknown_layer_lists_near_matches():
    with pytest.raises(ModelError, match=r"no layer 'stag2'; near matches: .*stage2"):
        TwoHead(build_backbone("wrn-10-1", (3, 8, 8), 2), nn.Identity(), "stag2")


def test_unused_layer_is_refused():
    network = nn.Sequential(nn.Linear(2, 2))
    network.spare = nn.Linear(2, 2)
    network.forward = lambda x: network[0](x)
    with pytest.raises(ModelError, match="never calls"):
        trunk_features(network, "spare", torch.rand(2, 2))


# --------------------------------------------------------------------------- second head


@pytest.mark.parametrize("name", BACKBONES)
def test_the_published_head_makes_every_network_a_fifth_larger(name):
    shape = (3, 32, 32) if BACKBONES[name].kind == "image" else (3, 64)
    build, example = BACKBONES[name].build, torch.zeros(2, *shape)
    attach = find_attach(build(shape, 10), example)  # a layer's place needs numbers, its size needs none
    with torch.device("meta"):
        network = build(shape, 10)
        alone = sum(parameter.numel() for parameter in network.parameters())
        features = trunk_features(network.eval(), attach, torch.rand(1, *shape)).shape[1:]
        head = second_head(features, 10, "published", n_parameters=alone)
    both = alone + sum(parameter.numel() for parameter in head.parameters())
    assert 1.15 <= both / alone <= 1.25


def test_the_published_head_of_resnet34_is_about_640_channels_wide():
    """E2ABL gives no widths, but says that its network has 1.2 times the parameters of ResNet-34."""
    with torch.device("meta"):
        whole = sum(p.numel() for p in BACKBONES["resnet34"].build((3, 32, 32), 10).parameters())
        head = second_head((128, 16, 16), 10, "published", n_parameters=whole)
    assert head[-1].in_features == pytest.approx(640, abs=20)
    assert 1 + sum(p.numel() for p in head.parameters()) / whole == pytest.approx(1.2, abs=1e-3)


def test_the_published_head_is_what_split_network_makes():
    network = build_backbone("wrn-16-2", (3, 16, 16), 4)
    alone = sum(parameter.numel() for parameter in network.parameters())
    both = sum(
        p.numel() for p in split_network(network, torch.zeros(2, 3, 16, 16), 4, head_width="published").parameters()
    )
    assert both / alone == pytest.approx(1.2, abs=0.01)


@pytest.mark.parametrize("shape", [(6, 5, 1), (6, 9), (6,), (4, 3, 3, 3)])
@pytest.mark.parametrize("width", ["light", "published", 7])
def test_second_head_starts_with_loss_log_k(shape, width):
    head = second_head(shape, 5, width, n_parameters=20_000)
    logits = head(torch.rand(3, *shape))
    torch.testing.assert_close(logits, torch.zeros(3, 5))
    light = max(shape[0], 64) if len(shape) > 1 else shape[0]
    hidden = head[-1].in_features
    if width != "published":
        assert hidden == {"light": light, 7: 7}[width]
    else:
        size, wider = (sum(p.numel() for p in second_head(shape, 5, w).parameters()) for w in (hidden, hidden + 1))
        assert abs(size - 4000) <= wider - size, "a fifth of the network's, as near as whole channels come"


def test_light_head_on_flat_features_is_bounded():
    assert second_head((50_000,), 3)[-1].in_features == 256


def test_second_head_refuses_nonsense():
    with pytest.raises(ModelError, match="head_width is 0"):
        second_head((8, 4, 4), 3, 0)
    with pytest.raises(ModelError, match="up to 3 axes"):
        second_head((8, 4, 4, 4, 4), 3)


# --------------------------------------------------------------------------- where to split


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_are_split_behind_a_stage(name):
    shape = (3, 16, 16) if BACKBONES[name].kind == "image" else (3, 24)
    with torch.no_grad():
        found = find_attach(build_backbone(name, shape, 4), torch.zeros(2, *shape))
    expected = {"resnet18", "resnet34", "resnet50", "resnet18-thin", "series-resnet18", "series-resnet34"}
    stage = "stage4" if name == "mobilenetv2" else "stage2" if name in expected else "stage1"
    assert found == stage


def user_cnn():
    """Odd shapes, functional activations by module, a classifier of its own."""
    features = nn.Sequential(
        *(nn.Conv2d(5, 6, (3, 2)), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 7, 3), nn.BatchNorm2d(7), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(7, 8, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(2)),
        *(nn.Conv2d(8, 9, 2), nn.Flatten()),
    )
    return nn.Sequential(features, nn.Linear(9, 3)), (5, 33, 27), "0.6"


def mlp():
    layers = (nn.Linear(40, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(16, 3)), (4, 10), "4"


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Conv1d(3, 16, 4, stride=4)
        layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.fc = nn.Linear(16, 3)

    def forward(self, x):
        return self.fc(self.encoder(self.embed(x).movedim(1, 2)).mean(1))


def transformer():
    return Transformer(), (3, 20), "encoder.layers.1"


@pytest.mark.parametrize("make", [user_cnn, mlp, transformer])
def test_users_networks_are_split_automatically(make):
    network, shape, expected = make()
    modes = [m.training for m in network.train().modules()]
    example = torch.zeros(2, *shape)
    assert find_attach(network, example) == expected
    assert [m.training for m in network.modules()] == modes
    model = split_network(network, example, 3)
    nn.init.normal_(model.second[-1].weight)
    x = torch.rand(4, *shape)
    model.train().both(x, torch.tensor([2, 1]))[1].sum().backward()
    main, second = model.eval().both(x, torch.tensor([2, 0]))
    torch.testing.assert_close(main, network(x)[[2, 0]])
    assert second.shape == (4, 3)


@pytest.mark.parametrize(("make", "expected"), [(user_cnn, "0.10"), (mlp, "6"), (transformer, "encoder")])
def test_the_last_cut_lies_before_the_places_are_averaged(make, expected):
    network, shape, _ = make()
    modes = [m.training for m in network.train().modules()]
    assert find_last(network, torch.zeros(2, *shape)) == expected
    assert [m.training for m in network.modules()] == modes


def test_the_last_cut_of_a_network_with_one_layer_of_weights_lies_before_it():
    assert find_last(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.zeros(2, 3, 4)) == "0"
    with pytest.raises(ModelError, match="cannot be split"):
        find_last(nn.Linear(12, 3), torch.zeros(2, 12))


def test_tokens_are_convolved_along_the_sequence_not_the_width():
    network, shape, _ = transformer()
    model = split_network(network, torch.zeros(2, *shape), 3)
    assert model.second[1].in_channels == 16


def test_a_layer_with_a_skip_connection_around_it_is_refused():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), Residual(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    example = torch.zeros(2, 3, 6, 6)
    with pytest.raises(ModelError, match=r"cannot be split at '1\.inner'"):
        check_attach(network, "1.inner", example)
    assert check_attach(network, "1", example) == "1"
    assert find_attach(network, example) == "0"


def test_rows_that_fit_but_give_other_logits_are_refused():
    with pytest.raises(ModelError, match="cannot be split at 'first'"):
        check_attach(BatchMixing(), "first", torch.zeros(2, 6))


def test_a_layer_used_twice_is_refused():
    shared = nn.Linear(4, 4)
    network = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(4, 2))
    with pytest.raises(ModelError, match="called once"):
        check_attach(network, "0", torch.zeros(2, 4))


class Siamese(nn.Module):
    """Calls `shared` on two branches: rows fit through both, but its first output alone decides nothing."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(6, 6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.shared(x) + self.shared(x.flip(1)).relu())


def test_a_layer_used_on_two_branches_is_refused():
    with pytest.raises(ModelError, match="called once"):
        check_attach(Siamese(), "shared", torch.zeros(2, 6))


def test_names_may_leave_out_a_prefix_that_is_unique():
    network = normalized(build_backbone("wrn-10-1", (3, 8, 8), 2), [0.0] * 3, [1.0] * 3)
    example = torch.zeros(2, 3, 8, 8)
    assert check_attach(network, "stage2", example) == find_attach(network, example)[:-1] + "2"
    with pytest.raises(ModelError, match="ambiguous"):
        check_attach(network, "conv1", example)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 8, batch_first=True)
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        return self.fc(self.lstm(x.movedim(1, 2))[0][:, -1])


def test_networks_without_a_cut_are_refused():
    for network, shape in ((Recurrent(), (3, 10)), (nn.Sequential(nn.Flatten(), nn.Linear(6, 2)), (2, 3))):
        with pytest.raises(ModelError, match=r"cannot be split: .*--attach"):
            find_attach(network, torch.zeros(2, *shape))


def test_networks_that_fail_are_named():
    with pytest.raises(ModelError, match=r"fails on a batch of shape \(5, 7\)"):
        find_attach(nn.Sequential(nn.Linear(6, 2)), torch.zeros(2, 7))
    with pytest.raises(ModelError, match=r"must return logits"):
        find_attach(nn.Conv1d(1, 2, 3), torch.zeros(2, 1, 8))


# --------------------------------------------------------------------------- the user's own network

USER_MODULE = """
import torch
from torch import nn
def both(input_shape, n_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(input_shape).numel(), n_classes))
def bare():
    return both((2, 5), 3)
def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
def frozen():
    return bare().requires_grad_(False)
def classes_only(n_classes):
    return both((2, 5), n_classes)
def wrong():
    return both((2, 5), 4)
def none(input_shape, n_classes):
    return 7
def broken(input_shape, n_classes):
    raise ValueError("no such size")
def unfit():
    return both((2, 6), 3)
def tuples():
    return nn.LSTM(5, 3, batch_first=True)
constant = 3
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "own_network.py").write_text(USER_MODULE)
    (tmp_path / "needs_more.py").write_text("import a_missing_package")
    monkeypatch.chdir(tmp_path)
    yield "own_network"
    import sys

    sys.modules.pop("own_network", None)


@pytest.mark.parametrize("factory", ["both", "bare", "classes_only", "lazy"])
def test_factories_are_found_in_the_working_directory(user_module, factory):
    state = torch.get_rng_state()
    build = load_factory(f"{user_module}:{factory}", (2, 5), 3)
    assert torch.equal(state, torch.get_rng_state())
    assert sum(parameter.numel() for parameter in build().parameters()) == 33
    assert build()(torch.rand(4, 2, 5)).shape == (4, 3)
    assert build() is not build()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("own_network", "write package.module:factory"),
        ("own_network.py:both", r"without a path or \.py"),
        ("no_such_module:both", "cannot be imported from .*no_such_module"),
        ("needs_more:both", "cannot be imported from .*a_missing_package"),
        ("own_network:missing", "has no function or class 'missing'"),
        ("own_network:constant", "has no function or class 'constant'"),
        ("own_network:none", "returns a int; it must return a torch.nn.Module"),
        ("own_network:wrong", r"returns shape \(2, 4\); .* shape \(2, 3\)"),
        ("own_network:tuples", "returns a tuple"),
        ("own_network:frozen", "no parameter of the network can be trained"),
        ("own_network:broken", "fails: ValueError: no such size"),
        ("own_network:unfit", r"fails on inputs of shape \(2, 2, 5\)"),
    ],
)
def test_factories_fail_with_one_clear_line(user_module, spec, words):
    with pytest.raises(ModelError, match=words) as caught:
        load_factory(spec, (2, 5), 3)
    assert "\n" not in str(caught.value)
