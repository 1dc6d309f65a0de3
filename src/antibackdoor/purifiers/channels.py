"""Channels of a layer switched off: while the network runs, and for good in its weights.

A mask on the output of a block is no part of a network's architecture, and weights of the block itself rarely do: what
comes in over a shortcut is added to what its last convolution makes. So the weights of those layers are changed that
read the channels. Whether the result is the same is measured, not assumed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from antibackdoor.errors import ModelError
from antibackdoor.models.features import last_layer
from antibackdoor.models.hooks import evaluation_mode, find_layer, hooked
from antibackdoor.models.tokens import channels_are_last

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
ROWS = 32  # noise of which a rectifier swallows half, so that 2^-32 of it passes unseen
TOLERANCE = 1e-4  # of the largest logit: above rounding, far below what a channel does


def masked(network: nn.Module, layer: str, off: Tensor) -> Callable[[Tensor], Tensor]:
    """The network with some channels of a layer at zero: inputs to logits.

    Args:
        network: Left as it is; its weights are used.
        layer: Name of a layer with output `(B, C, ...)`.
        off: `(C,)` bool.
    """
    module = find_layer(network, layer)

    def silence(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return output.masked_fill(_spread(off.to(output.device), output), 0)

    def forward(x: Tensor) -> Tensor:
        with hooked(module, silence):
            logits: Tensor = network(x)
        return logits

    return forward


def _spread(channels: Tensor, output: Tensor) -> Tensor:
    """`(C,)` as `(1, C, 1, ...)`."""
    return channels.view(1, -1, *[1] * (output.ndim - 2))


def prunable_layer(network: nn.Module, example: Tensor, layer: str = "") -> str:
    """The layer, if its channels can be switched off in the weights; by default the last one.

    By default this is the last layer at which the network can be cut, with places to average over; where its channels
    cannot be switched off, the last convolution or batch normalization.

    Args:
        network: On the device of the example; left as it is.
        example: `(B, *shape)`, real samples.
        layer: Name of a layer; empty for the last one.

    Raises:
        ModelError: If there is no such layer, or its channels cannot be switched off.
    """
    if layer:
        _try(network, layer, example)
        return layer
    candidates = [last_layer(network, example), *reversed(_own_channels(network, example))]
    for candidate in candidates:
        with suppress(ModelError):
            _try(network, candidate, example)
            return candidate
    raise ModelError("no channels of this network can be switched off: none of its convolutions feeds another layer")


def _try(network: nn.Module, layer: str, example: Tensor) -> None:
    """Switch every other channel off in a copy."""
    n = n_channels(network, layer, example)
    switch_off(deepcopy(network), layer, torch.arange(n, device=example.device) % 2 == 0, example)


def n_channels(network: nn.Module, layer: str, example: Tensor) -> int:
    """Channels C of a layer's output `(B, C, ...)`.

    Raises:
        ModelError: If there is no such layer, or its output has no channels.
    """
    seen: list[object] = []
    with hooked(find_layer(network, layer), lambda _m, _i, output: seen.append(output)):
        _logits(network, network, example)
    output = seen[0] if seen else None
    if not isinstance(output, Tensor) or output.ndim < 2 or output.shape[1] < 2:
        raise ModelError(f"layer '{layer}' has no channels to switch off: name one with an output of (B, C, ...)")
    if channels_are_last(network, layer, output.shape[1:]):
        raise ModelError(f"layer '{layer}' has its channels last: name one with an output of (B, C, ...)")
    return int(output.shape[1])


def _own_channels(network: nn.Module, example: Tensor) -> list[str]:
    """Convolutions and batch normalizations in the order in which they end."""
    called: list[str] = []
    with ExitStack() as stack:
        for name, module in network.named_modules():
            if isinstance(module, (*_CONVOLUTIONS, _BatchNorm)):
                stack.enter_context(hooked(module, partial(lambda name, _m, _i, _o: called.append(name), name)))
        _logits(network, network, example)
    return called


def switch_off(network: nn.Module, layer: str, off: Tensor, example: Tensor) -> None:
    """Change weights so that the network, in eval mode, does without some channels of a layer.

    A convolution or batch normalization gets zero weights for them. For another layer those that read its channels
    are changed: a convolution or linear layer gets zero weights for these inputs, a batch normalization the constant
    that it makes of zero.

    Args:
        network: On the device of the example; its weights change.
        layer: Name of a layer with output `(B, C, ...)`.
        off: `(C,)` bool, the channels.
        example: `(B, *shape)`, real samples on which the result is checked.

    Raises:
        ModelError: If that does not give the outputs of the network with the channels at zero.
    """
    module, example = find_layer(network, layer), _repeated(example)
    wanted = _logits(network, masked(network, layer, off), example)
    checks: list[Callable[[Tensor], Tensor]] = [network]
    with torch.no_grad():
        if isinstance(module, (*_CONVOLUTIONS, _BatchNorm)):
            _zero_outputs(module, off)
        else:
            for reader, inputs in _readers(network, layer, off, example):
                _ignore_inputs(reader, inputs)
            # On clean samples pruned channels hardly speak. So let them shout: nobody may listen.
            checks.append(_shouting(network, layer, off, seed=1))
    for forward in checks:
        reached = _logits(network, forward, example)
        if float((reached - wanted).abs().max()) > TOLERANCE * (1 + float(wanted.abs().max())):
            raise ModelError(
                f"channels of '{layer}' cannot be switched off in the weights of this network, because layers other "
                "than convolutions, batch normalizations and linear layers read them: name a convolution or batch "
                "normalization"
            )


def _repeated(example: Tensor) -> Tensor:
    """So many rows that no rectifier swallows the noise of all of them."""
    return example.repeat(-(-ROWS // len(example)), *[1] * (example.ndim - 1))


def _zero_outputs(module: nn.Module, off: Tensor) -> None:
    for parameter in (module.weight, module.bias):
        if isinstance(parameter, Tensor):
            parameter[off] = 0


def _ignore_inputs(reader: nn.Module, inputs: Tensor) -> None:
    """Make a layer blind to channels `inputs` `(C_in,)` bool."""
    if isinstance(reader, nn.Linear):
        reader.weight[:, inputs] = 0
    elif isinstance(reader, _BatchNorm) and reader.affine and reader.running_mean is not None:
        assert reader.running_var is not None
        scale = reader.weight * torch.rsqrt(reader.running_var + reader.eps)
        reader.bias[inputs] -= (reader.running_mean * scale)[inputs]
        reader.weight[inputs] = 0
    elif isinstance(reader, _CONVOLUTIONS):
        groups = inputs.view(reader.groups, -1)  # output channels of a group see the input channels of that group
        weight = reader.weight.view(reader.groups, -1, *reader.weight.shape[1:])
        for group, blind in zip(weight, groups, strict=True):
            group[:, blind] = 0


def _readers(network: nn.Module, layer: str, off: Tensor, example: Tensor) -> list[tuple[nn.Module, Tensor]]:
    """Layers with weights that read the channels directly, and which of their inputs these are.

    The network runs twice, the second time with noise in the channels, while every layer with weights gives out what it
    gave the first time: whose input has changed reads the channels, over activations, pooling or shortcuts only.
    """
    kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    changed: dict[nn.Module, Tensor] = {}
    before: set[nn.Module] = set()  # those that had run when the layer ended, and its own parts

    def first(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kept[module] = inputs[0], output

    def again(module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> Tensor:
        was, output = kept[module]
        axis = inputs[0].ndim - 1 if isinstance(module, nn.Linear) else 1
        others = [other for other in range(was.ndim) if other != axis]
        changed[module] = (inputs[0] != was).sum(others) > 0
        return output

    weighted = [module for module in network.modules() if not list(module.children()) and list(module.parameters())]
    with ExitStack() as stack:
        for module in weighted:
            stack.enter_context(hooked(module, first))
        stack.enter_context(hooked(find_layer(network, layer), lambda *_: before.update(kept)))
        _logits(network, masked(network, layer, off), example)
    with ExitStack() as stack:
        for module in weighted:
            stack.enter_context(hooked(module, again))
        _logits(network, _shouting(network, layer, off, seed=0), example)
    return [(module, inputs) for module, inputs in changed.items() if module not in before and bool(inputs.any())]


def _shouting(network: nn.Module, layer: str, off: Tensor, *, seed: int) -> Callable[[Tensor], Tensor]:
    """The network with noise in some channels of a layer, about as strong as its largest value."""
    generator = torch.Generator().manual_seed(seed)

    def shout(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        noise = torch.randn(output.shape, generator=generator).to(output) * (1 + output.abs().max())
        return torch.where(_spread(off, output), noise, output)

    def forward(x: Tensor) -> Tensor:
        with hooked(find_layer(network, layer), shout):
            logits: Tensor = network(x)
        return logits

    return forward


def _logits(network: nn.Module, forward: Callable[[Tensor], Tensor], example: Tensor) -> Tensor:
    """What a way through a network gives in eval mode."""
    with torch.no_grad(), evaluation_mode(network):
        return forward(example).float()
