"""Purification without a clean set: what is trained on, how long, and a backdoored model."""

from __future__ import annotations

import dataclasses
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest
import torch
from backdoored import RECIPE, TARGET, Ledger, scene, weights
from torch import nn

from antibackdoor.detectors.confusion import ConfusionTraining
from antibackdoor.errors import DataError
from antibackdoor.protocols import Given, Verdict
from antibackdoor.purifiers import SelfPurification
from antibackdoor.purifiers.self_clean import NOTHING, least_suspicious, lessons, spread, with_fresh_weights
from antibackdoor.purifiers.unlearning import ALL_OTHERS
from antibackdoor.search.evidence import from_verdict
from antibackdoor.training.history import LossHistory
from antibackdoor.training.loop import classify
from antibackdoor.training.schedules import constant
from antibackdoor.training.trainer import Phase, Trainer

QUICK = ConfusionTraining(power=False, confusion_steps=20, warmup_steps=100)


def verdict_of(kind: str) -> Verdict:
    here = scene(kind)
    return Verdict.isolating(here.is_poisoned.astype(np.float64), here.is_poisoned, here.samples)


@pytest.mark.parametrize(
    ("visits", "n", "expected"), [(1000, 300, (300, 3)), (100, 300, (100, 1)), (1, 300, (4, 1)), (90, 2, (2, 45))]
)
def test_visits_are_spread_over_many_rather_than_often(visits: float, n: int, expected: tuple[int, int]) -> None:
    assert spread(visits, n, least=4) == expected


