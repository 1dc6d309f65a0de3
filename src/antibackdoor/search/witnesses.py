"""What a second witness says of those whom a round of confusion believes: that they are of other labels.

The first witness is the margin, the second one their content or the place where they lie. Each sees too little alone:
no valley divides them from the rest of their label, and no feature tells them from it without being told of whom to
ask. Arrays in, arrays out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from antibackdoor.data.samples import BoolArray, FloatArray, IntArray
from antibackdoor.statistics.isolation import Valley, believed_most
from antibackdoor.statistics.parts import MISPLACED, Resemblance
from antibackdoor.statistics.populations import Carried, Constellations

MOST_BELIEVED = 20 * 2 ** np.arange(10)  # samples of a label whose place is asked for; ten honest ones may be misplaced


class Seconded(NamedTuple):
    """Labels where a second witness says that those whom a round believed are of other labels."""

    margins: FloatArray  # of the rows
    cuts: dict[int, float]  # above which a sample was believed
    loudness: float  # the most that the witness says of any of them; 0 without any


class Content(NamedTuple):
    """What those carry of other labels who are believed in a label."""

    cut: float  # above which they are believed
    carried: Carried


def content(
    margins: FloatArray,
    labels: IntArray,
    wanted: set[int],
    constellations: Constellations,
    searched: IntArray | slice,
) -> dict[int, Content]:
    """For each wanted label in which some are believed more than 99% of all others: what these carry.

    Args:
        margins: `(N,)`.
        labels: `(N,)`.
        wanted: Labels to ask for.
        constellations: Features of M of the samples.
        searched: Where these are among the N.
    """
    believed = believed_most(margins, labels, 0.0)
    found = {}
    for label in sorted(wanted & set(labels[believed].tolist())):
        of_label = labels == label
        cut = float(margins[of_label & ~believed].max(initial=-np.inf))
        found[label] = Content(cut, constellations.carried(label, (believed & of_label)[searched]))
    return found


def misplaced(
    margins: FloatArray, labels: IntArray, valleys: Mapping[int, Valley], resemblance: Resemblance
) -> Seconded:
    """Labels in which those who are believed most lie where the samples of other labels do.

    How many they are a valley tells, if there is a shallow one between them and the rest; if not, it is tried. The
    loudness is by how far those of the loudest label are misplaced.

    Args:
        margins: `(N,)`.
        labels: `(N,)`.
        valleys: The deepest of each label to ask for.
        resemblance: What the N samples look like.
    """
    cuts: dict[int, float] = {}
    loudness = 0.0
    for label, valley in valleys.items():
        of_label = labels == label
        ordered = -np.sort(-margins[of_label])
        counts = [n for n in MOST_BELIEVED if 2 * n <= len(ordered) and ordered[n // 2] > 0]
        told = [
            (resemblance.misplacement(of_label & (margins > cut), label), cut)
            for cut in (valley.cut, *(float(ordered[n]) for n in counts))
        ]
        by, cut = max(told)
        if by >= MISPLACED:
            cuts[label] = cut
            loudness = max(loudness, by)
    return Seconded(margins, cuts, loudness)


def strength_of_place(group: BoolArray, label: int, resemblance: Resemblance) -> float:
    """How far a group of a label is misplaced, as a share of what honest groups are not any more: at most 1."""
    return min(1.0, resemblance.misplacement(group, label) / MISPLACED)
