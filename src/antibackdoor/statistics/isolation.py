"""From losses and margins to a partition of the samples. Numpy and scipy only: arrays in, arrays out.

Two ways to isolate live here. The published one ranks all samples by how far their loss has dropped and cuts
off a fixed share. The default one asks, for each given label, whether its samples fall into two separate
groups, and cuts between them; where no label does, nothing is isolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.special import expit

from antibackdoor.data.samples import BoolArray, FloatArray, IntArray
from antibackdoor.data.streams import Stream, stream
from antibackdoor.training.history import LossHistory

SMALLEST_GROUP = 5  # fewer samples than this are no evidence of a second group
SMALLEST_LABEL = 20  # a label with fewer samples has no shape to speak of
FEW_LABELS = 3  # with so many, honest styles make valleys as much deeper as `DEPTH_OF_FEW`: up to 4.7 for 3
DEPTH_OF_FEW = 5 / 3
NEARLY_ALL = 0.75  # share of a label; a smaller group leaves a valley, and is told from its class more finely there
OUTLYING = 0.99  # share of the margins of other labels that a sample is to exceed
BELIEVED_BY_CHANCE = 0.2  # share of a distinctive class that may keep positive margins through confusion
LEAST_APART = 10  # samples of a group that a gap sets apart
WIDEST_HONEST = 4.0  # nats that a gap must exceed; clean data of few labels had 3.3 at most, poison 4.3 to 7.5
EDGES = np.arange(-12.0, 24.25, 0.25)  # bins of margins; what lies beyond counts to the outermost
SMOOTHING = 2  # bins
LEAST_SPREAD = 0.5  # nats, of a group of margins: that of the smoothing
WITHIN_90 = 1.645  # standard deviations on either side that hold 90% of a normal group


class Valley(NamedTuple):
    """The deepest valley between two groups of margins."""

    depth: float  # smaller of the two peaks over the floor between them; 1 and below is no valley
    cut: float  # margins above it belong to the upper group; inf if there is none


def loss_drop(history: LossHistory) -> FloatArray:
    """How far each sample's loss has dropped, early drops counting most; higher is more suspicious.

    `sum over i >= 2 of (L_{i-1} - L_i) / (i - 1)^2`: Equation 5 of E2ABL (Jiang et al., arXiv 2401.03215) with
    the sign that its text means. Since the history starts at log K, this is log K minus a weighted mean of the
    later losses in which the first one counts three quarters.

    Args:
        history: At least one moment.

    Returns:
        `(N,)` float64.
    """
    losses = history.losses.astype(np.float64)
    weights = 1.0 / np.arange(1, len(losses), dtype=np.float64) ** 2
    return np.asarray(weights @ -np.diff(losses, axis=0), dtype=np.float64)


def highest(scores: FloatArray, share: float, *, ties: Sequence[NDArray[Any]] = (), at_least: int = 0) -> BoolArray:
    """The given share of samples with the highest scores; of equal ones those with lower `ties`, then row order.

    Args:
        scores: `(N,)`.
        share: Fraction of N in [0, 1], rounded to a count.
        ties: `(N,)` each, the first one counts first. Give a random order last: rows are often sorted by class.
        at_least: Smallest count, if there are so many samples.

    Returns:
        `(N,)` bool.
    """
    n = len(scores)
    count = min(max(round(share * n), at_least), n)
    chosen = np.zeros(n, dtype=bool)
    chosen[np.lexsort((np.arange(n), *reversed(ties), -scores))[:count]] = True
    return chosen


def most_suspicious(suspicion: FloatArray, rate: float, seed: int) -> BoolArray:
    """The `round(rate * N)` samples with the highest suspicion, `(N,)` bool; the seed decides between equal ones.

    Rows are often sorted by class, so their order may not decide.

    >>> most_suspicious(np.array([0.3, 0.9, 0.1, 0.5]), 0.5, seed=0).tolist()
    [False, True, False, True]
    """
    order = stream(seed, Stream.ISOLATION_TIES).permutation(len(suspicion))
    return highest(suspicion, rate, ties=[order])


def sustained_drop(history: LossHistory) -> FloatArray:
    """The largest lasting fall of each sample's loss; higher is more suspicious.

    The maximum over moments t of the mean loss before t minus the mean loss from t on. Unlike `loss_drop` it does
    not matter when the fall comes, so a backdoor learned late stands out as one learned at once.

    Returns:
        `(N,)` float64; 0 if the history has one moment only.
    """
    losses = history.losses
    n_moments = len(losses)
    best = np.zeros(history.n_samples) if n_moments < 2 else np.full(history.n_samples, -np.inf)
    total = losses.sum(axis=0, dtype=np.float64)
    before = np.zeros(history.n_samples)
    for t in range(1, n_moments):
        before += losses[t - 1]
        best = np.maximum(best, before / t - (total - before) / (n_moments - t))
    return best


def rank(values: NDArray[np.floating]) -> FloatArray:
    """Share of samples with a smaller value, in [0, 1); equal values in row order."""
    ranks = np.empty(len(values))
    ranks[np.argsort(values, kind="stable")] = np.arange(len(values)) / max(len(values), 1)
    return ranks


def rank_within(values: NDArray[np.floating], labels: IntArray) -> FloatArray:
    """`rank` among the samples of the same label."""
    ranks = np.empty(len(values))
    for rows in label_rows(labels).values():
        ranks[rows] = rank(values[rows])
    return ranks


def unexamined_last(scores: FloatArray, examined: BoolArray) -> FloatArray:
    """Scores `(N,)` in which what was not examined has the least of what was: nothing is known against it.

    >>> unexamined_last(np.array([0.0, -3.0, 2.0]), np.array([False, True, True])).tolist()
    [-3.0, -3.0, 2.0]
    """
    return np.where(examined, scores, scores[examined].min() if examined.any() else 0.0)


def label_rows(labels: IntArray) -> dict[int, IntArray]:
    """The rows of each label that occurs."""
    order = np.argsort(labels, kind="stable")
    present, starts = np.unique(labels[order], return_index=True)
    return dict(zip(present.tolist(), np.split(order, starts)[1:], strict=True))


def first_suspicion(history: LossHistory, losses: NDArray[np.float32]) -> FloatArray:
    """Suspicion at the end of the warm-up, in (0, 1]; higher is more suspicious.

    A sample is as suspicious as the more telling of two signs makes it: that its loss is low now, or that it fell
    for good at some moment. The maximum serves triggers of which only one sign speaks; a sum would dilute it.

    Args:
        history: Losses during the warm-up.
        losses: `(N,)` losses at its end, in eval mode.

    Returns:
        `(N,)` float64.
    """
    now = rank(losses)
    fell = rank(-sustained_drop(history))
    return 1.0 - np.minimum(now, fell) - 1e-6 * now  # the small term breaks ties


def find_valley(margins: NDArray[np.floating]) -> Valley:
    """The deepest valley in the distribution of one label's margins.

    A kernel density (a fine histogram smoothed by a Gaussian of half a nat) is scanned for the point with high
    peaks on both sides; peaks count one standard error less than they are and floors one more, since a few samples
    make valleys by chance. Only groups whose median margin is positive count as an upper group: they must believe
    their label. The cut is moved to the left flank of a clear valley, since missing a poisoned sample costs more
    than isolating a clean one.

    Args:
        margins: `(n,)`, log-odds of the given label; computed from logits, since a rounded probability of 1 would
            pile up a false peak.

    Returns:
        Depth and cut.
    """
    if len(margins) < SMALLEST_LABEL:
        return Valley(0.0, np.inf)
    counts, _ = np.histogram(np.clip(margins, EDGES[0], EDGES[-1] - 1e-6), EDGES)
    density = gaussian_filter1d(counts.astype(np.float64), SMOOTHING)
    centers = (EDGES[:-1] + EDGES[1:]) / 2
    left = np.maximum.accumulate(density)
    right = np.maximum.accumulate(density[::-1])[::-1]
    peak = np.minimum(left, right)
    depth = np.maximum(peak - _standard_error(peak), 0) / (density + _standard_error(density) + 0.5)
    depth[~_believed(margins, centers)] = 0.0
    deepest = float(depth.max())
    if deepest <= 0:
        return Valley(0.0, np.inf)
    floor = np.flatnonzero(depth >= deepest - 1e-9)
    at = int(floor[len(floor) // 2])
    if deepest >= 3:
        at = int(floor[0])
        while at > 0 and depth[at - 1] >= deepest / 2:
            at -= 1
    return Valley(deepest, float(centers[at]))


def find_gap(margins: NDArray[np.floating]) -> float:
    """The middle of a gap that sets a group of one label's margins apart; inf where there is none.

    A small group makes a low hill however far from the others it lies, so that no valley before it can be deep. But
    where nothing at all lies between two groups, further apart than either is wide, nobody belongs to both. The upper
    one must believe its label, and be at most half of it.

    Args:
        margins: `(n,)`.
    """
    ordered = -np.sort(-np.asarray(margins, dtype=np.float64))
    sizes = np.arange(LEAST_APART, len(ordered) // 2 + 1)  # of the upper group
    sizes = sizes[ordered[sizes // 2] > 0]
    if not len(sizes):
        return np.inf
    gaps = ordered[sizes - 1] - ordered[sizes]
    gap, size = float(gaps.max()), int(sizes[gaps.argmax()])
    widths = [np.subtract(*np.quantile(group, (0.95, 0.05))) for group in (ordered[:size], ordered[size:])]
    return float(ordered[size - 1] - gap / 2) if gap > max(WIDEST_HONEST, *widths) else np.inf


def find_favourites(margins: NDArray[np.floating], labels: IntArray, counted: BoolArray) -> dict[int, Valley]:
    """For each label, how much oftener its samples are believed than those of other labels.

    A frequent backdoor on a small class leaves no valley: nearly all samples of its label carry it. But after
    confusion hardly any sample of another label is believed.

    Args:
        margins: `(N,)`.
        labels: `(N,)`.
        counted: `(N,)` bool, samples that were not trained towards their label.

    Returns:
        For each label with enough counted samples: the share of positive margins over that of all other labels, to
        which `BELIEVED_BY_CHANCE` is added, as depth; the cut lies above 99% of the other labels' samples.
    """
    found: dict[int, Valley] = {}
    believed = counted & (margins > 0)
    for label, rows in label_rows(labels).items():
        others = labels != label
        if counted[rows].sum() < SMALLEST_LABEL or not counted[others].any():
            continue
        share = believed[rows].sum() / counted[rows].sum()
        elsewhere = believed[others].sum() / counted[others].sum()
        depth = float(share / (BELIEVED_BY_CHANCE + elsewhere))
        found[label] = Valley(depth, float(np.quantile(margins[others], OUTLYING)))
    return found


def believed_most(margins: NDArray[np.floating], labels: IntArray, least: float) -> BoolArray:
    """Samples that are believed more than 99% of those of all other labels.

    Confusion leaves the samples that it did not train on undecided, unless something that they share with those it
    trained on carries over to them. Each label is measured by the others, so that one in which many are believed
    yields many, and the others hardly any. A label that is believed almost whole is a distinctive class, and left out.

    Args:
        margins: `(N,)`.
        labels: `(N,)`.
        least: Margin from which a sample counts as believed.

    Returns:
        `(N,)` bool; none where there is one label only.
    """
    chosen = np.zeros(len(labels), dtype=bool)
    for label, rows in label_rows(labels).items():
        others = margins[labels != label]
        if len(others):
            believed = margins[rows] > max(float(np.quantile(others, OUTLYING)), least)
            chosen[rows] = believed & (believed.mean() < NEARLY_ALL)
    return chosen


def above_valleys(margins: NDArray[np.floating], labels: IntArray, valleys: dict[int, Valley]) -> BoolArray:
    """The samples above the cut of their label, `(N,)` bool."""
    flagged = np.zeros(len(labels), dtype=bool)
    rows = label_rows(labels)
    for label, valley in valleys.items():
        members = rows[label]
        flagged[members] = margins[members] > valley.cut
    return flagged


def probability_of_upper(margins: NDArray[np.floating], upper: BoolArray) -> FloatArray:
    """How probable it is that samples of one label belong to its upper group.

    Two normal groups of equal spread, so that the log-odds are linear in the margin. The spread is the mean of both,
    each measured where 90% of its samples lie, since their tails are heavier than a normal one's.

    Args:
        margins: `(n,)`.
        upper: `(n,)` bool, the group; not empty.

    Returns:
        `(n,)` in [0, 1], never smaller for a larger margin; 1 if all samples belong to the group.
    """
    lower = ~upper
    if not lower.any():
        return np.ones(len(margins))
    ends = np.array([np.quantile(margins[group], (0.05, 0.5, 0.95)) for group in (lower, upper)])
    spreads = (ends[:, 2] - ends[:, 0]) / (2 * WITHIN_90)
    sizes = np.array([lower.sum(), upper.sum()])
    variance = max(float(sizes @ spreads**2) / len(margins), LEAST_SPREAD**2)
    low, high = ends[:, 1]
    odds = np.log(sizes[1] / sizes[0]) + max(high - low, 0.0) / variance * (margins - (low + high) / 2)
    return np.asarray(expit(odds), dtype=np.float64)


def widen(margins: NDArray[np.floating], labels: IntArray, flagged: BoolArray, wanted: set[int]) -> BoolArray:
    """Also flag what stands out of the lower group of a label that has two.

    Samples outside the flagged group were trained towards undecidedness, so their margins crowd in a narrow band;
    whatever lies six robust standard deviations above its median is no part of it. The least distance of 0.2 nats
    is what rounding alone can make.

    Args:
        margins: `(N,)`.
        labels: `(N,)`.
        flagged: `(N,)`, the upper groups.
        wanted: The labels that have two groups.

    Returns:
        `(N,)` bool, `flagged` and more.
    """
    wider = flagged.copy()
    rows = label_rows(labels)
    for label in wanted:
        members = rows[label]
        lower = margins[members[~flagged[members]]]
        if len(lower):
            middle = np.median(lower)
            spread = 1.4826 * np.median(np.abs(lower - middle))
            wider[members[margins[members] > middle + max(6 * spread, 0.2)]] = True
    return wider


def _standard_error(density: FloatArray) -> FloatArray:
    """Of a Poisson count smoothed by a Gaussian of `SMOOTHING` bins."""
    return np.asarray(np.sqrt(density / (2 * np.sqrt(np.pi) * SMOOTHING)))


def _believed(margins: NDArray[np.floating], cuts: FloatArray) -> BoolArray:
    """For each cut: do enough samples lie above it, half of them with a positive margin?"""
    ordered = np.sort(margins)
    first_above = np.searchsorted(ordered, cuts, side="right")
    n_above = len(ordered) - first_above
    middle = np.minimum((first_above + len(ordered)) // 2, len(ordered) - 1)
    return np.asarray((n_above >= SMALLEST_GROUP) & (ordered[middle] > 0))