def test_the_clean_set_is_the_least_suspicious_of_each_label() -> None:
    here = scene("image")
    rng = np.random.default_rng(0)
    suspicion = rng.random(len(here.samples)) + here.is_poisoned
    verdict = Verdict.isolating(suspicion, here.is_poisoned, here.samples)
    rows = least_suspicious(here.samples, verdict, 0.5, seed=0)
    for label in range(4):
        kept = np.flatnonzero((here.samples.labels == label) & ~here.is_poisoned)
        chosen = rows[here.samples.labels[rows] == label]
        assert set(chosen) < set(kept) and len(chosen) == round(len(kept) / 2)
        assert suspicion[chosen].max() < suspicion[np.setdiff1d(kept, chosen)].min()
    assert len(least_suspicious(here.samples, verdict, 1e-9, seed=0)) == 4  # one of each
    alike = Verdict.ranking(np.zeros(len(here.samples)), here.samples)
    drawn = [least_suspicious(here.samples, alike, 0.5, seed=seed).tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_fresh_weights_leave_the_model_alone() -> None:
    here = scene("image")
    before = weights(here.model)
    fresh = with_fresh_weights(here.model)
    assert weights(here.model) == before != weights(fresh)
    norm = next(module for module in fresh.modules() if isinstance(module, nn.BatchNorm2d))
    assert norm.running_mean is not None and not norm.running_mean.any()


def test_the_search_finds_the_poison_and_the_model_forgets_it() -> None:
    """With a model and its data, and nothing else."""
    here = scene("image")
    purified = SelfPurification(QUICK).purify(here.model, Given(suspicious=here.samples), RECIPE)
    accuracy, success = here.measured(purified.model)
    assert accuracy > 0.9 and success < 0.25
    facts = purified.facts
    assert abs(facts.n_isolated - here.is_poisoned.sum()) < 6 and facts.found_by
    assert facts.isolated_accuracy_before > 0.95 and facts.isolated_accuracy_after < 0.25


@pytest.mark.parametrize("kind", ["image", "series"])
def test_a_verdict_replaces_the_search(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ConfusionTraining, "find", None)
    here = scene(kind)
    given = Given(suspicious=here.samples, verdict=verdict_of(kind))
    purified = SelfPurification().purify(here.model, given, RECIPE)
    accuracy, success = here.measured(purified.model)
    assert accuracy > 0.9 and success < 0.25
    facts = purified.facts
    assert facts.found_by == "given verdict"
    visits = facts.n_trained * facts.n_epochs * 8 / 7
    assert visits <= 0.1 * RECIPE.epochs * len(here.samples)


def test_a_false_alarm_costs_little() -> None:
    """A quarter of a clean label is isolated; nothing is poisoned in what the model is tested on."""
    here = scene("series", rate=0.0)
    wrong = (here.samples.labels == 1) & (np.arange(len(here.samples)) % 16 < 4)
    assert wrong.sum() > 10
    given = Given(suspicious=here.samples, verdict=Verdict.isolating(np.zeros(len(here.samples)), wrong, here.samples))
    purified = SelfPurification().purify(here.model, given, RECIPE)
    assert here.measured(purified.model)[0] > here.measured(here.model)[0] - 0.05


@pytest.mark.parametrize("kind", ["image", "series"])
def test_the_lesson_is_what_the_model_sees_without_the_trigger(kind: str) -> None:
    here = scene(kind)
    trainer = Trainer(here.samples, RECIPE)
    model = trainer.network(lambda: deepcopy(here.model))
    wrong = (here.samples.labels == TARGET) & ~here.is_poisoned & (np.arange(len(here.samples)) % 5 == 0)
    isolated = here.is_poisoned | wrong
    verdict = Verdict.isolating(np.zeros(len(isolated)), isolated, here.samples)
    taught = lessons(trainer, model, verdict)
    true_labels = here.poisoned.truth.true_labels
    assert (taught[here.is_poisoned] == true_labels[here.is_poisoned]).mean() > 0.8
    assert (taught[wrong] == NOTHING).mean() > 0.8 and (taught[~isolated] == NOTHING).all()


def test_what_cannot_be_taken_off_is_spread_over_the_others() -> None:
    """Too few isolated samples of a label to tell what they share."""
    here = scene("image")
    trainer = Trainer(here.samples, RECIPE)
    few = here.is_poisoned & (np.cumsum(here.is_poisoned) <= 3)
    verdict = Verdict.isolating(np.zeros(len(few)), few, here.samples)
    taught = lessons(trainer, trainer.network(lambda: deepcopy(here.model)), verdict)
    assert (taught[few] == ALL_OTHERS).all() and (taught[~few] == NOTHING).all()
    # A verdict may know more.
    suggested = np.where(few, 3, here.samples.labels)
    taught = lessons(trainer, here.model, dataclasses.replace(verdict, suggested_label=suggested))
    assert (taught[few] == 3).all() and (taught[~few] == NOTHING).all()


def test_nothing_isolated_nothing_changed() -> None:
    here = scene("image")
    verdict = Verdict.ranking(np.zeros(len(here.samples)), here.samples)
    purified = SelfPurification().purify(here.model, Given(suspicious=here.samples, verdict=verdict), RECIPE)
    assert weights(purified.model) == weights(here.model) and purified.facts.n_isolated == 0


def test_almost_everything_isolated_is_refused() -> None:
    here = scene("image")
    isolated = np.arange(len(here.samples)) > 1
    verdict = Verdict.isolating(np.zeros(len(here.samples)), isolated, here.samples)
    with pytest.raises(DataError, match="almost every"):
        SelfPurification().purify(here.model, Given(suspicious=here.samples, verdict=verdict), RECIPE)


@dataclass(frozen=True)
class ShortSearch:
    """Trains a network of its own for two epochs, and then finds what it was told."""

    found: Any = field(compare=False)

    def find(self, trainer: Trainer, build: Any) -> Any:
        """As the real search: it adopts a network, runs phases, remembers."""
        net = trainer.network(build)
        trainer.run(net, Phase("search", 2, classify(net), constant(0.05), recorded=False))
        n = len(trainer.samples)
        isolated = trainer.remember("found", lambda: self.found.isolated)
        verdict = Verdict.isolating(self.found.suspicion, np.asarray(isolated), trainer.samples)
        caught = dataclasses.replace(from_verdict(verdict, 4), margins=np.zeros(n))
        return caught, LossHistory.start(n, 4), net


def test_resumed_at_every_checkpoint_it_ends_the_same() -> None:
    here, whole = scene("series"), Ledger()
    method = SelfPurification(cast(ConfusionTraining, ShortSearch(verdict_of("series"))))
    given = Given(suspicious=here.samples, build=here.build)
    torch.manual_seed(1)
    unbroken = method.purify(here.model, given, RECIPE, journal=whole)
    assert unbroken.facts.n_isolated and whole.n_saved > 5
    for stop in range(1, whole.n_saved + 1):
        broken = Ledger(stop_after=stop)
        torch.manual_seed(stop)
        with pytest.raises(KeyboardInterrupt):
            method.purify(here.model, given, RECIPE, journal=broken)
        resumed = method.purify(here.model, given, RECIPE, journal=Ledger(broken.kept))
        assert weights(resumed.model) == weights(unbroken.model) and resumed.facts == unbroken.facts, stop
