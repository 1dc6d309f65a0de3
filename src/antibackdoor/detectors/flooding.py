"""Flooding: a whole training whose loss is kept from falling below a level, and who sinks below it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from antibackdoor.data.samples import Samples
from antibackdoor.detectors.low_loss import low_losses, ranked
from antibackdoor.protocols import Detection, Given, check_given
from antibackdoor.training.journal import Journal
from antibackdoor.training.objectives import flooding
from antibackdoor.training.ranges import check_ranges
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.schedules import triangle
from antibackdoor.training.trainer import Phase, Trainer


@dataclass(frozen=True)
class Flooding:
    """Trains by the recipe with the flooded loss `|mean L - level| + level`, and ranks the samples by lowest loss.

    Section 4.3 of ABL finds it "very effective for backdoor isolation". Its gradient is that of `low-loss` with one
    sign for a batch. What differs here is the training: flooding was made for a whole one, so this detector follows
    the recipe, with its epochs, falling learning rate and augmentation, where `low-loss` stops after a few epochs of
    its own. It isolates nobody unless `isolation_rate` says how many.

    Attributes:
        level: Flood level of the mean loss in nats, >= 0; 0.5 as in ABL's code. 0 is plain training.
        isolation_rate: Share of all samples to isolate, in [0, 1): ABL's 1%. 0 only ranks.

    Reference: Ishida et al., "Do We Need Zero Training Loss After Achieving Zero Training Error?", ICML 2020, arXiv
    2002.08709; as an isolation method in Li et al., NeurIPS 2021, arXiv 2110.11571, Section 4.3.
    """

    needs: ClassVar[tuple[str, ...]] = ("build",)
    takes: ClassVar[tuple[str, ...]] = ()
    unused: ClassVar[tuple[str, ...]] = ("schedule",)

    level: float = 0.5
    isolation_rate: float = 0.0

    def detect(
        self, samples: Samples, given: Given | None, recipe: Recipe, *, journal: Journal | None = None
    ) -> Detection:
        """Train `given.build()` on the samples and rank them.

        Args:
            samples: The data.
            given: `build` makes the network.
            recipe: How to train.
            journal: Keeps checkpoints; nothing is kept by default.

        Returns:
            The ranking, and the losses met in training.

        Raises:
            ConfigError: If a hyper-parameter is out of range, or the recipe does not fit.
        """
        build = check_given(self, given).build
        assert build is not None
        check_ranges(self, level="[0, inf)", isolation_rate="[0, 1)")
        trainer = Trainer(samples, recipe, journal)
        model = trainer.network(build)
        objective = flooding(model, self.level)
        trainer.run(model, Phase("flooding", trainer.passes, objective, triangle(recipe.learning_rate)))
        return ranked(trainer, low_losses(trainer, model), self.isolation_rate)
