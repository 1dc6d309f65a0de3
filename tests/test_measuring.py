"""What is measured by the truth: the top of a ranking, where many samples are equal."""

from __future__ import annotations

import numpy as np
import pytest

from antibackdoor.app.evaluation import _verdict_metrics
from antibackdoor.app.measuring import measure_partition
from antibackdoor.protocols import Verdict
from antibackdoor.runs.samples_table import SamplesTable


def test_equal_samples_are_in_the_top_by_chance_not_by_row() -> None:
    """Rows are sorted by class, and the target label is often the first one."""
    n = 10_000
    nobody, labels = np.zeros(n, dtype=np.uint8), np.repeat(np.arange(10), n // 10)
    verdict = Verdict(np.zeros(n), nobody, labels, nobody)
    first, last = np.arange(n) < n // 10, np.arange(n) >= n - n // 10
    for is_poisoned in (first, last):
        found = measure_partition(verdict, is_poisoned, labels)
        assert found["top_precision"] == pytest.approx(0.1, abs=0.1)
        assert found["top_precision"] > 0 and found == measure_partition(verdict, is_poisoned, labels)
        table = SamplesTable(np.arange(n).astype(str), labels, np.arange(10).astype(str), verdict)
        assert _verdict_metrics(table, is_poisoned, labels)["precision_of_top_1_percent"] == found["top_precision"]
