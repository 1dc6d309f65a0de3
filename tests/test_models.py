"""Normalization inside the model, finding where to split, the user's own network."""

import numpy as np
import pytest
import torch
from torch import nn

from antibackdoor.data.samples import Samples
from antibackdoor.errors import DataError, ModelError
from antibackdoor.models.backbones import BACKBONES, build_backbone
from antibackdoor.models.normalization import Normalize, channel_statistics, normalized
from antibackdoor.models.own_network import load_factory
from antibackdoor.models.splitting import check_attach, find_attach, find_last
from antibackdoor.models.two_head import split_network


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def samples_of(inputs):
    n = len(inputs)
    return Samples(inputs, np.zeros(n, np.int64), np.arange(n).astype(str), np.array(["only"]))


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
