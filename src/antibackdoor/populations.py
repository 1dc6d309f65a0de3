"""Which labels hold a second population made of the content of the other labels plus one common shift?

Loss tells nothing where classes are learned as fast as the trigger, as on small or easy data. But a mislabelled
sample still shows what it is: in shallow features, the poisoned samples of label k lie where the other labels lie,
all moved by the trigger. With everything whitened by the spread inside the other labels, two nested mixtures are
fitted to the samples of each label:

    plain:    (1 - p) N(m, s1 I) + p N(b, s2 I)
    content:  (1 - p) N(m, s1 I) + p sum_j w_j N(b + a (mu_j - mu), s2 I)

with the means `mu_j` and shares `w_j` of the other labels. A genuine subclass is described as well by two plain
groups; poisoned samples are not. Because the second group carries the constellation, it is known which of the two
is the poison, whatever their sizes. The test is silent by design where it cannot know: with fewer than three other
labels, and for clean-label poison, whose content is the label's own. It resembles SCAn (Tang et al., USENIX
Security 2021), which also splits labels in two, but needs no clean samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logsumexp, softmax

from antibackdoor.isolation import SMALLEST_GROUP, SMALLEST_LABEL, label_rows
from antibackdoor.samples import BoolArray, FloatArray, IntArray

LEAST_GAIN = 30.0  # nats that the constellation must explain beyond a plain group; near copies: up to 26
LEAST_DEEP_GAIN = 10.0  # the same in the features of a network that knows the classes; clean data stay near 0 there
LEAST_GAIN_EACH = 0.2  # and there, or where nothing else divides the group, for each sample of the label
SECONDED = 0.25  # of that, where another witness is asked, which knows nothing of content, and names the same samples
LEAST_AGREEMENT = 0.5  # of the two: the share of the group that it names, less that of the rest of the label
LEAST_CONTENT = 0.4  # size of the constellation in the group against the other labels' own (1: all of it is kept)
LEAST_CARRIED = 10.0  # nats, of a group that something else tells apart; in clean data: up to 2 that count
LEAST_KEPT = 0.6  # content of such a group, to count at all; styles of a label: up to .5, poison: .63 and more
EVEN = 50  # samples' worth of a spread that is the same in all directions
LEAST_SHIFT = 3.0  # distance of the group from the content's own place, in its standard deviations
MOST_ERROR = 0.01  # expected share of samples put into the wrong group, of the smaller group; near copies: up to .04
CONTENT_AXES = 8  # directions that separate the other labels
OWN_AXES = 4  # the label's own strongest directions outside them, where a trigger shows
MOST_AXES = 128  # of deep features
MOST_OTHERS = 50  # labels in a constellation; the most frequent ones
MOST_FITTED = 2000  # samples of a label that the mixtures are fitted to
MOST_SPREAD = 20_000  # samples that the spread inside labels is measured on
RIDGE = 0.05  # of the mean variance, added to all directions so that none has zero spread
SMALLEST_VARIANCE = 0.3  # of a group, where 1 is that of an ordinary label: no group collapses onto few samples
ROUNDS = 60  # of expectation-maximization, at most


class Populations(NamedTuple):
    """What the test found.

    Attributes:
        flagged: `(N,)` bool, members of a second population.
        labels: The labels that hold one.
        gains: For each label that could be tested, the gain in nats; evidence only beyond `LEAST_GAIN`.
        blurred: `(N,)` bool, about who belongs to a second population that is most of its label, where no cut divides
            the two; none of `labels`.
    """

    flagged: BoolArray
    labels: tuple[int, ...]
    gains: dict[int, float]
    blurred: BoolArray


class _Spread(NamedTuple):
    """First and second moments of every label's features."""

    labels: IntArray  # (L,) labels with enough samples to lend their mean
    counts: FloatArray  # (L,)
    means: FloatArray  # (L, D)
    scatters: FloatArray  # (L, D, D) sums of squared deviations


class _Frame(NamedTuple):
    """A label in the coordinates that the spread inside the other labels whitens."""

    points: FloatArray  # (n, A) its samples
    means: FloatArray  # (J, A) of the other labels
    weights: FloatArray  # (J,) their shares
    n_content: int  # the first axes, which separate the other labels


class _Tested(NamedTuple):
    """A label's mixture of two groups, the second with the content of the other labels, beside a plain one."""

    label: int
    members: IntArray  # (n,) its rows
    n_fitted: int
    gain: float  # nats
    best: _Mixture
    odds: FloatArray  # (n,) log-odds of the second group


