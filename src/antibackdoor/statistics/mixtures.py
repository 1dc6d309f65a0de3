"""Labels in the coordinates of the others, and mixtures of two groups fitted to their samples: geometry, no verdict.

A label is seen along the few directions that separate the other labels, and its own strongest ones, whitened by the
spread inside the others. The second of two groups may be a constellation: the means of the other labels, moved and
scaled. `populations` tells what a fit is evidence of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logsumexp

from antibackdoor.data.samples import BoolArray, FloatArray, IntArray
from antibackdoor.statistics.isolation import SMALLEST_GROUP

EVEN = 50  # samples' worth of a spread that is the same in all directions
CONTENT_AXES = 8  # directions that separate the other labels
MOST_AXES = 128  # of deep features
OWN_AXES = 4  # the label's own strongest directions outside them, where a trigger shows
MOST_OTHERS = 50  # labels in a constellation; the most frequent ones
MOST_SPREAD = 20_000  # samples that the spread inside labels is measured on
RIDGE = 0.05  # of the mean variance, added to all directions so that none has zero spread
SMALLEST_VARIANCE = 0.3  # of a group, where 1 is that of an ordinary label: no group collapses onto few samples
ROUNDS = 60  # of expectation-maximization, at most


class Spread(NamedTuple):
    """First and second moments of every label's features."""

    labels: IntArray  # (L,) labels with enough samples to lend their mean
    counts: FloatArray  # (L,)
    means: FloatArray  # (L, D)
    scatters: FloatArray  # (L, D, D) sums of squared deviations


class Frame(NamedTuple):
    """A label in the coordinates that the spread inside the other labels whitens."""

    points: FloatArray  # (n, A) its samples
    means: FloatArray  # (J, A) of the other labels
    weights: FloatArray  # (J,) their shares
    n_content: int  # the first axes, which separate the other labels


class Mixture(NamedTuple):
    """Two groups; the second is a constellation of points."""

    share: float  # of the second group
    center: FloatArray  # (A,) of the first group
    variance: float  # of the first group
    points: FloatArray  # (J, A) of the second group
    weights: FloatArray  # (J,)
    spread: float  # variance around each point
    content: float  # size of the constellation; 0 for a plain group
    shift: FloatArray  # (A,) of the constellation


def varying(features: NDArray[np.float32]) -> BoolArray:
    """Which columns are not constant."""
    return np.asarray(features.std(axis=0) > 1e-9)


