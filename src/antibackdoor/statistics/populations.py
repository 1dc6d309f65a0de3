"""Which labels hold a second population made of the content of the other labels plus one common shift?

Loss tells nothing where classes are learned as fast as the trigger, as on small or easy data. But a mislabelled
sample still shows what it is: in shallow features, the poisoned samples of label k lie where the other labels lie,
all moved by the trigger. With everything whitened by the spread inside the other labels, two nested mixtures are
fitted to the samples of each label:

    plain:    (1 - p) N(m, s1 I) + p N(b, s2 I)
    content:  (1 - p) N(m, s1 I) + p sum_j w_j N(b + a (mu_j - mu), s2 I)

with the means `mu_j` and shares `w_j` of the other labels. A genuine subclass is described as well by two plain
groups; poisoned samples are not. Because the second group carries the constellation, it is known which of the two
is the poison, whatever their sizes. A trigger so faint that it moves nothing leaves its carriers at their content's
own place; there, neighbors tell them, if one label holds such samples and the others do not.

The test is silent by design where it cannot know: with fewer than three other labels, and for clean-label poison,
whose content is the label's own. It resembles SCAn (Tang et al., USENIX Security 2021), which also splits labels in
two, but needs no clean samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logsumexp, softmax
from scipy.stats import entropy

from antibackdoor.data.samples import BoolArray, FloatArray, IntArray
from antibackdoor.data.streams import Stream, stream
from antibackdoor.statistics.isolation import SMALLEST_GROUP, SMALLEST_LABEL, label_rows
from antibackdoor.statistics.mixtures import (
    ROUNDS,
    Frame,
    Mixture,
    fit_groups,
    fit_plain,
    frame_of,
    log_normal,
    log_odds,
    moments,
    size_of,
    squared_distances,
    starting_groups,
    strongest,
    variance_of,
    varying,
    whitening_of,
)
from antibackdoor.statistics.parts import contradiction

LEAST_GAIN = 30.0  # nats that the constellation must explain beyond a plain group; near copies: up to 26
LEAST_DEEP_GAIN = 10.0  # in small labels, and in the features of a network that knows the classes: clean data near 0
LEAST_GAIN_EACH = 0.2  # and there, or where nothing else divides the group, for each sample of the label
SECONDED = 0.25  # of that, where another witness is asked, which knows nothing of content, and names the same samples
LEAST_AGREEMENT = 0.5  # of the two: the share of the group that it names, less that of the rest of the label
LEAST_CONTENT = 0.4  # size of the constellation in the group against the other labels' own (1: all of it is kept)
LEAST_CARRIED = 10.0  # nats, of a group that something else tells apart; in clean data: up to 6.3
LEAST_SEVERAL = 2.0  # effective number of other labels, of which such a group can show a mixture; heartbeats: 1.8
LEAST_KEPT = 0.6  # content of such a group, to count at all; styles of a label: up to .5, poison: .63 and more
LEAST_SHIFT = 3.0  # distance of the group from the content's own place, in its standard deviations
LEAST_MOVED = 1.5  # the same, where the gain is large for each sample; wrong labels without a trigger: up to .6
MOST_ERROR = 0.01  # expected share of samples put into the wrong group, of the smaller group; near copies: up to .04
FAR_LOUDER = 2.0  # times the gain of every label without such a group; 10% wrong labels in 43 classes: 1.4
FAR_STRANGER = 3.0  # times what strange samples of other labels carry, and times as many; wrong labels in all: 1.6
LEAST_STRANGE_CONTENT = 0.75  # of strange samples; border cases of clean data: up to .71, poison: .83 and more
MOST_FITTED = 2000  # samples of a label that the mixtures are fitted to


class Populations(NamedTuple):
    """What the test found.

    Attributes:
        flagged: `(N,)` bool, members of a second population.
        labels: The labels that hold one.
        gains: For each label that could be tested, the gain in nats; evidence only beyond `LEAST_GAIN`.
        blurred: `(N,)` bool, about who belongs to a second population where no cut divides the two; none of `labels`.
    """

    flagged: BoolArray
    labels: tuple[int, ...]
    gains: dict[int, float]
    blurred: BoolArray


class _Tested(NamedTuple):
    """A label's mixture of two groups, the second with the content of the other labels, beside a plain one."""

    label: int
    members: IntArray  # (n,) its rows
    n_fitted: int
    gain: float  # nats
    best: Mixture
    odds: FloatArray  # (n,) log-odds of the second group


