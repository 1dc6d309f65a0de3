"""Whom to suspect where no loss tells: samples whose parts look like another label.

On easy data the classes are learned as fast as any trigger, and the losses of poisoned samples are like those of the
others. But a trigger in one place leaves the rest of a mislabelled sample as it was, and the neighbors of that rest,
in the same place of other samples, carry the label that it was taken from. This is no verdict: border cases
contradict their label too. It serves to choose the suspects that confusion begins with. It is blind to triggers that
cover everything strongly, to clean-label poison, and to pictures whose content neighbors do not tell.

A group that was found is asked as a whole, without what all of it have in common: poison from many labels then lies
among their samples, a class within the label by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antibackdoor.data.samples import BoolArray, FloatArray, IntArray
from antibackdoor.data.streams import Stream, stream

NEIGHBORS = 10
MOST_STRETCHED = 2.0  # a trigger takes half of the contrast; a class within a label is narrower still
COMPARED = 5000  # samples that neighbors are looked for among
PLACED = 1000  # samples of a place that a group is compared with, and of the group
LEAST_PLACED = 10  # samples of a group whose place is asked for
MISPLACED = 0.13  # so much less odd among other labels than among its own: poison .15 to .5, honest groups at most .09
MOST_ODD = 0.8  # among other labels, in the middle of the group: poison .75 at most, half honest groups .9
CONFIRMED = 2 / 3  # share of the rest of a label that contradicts it less than the middle one of the found does
NO_LESS = 0.5  # the same of what is added to the found, and of a group that is clearly one
MIXED = 0.5  # with samples of other labels, of what these do among each other; a class within a label hardly does
LEAST_MIXED = 0.25  # the same where place tells: poison .38 and more, forty slanted digits one .18 and less
AGREEING = 1 / 3  # with their labels, of what the rest does: poison .05 at most, an odd speaker .5, others .85 and more
AT_HOME = 0.06  # so much odder among other labels: of two or three, honest styles by .4 at most, poison by .05
ODD_ANYWHERE = 0.85  # in the middle of a group of all labels: poison .8 at most, one of two actors .91
LIKE_ONE = 0.6  # so much carriers of one class mix with that class; classes within a label by half at most


def contradiction(parts: NDArray[np.float32], labels: IntArray, *, seed: int) -> FloatArray:
    """How much the parts of each sample contradict its label.

    Args:
        parts: `(N, P, D)`, each part by itself.
        labels: `(N,)` given labels.
        seed: Chooses whom to compare with, where there are many samples.

    Returns:
        `(N,)` in [0, 1]: the share of other labels among the ten nearest neighbors, as a mean over the parts.
    """
    n = len(labels)
    compared = stream(seed, Stream.NEIGHBORS).permutation(n)[:COMPARED]
    total: FloatArray = np.zeros(n)
    if len(compared) < 2:
        return total
    for part in range(parts.shape[1]):
        nearest = _nearest(np.ascontiguousarray(parts[:, part]), np.arange(n), compared)
        total += (labels[nearest] != labels[:, None]).mean(axis=1)
    return np.asarray(total / parts.shape[1], dtype=np.float64)


def mixing(values: NDArray[np.float32], group: BoolArray, others: BoolArray, *, seed: int) -> float:
    """How much a group of samples mixes with others, once it is moved to their middle and stretched to their spread.

    That takes back a trigger that is the same in all of the group, and the contrast that it took from them.

    Args:
        values: `(N, D)` coarse values of each sample.
        group: `(N,)` bool.
        others: `(N,)` bool, none of the group.
        seed: Chooses whom to compare with, where there are many samples.

    Returns:
        The share of others among the ten nearest neighbors of the group, of what it would be if both were alike; 0 if
        there are not enough of both.
    """
    drawn = stream(seed, Stream.MIXING)
    of_group = drawn.permutation(np.flatnonzero(group))[: COMPARED // 2]
    of_others = drawn.permutation(np.flatnonzero(others))[: COMPARED - len(of_group)]
    n, n_others = len(of_group), len(of_others)
    if n < 2 or n_others < 2:
        return 0.0
    here, there = (values[rows].astype(np.float64) for rows in (of_group, of_others))
    here = _moved(here, there)
    nearest = _nearest(np.concatenate([here, there]), np.arange(n), np.arange(n + n_others))
    return float((nearest >= n).mean() * (n + n_others - 1) / n_others)


def atypical(values: NDArray[np.float32], group: BoolArray, place: BoolArray, *, seed: int) -> FloatArray:
    """How odd each of a group would be in another place, once it is moved to its middle and stretched to its spread.

    Args:
        values: `(N, D)` coarse values of each sample.
        group: `(N,)` bool.
        place: `(N,)` bool, none of the group.
        seed: Chooses who is compared, where there are many samples.

    Returns:
        For some of the group at random, which depend on `group` and `seed` alone: the share of the place whose
        neighbors there are nearer than theirs, in [0, 1]; about a half on average for those who could be of it.
        Empty if there are not enough of both.
    """
    drawn = stream(seed, Stream.PLACES)
    of_group, of_place = (drawn.permutation(np.flatnonzero(rows))[:PLACED] for rows in (group, place))
    if min(len(of_group), len(of_place)) < 2:
        return np.empty(0)
    here, there = (values[rows].astype(np.float64) for rows in (of_group, of_place))
    here = _moved(here, there)
    usual = np.sort(_distances(there, there, is_own=True))
    return np.searchsorted(usual, _distances(here, there, is_own=False)) / len(usual)


def agreement(values: NDArray[np.float32], labels: IntArray, group: BoolArray, *, seed: int) -> float:
    """How much a group of samples of several labels looks like these, once it is moved to the middle of the rest.

    Args:
        values: `(N, D)` coarse values of each sample.
        labels: `(N,)` given labels.
        group: `(N,)` bool.
        seed: Chooses whom to compare with, where there are many samples.

    Returns:
        The share of their own label among the ten nearest neighbors of the group in the rest, 0 if it is that of a
        guess, 1 if it is that of the rest; 1 as well if there are not enough of both, or neighbors tell no labels.
    """
    drawn = stream(seed, Stream.AGREEMENT)
    of_group = drawn.permutation(np.flatnonzero(group))[: COMPARED // 2]
    rest = drawn.permutation(np.flatnonzero(~group))[:COMPARED]
    n = len(of_group)
    if n < 2 or len(rest) < 2:
        return 1.0
    here, there = (values[rows].astype(np.float64) for rows in (of_group, rest))
    here = here - here.mean(axis=0) + there.mean(axis=0)
    both = np.concatenate([of_group, rest])
    nearest = _nearest(np.concatenate([here, there]), np.arange(len(both)), np.arange(n, len(both)))
    is_own = labels[both][nearest] == labels[both][:, None]
    shares = np.bincount(labels[rest], minlength=labels.max() + 1) / len(rest)
    told, by_chance = float(is_own[n:].mean()), float(shares[labels[of_group]].mean())
    typical = told - float((shares**2).sum())
    return (float(is_own[:n].mean()) - by_chance) / typical if typical > 0 else 1.0


@dataclass(frozen=True, eq=False)
class Resemblance:
    """What the samples of each label look like: by their parts, and as a whole but for what they have in common.

    Attributes:
        parts: `(N, P, D)` coarse values of each part of each sample.
        labels: `(N,)` given labels.
        seed: Chooses whom to compare with, where there are many samples.
    """

    parts: NDArray[np.float32]
    labels: IntArray
    seed: int

    @cached_property
    def contradiction(self) -> FloatArray:
        """`(N,)` how much the parts of each sample look like other labels."""
        return contradiction(self.parts, self.labels, seed=self.seed)

    def is_foreign(self, group: BoolArray, label: int, *, is_clear: bool = False) -> bool:
        """Whether a group of a label could be of other labels; its parts need say less of one that is clearly a group.

        Near copies of one object, styles within a class, and classes within a label form groups too. Parts of the first
        two look like their own label. The third are by themselves, but for what they have in common.
        """
        of_label = self.labels == label
        contradicts, least = self._contradicts(group, of_label & ~group), NO_LESS if is_clear else CONFIRMED
        return contradicts > least and self._mixing(group, ~of_label) >= MIXED

    def misplacement(self, group: BoolArray, label: int) -> float:
        """How much less odd a group of a label would be among the samples of other labels than among the label's rest.

        Carriers of a trigger lie as those do whom they were taken from; a style of the label, or a class within it,
        lies like its like. That asks for no third label whose content could be compared. 0 for small groups, for more
        than half of a label, for groups whose parts look like their own label, for those that are odd everywhere, and
        for those that keep to themselves: odd ones among samples that are all much alike, as slanted digits one are.
        And where the rest of the label is no more at home in it than among the others, as photographs may be.
        """
        rest = (self.labels == label) & ~group
        if not LEAST_PLACED <= group.sum() <= rest.sum() or self._contradicts(group, rest) < NO_LESS:
            return 0.0
        others = self.labels != label
        elsewhere, here = self._oddness(group, others, rest)
        if np.median(elsewhere) > MOST_ODD or self._mixing(group, others) < LEAST_MIXED:
            return 0.0
        by = float((here - elsewhere).mean())
        return by if by > 0 and self._is_home(rest, label) else 0.0

    def is_at_home(self, group: BoolArray, label: int) -> bool:
        """Whether a group of a label would be odder among the samples of the only other labels than among its rest.

        A style may be as foreign to the other label as to its own; what is more so is no poison from there. Where there
        are many labels, the place of all others together tells nothing of the kind.
        """
        rest = (self.labels == label) & ~group
        if not LEAST_PLACED <= group.sum() <= rest.sum():
            return False
        elsewhere, here = self._oddness(group, self.labels != label, rest)
        return bool((elsewhere - here).mean() > AT_HOME)

    def is_like_one(self, group: BoolArray, label: int) -> bool:
        """Whether a group of a label could be of other labels, or of a single one."""
        others = self.labels != label
        candidates = [others, *(self.labels == other for other in np.unique(self.labels[others]))]
        return any(self._mixing(group, rows) >= LIKE_ONE for rows in candidates)

    def is_alike(self, more: BoolArray, found: BoolArray, label: int) -> bool:
        """Whether more samples of a label are as foreign as those that were found in it, if these are."""
        of_label = self.labels == label
        if not self.is_foreign(found, label):
            return True
        contradicts = self._contradicts(more, of_label & ~found & ~more)
        return contradicts >= NO_LESS and self._mixing(more, ~of_label) >= MIXED

    def is_at_odds(self, group: BoolArray) -> bool:
        """Whether a group of several labels is hardly what these say, although its samples are no odder than others.

        What has its own style mostly agrees with its labels. One of two speakers or actors may be so different that
        neighbors tell nothing of it, but then it is odd among all the others; carriers of a trigger are not.
        """
        values = self.parts.reshape(len(self.parts), -1)
        if agreement(values, self.labels, group, seed=self.seed) >= AGREEING:
            return False
        return bool(np.median(atypical(values, group, ~group, seed=self.seed)) <= ODD_ANYWHERE)

    def _oddness(self, group: BoolArray, others: BoolArray, rest: BoolArray) -> tuple[FloatArray, FloatArray]:
        """How odd the same samples of a group would be among others, and are in the rest of their label."""
        values = self.parts.reshape(len(self.parts), -1)
        elsewhere, here = (atypical(values, group, place, seed=self.seed) for place in (others, rest))
        return (elsewhere, here) if len(elsewhere) == len(here) else (np.ones(1), np.ones(1))

    def _is_home(self, rest: BoolArray, label: int) -> bool:
        """Whether a random half of the rest of a label would be odder among the others than it is in the other half."""
        half = rest & (stream(self.seed, Stream.HOME).random(len(rest)) < 0.5)
        elsewhere, here = self._oddness(half, self.labels != label, rest & ~half)
        return bool((elsewhere - here).mean() > AT_HOME)

    def _contradicts(self, group: BoolArray, rest: BoolArray) -> float:
        """The share of the rest of a label that contradicts it less than the middle one of a group does."""
        if not group.any() or not rest.any():
            return 0.0
        return float((self.contradiction[rest] < np.median(self.contradiction[group])).mean())

    def _mixing(self, group: BoolArray, others: BoolArray) -> float:
        return mixing(self.parts.reshape(len(self.parts), -1), group, others, seed=self.seed)


def _moved(here: FloatArray, there: FloatArray) -> FloatArray:
    """The values here, moved to the middle of those there and stretched to their spread."""
    stretch = np.sqrt(there.var(axis=0).sum() / max(here.var(axis=0).sum(), 1e-12))
    return np.asarray((here - here.mean(axis=0)) * min(stretch, MOST_STRETCHED) + there.mean(axis=0))


def _distances(values: FloatArray, among: FloatArray, *, is_own: bool) -> FloatArray:
    """Mean distance of each of the values to its nearest neighbors; if they are the same, each without itself."""
    from sklearn.neighbors import NearestNeighbors  # slow to import, and most commands need none

    count = min(NEIGHBORS + is_own, len(among))
    distances, _ = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(among).kneighbors(values)
    return np.asarray(distances[:, int(is_own) :].mean(axis=1), dtype=np.float64)


def _nearest(values: NDArray[Any], rows: IntArray, among: IntArray) -> IntArray:
    """For each of the rows its nearest neighbors, itself excepted, `(len(rows), at most 10)`."""
    from sklearn.neighbors import NearestNeighbors  # slow to import, and most commands need none

    count = min(NEIGHBORS, len(among) - 1)
    search = NearestNeighbors(n_neighbors=count + 1, algorithm="brute").fit(values[among])
    nearest = among[search.kneighbors(values[rows], return_distance=False)]
    dropped = nearest == rows[:, None]
    # Where a sample is not among them, the farthest one is left out.
    dropped[~dropped.any(axis=1), -1] = True
    return np.asarray(nearest[~dropped].reshape(len(rows), count), dtype=np.int64)
