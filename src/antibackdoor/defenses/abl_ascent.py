"""Global gradient ascent of ABL (Li et al., arXiv 2110.11571, Equation 3), bounded, and stopped by training samples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor, nn

from antibackdoor.data.samples import IntArray
from antibackdoor.data.streams import Stream, stream
from antibackdoor.defenses.abl_unlearning import Stage, accuracy, tune
from antibackdoor.models.hooks import evaluation_mode
from antibackdoor.training.loop import batches, classify, shuffled
from antibackdoor.training.objectives import Forward, ascend, descend_and_ascend, with_hole
from antibackdoor.training.schedules import Schedule, constant
from antibackdoor.training.trainer import Phase

ASCENDED_SHARE = 4  # one in four of a joint batch: enough for a mean, too few to rule the batch statistics


def ascend_last(stage: Stage, *, bound: float, stop: str, statistics: str) -> tuple[nn.Module, int]:
    """Tune, then ascend on the isolated alone, without augmentation.

    Args:
        stage: The network, and how to go on.
        bound: Nats above log K at which the ascent ends for a sample.
        stop: `forgotten` or `never`.
        statistics: Of batch norm, `batch` or `running`.

    Returns:
        The network, and the epochs of ascent that were taken.
    """
    tune(stage)
    if not stage.isolated.any():
        return stage.model, 0
    rows = np.flatnonzero(stage.isolated)
    # Batch statistics need two samples in each process.
    rows = np.resize(rows, max(len(rows), 2 * stage.trainer.recipe.devices))
    phase = Phase(
        "ascent",
        stage.unlearning_epochs,
        ascend(_forward(stage.model, statistics), _above_chance(stage, bound)),
        constant(stage.unlearning_learning_rate),
        rows=rows,
        augment="none",
    )
    return stage.model, _until_forgotten(stage, phase, stop)


def ascend_jointly(stage: Stage, *, bound: float, stop: str, statistics: str) -> tuple[nn.Module, int]:
    """Tune; in the last epochs of it, descend on the rest and ascend on the isolated at once.

    The arguments and what is returned are those of `ascend_last`. The two means of Equation 3 weigh alike, so a quarter
    of each batch is drawn from the isolated.
    """
    if not stage.isolated.any():
        tune(stage)
        return stage.model, 0
    model, n = stage.model, min(stage.unlearning_epochs, stage.epochs)
    turn = 1 - n / stage.epochs
    rate = stage.learning_rate
    plain = with_hole(classify(model), stage.hole)
    stage.trainer.run(model, Phase("tuning", stage.epochs - n, plain, part(rate, 0, turn), rows=stage.tuned_on))
    objective = descend_and_ascend(_forward(model, statistics), stage.mask(), _above_chance(stage, bound))
    phase = Phase("joint ascent", n, objective, part(rate, turn, 1), plan=lambda epoch: _mixed(stage, epoch))
    return model, _until_forgotten(stage, phase, stop)


def part(schedule: Schedule, start: float, end: float) -> Schedule:
    """What a schedule says between two shares of its whole.

    >>> part(lambda done: done, 0.5, 1.0)(0.5)
    0.75
    """
    return lambda done: schedule(start + done * (end - start))


def _mixed(stage: Stage, epoch: int) -> list[IntArray]:
    """All rows of the rest once, each batch filled up with rows drawn from the isolated."""
    seed, size = stage.trainer.recipe.seed, stage.trainer.session.batch_size
    rest, isolated = stage.rest, np.flatnonzero(stage.isolated)
    rest = rest[shuffled(len(rest), seed, Stream.ASCENT_ROWS, epoch, 0)]
    drawn = max(1, size // ASCENDED_SHARE)
    rng = stream(seed, Stream.ASCENT_ROWS, epoch, 1)
    return [np.concatenate([cut, rng.choice(isolated, drawn)]) for cut in batches(rest, size - drawn)]


def _until_forgotten(stage: Stage, phase: Phase, stop: str) -> int:
    """Run a phase until fewer than 1 / K of the isolated get their given label; the epochs that were taken."""
    trainer, model = stage.trainer, stage.model
    chance = 1 / trainer.samples.n_classes
    # A new one: the momentum of the tuning leads the other way.
    optimizer = trainer.optimizer(model.parameters())

    def epoch(place: int, _state: dict[str, Any]) -> dict[str, Any]:
        trainer.epoch(model, phase, place, optimizer)
        return {"epochs": place + 1, "accuracy": accuracy(trainer, model, stage.isolated)}

    def is_forgotten(state: dict[str, Any]) -> bool:
        return stop == "forgotten" and state["accuracy"] < chance

    start: dict[str, Any] = {"epochs": 0, "accuracy": 1.0}
    return int(trainer.fold(phase.name, phase.epochs, start, epoch, until=is_forgotten)["epochs"])


def _above_chance(stage: Stage, bound: float) -> float:
    return math.log(stage.trainer.samples.n_classes) + bound


def _forward(model: nn.Module, statistics: str) -> Forward:
    """The network; in eval mode, as far as batch norm is concerned, for `running` statistics."""
    if statistics == "batch":
        return model

    def forward(inputs: Tensor) -> Tensor:
        with evaluation_mode(model):
            logits: Tensor = model(inputs)
        return logits

    return forward
