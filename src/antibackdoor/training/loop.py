"""The training loop over indexed samples: every step knows which rows it saw and what each of them cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from antibackdoor.data.samples import IntArray, Samples
from antibackdoor.data.streams import Stream, stream
from antibackdoor.errors import ConfigError
from antibackdoor.training.history import Losses
from antibackdoor.training.session import Batch, Feed, Session

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # slow to import, and `--help` needs none


class Predictions(NamedTuple):
    """What a model says of every sample."""

    labels: IntArray  # (N,) the most probable class
    confidence: NDArray[np.float32]  # (N,) its probability
    losses: Losses  # (N,) cross-entropy against the given label


Objective = Callable[[Batch], tuple[Tensor, Tensor]]
"""`(weighted, recorded)`, each `(B,)`: the step descends the mean of the first; the second goes to the history."""


def shuffled(n: int, seed: int, name: Stream, *position: int) -> IntArray:
    """A permutation of `0..n-1`, a function of the stream and the position in it."""
    return stream(seed, name, *position).permutation(n).astype(np.int64)


def batches(rows: IntArray, size: int) -> list[IntArray]:
    """Rows cut into batches; a last batch too small for batch statistics joins the one before."""
    cuts = [rows[i : i + size] for i in range(0, len(rows), size)]
    if len(cuts) > 1 and len(cuts[-1]) < max(2, size // 4):
        cuts[-2:] = [np.concatenate(cuts[-2:])]
    return cuts


def classify(forward: Callable[[Tensor], Tensor]) -> Objective:
    """Plain classification: every sample counts with its cross-entropy."""

    def objective(batch: Batch) -> tuple[Tensor, Tensor]:
        losses = cross_entropy(forward(batch.inputs), batch.labels)
        return losses, losses

    return objective


def train_epoch(
    session: Session,
    feed: Feed,
    plan: list[IntArray],
    model: nn.Module,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    *,
    seed: tuple[int, Stream, *tuple[int, ...]],
    learning_rate: Callable[[float], float] | None = None,
    title: str = "training",
) -> Losses:
    """Take one optimizer step for each batch of the plan.

    Args:
        session: Device, precision, processes.
        feed: The data.
        plan: Rows of each batch.
        model: The network in training; its gradients are averaged over the processes.
        objective: Per-sample objective and per-sample loss of a batch.
        optimizer: Its steps are taken.
        seed: Seed, stream and position: they seed the augmentation and the objective of each step.
        learning_rate: Learning rate as a function of the done share of the plan in [0, 1).
        title: Name in the progress bar.

    Returns:
        `(N,)` float32: the recorded loss of every row, nan for rows that the plan leaves out.

    Raises:
        ConfigError: If a loss is nan or infinite.
    """
    model.train()
    recorded = torch.full((len(feed.labels),), float("nan"), device=session.device)
    world, rank = session.fabric.world_size, session.fabric.global_rank
    draws = stream(*seed)
    n_visits = sum(len(rows) for rows in plan)
    # Dropout and the like draw from torch's own state: it is set at each step, and left as it was in the end.
    gpus = [session.device] if session.device.type == "cuda" else []
    with session.bar(title, n_visits) as advance, torch.random.fork_rng(devices=gpus):
        for step, rows in enumerate(plan):
            if learning_rate is not None:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step / len(plan))
            augment_seed, step_seed = (int(drawn) + rank for drawn in draws.integers(2**62, size=2))
            batch = session.batch(feed, rows[rank::world], augment_seed=augment_seed)._replace(seed=step_seed)
            torch.manual_seed(step_seed)
            with session.autocast():
                weighted, losses = objective(batch)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(weighted.float().sum() * (world / len(rows)))
            if world > 1:
                _average_gradients(session.fabric, model)
            optimizer.step()
            recorded[batch.rows] = losses.detach().float()
            advance(len(rows))
    if world > 1:
        recorded = _merge(session.fabric, recorded)
    values: Losses = recorded.cpu().numpy()
    if len(plan) and not np.isfinite(values[np.concatenate(plan)]).all():
        raise ConfigError(f"the training diverged: a loss of {title!r} is not finite; lower the learning rate")
    return values


def predict(session: Session, model: nn.Module, samples: Samples) -> Predictions:
    """Class, confidence and loss of every sample under a model."""
    was_training = model.training
    model.eval()
    values = session.evaluate(session.feed(samples), model, _summary, title="predicting")
    model.train(was_training)
    values = values.reshape(-1, 3)
    return Predictions(values[:, 0].astype(np.int64), values[:, 1], values[:, 2])


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each sample `(B,)`, in float32."""
    return F.cross_entropy(logits.float(), labels, reduction="none")


def _sum(fabric: Fabric, values: Tensor) -> Tensor:
    """The sum over all processes."""
    total: Any = fabric.all_reduce(values, reduce_op="sum")
    return torch.as_tensor(total)


def _average_gradients(fabric: Fabric, model: nn.Module) -> None:
    """One message for all gradients; a parameter that no process used in this step keeps none."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    used = torch.tensor([float(p.grad is not None) for p in parameters], device=flat.device)
    total = _sum(fabric, torch.cat([flat / fabric.world_size, used]))
    start = 0
    for parameter, n_users in zip(parameters, total[len(flat) :].tolist(), strict=True):
        end = start + parameter.numel()
        parameter.grad = total[start:end].view_as(parameter) if n_users else None
        start = end


def _merge(fabric: Fabric, recorded: Tensor) -> Tensor:
    """The losses of all processes; 0 / 0 is nan, for a row that no process saw."""
    seen = (~recorded.isnan()).float()
    return _sum(fabric, recorded.nan_to_num(0.0)) / _sum(fabric, seen)


def _summary(logits: Tensor, labels: Tensor) -> Tensor:
    """`(B, 3)`: class, its probability, loss. Classes stay exact in float32 up to 16 million."""
    probability, predicted = logits.softmax(1).max(1)
    return torch.stack([predicted.float(), probability, cross_entropy(logits, labels)], dim=1)
