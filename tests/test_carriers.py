"""More of what was found: who shares the trigger, and is not what it is labelled as."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from watched_runs import RECIPE, builder

from antibackdoor.attacks import ATTACKS, poison
from antibackdoor.carriers import carriers
from antibackdoor.defenses import DEFENSES
from antibackdoor.defenses.late_look import more_carriers
from antibackdoor.demo import digits
from antibackdoor.samples import BoolArray, FloatArray, IntArray
from antibackdoor.session import Session

N_CLASSES, WIDTH, TARGET = 5, 40, 2
N_EACH, N_POISONED = 300, 100


class Looked(NamedTuple):
    """Features and margins as a network that knows the classes would give them."""

    features: np.ndarray[tuple[int, int], np.dtype[np.float32]]
    margins: FloatArray
    labels: IntArray
    is_poisoned: BoolArray
    found: BoolArray


def looked(*, trigger: float, doubt: float, share_found: float = 0.4, seed: int = 0) -> Looked:
    """Poison from all classes under one label; the trigger moves features, and the network doubts what it moves."""
    rng = np.random.default_rng(seed)
    means = rng.normal(0, 2, (N_CLASSES, WIDTH))
    true = np.repeat(np.arange(N_CLASSES), N_EACH)
    labels, is_poisoned = true.copy(), np.zeros(len(true), dtype=bool)
    is_poisoned[rng.choice(np.flatnonzero(true != TARGET), N_POISONED, replace=False)] = True
    labels[is_poisoned] = TARGET
    strength = rng.uniform(0.5, 1.5, len(true))[:, None] * is_poisoned[:, None]
    direction = rng.normal(0, 1, WIDTH)
    features = means[true] + rng.normal(0, 1, (len(true), WIDTH)) + trigger * strength * direction
    margins = rng.normal(2, 1.5, len(true)) - doubt * is_poisoned
    order = np.argsort(-strength[:, 0] - 10 * is_poisoned, kind="stable")  # the loudest were found
    found = np.zeros(len(true), dtype=bool)
    found[order[: round(share_found * N_POISONED)]] = True
    return Looked(features.astype(np.float32), margins, labels, is_poisoned, found)


@pytest.mark.parametrize("seed", range(3))
def test_the_found_tell_who_was_missed(seed: int) -> None:
    shown = looked(trigger=0.6, doubt=4.0, seed=seed)
    more = carriers(*shown[:3], shown.found, seed=seed)
    missed = shown.is_poisoned & ~shown.found
    assert more[missed].mean() > 0.85
    assert (more & ~shown.is_poisoned).sum() <= 6
    assert not more[shown.labels != TARGET].any()


@pytest.mark.parametrize(
    ("trigger", "doubt"), [(0.0, 4.0), (0.6, 0.0), (0.0, 0.0)], ids=["no trigger", "no doubt", "neither"]
)
def test_one_witness_is_not_enough(trigger: float, doubt: float) -> None:
    shown = looked(trigger=trigger, doubt=doubt)
    assert not carriers(*shown[:3], shown.found, seed=0).any()


def test_where_all_were_found_nobody_is_added() -> None:
    shown = looked(trigger=0.6, doubt=4.0, share_found=1.0)
    assert not carriers(*shown[:3], shown.found, seed=0).any()


def test_a_finding_of_honest_samples_adds_nobody() -> None:
    shown = looked(trigger=0.6, doubt=0.0)
    honest = (shown.labels == TARGET) & ~shown.is_poisoned
    found = honest & (np.random.default_rng(0).random(len(honest)) < 0.1)
    assert not carriers(*shown[:3], found, seed=0).any()


def test_nothing_found_nothing_added() -> None:
    shown = looked(trigger=0.6, doubt=4.0)
    nobody = np.zeros(len(shown.labels), dtype=bool)
    assert not carriers(*shown[:3], nobody, seed=0).any()
    few = nobody.copy()
    few[np.flatnonzero(shown.found)[:3]] = True
    assert not carriers(*shown[:3], few, seed=0).any()


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