class _Mixture(NamedTuple):
    """Two groups; the second is a constellation of points."""

    share: float  # of the second group
    center: FloatArray  # (A,) of the first group
    variance: float  # of the first group
    points: FloatArray  # (J, A) of the second group
    weights: FloatArray  # (J,)
    spread: float  # variance around each point
    content: float  # size of the constellation; 0 for a plain group
    shift: FloatArray  # (A,) of the constellation


def two_populations(features: NDArray[np.float32], labels: IntArray, *, seed: int) -> Populations:
    """Test each label for a second population that carries the other labels' content.

    Args:
        features: `(N, D)` of a shallow layer, in eval mode.
        labels: `(N,)` given labels.
        seed: Chooses starts, and samples where there are many.

    Returns:
        Members and labels of the second populations.
    """
    tested = list(_tested(features, labels, seed))
    loud = [test for test in tested if test.gain > LEAST_GAIN and test.best.content > LEAST_CONTENT]
    sharp = [test for test in loud if _is_sharp(test.best, test.odds)]
    divided = {test.label for test in sharp}
    blurred = [
        test
        for test in loud
        if test.label not in divided and test.gain > LEAST_GAIN_EACH * test.n_fitted and (test.odds > 0).mean() > 0.5
    ]
    # What a label without a second population shows as well is no evidence: near copies make such gains by chance.
    found = {test.label for test in sharp + blurred}
    loudest = max((test.gain for test in tested if test.label not in found), default=0.0)
    return _populations(labels, tested, [test for test in sharp if test.gain > loudest], blurred)


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
        each = test.gain / test.n_fitted
        if apart is None or test.label in known:
            return each > LEAST_GAIN_EACH
        return each > SECONDED * LEAST_GAIN_EACH and _agreement(test, apart) > LEAST_AGREEMENT

    tested = list(_tested(_principal(features), labels, seed))
    found = [
        test
        for test in tested
        if test.gain > LEAST_DEEP_GAIN
        and is_told(test)
        and test.best.content > LEAST_CONTENT
        and SMALLEST_GROUP <= int((test.odds > 0).sum()) < len(test.odds)
    ]
    return _populations(labels, tested, [] if 2 * len(found) > len(tested) else found, [])


def _agreement(test: _Tested, apart: BoolArray) -> float:
    """How much oftener members of a second group are set apart than the rest of the label: -1 to 1."""
    inside, chosen = test.odds > 0, apart[test.members]
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
        self._values, self._rows = features[:, _varies(features)], label_rows(labels)
        self._moments = _spread(self._values, self._rows, np.random.default_rng((seed, 6)))
        self._frames: dict[int, _Frame | None] = {}

    def carried(self, label: int, group: BoolArray) -> Carried:
        """What the members of a label for which `group` `(N,)` is true carry; nothing with fewer than three others."""
        members = self._rows[label]
        if label not in self._frames:
            self._frames[label] = _frame(self._values[members].astype(np.float64), label, self._moments)
        frame = self._frames[label]
        chosen = group[members]
        if frame is None or min(chosen.sum(), (~chosen).sum()) < SMALLEST_GROUP:
            return Carried(0.0, 0.0)
        # Along its own axes the trigger itself spreads, more where it is stronger.
        points, means = frame.points[:, : frame.n_content], frame.means[:, : frame.n_content]
        whitening = _whitening(points[~chosen])
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
    for _, members, frame, fitted in _frames(_principal(features), labels, seed):
        odds = _log_odds(frame.points, _plain(fitted, _starts(fitted, seed))[1])
        suspicion[members] = odds if (odds > 0).mean() <= 0.5 else -odds
    return suspicion


def _tested(features: NDArray[np.float32], labels: IntArray, seed: int) -> Iterator[_Tested]:
    """Test each label."""
    for label, members, frame, fitted in _frames(features, labels, seed):
        gain, best = _test(fitted, frame.means, frame.weights, seed)
        yield _Tested(label, members, len(fitted), gain, best, _log_odds(frame.points, best))


