"""Confidence intervals of fractions."""

from __future__ import annotations

from typing import NamedTuple

from antibackdoor.errors import ConfigError, DataError


class Interval(NamedTuple):
    """A confidence interval of a fraction."""

    low: float
    high: float


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a fraction; `(nan, nan)` for n = 0.

    Unlike the usual `p +- 1.96 s` it holds near 0 and 1, where attack success rates lie.

    Reference: Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927.

    >>> low, high = wilson_interval(0, 900)
    >>> low, round(high, 5)
    (0.0, 0.00425)
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence}; it must lie between 0 and 1")
    if not 0 <= successes <= n:
        raise DataError(f"{successes} successes of {n} are impossible")
    if n == 0:
        return Interval(float("nan"), float("nan"))
    from scipy.stats import binomtest  # slow to import

    low, high = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Interval(float(low), float(high))