def two_populations(features: NDArray[np.float32], labels: IntArray, *, seed: int) -> Populations:
    """Test each label for a second population that carries the other labels' content.

    It must be moved, or else its neighbors must call it strange in this label, and hardly anybody in any other.

    Args:
        features: `(N, D)` of a shallow layer, in eval mode.
        labels: `(N,)` given labels.
        seed: Chooses starts, and samples where there are many.

    Returns:
        Members and labels of the second populations.
    """
    tested = list(_tested(features, labels, seed))
    loud = [test for test in tested if test.gain > LEAST_GAIN and test.best.content > LEAST_CONTENT]
    told = [test for test in loud if _is_told(test)]
    moved = [test for test in [*loud, *_small(tested)] if _is_sharp(test) and _shift(test.best) > LEAST_SHIFT]
    near = _but(told, moved)
    sharp = [*moved, *_little_moved(near, _but(tested, moved))]
    blurred = _but(near, sharp)
    # What a label without a second population shows as well is no evidence: near copies make such gains by chance.
    loudest = _most(_but(tested, sharp + blurred))
    found = _populations(labels, tested, [test for test in sharp if test.gain > loudest], blurred)
    return with_strange(found, features, labels, seed=seed)


def with_strange(found: Populations, features: NDArray[np.float32], labels: IntArray, *, seed: int) -> Populations:
    """The same, and the strange samples of labels in which these carry the content of all others, as nowhere else.

    A sample is strange if fewer than half of its nearest neighbors share its label. Samples with wrong labels lie at
    their content's own place, where no shift tells them. Mistakes are made in all labels alike, and border cases
    resemble one or two other labels; where the labels of one are wrong, whatever the content, and those of the others
    are not, somebody chose it.

    Args:
        found: Of the same features.
        features: `(N, D)` of a layer, in eval mode.
        labels: `(N,)` given labels.
        seed: Chooses samples where there are many.

    Returns:
        What was found, and the strange samples of more labels.
    """
    if not found.gains:
        return found
    strange = _strange(features, labels, seed)
    constellations = Constellations(features, labels, seed=seed)
    carried = {label: constellations.carried(label, strange) for label in found.gains}
    loud = [k for k, c in carried.items() if c.gain > LEAST_GAIN and c.content > LEAST_STRANGE_CONTENT]
    others = np.setdiff1d(labels, [*loud, *found.labels])
    if not loud or 2 * len(loud) > len(carried) or not len(others):
        return found
    usual = max((carried[label].gain for label in others.tolist() if label in carried), default=0.0)
    counts, sizes = np.bincount(labels, strange), np.bincount(labels)
    # Mistakes may be as many in each label, or as many as its size tells.
    mistakes = np.maximum(counts[others].mean(), counts[others].sum() / sizes[others].sum() * sizes)
    told = [k for k in loud if carried[k].gain > FAR_STRANGER * usual and counts[k] > FAR_STRANGER * mistakes[k]]
    more = [label for label in told if label not in found.labels]
    # Of many, some are each other's neighbors; the mixture tells these, if it means the same samples.
    agreeing = [k for k in more if _agreement(found.blurred[labels == k], strange[labels == k]) > LEAST_AGREEMENT]
    members = (strange & np.isin(labels, more)) | (found.blurred & np.isin(labels, agreeing))
    return Populations(
        flagged=found.flagged | members,
        labels=tuple(sorted({*found.labels, *more})),
        gains=found.gains | {label: max(carried[label].gain, found.gains[label]) for label in more},
        blurred=found.blurred & ~np.isin(labels, more),
    )


