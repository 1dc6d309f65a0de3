"""More of what was found: who shares the trigger, and little of the class."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from watched_runs import RECIPE, builder, find_nothing

from antibackdoor.app.demo import digits
from antibackdoor.attacks import ATTACKS, poison
from antibackdoor.data.samples import BoolArray, IntArray
from antibackdoor.defenses import DEFENSES, DualHead
from antibackdoor.defenses.dual_head import _Run
from antibackdoor.detectors import ConfusionTraining
from antibackdoor.protocols import Given
from antibackdoor.search.post_training import more_carriers
from antibackdoor.statistics.carriers import carriers
from antibackdoor.training.history import LossHistory
from antibackdoor.training.session import Session
from antibackdoor.training.trainer import Trainer

N_CLASSES, WIDTH, TARGET = 5, 40, 2
N_EACH, N_POISONED = 300, 100


class Looked(NamedTuple):
    """Features as a network that knows the classes would give them."""

    features: np.ndarray[tuple[int, int], np.dtype[np.float32]]
    labels: IntArray
    is_poisoned: BoolArray
    found: BoolArray


def looked(*, trigger: float, content: float, share_found: float = 0.4, seed: int = 0) -> Looked:
    """Poison under one label; the trigger moves features, the content is that of other classes, or partly its own."""
    rng = np.random.default_rng(seed)
    means = rng.normal(0, 0.7, (N_CLASSES, WIDTH))
    true = np.repeat(np.arange(N_CLASSES), N_EACH)
    labels, is_poisoned = true.copy(), np.zeros(len(true), dtype=bool)
    is_poisoned[rng.choice(np.flatnonzero(true != TARGET), N_POISONED, replace=False)] = True
    labels[is_poisoned] = TARGET
    strength = rng.uniform(0.5, 1.5, len(true))[:, None] * is_poisoned[:, None]
    shown = np.where(is_poisoned[:, None], content * means[true] + (1 - content) * means[TARGET], means[true])
    features = shown + rng.normal(0, 1, (len(true), WIDTH)) + trigger * strength * rng.normal(0, 1, WIDTH)
    order = np.argsort(-strength[:, 0] - 10 * is_poisoned, kind="stable")  # the loudest were found
    found = np.zeros(len(true), dtype=bool)
    found[order[: round(share_found * N_POISONED)]] = True
    return Looked(features.astype(np.float32), labels, is_poisoned, found)


@pytest.mark.parametrize("seed", range(3))
def test_the_found_tell_who_was_missed(seed: int) -> None:
    shown = looked(trigger=0.6, content=1.0, seed=seed)
    more = carriers(shown.features, shown.labels, shown.found, seed=seed)
    missed = shown.is_poisoned & ~shown.found
    assert more[missed].mean() > 0.85
    assert (more & ~shown.is_poisoned).sum() <= 6
    assert not more[shown.labels != TARGET].any()


def test_clean_label_carriers_are_told_by_the_trigger() -> None:
    shown = looked(trigger=0.6, content=0.0)
    more = carriers(shown.features, shown.labels, shown.found, seed=0)
    assert more[shown.is_poisoned & ~shown.found].mean() > 0.5
    assert (more & ~shown.is_poisoned).sum() <= 6


def test_what_has_no_trigger_and_the_right_content_is_left_alone() -> None:
    shown = looked(trigger=0.0, content=0.0)
    assert not carriers(shown.features, shown.labels, shown.found, seed=0).any()


def test_where_all_were_found_nobody_is_added() -> None:
    shown = looked(trigger=0.6, content=1.0, share_found=1.0)
    assert not carriers(shown.features, shown.labels, shown.found, seed=0).any()


def test_a_finding_of_honest_samples_adds_nobody() -> None:
    shown = looked(trigger=0.6, content=0.0)
    honest = (shown.labels == TARGET) & ~shown.is_poisoned
    found = honest & (np.random.default_rng(0).random(len(honest)) < 0.1)
    assert not carriers(shown.features, shown.labels, found, seed=0).any()


def test_nothing_found_nothing_added() -> None:
    shown = looked(trigger=0.6, content=1.0)
    nobody = np.zeros(len(shown.labels), dtype=bool)
    assert not carriers(shown.features, shown.labels, nobody, seed=0).any()
    few = nobody.copy()
    few[np.flatnonzero(shown.found)[:3]] = True
    assert not carriers(shown.features, shown.labels, few, seed=0).any()


def test_a_trained_network_shows_the_other_half_of_the_poison() -> None:
    poisoned = poison(digits(0).train, ATTACKS["badnets"](), seed=0, rate=0.1)
    samples, is_poisoned = poisoned.samples, poisoned.truth.is_poisoned
    honest = DEFENSES["none"]().train(samples.take(np.flatnonzero(~is_poisoned)), builder(samples), RECIPE)
    session = Session(RECIPE, len(samples), images=True)
    feed, model = session.feed(samples), session.prepare(honest.model)
    half = is_poisoned & (np.random.default_rng(0).random(len(samples)) < 0.5)
    more = more_carriers(session, feed, model, samples.originals, half)
    assert more[is_poisoned & ~half].mean() > 0.95 and not more[half].any()
    assert not more[~is_poisoned].any()
    assert not more_carriers(session, feed, model, samples.originals, is_poisoned).any(), "nobody was missed"


def test_rounds_before_a_finding_are_not_those_of_what_is_left() -> None:
    """They are of other rows: the trained network must not be asked about them."""
    data = poison(digits(0).train, ATTACKS["badnets"](), seed=0, rate=0.1)
    caught, _ = ConfusionTraining(power=False, in_the_rest=False).search(data.samples, builder(data.samples), RECIPE)
    assert caught.isolated.any() and len(caught.rounds) == 0


@pytest.mark.parametrize("n_labels", [3, 4])
def test_between_few_labels_nobody_is_added(monkeypatch: pytest.MonkeyPatch, n_labels: int) -> None:
    """There, a style of the honest who were found with a trigger was taken for it: 138 of 1,292 heartbeats."""
    whole = digits(0).train
    samples = whole.take(np.flatnonzero(whole.labels < n_labels))
    samples = replace(samples, class_names=whole.class_names[:n_labels])
    method, trainer = DualHead(), Trainer(samples, RECIPE)
    session, feed, model = trainer.session, trainer.feed, trainer.network(builder(samples))
    settings, net = method.search.settings(n_labels), method.search.two_heads(samples, builder(samples))
    nothing = find_nothing(session, samples, feed, net, settings, LossHistory.start(len(samples), n_labels))
    found = np.arange(len(samples)) < 20
    monkeypatch.setattr("antibackdoor.defenses.dual_head.more_carriers", lambda *given: ~given[-1] & given[-1].any())
    more = _Run(method, trainer, builder(samples), Given())._missed(model, replace(nothing, isolated=found))
    assert more.any() == (n_labels > 3)
