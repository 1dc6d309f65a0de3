"""Poison that the search believed and let go, until a trained network seconded it."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from watched_runs import BEGUN_AGAIN, RECIPE, SEARCHED, Watched, assert_alike, builder, killed_and_resumed

from antibackdoor.app.demo import digits
from antibackdoor.attacks import BadNets, Poisoned, poison
from antibackdoor.data.samples import FloatArray, Samples
from antibackdoor.defenses import DEFENSES, DualHead
from antibackdoor.detectors import ConfusionTraining
from antibackdoor.models.two_head import TwoHead
from antibackdoor.protocols import Trained
from antibackdoor.search.attempts import spring, spring_believed
from antibackdoor.search.caught import Caught
from antibackdoor.search.post_training import Looked, look_again
from antibackdoor.search.search import TrapSettings
from antibackdoor.statistics.populations import Populations
from antibackdoor.training.history import LossHistory
from antibackdoor.training.session import Feed, Session
from antibackdoor.training.trainer import Trainer

HARD = ConfusionTraining(power=False, least_depth=1e6, by_features=False, across_labels=False, by_both=False)


class LetGo(NamedTuple):
    """Digits with BadNets, and an unbroken training on them."""

    data: Poisoned
    trained: Trained
    journal: Watched


def let_go(
    session: Session, samples: Samples, feed: Feed, net: TwoHead, settings: TrapSettings, history: LossHistory
) -> Caught:
    """In place of `spring`: believes what is there, but no evidence is enough."""
    return spring(session, samples, feed, net, HARD.settings(samples.n_classes), history)


def only_features(*asked: Any) -> Looked:
    """In place of `look_again`: no strangers, nobody is set apart."""
    looked = look_again(*asked)
    nobody = looked.strangers.flagged & False
    return looked._replace(strangers=Populations(nobody, (), {}, nobody), apart=np.zeros_like(looked.apart))


@pytest.fixture(scope="module")
def believed() -> Iterator[LetGo]:
    data, journal = poison(digits(0).train, BadNets(), seed=0, rate=0.1), Watched()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("antibackdoor.detectors.confusion.spring", let_go)
        patch.setattr("antibackdoor.defenses.dual_head.look_again", only_features)
        yield LetGo(data, DualHead().train(data.samples, builder(data.samples), RECIPE, journal=journal), journal)


def test_a_trained_network_seconds_whom_the_search_let_go(believed: LetGo) -> None:
    data, trained, journal = believed
    is_poisoned, isolated = data.truth.is_poisoned, trained.verdict.isolated
    assert trained.verdict.target_labels == (0,)
    assert (is_poisoned & ~isolated).sum() <= 2 and (isolated & ~is_poisoned).sum() <= 3
    assert trained.facts.n_main_trainings == 2 and trained.facts.n_found_late == 0
    assert trained.facts.false_alarm_probability < 0.05
    n = len(data.samples)
    assert journal.trained[0] == n and n - isolated.sum() in journal.trained, "the training began anew"


def test_a_run_killed_around_it_ends_as_an_unbroken_one(tmp_path: Path, believed: LetGo) -> None:
    ends = (SEARCHED, ("training", 3), BEGUN_AGAIN, ("training 2", 2))
    assert_alike(killed_and_resumed(tmp_path / "run", believed.data.samples, RECIPE, *ends), believed.trained)


class Asked(NamedTuple):
    """Digits with BadNets, a search that let go of what it believed, and the features of a network trained on them."""

    data: Poisoned
    session: Session
    feed: Feed
    net: TwoHead
    caught: Caught
    middle: NDArray[np.float32]
    settings: TrapSettings

    def seconded(self, middle: NDArray[np.float32], caught: Caught, apart: FloatArray | None = None) -> Caught | None:
        """What `spring_believed` says; the second head is left as it was if that is nothing."""
        net = copy.deepcopy(self.net)
        feed, samples = self.feed, self.data.samples
        again = spring_believed(self.session, samples, feed, net, self.settings, middle, caught, apart=apart)
        before = self.net.state_dict()
        is_as_it_was = all(value.equal(before[name]) for name, value in net.state_dict().items())
        assert is_as_it_was == (again is None)
        return again


@pytest.fixture(scope="module")
def asked() -> Asked:
    data = poison(digits(0).train, BadNets(), seed=0, rate=0.1)
    samples, build = data.samples, builder(data.samples)
    trainer = Trainer(samples, RECIPE)
    session, feed = trainer.session, trainer.feed._replace(augmentations=())
    caught, _, net = HARD.find(trainer, build)
    assert not caught.isolated.any() and len(caught.rounds) > 2, "or the tests show nothing"
    model = session.prepare(DEFENSES["none"]().train(samples, build, RECIPE).model)
    middle = look_again(session, feed, model, net.attach, samples.originals).middle
    settings = replace(HARD.settings(samples.n_classes), by_both=True)
    return Asked(data, session, feed, net, caught, middle, settings)


def test_whom_the_network_sets_apart_is_asked_about_as_well(asked: Asked) -> None:
    """Found by that if their content is that of others; honest ones who are set apart are no poison."""
    labels, is_poisoned = asked.data.samples.labels, asked.data.truth.is_poisoned
    unbelieved = replace(asked.caught, rounds=asked.caught.rounds[:0])
    some = (labels == 5) & (np.cumsum(labels == 5) <= 60)
    apart = 3.0 + np.arange(len(labels)) / len(labels)
    odds = np.where(some, apart, -5.0)
    assert asked.seconded(asked.middle, unbelieved, apart=odds) is None
    odds = np.where(is_poisoned, apart, odds)
    again = asked.seconded(asked.middle, unbelieved, apart=odds)
    assert (
        again is not None
        and again.ways == ("class mixture of those set apart, after training",)
        and again.labels == (0,)
    )
    assert (is_poisoned & ~again.isolated).sum() <= 2 and (again.isolated & ~is_poisoned).sum() <= 3


def test_features_of_others_second_nobody(asked: Asked) -> None:
    """What the network says of each sample is dealt out at random."""
    dealt = np.random.default_rng(0).permutation(len(asked.middle))
    assert asked.seconded(asked.middle[dealt], asked.caught) is None
    assert asked.seconded(asked.middle, asked.caught) is not None
