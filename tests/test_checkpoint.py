"""A stranger's model file: read without running it, mapped to the right layers, or refused."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from antibackdoor.errors import ModelError
from antibackdoor.models.backbones import build_backbone
from antibackdoor.models.checkpoint import largest_file, load_checkpoint, read_state_dict
from antibackdoor.models.checkpoint_layouts import Target, by_names, short_names
from antibackdoor.models.checkpoint_order import by_order, order_of_use
from antibackdoor.models.normalization import normalized
from antibackdoor.models.resnet import Bottleneck, image_resnet

SHAPE = (3, 16, 16)
EXAMPLE = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def named(**layers):
    """A module with these parts, in this order; it is not to be called."""
    module = nn.Module()
    for name, layer in layers.items():
        module.add_module(name, layer)
    return module


def conv(a, b, kernel, stride=1):
    return nn.Conv2d(a, b, kernel, stride=stride, padding=kernel // 2, bias=False)


def their_wide_resnet(depth=16, k=1, n_classes=10):
    """Names and order of xternalz/WideResNet-pytorch, NAD and ABL."""

    def block(a, b):
        norm, change = nn.BatchNorm2d, {"convShortcut": conv(a, b, 1)} if a != b else {}
        return named(bn1=norm(a), conv1=conv(a, b, 3), bn2=norm(b), conv2=conv(b, b, 3), **change)

    def group(a, b):
        rest = [block(b, b) for _ in range((depth - 4) // 6 - 1)]
        return named(layer=nn.Sequential(block(a, b), *rest))

    widths = (16, 16 * k, 32 * k, 64 * k)
    groups = {f"block{i + 1}": group(widths[i], widths[i + 1]) for i in range(3)}
    last = {"bn1": nn.BatchNorm2d(widths[3]), "fc": nn.Linear(widths[3], n_classes)}
    return named(conv1=conv(3, 16, 3), **groups, **last)


def their_resnet(shortcut="shortcut", head="linear", *, width=64, n_blocks=(2, 2, 2, 2), n_classes=10):
    """Names and order of kuangliu/pytorch-cifar; of torchvision and of NAD's thin one with `downsample` and `fc`."""

    def block(a, b, changes):
        side = {shortcut: nn.Sequential(conv(a, b, 1), nn.BatchNorm2d(b))} if changes else {}
        return named(conv1=conv(a, b, 3), bn1=nn.BatchNorm2d(b), conv2=conv(b, b, 3), bn2=nn.BatchNorm2d(b), **side)

    stages, a = {}, width
    for i, n in enumerate(n_blocks):
        b = width * 2**i
        stages[f"layer{i + 1}"] = nn.Sequential(block(a, b, a != b), *(block(b, b, False) for _ in range(n - 1)))
        a = b
    return named(conv1=conv(3, width, 3), bn1=nn.BatchNorm2d(width), **stages, **{head: nn.Linear(a, n_classes)})


def their_preact_resnet(width=64, n_classes=10):
    """Names and order of BackdoorBench's PreActResNet-18: norm before convolution, none around the shortcut."""

    def block(a, b):
        side = {"shortcut": nn.Sequential(conv(a, b, 1))} if a != b else {}
        return named(bn1=nn.BatchNorm2d(a), conv1=conv(a, b, 3), bn2=nn.BatchNorm2d(b), conv2=conv(b, b, 3), **side)

    stages, a = {}, width
    for i in range(4):
        b = width * 2**i
        stages[f"layer{i + 1}"] = nn.Sequential(block(a, b), block(b, b))
        a = b
    return named(conv1=conv(3, width, 3), **stages, linear=nn.Linear(a, n_classes))