def strangers(
    features: NDArray[np.float32],
    labels: IntArray,
    *,
    seed: int,
    apart: BoolArray | None = None,
    known: Sequence[int] = (),
) -> Populations:
    """Test each label for samples that belong to the other labels, whether or not anything moved them.

    For the features of a network that knows the classes: there, clean samples lie with their own label, and no shift
    is needed to tell who does not. What is left are mislabelled samples. If most labels hold some, they are mistakes
    and no attack, and nothing is flagged.

    Args:
        features: `(N, D)` of a deep layer, in eval mode.
        labels: `(N,)` given labels.
        seed: Chooses starts, and samples where there are many.
        apart: `(N,)` bool, who is set apart in other features, by groups that know nothing of content. In features
            that do not know the classes well, honest groups make large gains, too; so these must be the samples
            that do not belong, and hardly any others, but then a quarter of the gain is enough. None asks nobody.
        known: Labels that hold some by other evidence; there, nobody else is asked either.

    Returns:
        Members and labels of the second populations; members are told from the rest less sharply than by
        `two_populations`.
    """

    def is_told(test: _Tested) -> bool:
        if apart is None or test.label in known:
            return _is_told(test)
        return _is_told(test, SECONDED) and _agreement(test.odds > 0, apart[test.members]) > LEAST_AGREEMENT

    tested = list(_tested(strongest(features), labels, seed))
    found = [
        test
        for test in tested
        if test.gain > LEAST_DEEP_GAIN
        and is_told(test)
        and test.best.content > LEAST_CONTENT
        and SMALLEST_GROUP <= int((test.odds > 0).sum()) < len(test.odds)
    ]
    return _populations(labels, tested, [] if 2 * len(found) > len(tested) else found, [])


def _agreement(inside: BoolArray, chosen: BoolArray) -> float:
    """How much oftener members of a group of a label are chosen than the rest of it: -1 to 1."""
    return float(chosen[inside].mean() - chosen[~inside].mean()) if 0 < inside.sum() < len(inside) else 0.0


def _populations(
    labels: IntArray, tested: Sequence[_Tested], found: Sequence[_Tested], blurred: Sequence[_Tested]
) -> Populations:
    """What was tested, and the members of what was found in it."""
    return Populations(
        flagged=_members(labels, found),
        labels=tuple(test.label for test in found),
        gains={test.label: test.gain for test in tested},
        blurred=_members(labels, blurred),
    )


def _members(labels: IntArray, found: Sequence[_Tested]) -> BoolArray:
    """Who belongs to the second groups, `(N,)` bool."""
    flagged = np.zeros(len(labels), dtype=bool)
    for test in found:
        flagged[test.members[test.odds > 0]] = True
    return flagged


class Carried(NamedTuple):
    """How a group of a label looks like a mixture of the other labels."""

    gain: float  # nats that their constellation explains beyond a single blob
    content: float  # size of the constellation in the group against the other labels' own (1: all of it is kept)

    @property
    def evidence(self) -> float:
        """Nats that speak for poison: none if little of the content is left, as in a style of the label."""
        return self.gain if self.content > LEAST_KEPT else 0.0

    @property
    def strength(self) -> float:
        """That as a share of what honest groups do not show any more: 0 to 1."""
        return min(1.0, self.evidence / LEAST_CARRIED)


