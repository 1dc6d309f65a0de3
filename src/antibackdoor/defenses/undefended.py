"""Plain training: what happens without a defense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from antibackdoor.data.samples import Samples
from antibackdoor.protocols import Build, Given, Trained, Verdict, check_given
from antibackdoor.training.journal import Journal
from antibackdoor.training.loop import classify
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.trainer import Phase, Trainer


@dataclass(frozen=True)
class Undefended:
    """Trains on all samples under their given labels, for comparison.

    Nothing is isolated. The suspicion of a sample is minus its last training loss, which says little.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[tuple[str, ...]] = ()
    unused: ClassVar[tuple[str, ...]] = ()

    def train(
        self,
        samples: Samples,
        build: Build,
        recipe: Recipe,
        *,
        given: Given | None = None,
        journal: Journal | None = None,
    ) -> Trained:
        """Train `build()` on all samples.

        Args:
            samples: The training set.
            build: Makes the untrained network.
            recipe: Epochs, batch size, learning rate, device, seed.
            given: Nothing is used.
            journal: Keeps checkpoints; nothing is kept by default.

        Raises:
            ConfigError: If the recipe does not fit the data or the machine.
        """
        check_given(self, given)
        trainer = Trainer(samples, recipe, journal, mixes=True)
        model = trainer.network(build)
        trainer.run(model, Phase("training", trainer.passes, classify(model), recipe.rate()))
        suspicion = -trainer.history.losses[-1].astype(np.float64)
        return Trained(trainer.delivered(model, build), trainer.history, Verdict.ranking(suspicion, samples))
