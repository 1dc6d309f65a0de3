"""Which tensor of a stranger's file belongs where in a network: by names, or by the names of a known layout."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest

__all__ = ["LAYOUTS", "OPTIONAL", "Attempt", "Layout", "Target", "by_names", "layer_and_tensor", "short_names", "spell"]

OPTIONAL = "num_batches_tracked"  # absent before torch 0.4.1; nothing reads it where batch norm has a momentum
LONGEST_NAME = 80  # characters of a file's key in a message


@dataclass(frozen=True)
class Target:
    """A tensor of the network that is to be filled.

    Attributes:
        shape: Its shape.
        same_as: Name of the first tensor that is this one; its own name, unless weights are tied.
    """

    shape: tuple[int, ...]
    same_as: str


@dataclass(frozen=True)
class Layout:
    """How published code names the layers of a network that is also ours.

    Attributes:
        name: In a message.
        renames: `(pattern, replacement)`: a layer's whole name there, and the name of the same layer here.
    """

    name: str
    renames: tuple[tuple[str, str], ...]

    def layer(self, name: str) -> str | None:
        """Our name for a layer of theirs; None if the layout has no such layer."""
        for pattern, replacement in self.renames:
            if match := re.fullmatch(pattern, name):
                return match.expand(replacement)
        return None


# The names on the left are facts about public code, looked up in: bboylyg/NAD and bboylyg/ABL (models/wresnet.py
# and models/resnet.py), xternalz/WideResNet-pytorch, kuangliu/pytorch-cifar, torchvision.
LAYOUTS = (
    Layout(
        "residual networks of torchvision, kuangliu/pytorch-cifar, NAD and ABL",
        (
            (r"conv1", r"stem.0.0"),
            (r"bn1", r"stem.0.1"),
            (r"layer(\d+)\.(\d+)\.conv(\d+)", r"stage\1.\2.conv\3.0"),
            (r"layer(\d+)\.(\d+)\.bn(\d+)", r"stage\1.\2.conv\3.1"),
            (r"layer(\d+)\.(\d+)\.(?:shortcut|downsample)\.([01])", r"stage\1.\2.shortcut.\3"),
            (r"fc|linear|classifier", r"fc"),
        ),
    ),
    Layout(
        "wide residual networks of xternalz/WideResNet-pytorch, NAD and ABL",
        (
            (r"conv1", r"stem"),
            (r"block(\d+)\.layer\.(\d+)\.bn(\d+)", r"stage\1.\2.norm\3"),
            (r"block(\d+)\.layer\.(\d+)\.conv(\d+)", r"stage\1.\2.conv\3"),
            (r"block(\d+)\.layer\.(\d+)\.convShortcut", r"stage\1.\2.shortcut"),
            (r"bn1", r"norm"),
            (r"fc|linear|classifier", r"fc"),
        ),
    ),
)


@dataclass(frozen=True)
class Attempt:
    """One way to fill a network from a file.

    Attributes:
        by: What it goes by, for a message: "names", the name of a layout, or "order of use".
        sources: Name of a tensor of the network to the key in the file; optional tensors only where both have them.
        problems: Why it does not fit, one line a tensor or layer; empty if every tensor is filled exactly once.
    """

    by: str
    sources: dict[str, str]
    problems: tuple[str, ...]


def spell(name: str, shape: Iterable[int]) -> str:
    """A key and its shape for a message."""
    name = name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…"
    return f"{name} ({'×'.join(map(str, shape)) or 'a scalar'})"


def layer_and_tensor(name: str) -> tuple[str, str]:
    """`"stage1.0.conv1.weight"` as `("stage1.0.conv1", "weight")`."""
    layer, _, tensor = name.rpartition(".")
    return layer, tensor


def short_names(names: Iterable[str], *, strays: Collection[str] = ()) -> dict[str, str]:
    """Names without the leading parts that all share (`module.`, `network.`, …), to the full ones; order kept.

    Args:
        names: Of tensors or layers.
        strays: Those of them that need not share the leading parts; they keep their names.

    >>> short_names(["module.fc.weight", "module.norm.weight"])
    {'fc.weight': 'module.fc.weight', 'norm.weight': 'module.norm.weight'}
    """
    names = list(names)
    parts = [name.split(".") for name in names if name not in strays]
    shared = 0
    while parts and all(len(part) > shared + 1 and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    return {name if name in strays else ".".join(name.split(".")[shared:]): name for name in names}


def by_names(file: Mapping[str, tuple[int, ...]], own: Mapping[str, Target], layout: Layout | None = None) -> Attempt:
    """Tensors that have the same name once shared prefixes are gone, and one of the two is renamed by a layout.

    Args:
        file: Key to shape.
        own: Name to target.
        layout: How the file's names are to be read; None for as they are.
    """
    names = short_names(own)
    lone = {key for key in file if "." not in key and key not in names}
    sources: dict[str, str] = {}
    wrong_shape, unknown, twice = [], [], []
    for short, key in short_names(file, strays=lone).items():
        layer, tensor = layer_and_tensor(short)
        renamed = layer if layout is None else layout.layer(layer)
        name = None if renamed is None else names.get(f"{renamed}.{tensor}" if renamed else tensor)
        if name is None:
            if tensor != OPTIONAL:
                unknown.append(f"{spell(key, file[key])} is not in the network")
        elif name in sources:
            twice.append(f"{spell(key, file[key])} and {spell(sources[name], file[sources[name]])} are both {name}")
        else:
            sources[name] = key
            if file[key] != own[name].shape:
                wrong_shape.append(f"{spell(key, file[key])} has another shape than {spell(name, own[name].shape)}")
    filled = {own[name].same_as for name in sources}
    missing = [
        f"{spell(name, target.shape)} is not in the file"
        for name, target in own.items()
        if target.same_as not in filled and layer_and_tensor(name)[1] != OPTIONAL
    ]
    # Both sides in turn, so that a list cut short shows what a name was and what it should have been.
    strays = [line for pair in zip_longest(unknown, missing) for line in pair if line is not None]
    problems = (*twice, *wrong_shape, *strays)
    return Attempt("names" if layout is None else layout.name, sources, problems)
