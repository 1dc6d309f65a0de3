"""Which tensor of a file belongs where in a network, where names do not tell: by the order in which layers are used."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import combinations, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from antibackdoor.errors import ModelError
from antibackdoor.models.checkpoint_layouts import OPTIONAL, Attempt, Target, layer_and_tensor, short_names
from antibackdoor.models.hooks import evaluation_mode, hooked

__all__ = ["Use", "by_order", "order_of_use"]

# Words for the path around a block. Names of the main path never hold them.
SIDE_PATH = re.compile(r"short_?cut|downsample|skip|identity", re.IGNORECASE)

Signature = tuple[tuple[str, tuple[int, ...]], ...]  # names and shapes of a layer's tensors, sorted


@dataclass(frozen=True)
class Use:
    """A call of a layer.

    Attributes:
        layer: Its name.
        after: Layers whose output flows into it.
    """

    layer: str
    after: frozenset[str]


def order_of_use(network: nn.Module, example: Tensor) -> tuple[Use, ...]:
    """The calls of all layers that own tensors, in the order in which one forward pass makes them.

    What flows into a layer is read from the graph that autograd records.

    Args:
        network: Maps `(B, *shape)` to logits. Left as it was.
        example: `(B, *shape)`, on the network's device; only the first row is used.

    Raises:
        ModelError: If the network fails on the example.
    """
    calls: list[tuple[str, list[Any], Any]] = []  # name, graph nodes of the inputs, graph node of the output

    def recorder(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def record(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            nodes = [value.grad_fn for value in inputs if isinstance(value, Tensor)]
            calls.append((name, nodes, output.grad_fn if isinstance(output, Tensor) else None))

        return record

    x = example[:1].detach().clone().requires_grad_()
    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(network))
        stack.enter_context(torch.enable_grad())
        for name, module in network.named_modules():
            if any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False))):
                stack.enter_context(hooked(module, recorder(name)))
        try:
            network(x)
        except Exception as error:
            reason = (str(error).strip().splitlines() or ["no message"])[0]
            raise ModelError(f"the network fails on inputs of shape {tuple(x.shape)}: {reason}") from error
    names = {node: name for name, _, node in calls if node is not None}
    return tuple(
        Use(name, frozenset(names[node] for node in _behind(nodes) if node in names)) for name, nodes, _ in calls
    )


def _behind(nodes: Sequence[Any]) -> set[Any]:
    """All nodes of autograd's graph from which these were computed, and they themselves."""
    seen: set[Any] = set()
    waiting = [node for node in nodes if node is not None]
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += [behind for behind, _ in node.next_functions if behind is not None]
    return seen


def by_order(file: Mapping[str, tuple[int, ...]], own: Mapping[str, Target], uses: Sequence[Use]) -> Attempt:
    """The first layer of the file is the first that the network uses, and so on; shapes must agree throughout.

    A file lists layers in the order in which its author wrote them down. That this is also the order of use
    is checked, and refused where in doubt: shapes and kinds of all layers must agree in sequence; numbers in the
    file's names must rise; a name that tells of a shortcut must meet one that does so; and of two layers
    of the same shape that run side by side, such names must tell which is which.

    Args:
        file: Key to shape, in the file's order.
        own: Name to target, in the order of registration.
        uses: From `order_of_use`.
    """
    theirs, ours = _layers(file), _layers({name: target.shape for name, target in own.items()})
    used = [use for use in uses if use.layer in ours]
    order = [use.layer for use in used]
    if sorted(order) != sorted(ours) or any(target.same_as != name for name, target in own.items()):
        return _refused("some layers of the network are used twice, never, or share weights, so order tells nothing")
    sequence = [theirs[layer] for layer in theirs]
    if problems := tuple(_misfits(theirs, {layer: ours[layer] for layer in order})):
        return Attempt("order of use", {}, problems)
    places = dict(zip(order, theirs, strict=True))  # our layer to theirs
    doubts = [*_falling_numbers(list(theirs)), *_crossed_paths(places), *_twins(used, ours, places)]
    if [ours[layer] for layer in ours] == sequence and list(ours) != order:
        doubts.append("the network's layers fit the file both as they are used and as they are written down")
    if doubts:
        return _refused(*doubts)
    sources = {
        name: f"{places[layer]}.{tensor}" if places[layer] else tensor
        for name in own
        for layer, tensor in [layer_and_tensor(name)]
    }
    return Attempt("order of use", {name: key for name, key in sources.items() if key in file}, ())


