"""Objectives of a training step beside plain classification: losses held at a level, ascended or smoothed, and holes.

Each takes `forward`, a network or a part of one: inputs `(B, *shape)` to logits `(B, K)`. Each records the plain
cross-entropy of every sample, whatever the step descends.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from antibackdoor.data.streams import Stream, stream
from antibackdoor.training.loop import Objective, cross_entropy
from antibackdoor.training.session import Batch

Forward = Callable[[Tensor], Tensor]


def flooding(forward: Forward, level: float) -> Objective:
    """Descends while the mean loss of the batch lies above a level, and ascends below it.

    The step follows `sign(mean L - level) * grad mean L`. That is the gradient of flooding, `|mean L - level| + level`
    (Ishida et al., ICML 2020, arXiv 2002.08709), and of local gradient ascent as the published code of ABL has it (Li
    et al., NeurIPS 2021, arXiv 2110.11571, Equation 3): the sign of the batch, not of each sample. Where several
    processes share a batch, each goes by the mean of its own share.

    Args:
        forward: Inputs to logits.
        level: In nats, >= 0; 0 is plain training. ABL's 0.5.
    """

    def objective(batch: Batch) -> tuple[Tensor, Tensor]:
        losses = cross_entropy(forward(batch.inputs), batch.labels)
        return losses * (losses.detach().mean() - level).sign(), losses

    return objective


def lga_per_example(forward: Forward, level: float) -> Objective:
    """Local gradient ascent as Equation 3 of ABL is printed: each sample has a sign of its own.

    It holds poisoned samples at the level as well, so the losses separate less than with `flooding`.

    Args:
        forward: Inputs to logits.
        level: In nats, >= 0.
    """

    def objective(batch: Batch) -> tuple[Tensor, Tensor]:
        losses = cross_entropy(forward(batch.inputs), batch.labels)
        return losses * (losses.detach() - level).sign(), losses

    return objective


LGA: dict[str, Callable[[Forward, float], Objective]] = {"batch_mean": flooding, "per_example": lga_per_example}


def ascend(forward: Forward, bound: float) -> Objective:
    """Gradient ascent that ends at a bound: the step descends `-min(L, bound)`.

    Args:
        forward: Inputs to logits.
        bound: In nats, > 0; inf for none. A sample whose loss lies above it no longer counts.
    """

    def objective(batch: Batch) -> tuple[Tensor, Tensor]:
        losses = cross_entropy(forward(batch.inputs), batch.labels)
        return -losses.clamp_max(bound), losses

    return objective


def descend_and_ascend(forward: Forward, ascended: Tensor, bound: float) -> Objective:
    """Descends the mean loss of some samples of the batch and ascends that of the others, each mean with weight 1.

    `mean over kept of L - mean over ascended of min(L, bound)`: global gradient ascent, Equations 2 and 3 of ABL, with
    a bound.

    Args:
        forward: Inputs to logits.
        ascended: `(N,)` bool, by row of the data.
        bound: In nats, > 0; inf for none.
    """

    def objective(batch: Batch) -> tuple[Tensor, Tensor]:
        losses = cross_entropy(forward(batch.inputs), batch.labels)
        up = ascended.to(batch.rows.device)[batch.rows]
        return losses * _mean_of(~up) - losses.clamp_max(bound) * _mean_of(up), losses

    return objective


def _mean_of(chosen: Tensor) -> Tensor:
    """Weights `(B,)` whose mean with values `(B,)` is the mean over the chosen of these; zeros if there are none."""
    return chosen.float() * (len(chosen) / chosen.sum().clamp_min(1))


def label_smoothing(forward: Forward, smoothing: float, smoothed: Tensor | None = None) -> Objective:
    """Cross-entropy against `(1 - smoothing) * label + smoothing / K` (Szegedy et al., CVPR 2016, arXiv 1512.00567).

    Args:
        forward: Inputs to logits.
        smoothing: In [0, 1]; 1 is a uniform target.
        smoothed: `(N,)` bool, by row of the data: whose labels are smoothed; all by default.
    """

    def objective(batch: Batch) -> tuple[Tensor, Tensor]:
        logits = forward(batch.inputs).float()
        losses = cross_entropy(logits, batch.labels)
        soft = F.cross_entropy(logits, batch.labels, reduction="none", label_smoothing=smoothing)
        if smoothed is not None:
            soft = soft.where(smoothed.to(batch.rows.device)[batch.rows], losses)
        return soft, losses

    return objective


def with_hole(objective: Objective, side: int) -> Objective:
    """An objective that sees each sample with a hole at a random place; 0 for none.

    Args:
        objective: The one without.
        side: Of the square that is blackened in an image, in pixels; of a series, the steps that are set to the mean
            of their variable. What lies outside the sample is cut off.

    Reference: DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017,
    arXiv 1708.04552, whose code makes odd sides smaller by one; this does not.
    """
    if side == 0:
        return objective

    def holed(batch: Batch) -> tuple[Tensor, Tensor]:
        return objective(batch._replace(inputs=cut_out(batch.inputs, side, batch.seed)))

    return holed


def cut_out(inputs: Tensor, side: int, seed: int) -> Tensor:
    """Inputs `(B, C, H, W)` or `(B, C, T)` with one hole each; see `with_hole`."""
    rng = stream(seed, Stream.HOLE)
    hole = torch.ones(len(inputs), 1, *inputs.shape[2:], dtype=torch.bool)
    for axis, length in enumerate(inputs.shape[2:], start=2):
        offsets = np.arange(length) - rng.integers(length, size=(len(inputs), 1)) + side // 2
        inside = torch.from_numpy((offsets >= 0) & (offsets < side))
        hole &= inside.view(len(inputs), 1, *(length if other == axis else 1 for other in range(2, inputs.ndim)))
    filling = torch.zeros_like(inputs[:1]) if inputs.ndim == 4 else inputs.mean(2, keepdim=True)
    return torch.where(hole.to(inputs.device), filling, inputs)
