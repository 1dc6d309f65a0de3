"""The default defense on real digits, poisoned: what is found, what is delivered."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from watched_runs import (
    RECIPE,
    SEARCHED,
    Watched,
    assert_alike,
    builder,
    killed_and_resumed,
)

from antibackdoor.app.demo import digits
from antibackdoor.attacks import BadNets, Poisoned, poison, trigger_test_set
from antibackdoor.data.samples import Samples
from antibackdoor.data.streams import Stream, number
from antibackdoor.defenses import DualHead
from antibackdoor.detectors import ConfusionTraining
from antibackdoor.protocols import RELABELED, Trained
from antibackdoor.training.loop import predict
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.session import Session, seeded

# One attempt, and none at what is left: these tests are of what comes before and after the search.
METHOD = DualHead(ConfusionTraining(power=False, by_parts=False, across_labels=False, in_the_rest=False))


class Whole(NamedTuple):
    """An unbroken training."""

    samples: Samples
    trained: Trained
    journal: Watched


@pytest.fixture(scope="module")
def dirty() -> Poisoned:
    return poison(digits(0).train, BadNets(), seed=0, rate=0.1, target_label=4)


@pytest.fixture(scope="module")
def on_dirty(dirty: Poisoned) -> Whole:
    return unbroken(dirty.samples)


@pytest.fixture(scope="module")
def on_clean() -> Whole:
    return unbroken(digits(1).train)


@pytest.fixture(params=["dirty", "clean"])
def whole(request: pytest.FixtureRequest) -> Whole:
    return request.getfixturevalue(f"on_{request.param}")


def unbroken(samples: Samples) -> Whole:
    journal = Watched()
    return Whole(samples, METHOD.train(samples, builder(samples), RECIPE, journal=journal), journal)


def test_the_poison_is_isolated_and_the_delivered_model_does_not_know_the_trigger(
    dirty: Poisoned, on_dirty: Whole
) -> None:
    trained = on_dirty.trained
    is_poisoned = dirty.truth.is_poisoned
    verdict = trained.verdict
    assert verdict.target_labels == (4,) and verdict.poisoned
    assert (is_poisoned & ~verdict.isolated).sum() == 0
    assert (verdict.isolated & ~is_poisoned).sum() <= 5
    test = digits(0).test
    assert test is not None
    shown = trigger_test_set(test, dirty.trigger, dirty.plan)
    session = Session(RECIPE, len(shown), images=True)
    assert (predict(session, trained.model, shown).labels == 4).mean() < 0.05
    assert (predict(session, trained.model, test).labels == test.labels).mean() > 0.9
    came_back = (verdict.status == RELABELED) & is_poisoned
    assert (verdict.suggested_label[came_back] == dirty.truth.true_labels[came_back]).mean() > 0.8


def test_a_killed_run_ends_as_an_unbroken_one_does(tmp_path: Path, on_dirty: Whole) -> None:
    """With samples that come back, which must do so alike before and after the kill."""
    assert (on_dirty.trained.verdict.status == RELABELED).any()
    ends = (SEARCHED, ("training", 1), ("training", 3))
    assert_alike(killed_and_resumed(tmp_path / "run", on_dirty.samples, RECIPE, *ends, method=METHOD), on_dirty.trained)


def test_a_killed_run_on_clean_data_goes_on_from_the_same_warm_up(tmp_path: Path, on_clean: Whole) -> None:
    assert not on_clean.trained.verdict.isolated.any()
    resumed = killed_and_resumed(tmp_path / "run", on_clean.samples, RECIPE, SEARCHED, method=METHOD)
    assert_alike(resumed, on_clean.trained)


def test_the_delivered_network_starts_afresh_whether_or_not_anything_was_caught(whole: Whole) -> None:
    """What was missed is among the hard samples that the warm-up repeats: its weights would carry it over."""
    build, last = builder(whole.samples), whole.journal.last
    # Steps too small to change a weight: what is delivered is what the main training began with.
    recipe = Recipe(epochs=1, seed=0, learning_rate=1e-12)
    trained = METHOD.train(whole.samples, build, recipe, journal=Watched(begin=last[SEARCHED[0]]))
    assert trained.verdict.poisoned == whole.trained.verdict.poisoned
    [warm], fresh = last["warm-up"]["modules"], seeded(build, number(0, Stream.WEIGHTS, 0)).state_dict()
    for name, parameter in trained.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), fresh[name], rtol=1e-5, atol=1e-7)
    assert any(not value.equal(warm[f"network.{name}"]) for name, value in fresh.items())


def test_the_main_head_sees_as_many_samples_whatever_is_kept_from_it(whole: Whole) -> None:
    """The main training of so few steps is as long as a plain one."""
    n, trained = len(whole.samples), whole.journal.trained
    assert trained[0] == n - whole.trained.verdict.isolated.sum()
    assert max(trained) <= n
    share = RECIPE.epochs * n
    assert share - Session(RECIPE, n, images=True).batch_size < sum(trained) <= share + 1


def test_a_long_training_gives_up_a_fifth_at_most(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("antibackdoor.defenses.dual_head.LEAST_STEPS", 0)
    journal = Watched(begin=whole.journal.last[SEARCHED[0]])
    METHOD.train(whole.samples, builder(whole.samples), RECIPE, journal=journal)
    share = 0.8 * RECIPE.epochs * len(whole.samples)
    assert share - Session(RECIPE, len(whole.samples), images=True).batch_size < sum(journal.trained) <= share + 1


def test_the_search_alone_finds_what_training_finds(on_dirty: Whole) -> None:
    caught, _ = METHOD.search.search(on_dirty.samples, builder(on_dirty.samples), RECIPE)
    np.testing.assert_array_equal(caught.isolated, on_dirty.trained.verdict.isolated)


def test_clean_data_are_left_alone(on_clean: Whole) -> None:
    trained = on_clean.trained
    assert trained.verdict.poisoned is False
    assert not trained.verdict.isolated.any()
    np.testing.assert_array_equal(trained.verdict.suggested_label, on_clean.samples.labels)