def _refused(*problems: str) -> Attempt:
    return Attempt("order of use", {}, problems)


def _layers(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Signature]:
    """Layers in the order in which their first tensor comes, and what each holds."""
    grouped: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for name, shape in shapes.items():
        layer, tensor = layer_and_tensor(name)
        if tensor != OPTIONAL:
            grouped.setdefault(layer, []).append((tensor, shape))
    return {layer: tuple(sorted(tensors)) for layer, tensors in grouped.items()}


def _misfits(theirs: Mapping[str, Signature], ours: Mapping[str, Signature]) -> Iterator[str]:
    """Layers of one side that have no counterpart on the other, in sequence."""
    left, right = list(theirs), list(ours)
    matcher = SequenceMatcher(a=list(theirs.values()), b=list(ours.values()), autojunk=False)
    for tag, left_start, left_end, right_start, right_end in matcher.get_opcodes():
        if tag != "equal":
            for layer in left[left_start:left_end]:
                yield f"{_spelled(layer, theirs[layer])} has no place in the network"
            for layer in right[right_start:right_end]:
                yield f"{_spelled(layer, ours[layer])} has no counterpart in the file"


def _spelled(layer: str, signature: Signature) -> str:
    tensors = [f"{name} {'×'.join(map(str, shape))}" for name, shape in signature if not name.startswith("running_")]
    return f"{layer[:80]} ({', '.join(tensors)})"


def _falling_numbers(layers: Sequence[str]) -> Iterator[str]:
    """Names that differ in their numbers only must come in rising order."""
    last: dict[str, tuple[tuple[int, ...], str]] = {}
    for layer in short_names(layers):
        pattern = re.sub(r"\d+", "#", layer)
        numbers = tuple(int(number[:9]) for number in re.findall(r"\d+", layer))
        if pattern in last and numbers < last[pattern][0]:
            yield f"the file lists {layer[:80]} after {last[pattern][1][:80]}, so its order may not be that of use"
            return
        last[pattern] = numbers, layer


def _crossed_paths(places: Mapping[str, str]) -> Iterator[str]:
    """Where both sides name their shortcuts, a shortcut must meet a shortcut."""
    said = {layer: (bool(SIDE_PATH.search(layer)), bool(SIDE_PATH.search(other))) for layer, other in places.items()}
    if any(mine for mine, _ in said.values()) and any(other for _, other in said.values()):
        for layer, (mine, other) in said.items():
            if mine != other:
                yield f"{places[layer][:80]} would become {layer}, but only one of the two is a shortcut"


def _twins(used: Sequence[Use], ours: Mapping[str, Signature], places: Mapping[str, str]) -> Iterator[str]:
    """Layers of one shape of which neither follows the other, so that order does not tell them apart."""
    before: dict[str, Signature | None] = {used[0].layer: None} if used else {}
    before |= {second.layer: ours[first.layer] for first, second in pairwise(used)}
    groups: dict[tuple[Signature, Signature | None], list[Use]] = {}
    for use in used:
        signature = ours[use.layer]
        # A norm belongs to the layer written down just before it, so it is known where that one is.
        is_norm = all(len(shape) <= 1 for _, shape in signature)
        groups.setdefault((signature, before[use.layer] if is_norm else None), []).append(use)
    for group in groups.values():
        for first, second in combinations(group, 2):
            told = bool(SIDE_PATH.search(places[first.layer])) != bool(SIDE_PATH.search(places[second.layer]))
            named = bool(SIDE_PATH.search(first.layer)) != bool(SIDE_PATH.search(second.layer))
            if first.layer not in second.after and not (told and named):
                theirs = f"{places[first.layer][:80]} and {places[second.layer][:80]}"
                yield f"{theirs} have one shape and stand side by side: either may be {first.layer} or {second.layer}"
