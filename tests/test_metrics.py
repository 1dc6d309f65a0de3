"""Metrics against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from antibackdoor.errors import ConfigError, DataError
from antibackdoor.statistics import metrics
from antibackdoor.statistics.intervals import wilson_interval


def test_clean_accuracy_with_and_without_the_target_class() -> None:
    predictions, labels = [0, 0, 1, 1, 2], [0, 1, 1, 1, 2]
    assert metrics.clean_accuracy(predictions, labels) == 4 / 5
    assert metrics.clean_accuracy_nontarget(predictions, labels, target_label=0) == 3 / 4
    assert math.isnan(metrics.clean_accuracy([], []))


def test_attack_success_excludes_the_target_class() -> None:
    labels = np.array([0, 0, 1, 1, 2])
    predictions = np.array([0, 0, 0, 1, 0])
    goal = np.zeros(5)
    assert metrics.attack_success_rate(predictions, labels != 0, goal) == 2 / 3
    assert metrics.robust_accuracy(predictions, labels != 0, labels) == 1 / 3
    assert math.isnan(metrics.attack_success_rate(predictions, np.zeros(5, dtype=bool), goal))


def test_attack_success_of_all_to_all() -> None:
    labels = np.array([0, 1, 2])
    assert metrics.attack_success_rate([1, 2, 1], np.ones(3, dtype=bool), (labels + 1) % 3) == 2 / 3


def test_isolation() -> None:
    isolated = np.array([1, 1, 1, 0, 0, 0, 0, 0], dtype=bool)
    poisoned = np.array([1, 1, 0, 1, 1, 0, 0, 0], dtype=bool)
    assert metrics.isolation_precision(isolated, poisoned) == 2 / 3
    assert metrics.isolation_recall(isolated, poisoned) == 2 / 4
    assert metrics.isolation_f1(isolated, poisoned) == pytest.approx(4 / 7)
    assert metrics.false_positive_rate(isolated, poisoned) == 1 / 4


def test_isolation_of_nothing_is_undefined() -> None:
    nothing, some = np.zeros(3, dtype=bool), np.array([True, False, False])
    assert math.isnan(metrics.isolation_precision(nothing, some))
    assert metrics.isolation_recall(nothing, some) == 0
    assert math.isnan(metrics.isolation_recall(some, nothing))
    assert math.isnan(metrics.isolation_f1(nothing, nothing))
    assert math.isnan(metrics.false_positive_rate(some, ~nothing))


def test_recovered_label_precision_counts_poisoned_samples_only() -> None:
    suggested, true = [3, 2, 1, 5], [3, 1, 1, 5]
    recovered, poisoned = [True, True, True, False], [True, True, False, True]
    assert metrics.recovered_label_precision(suggested, true, recovered, poisoned) == 1 / 2
    both = metrics.recovered_label_precision(suggested, true, recovered, poisoned, also_true=[0, 2, 0, 0])
    assert both == 1.0


def test_auroc_by_hand() -> None:
    # Pairs (poisoned, clean): (.9,.5) won, (.9,.1) won, (.5,.5) tied, (.5,.1) won -> 3.5 of 4.
    assert metrics.auroc([0.9, 0.5, 0.5, 0.1], [True, True, False, False]) == 3.5 / 4
    assert metrics.auroc([1, 1, 1], [True, False, False]) == 0.5
    assert math.isnan(metrics.auroc([1, 2], [True, True]))
    assert math.isnan(metrics.auroc([1, np.nan], [True, False]))
    assert metrics.auroc([np.inf, 3, -np.inf], [True, False, False]) == 1.0


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_auroc_equals_the_count_of_pairs(pairs: list[tuple[int, bool]]) -> None:
    scores, poisoned = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    value = metrics.auroc(scores, poisoned)
    if poisoned.all() or not poisoned.any():
        assert math.isnan(value)
        return
    difference = scores[poisoned][:, None] - scores[~poisoned][None]
    assert value == pytest.approx(np.mean((difference > 0) + 0.5 * (difference == 0)))


def test_true_positive_rate_keeps_ties_together() -> None:
    poisoned = np.array([True, True, False, True, False])
    scores = [5, 4, 3, 3, 1]
    assert metrics.true_positive_rate_at(scores, poisoned, max_fpr=0.0) == 2 / 3
    assert metrics.true_positive_rate_at(scores, poisoned, max_fpr=0.5) == 1.0
    assert metrics.true_positive_rate_at([1, 1], [True, False], max_fpr=0.0) == 0.0
    assert math.isnan(metrics.true_positive_rate_at([1, np.nan], [True, False]))
    assert math.isnan(metrics.true_positive_rate_at([1, 2], [True, True]))
    with pytest.raises(ConfigError, match="max_fpr"):
        metrics.true_positive_rate_at(scores, poisoned, max_fpr=2)


def test_wilson_interval_by_hand() -> None:
    # n = 10, 5 successes, z = 1.96: center .5, half .2634.
    low, high = wilson_interval(5, 10)
    assert (low, high) == (pytest.approx(0.2366, abs=1e-4), pytest.approx(0.7634, abs=1e-4))
    assert wilson_interval(10, 10).high == 1.0
    assert wilson_interval(0, 10).low == 0.0
    assert math.isnan(wilson_interval(0, 0).low)
    with pytest.raises(DataError, match="impossible"):
        wilson_interval(3, 2)
    with pytest.raises(ConfigError, match="confidence"):
        wilson_interval(1, 2, confidence=95)


def test_class_tables() -> None:
    labels = np.array([0, 0, 1])
    rows = metrics.class_accuracy([0, 1, 1], labels, 3)
    assert [(row.label, row.n_samples) for row in rows] == [(0, 2), (1, 1), (2, 0)]
    assert rows[0].value == 0.5 and rows[1].value == 1.0 and math.isnan(rows[2].value)
    success = metrics.class_attack_success([0, 0, 0], labels, labels != 0, np.zeros(3), 2)
    assert success[0].n_samples == 0 and success[1] == (1, 1, 1.0)
    assert metrics.class_isolation([True, False, False], labels, 2)[0].value == 0.5


def test_confusion() -> None:
    assert metrics.confusion([0, 1, 1], [0, 0, 1], 2).tolist() == [[1, 1], [0, 1]]
    with pytest.raises(DataError, match="outside"):
        metrics.confusion([2], [0], 2)


def test_lengths_must_agree() -> None:
    with pytest.raises(DataError, match="equally long"):
        metrics.clean_accuracy([0, 1], [0])
