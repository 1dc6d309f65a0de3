"""Networks as a defense needs them: normalized inside, and with a second head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from antibackdoor.errors import ModelError
from antibackdoor.models.batch_norm import CrossProcessBatchNorm
from antibackdoor.models.hooks import evaluation_mode, find_layer, hooked, trunk_features
from antibackdoor.models.layers import CONV, NORM, global_pool, initialize_he
from antibackdoor.models.splitting import check_attach, find_attach
from antibackdoor.models.tokens import channels_are_last

HeadWidth = int | Literal["light", "published"]
TrunkGrad = Literal["joint", "main", "none"]
PUBLISHED_SIZE = 1.2  # parameters of the network with both heads, of those of the network (E2ABL, Section 3)
FLAT_WIDTH = 256  # light width of a head on flat features, which may be tens of thousands wide
LIGHT_WIDTH = 64  # least channels of a light second head


# --------------------------------------------------------------------------- normalization


# --------------------------------------------------------------------------- second head


class TwoHead(nn.Module):
    """A network with a second, shallow head on one of its layers.

    The layers up to and including `attach` are the trunk, the rest is the main head. Both heads share the
    trunk's weights. Works on any `nn.Module`: a forward hook takes the features, `torch.fx` is not needed.

    Args:
        network: Maps `(B, *shape)` to logits `(B, K)`. Not copied.
        second: Maps the output of the layer `attach` to logits `(B, n)`, n at least K; it ends with a linear layer.
        attach: Name of a layer as in `network.named_modules()`; must be a cut, see `find_attach`.

    Reference: Jiang et al., "End-to-End Anti-Backdoor Learning on Images and Time Series", arXiv:2401.03215,
        Section 3 (the dual-head architecture).
    """

    def __init__(self, network: nn.Module, second: nn.Module, attach: str) -> None:
        super().__init__()
        find_layer(network, attach)
        self.network = network
        self.second = second
        self.attach = attach

    def forward(self, x: Tensor) -> Tensor:
        """Main logits `(B, K)`."""
        logits: Tensor = self.network(x)
        return logits

    @property
    def n_outputs(self) -> int:
        """How many outputs the second head has."""
        return [layer for layer in self.second.modules() if isinstance(layer, nn.Linear)][-1].out_features

    def second_logits(self, x: Tensor) -> Tensor:
        """Logits `(B, n)` of the second head; the main head is not computed."""
        logits: Tensor = self.second(trunk_features(self.network, self.attach, x))
        return logits

    def both(self, x: Tensor, main_rows: Tensor, *, trunk_grad: TrunkGrad = "joint") -> tuple[Tensor, Tensor]:
        """Both heads after one pass of the whole batch through the trunk.

        Args:
            x: `(B, *shape)`.
            main_rows: `(M,)` int64, distinct positions in the batch for the main head; may be empty.
            trunk_grad: Whose gradient reaches the trunk: both heads', the main head's, or neither's.

        Returns:
            Main logits `(M, K)` in the order of `main_rows`, and second logits `(B, n)`.
        """
        norms = [m for m in self.network.modules() if isinstance(m, _BatchNorm) and m.training]
        # Layers that wait for other processes must be passed whether or not this one has rows for them.
        shared = any(isinstance(m, CrossProcessBatchNorm) for m in norms)
        if len(main_rows) == 0 and not shared:
            features = trunk_features(self.network, self.attach, x)
            second = self.second(features if trunk_grad == "joint" else features.detach())
            return second.new_zeros((0, second.shape[1])), second
        kept: list[Tensor] = []
        # Batch norm cannot train on a single value a channel; a row alone is normalized as in eval mode.
        alone = norms if len(main_rows) == 1 and not shared else []

        def select(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            kept.append(output)
            for norm in alone:
                norm.eval()
            return _select_rows(output.detach() if trunk_grad == "none" else output, main_rows)

        try:
            with hooked(find_layer(self.network, self.attach), select):
                main: Tensor = self.network(x)
        finally:
            for norm in alone:
                norm.train()
        return main, self.second(kept[0] if trunk_grad == "joint" else kept[0].detach())

    def deliver(self) -> nn.Module:
        """The network alone, as it was given: no hook, no second head."""
        return self.network


def _select_rows(features: Tensor, rows: Tensor) -> Tensor:
    # index_select, not features[rows]: its backward pass does not sort, and is exact for distinct rows.
    selected = features.index_select(0, rows)
    if features.ndim == 4 and features.is_contiguous(memory_format=torch.channels_last):
        return selected.contiguous(memory_format=torch.channels_last)
    return selected


class _ChannelsFirst(nn.Module):
    """`(B, *spatial, C)` to `(B, C, *spatial)`: the tokens of a transformer as a series of vectors."""

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(-1, 1)


def second_head(
    features_shape: Sequence[int], n_outputs: int, head_width: HeadWidth = "light", *, n_parameters: int = 0
) -> nn.Sequential:
    """A shallow classifier of features: two convolutions (kernel 3), pooling, a linear layer.

    Batch norm and ReLU follow each convolution. The linear layer starts at zero, so that every sample's first
    loss is exactly log n. Flat features get two linear layers in place of the convolutions.

    Args:
        features_shape: `(C, *spatial)` with one to three spatial axes, or `(D,)`; without the batch.
        n_outputs: K, or more.
        head_width: Channels of both hidden layers, >= 1; "light": C, at least 64 so that thin networks get a
            head that can tell triggers apart (flat features: D, at most 256); "published": so many that the whole
            has 1.2 times the parameters of the network, with strides 2, 1 instead of 2, 2.
        n_parameters: Of the network; needed for "published" only.

    Raises:
        ModelError: If the features have more axes, or the width is below 1.

    Reference: E2ABL, arXiv:2401.03215, Section 3: "two new convolutional layers and one fully connected (FC)
        layer", about 1.2 times the parameters of ResNet-34; widths and strides are not stated there.
    """
    channels, dims = features_shape[0], len(features_shape) - 1
    if dims > 3:
        raise ModelError(f"features of shape {tuple(features_shape)}: a second head needs (C, *up to 3 axes)")
    strides = (2, 1) if head_width == "published" else (2, 2)
    if head_width == "published":
        hidden = published_width(features_shape, n_outputs, n_parameters)
    else:
        hidden = _hidden_width(channels, dims, head_width)

    layers: list[nn.Module] = []
    for width, stride in zip((channels, hidden), strides, strict=True):
        if dims:
            layers += [
                CONV[dims](width, hidden, 3, stride=stride, padding=1, bias=False),
                NORM[dims](hidden),
            ]
        else:
            layers += [nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden)]
        layers.append(nn.ReLU())
    classifier = nn.Linear(hidden, n_outputs)
    head = nn.Sequential(*layers, *([global_pool(dims)] if dims else []), classifier)
    initialize_he(head)
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    return head


def published_width(features_shape: Sequence[int], n_outputs: int, n_parameters: int) -> int:
    """Channels of a second head that make the whole 1.2 times as large as the network; at least 1.

    Two convolutions of k weights a pair of channels, from C to w to w channels, batch norm and a linear layer have
    `k w^2 + (k C + 4 + n) w + n` parameters; that is solved for w.
    """
    channels, kernel = features_shape[0], int(3 ** (len(features_shape) - 1))
    linear = kernel * channels + 4 + n_outputs
    wanted = (PUBLISHED_SIZE - 1) * n_parameters - n_outputs
    return max(1, round((math.sqrt(linear**2 + 4 * kernel * max(wanted, 0)) - linear) / (2 * kernel)))


def _hidden_width(channels: int, dims: int, head_width: int | Literal["light"]) -> int:
    base = channels if dims else min(channels, FLAT_WIDTH)
    if head_width == "light":
        return max(base, LIGHT_WIDTH) if dims else base
    if head_width < 1:
        raise ModelError(f"head_width is {head_width}; it must be at least 1")
    return head_width


def split_network(
    network: nn.Module,
    example: Tensor,
    n_outputs: int,
    *,
    attach: str | None = None,
    head_width: HeadWidth = "light",
) -> TwoHead:
    """`network` with a new second head at the layer `attach`, or about its middle if that is None.

    Args:
        network: Maps `(B, *shape)` to logits `(B, K)`. Not copied.
        example: `(B, *shape)`, on the network's device; only shape, type and device matter.
        n_outputs: Of the second head: K, or more.
        attach: A layer's name; a prefix such as `network.` may be left out where the rest is unique.
        head_width: See `second_head`.

    Raises:
        ModelError: If the network cannot be split there, or anywhere.
    """
    name = find_attach(network, example) if attach is None else check_attach(network, attach, example)
    with evaluation_mode(network), torch.no_grad():
        shape = trunk_features(network, name, example[:1]).shape[1:]
    size = sum(parameter.numel() for parameter in network.parameters())
    if channels_are_last(network, name, shape):
        turned = (shape[-1], *shape[:-1])
        head = second_head(turned, n_outputs, head_width, n_parameters=size).insert(0, _ChannelsFirst())
    else:
        head = second_head(shape, n_outputs, head_width, n_parameters=size)
    return TwoHead(network, head.to(example.device), name)