class Constellations:
    """Features of a layer, to be asked whether groups that something else tells apart carry other labels' content.

    Without having to find the group as well, this sees much less content than `two_populations`, and in features that
    hardly tell the classes. What counts is what the group has beyond the rest of its label, by whose spread everything
    is whitened: a style of the label, or a class within it, is a single blob.

    Args:
        features: `(N, D)` of a layer, in eval mode.
        labels: `(N,)` given labels.
        seed: Chooses samples where there are many.
    """

    def __init__(self, features: NDArray[np.float32], labels: IntArray, *, seed: int) -> None:
        self._values, self._rows = features[:, varying(features)], label_rows(labels)
        self._moments = moments(self._values, self._rows, stream(seed, Stream.MOMENTS))
        self._frames: dict[int, Frame | None] = {}

    def carried(self, label: int, group: BoolArray) -> Carried:
        """What the members of a label for which `group` `(N,)` is true carry.

        Nothing with fewer than three other labels, or if nearly all samples of the others are of one: a mixture of
        that one and a few more fits honest groups, too.
        """
        members = self._rows[label]
        if label not in self._frames:
            self._frames[label] = frame_of(self._values[members].astype(np.float64), label, self._moments)
        frame = self._frames[label]
        chosen = group[members]
        is_small = min(chosen.sum(), (~chosen).sum()) < SMALLEST_GROUP
        if frame is None or is_small or np.exp(entropy(frame.weights)) < LEAST_SEVERAL:
            return Carried(0.0, 0.0)
        # Along its own axes the trigger itself spreads, more where it is stronger.
        points, means = frame.points[:, : frame.n_content], frame.means[:, : frame.n_content]
        whitening = whitening_of(points[~chosen])
        return _carried(points[chosen] @ whitening, means @ whitening, frame.weights)


def smaller_groups(features: NDArray[np.float32], labels: IntArray, *, seed: int) -> FloatArray:
    """How much rather each sample belongs to the smaller of two groups of its label than to the larger.

    In the last features of a network that obeys a trigger, the carriers lie apart from the class that they are said to
    be of, wherever they come from. So do genuine subclasses: this says whom to suspect, not whether anything is wrong.
    The split is that of activation clustering (Chen et al., SafeAI 2019).

    Args:
        features: `(N, D)` of the last layer, in eval mode.
        labels: `(N,)` given labels.
        seed: Chooses starts, and samples where there are many.

    Returns:
        `(N,)` log-odds; all 0 in labels with too few samples, and with fewer than four labels.
    """
    suspicion = np.zeros(len(labels))
    for _, members, frame, fitted in _frames(strongest(features), labels, seed):
        odds = log_odds(frame.points, fit_plain(fitted, starting_groups(fitted, seed))[1])
        suspicion[members] = odds if (odds > 0).mean() <= 0.5 else -odds
    return suspicion


def _tested(features: NDArray[np.float32], labels: IntArray, seed: int) -> Iterator[_Tested]:
    """Test each label."""
    for label, members, frame, fitted in _frames(features, labels, seed):
        gain, best = _test(fitted, frame.means, frame.weights, seed)
        yield _Tested(label, members, len(fitted), gain, best, log_odds(frame.points, best))


def _frames(
    features: NDArray[np.float32], labels: IntArray, seed: int
) -> Iterator[tuple[int, IntArray, Frame, FloatArray]]:
    """Each label that is large enough, its rows, its frame, and those of its points that mixtures are fitted to."""
    values = features[:, varying(features)].astype(np.float64)
    rows = label_rows(labels)
    rng = stream(seed, Stream.POPULATIONS)
    spread = moments(values, rows, rng)
    for label, members in rows.items():
        if len(members) < SMALLEST_LABEL:
            continue
        frame = frame_of(values[members], label, spread)
        if frame is None:
            continue
        fitted = frame.points
        if len(members) > MOST_FITTED:
            fitted = fitted[rng.choice(len(members), MOST_FITTED, replace=False)]
        yield label, members, frame, fitted


def _test(x: FloatArray, means: FloatArray, weights: FloatArray, seed: int) -> tuple[float, Mixture]:
    """Gain of the content mixture over the plain one, and the former, each the best of several starts."""
    starts = starting_groups(x, seed)
    plain, _ = fit_plain(x, starts)
    likelihood, best = max(
        (fit_groups(x, means, weights, start, content=True) for start in starts), key=lambda fit: fit[0]
    )
    return likelihood - plain, best


