"""Outputs of a network's layers, taken while it runs. A hook lives for one call, so no copy of a network has one."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from antibackdoor.errors import ModelError
from antibackdoor.models.tokens import channels_first


class _Done(BaseException):
    """Ends a forward pass once all layers have been heard. Not an `Exception`: a network may catch those."""


@contextmanager
def hooked(module: nn.Module, hook: Callable[[nn.Module, Any, Any], Any]) -> Iterator[None]:
    """The module with a forward hook within the block."""
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def maps(network: nn.Module, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """Outputs of the named layers for `x`, with gradients where they are on; nothing after the last is computed.

    Args:
        network: Any network.
        x: `(B, *shape)`.
        layers: Names as in `network.named_modules()`, each called once in a pass.

    Returns:
        Layer to `(B, C, *places)`, also where the layer keeps its channels last, as transformers do.

    Raises:
        ModelError: If no layer has one of the names, or the network does not use it.
    """
    return {name: channels_first(network, name, output) for name, output in _outputs(network, x, layers).items()}


def _outputs(network: nn.Module, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """Outputs of the named layers as they are."""
    kept: dict[str, Tensor] = {}

    def keeper(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            kept[name] = output
            if len(kept) == len(wanted):
                raise _Done

        return keep

    wanted = dict.fromkeys(layers)
    with ExitStack() as stack:
        for name in wanted:
            stack.enter_context(hooked(find_layer(network, name), keeper(name)))
        try:
            network(x)
        except _Done:
            return {name: kept[name] for name in wanted}
    missing = next(name for name in wanted if name not in kept)
    raise ModelError(f"the network never calls its layer '{missing}': name another layer")


def outputs_and_maps(network: nn.Module, x: Tensor, layers: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """The network's own output, and those of the named layers as `maps` gives them."""
    kept: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name in layers:

            def keep(_module: nn.Module, _inputs: object, output: Tensor, name: str = name) -> None:
                kept[name] = output

            stack.enter_context(hooked(find_layer(network, name), keep))
        logits: Tensor = network(x)
    missing = [name for name in layers if name not in kept]
    if missing:
        raise ModelError(f"the network never calls its layer '{missing[0]}': name another layer")
    return logits, {name: channels_first(network, name, output) for name, output in kept.items()}


def trunk_features(network: nn.Module, attach: str, x: Tensor) -> Tensor:
    """Output of the layer `attach` for `x`, as it is; nothing behind that layer is computed.

    Raises:
        ModelError: If no layer has that name, or the network does not use it.
    """
    return _outputs(network, x, [attach])[attach]


def find_layer(network: nn.Module, name: str) -> nn.Module:
    """The layer with this name as in `network.named_modules()`.

    Raises:
        ModelError: If there is none; the message lists near matches.
    """
    layers: dict[str, nn.Module] = dict(network.named_modules())
    if name in layers and name:
        return layers[name]
    near = difflib.get_close_matches(name, layers, n=5, cutoff=0.5)
    known = near or [child for child, _ in network.named_children()][:12]
    raise ModelError(
        f"the network has no layer '{name}'; {'near matches' if near else 'its layers'}: {', '.join(known) or 'none'}"
    )


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; afterwards every layer is in the mode it had before."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