def their_mobilenet():
    """Names and order of kuangliu/pytorch-cifar: blocks are numbered through."""
    plan = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    blocks, a = [], 32
    for expansion, b, n, stride in plan:
        for i in range(n):
            h, norm = expansion * a, nn.BatchNorm2d
            change = a != b and (stride if i == 0 else 1) == 1
            side = {"shortcut": nn.Sequential(conv(a, b, 1), norm(b))} if change else {}
            depthwise = nn.Conv2d(h, h, 3, groups=h, bias=False)
            main = {"conv1": conv(a, h, 1), "bn1": norm(h), "conv2": depthwise, "bn2": norm(h), "conv3": conv(h, b, 1)}
            blocks.append(named(**main, bn3=norm(b), **side))
            a = b
    last = {"conv2": conv(320, 1280, 1), "bn2": nn.BatchNorm2d(1280), "linear": nn.Linear(1280, 10)}
    return named(conv1=conv(3, 32, 3), bn1=nn.BatchNorm2d(32), layers=nn.Sequential(*blocks), **last)


def filled(module):
    """Every value of a state dict is another one, so that no two layers can be taken for each other."""
    state = module.state_dict()
    for value in state.values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) * 0.1 + 0.05)
        else:
            value.fill_(7)
    return state


def ours(name="wrn-16-1", n_classes=10, shape=SHAPE):
    return normalized(build_backbone(name, shape, n_classes), [0.4, 0.5, 0.6], [0.2, 0.2, 0.2])


def in_order(network):
    """Values of the network without its normalization, layer by layer as they are used."""
    state = network.state_dict()
    return [
        value
        for use in order_of_use(network, EXAMPLE)
        for name, value in state.items()
        if name.rpartition(".")[0] == use.layer and "normalize" not in name
    ]


def same_in_order(network, state):
    got = in_order(network)
    return len(got) == len(state) and all(torch.equal(a, b) for a, b in zip(got, state.values(), strict=True))


def saved(path, value):
    torch.save(value, path)
    return path


def load(path, network):
    return load_checkpoint(path, network, example=EXAMPLE)


def refusal(path, network=None):
    """The message, one line, and the network is as it was."""
    network = ours() if network is None else network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ModelError) as caught:
        load(path, network)
    message = str(caught.value)
    assert "\n" not in message
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    return message


# --------------------------------------------------------------------------- published layouts


THEIRS = {
    "wrn-16-1": their_wide_resnet,
    "wrn-40-2": lambda: their_wide_resnet(40, 2),
    "resnet18": their_resnet,
    "resnet34": lambda: their_resnet("downsample", "fc", n_blocks=(3, 4, 6, 3)),
    "resnet32-thin": lambda: their_resnet("downsample", "fc", width=16, n_blocks=(5, 5, 5)),
}


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", THEIRS)
def test_published_layouts_reach_their_layers(tmp_path, name, ending):
    state, network = filled(THEIRS[name]()), ours(name)
    path = tmp_path / f"model{ending}"
    if ending == ".safetensors":  # sorted by name: here names alone can tell
        save_file(state, path)
    else:
        saved(path, {"epoch": 3, "state_dict": state})
    loaded = load(path, network)
    assert "NAD" in loaded.by and loaded.n_tensors == len(state) and not loaded.has_normalization
    assert same_in_order(network, state)
    assert network[0].mean.tolist() == pytest.approx([0.4, 0.5, 0.6])  # not theirs to say


def test_blocks_that_are_numbered_through_go_by_order(tmp_path):
    state, network = filled(their_mobilenet()), ours("mobilenetv2")
    assert load(saved(tmp_path / "m.pt", state), network).by == "order of use"
    assert same_in_order(network, state)
    save_file(state, tmp_path / "m.safetensors")
    assert "not in the file" in refusal(tmp_path / "m.safetensors", ours("mobilenetv2"))


def test_order_and_the_names_of_a_layout_agree(tmp_path):
    for name in ("wrn-16-1", "resnet18"):
        network = build_backbone(name, SHAPE, 10)
        file = {key: tuple(value.shape) for key, value in THEIRS[name]().state_dict().items()}
        own = {key: Target(tuple(value.shape), key) for key, value in network.state_dict().items()}
        attempt = by_order(file, own, order_of_use(network, EXAMPLE))
        assert attempt.problems == ()
        assert sorted(attempt.sources) == sorted(own) and sorted(attempt.sources.values()) == sorted(file)


