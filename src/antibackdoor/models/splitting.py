"""Where a network can be cut in two, and which of its layers are stages."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from torch import Tensor, nn

from antibackdoor.errors import ModelError
from antibackdoor.models.hooks import evaluation_mode, find_layer, hooked

PROBE_ROWS = 5
KEPT_ROWS = (3, 1)  # 2 of 5: coprime, so a reshape that remembers the batch size fails rather than fits
MIDDLE = (0.3, 0.7)  # shares of the convolutions that count as "about the middle" of a network

_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_OTHER_WEIGHTS = (nn.Linear, nn.MultiheadAttention, nn.RNNBase)


def find_attach(network: nn.Module, example: Tensor) -> str:
    """Name of a layer near the middle of the network at which it can be cut in two.

    One forward pass records, for each layer, the share of the convolutions done when it ends (of all layers
    with weights, where convolutions are few, as in transformers and plain MLPs). The outermost layers that
    end between 30% and 70% are preferred, then the closest to half, then the earlier; of layers that end
    after the same convolution, the last one that keeps its shape (batch norm, activation, but no pooling).
    The first of these that is a true cut is taken: replacing its output by some of its rows must give the
    logits of just these rows, which no skip connection around the layer survives.

    Args:
        network: Maps `(B, *shape)` to logits `(B, K)`. Left as it was.
        example: `(B, *shape)`, on the network's device; only shape, type and device matter.

    Raises:
        ModelError: If the network fails on such a batch, or no layer is a cut.
    """
    return _first_cut(network, example, _ranked)


def find_last(network: nn.Module, example: Tensor) -> str:
    """Name of the last layer at which the network can be cut, if possible one that still has places to average over.

    Args:
        network: Maps `(B, *shape)` to logits `(B, K)`. Left as it was.
        example: `(B, *shape)`, on the network's device; only shape, type and device matter.

    Raises:
        ModelError: If the network fails on such a batch, or no layer is a cut.
    """
    return _first_cut(network, example, _from_the_end)


def find_stages(network: nn.Module, example: Tensor) -> tuple[str, ...]:
    """Names of the layers that end a stage: outermost cuts with a convolution, the last of each run of one shape.

    On a ResNet or wide ResNet these are its residual groups. Where the outermost layers make fewer than two stages,
    as where a network keeps all its convolutions in one part, the parts of that part are looked at.

    Args:
        network: Maps `(B, *shape)` to logits `(B, K)`. Left as it was.
        example: `(B, *shape)`, on the network's device; only shape, type and device matter.

    Raises:
        ModelError: If the network fails on such a batch, or no layer with a convolution is a cut.
    """
    probe = _probe(example)
    with evaluation_mode(network):
        logits = _logits(network, probe)
        trace = _trace(network, probe)
        layers = [
            layer
            for layer in trace.ended
            if len(layer.shape) > 2 and _n_convolutions(network, layer) and _is_cut(network, layer.name, probe, logits)
        ]
    if not layers:
        raise ModelError("the network has no stages: no layer with a convolution can be cut off; name layers instead")
    for depth in range(1 + max(layer.name.count(".") for layer in layers)):
        outer = [layer for layer in layers if not _is_left_out(layer, layers, depth)]
        if any(_n_convolutions(network, layer) > 1 for layer in outer):  # beside blocks, a stem is no stage
            outer = [layer for layer in outer if _n_convolutions(network, layer) > 1]
        ends = [a.name for a, b in zip(outer, [*outer[1:], None], strict=True) if b is None or a.shape != b.shape]
        if len(ends) > 1:
            return tuple(ends)
    return (layers[-1].name,)


def _n_convolutions(network: nn.Module, layer: _Ended) -> int:
    return sum(isinstance(part, _CONVOLUTIONS) for part in find_layer(network, layer.name).modules())


def _is_left_out(layer: _Ended, layers: list[_Ended], depth: int) -> bool:
    """Whether a layer is a part of another one that lies this deep or deeper; those less deep are taken apart."""
    if any(other.name.startswith(f"{layer.name}.") for other in layers) and layer.name.count(".") < depth:
        return True  # taken apart
    return any(layer.name.startswith(f"{other.name}.") and other.name.count(".") >= depth for other in layers)


def check_attach(network: nn.Module, attach: str, example: Tensor) -> str:
    """Full name of the layer that `attach` names, once it is known to be a cut (see `find_attach`).

    A prefix may be left out where the rest is unique: `stage2` stands for `network.stage2`.

    Raises:
        ModelError: If no layer or several have that name, or the network cannot be cut there.
    """
    names = [name for name, _ in network.named_modules()]
    if attach not in names:
        endings = [name for name in names if name.endswith(f".{attach}")]
        if len(endings) > 1:
            raise ModelError(f"'{attach}' is ambiguous: {', '.join(endings[:8])}; give the full name")
        attach = endings[0] if endings else attach
    find_layer(network, attach)
    probe = _probe(example)
    with evaluation_mode(network):
        if not _is_cut(network, attach, probe, _logits(network, probe)):
            raise ModelError(
                f"the network cannot be split at '{attach}': the layer must be called once, return one "
                "tensor (batch first), and have no skip connection around it; give another --attach"
            )
    return attach


def _probe(example: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)  # rows must differ, and an example may be all zeros
    return torch.rand((PROBE_ROWS, *example.shape[1:]), generator=generator).to(example.device, example.dtype)


def _logits(network: nn.Module, probe: Tensor) -> Tensor:
    try:
        with torch.no_grad():
            logits = network(probe)
    except Exception as error:
        raise ModelError(f"the network fails on a batch of shape {tuple(probe.shape)}: {error}") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != PROBE_ROWS:
        raise ModelError(f"the network must return logits (B, K) for a batch of shape {tuple(probe.shape)}")
    return logits


@dataclass(frozen=True)
class _Ended:
    """A layer whose output is one tensor with the batch first, at the moment it ended."""

    name: str
    shape: tuple[int, ...]
    convolutions: int  # done so far, this layer included
    others: int  # other layers with weights done so far


@dataclass(frozen=True)
class _Trace:
    ended: tuple[_Ended, ...]  # in the order in which they ended; layers called twice are left out
    convolutions: int
    others: int


def _trace(network: nn.Module, probe: Tensor) -> _Trace:
    ended: list[_Ended] = []
    calls: dict[str, int] = {}
    done = [0, 0]

    def record(name: str, module: nn.Module, output: object) -> None:
        done[0] += isinstance(module, _CONVOLUTIONS)
        done[1] += isinstance(module, _OTHER_WEIGHTS)
        calls[name] = calls.get(name, 0) + 1
        if isinstance(output, Tensor) and output.ndim >= 2 and len(output) == len(probe):
            ended.append(_Ended(name, tuple(output.shape), done[0], done[1]))

    with ExitStack() as stack:
        for name, module in network.named_modules():
            if name:
                hook = partial(_call_recorder, record, name)
                stack.enter_context(hooked(module, hook))
        # With gradients on, torch's transformer layers call their parts one by one, so that these are seen.
        with torch.enable_grad():
            network(probe)
    once = tuple(layer for layer in ended if calls[layer.name] == 1)
    return _Trace(once, done[0], done[1])


def _call_recorder(
    record: Callable[[str, nn.Module, object], None],
    name: str,
    module: nn.Module,
    _inputs: object,
    output: object,
) -> None:
    record(name, module, output)


def _first_cut(network: nn.Module, example: Tensor, order: Callable[[_Trace], list[_Ended]]) -> str:
    """Name of the first layer in this order that is a cut."""
    probe = _probe(example)
    with evaluation_mode(network):
        logits = _logits(network, probe)
        for candidate in order(_trace(network, probe)):
            if _is_cut(network, candidate.name, probe, logits):
                return candidate.name
    raise ModelError(
        "the network cannot be split: no layer inside it returns one tensor (batch first) that alone decides "
        "the logits; wrap its first half in one nn.Module, or give --attach"
    )


def _from_the_end(trace: _Trace) -> list[_Ended]:
    """Layers before the last one with weights, the last first; those without places come after the others."""
    inside = [
        layer
        for layer in reversed(trace.ended)
        if layer.convolutions + layer.others < trace.convolutions + trace.others
    ]
    return sorted(inside, key=lambda layer: prod(layer.shape[2:]) == 1)


def _ranked(trace: _Trace) -> list[_Ended]:
    by_convolutions = 2 * trace.convolutions >= trace.others  # else a transformer with a convolutional stem
    total = trace.convolutions + (0 if by_convolutions else trace.others)

    def done(layer: _Ended) -> int:
        return layer.convolutions + (0 if by_convolutions else layer.others)

    first_shape: dict[tuple[int, int], tuple[int, ...]] = {}
    keyed: list[tuple[tuple[int, ...], _Ended]] = []
    for order, layer in enumerate(trace.ended):
        weights = layer.convolutions + layer.others
        if not 0 < weights < trace.convolutions + trace.others or done(layer) == 0:
            continue  # an empty trunk, or nothing left for the main head
        depth = layer.name.count(".")
        shape = first_shape.setdefault((done(layer), depth), layer.shape)
        in_middle = MIDDLE[0] <= done(layer) / total <= MIDDLE[1]
        distance = abs(2 * done(layer) - total)  # in integers: 1/3 and 2/3 tie exactly
        keyed.append(
            (
                (
                    not in_middle,
                    depth if in_middle else 0,
                    distance,
                    done(layer),
                    layer.shape != shape,
                    depth,
                    -order,
                ),
                layer,
            )
        )
    return [layer for _, layer in sorted(keyed, key=lambda pair: pair[0])]


def _is_cut(network: nn.Module, name: str, probe: Tensor, logits: Tensor) -> bool:
    rows = torch.tensor(KEPT_ROWS, device=probe.device)
    calls = 0

    def select(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return output[rows]

    try:
        with hooked(find_layer(network, name), select), torch.no_grad():
            kept = network(probe)
    except Exception:  # whatever a skip connection makes of two batch sizes: any error means "no cut"
        return False
    if calls != 1 or not isinstance(kept, Tensor) or kept.shape != (len(rows), logits.shape[1]):
        return False
    # Loose, since kernels differ between batch sizes (TF32); a wrong path differs in shape or by far more.
    tolerance = 1e-2 * float(logits.abs().max()) + 1e-6
    return float((kept - logits[rows]).abs().max()) <= tolerance
