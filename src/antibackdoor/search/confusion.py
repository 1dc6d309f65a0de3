"""What makes the second head forget the classes, and how sure it then is of a label."""

from __future__ import annotations

import torch
from torch import Tensor

from antibackdoor.models.two_head import TwoHead
from antibackdoor.training.loop import Objective, cross_entropy
from antibackdoor.training.session import Batch


def weights(net: TwoHead) -> dict[str, Tensor]:
    """A copy of the network's state, to go back to."""
    return {name: value.clone() for name, value in net.state_dict().items()}


def confusion(net: TwoHead, keeps_label: Tensor, weight: float) -> Objective:
    """Cross-entropy for the rows that keep their label, distance from the uniform distribution for the others.

    The uniform target is bounded where gradient ascent is not, and it fixes where the margins of clean samples
    end: at -log(n - 1) for n outputs. Each half counts with its own mean, the second `weight` times.
    """

    def objective(batch: Batch) -> tuple[Tensor, Tensor]:
        logits = net.second_logits(batch.inputs).float()
        losses = cross_entropy(logits, batch.labels)
        undecided = -logits.log_softmax(1).mean(1)
        return torch.where(keeps_label[batch.rows], 2 * losses, 2 * weight * undecided), losses

    return objective


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-odds of the given label: its logit minus the log-sum-exp of all others, `(B,)`."""
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return own[:, 0] - others.logsumexp(1)
