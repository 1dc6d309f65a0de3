"""Two heads on one trunk: both in one pass, gradients where they belong, nothing left behind; how wide a head is."""

import copy
import pickle

import pytest
import torch
from torch import nn

from antibackdoor.errors import ModelError
from antibackdoor.models.backbones import BACKBONES, build_backbone
from antibackdoor.models.hooks import trunk_features
from antibackdoor.models.normalization import normalized
from antibackdoor.models.splitting import find_attach
from antibackdoor.models.two_head import TwoHead, second_head, split_network


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def small_two_head(head_width="light"):
    network = normalized(build_backbone("wrn-10-1", (3, 12, 12), 4), [0.5, 0.4, 0.3], [0.2, 0.2, 0.0])
    model = split_network(network, torch.zeros(2, 3, 12, 12), 4, head_width=head_width)
    nn.init.normal_(model.second[-1].weight)  # zero by design: would make comparisons of its logits empty
    return model


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