def _carried(x: FloatArray, means: FloatArray, weights: FloatArray) -> Carried:
    """The second group of `fit_groups` alone, whose members are known, against the same with a size of 0."""
    n, axes = x.shape
    middle = x.mean(axis=0)
    squares = ((x - middle) ** 2).sum(axis=1)
    plain = float(log_normal(squares, variance_of(np.ones(n), squares, axes), axes).sum())
    nearest = np.log(weights) - 0.5 * squared_distances(x - middle, means - weights @ means)
    best = Carried(0.0, 0.0)
    for logits in (nearest, np.repeat(np.log(weights)[None], n, axis=0)):  # two starts
        within, last = softmax(logits, axis=1), -np.inf
        for _ in range(ROUNDS):
            mean_point = within.mean(axis=0) @ means
            size = size_of(x - middle, means - mean_point, within)
            distances = squared_distances(x, middle + size * (means - mean_point))
            spread = variance_of(np.ones(n), (within * distances).sum(axis=1), axes)
            each = np.log(weights) + log_normal(distances, spread, axes)
            whole = logsumexp(each, axis=1)
            within, likelihood = np.exp(each - whole[:, None]), float(whole.sum())
            if abs(likelihood - last) < 1e-3:
                break
            last = likelihood
        best = max(best, Carried(likelihood - plain, size))
    return best


def _is_sharp(test: _Tested) -> bool:
    """Does a cut divide the two groups?"""
    second = expit(test.odds)
    smaller = max(min(float(second.sum()), float((1 - second).sum())), 1e-9)
    error = float(np.minimum(second, 1 - second).sum()) / smaller
    return error < MOST_ERROR and SMALLEST_GROUP <= int((test.odds > 0).sum()) < len(test.odds)


def _shift(mixture: Mixture) -> float:
    """How far the second group lies from the content's own place, in its standard deviations."""
    return float(np.linalg.norm(mixture.shift)) / float(np.sqrt(mixture.spread))


def _is_told(test: _Tested, share: float = 1.0) -> bool:
    """Is the gain large for each sample of the label, or for this share of it?"""
    return test.gain > share * LEAST_GAIN_EACH * test.n_fitted


def _small(tested: Sequence[_Tested]) -> list[_Tested]:
    """The label, if any, whose samples are too few to explain as many nats as a large one, but each as much.

    Near copies make as large gains by chance, in several labels, or with little content.
    """
    loud = [test for test in tested if LEAST_DEEP_GAIN < test.gain <= LEAST_GAIN and _is_told(test)]
    full = [test for test in loud if test.best.content > LEAST_KEPT]
    return [test for test in full if test.gain > FAR_LOUDER * _most(_but(tested, [test]))]


def _little_moved(near: Sequence[_Tested], others: Sequence[_Tested]) -> list[_Tested]:
    """Those of the labels with a group near the content's own place that is moved a little, and by far the loudest.

    Wrong labels in all classes make groups near that place, too, as loud in several labels.
    """
    moved = [test for test in near if _is_sharp(test) and _shift(test.best) > LEAST_MOVED]
    return [test for test in moved if test.gain > FAR_LOUDER * _most(_but(others, moved))]


def _but(tests: Sequence[_Tested], left_out: Sequence[_Tested]) -> list[_Tested]:
    """The tests of the labels that some others are not of."""
    labels = {test.label for test in left_out}
    return [test for test in tests if test.label not in labels]


def _most(tests: Sequence[_Tested]) -> float:
    """The largest gain in nats; 0 without any."""
    return max((test.gain for test in tests), default=0.0)


def _strange(features: NDArray[np.float32], labels: IntArray, seed: int) -> BoolArray:
    """Samples of which fewer than half of the nearest neighbors share the label, `(N,)` bool."""
    values = features[:, varying(features)]
    values = (values - values.mean(axis=0)) / values.std(axis=0)
    return contradiction(values[:, None], labels, seed=seed) > 0.5
