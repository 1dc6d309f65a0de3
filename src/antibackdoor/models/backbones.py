"""Networks to train. A new one is a builder and a line in `BACKBONES`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import nn

from antibackdoor.errors import ModelError
from antibackdoor.models.mobilenet import mobilenet_v2
from antibackdoor.models.resnet import Bottleneck, image_resnet, series_resnet_1d
from antibackdoor.models.series import fully_convolutional, wang_resnet
from antibackdoor.models.wide_resnet import wide_resnet

__all__ = ["BACKBONES", "Backbone", "build_backbone", "default_backbone"]

Kind = Literal["image", "series"]
MIN_SIZE = 8  # pixels or time steps; below, the later stages see nothing but padding
TINY_IMAGE = 16 * 16  # pixels
FEW_SAMPLES = 2_000  # below, a network of 11 million parameters is slower and no better


@dataclass(frozen=True)
class Backbone:
    """A network by name.

    Attributes:
        build: Takes the shape of one input, `(C, H, W)` or `(C, T)`, and the number of classes K; the network
            maps `(B, *shape)` to logits `(B, K)`.
        kind: What it classifies.
        description: One line for the user.
    """

    build: Callable[[Sequence[int], int], nn.Module]
    kind: Kind
    description: str


# fmt: off
# ruff: noqa: E501 (one line an entry, so that the table reads as one)
BACKBONES: dict[str, Backbone] = {
    "resnet18": Backbone(partial(image_resnet, n_blocks=(2, 2, 2, 2)), "image", "ResNet-18, 11.2 M parameters"),
    "resnet34": Backbone(partial(image_resnet, n_blocks=(3, 4, 6, 3)), "image", "ResNet-34, 21.3 M parameters (E2ABL)"),
    "resnet50": Backbone(partial(image_resnet, block=Bottleneck, n_blocks=(3, 4, 6, 3)), "image", "ResNet-50, 23.5 M parameters"),
    "resnet18-thin": Backbone(partial(image_resnet, n_blocks=(2, 2, 2, 2), width=16), "image", "ResNet-18 of a quarter of the width, 0.7 M parameters, for CPUs"),
    "resnet32-thin": Backbone(partial(image_resnet, n_blocks=(5, 5, 5), width=16), "image", "CIFAR ResNet-32, 0.5 M parameters (called ResNet-34 in the code of ABL and NAD)"),
    "wrn-10-1": Backbone(partial(wide_resnet, depth=10, widening=1), "image", "wide ResNet, 0.1 M parameters"),
    "wrn-10-2": Backbone(partial(wide_resnet, depth=10, widening=2), "image", "wide ResNet, 0.3 M parameters"),
    "wrn-16-1": Backbone(partial(wide_resnet, depth=16, widening=1), "image", "wide ResNet, 0.2 M parameters (ABL, NAD)"),
    "wrn-16-2": Backbone(partial(wide_resnet, depth=16, widening=2), "image", "wide ResNet, 0.7 M parameters"),
    "wrn-40-1": Backbone(partial(wide_resnet, depth=40, widening=1), "image", "wide ResNet, 0.6 M parameters"),
    "wrn-40-2": Backbone(partial(wide_resnet, depth=40, widening=2), "image", "wide ResNet, 2.2 M parameters"),
    "mobilenetv2": Backbone(mobilenet_v2, "image", "MobileNetV2, 2.3 M parameters"),
    "series-resnet18": Backbone(partial(series_resnet_1d, n_blocks=(2, 2, 2, 2)), "series", "1-D ResNet-18, 3.8 M parameters"),
    "series-resnet34": Backbone(partial(series_resnet_1d, n_blocks=(3, 4, 6, 3)), "series", "1-D ResNet-34, 7.2 M parameters (E2ABL)"),
    "series-resnet": Backbone(wang_resnet, "series", "residual network of Wang et al., 0.5 M parameters"),
    "fcn": Backbone(fully_convolutional, "series", "fully convolutional network of Wang et al., 0.3 M parameters"),
}
# fmt: on


def build_backbone(name: str, input_shape: Sequence[int], n_classes: int) -> nn.Module:
    """A freshly initialized backbone; weights come from torch's global random state.

    Raises:
        ModelError: If there is no such backbone, it is for the other kind of data, or the inputs are too small.

    >>> sum(p.numel() for p in build_backbone("wrn-16-1", (3, 32, 32), 10).parameters())
    175066
    """
    kind: Kind = "image" if len(input_shape) == 3 else "series"
    suitable = [key for key, entry in BACKBONES.items() if entry.kind == kind]
    if name not in suitable:
        why = f"is for {BACKBONES[name].kind} data" if name in BACKBONES else "is not known"
        raise ModelError(f"backbone '{name}' {why}; for {kind} data choose one of {', '.join(suitable)}")
    if min(input_shape[1:]) < MIN_SIZE:
        raise ModelError(
            f"inputs of shape {tuple(input_shape)} are too small: backbones need at least {MIN_SIZE} "
            f"{'pixels a side' if kind == 'image' else 'time steps'}; resize them, or give your own model"
        )
    return BACKBONES[name].build(input_shape, n_classes)


def default_backbone(kind: Kind, shape: Sequence[int], n_samples: int, has_gpu: bool) -> str:
    """Name of a backbone that learns such data well in reasonable time on this machine.

    Args:
        kind: What is to be classified.
        shape: Of one sample, `(C, H, W)` or `(C, T)`.
        n_samples: Number of training samples.
        has_gpu: Whether an accelerator trains.
    """
    if kind == "series":
        return "series-resnet"
    if shape[1] * shape[2] <= TINY_IMAGE:
        return "wrn-16-1"  # two halvings leave 2×2 of 8×8 pixels; ResNet's three leave one
    return "resnet18" if has_gpu and n_samples >= FEW_SAMPLES else "resnet18-thin"