def test_the_logits_are_those_of_their_network(tmp_path):
    """With NAD's names, against the same functions written out."""
    theirs, network = their_wide_resnet(10), build_backbone("wrn-10-1", SHAPE, 10)
    state = filled(theirs)
    theirs.eval()
    x = theirs.conv1(EXAMPLE)
    for i in range(3):
        block = getattr(theirs, f"block{i + 1}").layer[0]
        block.conv1.stride = (1, 1) if i == 0 else (2, 2)
        active = block.bn1(x).relu()
        side = x
        if hasattr(block, "convShortcut"):
            block.convShortcut.stride = block.conv1.stride
            side = block.convShortcut(active)
        x = side + block.conv2(block.bn2(block.conv1(active)).relu())
    logits = theirs.fc(theirs.bn1(x).relu().mean((2, 3)))
    load(saved(tmp_path / "m.pth", state), network)
    torch.testing.assert_close(network.eval()(EXAMPLE), logits, rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------- wrappers


def test_prefixes_optimizers_and_older_formats(tmp_path):
    state = filled(their_wide_resnet())
    parallel = OrderedDict((f"module.{key}", value) for key, value in state.items())
    optimizer = torch.optim.Adam(their_wide_resnet().parameters())
    beside = {"optimizer": optimizer.state_dict(), "epoch": 20, "best_clean_acc": np.float64(85.5), "lr": np.float32(1)}
    for number, value in enumerate(
        (
            parallel,
            {"model_state_dict": parallel, **beside},
            {"net": state, "acc": torch.tensor(0.9), **beside},
            {"model": {"state_dict": parallel}},
            {"student": state, "epoch": torch.tensor(3)},
            {key: nn.Parameter(entry) if entry.is_floating_point() else entry for key, entry in state.items()},
            {key: entry for key, entry in state.items() if "num_batches" not in key},
            {key: entry.double() if entry.is_floating_point() else entry for key, entry in state.items()},
        )
    ):
        network = ours()
        load(saved(tmp_path / f"{number}.pth.tar", value), network)
        state_now = {key: entry for key, entry in network.state_dict().items() if "num_batches" not in key}
        wanted = [entry for key, entry in state.items() if "num_batches" not in key]
        assert all(torch.equal(a, b) for a, b in zip(list(state_now.values())[2:], wanted, strict=True)), number
    network = ours()
    torch.save({"state_dict": state, **beside}, tmp_path / "old.tar", _use_new_zipfile_serialization=False)
    load(tmp_path / "old.tar", network)
    assert same_in_order(network, state)


def test_a_count_beside_the_layers_is_passed_over(tmp_path):
    averaged = AveragedModel(their_wide_resnet())
    assert {"n_averaged", "module.conv1.weight"} <= {*averaged.state_dict()}
    state = filled(averaged)
    save_file(state, tmp_path / "m.safetensors")
    for path in (saved(tmp_path / "m.pt", {"state_dict": state}), tmp_path / "m.safetensors"):
        network = ours()
        loaded = load(path, network)
        assert loaded.n_tensors == len(state) - 1
        assert same_in_order(network, {name: tensor for name, tensor in state.items() if name != "n_averaged"})
    lone = state | {"scale": torch.tensor(1.5)}  # trained, it may be, so that the network is another one
    message = refusal(saved(tmp_path / "lone.pt", lone))
    assert "scale (a scalar) is not in the network" in message and "conv1" not in message


def test_our_own_file_brings_its_normalization(tmp_path):
    other, network = ours(), normalized(build_backbone("wrn-16-1", SHAPE, 10), [0.0] * 3, [1.0] * 3)
    save_file(other.state_dict(), tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors", network)
    assert loaded.by == "names" and loaded.has_normalization
    assert all(
        torch.equal(a, b) for a, b in zip(other.state_dict().values(), network.state_dict().values(), strict=True)
    )


class Own(nn.Module):
    """A user's network with names of its own and tied weights."""

    def __init__(self, tied=False):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        if tied:
            self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x).relu())


