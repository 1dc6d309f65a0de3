"""Attention maps of a network's layers, and how far those of two networks are apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from antibackdoor.errors import ModelError
from antibackdoor.models.features import maps, outputs_and_maps, stages
from antibackdoor.models.hooks import evaluation_mode
from antibackdoor.training.loop import Objective, classify, cross_entropy
from antibackdoor.training.session import Batch

EPSILON = 1e-6  # added to the norm of a map, as in the code of NAD
POOLS: dict[int, Callable[..., Tensor]] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}

Kind = Literal["attention", "activation"]
Distance = Literal["mse", "l2"]


def attention_map(features: Tensor, power: float = 2.0) -> Tensor:
    """Where a layer is active: `A = sum over channels of |F_c|^p`.

    Args:
        features: `(B, C, *places)`.
        power: p >= 1.

    Returns:
        `(B, *places)` float32.

    >>> attention_map(torch.tensor([[[1.0, -2.0], [3.0, 0.0]]])).tolist()
    [[10.0, 4.0]]
    """
    return features.float().abs().pow(power).sum(1)


def unit(maps: Tensor) -> Tensor:
    """Maps `(B, ...)` as vectors `(B, D)` of length 1; the scale of a map is gone."""
    flat = maps.flatten(1)
    lengths: Tensor = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    return flat / (lengths + EPSILON)


@dataclass(frozen=True)
class Comparison:
    """How maps of a teacher and a student are compared.

    Attributes:
        kind: Attention maps, or the activations of all channels.
        power: Of attention maps.
        distance: `mse`, the mean over places of the squared difference; `l2`, the norm of the difference.
    """

    kind: Kind = "attention"
    power: float = 2.0
    distance: Distance = "mse"

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Distances `(B,)` of features `(B, C, *places)`; numbers of channels and places may differ for attention."""
        ours, theirs = self._maps(student), self._maps(teacher)
        if ours.shape[2:] != theirs.shape[2:]:
            theirs = POOLS[ours.ndim - 2](theirs, tuple(ours.shape[2:]))
        difference = unit(ours) - unit(theirs)
        distances: Tensor = (
            torch.linalg.vector_norm(difference, dim=1) if self.distance == "l2" else (difference.square().mean(1))
        )
        return distances

    def _maps(self, features: Tensor) -> Tensor:
        """`(B, 1 or C, *places)`."""
        return features.float() if self.kind == "activation" else attention_map(features, self.power)[:, None]


@dataclass(frozen=True)
class Alignment:
    """Layers whose maps are aligned, the shallowest first."""

    student: tuple[str, ...]
    teacher: tuple[str, ...]
    betas: tuple[float, ...]


def align(
    student: nn.Module,
    teacher: nn.Module,
    example: Tensor,
    *,
    layers: Sequence[str],
    betas: Sequence[float],
    kind: Kind,
) -> Alignment:
    """Which layer of a student is aligned with which of a teacher, and with what weight.

    Args:
        student: A network; left as it is.
        teacher: Another one, perhaps of another architecture; left as it is.
        example: `(B, *shape)`; only shape and type matter.
        layers: Of the student; if empty, the ends of its last stages, at most as many as there are betas.
        betas: One for all, or one a layer; of more the last count.
        kind: Of the maps.

    Raises:
        ModelError: If a layer does not exist, or its maps have nothing to align.
    """
    most = len(layers) or max(len(betas), 1)
    ours = tuple(layers) or _last_stages(student, example, most, kind)
    theirs = ours if set(ours) <= {name for name, _ in teacher.named_modules()} else ()
    theirs = theirs or _last_stages(teacher, example, most, kind)
    n = min(len(ours), len(theirs))
    ours, theirs = ours[-n:], theirs[-n:]
    weights = tuple(betas) * n if len(betas) == 1 else tuple(betas)[-n:]
    shapes = _shapes(student, example, ours), _shapes(teacher, example, theirs)
    for name, shape, other in zip(ours, *shapes, strict=True):
        if kind == "attention" and prod(shape[1:]) == 1:
            raise ModelError(f"layer '{name}' has no positions for an attention map: name other layers, or none")
        if kind == "attention" and len(shape) != len(other):
            raise ModelError(f"layer '{name}' has {len(shape) - 1} position axes, its teacher's {len(other) - 1}")
        if kind == "activation" and shape != other:
            raise ModelError(f"activations of '{name}' have shape {shape}, its teacher's {other}: align attention maps")
    return Alignment(ours, theirs, weights)


def _last_stages(network: nn.Module, example: Tensor, most: int, kind: Kind) -> tuple[str, ...]:
    """Ends of the last stages that have maps to align."""
    found = stages(network, example)
    shapes = _shapes(network, example, found)
    usable = [name for name, shape in zip(found, shapes, strict=True) if kind == "activation" or prod(shape[1:]) > 1]
    if not usable:
        raise ModelError(f"no stage has positions for an attention map ({', '.join(found)}): name layers instead")
    return tuple(usable[-most:])


def _shapes(network: nn.Module, example: Tensor, layers: Sequence[str]) -> list[tuple[int, ...]]:
    """Shapes of one sample at the layers."""
    with torch.no_grad(), evaluation_mode(network):
        return [tuple(output.shape[1:]) for output in maps(network, example, layers).values()]


def distilling(student: nn.Module, teacher: nn.Module, alignment: Alignment, compare: Comparison) -> Objective:
    """Classification by the student, and its maps close to the teacher's: Equation 3 of NAD.

    Args:
        student: The network in training.
        teacher: In eval mode; it gets no gradients.
        alignment: Which layers; those with weight 0 are left out.
        compare: How.
    """
    rows = [row for row in zip(alignment.student, alignment.teacher, alignment.betas, strict=True) if row[2] > 0]
    if not rows:
        return classify(student)
    ours, theirs, betas = zip(*rows, strict=True)

    def objective(batch: Batch) -> tuple[Tensor, Tensor]:
        logits, learned = outputs_and_maps(student, batch.inputs, ours)
        with torch.no_grad():
            taught = maps(teacher, batch.inputs, theirs)
        losses = cross_entropy(logits, batch.labels)
        distances = [beta * compare(learned[a], taught[b]) for a, b, beta in zip(ours, theirs, betas, strict=True)]
        return losses + torch.stack(distances).sum(0), losses

    return objective
