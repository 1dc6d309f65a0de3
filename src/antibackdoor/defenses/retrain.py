"""Any detector as a defense: judge, drop, train again from scratch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from antibackdoor.data.samples import BoolArray, Samples
from antibackdoor.data.streams import Stream, stream
from antibackdoor.defenses.decisions import rejected, trusted
from antibackdoor.detectors import DETECTORS
from antibackdoor.errors import ConfigError, DataError
from antibackdoor.protocols import (
    DECISION,
    ISOLATED,
    KEPT,
    NO_CRITERION,
    SCORE,
    Build,
    Detector,
    Given,
    Trained,
    Verdict,
    check_given,
)
from antibackdoor.statistics.isolation import highest
from antibackdoor.training.journal import Journal
from antibackdoor.training.loop import classify
from antibackdoor.training.ranges import check_ranges
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.trainer import Phase, Trainer

FROM_TRAINING = ("model", "history")  # what a first training gives to a detector
FROM_PEOPLE = ("clean",)  # what a person gives to a detector


@dataclass(frozen=True)
class RetrainFacts:
    """What was done.

    Attributes:
        n_dropped: Samples that the delivered network was not trained on.
        n_trainings: 2 where the detector needed a network that was trained on everything, else 1.
    """

    n_dropped: int
    n_trainings: int


@dataclass(frozen=True)
class Retrain:
    """Drops what a detector isolates, or the most suspicious share, and trains on the rest from scratch.

    Where the detector needs a model or its losses, a network is first trained on everything, with the same recipe. The
    detector has its default settings. Most detectors only rank, so a share is dropped, which is no test: clean data
    lose as much. The defaults follow Tran et al. for a poisoning rate of 10%. But the share is one of all samples, by
    scores relative to their label, where the paper drops as many of each label.

    Attributes:
        detector: Name of any detector, such as `activation-clustering`.
        drop_rate: Share of the most suspicious samples to drop, in [0, 1): 1.5 times the expected rate in Tran et al.;
            0 drops the samples that the detector isolates.

    Reference: Tran, Li, Madry, "Spectral Signatures in Backdoor Attacks", NeurIPS 2018, arXiv 1811.00636, Algorithm 1.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[tuple[str, ...]] = (*FROM_PEOPLE, "decisions")
    unused: ClassVar[tuple[str, ...]] = ()

    detector: str = "spectral"
    drop_rate: float = 0.15

    def train(
        self,
        samples: Samples,
        build: Build,
        recipe: Recipe,
        *,
        given: Given | None = None,
        journal: Journal | None = None,
    ) -> Trained:
        """Train `build()` on the samples that are left.

        Args:
            samples: The training set.
            build: Makes the untrained network.
            recipe: How both trainings go.
            given: `clean` samples for detectors that need some; `decisions` of a person win over the detector.
            journal: Keeps checkpoints; nothing is kept by default. A detector that is stopped begins again.

        Raises:
            ConfigError: If there is no such detector, it lacks something, or the recipe does not fit.
            DataError: If almost everything is dropped, or the decisions are about other data.
        """
        given = check_given(self, given)
        detector = self._detector()
        spared, refused = trusted(given.decisions, samples), rejected(given.decisions, samples)
        known = replace(given, decisions=None, build=build)
        wanted = [part for part in FROM_TRAINING if part in detector.needs]
        to_come: dict[str, Any] = dict.fromkeys(wanted, True)
        check_given(detector, replace(known, **to_come))  # before hours of training
        trainer = Trainer(samples, recipe, journal, mixes=True)
        if wanted:
            known = replace(known, **self._trained(trainer, build, wanted))
        found = trainer.remember("verdict", lambda: vars(detector.detect(samples, known, recipe).verdict))
        verdict = Verdict(**found)
        dropped = self._dropped(verdict, trainer.recipe.seed)
        dropped = (dropped & ~spared) | refused
        kept = np.flatnonzero(~dropped)
        if len(kept) < max(samples.n_classes, 2):
            raise DataError(
                f"{len(kept)} samples are left to train on: lower the drop rate, or check what {self.detector} says"
            )
        trainer.journal.log(phase="detection", n_isolated=int(dropped.sum()))
        model = trainer.network(build, index=1)
        trainer.run(model, Phase("retraining", trainer.passes, classify(model), recipe.rate(), rows=kept))
        by_rule = np.where(verdict.criterion == NO_CRITERION, SCORE, verdict.criterion)
        criterion = np.where(refused, DECISION, np.where(dropped, by_rule, NO_CRITERION))
        verdict = replace(
            verdict,
            status=np.where(dropped, ISOLATED, KEPT).astype(np.uint8),
            suggested_label=samples.labels,
            criterion=criterion.astype(np.uint8),
        ).ordered(samples.labels)
        facts = RetrainFacts(n_dropped=int(dropped.sum()), n_trainings=1 + bool(wanted))
        return Trained(trainer.delivered(model, build), trainer.history, verdict, facts)

    def _detector(self) -> Detector:
        check_ranges(self, drop_rate="[0, 1)")
        if self.detector not in DETECTORS:
            raise ConfigError(f"detector is {self.detector!r}; choose one of {', '.join(DETECTORS)}")
        return DETECTORS[self.detector]()

    def _trained(self, trainer: Trainer, build: Build, wanted: list[str]) -> dict[str, Any]:
        """A network that was trained on everything as `Undefended` trains it, and its losses, as far as wanted."""
        model = trainer.network(build)
        rate = trainer.recipe.rate()
        trainer.run(model, Phase("training", trainer.passes, classify(model), rate))
        there = {"model": trainer.delivered(model, build), "history": trainer.history}
        return {part: there[part] for part in wanted}

    def _dropped(self, verdict: Verdict, seed: int) -> BoolArray:
        """`(N,)` bool, what the detector would have dropped."""
        if not self.drop_rate:
            return verdict.isolated
        ties = stream(seed, Stream.DROPPED).permutation(len(verdict.suspicion))
        return highest(verdict.suspicion, self.drop_rate, ties=[ties])
