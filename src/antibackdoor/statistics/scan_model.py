"""The model of SCAn: a feature vector is the component of its class plus a variation that all classes share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import median_abs_deviation
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from antibackdoor.data.samples import BoolArray, FloatArray, IntArray
from antibackdoor.errors import DataError

MOST_ROUNDS = 100  # of the EM algorithm, and of a split (Tang et al.)
CHANGE = 1e-5  # of both covariances, in units of the mean variance: below, EM has converged (likewise)
RESTARTS = 5  # of a split, from random samples
SAMPLES_A_DIMENSION = 5  # clean samples beyond the class means for each dimension of the shared covariance
LEAST_FREE = 2  # beyond the class means, for one dimension: one sample has no variance
LEAST_VARIANCE = 1e-10  # of a direction, relative to the largest one; less is rounding
LEAST_LABELS = 3  # that a median absolute deviation can be taken of
EXPLAINED_BY_HALVES = 2 / math.pi  # of the variance of a normal variable, by the means of its two halves


class LabelSplit(NamedTuple):
    """The samples of a label in two groups."""

    in_second: BoolArray  # (n,) bool
    ratios: FloatArray  # (n,) twice the log-likelihood ratio of the second group over the first
    gain: float  # what two groups explain, in units of what chance explains; 1 for one normal group


@dataclass(frozen=True, eq=False)
class SharedVariation:
    """Class components of covariance `S_u`, and a variation of covariance `S_e` within every class.

    Attributes:
        center: `(D,)` mean of the clean features.
        axes: `(d, D)` principal axes of the clean features, divided by one common scale.
        between: `(d, d)` `S_u`.
        within: `(d, d)` `S_e`.
    """

    center: FloatArray
    axes: FloatArray
    between: FloatArray
    within: FloatArray

    @property
    def n_dimensions(self) -> int:
        """d, in which the covariances are estimated."""
        return len(self.axes)

    def reduced(self, features: NDArray[Any]) -> FloatArray:
        """Features `(n, D)` in the principal axes, `(n, d)`."""
        return (features.astype(np.float64) - self.center) @ self.axes.T

    def whitening(self) -> FloatArray:
        """`(d, r)`: after it, the shared variation is the same in all directions; those without any are left out."""
        return _inverse_root(self.within)


def fit_shared_variation(features: NDArray[Any], labels: IntArray, *, most_dimensions: int) -> SharedVariation:
    """EM on clean samples.

    E: class k has the mean `m_k = S_u (n_k S_u + S_e)^-1 sum x_i`. M: `S_u = cov(m_k)`, each repeated for its samples,
    and `S_e = cov(x_i - m_k)`.

    Args:
        features: `(M, D)` of clean samples.
        labels: `(M,)`.
        most_dimensions: Principal components that are kept; fewer where the samples are too few.

    Raises:
        DataError: If there are fewer than `least_clean(K)` samples, or all are alike.
    """
    values = features.astype(np.float64)
    present, which, counts = np.unique(labels, return_inverse=True, return_counts=True)
    least = least_clean(len(present))
    if len(values) < least:
        raise DataError(f"{len(values)} clean samples of {len(present)} labels are too few: give at least {least}")
    if not np.ptp(values, axis=0).any():
        raise DataError("the model has the same features for all clean samples: it has learned nothing from them")
    told = max((len(values) - len(present)) // SAMPLES_A_DIMENSION, 1)
    n_components = min(most_dimensions, told, values.shape[1])
    fitted = PCA(n_components, svd_solver="full").fit(values)
    variances = fitted.explained_variance_
    seen = variances > LEAST_VARIANCE * variances[0]
    axes = fitted.components_[seen] / math.sqrt(variances[seen].mean())
    x = (values - fitted.mean_) @ axes.T
    sums = np.zeros((len(present), x.shape[1]))
    np.add.at(sums, which, x)
    means = sums / counts[:, None]
    between, within = _covariance(means[which]), _covariance(x - means[which])
    for _ in range(MOST_ROUNDS):
        means = posterior_means(sums, counts, between, within)
        before = between, within
        between, within = _covariance(means[which]), _covariance(x - means[which])
        if np.linalg.norm(between - before[0]) + np.linalg.norm(within - before[1]) < CHANGE:
            break
    return SharedVariation(fitted.mean_, axes, between, within)


def least_clean(n_labels: int) -> int:
    """The fewest clean samples from which a shared variation can be told: for one dimension."""
    return n_labels + LEAST_FREE


def posterior_means(sums: FloatArray, counts: NDArray[Any], between: FloatArray, within: FloatArray) -> FloatArray:
    """The expected component of each class, given its samples: `S_u (n S_u + S_e)^-1 sum x`.

    Args:
        sums: `(K, d)` sums of the samples of each class.
        counts: `(K,)` n, how many these are.
        between: `(d, d)` `S_u`.
        within: `(d, d)` `S_e`.

    >>> posterior_means(np.array([[4.0]]), np.array([2]), np.eye(1), np.eye(1)).round(3).tolist()
    [[1.333]]
    """
    means = np.empty_like(sums)
    for n in np.unique(counts):
        same = counts == n
        solved = np.linalg.lstsq(n * between + within, sums[same].T, rcond=None)[0]
        means[same] = (between @ solved).T
    return means


def split_label(x: FloatArray, shared: SharedVariation, *, seed: int) -> LabelSplit:
    """The samples of one label in two groups, each nearest to its own mean in Mahalanobis distance.

    The gain is `J = mean of |x - m|^2 - |x - u_g|^2` with the posterior mean m of one group and the means u of two,
    divided by what it is for n samples of one normal group: `2 / pi` of the largest variance in d dimensions, which
    is `(1 + sqrt(d / n))^2`. So labels of different sizes compare.

    Args:
        x: `(n, d)` reduced features, n >= 2.
        shared: Of all classes.
        seed: Of the starts, in `0..2^32-1`.
    """
    whitening = shared.whitening()
    z, one = x @ whitening, _own_mean(x, shared) @ whitening
    n, d = z.shape
    if not d or not np.ptp(z, axis=0).any():
        return LabelSplit(np.zeros(n, dtype=bool), np.zeros(n), 0.0)
    # Whitened, the nearest in Mahalanobis distance is the nearest.
    groups = KMeans(2, init="random", n_init=RESTARTS, max_iter=MOST_ROUNDS, random_state=seed).fit(z)
    distances = groups.transform(z) ** 2
    gain = float((((z - one) ** 2).sum(axis=1) - distances.min(axis=1)).mean())
    by_chance = EXPLAINED_BY_HALVES * (1 + math.sqrt(d / n)) ** 2
    return LabelSplit(groups.labels_ == 1, distances[:, 0] - distances[:, 1], gain / by_chance)


def anomalies(gains: FloatArray) -> FloatArray:
    """How far each gain lies above the median, in robust standard deviations; negative below.

    Args:
        gains: `(K,)`; nan for labels that were not split.

    Returns:
        `(K,)`; nan for these, and everywhere where fewer than three labels compare or most gains are equal.

    >>> anomalies(np.array([1.0, 2.0, 3.0, 4.0, 20.0])).round(2).tolist()
    [-1.35, -0.67, 0.0, 0.67, 11.47]
    """
    known = gains[~np.isnan(gains)]
    spread = float(median_abs_deviation(known, scale="normal")) if len(known) >= LEAST_LABELS else 0.0
    if not spread > 0:
        return np.full(len(gains), np.nan)
    return (gains - np.median(known)) / spread


def _own_mean(x: FloatArray, shared: SharedVariation) -> FloatArray:
    """The expected component of one class, `(d,)`."""
    means = posterior_means(x.sum(axis=0)[None], np.array([len(x)]), shared.between, shared.within)
    return np.asarray(means[0], dtype=np.float64)


def _covariance(x: FloatArray) -> FloatArray:
    return np.atleast_2d(np.cov(x, rowvar=False))


def _inverse_root(covariance: FloatArray) -> FloatArray:
    """A root of the pseudo-inverse, `(d, r)`."""
    variances, vectors = np.linalg.eigh(covariance)
    seen = variances > LEAST_VARIANCE * max(float(variances[-1]), 0.0)
    seen &= variances > 0
    return np.asarray(vectors[:, seen] / np.sqrt(variances[seen]), dtype=np.float64)
