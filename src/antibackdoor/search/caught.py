"""What a search holds when it ends, and how several of its outcomes are one. Numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from antibackdoor.data.samples import BoolArray, FloatArray, IntArray

# What an attempt began with, or went by.
CONTENT, LOSSES, PARTS, ACROSS_LABELS = "content", "losses", "parts", "across labels"
MOST_CONTENT, SOME_CONTENT = "content of most", "content of some"
CONTENT_BELIEVED, PLACE_BELIEVED = "class mixture of the confident", "outliers among the confident"
BELIEVED_LATE, SET_APART, SEEN_LATE = (
    "class mixture of the confident, after training",
    "set apart, after training",
    "class mixture, after training",
)
CONTENT_APART = "class mixture of those set apart, after training"


@dataclass(frozen=True, eq=False)
class Caught:
    """What the trap holds, and what the late look adds to it.

    Attributes:
        isolated: `(N,)` bool.
        core: `(N,)` bool, those of them that lie in a second group; the others were added to be safe.
        content: `(N,)` bool, those of them for which the content of other labels speaks.
        margins: `(N,)` float64, log-odds that the second head gives to each sample's own label; nan for those that
            were caught before, and left out.
        removable: `(N,)` bool, those of the isolated that the second head doubts once the difference from their like
            is undone.
        depths: `(K,)` float64, the deepest valley that any round saw in the margins of each label; nan for labels with
            too few samples.
        gains: `(K,)` float64, nats that other labels' content explains in each label; nan where it was not asked.
        across: `(N,)` bool, those of the isolated that share one short-cut under all their labels; their margins are
            the log-odds of one output that stands for all of these.
        labels: Labels with two groups: the suspected targets.
        steps: Optimizer steps taken.
        carried: `(K,)` float64, the most nats that other labels' content explains in what a round believed in each
            label, if most of that content is left; nan where it was not asked.
        rounds: `(R, M)` float32, log-odds of the `searched_rows` of what is left, after each round of the last search;
            none if that found something, and so left other rows.
        ways: Which attempts caught it, in the order of their catches.
    """

    isolated: BoolArray
    core: BoolArray
    content: BoolArray
    margins: FloatArray
    removable: BoolArray
    across: BoolArray
    depths: FloatArray
    gains: FloatArray
    carried: FloatArray
    labels: tuple[int, ...]
    steps: int
    rounds: NDArray[np.float32]
    ways: tuple[str, ...] = ()

    @property
    def seconded(self) -> bool:
        """Whether the content of those who are believed stood in for a valley somewhere."""
        return not {CONTENT_BELIEVED, BELIEVED_LATE, CONTENT_APART}.isdisjoint(self.ways)


def together(catches: Sequence[Caught], given: IntArray) -> Caught:
    """What was caught one after the other, each time from the rest.

    The margins of a label are those of the first catch that suspects it, or else of the first of all; what is caught
    later has margins of its own. The evidence of a label is the strongest that was caught. The rounds are those of the
    last one: what is left now was looked at there.
    """
    whole = catches[0]
    for caught in catches[1:]:
        new = [label for label in caught.labels if label not in whole.labels]
        known_now = caught.isolated | (np.isin(given, new) & ~whole.isolated)
        suspected = np.isin(np.arange(len(whole.depths)), caught.labels)
        whole = replace(
            whole,
            isolated=whole.isolated | caught.isolated,
            core=whole.core | caught.core,
            content=whole.content | caught.content,
            margins=np.where(known_now, caught.margins, whole.margins),
            removable=whole.removable | caught.removable,
            across=whole.across | caught.across,
            depths=np.where(suspected, np.fmax(whole.depths, caught.depths), whole.depths),
            gains=np.where(suspected, np.fmax(whole.gains, caught.gains), whole.gains),
            carried=np.where(suspected, np.fmax(whole.carried, caught.carried), whole.carried),
            labels=tuple(sorted({*whole.labels, *new})),
            rounds=caught.rounds,
            ways=joined(whole.ways, caught.ways),
        )
    return whole


def joined(ways: tuple[str, ...], more: tuple[str, ...]) -> tuple[str, ...]:
    """Both, each once."""
    return tuple(dict.fromkeys(ways + more))


def with_more(caught: Caught, more: BoolArray) -> Caught:
    """What was caught, and more samples `(N,)` of its labels that show the content of others."""
    return replace(caught, isolated=caught.isolated | more, core=caught.core | more, content=caught.content | more)


def without(caught: Caught, cleared: BoolArray, given: IntArray) -> Caught:
    """What was caught, except for some, and the labels `(N,)` that still hold any of it."""
    isolated = caught.isolated & ~cleared
    return replace(
        caught,
        isolated=isolated,
        labels=tuple(label for label in caught.labels if (isolated & (given == label)).any()),
        core=caught.core & ~cleared,
        content=caught.content & ~cleared,
        removable=caught.removable & ~cleared,
        across=caught.across & ~cleared,
        ways=caught.ways if isolated.any() else (),
    )
