"""The loss history and the scores read from it, by hand-computed numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from antibackdoor.statistics.isolation import first_suspicion, loss_drop, sustained_drop
from antibackdoor.training.history import LossHistory


def history_of(*moments: list[float]) -> LossHistory:
    return LossHistory(np.array(moments, dtype=np.float32), np.arange(len(moments), dtype=np.int64) * 10)


def test_start_and_append() -> None:
    start = LossHistory.start(3, 4)
    assert start.losses.tolist() == [[pytest.approx(math.log(4))] * 3]
    longer = start.append(np.array([1, 2, 3], dtype=np.float64), 7)  # type: ignore[arg-type]
    assert len(start) == 1 and len(longer) == 2 and longer.n_samples == 3
    assert longer.losses.dtype == np.float32 and longer.losses[1].tolist() == [1, 2, 3]
    assert longer.steps.tolist() == [0, 7] and longer.steps.dtype == np.int64


def test_state_survives() -> None:
    history = history_of([1.0, 2.0], [0.5, 0.25])
    again = LossHistory.from_state(history.state())
    assert again.losses.tobytes() == history.losses.tobytes() and again.steps.tolist() == [0, 10]


def test_loss_drop_is_equation_5() -> None:
    history = LossHistory.start(2, 10).append(np.array([1.0, 2.0]), 1).append(np.array([0.4, 2.2]), 2)
    history = history.append(np.array([0.1, 0.3]), 3)
    log_k = math.log(10)
    by_hand = [
        (log_k - 1.0) / 1 + (1.0 - 0.4) / 4 + (0.4 - 0.1) / 9,
        (log_k - 2.0) / 1 + (2.0 - 2.2) / 4 + (2.2 - 0.3) / 9,
    ]
    assert loss_drop(history) == pytest.approx(by_hand, abs=1e-6)
    # The same numbers as log K minus weights of the later losses; the first one counts three quarters.
    assert loss_drop(history)[0] == pytest.approx(log_k - 0.75 * 1.0 - (1 / 4 - 1 / 9) * 0.4 - 0.1 / 9, abs=1e-6)


def test_loss_drop_of_one_moment_is_zero() -> None:
    assert loss_drop(LossHistory.start(3, 5)).tolist() == [0, 0, 0]


def test_early_drops_count_most() -> None:
    early, late = loss_drop(history_of([2, 2], [0, 2], [0, 0]))
    assert early == 2 and late == pytest.approx(2 / 4)


def test_sustained_drop() -> None:
    falls_once = [2.0, 2.0, 0.0, 0.0]
    falls_late = [2.0, 2.0, 2.0, 0.0]
    comes_back = [2.0, 0.0, 2.0, 0.0]
    rises = [0.0, 1.0, 2.0, 3.0]
    drops = sustained_drop(history_of(*map(list, zip(falls_once, falls_late, comes_back, rises, strict=True))))
    assert drops[0] == 2.0 and drops[1] == 2.0  # it does not matter when the fall comes
    assert drops[2] == pytest.approx(4 / 3)  # before the second 2: mean 2 against (0 + 2 + 0) / 3
    assert drops[3] == pytest.approx(-2.0)
    assert sustained_drop(history_of([1.0, 2.0])).tolist() == [0, 0]


def test_first_suspicion_takes_the_more_telling_sign() -> None:
    # Row 0 has the lowest loss now, row 1 the largest fall, row 2 neither.
    history = history_of([0.2, 3.0, 1.0, 1.5], [0.1, 1.0, 0.9, 1.4])
    suspicion = first_suspicion(history, np.array([0.1, 1.0, 0.9, 1.4], dtype=np.float32))
    assert suspicion[:2] == pytest.approx([1.0, 1.0], abs=1e-5)
    assert suspicion[0] > suspicion[1]  # the lower loss breaks the tie
    assert suspicion[2:].max() < 0.8
