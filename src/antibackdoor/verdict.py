"""From what the search caught to a statement about the data set. Numpy and scipy only.

Nothing here decides: the search isolates or it does not. These numbers say how much that is worth.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import t as student

from antibackdoor.isolation import SMALLEST_GROUP, label_rows, probability_of_upper, rank_within
from antibackdoor.metrics import wilson_interval
from antibackdoor.populations import MOST_ERROR
from antibackdoor.samples import FloatArray, IntArray, StrArray
from antibackdoor.search import Caught

LEAST_NULL = 3  # labels without a finding that a false-alarm probability needs
# Least standard deviation of log depths: what chance makes among 30 to 140 scattered margins (simulated: .17 to .29).
# The depths of a run often lie closer together, with a bump now and then that their own spread would not foretell.
DEPTH_SPREAD = 0.3
LEAST_DEPTH = 0.5  # a label without any second group has less; how much less says nothing
GAIN_SPREAD = 5.0  # the same for gains, in nats


def judge(caught: Caught) -> dict[str, float | None]:
    """Flat facts about a search: estimated poisoning rate with a 95% interval, and how rare such evidence is.

    The rate counts the samples in second groups. Its interval is Wilson's around that count, and reaches up to that
    around all isolated samples, some of which were added to be safe.

    Returns:
        `estimated_poisoning_rate`, `estimated_poisoning_rate_low`, `estimated_poisoning_rate_high` in [0, 1] (0 and
        no interval where nothing was isolated: what could have been seen is another question), and
        `false_alarm_probability`, None where too few labels can be compared.
    """
    n, found = len(caught.isolated), bool(caught.isolated.any())
    core, isolated = int(caught.core.sum()), int(caught.isolated.sum())
    return {
        "estimated_poisoning_rate": core / n,
        "estimated_poisoning_rate_low": wilson_interval(core, n)[0] if found else None,
        "estimated_poisoning_rate_high": wilson_interval(isolated, n)[1] if found else None,
        "false_alarm_probability": false_alarm_probability(caught),
    }


def evidence(caught: Caught) -> StrArray:
    """What speaks against each sample, `(N,)`: empty for those that were not isolated.

    `shortcut`: the second head believes in it for something other than its class. `content`: its features are those
    of another label (in the search: moved by a shift that many samples share). `near`: it stands out of its label
    towards the found group, and was isolated to be safe.
    """
    kinds = np.where(caught.content, "content", np.where(caught.core, "shortcut", "near"))
    return np.where(caught.isolated, kinds, "")


def suspicion(caught: Caught, labels: IntArray) -> FloatArray:
    """How probable it is that each sample is poisoned, if the poison is of a kind that the search can see.

    In a label with a finding: the probability that the sample belongs to the upper of two groups of margins, times the
    probability that the finding is no false alarm (left out where it is not known). In another label: at most a group
    too small to be reported is there, and rather among the higher margins.

    Args:
        caught: The outcome of a search.
        labels: `(N,)` given labels.

    Returns:
        `(N,)` in [0, 1].
    """
    believed = 1 - (false_alarm_probability(caught) or 0.0)
    found = np.zeros(len(labels))
    for label, rows in label_rows(labels).items():
        margins, core = caught.margins[rows], caught.core[rows]
        if label in caught.labels and core.any():
            by_content = np.where(caught.content[rows], 1 - MOST_ERROR, 0.0)
            found[rows] = believed * np.maximum(probability_of_upper(margins, core), by_content)
        else:
            found[rows] = min(1.0, SMALLEST_GROUP / len(rows)) * rank_within(margins, labels[rows])
    return found


def false_alarm_probability(caught: Caught) -> float | None:
    """Probability that a clean data set shows a label with evidence as strong as the strongest here.

    The other labels of the same data are the null: their log depths, and their gains, are taken as normal with
    unknown mean and spread, so the strongest label follows Student's t shifted by theirs. Both kinds of evidence and
    all labels are paid for by Bonferroni's inequality.

    Returns:
        In (0, 1]; None if neither kind of evidence has three labels without a finding to compare with.
    """
    by_depth = _tail(np.log(np.maximum(caught.depths, LEAST_DEPTH)), caught.labels, DEPTH_SPREAD)
    # A gain alone is no evidence (genuine subclasses have gains too), so it counts where the search accepted it.
    by_gain = _tail(caught.gains, caught.labels, GAIN_SPREAD) if caught.content.any() else None
    tails = [tail for tail in (by_depth, by_gain) if tail is not None]
    return min(1.0, 2 * min(tails)) if tails else None


def _tail(values: FloatArray, found: tuple[int, ...], least_spread: float) -> float | None:
    """How probable it is that one of so many labels lies as far above the others as the highest does."""
    known = ~np.isnan(values)
    if not known.any():
        return None
    highest = np.isin(np.arange(len(values)), found) & known
    if not highest.any():
        highest[np.nanargmax(values)] = True
    null = values[known & ~highest]
    if len(null) < LEAST_NULL:
        return None
    spread = max(float(null.std(ddof=1)), least_spread) * np.sqrt(1 + 1 / len(null))
    distance = (float(values[highest].max()) - float(null.mean())) / spread
    return float(min(1.0, known.sum() * student.sf(distance, len(null) - 1)))
