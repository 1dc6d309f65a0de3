"""The second head as a trap: shallow layers learn short-cuts before they learn classes, and this holds them there.

Three phases, all on the trunk and the second head alone. A *warm-up* trains on everything and records how the
loss of each sample falls. *Confusion* then keeps training the most suspicious samples of each label towards that
label and surely clean ones towards no label at all: what the classes look like is forgotten, and what remains
predictive is the trigger. A *fixed point* repeats confusion with the found samples until they are all found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from antibackdoor.history import Losses, LossHistory
from antibackdoor.isolation import (
    SMALLEST_GROUP,
    SMALLEST_LABEL,
    Valley,
    above_valleys,
    find_valley,
    first_suspicion,
    label_rows,
    rank,
    rank_within,
    widen,
)
from antibackdoor.models import TwoHead, trunk_features
from antibackdoor.populations import Populations, two_populations
from antibackdoor.samples import Batch, BoolArray, FloatArray, IntArray
from antibackdoor.training import (
    Feed,
    Journal,
    Objective,
    Session,
    classify,
    cross_entropy,
    evaluate,
    shuffled,
    train_epoch,
)

BLOCK = 50  # optimizer steps between two choices of the hard samples
SNAPSHOT = 150  # optimizer steps between two entries of the loss history
MOST_LOOKED_AT = 50_000  # samples whose features are held in memory; confusion finds the rest of a population


@dataclass(frozen=True)
class TrapSettings:
    """What the trap is made of; the values are those of `E2ABL`, where they are explained."""

    warmup_steps: int
    warmup_learning_rate: float
    hard_share: float
    confusion_steps: int
    confusion_learning_rate: float
    confusion_weight: float
    suspect_shares: tuple[float, ...]
    least_depth: float
    sure_depth: float


@dataclass(frozen=True, eq=False)
class Caught:
    """What the trap holds.

    Attributes:
        isolated: `(N,)` bool.
        margins: `(N,)` float64, log-odds that the second head gives to each sample's own label.
        depths: Depth of the valley in the margins of each label with enough samples.
        labels: Labels with two groups: the suspected targets.
        steps: Optimizer steps taken.
    """

    isolated: BoolArray
    margins: FloatArray
    depths: dict[int, float]
    labels: tuple[int, ...]
    steps: int


def warm_up(
    session: Session, feed: Feed, net: TwoHead, settings: TrapSettings, journal: Journal, state: dict[str, object]
) -> LossHistory:
    """Train trunk and second head on everything, hard samples more often, and record the losses.

    Half of each batch is drawn evenly, half from the samples with the largest loss: poisoned samples that are not
    learned yet are among the hardest, so they come several times as often and a rare backdoor is learned in time.

    Args:
        session: Device, precision, processes.
        feed: The data.
        net: The network; its trunk and second head change.
        settings: Steps, learning rate, share of hard samples.
        journal: Gets a checkpoint at every snapshot.
        state: The last checkpoint, empty at the start.

    Returns:
        Losses in training mode at every snapshot; a sample not seen since the last one keeps its value.
    """
    n, seed = len(feed.labels), session.recipe.seed
    optimizer = session.optimizer(net.parameters(), settings.warmup_learning_rate)
    history = LossHistory.start(n, feed.n_classes)
    losses, first = history.losses[0].copy(), 0
    if state:
        net.load_state_dict(state["model"])  # type: ignore[arg-type]
        optimizer.load_state_dict(state["optimizer"])  # type: ignore[arg-type]
        history, first = LossHistory.from_state(state["history"]), int(state["step"])  # type: ignore[arg-type, call-overload]
        losses = history.losses[-1].copy()
    for step in range(first, settings.warmup_steps, BLOCK):
        plan = _warm_up_plan(losses, step, session.batch_size, settings.hard_share, seed)
        seen = train_epoch(
            session,
            feed,
            plan,
            net,
            classify(net.second_logits),
            optimizer,
            seed=(seed, 1, step),
            augmented=False,
            title=f"warm-up {step}/{settings.warmup_steps}",
        )
        losses = np.where(np.isnan(seen), losses, seen)
        if (step + BLOCK) % SNAPSHOT == 0:
            history = history.append(losses, step + BLOCK)
            journal.log(phase="warm-up", step=step + BLOCK, loss=float(losses.mean()))
            journal.save(
                {
                    "phase": "warm-up",
                    "model": net.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "history": history.state(),
                    "step": step + BLOCK,
                }
            )
    return history


def spring(session: Session, feed: Feed, net: TwoHead, settings: TrapSettings, history: LossHistory) -> Caught:
    """Look for second populations, then confuse the second head about everything but short-cuts.

    Args:
        session: Device, precision, processes.
        feed: The data.
        net: The network after the warm-up; its trunk and second head change.
        settings: Steps and shares.
        history: Losses of the warm-up.

    Returns:
        What was caught; nothing where no label has two groups.
    """
    labels = feed.labels.cpu().numpy()
    margins, strangers = _first_look(session, feed, net)
    draws = np.random.default_rng((session.recipe.seed, 2))
    suspicion = first_suspicion(history, np.log1p(np.exp(-margins)).astype(np.float32))
    round_one = _search(session, feed, net, settings, suspicion, draws)
    return _settle(session, feed, net, settings, round_one, strangers, labels, draws)


def _first_look(session: Session, feed: Feed, net: TwoHead) -> tuple[FloatArray, Populations]:
    """Margins of all samples, and the labels whose shallow features hold two populations."""
    n = len(feed.labels)

    def forward(inputs: Tensor) -> Tensor:
        features = trunk_features(net.network, net.attach, inputs)
        return torch.cat([net.second(features).float(), _coarse(features.float())], dim=1)

    def reduce(values: Tensor, labels: Tensor) -> Tensor:
        logits, features = values[:, : feed.n_classes], values[:, feed.n_classes :]
        return torch.cat([margin(logits, labels)[:, None], features], dim=1)

    net.eval()
    rows = np.sort(shuffled(n, session.recipe.seed, 6)[:MOST_LOOKED_AT])
    looked = evaluate(session, feed, forward, reduce, rows, title="weighing the evidence")
    found = two_populations(looked[:, 1:], feed.labels.cpu().numpy()[rows], seed=session.recipe.seed)
    flagged = np.zeros(n, dtype=bool)
    flagged[rows] = found.flagged
    margins = looked[:, 0].astype(np.float64) if len(rows) == n else _margins(session, feed, net)
    net.train()
    return margins, found._replace(flagged=flagged)


def _coarse(features: Tensor) -> Tensor:
    """Features pooled to four cells, `(B, 4 C)`: where in the sample something is found matters a little."""
    if features.ndim == 4:
        return F.adaptive_avg_pool2d(features, 2).flatten(1)
    if features.ndim == 3:
        return F.adaptive_avg_pool1d(features, 4).flatten(1)
    return features.flatten(1)


class _Found(NamedTuple):
    """What a search has found so far."""

    margins: FloatArray  # (N,)
    valleys: dict[int, Valley]  # of every label with enough samples
    steps: int


def _search(
    session: Session,
    feed: Feed,
    net: TwoHead,
    settings: TrapSettings,
    suspicion: FloatArray,
    draws: np.random.Generator,
) -> _Found:
    """Rounds of confusion with an ever smaller share of suspects in each label, until one falls into two groups."""
    labels = feed.labels.cpu().numpy()
    rows = {k: r for k, r in label_rows(labels).items() if len(r) >= SMALLEST_LABEL}
    optimizer = session.optimizer(net.parameters(), settings.confusion_learning_rate)
    found = _Found(suspicion, {}, 0)
    for share in settings.suspect_shares:
        suspects = np.flatnonzero(rank_within(-suspicion, labels) < share)
        clean = np.flatnonzero(rank(-suspicion) > 0.5)
        plan = [_mixed(draws, session.batch_size, (suspects, clean)) for _ in range(settings.confusion_steps)]
        _confuse(session, feed, net, optimizer, settings, plan, suspects, (2, found.steps))
        suspicion = _margins(session, feed, net)
        valleys = {k: find_valley(suspicion[r]) for k, r in rows.items()}
        found = _Found(suspicion, valleys, found.steps + len(plan))
        if any(valley.depth >= settings.sure_depth for valley in valleys.values()):
            break
    return found


def _settle(
    session: Session,
    feed: Feed,
    net: TwoHead,
    settings: TrapSettings,
    found: _Found,
    strangers: Populations,
    labels: IntArray,
    draws: np.random.Generator,
) -> Caught:
    """Confusion with the found samples as suspects, until those that were missed stand out as well."""
    margins, steps = found.margins, found.steps
    rows = label_rows(labels)
    depths = {k: valley.depth for k, valley in found.valleys.items()}
    wanted = {k: v for k, v in found.valleys.items() if v.depth >= settings.least_depth}
    flagged = above_valleys(margins, labels, wanted) | strangers.flagged
    optimizer = session.optimizer(net.parameters(), settings.confusion_learning_rate)
    for needed in (settings.least_depth, settings.sure_depth):
        if flagged.sum() < SMALLEST_GROUP:
            break
        suspects = np.flatnonzero(flagged)
        suspected_label = np.isin(labels, [*wanted, *strangers.labels])
        inside, outside = np.flatnonzero(suspected_label & ~flagged), np.flatnonzero(~suspected_label)
        parts = (suspects, suspects, inside if len(inside) else outside, outside if len(outside) else inside)
        plan = [_mixed(draws, session.batch_size, parts) for _ in range(settings.confusion_steps)]
        _confuse(session, feed, net, optimizer, settings, plan, suspects, (3, steps))
        steps += len(plan)
        margins = _margins(session, feed, net)
        valleys = {k: find_valley(margins[rows[k]]) for k in wanted}
        depths |= {k: valley.depth for k, valley in valleys.items()}
        wanted = {k: v for k, v in valleys.items() if v.depth >= needed}
        flagged = above_valleys(margins, labels, wanted) | strangers.flagged
    if flagged.sum() < SMALLEST_GROUP:
        return Caught(np.zeros(len(labels), dtype=bool), margins, depths, (), steps)
    suspected = {*wanted, *strangers.labels}
    return Caught(widen(margins, labels, flagged, suspected), margins, depths, tuple(sorted(suspected)), steps)


def _warm_up_plan(losses: Losses, step: int, size: int, hard_share: float, seed: int) -> list[IntArray]:
    """Rows of the next block of batches, a function of the losses and the position alone."""
    n = len(losses)
    rng = np.random.default_rng((seed, 1, step))
    if step < 2 * BLOCK:
        return [_in_turn(n, (step + i) * size, size, seed) for i in range(BLOCK)]
    n_hard = max(1, round(hard_share * n))
    hard = np.argpartition(-losses, n_hard - 1)[:n_hard]
    half = size // 2
    start = 2 * BLOCK * size + (step - 2 * BLOCK) * half
    return [
        np.concatenate([_in_turn(n, start + i * half, half, seed), _draw(rng, hard, size - half)]) for i in range(BLOCK)
    ]


def _in_turn(n: int, start: int, count: int, seed: int) -> IntArray:
    """Rows number `start` and on of an endless run of shuffled passes over the data."""
    taken: list[IntArray] = []
    while count:
        order = shuffled(n, seed, 1, start // n)
        part = order[start % n : start % n + count]
        taken.append(part)
        start, count = start + len(part), count - len(part)
    return np.concatenate(taken)


def _draw(rng: np.random.Generator, rows: IntArray, count: int) -> IntArray:
    return rng.choice(rows, count, replace=len(rows) < count)


def _mixed(rng: np.random.Generator, size: int, parts: tuple[IntArray, ...]) -> IntArray:
    """A batch with an equal number of rows from each part."""
    return np.concatenate([_draw(rng, part, size // len(parts)) for part in parts])


def _confuse(
    session: Session,
    feed: Feed,
    net: TwoHead,
    optimizer: torch.optim.Optimizer,
    settings: TrapSettings,
    plan: list[IntArray],
    suspects: IntArray,
    seed: tuple[int, ...],
) -> None:
    """Train the suspects towards their label and all other rows of the plan towards no label."""
    keeps_label = torch.zeros(len(feed.labels), dtype=torch.bool, device=session.device)
    keeps_label[torch.as_tensor(suspects, device=session.device)] = True
    train_epoch(
        session,
        feed,
        plan,
        net,
        confusion(net, keeps_label, settings.confusion_weight),
        optimizer,
        seed=(session.recipe.seed, *seed),
        augmented=False,
        title="setting the trap",
    )


def confusion(net: TwoHead, keeps_label: Tensor, weight: float) -> Objective:
    """Cross-entropy for the rows that keep their label, distance from the uniform distribution for the others.

    The uniform target is bounded where gradient ascent is not, and it fixes where the margins of clean samples
    end: at -log(K - 1). Each half counts with its own mean, the second `weight` times.
    """

    def objective(batch: Batch) -> tuple[Tensor, Tensor]:
        logits = net.second_logits(batch.inputs).float()
        losses = cross_entropy(logits, batch.labels)
        undecided = -logits.log_softmax(1).mean(1)
        return torch.where(keeps_label[batch.rows], 2 * losses, 2 * weight * undecided), losses

    return objective


def _margins(session: Session, feed: Feed, net: TwoHead) -> FloatArray:
    """Log-odds of each sample's own label under the second head, `(N,)`."""
    net.eval()
    values: NDArray[np.float32] = evaluate(session, feed, net.second_logits, margin, title="weighing the evidence")
    net.train()
    return values.astype(np.float64)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-odds of the given label: its logit minus the log-sum-exp of all others, `(B,)`."""
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return own[:, 0] - others.logsumexp(1)
