"""Low loss: the isolation of anti-backdoor learning. Poison is learned first, and a held loss keeps it apart."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from torch import nn

from antibackdoor.data.samples import FloatArray, Samples
from antibackdoor.protocols import Detection, Given, Verdict, check_given
from antibackdoor.statistics.isolation import most_suspicious
from antibackdoor.training.journal import Journal
from antibackdoor.training.objectives import LGA
from antibackdoor.training.ranges import check_choices, check_ranges
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.schedules import constant
from antibackdoor.training.trainer import Phase, Trainer


@dataclass(frozen=True)
class LowLoss:
    """Trains for a few epochs with the mean loss held at gamma, and ranks the samples by lowest loss.

    The score is minus the loss in eval mode, without augmentation. While the mean loss of a batch lies below gamma the
    step ascends (local gradient ascent, Equation 3 of ABL). So the classes are learned only so far, and a shortcut,
    which is learned faster, sinks below them. It isolates nobody unless `isolation_rate` says how many.

    Attributes:
        gamma: Level of the mean loss in nats, >= 0: the paper's 0.5. It must be below the initial log K; many classes
            may need more. 0 is plain training, which the paper finds much worse.
        lga: `batch_mean` takes one sign per batch, as in all published code; its gradient is that of flooding.
            `per_example` takes one per sample, as printed in Equation 3; this holds poison at gamma as well.
        isolation_rate: Share of all samples to isolate, in [0, 1): the paper's 1%. 0 only ranks.
        epochs: Passes over the data, >= 1: the paper's 20; its code has 10.
        learning_rate: Constant learning rate, from the code.
        momentum: Nesterov momentum, from the code.
        weight_decay: L2 penalty, from the code.
        augment: Augmentations, as in the recipe; `none` as in the code. The paper uses `crop,flip,cutout`, which
            sometimes hides small triggers.

    Reference: Li et al., "Anti-Backdoor Learning", NeurIPS 2021, arXiv 2110.11571, Section 3.2.
    """

    needs: ClassVar[tuple[str, ...]] = ("build",)
    takes: ClassVar[tuple[str, ...]] = ()
    unused: ClassVar[tuple[str, ...]] = ("schedule",)

    gamma: float = 0.5
    lga: Literal["batch_mean", "per_example"] = "batch_mean"
    isolation_rate: float = 0.0
    epochs: int = 20
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    augment: str = "none"

    def detect(
        self, samples: Samples, given: Given | None, recipe: Recipe, *, journal: Journal | None = None
    ) -> Detection:
        """Train `given.build()` on the samples and rank them.

        Args:
            samples: The data.
            given: `build` makes the network.
            recipe: Batch size, device, seed; the rest of the training is the method's own.
            journal: Keeps checkpoints; nothing is kept by default.

        Returns:
            The ranking, and the losses met in training.

        Raises:
            ConfigError: If a hyper-parameter is out of range, or the recipe does not fit.
        """
        build = check_given(self, given).build
        assert build is not None
        self._check()
        own = replace(
            recipe,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            augment=self.augment,
        )
        trainer = Trainer(samples, own, journal)
        model = trainer.network(build)
        objective = LGA[self.lga](model, self.gamma)
        trainer.run(model, Phase("isolation", self.epochs, objective, constant(self.learning_rate)))
        return ranked(trainer, low_losses(trainer, model), self.isolation_rate)

    def _check(self) -> None:
        check_ranges(
            self,
            gamma="[0, inf)",
            isolation_rate="[0, 1)",
            epochs="[1, inf)",
            learning_rate="(0, 100)",
            momentum="[0, 1)",
            weight_decay="[0, 100)",
        )
        check_choices(self)


def low_losses(trainer: Trainer, model: nn.Module) -> FloatArray:
    """Minus the loss of every sample, `(N,)` float64, in full precision: rounding makes ties where losses are small."""
    with trainer.session.full_precision():
        return -trainer.losses(model).astype(np.float64)


def ranked(trainer: Trainer, suspicion: FloatArray, rate: float) -> Detection:
    """What a detector returns that trained a network to rank the samples, `suspicion` `(N,)`."""
    isolated = most_suspicious(suspicion, rate, trainer.recipe.seed)
    return Detection(Verdict.isolating(suspicion, isolated, trainer.samples), history=trainer.history)
