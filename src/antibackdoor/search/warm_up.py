"""The warm-up of the trap: short-cuts are learned, and the loss of every sample is recorded on the way."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import entropy

from antibackdoor.data.samples import IntArray
from antibackdoor.data.streams import Stream, stream
from antibackdoor.models.two_head import TwoHead
from antibackdoor.training.history import Losses, LossHistory
from antibackdoor.training.loop import classify, shuffled, train_epoch
from antibackdoor.training.session import Feed
from antibackdoor.training.trainer import Trainer

BLOCK = 50  # optimizer steps between two choices of the hard samples
SNAPSHOT = 150  # optimizer steps between two entries of the loss history; more in warm-ups that may last very long
MOST_SNAPSHOTS = 12
LEAST_SNAPSHOTS = 3  # with one, features tell too little even where all is learned
BEGUN = 0.95  # mean loss, of that of a guess, from which hard samples come more often: before, all of them are hard
LEARNED = 0.5  # mean loss, of that of a guess by the frequencies of the labels
SNAPSHOTS_AFTER = 2  # from then on: rare poison is among the hardest samples only once most others have been learned


def warm_up(
    trainer: Trainer, feed: Feed, net: TwoHead, *, most_steps: int, learning_rate: float, hard_share: float
) -> LossHistory:
    """Train trunk and second head on everything, hard samples more often, and record the losses.

    Half of each batch is drawn evenly, half from the samples with the largest loss: poisoned samples that are not
    learned yet are among the hardest, so they come several times as often and a rare backdoor is learned in time.
    As long as nothing is learned all of it is drawn evenly: the samples with the largest loss are then those that the
    last steps spoke against, and a network that is shown these turns from one label to the next and learns none.
    It lasts until the losses are `learned_enough`. Each entry of the history is a step of the trainer's.

    Args:
        trainer: Device, seed, checkpoints.
        feed: The data, without augmentation.
        net: The network; its trunk and second head change.
        most_steps: Optimizer steps after which it ends however large the losses are; the first snapshot from there on
            is the last one.
        learning_rate: The optimizer's.
        hard_share: Share of the samples that count as hard.

    Returns:
        Losses in training mode at every snapshot; a sample not seen since the last one keeps its value.
    """
    session, seed = trainer.session, trainer.recipe.seed
    optimizer = session.optimizer(net.parameters(), learning_rate)
    first = LossHistory.start(len(feed.labels), feed.n_classes)
    snapshot, chance = snapshot_steps(most_steps), _entropy(feed)

    def snapshots(place: int, state: dict[str, Any]) -> dict[str, Any]:
        history = LossHistory.from_state(state)
        losses = history.losses[-1]
        for step in range(place * snapshot, (place + 1) * snapshot, BLOCK):
            share = hard_share if _has_begun(losses, first.losses[0], chance) else 1.0
            seen = train_epoch(
                session,
                feed,
                _plan(losses, step, session.batch_size, share, seed),
                net,
                classify(net.second_logits),
                optimizer,
                seed=(seed, Stream.WARM_UP_STEP, step),
                title=f"warm-up {step}/{most_steps}",
            )
            losses = np.where(np.isnan(seen), losses, seen)
        step = (place + 1) * snapshot
        trainer.journal.log(phase="warm-up", step=step, loss=float(losses.mean()))
        return history.append(losses, step).state()

    kept = trainer.fold(
        "warm-up",
        -(-most_steps // snapshot),
        first.state(),
        snapshots,
        until=lambda state: learned_enough(LossHistory.from_state(state), chance),
        optimizer=optimizer,
    )
    return LossHistory.from_state(kept)


def snapshot_steps(most_steps: int) -> int:
    """Optimizer steps between two entries of the history: `SNAPSHOT`, or more for a few entries at most."""
    return max(SNAPSHOT, -(-most_steps // (MOST_SNAPSHOTS * BLOCK)) * BLOCK)


def learned_enough(history: LossHistory, chance: float) -> bool:
    """Whether the mean loss has fallen to half of what a guess has, and two more snapshots have been taken.

    Args:
        history: Of the warm-up so far.
        chance: Loss of a guess, in nats.
    """
    learned = np.flatnonzero(history.losses.mean(axis=1) <= LEARNED * chance)
    return bool(len(learned)) and len(history) > max(LEAST_SNAPSHOTS, int(learned[0]) + SNAPSHOTS_AFTER)


def _has_begun(losses: Losses, first: Losses, chance: float) -> bool:
    """Whether those that have been seen show that something is learned."""
    seen = losses[losses != first]
    return len(seen) > 0 and bool(seen.mean() <= BEGUN * chance)


def _entropy(feed: Feed) -> float:
    """Loss of a guess by the frequencies of the labels, in nats."""
    return float(entropy(np.bincount(feed.labels.cpu().numpy())))


def _plan(losses: Losses, step: int, size: int, hard_share: float, seed: int) -> list[IntArray]:
    """Rows of the next block of batches, a function of the losses and the position alone."""
    n = len(losses)
    rng = stream(seed, Stream.WARM_UP_HARD, step)
    if step < 2 * BLOCK:
        return [_in_turn(n, (step + i) * size, size, seed) for i in range(BLOCK)]
    n_hard = max(1, round(hard_share * n))
    hard = np.argpartition(-losses, n_hard - 1)[:n_hard]
    half = size // 2
    start = 2 * BLOCK * size + (step - 2 * BLOCK) * half
    return [
        np.concatenate([_in_turn(n, start + i * half, half, seed), draw(rng, hard, size - half)]) for i in range(BLOCK)
    ]


def _in_turn(n: int, start: int, count: int, seed: int) -> IntArray:
    """Rows number `start` and on of an endless run of shuffled passes over the data."""
    taken: list[IntArray] = []
    while count:
        order = shuffled(n, seed, Stream.WARM_UP_ORDER, start // n)
        part = order[start % n : start % n + count]
        taken.append(part)
        start, count = start + len(part), count - len(part)
    return np.concatenate(taken)


def draw(rng: np.random.Generator, rows: IntArray, count: int) -> IntArray:
    """So many of the rows at random; some of them twice if they are fewer, none if there are none."""
    return rows if not len(rows) else rng.choice(rows, count, replace=len(rows) < count)
