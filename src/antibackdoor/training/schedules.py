"""Learning rates over a phase of training.

A schedule is a function of the done share of the phase in [0, 1) to the learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Schedule = Callable[[float], float]


def constant(rate: float) -> Schedule:
    """The same rate throughout."""
    return lambda _done: rate


def step(rate: float, at: Sequence[float], factor: float = 0.1) -> Schedule:
    """The rate, times `factor` from each of the shares `at` on.

    >>> [round(step(0.1, at=(0.5, 0.75))(done), 4) for done in (0.0, 0.5, 0.9)]
    [0.1, 0.01, 0.001]
    """
    return lambda done: rate * factor ** sum(done >= share for share in at)


def triangle(peak: float) -> Schedule:
    """Up to the peak over the first fifth, then down to zero on a straight line (Smith, arXiv 1708.07120).

    >>> [round(triangle(0.1)(done), 3) for done in (0.1, 0.2, 0.6)]
    [0.05, 0.1, 0.05]
    """
    return lambda done: peak * max(min(done / 0.2, (1 - done) / 0.8), 0.0)


def cosine(rate: float) -> Schedule:
    """From the rate down to zero on half a cosine (Loshchilov and Hutter, arXiv 1608.03983).

    >>> [round(cosine(0.1)(done), 3) for done in (0.0, 0.5)]
    [0.1, 0.05]
    """
    return lambda done: rate * (1 + math.cos(math.pi * done)) / 2


# By name, as in a recipe. Steps come at half and at three quarters, as in most code of the field.
SCHEDULES: dict[str, Callable[[float], Schedule]] = {
    "triangle": triangle,
    "step": lambda rate: step(rate, at=(0.5, 0.75)),
    "cosine": cosine,
    "constant": constant,
}
