"""Two clusters of the features of one label."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score

from antibackdoor.data.samples import BoolArray, FloatArray

RESTARTS = 10  # of k-means
COMPARED = 5000  # samples whose distances to each other make the silhouette; all pairs of many would take hours


class Clusters(NamedTuple):
    """How the samples of a label fall into two clusters."""

    scores: FloatArray  # (n,) silhouette x (distance to the larger center - distance to the smaller one)
    is_smaller: BoolArray  # (n,) bool, the smaller cluster
    share: float  # of the smaller cluster, in (0, 0.5]; 0 if all samples are alike
    silhouette: float  # in [-1, 1]; 0 if all samples are alike


def two_clusters(features: NDArray[Any], *, n_components: int, seed: int) -> Clusters:
    """Principal components of the features, and k-means with two clusters on these.

    Args:
        features: `(n, D)`, n >= 3.
        n_components: Dimensions that are kept, >= 1; at most D and n are.
        seed: Of the starts of k-means, in `0..2^32-1`.

    >>> two_clusters(np.array([[0.0], [0.1], [0.2], [9.0]]), n_components=1, seed=0).is_smaller.tolist()
    [False, False, False, True]
    """
    values = features.astype(np.float64)
    n = len(values)
    if not np.ptp(values, axis=0).any():
        return Clusters(np.zeros(n), np.zeros(n, dtype=bool), 0.0, 0.0)
    reduced = PCA(min(n_components, *values.shape), random_state=seed).fit_transform(values)
    clustering = KMeans(2, n_init=RESTARTS, random_state=seed).fit(reduced)
    sizes = np.bincount(clustering.labels_, minlength=2)
    smaller = int(sizes.argmin())
    to_center = clustering.transform(reduced)
    # Of many samples every so many-th of each cluster is compared: a random choice could miss a small one.
    every = -(-n // COMPARED)
    rows = np.concatenate([np.flatnonzero(clustering.labels_ == cluster)[::every] for cluster in (0, 1)])
    silhouette = float(silhouette_score(reduced[rows], clustering.labels_[rows])) if len(rows) > 2 else 0.0
    scores = max(silhouette, 0.0) * (to_center[:, 1 - smaller] - to_center[:, smaller])
    return Clusters(scores, clustering.labels_ == smaller, float(sizes[smaller]) / n, silhouette)
