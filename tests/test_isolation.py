"""From margins to a partition, by hand-computed numbers and synthetic distributions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from antibackdoor.statistics.isolation import (
    BELIEVED_BY_CHANCE,
    Valley,
    above_valleys,
    believed_most,
    find_favourites,
    find_gap,
    find_valley,
    first_suspicion,
    highest,
    label_rows,
    loss_drop,
    rank,
    rank_within,
    sustained_drop,
    widen,
)
from antibackdoor.training.history import LossHistory


def test_rank() -> None:
    assert rank(np.array([3.0, 1.0, 2.0, 1.0])).tolist() == [0.75, 0.0, 0.5, 0.25]
    assert rank(np.zeros(0)).tolist() == []
    labels = np.array([0, 1, 0, 1])
    assert rank_within(np.array([3.0, 9.0, 2.0, 1.0]), labels).tolist() == [0.5, 0.5, 0.0, 0.0]


def test_label_rows() -> None:
    assert label_rows(np.zeros(0, dtype=np.int64)) == {}
    rows = label_rows(np.array([2, 0, 2, 2]))
    assert {label: part.tolist() for label, part in rows.items()} == {0: [1], 2: [0, 2, 3]}


def test_highest() -> None:
    scores = np.array([1.0, 3.0, 2.0, 3.0, 0.0])
    assert np.flatnonzero(highest(scores, 0.4)).tolist() == [1, 3]
    assert np.flatnonzero(highest(scores, 0.2)).tolist() == [1]  # row order
    losses, order = np.array([0, 1.0, 0, 0.5, 0]), np.array([4, 3, 2, 1, 0])
    assert np.flatnonzero(highest(scores, 0.2, ties=(losses,))).tolist() == [3]  # the lower loss
    assert np.flatnonzero(highest(scores, 0.2, ties=(np.zeros(5), order))).tolist() == [3]  # the second one
    assert np.flatnonzero(highest(scores, 0.2, ties=(losses[::-1], order))).tolist() == [1]  # the first counts first
    assert highest(scores, 0.0, at_least=3).sum() == 3
    assert highest(scores, 0.0).sum() == 0 and highest(scores, 1.0).all()
    assert highest(scores, 0.1, at_least=50).all()


def two_groups(n_lower: int, n_upper: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(-2.2, 0.5, n_lower), rng.normal(8, 1.5, n_upper)])


@pytest.mark.parametrize("n_upper", [30, 50, 200])
def test_two_groups_have_a_deep_valley(n_upper: int) -> None:
    margins = two_groups(400, n_upper)
    valley = find_valley(margins)
    assert valley.depth > 2
    assert -1 < valley.cut < 6
    assert (margins[400:] > valley.cut).mean() > 0.95


@pytest.mark.parametrize("seed", range(5))
def test_one_group_has_none(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for margins in (rng.normal(-2.2, 0.6, 300), rng.normal(5, 2, 300), rng.normal(-3, 3, 300)):
        assert find_valley(margins).depth < 2


def test_an_upper_group_must_believe_its_label() -> None:
    rng = np.random.default_rng(0)
    margins = np.concatenate([rng.normal(-9, 0.4, 200), rng.normal(-3, 0.4, 200)])
    assert find_valley(margins) == Valley(0.0, np.inf)
    assert find_valley(margins + 6).depth > 10


def test_few_margins_have_no_shape() -> None:
    assert find_valley(two_groups(10, 9)) == Valley(0.0, np.inf)
    assert find_valley(np.zeros(0)) == Valley(0.0, np.inf)
    assert find_valley(two_groups(50, 4)).depth < 2  # fewer than the smallest group


@pytest.mark.parametrize("n", [30, 60, 100])
def test_chance_makes_no_valley(n: int) -> None:
    """Margins of small data lie scattered; the deepest gap among them is not to pass for one between two groups."""
    rng = np.random.default_rng(n)
    assert max(find_valley(rng.uniform(-3, 9, n)).depth for _ in range(200)) < 2


@pytest.mark.parametrize(
    ("n_upper", "distance", "is_set_apart"),
    [(10, 8, True), (30, 8, True), (9, 8, False), (30, 4, False), (71, 8, False)],
)
def test_a_gap_sets_a_group_apart(n_upper: int, distance: float, is_set_apart: bool) -> None:
    """Not of fewer than ten, nor by less than four nats, nor more than half of the label."""
    lower, upper = np.linspace(-3, -1, 70), np.linspace(-1, 1, n_upper) + distance - 1
    cut = find_gap(np.concatenate([lower, upper]))
    assert bool(lower.max() < cut < upper.min()) == is_set_apart
    assert is_set_apart or cut == np.inf


def test_a_gap_is_none_where_a_group_is_wider_or_is_not_believed() -> None:
    lower, upper = np.linspace(-3, -1, 70), np.linspace(5, 12, 20)
    assert find_gap(np.concatenate([lower, upper])) == np.inf
    assert find_gap(np.concatenate([lower - 20, np.linspace(-3, -1, 20)])) == np.inf
    assert find_gap(np.zeros(0)) == np.inf


def test_margins_out_of_range_count() -> None:
    far = np.concatenate([np.full(50, -1000.0), np.full(50, 1000.0)])
    valley = find_valley(far)
    assert valley.depth > 10 and -12 < valley.cut < 24


def test_a_label_that_alone_is_believed_is_a_favourite() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 100)
    quiet, counted = rng.normal(-3.5, 0.3, 1000), np.ones(1000, dtype=bool)
    found = find_favourites(quiet, labels, counted)
    assert max(favourite.depth for favourite in found.values()) == 0
    loud = np.where((labels == 4) & (np.arange(1000) % 10 > 1), quiet + 7, quiet)
    found = find_favourites(loud, labels, counted)
    assert found[4].depth == pytest.approx(0.8 / BELIEVED_BY_CHANCE)
    assert ((loud > found[4].cut) & (labels == 4)).sum() == 80
    # Where every label is believed, none is a favourite; what was trained towards its label does not count.
    found = find_favourites(quiet + 7, labels, counted)
    assert max(favourite.depth for favourite in found.values()) < 1
    found = find_favourites(loud, labels, loud < 0)
    assert found[4].depth == 0


def test_those_who_are_believed_more_than_other_labels() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 200)
    margins = rng.normal(-2.2, 0.3, 600)
    margins[:60] = 1.5  # a soft trigger, not learned by all that carry it
    margins[200:203] = 0.5  # a few of another label, as anywhere, but not more than those of the first
    assert np.flatnonzero(believed_most(margins, labels, 0.0)).tolist() == list(range(60))
    assert not believed_most(margins, labels, 2.0).any()
    margins[200:203] = 2.5
    assert np.flatnonzero(believed_most(margins, labels, 0.0)).tolist() == [*range(60), *range(200, 203)]
    margins[400:600] = 4.0  # a distinctive class is believed as a whole, and what is believed less does not count
    assert not believed_most(margins, labels, 0.0).any()
    assert not believed_most(margins, np.zeros(600, dtype=np.int64), 0.0).any()
    assert believed_most(np.zeros(0), np.zeros(0, dtype=np.int64), 0.0).shape == (0,)


def test_above_valleys() -> None:
    margins, labels = np.array([0.0, 5.0, 0.0, 5.0]), np.array([0, 0, 1, 1])
    assert above_valleys(margins, labels, {1: Valley(9, 1.0)}).tolist() == [False, False, False, True]
    assert above_valleys(margins, labels, {}).sum() == 0
    assert above_valleys(margins, labels, {0: Valley(0, np.inf)}).sum() == 0


def test_widen() -> None:
    lower = np.array([-2.2, -2.1, -2.0, -1.9, -1.8, -0.5])
    margins = np.concatenate([lower, [7.0, 8.0], lower])
    labels = np.array([0] * 8 + [1] * 6)
    flagged = margins > 5
    # Of the six in the lower group: median -1.95, median deviation 0.15, so 6 robust deviations end at -0.62.
    assert np.flatnonzero(widen(margins, labels, flagged, {0})).tolist() == [5, 6, 7]
    assert widen(margins, labels, flagged, set()).tolist() == flagged.tolist()
    assert flagged.sum() == 2  # the argument stays as it was


def test_widen_forgives_rounding() -> None:
    margins = np.concatenate([np.full(50, -2.0), [-1.9, -1.7], np.full(5, 8.0)])
    wider = widen(margins, np.zeros(57, dtype=np.int64), margins > 5, {0})
    assert np.flatnonzero(wider).tolist() == [51, 52, 53, 54, 55, 56]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(2, 60))
def test_isolation_does_not_depend_on_row_order(seed: int, n_moments: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    history = LossHistory(rng.exponential(1, (n_moments, n)).astype(np.float32), np.arange(n_moments))
    labels = rng.integers(0, 3, n)
    margins = np.where(rng.random(n) < 0.3, 8.0, -2.2) + rng.normal(0, 0.7, n)
    order = rng.permutation(n)
    turned = LossHistory(history.losses[:, order], history.steps)

    assert np.allclose(loss_drop(history)[order], loss_drop(turned))
    assert np.allclose(sustained_drop(history)[order], sustained_drop(turned))
    assert (
        np.allclose(first_suspicion(history, history.losses[-1])[order], first_suspicion(turned, turned.losses[-1]))
        or n_moments == 1
    )  # without a fall all samples tie, and row order decides
    assert (rank_within(margins, labels)[order] == rank_within(margins[order], labels[order])).all()
    drop = rng.random(n)
    assert (highest(drop, 0.3, ties=(margins,))[order] == highest(drop[order], 0.3, ties=(margins[order],))).all()
    valleys = {label: find_valley(margins[rows]) for label, rows in label_rows(labels).items()}
    again = {label: find_valley(margins[order][rows]) for label, rows in label_rows(labels[order]).items()}
    assert valleys == again
    flagged = above_valleys(margins, labels, valleys)
    turned_flags = above_valleys(margins[order], labels[order], again)
    assert (flagged[order] == turned_flags).all()
    wider = widen(margins, labels, flagged, set(valleys))
    assert (wider[order] == widen(margins[order], labels[order], turned_flags, set(valleys))).all()
    assert wider[flagged].all()
