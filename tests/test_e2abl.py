"""E2ABL on real digits, poisoned: what is found, what is delivered."""

from collections.abc import Callable

import numpy as np
import pytest
from torch import nn

from antibackdoor.attacks import BadNets, Poisoned, poison, trigger_test_set
from antibackdoor.backbones import build_backbone
from antibackdoor.defenses import E2ABL, PublishedE2ABL
from antibackdoor.demo import digits
from antibackdoor.models import channel_statistics, normalized
from antibackdoor.recipe import Recipe
from antibackdoor.samples import Samples
from antibackdoor.session import Session
from antibackdoor.training import predict

RECIPE = Recipe(epochs=6, seed=0)


def builder(samples: Samples) -> Callable[[], nn.Module]:
    mean, std = channel_statistics(samples)
    return lambda: normalized(build_backbone("wrn-10-1", samples.shape, samples.n_classes), mean, std)


@pytest.fixture(scope="module")
def dirty() -> Poisoned:
    return poison(digits(0).train, BadNets(), seed=0, rate=0.1, target_label=4)


def test_the_poison_is_isolated_and_the_delivered_model_does_not_know_the_trigger(dirty: Poisoned) -> None:
    trained = E2ABL().train(dirty.samples, builder(dirty.samples), RECIPE)
    is_poisoned = dirty.truth.is_poisoned
    assert trained.backdoor_labels == (4,) and trained.poisoned
    assert (is_poisoned & ~trained.isolated).sum() == 0
    assert (trained.isolated & ~is_poisoned).sum() <= 5
    test = digits(0).test
    assert test is not None
    shown = trigger_test_set(test, dirty.trigger, dirty.plan)
    session = Session(RECIPE, len(shown), images=True)
    assert (predict(session, trained.model, shown).labels == 4).mean() < 0.05
    assert (predict(session, trained.model, test).labels == test.labels).mean() > 0.9
    came_back = trained.recovered & is_poisoned
    assert (trained.labels[came_back] == dirty.truth.true_labels[came_back]).mean() > 0.8


def test_the_search_alone_finds_what_training_finds(dirty: Poisoned) -> None:
    build = builder(dirty.samples)
    caught, _ = E2ABL().isolate(dirty.samples, build, RECIPE)
    np.testing.assert_array_equal(caught.isolated, E2ABL().train(dirty.samples, build, RECIPE).isolated)


def test_clean_data_are_left_alone() -> None:
    samples = digits(1).train
    trained = E2ABL().train(samples, builder(samples), RECIPE)
    assert trained.poisoned is False
    assert not trained.isolated.any() and not trained.recovered.any()
    np.testing.assert_array_equal(trained.labels, samples.labels)


def test_the_published_form_is_at_hand() -> None:
    published = E2ABL.as_published()
    assert isinstance(published, PublishedE2ABL)
    assert (published.isolation_rate, published.recovery_rate, published.warmup_epochs) == (0.2, 0.01, 2)