def test_the_users_own_network_and_tied_weights(tmp_path):
    x = torch.rand(2, 6)
    source, target = Own(tied=True), Own(tied=True)
    load_checkpoint(saved(tmp_path / "a.pt", source.state_dict()), target, example=x)
    torch.testing.assert_close(source(x), target(x))
    once = {key: value for key, value in source.state_dict().items() if key != "second.weight"}
    load_checkpoint(saved(tmp_path / "b.pt", once), Own(tied=True), example=x)  # as safetensors stores them
    with pytest.raises(ModelError, match="shares its weights"):
        load_checkpoint(saved(tmp_path / "c.pt", Own().state_dict()), target, example=x)


# --------------------------------------------------------------------------- what does not fit


def test_other_classes_and_widths_are_listed(tmp_path):
    path = saved(tmp_path / "m.pth", their_wide_resnet(n_classes=43).state_dict())
    message = refusal(path)
    assert "fc.weight (43×64) has another shape than network.fc.weight (10×64)" in message
    assert message.count(";") == 1  # weight and bias of the last layer, nothing else
    path = saved(tmp_path / "w.pth", their_wide_resnet(k=2).state_dict())
    message = refusal(path)
    assert "has another shape" in message and "more" in message and message.count(";") == 20


def test_another_structure_is_refused_with_the_layers_that_differ(tmp_path):
    path = saved(tmp_path / "p.pth", filled(their_preact_resnet()))
    message = refusal(path, ours("resnet18"))
    assert "layer2.0.bn1" in message and "stem.0.1" in message
    path = saved(tmp_path / "r.pth", filled(their_resnet(width=16)))
    assert "does not fit" in refusal(path)
    missing = {key: value for key, value in filled(their_wide_resnet()).items() if "convShortcut" not in key}
    message = refusal(saved(tmp_path / "s.pth", missing))
    assert "network.stage2.0.shortcut.weight (32×16×1×1) is not in the file" in message
    biased = filled(their_wide_resnet()) | {"conv1.bias": torch.zeros(16)}
    assert "conv1.bias (16) is not in the network" in refusal(saved(tmp_path / "b.pth", biased))


def renamed(state, change):
    return OrderedDict((change(key), value) for key, value in state.items())


def test_unknown_names_that_differ_list_layers_in_sequence(tmp_path):
    state = renamed(filled(their_preact_resnet()), lambda key: f"part_{key}")
    message = refusal(saved(tmp_path / "p.pth", state), ours("resnet18"))
    assert "(bias 128, weight 128) has no counterpart in the file" in message  # the norm of a shortcut
    state = renamed(filled(their_resnet()) | {"conv1.bias": torch.zeros(64)}, lambda key: f"part_{key}")
    message = refusal(saved(tmp_path / "b.pth", state), ours("resnet18"))
    assert "part_conv1 (bias 64, weight 64×3×3×3) has no place in the network" in message and message.count(";") == 1


def test_order_is_refused_where_it_may_be_another(tmp_path):
    network = build_backbone("resnet18", SHAPE, 10)
    own = {key: Target(tuple(value.shape), key) for key, value in network.state_dict().items()}
    uses = order_of_use(network, EXAMPLE)
    shapes = {key: tuple(value.shape) for key, value in their_resnet().state_dict().items()}

    def problems(change):
        return by_order({change(key): shape for key, shape in shapes.items()}, own, uses).problems

    assert problems(lambda key: key) == ()
    # conv2 was written down before conv1: shapes agree, numbers fall.
    swap = {"conv1": "conv2", "conv2": "conv1", "bn1": "bn2", "bn2": "bn1"}

    def swapped(key):
        return ".".join(swap.get(part, part) if key.startswith("layer1.0") else part for part in key.split("."))

    assert "after" in problems(swapped)[0]
    # What is called a shortcut lands on the main path.
    crossed = problems(lambda key: key.replace("layer1.0.conv1", "layer1.0.shortcut_conv"))
    assert "only one of the two is a shortcut" in crossed[0]