def strongest(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """The strongest directions of wide features, `(N, at most 128)`."""
    if features.shape[1] <= MOST_AXES:
        return features
    centered = features - features.mean(axis=0)
    axes = np.linalg.eigh(centered.T @ centered)[1][:, -MOST_AXES:]
    return np.asarray(centered @ axes, dtype=np.float32)


def moments(values: NDArray[np.floating], rows: dict[int, IntArray], rng: np.random.Generator) -> Spread:
    """Moments of the labels, on an even part of the samples where there are many."""
    share = min(1.0, MOST_SPREAD / len(values))
    kept, counts, means, scatters = [], [], [], []
    for label, members in rows.items():
        if len(members) < SMALLEST_GROUP:
            continue
        size = max(SMALLEST_GROUP, round(share * len(members)))
        part = values[rng.choice(members, size, replace=False)].astype(np.float64)
        mean = part.mean(axis=0)
        kept.append(label)
        counts.append(len(members))
        means.append(mean)
        scatters.append((part - mean).T @ (part - mean) / size * len(members))
    n_kept, size = len(kept), values.shape[1]
    return Spread(
        np.array(kept, dtype=np.int64),
        np.array(counts, dtype=np.float64),
        np.array(means).reshape(n_kept, size),
        np.array(scatters).reshape(n_kept, size, size),
    )


def frame_of(members: FloatArray, label: int, spread: Spread) -> Frame | None:
    """A label as the other labels see it; None if there are fewer than three of them: no constellation."""
    other = np.flatnonzero(spread.labels != label)
    if len(other) < 3:
        return None
    covariance = spread.scatters[other].sum(axis=0) / spread.counts[other].sum()
    size = len(covariance)
    covariance = (1 - RIDGE) * covariance + RIDGE * np.trace(covariance) / size * np.eye(size)
    variances, axes = np.linalg.eigh(covariance)
    whitening = axes / np.sqrt(np.maximum(variances, 1e-12))
    other = other[np.argsort(-spread.counts[other], kind="stable")[:MOST_OTHERS]]
    weights = spread.counts[other] / spread.counts[other].sum()
    middle = weights @ spread.means[other]
    x, means = (members - middle) @ whitening, (spread.means[other] - middle) @ whitening
    n_content = min(len(other) - 1, CONTENT_AXES)
    content = np.linalg.svd(np.sqrt(weights)[:, None] * means, full_matrices=False)[2][:n_content].T
    rest = x - x.mean(axis=0)
    rest = rest - rest @ content @ content.T
    own = np.linalg.svd(rest, full_matrices=False)[2][:OWN_AXES].T
    basis = np.concatenate([content, own], axis=1)
    return Frame(x @ basis, means @ basis, weights, n_content)


def whitening_of(rest: FloatArray) -> FloatArray:
    """By the spread of a few samples `(n, A)`, as if there were some more without any direction."""
    n, axes = rest.shape
    covariance = np.atleast_2d(np.cov(rest.T))
    even = np.trace(covariance) / axes * np.eye(axes)
    variances, basis = np.linalg.eigh((n * covariance + EVEN * even) / (n + EVEN))
    return np.asarray(basis / np.sqrt(np.maximum(variances, 1e-12)))


def starting_groups(x: FloatArray, seed: int) -> list[FloatArray]:
    """Probabilities of the second group to begin with."""
    from sklearn.cluster import KMeans  # slow to import, and most commands need none

    starts: list[FloatArray] = []
    for attempt in range(3):
        groups = KMeans(2, n_init=1, random_state=(seed + attempt) % 2**32).fit(x).labels_
        # Either group may be the second one; 0.02 leaves every sample free to change sides.
        starts += [np.clip(groups == second, 0.02, 0.98).astype(np.float64) for second in (1, 0)]
    return starts


def fit_plain(x: FloatArray, starts: Sequence[FloatArray]) -> tuple[float, Mixture]:
    """The best plain mixture and its log-likelihood."""
    one_point, one_weight = np.zeros((1, x.shape[1])), np.ones(1)
    return max((fit_groups(x, one_point, one_weight, start, content=False) for start in starts), key=lambda fit: fit[0])


def fit_groups(
    x: FloatArray, means: FloatArray, weights: FloatArray, second: FloatArray, *, content: bool
) -> tuple[float, Mixture]:
    """Expectation-maximization from the probabilities `second` `(n,)` of the second group: log-likelihood, mixture."""
    n = len(x)
    within = np.repeat(weights[None], n, axis=0)  # (n, J) which point, given the second group
    last, size, spread = -np.inf, float(content), 1.0
    for round_number in range(ROUNDS):
        joint = second[:, None] * within
        total = max(float(second.sum()), 1e-9)
        first = 1 - second
        center = first @ x / max(float(first.sum()), 1e-9)
        variance = variance_of(first, ((x - center) ** 2).sum(axis=1), x.shape[1])
        claims = joint.sum(axis=0) / total
        mean_x, mean_point = second @ x / total, claims @ means
        if content and round_number:
            size = size_of(x - mean_x, means - mean_point, joint)
        shift = mean_x - size * mean_point
        points = shift + size * means
        distances = squared_distances(x, points)
        if round_number:
            spread = variance_of(second, (within * distances).sum(axis=1), x.shape[1])
        share = float(np.clip(second.mean(), 1 / n, 1 - 1 / n))
        mixture = Mixture(share, center, variance, points, weights, spread, size, shift)
        each = np.log(weights) + log_normal(distances, spread, x.shape[1])
        whole = logsumexp(each, axis=1)
        within = np.exp(each - whole[:, None])
        odds = log_odds(x, mixture)
        of_first = log_normal(((x - center) ** 2).sum(axis=1), variance, x.shape[1])
        likelihood = float((np.log1p(-share) + of_first + np.logaddexp(0, odds)).sum())
        second = expit(odds)
        if abs(likelihood - last) < 1e-3:
            break
        last = likelihood
    return likelihood, mixture


def log_odds(x: FloatArray, mixture: Mixture) -> FloatArray:
    """Log-odds of the second group against the first, `(n,)`."""
    axes = x.shape[1]
    each = np.log(mixture.weights) + log_normal(squared_distances(x, mixture.points), mixture.spread, axes)
    first = log_normal(((x - mixture.center) ** 2).sum(axis=1), mixture.variance, axes)
    return np.asarray(np.log(mixture.share / (1 - mixture.share)) + logsumexp(each, axis=1) - first)


def size_of(x: FloatArray, points: FloatArray, joint: FloatArray) -> float:
    """Size of a constellation `(J, A)` in samples `(n, A)`, both around their means, by weighted least squares."""
    moved = float(((joint.T @ x) * points).sum())
    return float(np.clip(moved / max(float(joint.sum(axis=0) @ (points**2).sum(axis=1)), 1e-9), 0, 1.5))


def squared_distances(x: FloatArray, points: FloatArray) -> FloatArray:
    squares = (x**2).sum(axis=1)[:, None] - 2 * x @ points.T + (points**2).sum(axis=1)
    return np.asarray(np.maximum(squares, 0.0))


def variance_of(weights: FloatArray, squares: FloatArray, axes: int) -> float:
    return max(float(weights @ squares / (axes * max(float(weights.sum()), 1e-9))), SMALLEST_VARIANCE)


def log_normal(squares: FloatArray, variance: float, axes: int) -> FloatArray:
    return np.asarray(-0.5 * squares / variance - 0.5 * axes * np.log(2 * np.pi * variance))
