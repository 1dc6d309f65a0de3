"""The second head holds on to shortcuts: shallow layers learn them before they learn classes.

`Search` is one attempt: it confuses the second head about everything but short-cuts, and believes what repeats itself.
Attempts are made from the same warm-up until one catches something, and again with what is left:

- where features show that the content of most of a label is foreign: whether that shares a short-cut;
- from suspects chosen by their losses: whether a short-cut leads to a label;
- from suspects whose parts look like other labels: whether there is a short-cut at all, wherever it leads. The suspects
  of all labels are trained towards one and the same output, so that it sees a trigger that leads each class to another
  label and by itself tells nothing about the label;
- from the same suspects: whether one leads to a label;
- from those who were believed for nothing in any round, if a second witness says that they are of other labels: their
  content, or the place where they lie;
- where features show foreign content in less than half of a label, and nothing divides it.

Three more have to wait for a well trained network: `spring_believed` asks it about those who were believed for nothing,
and about those that it sets apart itself; the suspects of `spring_again` are these, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from antibackdoor.data.samples import BoolArray, FloatArray, IntArray, Samples
from antibackdoor.data.streams import Stream
from antibackdoor.models.two_head import TwoHead
from antibackdoor.search.caught import (
    ACROSS_LABELS,
    BELIEVED_LATE,
    CONTENT,
    CONTENT_APART,
    CONTENT_BELIEVED,
    LOSSES,
    MOST_CONTENT,
    PARTS,
    PLACE_BELIEVED,
    SET_APART,
    SOME_CONTENT,
    Caught,
    together,
)
from antibackdoor.search.confusion import margin, weights
from antibackdoor.search.removal import find_removal
from antibackdoor.search.search import KEPT, Demand, Search, TrapSettings
from antibackdoor.statistics.isolation import SMALLEST_LABEL, Valley, find_valley, label_rows, rank, rank_within, widen
from antibackdoor.statistics.populations import Constellations
from antibackdoor.training.history import LossHistory
from antibackdoor.training.session import Feed, Session

BY_LOSSES = 2  # rounds that begin with suspects chosen by their losses
BY_PARTS = 5  # rounds that begin with suspects chosen by their parts: soft triggers need so many
BY_GROUPS = 5  # rounds that begin with suspects that a trained network sets apart
PROMISING = 1.2  # depth in the first of them, without which no more are made: these suspects carry it, or most do not
TOWARDS_ONE = 2  # rounds towards one output; with more, clean data come along
LEAST_OF_MOST = 0.25  # of the share of carriers in the label that holds most: a target too, and not some covers
MOST_CATCHES = 5  # what is found again and again is a habit of the data
MOST_ROUNDS = BY_LOSSES + BY_PARTS + TOWARDS_ONE


def spring(
    session: Session, samples: Samples, feed: Feed, net: TwoHead, settings: TrapSettings, history: LossHistory
) -> Caught:
    """Look for second populations, then confuse the second head about everything but short-cuts.

    What is caught is left out, and the search begins anew with the rest, until it catches nothing more: there may be
    several triggers, and the loudest is found first. It works on a sample of large data, since a population shows in a
    part of its members; only the last look goes over all rows. Of exact copies one is looked at: they gather at one
    margin by themselves, and whoever has seen one knows the others without any short-cut.

    Args:
        session: Device, precision, processes.
        samples: The data.
        feed: The same, as the network gets them.
        net: The network after the warm-up; it comes back as it was.
        settings: Steps and shares.
        history: Losses of the warm-up.

    Returns:
        What was caught; nothing where no label has two groups, nor all of them together.
    """
    before, pool, steps = weights(net), samples.originals, 0
    catches: list[Caught] = []
    while True:
        caught = _catch(Search(session, feed, net, settings, pool), history, before)
        steps += caught.steps
        if caught.isolated.any():
            pool = pool[~caught.isolated[pool]]
            caught = _removing(session, samples, feed, net, caught, pool)
        catches.append(caught)
        net.load_state_dict(before)
        is_over = not caught.isolated.any() or not settings.in_the_rest or len(catches) == MOST_CATCHES
        if is_over or len(np.unique(samples.labels[pool])) < 2:
            return replace(_of_copies(together(catches, samples.labels), samples), steps=steps)


def _catch(search: Search, history: LossHistory, before: dict[str, Tensor]) -> Caught:
    """The catch of the first attempt that has one, or nothing."""
    search.first_look()
    across, suspicion, settings = AcrossLabels(search), search.by_losses(history), search.settings
    deep = Demand(settings.least_depth, np.inf)
    # Who was suspected for looking foreign must do so when found: the rounds may have drifted to others.
    is_asked = settings.by_parts and not settings.are_labels_few
    or_confirmed = Demand(settings.least_depth, KEPT * settings.least_depth) if is_asked else deep
    and_confirmed = Demand(np.inf, settings.least_depth)
    attempts: list[tuple[str, bool, Callable[[], Caught | None]]] = [
        (MOST_CONTENT, settings.by_features, lambda: search.attempt_blurred(most=True)),
        (LOSSES, True, lambda: search.attempt(suspicion, BY_LOSSES, or_confirmed)),
        (
            ACROSS_LABELS,
            settings.across_labels,
            lambda: across.attempt(search.resemblance.contradiction, TOWARDS_ONE, and_confirmed),
        ),
        # Honest ones that are believed as well take their like along; hardly any of them look foreign.
        (
            PARTS,
            settings.by_parts,
            lambda: search.attempt(search.resemblance.contradiction, BY_PARTS, and_confirmed, within_first=True),
        ),
        (CONTENT_BELIEVED, settings.by_both, search.attempt_seconded),
        (PLACE_BELIEVED, settings.by_place, search.attempt_misplaced),
        (SOME_CONTENT, settings.by_features, lambda: search.attempt_blurred(most=False)),
    ]
    for way, is_made, attempt in attempts:
        if is_made:
            search.head.net.load_state_dict(before)
            caught = attempt()
            if caught is not None:
                ways = (CONTENT, way) if caught.content.any() else (way,)
                return replace(caught, ways=ways, steps=search.head.steps + across.head.steps)
    return replace(search.nothing(), steps=search.head.steps + across.head.steps)


def left(samples: Samples, isolated: BoolArray) -> IntArray:
    """The rows that are neither isolated nor copies of an earlier one, sorted."""
    originals = samples.originals
    return originals[~isolated[originals]]


def _of_copies(caught: Caught, samples: Samples) -> Caught:
    """What was caught of each sample or, if it is a copy, of the first one like it."""
    firsts = samples.firsts
    by_sample = ("isolated", "core", "content", "margins", "removable", "across")
    return replace(caught, **{part: getattr(caught, part)[firsts] for part in by_sample})


def spring_again(
    session: Session,
    samples: Samples,
    feed: Feed,
    net: TwoHead,
    settings: TrapSettings,
    suspicion: FloatArray,
    caught: Caught,
) -> Caught | None:
    """Confuse the second head once more, with other suspects, about what was not caught before.

    Args:
        session: Device, precision, processes.
        samples: The data.
        feed: The same, as the network gets them.
        net: The network after the warm-up; its trunk and second head change.
        settings: Steps and shares.
        suspicion: `(M,)` of the `searched_rows` of what is `left`.
        caught: What `spring` returned.

    Returns:
        What is caught by now; None if nothing was added.
    """
    pool = left(samples, caught.isolated)
    search = SetApart(session, feed, net, settings, pool)
    again = search.attempt(suspicion, BY_GROUPS, Demand(np.inf, settings.least_depth), promising=PROMISING)
    return None if again is None else _also(session, samples, feed, net, caught, replace(again, ways=(SET_APART,)))


def spring_believed(
    session: Session,
    samples: Samples,
    feed: Feed,
    net: TwoHead,
    settings: TrapSettings,
    features: NDArray[np.float32],
    caught: Caught,
    *,
    apart: FloatArray | None = None,
) -> Caught | None:
    """Settle on samples that the search believed and let go, where better features second them.

    Features of a trained network tell much more of what samples are than those of the warm-up. The layer must be one
    about the middle: the last ones show the carriers of a trigger that is obeyed as what they are labelled as. But they
    set these apart, so these can be asked about as well.

    Args:
        session: Device, precision, processes.
        samples: The data.
        feed: The same, as the network gets them.
        net: The network after the warm-up; it comes back as it was if nothing is found.
        settings: Steps and shares.
        features: `(M, D)` of the `searched_rows` of what is `left`, in a trained network.
        caught: What `spring` returned.
        apart: `(M,)`, larger than 0 for those that its last features set apart, who are then asked about in place of
            those whom the search believed.

    Returns:
        What is caught by now; None if nothing was added.
    """
    if not settings.by_both:
        return None
    before = weights(net)
    search = Search(session, feed, net, settings, left(samples, caught.isolated))
    constellations = Constellations(features, search.labels, seed=session.recipe.seed)
    rounds = caught.rounds if apart is None else surer_half(apart, search.labels)
    again = search.attempt_believed(rounds, constellations)
    if again is None:
        net.load_state_dict(before)
        return None
    way = BELIEVED_LATE if apart is None else CONTENT_APART
    return _also(session, samples, feed, net, caught, replace(again, ways=(way,)))


def _also(session: Session, samples: Samples, feed: Feed, net: TwoHead, caught: Caught, again: Caught) -> Caught:
    """What was caught, and what was caught again from the rest."""
    rest = left(samples, caught.isolated)
    again = _removing(session, samples, feed, net, again, rest[~again.isolated[rest]])
    both = _of_copies(together([caught, again], samples.labels), samples)
    return replace(both, steps=caught.steps + again.steps)


def surer_half(values: FloatArray, labels: IntArray) -> Iterator[FloatArray]:
    """Label by label, values of which half of those that were above 0 still are, and none of the other labels."""
    for label in np.unique(labels[values > 0]).tolist():
        of_label = labels == label
        yield np.where(of_label, values - np.median(values[of_label & (values > 0)]), -1.0)


def under_one_output(feed: Feed) -> Feed:
    """The same samples, all under the first label: its output stands for "carries a short-cut"."""
    return feed._replace(labels=torch.zeros_like(feed.labels))


class AcrossLabels(Search):
    """A search beside another one, for a short-cut that samples of several labels share.

    Suspects come from each label alike, and so do the samples that count as clean: what tells the classes apart tells
    nothing about who is suspected.
    """

    drawn_from = Stream.CONFUSION_ROWS_ACROSS

    def __init__(self, search: Search) -> None:
        head = search.head
        super().__init__(search.session, under_one_output(head.feed), head.net, search.settings, search.pool)
        self.all_given, self.given = search.all_labels, search.labels
        self.beside = search

    def looks_foreign(self, label: int, valley: Valley) -> bool:
        """Whether what lies above the valley is not what its labels say.

        One speaker, or one camera, is a short-cut across labels too, but an honest one.
        """
        return self.beside.resemblance.is_at_odds(self.above(label, valley))

    def is_quiet(self, suspicion: FloatArray) -> BoolArray:
        """The less suspicious half of each label."""
        return rank_within(-suspicion, self.given) > 0.5

    def is_believed(self, least: float) -> BoolArray:
        """Rows with a larger margin than this; there is no other label to compare with."""
        return self.margins > least

    def place(self, valleys: dict[int, Valley]) -> None:
        """Nothing: no label is another one here."""

    def sharpen(self, before: dict[str, Tensor]) -> None:
        """Nothing: the parts of all these contradict their labels already."""

    def held_out(self, found: IntArray) -> IntArray:
        """The less believed half: in all classes some samples resemble carriers, and are not to be trained on."""
        return found[rank(-self.margins[np.searchsorted(self.rows, found)]) >= 0.5]

    def widened(self, margins: FloatArray, flagged: BoolArray, suspected: set[int]) -> BoolArray:
        """The flagged alone: the rest is of all classes and no narrow band that something could stand out of."""
        return flagged

    def settle(self) -> Caught | None:
        """What is left of the finding, told by the given labels; None if nothing is."""
        caught = super().settle()
        if caught is None:
            return None
        members = {k: self.pool[at] for k, at in label_rows(self.all_given[self.pool]).items()}
        members = {k: rows for k, rows in members.items() if len(rows) >= SMALLEST_LABEL}
        shares = {k: float(caught.core[rows].mean()) for k, rows in members.items()}
        most = max(shares.values(), default=0.0)
        labels = [k for k, share in shares.items() if share >= LEAST_OF_MOST * most > 0]
        depths = {k: find_valley(caught.margins[rows]).depth for k, rows in members.items()}
        return replace(
            caught,
            depths=self.by_label(depths | dict.fromkeys(labels, self.deepest[0])),
            labels=tuple(sorted(labels)),
            across=caught.isolated,
        )


class SetApart(Search):
    """A search that begins with samples which a trained network sets apart from their label."""

    def looks_foreign(self, label: int, valley: Valley) -> bool:
        """Whether what lies above the valley of a label could be of other labels, or of a single one.

        Genuine classes within a label are set apart, too, and learned again like a shortcut. Where neighbors tell
        classes, they are like no other.
        """
        return self.resemblance.is_like_one(self.above(label, valley), label)

    def is_evidence(self, label: int, valley: Valley, demand: Demand) -> bool:
        """Always: of this search only what is caught will be told."""
        return True

    def place(self, valleys: dict[int, Valley]) -> None:
        """Nothing: only the search before the training asks for places."""

    def widened(self, margins: FloatArray, flagged: BoolArray, suspected: set[int]) -> BoolArray:
        """All that stands out of the rest: poison from one class need not contradict its label more than others do."""
        return widen(margins, self.all_labels[self.pool], flagged, suspected)


def _removing(session: Session, samples: Samples, feed: Feed, net: TwoHead, caught: Caught, rest: IntArray) -> Caught:
    """What was caught, and whom of it the second head doubts once their difference from their like is undone."""
    others = np.ones(len(samples), dtype=bool)
    others[rest] = False
    removal = find_removal(samples, others, caught.core)
    if removal is None:
        return caught
    shown = (under_one_output(feed) if caught.across.any() else feed)._replace(change=removal)
    rows = np.flatnonzero(caught.isolated)
    net.eval()
    margins = session.evaluate(shown, net.second_logits, margin, rows, title="removing the trigger")
    removable = np.zeros(len(samples), dtype=bool)
    removable[rows] = margins <= 0
    return replace(caught, removable=removable)
