"""From what the search found to a statement about the data set.

Nothing here decides: the search isolates or it does not. These numbers say how much that is worth.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import t as student

from antibackdoor.data.samples import FloatArray, IntArray, Samples
from antibackdoor.protocols import (
    CONTENT,
    ISOLATED,
    KEPT,
    NEARBY,
    NO_CRITERION,
    SHORTCUT,
    CodeArray,
    Verdict,
)
from antibackdoor.search import caught as found_by
from antibackdoor.search.caught import Caught
from antibackdoor.search.search import drawn_rows
from antibackdoor.statistics.intervals import wilson_interval
from antibackdoor.statistics.isolation import (
    DEPTH_OF_FEW,
    FEW_LABELS,
    SMALLEST_GROUP,
    SMALLEST_LABEL,
    label_rows,
    probability_of_upper,
    rank_within,
)
from antibackdoor.statistics.populations import MOST_ERROR

LEAST_NULL = 3  # labels without a finding that gains can be compared with
GAIN_SPREAD = 5.0  # nats; least standard deviation of gains
# In clean data about this share of the labels shows, in some round, a valley deeper than 1, and the share of those that
# are deeper than d falls as a power of d. Fitted and tested by benchmarks/calibration.py, on clean data only.
DEEPER_THAN_1 = 0.08
POWER = 2.8
# The same of the content that believed samples carry, in nats. Of 1,037 labels of clean data 5 had more than 1,
# and these at most 6.3, which is too little to fit anything to: both numbers are chosen with caution.
CARRYING_MORE_THAN_1, POWER_OF_CARRIED = 0.01, 1.0
PRIOR_LABELS = 2  # the share counts as much as so many labels of the data themselves: it differs much between data sets


def judge(caught: Caught) -> dict[str, Any]:
    """Flat facts about a search: estimated poisoning rate with a 95% interval, and how rare such evidence is.

    The rate counts the samples in second groups. Its interval is Wilson's around that count, and reaches up to that
    around all isolated samples, some of which were added to be safe. It is conditional on what was found: poison of
    another trigger that left no trace is in neither number.

    Returns:
        `estimated_poisoning_rate`, `estimated_poisoning_rate_low`, `estimated_poisoning_rate_high` in [0, 1] (0 and
        no interval where nothing was isolated: what could have been seen is another question; None where no label was
        searched), and
        `false_alarm_probability`, None where nothing was found or too few labels can be compared.
    """
    n, found = len(caught.isolated), bool(caught.isolated.any())
    core, isolated = int(caught.core.sum()), int(caught.isolated.sum())
    return {
        "estimated_poisoning_rate": core / n if found or not np.isnan(caught.depths).all() else None,
        "estimated_poisoning_rate_low": wilson_interval(core, n)[0] if found else None,
        "estimated_poisoning_rate_high": wilson_interval(isolated, n)[1] if found else None,
        "false_alarm_probability": false_alarm_probability(caught) if found else None,
    }


def criteria(caught: Caught) -> CodeArray:
    """What speaks against each sample, `(N,)` codes of `CRITERIA`: 0 for those that were not isolated.

    `shortcut`: the second head is sure of its label for something other than its class. `content`: its features are
    those of another label (in the search: moved by a shift that many samples share, or in this label alone). `nearby`:
    it stands out of its label towards the found group, and was isolated to be safe.
    """
    kinds = np.where(caught.content, CONTENT, np.where(caught.core, SHORTCUT, NEARBY))
    return np.where(caught.isolated, kinds, NO_CRITERION).astype(np.uint8)


def unexamined_labels(samples: Samples, seed: int) -> tuple[int, ...]:
    """Labels that a search with this seed cannot examine: too few of their samples, copies left out, are searched."""
    rows = drawn_rows(len(samples), samples.n_classes, samples.originals, seed)
    n_searched = np.bincount(samples.labels[rows], minlength=samples.n_classes)
    present = np.bincount(samples.labels, minlength=samples.n_classes) > 0
    return tuple(np.flatnonzero(present & (n_searched < SMALLEST_LABEL)).tolist())


def search_verdict(caught: Caught, labels: IntArray, unexamined: tuple[int, ...] = ()) -> Verdict:
    """What the search says of each sample under its given label, `(N,)`, and of the data.

    Where no label could be examined, and nothing was found, it does not judge.
    """
    found = bool(caught.isolated.any())
    blind = not found and set(labels.tolist()) <= {*unexamined}
    verdict = Verdict(
        suspicion=suspicion(caught, labels),
        status=np.where(caught.isolated, ISOLATED, KEPT).astype(np.uint8),
        suggested_label=labels,
        criterion=criteria(caught),
        poisoned=None if blind else found,
        target_labels=caught.labels,
        margin=caught.margins,
        unexamined=unexamined,
    )
    return verdict.ordered(labels)


def from_verdict(verdict: Verdict, n_classes: int) -> Caught:
    """A verdict in the form in which a search leaves its findings; what only a search can know is empty."""
    isolated = verdict.isolated
    nobody, unknown = np.zeros(len(isolated), dtype=bool), np.full(n_classes, np.nan)
    return Caught(
        isolated=isolated,
        core=isolated & (verdict.criterion != NEARBY),
        content=verdict.criterion == CONTENT,
        margins=np.full(len(isolated), np.nan) if verdict.margin is None else verdict.margin,
        removable=nobody,
        across=nobody,
        depths=unknown,
        gains=unknown,
        carried=unknown,
        labels=verdict.target_labels,
        steps=0,
        rounds=np.zeros((0, 0), dtype=np.float32),
        ways=("given verdict",) if isolated.any() else (),
    )


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

    Valleys, gains, and what believed samples carry are kinds of evidence; where several count, Bonferroni's inequality
    pays for the choice.

    Returns:
        In (0, 1]; None if neither kind can be judged.
    """
    by_depth = chance_of_depth(caught.depths, caught.labels)
    by_both = chance_of_carried(caught.carried, caught.labels) if caught.seconded else None
    # A gain alone is no evidence (genuine subclasses have gains too), so it counts where the search accepted it.
    by_gain = (
        _chance_of_gain(caught.gains, caught.labels)
        if {found_by.CONTENT, found_by.SEEN_LATE} & {*caught.ways}
        else None
    )
    known = [chance for chance in (by_depth, by_both, by_gain) if chance is not None]
    return min(1.0, len(known) * min(known)) if known else None


