"""Which isolated samples come back, and under which label."""

from dataclasses import replace

import numpy as np
from conftest import pictures
from torch import Tensor, nn

from antibackdoor.data.samples import BoolArray, IntArray
from antibackdoor.defenses.recovery import recover, untaught
from antibackdoor.search.caught import Caught, without
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.session import Feed, Session


class Sure(nn.Module):
    """Says the class of the band of rows that is brightest, as `pictures` are made."""

    def forward(self, inputs: Tensor) -> Tensor:
        bands = inputs.mean(dim=(1, 3)).unflatten(1, (4, -1)).mean(2)
        return 100 * bands


def shown(labels: IntArray, isolated: BoolArray) -> tuple[Session, Feed, Caught]:
    samples = replace(pictures(len(labels), 4), labels=labels)
    session = Session(Recipe(precision="fp32"), len(samples), images=True)
    nothing, per_label, no_rounds = np.zeros(len(labels)), np.full(4, np.nan), np.zeros((0, 0), dtype=np.float32)
    evidence = (per_label, per_label, per_label)
    caught = Caught(
        isolated, isolated, isolated & False, nothing, isolated, isolated & False, *evidence, (0,), 0, no_rounds
    )
    return session, session.feed(samples), caught


def nobody(caught: Caught) -> BoolArray:
    return caught.isolated & False


def test_mislabelled_samples_come_back_under_what_they_are() -> None:
    truth = np.arange(400) % 4
    isolated = (truth != 0) & (np.arange(400) < 100)
    given = np.where(isolated, 0, truth)
    session, feed, caught = shown(given, isolated)
    back = recover(session, feed, Sure(), caught, nobody(caught), None, 0.9)
    kept = untaught(isolated, given, 0)
    assert kept.sum() == 37, "half of 75"
    np.testing.assert_array_equal(back.labels, np.where(kept, given, truth))
    assert not back.unchanged.any() and (back.weights == 1).all()


def test_samples_that_are_what_they_are_labelled_as_come_back_so() -> None:
    truth = np.arange(400) % 4
    isolated = (truth == 0) & (np.arange(400) < 200)
    session, feed, caught = shown(truth, isolated)
    stuck = isolated & (np.arange(400) < 100)
    back = recover(session, feed, Sure(), replace(caught, removable=isolated & ~stuck), nobody(caught), None, 0.9)
    np.testing.assert_array_equal(back.labels, truth)
    np.testing.assert_array_equal(back.unchanged, isolated & ~stuck)
    # The 25 that stay out are stood in for by the 50 that were never isolated and the 25 that came back.
    np.testing.assert_allclose(back.weights[(truth == 0) & ~isolated], 1 + 25 / 75)
    assert (back.weights[truth != 0] == 1).all()


def test_honest_samples_among_poison_of_several_classes_do_not_make_its_label_true() -> None:
    """Of what was isolated under label 0, 24 of 60 are of class 0 and 12 of each other class."""
    truth, rows = np.arange(400) % 4, np.arange(400)
    isolated = ((truth == 0) & (rows < 96)) | ((truth != 0) & (rows < 48))
    given = np.where(isolated, 0, truth)
    session, feed, caught = shown(given, isolated)
    back = recover(session, feed, Sure(), caught, nobody(caught), None, 0.9)
    np.testing.assert_array_equal(back.labels, np.where(untaught(isolated, given, 0), given, truth))
    assert not back.unchanged.any() and not back.cleared.any()


def test_what_the_late_look_took_along_comes_back_as_it_is() -> None:
    """Half of the samples that it found belong to their label; beside them stand some that the search found."""
    truth = np.arange(400) % 4
    late, by_search = np.arange(400) < 80, (truth == 1) & (np.arange(400) >= 300)
    session, feed, caught = shown(np.where(late & (truth < 2), 0, truth), late | by_search)
    given = feed.labels.numpy()
    back = recover(session, feed, Sure(), caught, late, None, 0.9)
    np.testing.assert_array_equal(back.cleared, late & (truth == given))
    np.testing.assert_array_equal(back.labels, np.where(untaught(caught.isolated, given, 0), given, truth))
    np.testing.assert_array_equal(back.unchanged, by_search)
    wary = recover(session, feed, Sure(), caught, late, None, 1.0)
    assert (wary.cleared <= back.cleared).all()


def test_what_a_search_across_labels_took_along_comes_back_as_it_is() -> None:
    """Label 0 holds samples of class 1 and a few of its own; in label 3 they are its own, a clean-label poison."""
    truth = np.arange(400) % 4
    isolated = np.arange(400) < 100
    given = np.where(isolated & (truth == 1), 0, truth)
    isolated &= (given == 3) | (truth == 1) | ((truth == 0) & (np.arange(400) < 40))
    session, feed, caught = shown(given, isolated)
    back = recover(session, feed, Sure(), replace(caught, across=caught.isolated), nobody(caught), None, 0.9)
    np.testing.assert_array_equal(back.cleared, isolated & (given == 0) & (truth == 0))
    np.testing.assert_array_equal(back.labels, np.where(untaught(isolated, given, 0), given, truth))
    np.testing.assert_array_equal(back.unchanged, isolated & (given == 3))
    by_label = recover(session, feed, Sure(), caught, nobody(caught), None, 0.9)
    assert not by_label.cleared.any(), "what a search by label finds is sharper"
    some = replace(caught, across=isolated & (given == 3))
    assert not recover(session, feed, Sure(), some, nobody(caught), None, 0.9).cleared.any(), "also beside the other"


def test_a_label_of_which_everything_comes_back_is_no_target() -> None:
    given = np.arange(400) % 4
    isolated = given < 2
    _, _, caught = shown(given, isolated)
    caught = without(replace(caught, labels=(0, 1)), given == 0, given)
    assert caught.labels == (1,)
    np.testing.assert_array_equal(caught.isolated, given == 1)
    assert without(caught, given == 1, given).labels == ()


def test_some_of_what_was_isolated_under_each_label_are_never_taught() -> None:
    given = np.repeat([0, 1, 2, 3], 1000)
    isolated = np.arange(4000) % 1000 < np.repeat([1000, 100, 3, 0], 1000)
    kept = untaught(isolated, given, 1)
    assert not (kept & ~isolated).any()
    assert np.bincount(given[kept], minlength=4).tolist() == [200, 50, 1, 0]
    assert (kept != untaught(isolated, given, 2)).any()
    np.testing.assert_array_equal(kept, untaught(isolated, given, 1))
