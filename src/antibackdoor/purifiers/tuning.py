"""Training of a copy of a model on clean samples: what most purifiers do at some point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from antibackdoor.data.samples import FloatArray, IntArray, Samples
from antibackdoor.purifiers.clean import accuracy
from antibackdoor.training.loop import Objective
from antibackdoor.training.ranges import check_ranges
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.schedules import Schedule, step
from antibackdoor.training.trainer import Phase, Trainer

OWNED = ("epochs", "learning_rate", "momentum", "weight_decay", "batch_size", "augment")


@dataclass(frozen=True)
class Tuning:
    """How a model is trained on clean samples.

    Attributes:
        epochs: Passes over the samples.
        learning_rate: First learning rate of SGD.
        decay_after: Epochs after which the learning rate is divided by 10; 0 for never.
        decays_again: Whether it is divided again each time as many epochs have passed.
        momentum: Of SGD.
        nesterov: Whether it is Nesterov's.
        weight_decay: L2 penalty on all weights.
        batch_size: Samples a step; 0 chooses as the recipe does.
        augment: Names of augmentations as in the recipe; None for those of NAD: crop, flip and cutout for images. For
            series, of which the papers have none, jitter, scale and shift stand for these.
        cutout: Whether cutout is among those of NAD.
    """

    epochs: int = 10
    learning_rate: float = 0.1
    decay_after: int = 2
    decays_again: bool = True
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    batch_size: int = 64
    augment: str | None = None
    cutout: bool = True

    def of(self, method: Any) -> Tuning:
        """The same with those fields of a method that are not None in place of these.

        Raises:
            ConfigError: If a number is out of range.
        """
        own = {name: getattr(method, name) for name in OWNED if getattr(method, name, None) is not None}
        tuning = replace(self, **own)
        check_ranges(
            tuning,
            epochs="[0, inf)",
            learning_rate="(0, 100)",
            momentum="[0, 1)",
            weight_decay="[0, 100)",
            batch_size="[0, inf)",
        )
        return tuning

    def augmentation(self, samples: Samples) -> str:
        """Names of augmentations for such samples."""
        if self.augment is not None:
            return self.augment
        if samples.kind == "series":
            return "jitter,scale,shift"
        return "crop,flip,cutout" if self.cutout else "crop,flip"

    def recipe(self, recipe: Recipe, samples: Samples) -> Recipe:
        """The recipe with these values in it."""
        return replace(
            recipe,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            batch_size=self.batch_size,
            augment=self.augmentation(samples),
        )

    def optimizer(self, model: nn.Module) -> torch.optim.SGD:
        """SGD for the parameters of a model that can be trained."""
        return torch.optim.SGD(
            [parameter for parameter in model.parameters() if parameter.requires_grad],
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov and self.momentum > 0,
        )

    def schedule(self) -> Schedule:
        """The learning rate by the done share of the training."""
        last = self.epochs if self.decays_again else self.decay_after + 1
        after = range(self.decay_after, last, self.decay_after) if self.decay_after else ()
        return step(self.learning_rate, at=[epoch / max(self.epochs, 1) for epoch in after])


# NAD, section 4.1; the code of NAD; BackdoorBox, which augments as its data sets do.
NAD_PAPER = Tuning()
NAD_CODE = Tuning(epochs=20, decays_again=False, nesterov=True, cutout=False)
PRACTICAL = Tuning(learning_rate=1e-3, decay_after=0, weight_decay=5e-4, batch_size=128, augment="auto")


def tune(
    trainer: Trainer,
    model: nn.Module,
    tuning: Tuning,
    objective: Objective,
    *,
    name: str,
    rows: IntArray | None = None,
    held: IntArray | None = None,
    patience: int = 0,
    start: dict[str, Tensor] | None = None,
    change: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> FloatArray:
    """Train a network of the trainer on clean samples.

    Args:
        trainer: Holds the samples.
        model: One of its networks.
        tuning: How to train.
        objective: What each batch descends.
        name: Of the phase.
        rows: `(M,)` samples to train on; all by default.
        held: `(L,)` samples to measure the accuracy on after each epoch.
        patience: End the training once so many epochs brought no better accuracy than the best before; 0 for never.
        start: State of the network before the first epoch; that which it has by default.
        change: As in `Phase`.

    Returns:
        `(n_epochs,)` accuracy on the held samples after each epoch that was trained; nan without such samples.
    """
    n_rows = len(trainer.samples) if rows is None else len(rows)
    phase = Phase(
        name,
        tuning.epochs,
        objective,
        tuning.schedule(),
        rows=rows,
        augment=tuning.augmentation(trainer.samples),
        batch_size=replace(trainer.recipe, batch_size=tuning.batch_size).batch(n_rows),
        change=change,
    )
    optimizer = tuning.optimizer(model)

    def epoch(place: int, state: dict[str, FloatArray]) -> dict[str, FloatArray]:
        if place == 0 and start is not None:
            model.load_state_dict(start)
        trainer.epoch(model, phase, place, optimizer)
        reached = float("nan") if held is None else accuracy(trainer.session, trainer.feed, model, held)
        return {"accuracy": np.append(state["accuracy"], reached)}

    def settled(state: dict[str, FloatArray]) -> bool:
        reached = state["accuracy"]
        return 0 < patience < len(reached) and bool(reached[-patience:].max() <= reached[:-patience].max())

    begun: dict[str, FloatArray] = {"accuracy": np.zeros(0)}
    return trainer.fold(name, tuning.epochs, begun, epoch, until=settled, optimizer=optimizer)["accuracy"]