def test_twins_side_by_side_need_names(tmp_path):
    """In a bottleneck the last convolution and the shortcut of the first block have one shape."""
    network = image_resnet(SHAPE, 10, block=Bottleneck, n_blocks=(1, 1), width=8)
    state = filled(network)
    plain = renamed(state, lambda key: key.replace("shortcut", "part").replace("conv", "piece"))
    message = refusal(saved(tmp_path / "t.pth", plain), network)
    assert "does not fit" in message
    own = {key: Target(tuple(value.shape), key) for key, value in state.items()}
    uses = order_of_use(network, EXAMPLE)
    shapes = {key: tuple(value.shape) for key, value in plain.items()}
    assert "side by side" in by_order(shapes, own, uses).problems[0]
    telling = renamed(state, lambda key: key.replace("shortcut", "downsample").replace("conv", "piece"))
    loaded = load(saved(tmp_path / "u.pth", telling), network)
    assert loaded.by == "order of use" and same_in_order(network, state)


def test_a_file_of_two_networks_is_refused(tmp_path):
    state = their_wide_resnet().state_dict()
    assert "net, network" in refusal(saved(tmp_path / "two.pth", {"net": state, "network": state}))
    assert "teacher" in refusal(saved(tmp_path / "ts.pth", {"teacher": state, "student": state}))
    assert "no dictionary of weights" in refusal(saved(tmp_path / "none.pth", {"epoch": 3, "loss": [1.0]}))
    assert "a list" in refusal(saved(tmp_path / "list.pth", [torch.zeros(2)]))


def test_bad_values_are_refused(tmp_path):
    for number, (key, value, words) in enumerate(
        (
            ("fc.weight", torch.full((10, 64), float("nan")), "NaN"),
            ("fc.weight", torch.full((10, 64), 1e300, dtype=torch.float64), "infinite"),
            ("bn1.running_var", torch.full((64,), -1.0), "negative"),
            ("fc.weight", torch.zeros(10, 64, dtype=torch.int64), "int64"),
            ("fc.weight", torch.zeros(10, 64, dtype=torch.complex64), "complex"),
            ("fc.weight", torch.zeros(10, 64).to_sparse(), "not dense"),
        )
    ):
        state = filled(their_wide_resnet()) | {key: value}
        assert words in refusal(saved(tmp_path / f"{number}.pth", state))


def test_names_keep_to_one_line_and_to_a_length(tmp_path):
    state = filled(their_wide_resnet()) | {"evil\n\x1b[2J" + "x" * 10_000: torch.zeros(3)}
    message = refusal(saved(tmp_path / "m.pth", state))
    assert "\x1b" not in message and len(message) < 1000


# --------------------------------------------------------------------------- hostile files


