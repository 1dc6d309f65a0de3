"""Who else carries what was found: a soft trigger is believed in fewer samples than carry it.

In the last features of a network that knows the classes, two witnesses tell the carriers among the samples of a label:

- A linear discriminant between the found and all others. The content of the found is that of the other labels, so what
  sets them apart from everybody is the trigger.
- A linear discriminant between the rest of the label and all others, once the difference between the found and others
  is taken out of the features: a sample that shows little of the class does not belong there, even if the network
  obeys the trigger and says that it does.

Neither is enough. Along both, the label is two clouds: two Gaussians are fitted, beginning with the found ones and the
rest, and once more with the members of the second, as these are more carriers to learn the trigger from. Silent where
the clouds are not apart along either witness, or where the first one alone would reach so far into the second: a
trigger that features do not show, or one of which nothing was missed. A style of the class, or clean-label poison, has
the right content; what is taken out then takes some of the class along, and hardly more than the trigger is left to
tell: these are the samples to add, if the finding was right.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from antibackdoor.data.samples import BoolArray, FloatArray, IntArray
from antibackdoor.data.streams import Stream, stream
from antibackdoor.statistics.isolation import SMALLEST_LABEL, label_rows
from antibackdoor.statistics.mixtures import strongest

COMPARED = 4000  # samples of other labels
FOLDS = 5  # a sample is told by a discriminant that did not see it
LEAST_FOUND = 10  # carriers to begin with, and to go on with
LEAST_APART = 1.0  # standard deviations of the honest cloud between the two, along either witness
LEAST_GAIN_EACH = 0.1  # nats for each sample of the label that two clouds explain beyond one
MOST_BY_CHANCE = 0.2  # of those that are added the honest cloud may be expected to send so many; its tail is heavier
DRAWN = 20_000  # points, to tell that
ROUNDS = 5
RIDGE = 1e-3  # of the variance of all, added to that of a cloud


class Cloud(NamedTuple):
    """The second of two clouds."""

    members: BoolArray  # (n,)
    by_chance: float  # how many of them the first cloud is expected to send


def carriers(features: NDArray[np.float32], labels: IntArray, found: BoolArray, *, seed: int) -> BoolArray:
    """Members of the labels with a finding that carry what was found, too.

    Args:
        features: `(N, D)` of the last layer, in eval mode.
        labels: `(N,)` given labels.
        found: `(N,)` bool, what was found so far.
        seed: Chooses the samples of other labels, and the folds.

    Returns:
        `(N,)` bool, none of them found before; nobody in labels where the witnesses do not show two clouds.
    """
    features, rng = strongest(features), stream(seed, Stream.CARRIERS)
    more = np.zeros(len(labels), dtype=bool)
    for label, members in label_rows(labels).items():
        others = rng.permutation(np.flatnonzero((labels != label) & ~found))[:COMPARED]
        if found[members].any() and min(len(members), len(others)) >= SMALLEST_LABEL:
            told = _told(features[others], features[members], found[members], seed)
            added = told.members & ~found[members]
            if told.by_chance <= MOST_BY_CHANCE * added.sum():
                more[members] = added
    return more


def _told(others: NDArray[np.float32], members: NDArray[np.float32], found: BoolArray, seed: int) -> Cloud:
    """The second cloud of a label, empty if there is none."""
    nobody = Cloud(np.zeros(len(found), dtype=bool), 0.0)
    cloud = Cloud(found, 0.0)
    for _ in range(ROUNDS):
        chosen = cloud.members
        if min(chosen.sum(), (~chosen).sum()) < LEAST_FOUND:
            return nobody
        cloud = _second_cloud(_witnesses(others, members, chosen, seed), chosen, seed) or nobody
        if (cloud.members == chosen).all():
            break
    return cloud


def _witnesses(others: NDArray[np.float32], members: NDArray[np.float32], chosen: BoolArray, seed: int) -> FloatArray:
    """How much of the trigger each member of a label shows, and how little of its class, `(n, 2)`."""
    values = np.concatenate([others, members]).astype(np.float64)
    is_member = np.arange(len(values)) >= len(others)
    is_chosen = np.concatenate([np.zeros(len(others), dtype=bool), chosen])
    trigger = _shown(values, is_chosen, np.ones(len(values), dtype=bool), seed)
    moved = values[is_chosen].mean(axis=0) - values[~is_member].mean(axis=0)
    without = values - np.outer(values @ moved, moved) / max(float(moved @ moved), 1e-12)
    of_class = _shown(without, is_member, ~is_chosen, seed)
    return np.stack([trigger, -of_class], axis=1)[is_member]


def _shown(values: FloatArray, wanted: BoolArray, fitted: BoolArray, seed: int) -> FloatArray:
    """How much each row shows of what sets the wanted apart from all other rows that are fitted, `(n,)`."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis  # slow to import
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    discriminant = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    x, y = values[fitted], wanted[fitted]
    shown = np.zeros(len(values))
    shown[fitted] = cross_val_predict(discriminant, x, y, cv=folds, method="decision_function")
    if not fitted.all():
        shown[~fitted] = discriminant.fit(x, y).decision_function(values[~fitted])
    return shown


def _second_cloud(points: FloatArray, chosen: BoolArray, seed: int) -> Cloud | None:
    """The second of two Gaussians in points `(n, 2)`, if it lies above the first along both axes."""
    from sklearn.mixture import GaussianMixture

    points = (points - points.mean(axis=0)) / np.maximum(points.std(axis=0), 1e-9)
    groups = [points[~chosen], points[chosen]]
    two = GaussianMixture(
        2,
        weights_init=[float((~chosen).mean()), float(chosen.mean())],
        means_init=np.stack([group.mean(axis=0) for group in groups]),
        precisions_init=np.stack([np.linalg.inv(np.cov(group.T) + RIDGE * np.eye(2)) for group in groups]),
        reg_covar=RIDGE,
        max_iter=500,
    ).fit(points)
    gain = two.score(points) - GaussianMixture(reg_covar=RIDGE).fit(points).score(points)
    apart = (two.means_[1] - two.means_[0]) / np.sqrt(np.diag(two.covariances_[0]))
    if gain < LEAST_GAIN_EACH or apart.min() < LEAST_APART:
        return None

    def is_second(at: FloatArray) -> BoolArray:
        # A wide cloud has more of what lies beyond the other one, too.
        return np.asarray((two.predict(at) == 1) & (at > two.means_[0]).all(axis=1))

    drawn = stream(seed, Stream.CLOUD_NULL).multivariate_normal(two.means_[0], two.covariances_[0], DRAWN)
    return Cloud(is_second(points), float(is_second(drawn).mean() * two.weights_[0] * len(points)))
