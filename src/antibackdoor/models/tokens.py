"""Which axis of a layer's output holds its channels: convolutions keep them first, transformers last."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd


def channels_first(network: nn.Module, layer: str, output: Tensor) -> Tensor:
    """A layer's output as `(B, C, *places)`: the tokens `(B, T, width)` of a transformer become `(B, width, T)`."""
    return output.movedim(-1, 1) if channels_are_last(network, layer, output.shape[1:]) else output


def channels_are_last(network: nn.Module, layer: str, shape: Sequence[int]) -> bool:
    """Whether a layer's output, of this shape without the batch, has its channels on the last axis.

    The weights of the layer tell: one as wide as the last axis (linear, layer norm, recurrent), and no convolution or
    batch norm with as many channels as the first axis has. A layer without any goes by its neighbor before it.
    """
    if len(shape) < 2:
        return False
    deciding = _deciding(network, layer.split("."))
    return shape[-1] in map(_width, deciding) and shape[0] not in map(_channels, deciding)


def _deciding(network: nn.Module, path: list[str]) -> list[nn.Module]:
    """The modules of a layer; if it has no weights, those of the nearest one before it that has some."""
    for depth in reversed(range(len(path))):
        children = dict(network.get_submodule(".".join(path[:depth])).named_children())
        names = list(children)
        for name in reversed(names[: names.index(path[depth]) + 1]):
            modules = list(children[name].modules())
            if any(_channels(module) or _width(module) for module in modules):
                return modules
    return []


def _channels(module: nn.Module) -> int:
    """Channels of the output of a layer that keeps them first; 0 for others."""
    if isinstance(module, _ConvNd):
        return module.out_channels
    if isinstance(module, _BatchNorm):
        return module.num_features
    return module.num_channels if isinstance(module, nn.GroupNorm) else 0


def _width(module: nn.Module) -> int:
    """Width of the output of a layer that keeps its channels last; 0 for others."""
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, nn.RNNBase):
        return module.hidden_size * (1 + module.bidirectional)
    return int(module.normalized_shape[-1]) if isinstance(module, nn.LayerNorm) else 0
