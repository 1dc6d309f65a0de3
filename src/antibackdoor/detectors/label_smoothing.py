"""Confidence after training with smoothed labels: who is still told with certainty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import nn

from antibackdoor.data.samples import FloatArray, Samples
from antibackdoor.detectors.low_loss import ranked
from antibackdoor.protocols import Detection, Given, check_given
from antibackdoor.training.journal import Journal
from antibackdoor.training.objectives import label_smoothing
from antibackdoor.training.ranges import check_ranges
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.schedules import triangle
from antibackdoor.training.trainer import Phase, Trainer


@dataclass(frozen=True)
class LabelSmoothingConfidence:
    """Trains by the recipe with smoothed labels, and ranks the samples by the largest probability of any class.

    Smoothing keeps the network from being sure of anything; the idea is that a trigger makes it sure all the same. A
    long training brings every sample to the same confidence, so the ranking is best after a short one. ABL compares
    with it and finds that it "fails on most attacks": use it to repeat that comparison, not to find poison. It isolates
    nobody unless `isolation_rate` says how many.

    Attributes:
        smoothing: Share of each target that is spread over all classes, in [0, 1). ABL does not state it; 0.1 is
            common.
        isolation_rate: Share of all samples to isolate, in [0, 1): ABL's 1%. 0 only ranks.

    Reference: Li et al., "Anti-Backdoor Learning", NeurIPS 2021, arXiv 2110.11571, Section 4.3; label smoothing:
    Szegedy et al., CVPR 2016, arXiv 1512.00567.
    """

    needs: ClassVar[tuple[str, ...]] = ("build",)
    takes: ClassVar[tuple[str, ...]] = ()
    unused: ClassVar[tuple[str, ...]] = ("schedule",)

    smoothing: float = 0.1
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
            The ranking, and the losses met in training, against the unsmoothed labels.

        Raises:
            ConfigError: If a hyper-parameter is out of range, or the recipe does not fit.
        """
        build = check_given(self, given).build
        assert build is not None
        check_ranges(self, smoothing="[0, 1)", isolation_rate="[0, 1)")
        trainer = Trainer(samples, recipe, journal)
        model = trainer.network(build)
        objective = label_smoothing(model, self.smoothing)
        trainer.run(model, Phase("label smoothing", trainer.passes, objective, triangle(recipe.learning_rate)))
        return ranked(trainer, _confidence(trainer, model), self.isolation_rate)


def _confidence(trainer: Trainer, model: nn.Module) -> FloatArray:
    """The largest probability of any class, `(N,)`, in eval mode and without augmentation."""
    model.eval()
    with trainer.session.full_precision():
        values = trainer.session.evaluate(
            trainer.feed, model, lambda logits, _labels: logits.softmax(1).amax(1), title="measuring confidence"
        )
    return values.astype(np.float64)