class Creates:
    """Unpickled without care, it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_a_pickle_is_not_run(tmp_path, new_format):
    made = tmp_path / "made"
    for place in ("state_dict", "extra"):
        value = {"state_dict": their_wide_resnet().state_dict()} | {place: Creates(made)}
        path = tmp_path / f"{place}.pth"
        torch.save(value, path, _use_new_zipfile_serialization=new_format)
        message = refusal(path)
        assert "mkdir" in message and "nothing was run" in message and "weights_only" not in message
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Creates(made), protocol=2))
    refusal(tmp_path / "bare.pt")
    assert not made.exists()


class Says:
    def __reduce__(self):
        return print, ("said",)


def test_what_other_code_allows_is_not_allowed_here(tmp_path, capsys):
    path = saved(tmp_path / "m.pth", {"state_dict": Says()})
    with torch.serialization.safe_globals([print]):
        assert "print" in refusal(path)
        assert print in torch.serialization.get_safe_globals()
    assert capsys.readouterr().out == ""


class Masked:
    """Unpickled, an `OrderedDict` that has numbers in place of its methods."""

    def __init__(self, entries):
        self.entries = entries

    def __reduce__(self):
        return OrderedDict, (list(self.entries.items()),), {"items": 5, "get": 5, "keys": 5}


def test_attributes_over_a_dictionarys_methods_change_nothing(tmp_path):
    state, network = filled(their_wide_resnet()), ours()
    load(saved(tmp_path / "m.pth", Masked({"state_dict": Masked(state)})), network)
    assert same_in_order(network, state)


def test_whole_models_and_arrays_are_refused_by_name(tmp_path):
    assert "Linear" in refusal(saved(tmp_path / "model.pth", nn.Linear(2, 2)))
    value = {"state_dict": their_wide_resnet().state_dict(), "data": np.zeros(3)}
    assert "_reconstruct" in refusal(saved(tmp_path / "array.pth", value))
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    assert "TorchScript" in refusal(tmp_path / "script.pt")


def test_damaged_and_foreign_files(tmp_path):
    whole = saved(tmp_path / "m.pth", their_wide_resnet().state_dict()).read_bytes()
    for name, data in {
        "half.pth": whole[: len(whole) // 2],
        "empty.pth": b"",
        "text.tar": b"no model\n" * 99,
        "half.safetensors": b"\xff" * 64,
        "other.onnx": whole,
    }.items():
        (tmp_path / name).write_bytes(data)
        assert name in refusal(tmp_path / name)
    assert "cannot read" in refusal(tmp_path / "missing.pth")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_devices_and_folders_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "device.pth").symlink_to("/dev/zero")
    (tmp_path / "folder.pth").mkdir()
    for name, words in {"pipe.pth": "pipe", "device.pth": "device", "folder.pth": "folder"}.items():
        assert words in refusal(tmp_path / name)
    whole = saved(tmp_path / "m.pth", their_wide_resnet().state_dict())
    (tmp_path / "link.pth").symlink_to(whole)
    load(tmp_path / "link.pth", ours())


def test_size_is_bounded_by_the_network(tmp_path):
    limit = largest_file(ours())
    assert 16 * 2**20 < limit < 26 * 2**20  # 175,066 parameters, buffers of batch norm
    state = their_wide_resnet().state_dict()
    large = saved(tmp_path / "large.pth", {"state_dict": state, "data": torch.zeros(limit // 4)})
    assert "bytes" in refusal(large)
    with zipfile.ZipFile(saved(tmp_path / "m.pth", state)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    assert "compressed" in refusal(tmp_path / "bomb.pth")
    # One value, shown a million million times: the shape is compared before anything is copied.
    wide = state | {"fc.weight": torch.zeros(1).expand(10**6, 10**6)}
    assert "fc.weight" in refusal(saved(tmp_path / "wide.pth", wide))


def test_read_state_dict_keeps_order_and_plain_tensors(tmp_path):
    state = their_wide_resnet().state_dict()
    read = read_state_dict(saved(tmp_path / "m.pth", {"net": state}), max_bytes=2**21)
    assert list(read) == list(state) and all(type(value) is torch.Tensor for value in read.values())


def test_names_lose_what_all_share():
    assert short_names(["a.b.c", "a.b.d"]) == {"c": "a.b.c", "d": "a.b.d"}
    assert short_names(["weight"]) == {"weight": "weight"}
    assert short_names([]) == {}
    attempt = by_names({"x.w": (2,), "y.w": (2,)}, {"x.w": Target((2,), "x.w")})
    assert attempt.problems  # "w" against "x.w": no name is cut to fit
