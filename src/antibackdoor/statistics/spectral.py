"""Spectral signatures of a group of feature vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from antibackdoor.data.samples import FloatArray


def spectral_scores(features: NDArray[Any]) -> FloatArray:
    """Squared projection of each vector on the first singular vector of the group, divided by the mean of these.

    Args:
        features: `(N, D)`, N >= 1.

    Returns:
        `(N,)` with mean 1; zeros where all vectors are alike.

    >>> spectral_scores(np.array([[0.0, 0.0], [0.0, 0.0], [3.0, 0.0]])).round(2).tolist()
    [0.5, 0.5, 2.0]
    """
    centered = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    n, width = centered.shape
    if n < width:  # the smaller matrix of the two, whose vectors are the projections but for their length
        values, vectors = np.linalg.eigh(centered @ centered.T)  # ascending
        scores = max(float(values[-1]), 0.0) * vectors[:, -1] ** 2
    else:
        _, vectors = np.linalg.eigh(centered.T @ centered)
        scores = (centered @ vectors[:, -1]) ** 2
    mean = float(scores.mean())
    return scores / mean if mean > 0 else np.zeros(len(features))
