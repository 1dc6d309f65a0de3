"""What the evidence is worth: rate, interval, and the probability of a false alarm."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from antibackdoor.protocols import CRITERIA, ISOLATED, KEPT, Verdict
from antibackdoor.search.caught import CONTENT, CONTENT_BELIEVED, Caught
from antibackdoor.search.evidence import (
    DEEPER_THAN_1,
    POWER,
    criteria,
    false_alarm_probability,
    from_verdict,
    judge,
    search_verdict,
    suspicion,
)
from antibackdoor.statistics.isolation import DEPTH_OF_FEW, FEW_LABELS


def caught(
    depths: list[float],
    gains: list[float] | None = None,
    labels: tuple[int, ...] = (),
    n: int = 1000,
    core: int = 0,
    near: int = 0,
) -> Caught:
    rows = np.arange(n)
    return Caught(
        isolated=rows < core + near,
        core=rows < core,
        content=np.zeros(n, dtype=bool),
        margins=np.zeros(n),
        removable=np.zeros(n, dtype=bool),
        across=np.zeros(n, dtype=bool),
        depths=np.array(depths),
        carried=np.full(len(depths), np.nan),
        gains=np.full(len(depths), np.nan) if gains is None else np.array(gains),
        labels=labels,
        steps=0,
        rounds=np.zeros((0, n), dtype=np.float32),
    )


def test_the_rate_lies_in_its_interval() -> None:
    facts = judge(caught([0.9] * 9 + [6.0], labels=(9,), core=100, near=20))
    assert facts["estimated_poisoning_rate"] == 0.1
    low, high = facts["estimated_poisoning_rate_low"], facts["estimated_poisoning_rate_high"]
    assert low is not None and high is not None
    assert 0.08 < low < 0.1 < 0.12 < high < 0.145


def test_nothing_found_has_no_interval() -> None:
    facts = judge(caught([0.9] * 10))
    assert facts["estimated_poisoning_rate"] == 0
    assert facts["estimated_poisoning_rate_low"] is None and facts["estimated_poisoning_rate_high"] is None


def test_strong_evidence_is_rare_among_clean_data() -> None:
    strong = false_alarm_probability(caught([0.9, 0.92, 0.88, 0.9, 0.91, 0.9, 0.9, 30.0], labels=(7,)))
    weak = false_alarm_probability(caught([0.9, 1.1, 0.8, 0.9, 0.95, 1.2], labels=(5,)))
    assert strong is not None and weak is not None
    assert strong < 0.001 < 0.5 < weak


def test_either_kind_of_evidence_counts() -> None:
    flat, gains = [0.9] * 6, [0.0, 1.0, 2.0, 0.5, 0.0, 300.0]
    refused = false_alarm_probability(caught(flat, gains))
    assert refused is not None and refused > 0.1, "a gain that the search did not accept is no evidence"
    found = caught(flat, gains, labels=(5,), core=50)
    found.content[:50] = True
    added = false_alarm_probability(found)
    assert added is not None and added > 0.1, "nor one of a label whose found samples tell of others by another way"
    by_gain = false_alarm_probability(replace(found, ways=(CONTENT,)))
    by_depth = false_alarm_probability(caught([*flat[:5], 90.0], gains, labels=(5,)))
    assert by_gain is not None and by_gain < 1e-3
    assert by_depth is not None and by_depth < 1e-2


def test_content_of_those_who_are_believed_counts_where_it_stood_in_for_a_valley() -> None:
    nats = [0.0, 0.0, 2.0, 0.0, 0.0, 500.0]
    found = replace(caught([0.9] * 5 + [1.5], labels=(5,), core=50), carried=np.array(nats))
    alone, both = (false_alarm_probability(replace(found, ways=ways)) for ways in ((), (CONTENT_BELIEVED,)))
    assert alone is not None and both is not None
    assert both < 0.02 < 0.2 < alone


def test_two_labels_are_enough_and_none_too_few() -> None:
    of_two = false_alarm_probability(caught([0.9, 30.0], labels=(1,)))
    assert of_two is not None and of_two < 0.001
    assert false_alarm_probability(caught([np.nan] * 5)) is None


def test_data_whose_labels_have_valleys_raise_the_probability() -> None:
    """Such as near copies of a few objects under each label."""
    smooth, bumpy = (false_alarm_probability(caught([d] * 9 + [5.0], labels=(9,))) for d in (0.9, 1.5))
    assert smooth is not None and bumpy is not None and bumpy > 3 * smooth


@pytest.mark.parametrize("n_labels", [2, 10, 43])
def test_it_is_calibrated_where_its_assumption_holds(n_labels: int) -> None:
    """No backdoor, and valleys whose depth falls as assumed: no probability must come oftener than it says."""
    rng = np.random.default_rng(0)
    depths = (rng.random((2000, n_labels)) / DEEPER_THAN_1) ** (-1 / POWER)
    depths *= DEPTH_OF_FEW if n_labels <= FEW_LABELS else 1.0
    values = np.array([false_alarm_probability(caught(row.tolist())) for row in depths], dtype=np.float64)
    for level in (0.02, 0.05, 0.1):
        assert (values <= level).mean() < 1.2 * level
    assert (values <= 0.1).mean() > 0.02, "and hardly more rarely"


def test_criteria_name_what_spoke() -> None:
    found = caught([0.9] * 4, core=3, near=2, n=8)
    found.content[0] = True
    spoke = [CRITERIA[code] for code in criteria(found)]
    assert spoke == ["content", "shortcut", "shortcut", "nearby", "nearby", "none", "none", "none"]


def test_the_verdict_of_a_search_says_what_was_found_and_where() -> None:
    labels = np.repeat([4, 0, 1, 2, 3], 200)
    found = caught([0.9, 0.8, 0.9, 0.85, 30.0], labels=(4,), core=100, near=10)
    found.margins[:] = np.random.default_rng(0).normal(np.where(found.core, 6, -2), 1)
    verdict = search_verdict(found, labels)
    assert verdict.poisoned is True and verdict.target_labels == (4,)
    assert verdict.status.tolist() == [ISOLATED] * 110 + [KEPT] * 890 and verdict.status.dtype == np.uint8
    np.testing.assert_array_equal(verdict.isolated, found.isolated)
    np.testing.assert_array_equal(verdict.criterion, criteria(found))
    np.testing.assert_array_equal(verdict.suggested_label, labels)
    raw = suspicion(found, labels)
    np.testing.assert_array_equal(verdict.suspicion[200:], raw[200:])
    np.testing.assert_array_equal(np.sort(verdict.suspicion[:200]), np.sort(raw[:200]))
    assert raw[:110].min() < raw[110:200].max() and verdict.suspicion[:110].min() >= verdict.suspicion[110:200].max()
    assert verdict.margin is found.margins
    nothing = search_verdict(caught([0.9] * 5), labels)
    assert nothing.poisoned is False and nothing.target_labels == () and not nothing.isolated.any()
    some, none = (search_verdict(caught([0.9] * 5), labels, few) for few in ((1, 2), (0, 1, 2, 3, 4)))
    assert (some.poisoned, some.unexamined) == (False, (1, 2))
    assert none.poisoned is None, "nothing was looked at, so nothing is known"


def test_a_given_verdict_comes_back_as_what_a_search_would_have_left() -> None:
    found = caught([0.9] * 5, labels=(4,), core=100, near=10)
    found.content[:7] = True
    verdict = search_verdict(found, np.repeat([4, 0, 1, 2, 3], 200))
    again = from_verdict(verdict, 5)
    for part in ("isolated", "core", "content", "margins"):
        np.testing.assert_array_equal(getattr(again, part), getattr(found, part))
    assert again.labels == (4,) and again.steps == 0 and again.ways == ("given verdict",)
    assert np.isnan(again.depths).all() and false_alarm_probability(again) is None, "what only a search knows"
    empty = from_verdict(Verdict(np.zeros(4), *(np.zeros(4, dtype=np.uint8),) * 3), 5)  # type: ignore[arg-type]
    assert empty.ways == () and np.isnan(empty.margins).all()


def test_suspicion_is_a_probability_that_follows_the_margins() -> None:
    rng = np.random.default_rng(0)
    found = caught([0.9, 0.8, 0.9, 0.85, 30.0], labels=(4,), core=100)
    labels = np.repeat([4, 0, 1, 2, 3], 200)
    found.margins[:] = rng.normal(-2, 0.5, 1000)
    found.margins[:100] = rng.normal(6, 1, 100)
    values = suspicion(found, labels)
    assert values.min() >= 0 and values.max() < 1
    alarm = false_alarm_probability(found)
    assert alarm is not None and values[:100].min() > 0.99 * (1 - alarm)
    assert values[100:200].max() < 0.01, "the rest of the label is told from the group"
    others = values[200:].reshape(4, 200)
    assert others.mean(axis=1) == pytest.approx([2.5 / 200] * 4, rel=0.01), "at most five may be there unseen"
    for rows in np.arange(1000).reshape(5, 200):
        assert (np.diff(values[rows][np.argsort(found.margins[rows])]) >= 0).all()


def test_groups_that_overlap_are_not_told_apart_with_certainty() -> None:
    rng = np.random.default_rng(1)
    found = caught([0.9, 0.8, 0.9, 0.85, 30.0], labels=(4,), core=0)
    is_upper = np.arange(1000) < 500
    found.margins[:] = rng.normal(0, 1, 1000) + 2.0 * is_upper
    found.core[:] = is_upper
    values = suspicion(found, np.full(1000, 4))
    share = [is_upper[(values >= low) & (values < low + 0.2)].mean() for low in (0.0, 0.2, 0.4, 0.6, 0.8)]
    assert np.allclose(share, [0.1, 0.3, 0.5, 0.7, 0.9], atol=0.1), "what is called 70% is true in 70%"


def test_what_the_content_tells_needs_no_margin() -> None:
    found = replace(caught([0.9, 0.8, 0.9, 0.85], [300.0, 1.0, 0.0, 2.0], labels=(0,), core=50), ways=(CONTENT,))
    found.content[:50] = True
    values = suspicion(found, np.repeat([0, 1, 2, 3], 250))
    assert values[:50].min() > 0.5 > values[50:].max()


def test_each_label_that_could_have_shown_evidence_counts() -> None:
    """Whether one or all have a finding: the deepest of ten is not rarer for it."""
    one, all_ten = (caught([0.9] * n + [4.0] * (10 - n), labels=tuple(range(n, 10))) for n in (9, 0))
    few, many = false_alarm_probability(one), false_alarm_probability(all_ten)
    assert few is not None and many is not None and many >= few
