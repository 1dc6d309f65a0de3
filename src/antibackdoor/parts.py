"""Whom to suspect where no loss tells: samples whose parts look like another label.

On easy data the classes are learned as fast as any trigger, and the losses of poisoned samples are like those of the
others. But a trigger in one place leaves the rest of a mislabelled sample as it was, and the neighbors of that rest,
in the same place of other samples, carry the label that it was taken from. This is no verdict: border cases
contradict their label too. It serves to choose the suspects that confusion begins with. It is blind to triggers that
cover everything strongly, to clean-label poison, and to pictures whose content neighbors do not tell.
"""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from antibackdoor.samples import BoolArray, FloatArray, IntArray

IMAGE_CELLS, IMAGE_PARTS = 8, 2  # an image is averaged over 8 x 8 cells; its parts are quarters
SERIES_CELLS, SERIES_PARTS = 64, 8  # a series is averaged over 64 spans; its parts are eighths
NEIGHBORS = 10
COMPARED = 5000  # samples that neighbors are looked for among


def n_parts(shape: tuple[int, ...]) -> int:
    """Into how many parts samples of this shape are cut."""
    return IMAGE_PARTS**2 if len(shape) == 3 else SERIES_PARTS


def pooled_parts(inputs: Tensor) -> Tensor:
    """Coarse values of each part, `(B, P * D)` part after part, of images `(B, C, H, W)` or series `(B, C, T)`."""
    n, channels = inputs.shape[:2]
    if inputs.ndim == 4:
        size = IMAGE_CELLS // IMAGE_PARTS
        coarse = F.adaptive_avg_pool2d(inputs, IMAGE_CELLS).reshape(n, channels, IMAGE_PARTS, size, IMAGE_PARTS, size)
        return coarse.permute(0, 2, 4, 1, 3, 5).reshape(n, -1)
    coarse = F.adaptive_avg_pool1d(inputs, SERIES_CELLS).reshape(n, channels, SERIES_PARTS, -1)
    return coarse.permute(0, 2, 1, 3).reshape(n, -1)


def neighbor_labels(parts: NDArray[np.float32], labels: IntArray, *, seed: int) -> IntArray:
    """The labels that lie around each part of each sample.

    Args:
        parts: `(N, P, D)`, each part by itself.
        labels: `(N,)` given labels.
        seed: Chooses whom to compare with, where there are many samples.

    Returns:
        `(P, N, M)` given labels of the ten nearest neighbors among those; fewer, or none, in tiny data.
    """
    from sklearn.neighbors import NearestNeighbors  # slow to import, and most commands need none

    n = len(labels)
    compared = np.random.default_rng((seed, 8)).permutation(n)[:COMPARED]
    count = min(NEIGHBORS, len(compared) - 1)
    found = np.empty((parts.shape[1], n, max(count, 0)), dtype=labels.dtype)
    for part in range(parts.shape[1]) if count > 0 else ():
        values = np.ascontiguousarray(parts[:, part])
        search = NearestNeighbors(n_neighbors=count + 1, algorithm="brute").fit(values[compared])
        nearest = compared[search.kneighbors(values, return_distance=False)]
        # A sample is no neighbor of itself; where it is not among them, the farthest one is left out.
        dropped = nearest == np.arange(n)[:, None]
        dropped[~dropped.any(axis=1), -1] = True
        found[part] = labels[nearest[~dropped]].reshape(n, count)
    return found


def contradiction(nearby: IntArray, labels: IntArray) -> FloatArray:
    """How much the parts of each sample contradict its label.

    Args:
        nearby: `(P, N, M)` labels around each part.
        labels: `(N,)` given labels.

    Returns:
        `(N,)` in [0, 1]: the share of other labels among the neighbors, as a mean over the parts.
    """
    if not nearby.size:
        return np.zeros(len(labels))
    return np.asarray((nearby != labels[:, None]).mean(axis=(0, 2)), dtype=np.float64)


def foreignness(nearby: IntArray, labels: IntArray, group: BoolArray, label: int) -> float:
    """How foreign a group of samples is in its label, where it is most so.

    Where the trigger is not, mislabelled samples contradict their label as samples of other labels would. A class
    within a label contradicts it more than the rest of the label does, but less than that: much of what lies around
    its samples are its own.

    Args:
        nearby: `(P, N, M)` labels around each part.
        labels: `(N,)` given labels.
        group: `(N,)` bool.
        label: Theirs.

    Returns:
        The share of other labels around the group, of what it is around the samples of other labels, in the part
        where this is largest; 0 if there is nothing to compare with.
    """
    others = labels != label
    if not nearby.size or not group.any() or not others.any():
        return 0.0
    against = (nearby != label).mean(axis=2)
    return float((against[:, group].mean(axis=1) / np.maximum(against[:, others].mean(axis=1), 1e-9)).max())
