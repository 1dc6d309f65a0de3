"""From the metrics of several seeds to a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student


class Mean(NamedTuple):
    """A mean over seeds and half the width of its 95% interval (Student's t).

    As text both are percent, `87.5 ± 1.2`; the half is left out where it is nan, and of nothing the text is `-`.
    """

    value: float
    half: float

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "-"
        return f"{100 * self.value:.1f}" + ("" if math.isnan(self.half) else f" ± {100 * self.half:.1f}")


def mean(values: Iterable[float | None]) -> Mean:
    """Mean and 95% interval of those values that are numbers; nan without any, no interval of a single one.

    >>> str(mean([0.90, 0.92, None, 0.94]))
    '92.0 ± 5.0'
    """
    numbers = np.array([v for v in values if v is not None and not math.isnan(v)], dtype=np.float64)
    if not len(numbers):
        return Mean(math.nan, math.nan)
    if len(numbers) == 1:
        return Mean(float(numbers[0]), math.nan)
    error = float(numbers.std(ddof=1)) / math.sqrt(len(numbers))
    return Mean(float(numbers.mean()), error * float(student.ppf(0.975, len(numbers) - 1)))


def grid(names: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1) -> str:
    """A Markdown table whose first columns (so many as `words`) are words and whose others are numbers.

    >>> print(grid(["data", "n"], [["digits", "1797"]]))
    | data | n |
    | --- | ---: |
    | digits | 1797 |
    """
    lines = [names, [*["---"] * words, *["---:"] * (len(names) - words)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
