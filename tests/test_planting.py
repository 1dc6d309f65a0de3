"""Triggers planted to test the scan itself."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import pictures, waves
from hypothesis import given, settings
from hypothesis import strategies as st

from antibackdoor.data.samples import Samples
from antibackdoor.search.planting import RATES, Planted, plant, smallest_visible_rate


def everything(samples: Samples) -> np.ndarray:
    return np.ones(len(samples), dtype=bool)


@pytest.mark.parametrize("samples", [pictures(2000, 10), waves(2000, 10, channels=3, length=40)])
def test_counts_and_untouched_rows(samples: Samples) -> None:
    before = samples.inputs.copy()
    planted = plant(samples, everything(samples), seed=0)
    np.testing.assert_array_equal(samples.inputs, before)
    assert set(planted.rates) == {rate for rate in RATES if rate * len(samples) >= 5}
    assert [len(rows) for rows in planted.rows] == [round(rate * len(samples)) for rate in planted.rates]
    touched = np.concatenate(planted.rows)
    assert len(set(touched.tolist())) == len(touched), "a sample carries one trigger"
    rest = np.setdiff1d(np.arange(len(samples)), touched)
    np.testing.assert_array_equal(planted.samples.inputs[rest], before[rest])
    np.testing.assert_array_equal(planted.samples.labels[rest], samples.labels[rest])
    targets = [set(planted.samples.labels[rows].tolist()) for rows in planted.rows]
    assert all(len(target) == 1 for target in targets) and len(set.union(*targets)) == len(targets)
    assert (planted.samples.labels[touched] != samples.labels[touched]).all()
    for rows in planted.rows:
        changed = (planted.samples.inputs[rows] != before[rows]).any(axis=(0, 1))
        assert 0 < changed.mean() < 0.25, "a small window"


def test_rows_that_are_not_usable_stay_out() -> None:
    samples = pictures(1000, 5)
    usable = np.arange(1000) % 4 > 0
    planted = plant(samples, usable, seed=1, out=np.zeros((750, *samples.shape), np.uint8))
    assert planted.samples.ids.tolist() == samples.ids[usable].tolist()


def test_the_seed_decides() -> None:
    samples = pictures(1000, 5)
    first, again, other = (plant(samples, everything(samples), seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.samples.inputs, again.samples.inputs)
    assert not np.array_equal(first.samples.inputs, other.samples.inputs)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 120), n_classes=st.integers(1, 6), size=st.integers(1, 9))
def test_any_size(n: int, n_classes: int, size: int) -> None:
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 256, (n, 3, size, size + 1), dtype=np.uint8)
    labels = np.arange(n, dtype=np.int64) % n_classes
    samples = Samples(inputs, labels, np.arange(n).astype(str), np.arange(n_classes).astype(str))
    planted = plant(samples, everything(samples), seed=0)
    assert len(planted.samples) == n
    assert sum(map(len, planted.rows)) <= n / 2 + 1


def test_smallest_visible_rate() -> None:
    rows = tuple(np.arange(10) + 10 * i for i in range(3))
    planted = Planted(pictures(30), (0.01, 0.05, 0.02), rows)
    isolated = np.zeros(30, dtype=bool)
    assert smallest_visible_rate(planted, isolated) is None
    isolated[rows[1]] = True
    assert smallest_visible_rate(planted, isolated) == 0.05
    isolated[rows[0]] = True
    assert smallest_visible_rate(planted, isolated) == 0.05, "a lucky find below a miss does not count"
    isolated[rows[2][:5]] = True
    assert smallest_visible_rate(planted, isolated) == 0.01