def chance_of_depth(depths: FloatArray, found: tuple[int, ...]) -> float | None:
    """Probability that one of as many labels of clean data has a valley as deep as the deepest.

    How often a clean label has a valley deeper than 1 is told by other clean data and by the labels here that nothing
    was found in; how fast deeper ones become rare, by other clean data. Valleys between few labels count for less.

    Args:
        depths: `(K,)`, the deepest valley of each label; nan where there is none to be had.
        found: Labels with a finding; where there are none, the deepest label is judged by the others.

    Returns:
        In (0, 1]; None without any depth.
    """
    usual = DEPTH_OF_FEW if len(depths) <= FEW_LABELS else 1.0
    return _chance_of_more(depths / usual, found, DEEPER_THAN_1, POWER)


def chance_of_carried(carried: FloatArray, found: tuple[int, ...]) -> float | None:
    """The same for content of other labels that samples carry which a round believed: nats, the most of any round."""
    return _chance_of_more(carried, found, CARRYING_MORE_THAN_1, POWER_OF_CARRIED)


def _chance_of_more(values: FloatArray, found: tuple[int, ...], prior: float, power: float) -> float | None:
    """Of a share `prior` of all labels with a value above 1, so many have more than v that falls as a power of v."""
    highest, rest = _highest(values, found)
    if highest is None:
        return None
    if highest <= 1:
        return 1.0
    share = (PRIOR_LABELS * prior + 1 + (rest > 1).sum()) / (PRIOR_LABELS + len(rest) + 1)
    return float(min(1.0, _n_known(values) * share * highest**-power))


def _chance_of_gain(gains: FloatArray, found: tuple[int, ...]) -> float | None:
    """The same for gains in nats: those of the other labels count as normal with unknown mean and spread."""
    highest, rest = _highest(gains, found)
    if highest is None or len(rest) < LEAST_NULL:
        return None
    spread = max(float(rest.std(ddof=1)), GAIN_SPREAD) * np.sqrt(1 + 1 / len(rest))
    tail = student.sf((highest - float(rest.mean())) / spread, len(rest) - 1)
    return float(min(1.0, _n_known(gains) * tail))


def _n_known(values: FloatArray) -> int:
    """How many labels could have shown evidence."""
    return int((~np.isnan(values)).sum())


def _highest(values: FloatArray, found: tuple[int, ...]) -> tuple[float | None, FloatArray]:
    """The highest value of the labels with a finding (or of all), and the values of all other labels."""
    known = ~np.isnan(values)
    if not known.any():
        return None, values[known]
    chosen = np.isin(np.arange(len(values)), found) & known
    if not chosen.any():
        chosen[np.nanargmax(values)] = True
    return float(values[chosen].max()), values[known & ~chosen]
