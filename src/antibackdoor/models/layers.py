"""Layers by the number of spatial axes, and how weights start."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

CONV: dict[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORM: dict[int, Callable[[int], nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOL: dict[int, Callable[[int], nn.Module]] = {
    1: nn.AdaptiveAvgPool1d,
    2: nn.AdaptiveAvgPool2d,
    3: nn.AdaptiveAvgPool3d,
}


def global_pool(dims: int) -> nn.Sequential:
    """Global average pooling of `(B, C, *spatial)` maps with `dims` spatial axes to `(B, C)`."""
    return nn.Sequential(POOL[dims](1), nn.Flatten())


def initialize_he(network: nn.Module) -> None:
    """He initialization (fan-out) of all convolutions, zero biases; batch norm keeps weight 1 and bias 0.

    Reference: He et al., "Delving Deep into Rectifiers", ICCV 2015, arXiv:1502.01852.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
