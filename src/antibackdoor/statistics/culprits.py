"""Which known samples an input is like, by the features of several layers of a network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from antibackdoor.data.samples import BoolArray, FloatArray

Features = Sequence[NDArray[np.float32]]


def similarity(known: Features, asked: Features) -> FloatArray:
    """How much inputs are like known samples: the mean over the layers of a cosine, in [-1, 1].

    Each feature is first centered and scaled by the known samples, so that what all of them share does not count: of
    samples with one label, that is the label itself, and what is left is how they differ, a trigger above all. The
    last layer alone would not do, since a trained network makes all samples of a label alike there ("neural collapse",
    Papyan, Han, Donoho, PNAS 2020, arXiv 2008.08186).

    Args:
        known: Features `(N, D)` of the known samples at each layer.
        asked: Features `(M, D)` of the inputs at the same layers.

    Returns:
        `(M, N)`.
    """
    total = np.zeros((len(asked[0]), len(known[0])))
    for there, here in zip(known, asked, strict=True):
        mean, spread = there.mean(0, dtype=np.float64), there.std(0, dtype=np.float64)
        spread[spread <= 1e-6 * np.abs(mean).max(initial=0) + 1e-12] = np.inf  # a constant feature tells nothing
        total += _unit((here - mean) / spread) @ _unit((there - mean) / spread).T
    return total / len(known)


def likely(similarities: FloatArray) -> BoolArray:
    """Those that are alike, `(N,)` bool: above the cut that parts the similarities best into two groups.

    It is Otsu's: the variance between the groups is the largest. Where there is one group only, it means nothing.

    Reference: Otsu, "A threshold selection method from gray-level histograms", IEEE Trans. SMC 9(1), 1979.

    >>> likely(np.array([0.9, 0.1, 0.2, 0.8, 0.15])).tolist()
    [True, False, False, True, False]
    """
    n = len(similarities)
    if n < 2:
        return np.ones(n, dtype=bool)
    ordered = np.sort(similarities)
    sums, below = np.cumsum(ordered), np.arange(1, n)
    apart = (sums[-1] - sums[:-1]) / (n - below) - sums[:-1] / below
    best = int(np.argmax(below * (n - below) * apart**2))
    return np.asarray(similarities > (ordered[best] + ordered[best + 1]) / 2)


def _unit(values: FloatArray) -> FloatArray:
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return np.asarray(values / np.where(length > 0, length, 1.0))
