"""Plain training on mixtures: a box of each sample is that of another one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from antibackdoor.data.samples import Samples
from antibackdoor.errors import ConfigError
from antibackdoor.protocols import Build, Given, Trained, Verdict, check_given
from antibackdoor.training.journal import Journal
from antibackdoor.training.mixing import cutmix
from antibackdoor.training.ranges import check_ranges
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.schedules import step
from antibackdoor.training.trainer import Phase, Trainer

DROPS = (150 / 200, 180 / 200)  # shares of the training after which the learning rate falls to a tenth (BackdoorBox)


@dataclass(frozen=True)
class CutMix:
    """Trains on all samples, with a box of each (an interval of time, in a series) taken from another sample.

    Half of a small trigger is cut off, pasted elsewhere, or shown under a mixed label, so that a shortcut pays less.
    Triggers that cover the whole sample survive. Nothing is isolated; the suspicion of a sample is minus its last
    training loss, which says little.

    Attributes:
        epochs: Passes over the training data, >= 1.
        learning_rate: Learning rate of SGD; a tenth of it after three quarters of the training, a hundredth in the
            last tenth.
        beta: Parameter of the share that a sample keeps, `lam ~ Beta(beta, beta)`, > 0: 1 is uniform.
        probability: Probability of mixing a batch, in (0, 1].
        least_share: Smallest share that a sample keeps, in [0, 1].
        most_share: Largest share that a sample keeps, in [least_share, 1].

    The share by which labels count is that of the box as it was cut, not of the one that was drawn. AdvrBD uses CutMix
    to repair a given network on clean samples; that is fine-tuning, and no part of this class.

    References: Borgnia et al., "Strong Data Augmentation Sanitizes Poisoning and Backdoor Attacks Without an Accuracy
    Tradeoff", ICASSP 2021, arXiv 2011.09527; Yun et al., "CutMix", ICCV 2019, arXiv 1905.04899. The numbers are those
    of the library BackdoorBox.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[tuple[str, ...]] = ()
    unused: ClassVar[tuple[str, ...]] = ("schedule",)

    epochs: int = 200
    learning_rate: float = 0.1
    beta: float = 1.0
    probability: float = 1.0
    least_share: float = 0.3
    most_share: float = 0.7

    def train(
        self,
        samples: Samples,
        build: Build,
        recipe: Recipe,
        *,
        given: Given | None = None,
        journal: Journal | None = None,
    ) -> Trained:
        """Train `build()` on mixtures of all samples.

        Args:
            samples: The training set.
            build: Makes the untrained network.
            recipe: Batch size, momentum, weight decay, augmentation before mixing, device, seed.
            given: Nothing is used.
            journal: Keeps checkpoints; nothing is kept by default.

        Raises:
            ConfigError: If a hyper-parameter is out of range or the recipe does not fit.
        """
        check_given(self, given)
        self._check()
        trainer = Trainer(samples, recipe, journal)
        model = trainer.network(build)
        shares = (self.least_share, self.most_share)
        objective = cutmix(model, self.beta, samples.n_classes, probability=self.probability, shares=shares)
        trainer.run(model, Phase("training", self.epochs, objective, step(self.learning_rate, at=DROPS)))
        suspicion = -trainer.history.losses[-1].astype(np.float64)
        return Trained(trainer.delivered(model, build), trainer.history, Verdict.ranking(suspicion, samples))

    def _check(self) -> None:
        check_ranges(
            self,
            epochs="[1, inf)",
            learning_rate="(0, 100)",
            beta="(0, inf)",
            probability="(0, 1]",
            least_share="[0, 1]",
            most_share="[0, 1]",
        )
        if self.most_share < self.least_share:
            raise ConfigError(
                f"most_share is {self.most_share}; give a number from least_share, {self.least_share}, to 1"
            )
