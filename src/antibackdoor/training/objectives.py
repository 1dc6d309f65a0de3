"""Objectives of a training step beside plain classification: losses held at a level, ascended, or smoothed.

Each takes `forward`, a network or a part of one: inputs `(B, *shape)` to logits `(B, K)`. Each records the plain
cross-entropy of every sample, whatever the step descends.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

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
