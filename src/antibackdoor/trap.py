"""The second head as a trap: shallow layers learn short-cuts before they learn classes, and this holds them there.

`Search` is one attempt: it confuses the second head about everything but short-cuts, and believes what repeats itself.
Up to four attempts are made from the same warm-up until one catches something. The first is made only where features
show that the content of most of a label is foreign, and asks whether that shares a short-cut. The next suspects samples
by their losses and asks whether a short-cut leads to a label. The other two suspect samples whose parts look like other
labels. One asks whether there is a short-cut at all, wherever it leads: the suspects of all labels are trained towards
one and the same output, so that it sees a trigger that leads each class to another label and by itself tells nothing
about the label. The last asks for a label again.

One more, `spring_again`, has to wait: its suspects are those that a well trained network sets apart.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from antibackdoor.history import LossHistory
from antibackdoor.isolation import SMALLEST_LABEL, find_valley, label_rows, rank, rank_within
from antibackdoor.models import TwoHead
from antibackdoor.populations import Populations
from antibackdoor.samples import BoolArray, FloatArray, IntArray
from antibackdoor.search import Caught, Search, TrapSettings, n_searched, weights
from antibackdoor.session import Feed, Session
from antibackdoor.training import shuffled

BY_LOSSES = 2  # rounds that begin with suspects chosen by their losses
BY_PARTS = 5  # rounds that begin with suspects chosen by their parts: soft triggers need so many
BY_GROUPS = 5  # rounds that begin with suspects that a trained network sets apart
PROMISING = 1.2  # depth without which no more such rounds are made: these suspects are carriers, or most are not
ACROSS_LABELS = 2  # rounds towards one output; with more, clean data come along
LEAST_OF_MOST = 0.25  # of the share of carriers in the label that holds most: a target too, and not some covers
MOST_ROUNDS = BY_LOSSES + BY_PARTS + ACROSS_LABELS


def spring(session: Session, feed: Feed, net: TwoHead, settings: TrapSettings, history: LossHistory) -> Caught:
    """Look for second populations, then confuse the second head about everything but short-cuts.

    The search works on a sample of large data, since a population shows in a part of its members; only the last
    look goes over all rows.

    Args:
        session: Device, precision, processes.
        feed: The data.
        net: The network after the warm-up; its trunk and second head change if something is caught.
        settings: Steps and shares.
        history: Losses of the warm-up.

    Returns:
        What was caught; nothing where no label has two groups, nor all of them together.
    """
    search = Search(session, feed, net, settings, searched_rows(session, feed))
    across = AcrossLabels(search)
    strangers, before = search.first_look(), weights(net)
    suspicion = search.by_losses(history)
    caught = search.attempt_blurred(strangers)
    if caught is None:
        net.load_state_dict(before)
        caught = search.attempt(suspicion, BY_LOSSES, strangers, parts_confirm=True)
    if caught is None:
        net.load_state_dict(before)
        caught = across.attempt(search.contradiction, ACROSS_LABELS, strangers)
    if caught is None:
        net.load_state_dict(before)
        caught = search.attempt(search.contradiction, BY_PARTS, strangers)
    if caught is None:
        caught = search.nothing(strangers)
        net.load_state_dict(before)
    return replace(caught, steps=search.steps + across.steps)


def spring_again(
    session: Session, feed: Feed, net: TwoHead, settings: TrapSettings, suspicion: FloatArray, caught: Caught
) -> Caught | None:
    """Confuse the second head once more, with other suspects, where nothing was caught before.

    Args:
        session: Device, precision, processes.
        feed: The data.
        net: The network after the warm-up; its trunk and second head change.
        settings: Steps and shares.
        suspicion: `(M,)` of the `searched_rows`.
        caught: What `spring` returned.

    Returns:
        What is caught now; None if it is nothing again.
    """
    search = Search(session, feed, net, settings, searched_rows(session, feed))
    nobody: BoolArray = np.zeros(len(search.rows), dtype=bool)
    nothing = Populations(nobody, (), {}, nobody)
    again = search.attempt(suspicion, BY_GROUPS, nothing, promising=PROMISING)
    return again and replace(again, gains=caught.gains, steps=caught.steps + again.steps)


def searched_rows(session: Session, feed: Feed) -> IntArray:
    """The rows that a search works on, sorted."""
    n = len(feed.labels)
    return np.sort(shuffled(n, session.recipe.seed, 6)[: n_searched(n, feed.n_classes)])


def under_one_output(feed: Feed) -> Feed:
    """The same samples, all under the first label: its output stands for "carries a short-cut"."""
    return feed._replace(labels=torch.zeros_like(feed.labels))


class AcrossLabels(Search):
    """A search beside another one, for a short-cut that samples of several labels share.

    Suspects come from each label alike, and so do the samples that count as clean: what tells the classes apart tells
    nothing about who is suspected.
    """

    def __init__(self, search: Search) -> None:
        super().__init__(search.session, under_one_output(search.feed), search.net, search.settings, search.rows)
        self.all_given, self.given = search.all_labels, search.labels
        self.draws = np.random.default_rng((search.session.recipe.seed, 10))

    def is_quiet(self, suspicion: FloatArray) -> BoolArray:
        """The less suspicious half of each label."""
        return rank_within(-suspicion, self.given) > 0.5

    def is_believed(self, least: float) -> BoolArray:
        """Rows with a larger margin than this; there is no other label to compare with."""
        return self.margins > least

    def held_out(self, found: IntArray) -> IntArray:
        """The less believed half: in all classes some samples resemble carriers, and are not to be trained on."""
        return found[rank(-self.margins[np.searchsorted(self.rows, found)]) >= 0.5]

    def widened(self, margins: FloatArray, flagged: BoolArray, suspected: set[int]) -> BoolArray:
        """The flagged alone: the rest is of all classes and no narrow band that something could stand out of."""
        return flagged

    def settle(self, strangers: Populations) -> Caught | None:
        """What is left of the finding, told by the given labels; None if nothing is."""
        # The strangers are none: they end the first attempt.
        caught = super().settle(strangers)
        if caught is None:
            return None
        members = {k: rows for k, rows in label_rows(self.all_given).items() if len(rows) >= SMALLEST_LABEL}
        shares = {k: float(caught.core[rows].mean()) for k, rows in members.items()}
        most = max(shares.values(), default=0.0)
        labels = [k for k, share in shares.items() if share >= LEAST_OF_MOST * most > 0]
        depths = {k: find_valley(caught.margins[rows]).depth for k, rows in members.items()}
        return replace(
            caught,
            depths=self.by_label(depths | dict.fromkeys(labels, self.valleys[0].depth)),
            labels=tuple(sorted(labels)),
            across=True,
        )
