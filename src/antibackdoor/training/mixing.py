"""Training on mixtures of two samples: an objective sees the mixed inputs under the mixed labels.

These are no augmentations of inputs, since they need partners and soft labels. Everything is drawn from the seed of the
batch: the partner of each sample (one permutation of the batch), and one share for the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from antibackdoor.training.loop import Objective, classify
from antibackdoor.training.session import Batch


class Mixture(NamedTuple):
    """A batch in which each sample is mixed with another one."""

    inputs: Tensor  # (B, *shape)
    partners: Tensor  # (B,) int64, positions in the batch
    share: float  # of a sample itself, in [0, 1]; the rest belongs to its partner


Mix = Callable[[Tensor, np.random.Generator], Mixture]


def mixup(model: nn.Module, alpha: float, n_classes: int) -> Objective:
    """Classification of weighted means of two samples: `x = lam x_i + (1 - lam) x_j`, labels likewise.

    `lam ~ Beta(alpha, alpha)`. The larger of `lam` and `1 - lam` is taken, so that a recorded loss belongs to the
    sample that is more than half of its mixture; since partners are a permutation, the mixtures are distributed alike.

    Args:
        model: Inputs to logits `(B, K)`.
        alpha: > 0; 1 in the comparison of NAD.
        n_classes: K.

    Reference: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, arXiv 1710.09412.
    """
    return mixed(classify(model), [blended(alpha)], n_classes)


def cutmix(
    model: nn.Module,
    beta: float,
    n_classes: int,
    *,
    probability: float = 1.0,
    shares: tuple[float, float] = (0.0, 1.0),
) -> Objective:
    """Classification of samples in which a box, or an interval of time, is that of another sample.

    `lam ~ Beta(beta, beta)`, the box has `sqrt(1 - lam)` of each side of an image, the interval `1 - lam` of the
    length of a series, about a place drawn uniformly; what lies outside the sample is cut off. A label counts with the
    share of the sample that is left.

    Args:
        model: Inputs to logits `(B, K)`.
        beta: > 0.
        n_classes: K.
        probability: Of mixing a batch at all, in [0, 1].
        shares: Least and largest `lam`, in [0, 1].

    Reference: Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features",
    ICCV 2019, arXiv 1905.04899.
    """
    return mixed(classify(model), [pasted(beta, probability=probability, shares=shares)], n_classes)


def mixed(objective: Objective, mixes: Sequence[Mix], n_classes: int) -> Objective:
    """An objective that sees mixtures; it must take soft labels, and use no others than those of its batch."""

    def mixing(batch: Batch) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng(batch.seed)
        inputs, labels = batch.inputs, batch.labels
        if not labels.is_floating_point():
            labels = F.one_hot(labels, n_classes).float()
        for mix in mixes:
            inputs, partners, share = mix(inputs, rng)
            labels = labels * share + labels[partners] * (1 - share)
        return objective(batch._replace(inputs=inputs, labels=labels))

    return mixing


def blended(alpha: float) -> Mix:
    """The mix of `mixup`."""

    def mix(inputs: Tensor, rng: np.random.Generator) -> Mixture:
        drawn = float(rng.beta(alpha, alpha))
        partners = torch.from_numpy(rng.permutation(len(inputs))).to(inputs.device)
        share = max(drawn, 1 - drawn)
        return Mixture(inputs * share + inputs[partners] * (1 - share), partners, share)

    return mix


def pasted(beta: float, *, probability: float = 1.0, shares: tuple[float, float] = (0.0, 1.0)) -> Mix:
    """The mix of `cutmix`."""

    def mix(inputs: Tensor, rng: np.random.Generator) -> Mixture:
        partners = torch.from_numpy(rng.permutation(len(inputs))).to(inputs.device)
        if rng.random() >= probability:
            return Mixture(inputs, partners, 1.0)
        share = float(np.clip(rng.beta(beta, beta), *shares))
        sides = inputs.shape[2:]
        box = [_span(side, (1 - share) ** (1 / len(sides)), rng) for side in sides]
        place: tuple[Any, ...] = (..., *box)
        result = inputs.clone()
        result[place] = inputs[partners][place]
        taken = np.prod([(part.stop - part.start) / side for part, side in zip(box, sides, strict=True)])
        return Mixture(result, partners, 1 - float(taken))

    return mix


def _span(side: int, share: float, rng: np.random.Generator) -> slice:
    """A span of a side about a place drawn uniformly, cut off at the ends."""
    width = round(share * side)
    start = int(rng.integers(side)) - width // 2
    return slice(max(start, 0), min(start + width, side))


# By the names that a recipe gives them. Alpha as in the comparison of NAD (its Table 4), beta and shares as in the
# defense `cutmix`.
MIXES: dict[str, Mix] = {"mixup": blended(1.0), "cutmix": pasted(1.0, shares=(0.3, 0.7))}
