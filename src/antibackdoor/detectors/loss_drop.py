"""Ranks samples by how early their loss fell: Equation 5 of E2ABL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from antibackdoor.data.samples import Samples
from antibackdoor.errors import DataError
from antibackdoor.protocols import Detection, Given, Verdict, check_given
from antibackdoor.statistics.isolation import loss_drop
from antibackdoor.training.journal import Journal
from antibackdoor.training.recipe import Recipe


@dataclass(frozen=True)
class LossDrop:
    """Ranks samples by the drop of their loss, early drops counting most.

    `d = sum over i >= 2 of (L_{i-1} - L_i) / (i - 1)^2` over the losses `L` of a training, of which the first is log K.
    A shortcut is learned before the classes, so what carries one drops first. The first difference counts most, and a
    long training tells little more than a short one. It isolates nobody: the paper's fixed share of 20% is no test.

    Reference: Jiang et al., "End-to-End Anti-Backdoor Learning on Images and Time Series", arXiv 2401.03215,
    Equation 5, with the sign that its text means. There, the losses are those of a second, shallow head
    (`--defense e2abl`); here, those of the network that was trained.
    """

    needs: ClassVar[tuple[str, ...]] = ("history",)
    takes: ClassVar[tuple[str, ...]] = ("model",)
    unused: ClassVar[tuple[str, ...]] = ()

    def detect(
        self, samples: Samples, given: Given | None, recipe: Recipe, *, journal: Journal | None = None
    ) -> Detection:
        """Rank the samples by `given.history`.

        Raises:
            ConfigError: If there is no history.
            DataError: If the history is about other data.
        """
        history = check_given(self, given).history
        assert history is not None
        if history.n_samples != len(samples):
            raise DataError(
                f"the history is about {history.n_samples} samples, the data have {len(samples)}: give the data that "
                "the model was trained on"
            )
        return Detection(Verdict.ranking(loss_drop(history), samples), history=history)