def _frames(
    features: NDArray[np.float32], labels: IntArray, seed: int
) -> Iterator[tuple[int, IntArray, _Frame, FloatArray]]:
    """Each label that is large enough, its rows, its frame, and those of its points that mixtures are fitted to."""
    values = features[:, _varies(features)].astype(np.float64)
    rows = label_rows(labels)
    rng = np.random.default_rng((seed, 6))
    spread = _spread(values, rows, rng)
    for label, members in rows.items():
        if len(members) < SMALLEST_LABEL:
            continue
        frame = _frame(values[members], label, spread)
        if frame is None:
            continue
        fitted = frame.points
        if len(members) > MOST_FITTED:
            fitted = fitted[rng.choice(len(members), MOST_FITTED, replace=False)]
        yield label, members, frame, fitted


def _varies(features: NDArray[np.float32]) -> BoolArray:
    """Which columns are not constant."""
    return np.asarray(features.std(axis=0) > 1e-9)


def _principal(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """The strongest directions of wide features, `(N, at most 128)`."""
    if features.shape[1] <= MOST_AXES:
        return features
    centered = features - features.mean(axis=0)
    axes = np.linalg.eigh(centered.T @ centered)[1][:, -MOST_AXES:]
    return np.asarray(centered @ axes, dtype=np.float32)


def _spread(values: NDArray[np.floating], rows: dict[int, IntArray], rng: np.random.Generator) -> _Spread:
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
    return _Spread(
        np.array(kept, dtype=np.int64),
        np.array(counts, dtype=np.float64),
        np.array(means).reshape(n_kept, size),
        np.array(scatters).reshape(n_kept, size, size),
    )


def _frame(members: FloatArray, label: int, spread: _Spread) -> _Frame | None:
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
    return _Frame(x @ basis, means @ basis, weights, n_content)


def _test(x: FloatArray, means: FloatArray, weights: FloatArray, seed: int) -> tuple[float, _Mixture]:
    """Gain of the content mixture over the plain one, and the former, each the best of several starts."""
    starts = _starts(x, seed)
    plain, _ = _plain(x, starts)
    likelihood, best = max((_fit(x, means, weights, start, content=True) for start in starts), key=lambda fit: fit[0])
    return likelihood - plain, best


def _plain(x: FloatArray, starts: Sequence[FloatArray]) -> tuple[float, _Mixture]:
    """The best plain mixture and its log-likelihood."""
    one_point, one_weight = np.zeros((1, x.shape[1])), np.ones(1)
    return max((_fit(x, one_point, one_weight, start, content=False) for start in starts), key=lambda fit: fit[0])


def _starts(x: FloatArray, seed: int) -> list[FloatArray]:
    """Probabilities of the second group to begin with."""
    from sklearn.cluster import KMeans  # slow to import, and most commands need none

    starts: list[FloatArray] = []
    for attempt in range(3):
        groups = KMeans(2, n_init=1, random_state=seed + attempt).fit(x).labels_
        # Either group may be the second one; 0.02 leaves every sample free to change sides.
        starts += [np.clip(groups == second, 0.02, 0.98).astype(np.float64) for second in (1, 0)]
    return starts


def _fit(
    x: FloatArray, means: FloatArray, weights: FloatArray, second: FloatArray, *, content: bool
) -> tuple[float, _Mixture]:
    """Expectation-maximization from the probabilities `second` `(n,)` of the second group: log-likelihood, mixture."""
    n = len(x)
    within = np.repeat(weights[None], n, axis=0)  # (n, J) which point, given the second group
    last, size, spread = -np.inf, float(content), 1.0
    for round_number in range(ROUNDS):
        joint = second[:, None] * within
        total = max(float(second.sum()), 1e-9)
        first = 1 - second
        center = first @ x / max(float(first.sum()), 1e-9)
        variance = _variance(first, ((x - center) ** 2).sum(axis=1), x.shape[1])
        claims = joint.sum(axis=0) / total
        mean_x, mean_point = second @ x / total, claims @ means
        if content and round_number:
            size = _size(x - mean_x, means - mean_point, joint)
        shift = mean_x - size * mean_point
        points = shift + size * means
        distances = _squared_distances(x, points)
        if round_number:
            spread = _variance(second, (within * distances).sum(axis=1), x.shape[1])
        share = float(np.clip(second.mean(), 1 / n, 1 - 1 / n))
        mixture = _Mixture(share, center, variance, points, weights, spread, size, shift)
        each = np.log(weights) + _log_normal(distances, spread, x.shape[1])
        whole = logsumexp(each, axis=1)
        within = np.exp(each - whole[:, None])
        odds = _log_odds(x, mixture)
        of_first = _log_normal(((x - center) ** 2).sum(axis=1), variance, x.shape[1])
        likelihood = float((np.log1p(-share) + of_first + np.logaddexp(0, odds)).sum())
        second = expit(odds)
        if abs(likelihood - last) < 1e-3:
            break
        last = likelihood
    return likelihood, mixture


def _carried(x: FloatArray, means: FloatArray, weights: FloatArray) -> Carried:
    """The second group of `_fit` alone, whose members are known, against the same with a size of 0."""
    n, axes = x.shape
    middle = x.mean(axis=0)
    squares = ((x - middle) ** 2).sum(axis=1)
    plain = float(_log_normal(squares, _variance(np.ones(n), squares, axes), axes).sum())
    nearest = np.log(weights) - 0.5 * _squared_distances(x - middle, means - weights @ means)
    best = Carried(0.0, 0.0)
    for logits in (nearest, np.repeat(np.log(weights)[None], n, axis=0)):  # two starts
        within, last = softmax(logits, axis=1), -np.inf
        for _ in range(ROUNDS):
            mean_point = within.mean(axis=0) @ means
            size = _size(x - middle, means - mean_point, within)
            distances = _squared_distances(x, middle + size * (means - mean_point))
            spread = _variance(np.ones(n), (within * distances).sum(axis=1), axes)
            each = np.log(weights) + _log_normal(distances, spread, axes)
            whole = logsumexp(each, axis=1)
            within, likelihood = np.exp(each - whole[:, None]), float(whole.sum())
            if abs(likelihood - last) < 1e-3:
                break
            last = likelihood
        best = max(best, Carried(likelihood - plain, size))
    return best


def _whitening(rest: FloatArray) -> FloatArray:
    """By the spread of a few samples `(n, A)`, as if there were some more without any direction."""
    n, axes = rest.shape
    covariance = np.atleast_2d(np.cov(rest.T))
    even = np.trace(covariance) / axes * np.eye(axes)
    variances, basis = np.linalg.eigh((n * covariance + EVEN * even) / (n + EVEN))
    return np.asarray(basis / np.sqrt(np.maximum(variances, 1e-12)))


def _size(x: FloatArray, points: FloatArray, joint: FloatArray) -> float:
    """Size of a constellation `(J, A)` in samples `(n, A)`, both around their means, by weighted least squares."""
    moved = float(((joint.T @ x) * points).sum())
    return float(np.clip(moved / max(float(joint.sum(axis=0) @ (points**2).sum(axis=1)), 1e-9), 0, 1.5))


def _log_odds(x: FloatArray, mixture: _Mixture) -> FloatArray:
    """Log-odds of the second group against the first, `(n,)`."""
    axes = x.shape[1]
    each = np.log(mixture.weights) + _log_normal(_squared_distances(x, mixture.points), mixture.spread, axes)
    first = _log_normal(((x - mixture.center) ** 2).sum(axis=1), mixture.variance, axes)
    return np.asarray(np.log(mixture.share / (1 - mixture.share)) + logsumexp(each, axis=1) - first)


def _is_sharp(mixture: _Mixture, odds: FloatArray) -> bool:
    """Is there a group away from the content's own place, and does a cut divide the two?"""
    second = expit(odds)
    smaller = max(min(float(second.sum()), float((1 - second).sum())), 1e-9)
    error = float(np.minimum(second, 1 - second).sum()) / smaller
    shift = float(np.linalg.norm(mixture.shift)) / np.sqrt(mixture.spread)
    n_flagged = int((odds > 0).sum())
    return error < MOST_ERROR and shift > LEAST_SHIFT and SMALLEST_GROUP <= n_flagged < len(odds)


def _squared_distances(x: FloatArray, points: FloatArray) -> FloatArray:
    squares = (x**2).sum(axis=1)[:, None] - 2 * x @ points.T + (points**2).sum(axis=1)
    return np.asarray(np.maximum(squares, 0.0))


def _variance(weights: FloatArray, squares: FloatArray, axes: int) -> float:
    return max(float(weights @ squares / (axes * max(float(weights.sum()), 1e-9))), SMALLEST_VARIANCE)


def _log_normal(squares: FloatArray, variance: float, axes: int) -> FloatArray:
    return np.asarray(-0.5 * squares / variance - 0.5 * axes * np.log(2 * np.pi * variance))
