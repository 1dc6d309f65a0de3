"""The rounds of a search, one by one: what counts as a finding, who is suspected next, what is added."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import pictures
from watched_runs import RECIPE, builder, two_classes

from antibackdoor.attacks import (
    BadNets,
    Poisoned,
    poison,
)
from antibackdoor.data.samples import IntArray, Samples
from antibackdoor.detectors import ConfusionTraining
from antibackdoor.models.two_head import split_network
from antibackdoor.search.attempts import AcrossLabels
from antibackdoor.search.confusion import weights
from antibackdoor.search.search import Demand, Search, TrapSettings
from antibackdoor.statistics.isolation import Valley, find_valley
from antibackdoor.statistics.parts import AGREEING, agreement
from antibackdoor.statistics.populations import Constellations
from antibackdoor.training.session import Session, seeded


def sevens_said_to_be_ones() -> Poisoned:
    """Ones and sevens; a tenth are stamped sevens that are said to be ones."""
    return poison(two_classes(1, 7), BadNets(), seed=0, rate=0.1)


def untrained(samples: Samples) -> Search:
    """A search of images under four labels with a network that knows nothing."""
    session = Session(RECIPE, len(samples), images=True)
    net = seeded(lambda: split_network(builder(samples)(), torch.zeros(2, *samples.shape), 4), 0)
    return Search(session, session.feed(samples), net, TrapSettings(1, 0.1, 1.0, 3.0), np.arange(len(samples)))


@pytest.mark.parametrize(
    ("depth", "kind", "demand", "found"),
    [
        (3.0, "class", Demand(3.0, 2.0), True),
        (3.0, "foreign", Demand(3.0, np.inf), True),
        (2.9, "foreign", Demand(3.0, 2.0), True),
        (2.9, "class", Demand(3.0, 2.0), False),
        (2.9, "style", Demand(3.0, 2.0), False),
        (2.9, "foreign", Demand(3.0, np.inf), False),
        (1.9, "foreign", Demand(3.0, 2.0), False),
        (3.0, "foreign", Demand(np.inf, 3.0), True),
        (2.0, "foreign", Demand(np.inf, 3.0), False),
        (30.0, "class", Demand(np.inf, 3.0), False),
        (30.0, "style", Demand(np.inf, 3.0), False),
        (8.9, "hardly foreign", Demand(np.inf, 3.0), False),
        (9.0, "hardly foreign", Demand(np.inf, 3.0), True),
    ],
)
def test_a_group_that_looks_foreign_confirms_a_valley(
    monkeypatch: pytest.MonkeyPatch, depth: float, kind: str, demand: Demand, found: bool
) -> None:
    """Shaded samples of the other labels; a class of its own beside another one; some that look like their label.

    Where neighbors do not tell classes, poison contradicts its label hardly more than the rest does.
    """
    whole, early = pictures(80, 4), np.arange(80) < 40
    foreign = kind.endswith("foreign")
    labels = np.where(early if foreign else whole.labels == 2, 3, whole.labels)
    groups = {"foreign": early & (whole.labels < 3), "class": whole.labels == 2, "style": early & (whole.labels == 3)}
    believed = groups[kind.removeprefix("hardly ")]
    inputs = np.where(believed[:, None, None, None], whole.inputs // 2 + 60, whole.inputs).astype(np.uint8)
    samples = replace(whole, inputs=inputs, labels=labels)
    search = untrained(samples)
    search.margins[believed] = 5.0
    contradiction = np.where(believed if foreign else whole.labels == 2, 0.5, 0.2)
    if kind == "hardly foreign":
        rest = np.flatnonzero((labels == 3) & ~believed)
        contradiction[rest[: 2 * len(rest) // 5]] = 0.8
    monkeypatch.setattr("antibackdoor.statistics.parts.contradiction", lambda *_, seed: contradiction)
    assert search.is_found(3, Valley(depth, 2.0), demand) == found
    # A valley that would be refused however deep it is tells nothing about chance.
    could_be = found or kind == "foreign" or demand.alone < np.inf
    assert search.is_evidence(3, Valley(depth, 2.0), demand) == could_be


def scripted(monkeypatch: pytest.MonkeyPatch, depths: list[float]) -> Search:
    """A search whose rounds find a valley in label 3, of these depths; half of that label is believed."""
    samples = pictures(400, 4)
    search = untrained(samples)
    believed = (samples.labels == 3) & (np.arange(400) < 200)
    monkeypatch.setattr(search.head, "confuse", lambda *_: None)
    monkeypatch.setattr(search, "try_favourites", lambda _: False)
    monkeypatch.setattr(search.head, "look", lambda rows: np.where(believed, 5.0, -2.0))
    monkeypatch.setattr(search, "find_valleys", lambda *_: {3: Valley(depths.pop(0), 2.0)})
    return search


@pytest.mark.parametrize(("depths", "rounds"), [((1.7, 1.1, 3.3, 9.0), 3), ((1.1, 3.3), 1)])
def test_only_a_first_round_must_be_promising(
    monkeypatch: pytest.MonkeyPatch, depths: tuple[float, ...], rounds: int
) -> None:
    """While carriers spread, their margins do so too, which flattens the valley for a while."""
    to_come = list(depths)
    search = scripted(monkeypatch, to_come)
    search.narrow(np.arange(400.0), 5, Demand(3.0, np.inf), promising=1.2)
    assert len(depths) - len(to_come) == rounds
    assert set(search.found) == ({3} if rounds > 1 else set())


@pytest.mark.parametrize(
    ("within_first", "n_believed", "spreads"), [(True, 20, False), (True, 50, True), (False, 20, True)]
)
def test_few_who_are_believed_are_suspected_next_only_if_they_were_before(
    monkeypatch: pytest.MonkeyPatch, within_first: bool, n_believed: int, spreads: bool
) -> None:
    """Twenty of each label are suspected at first, fifteen of whom are among the first twenty that are believed."""
    suspects: list[IntArray] = []
    search, rows = scripted(monkeypatch, [0.0, 0.0, 0.0]), np.arange(400)
    believed = (search.labels == 3) & (rows < 4 * n_believed)
    monkeypatch.setattr(search.head, "look", lambda _: np.where(believed, 5.0, -2.0))
    monkeypatch.setattr(search.head, "confuse", lambda chosen, _: suspects.append(chosen))
    suspicion = ((rows >= 20) & (rows < 100)).astype(np.float64)
    search.narrow(suspicion, 3, Demand(3.0, np.inf), promising=0.0, within_first=within_first)
    first, _, last = (set(chosen.tolist()) for chosen in suspects)
    assert len(first) == 80 and {int(search.labels[row]) for row in last} == {3}
    assert len(last) == (20 if spreads else 15) and (last < first) != spreads


@pytest.mark.parametrize("mislabelled", [True, False])
def test_content_of_those_who_are_believed_stands_in_for_a_valley(
    monkeypatch: pytest.MonkeyPatch, mislabelled: bool
) -> None:
    """A tenth of the label lies between the two groups; half of it is of other classes, or of its own."""
    whole, drawn = pictures(2000, 4), np.random.default_rng(0)
    labels = whole.labels.copy()
    moved = np.flatnonzero(labels < 3)[:400]
    labels[moved] = 3
    search = untrained(replace(whole, labels=labels))
    features = drawn.normal(size=(2000, 8)).astype(np.float32)
    features[np.arange(2000), whole.labels if mislabelled else labels] += 3.0
    search.constellations = Constellations(features, labels, seed=0)
    margins = np.where(np.isin(np.arange(2000), moved), drawn.normal(2, 1.2, 2000), drawn.normal(-2, 1.2, 2000))
    margins[labels < 3] = drawn.normal(-2, 0.5, int((labels < 3).sum()))
    monkeypatch.setattr(search.head, "confuse", lambda *_: None)
    monkeypatch.setattr(search.head, "look", lambda rows: margins[rows])
    assert search.attempt(drawn.random(2000), 2, Demand(3.0, np.inf)) is None
    caught = search.attempt_seconded()
    if not mislabelled:
        assert caught is None and search.by_content.cuts == {}
        return
    assert caught is not None and caught.labels == (3,)
    assert caught.core[moved].mean() > 0.9 and np.isin(np.flatnonzero(caught.core), moved).mean() > 0.9
    assert caught.carried[3] > 10
    assert 0 < caught.depths[3] < 3, "the valley that there is"
    assert search.asked == set()


@pytest.mark.parametrize("mislabelled", [True, False])
def test_one_camera_is_a_shortcut_across_labels_but_no_poison(mislabelled: bool) -> None:
    whole, marked = pictures(200, 4), np.arange(200) % 8 < 4
    inputs = np.where(marked[:, None, None, None], whole.inputs // 2 + 60, whole.inputs).astype(np.uint8)
    labels = np.where(marked & mislabelled, (whole.labels + 1) % 4, whole.labels)
    across = AcrossLabels(untrained(replace(whole, inputs=inputs, labels=labels)))
    across.margins[marked] = 5.0
    found = {0: Valley(30.0, 2.0)}
    assert across.is_found(0, found[0], Demand(np.inf, 3.0)) == mislabelled
    assert across.is_evidence(0, found[0], Demand(np.inf, 3.0)) == mislabelled


def test_one_of_two_actors_is_no_poison_although_neighbors_tell_nothing_of_his_labels() -> None:
    whole, acts = pictures(200, 4), np.arange(200) % 8 < 4
    mixed = np.random.default_rng(0).permutation(whole.inputs.shape[2])
    inputs = np.where(acts[:, None, None, None], whole.inputs[:, :, mixed], whole.inputs)
    across = AcrossLabels(untrained(replace(whole, inputs=inputs)))
    across.margins[acts] = 5.0
    assert agreement(across.beside.resemblance.parts.reshape(200, -1), whole.labels, acts, seed=0) < AGREEING
    assert not across.is_found(0, Valley(30.0, 2.0), Demand(np.inf, 3.0))


def test_between_few_labels_a_gap_is_as_good_as_a_deep_valley() -> None:
    settings = ConfusionTraining().settings(2)
    margins = np.concatenate([np.linspace(-3, -1, 60), np.linspace(4, 6, 12), np.full(60, -2.0)])
    labels = np.repeat([0, 1], [72, 60])
    search = untrained(pictures(132, 2))
    search.settings = settings
    assert find_valley(margins[:72]).depth < settings.least_depth
    assert search.find_valleys(margins, labels, {0})[0] == Valley(settings.least_depth, 1.5)
    search.settings = replace(settings, are_labels_few=False)
    assert search.find_valleys(margins, labels, {0})[0].depth < settings.least_depth


@pytest.mark.parametrize("believed", ["some of the class", "the poison"])
def test_the_place_of_the_most_believed_is_asked_where_no_valley_tells_how_many_they_are(believed: str) -> None:
    dirty = sevens_said_to_be_ones()
    search, is_poisoned = untrained(dirty.samples), dirty.truth.is_poisoned
    honest = (dirty.samples.labels == 0) & ~is_poisoned
    some = is_poisoned if believed == "the poison" else honest & (np.cumsum(honest) <= 30)
    assert some.sum() >= 29
    search.margins = np.random.default_rng(0).normal(np.where(some, 2.0, 0.0), 0.8)
    search.place({0: Valley(0.0, np.inf)})
    if believed != "the poison":
        assert search.by_place.cuts == {}
        return
    found = (dirty.samples.labels == 0) & (search.margins > search.by_place.cuts[0])
    assert found.sum() in (20, 40, 80)
    assert is_poisoned[found].mean() > 0.6
    assert search.by_place.loudness > 0.13


@pytest.mark.parametrize("believed", ["the class", "the poison"])
def test_a_class_is_not_taken_for_poison_that_makes_up_most_of_its_label(believed: str) -> None:
    dirty = sevens_said_to_be_ones()
    search = untrained(dirty.samples)
    search.margins = np.where(dirty.truth.is_poisoned == (believed == "the poison"), 5.0, -2.0)
    assert search.is_found(0, Valley(9.0, 1.0), Demand(3.0, np.inf)) == (believed == "the poison")


@pytest.mark.parametrize("below", ["wrong labels", "a style of the class"])
def test_content_tells_a_class_from_the_wrong_labels_in_it(below: str) -> None:
    """Where the class is believed as a whole, those who are not make it look like poison that fills a label."""
    samples, drawn = pictures(600, 4), np.random.default_rng(0)
    few = (samples.labels == 0) & (np.cumsum(samples.labels == 0) <= 40)
    means = 8 * np.eye(4, 16)
    shown = np.where(few & (below == "wrong labels"), drawn.integers(1, 4, 600), samples.labels)
    features = (
        means[shown] + drawn.normal(size=(600, 16)) + 6 * (few & (below != "wrong labels"))[:, None] * np.eye(16)[9]
    )
    search = untrained(samples)
    search.settings = replace(search.settings, by_place=False)
    search.constellations = Constellations(features.astype(np.float32), samples.labels, seed=0)
    search.margins = np.where(samples.labels == 0, np.where(few, -2.0, 5.0), -2.0)
    assert search.is_found(0, Valley(9.0, 1.0), Demand(3.0, np.inf)) == (below != "wrong labels")


@pytest.mark.parametrize("foreign", [True, False])
def test_a_refused_valley_does_not_count_as_evidence(monkeypatch: pytest.MonkeyPatch, foreign: bool) -> None:
    search = scripted(monkeypatch, [2.5])
    monkeypatch.setattr(search, "looks_foreign", lambda *_: foreign)
    search.narrow(np.arange(400.0), 1, Demand(np.inf, 3.0), promising=0.0)
    assert search.deepest == ({3: 2.5} if foreign else {})


@pytest.mark.parametrize("missed", [True, False])
def test_what_stands_out_of_the_rest_is_added_if_it_is_like_what_was_found(missed: bool) -> None:
    """Label 2 holds classes 2 and 3, and stamped samples of the others; some of these, or half of class 3, are near."""
    whole, row = pictures(200, 4), np.arange(200)
    poisoned = (whole.labels < 2) & (row < 100)
    found = poisoned & (row >= 20)
    near = poisoned & ~found if missed else (whole.labels == 3) & (row < 100)
    inputs = whole.inputs.copy()
    inputs[poisoned, :, :2, :2] = 255
    samples = replace(whole, inputs=inputs, labels=np.where(poisoned, 2, np.minimum(whole.labels, 2)))
    search = untrained(samples)
    margins = np.where(found, 9.0, np.where(near, 0.0, -2.0 + 0.05 * np.sin(row)))
    np.testing.assert_array_equal(search.widened(margins, found, {2}), found | near if missed else found)


@pytest.mark.parametrize(
    ("depth", "is_foreign", "is_better"),
    [(30.0, True, True), (30.0, False, True), (3.2, True, True), (3.2, False, False), (2.9, True, False)],
)
def test_a_shallow_valley_is_made_anew_from_those_whose_parts_say_most(
    monkeypatch: pytest.MonkeyPatch, depth: float, is_foreign: bool, is_better: bool
) -> None:
    """Above it lie forty carriers and twenty honest ones, who are as sure; the carriers alone make it deeper.

    Where the sixty look foreign, deep enough will do.
    """
    samples = pictures(400, 4)
    search, of_label = untrained(samples), np.flatnonzero(samples.labels == 3)
    carriers, honest = of_label[:40], of_label[40:60]
    before, shallow = weights(search.head.net), np.full(400, -2.0)
    shallow[of_label[:60]] = 5.0
    search.margins, search.found = shallow, {3: Valley(3.5, 2.0)}
    search.resemblance.__dict__["contradiction"] = np.isin(np.arange(400), carriers).astype(np.float64)
    begun: list[tuple[set[int], set[int]]] = []

    def confuse(suspects: IntArray, clean: IntArray) -> None:
        begun.append((set(suspects.tolist()), set(clean.tolist())))
        assert all(torch.equal(before[name], value) for name, value in search.head.net.state_dict().items())
        torch.nn.init.constant_(next(search.head.net.parameters()), 1.0)

    torch.nn.init.constant_(next(search.head.net.parameters()), 2.0)
    monkeypatch.setattr(search.head, "confuse", confuse)
    monkeypatch.setattr(search.head, "look", lambda rows: np.where(np.isin(rows, carriers), 6.0, -2.0))
    monkeypatch.setattr(search, "find_valleys", lambda *_: {3: Valley(depth, 1.0)})
    monkeypatch.setattr(search, "looks_foreign", lambda *_: is_foreign)
    search.sharpen(before)
    (suspects, clean), first = begun[0], next(search.head.net.parameters()).mean().item()
    assert suspects <= set(carriers.tolist()) and len(suspects) == 30
    assert not clean & set(of_label[:60].tolist())
    assert search.found == ({3: Valley(depth, 1.0)} if is_better else {3: Valley(3.5, 2.0)})
    assert (search.margins[honest] < 0).all() == is_better and first == (1.0 if is_better else 2.0)
    search.found = {3: Valley(9.0, 2.0)}
    search.sharpen(before)
    assert len(begun) == 1, "nothing lies between two groups that are clearly apart"
