"""One attempt to catch a short-cut: the second head is made to forget the classes, and believes in short-cuts alone.

After the warm-up, all on the trunk and the second head alone: *confusion* keeps training the most suspicious samples of
each label towards that label and surely clean ones towards no label at all: what the classes look like is forgotten,
and what remains predictive is the trigger. What is believed then is suspected next, so that a soft trigger spreads to
all that carry it. (Poison that makes up nearly all of a label is looked for by a trial after the first round.) The
*settlement* confuses twice more, first with half of the found samples, since a short-cut carries over to the other half
and a memory does not, then with all, so that the missed ones join them. `trap` tells which attempts there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from antibackdoor.data.samples import BoolArray, FloatArray, IntArray
from antibackdoor.data.streams import Stream, stream
from antibackdoor.models.two_head import TwoHead
from antibackdoor.search.caught import Caught
from antibackdoor.search.confusion import weights
from antibackdoor.search.head import SecondHead
from antibackdoor.search.witnesses import Content, Seconded, content, misplaced, strength_of_place
from antibackdoor.statistics.isolation import (
    NEARLY_ALL,
    SMALLEST_GROUP,
    SMALLEST_LABEL,
    Valley,
    above_valleys,
    believed_most,
    find_favourites,
    find_gap,
    find_valley,
    first_suspicion,
    label_rows,
    rank,
    rank_within,
    widen,
)
from antibackdoor.statistics.parts import Resemblance
from antibackdoor.statistics.populations import Constellations, Populations, two_populations
from antibackdoor.training.history import LossHistory
from antibackdoor.training.loop import shuffled
from antibackdoor.training.session import Feed, Session

SEARCHED = 20_000  # samples in which a population is looked for; the last look goes over all
FIRST_SUSPECTS = 0.2  # share of each label
NEXT_SUSPECTS = 0.1  # at most, in the second round; then twice as many, and so on
FAVOURITE_RATIO = 2.0  # of believed samples to those of other labels, from which a label may be poison almost whole
KEPT = 2 / 3  # of the depth that a label was found with: so much must be left in later looks, if it is below the least
CLEAR = 3.0  # times the least depth: nothing that is between two groups; parts need say less of such a valley
MOSTLY = 0.5  # of a label, whose content is that of others; of what is caught, if these were the suspects
LEAST_REPEATED = 0.5  # share of found samples that are found again without being trained on
SEARCHED_PER_LABEL = 200  # at least so many for each label


@dataclass(frozen=True)
class TrapSettings:
    """What the trap is made of; the values are those of `E2ABL`, where they are explained."""

    confusion_steps: int
    confusion_learning_rate: float
    confusion_weight: float
    least_depth: float
    are_labels_few: bool = False  # then looks make up for no depth, a gap counts as a deep valley, nobody is added
    by_features: bool = True
    by_parts: bool = True
    by_both: bool = True
    by_place: bool = True
    by_gaps: bool = True
    made_pure: bool = True
    across_labels: bool = True
    in_the_rest: bool = True


class Demand(NamedTuple):
    """How deep a valley must be to make its label suspect."""

    alone: float  # whatever lies above it
    if_foreign: float  # where what lies above it looks like other labels


def n_searched(n_samples: int, n_classes: int) -> int:
    """How many samples of a data set the search works on."""
    return min(n_samples, max(SEARCHED, SEARCHED_PER_LABEL * n_classes))


def searched_rows(session: Session, feed: Feed, pool: IntArray) -> IntArray:
    """The rows of a pool that a search works on, sorted."""
    return drawn_rows(len(feed.labels), feed.n_classes, pool, session.recipe.seed)


def drawn_rows(n_samples: int, n_classes: int, pool: IntArray, seed: int) -> IntArray:
    """The same for so many samples in all."""
    order = shuffled(n_samples, seed, Stream.SEARCHED_ROWS)
    return np.sort(order[np.isin(order, pool)][: n_searched(len(pool), n_classes)])


class Search:
    """The state of a search: the second head, and the margins of the rows searched.

    It works on the `searched_rows` of the `pool`, and in the end looks at the whole pool.
    """

    drawn_from = Stream.CONFUSION_ROWS  # the stream of random numbers, one for each kind of search

    def __init__(self, session: Session, feed: Feed, net: TwoHead, settings: TrapSettings, pool: IntArray) -> None:
        self.session, self.settings, self.pool = session, settings, pool
        self.head = SecondHead(
            session,
            feed,
            net,
            stream(session.recipe.seed, self.drawn_from),
            n_steps=settings.confusion_steps,
            learning_rate=settings.confusion_learning_rate,
            weight=settings.confusion_weight,
        )
        self.rows = searched_rows(session, feed, pool)
        self.all_labels = feed.labels.cpu().numpy()
        self.labels = self.all_labels[self.rows]
        self.given = self.labels  # suspects are chosen from each of these
        self.margins: FloatArray = np.zeros(len(self.rows))
        nobody: BoolArray = np.zeros(len(self.rows), dtype=bool)
        self.populations = Populations(nobody, (), {}, nobody)
        self.undecided = -float(np.log(net.n_outputs - 1))  # the margin of a sample that has no label
        self.deepest: dict[int, float] = {}  # of each label in any round
        self.found: dict[int, Valley] = {}  # valleys that make their label suspect
        self.favourites: set[int] = set()
        self.foreign: set[int] = set()  # labels whose features alone say who shows the content of others
        self.constellations: Constellations | None = None
        self.carried: dict[int, float] = {}  # nats, the most of any round
        self.by_content = self.by_place = Seconded(self.margins, {}, 0.0)  # the loudest of any round
        self.asked: set[int] = set()  # labels where content may stand in for a valley
        self.placed: set[int] = set()  # labels where the place of a group may make up for a shallow one
        self.rounds: list[FloatArray] = []  # margins after each

    def first_look(self) -> None:
        """Margins, and the labels whose shallow features hold two populations."""
        self.margins, features = self.head.look_closely(self.rows)
        if self.settings.by_features:
            self.populations = two_populations(features, self.labels, seed=self.session.recipe.seed)
        if self.settings.by_both:
            self.carried = dict.fromkeys(label_rows(self.labels), 0.0)
            self.constellations = Constellations(features, self.labels, seed=self.session.recipe.seed)

    def attempt(
        self,
        suspicion: FloatArray,
        rounds: int,
        demand: Demand,
        *,
        promising: float = 0.0,
        within_first: bool = False,
    ) -> Caught | None:
        """What is caught if confusion begins with these suspects; None if nothing is.

        A first round without a `promising` valley is the last one. With `within_first` only those who were suspected
        then are suspected again, until more of a label are believed than these.
        """
        before, self.favourites = weights(self.head.net), set()
        self.narrow(suspicion, rounds, demand, promising, within_first=within_first)
        if self.found and self.settings.made_pure and not self.favourites:
            self.sharpen(before)
        return self.settle()

    def attempt_blurred(self, *, most: bool) -> Caught | None:
        """What is caught if confusion begins with those whose content is that of other labels; None if nothing is.

        Of the labels with such samples, those count where they are most of it, or the others. Nobody in these labels
        counts as clean, and whoever is believed more than the samples of all other labels belongs to them. If most of
        what is caught was not suspected, it is the class itself: a trigger that is learned more slowly is beaten by it.
        """
        blurred = self.populations.blurred
        shares = np.bincount(self.labels, blurred) / np.maximum(np.bincount(self.labels), 1)
        suspects = self.rows[blurred & ((shares > MOSTLY) == most)[self.labels]]
        if not len(suspects):
            return None
        self.favourites = self.foreign = set(self.all_labels[suspects].tolist())
        self.head.confuse(self.half(suspects), self.rows[~np.isin(self.labels, list(self.foreign))])
        self.margins, deepest = self.head.look(self.rows), dict(self.deepest)
        valleys = self.noted(self.find_valleys(self.margins, self.labels, self.foreign))
        self.found = {k: v for k, v in valleys.items() if v.depth >= KEPT * self.settings.least_depth}
        caught = self.settle()
        self.foreign = set()
        if caught is not None and blurred[caught.core[self.rows]].mean() >= MOSTLY:
            return caught
        self.deepest = deepest  # what was refused is no evidence
        return None

    def attempt_seconded(self) -> Caught | None:
        """What is caught if the search settles on those who were believed and look foreign; None if nothing is.

        Two witnesses agree on them, of which each saw too little: no valley divides them from the rest, and features
        alone do not tell them.
        """
        self.asked = set(self.by_content.cuts)
        caught = self.settle_on(self.by_content)
        self.asked = set()
        return caught

    def attempt_misplaced(self) -> Caught | None:
        """The same for groups above shallow valleys that lie as samples of other labels do; None if nothing is.

        Features tell content only where it is that of several labels, and where most samples are of one or two labels,
        the next suspects are honest ones: what a round had found there gets lost in the next.
        """
        self.placed = set(self.by_place.cuts)
        caught = self.settle_on(self.by_place)
        if caught is not None:
            members = label_rows(self.all_labels[self.pool])
            depths = {k: find_valley(caught.margins[self.pool[members[k]]]).depth for k in caught.labels}
            caught = replace(caught, depths=self.by_label(self.deepest | depths))
        self.placed = set()
        return caught

    def settle_on(self, seconded: Seconded) -> Caught | None:
        """What is left if the settlement begins with those of whom a second witness told; None if nothing is."""
        if not seconded.cuts:
            return None
        self.favourites, least = set(), self.settings.least_depth
        self.margins, self.found = seconded.margins, {k: Valley(least, cut) for k, cut in seconded.cuts.items()}
        return self.settle()

    def attempt_believed(self, rounds: Iterable[NDArray[np.floating]], constellations: Constellations) -> Caught | None:
        """The same for those who were believed after the rounds of an earlier search, `(M,)` margins after each."""
        self.constellations = constellations
        for margins in rounds:
            self.margins = margins.astype(np.float64)
            self.second()
        return self.attempt_seconded()

    def second(self) -> None:
        """Keep who is believed now and carries the content of other labels, if that is the loudest so far."""
        believed = self.content_of_believed(self.margins, self.labels, set(self.labels.tolist()))
        for label, (_, carried) in believed.items():
            self.carried[label] = max(carried.evidence, self.carried.get(label, 0.0))
        foreign = {label: cut for label, (cut, carried) in believed.items() if carried.strength == 1}
        gain = max((believed[label].carried.gain for label in foreign), default=0.0)
        if gain > self.by_content.loudness:
            self.by_content = Seconded(self.margins, foreign, gain)

    def content_of_believed(self, margins: FloatArray, labels: IntArray, wanted: set[int]) -> dict[int, Content]:
        """What those carry of other labels who are believed in the wanted ones; nothing if that is not asked."""
        if self.constellations is None or not wanted:
            return {}
        return content(margins, labels, wanted, self.constellations, self.among(margins))

    def place(self, valleys: dict[int, Valley]) -> None:
        """Keep who is believed now and lies where the samples of other labels do, if these are the most misplaced."""
        if self.settings.by_place:
            told = misplaced(self.margins, self.labels, valleys, self.resemblance)
            self.by_place = max(self.by_place, told, key=lambda seconded: seconded.loudness)

    def by_losses(self, history: LossHistory) -> FloatArray:
        """How suspicious the loss of each row is, after the first look."""
        losses = np.logaddexp(0, -self.margins).astype(np.float32)
        return first_suspicion(LossHistory(history.losses[:, self.rows], history.steps), losses)

    @cached_property
    def resemblance(self) -> Resemblance:
        """What the rows of each label look like."""
        return Resemblance(self.head.parts(self.rows), self.labels, self.session.recipe.seed)

    def narrow(
        self, suspicion: FloatArray, rounds: int, demand: Demand, promising: float, *, within_first: bool = False
    ) -> None:
        """Rounds of confusion, until a label falls into two groups; after the first, the believed are the suspects."""
        self.found = {}
        first = chosen = rank_within(-suspicion, self.given) < FIRST_SUSPECTS
        for number in range(rounds):
            self.head.confuse(self.rows[chosen], self.rows[~chosen & self.is_quiet(suspicion)])
            self.margins = suspicion = self.head.look(self.rows)
            self.rounds.append(self.margins)
            valleys = self.find_valleys(self.margins, self.labels, set(self.labels.tolist()))
            deepest = max((valley.depth for valley in valleys.values()), default=0.0)
            self.found = {k: v for k, v in valleys.items() if self.is_found(k, v, demand)}
            self.noted({k: v for k, v in valleys.items() if k in self.found or self.is_evidence(k, v, demand)})
            self.second()
            self.place(valleys)
            if self.found or (number == 0 and deepest < promising):
                return
            if number == 0 and self.try_favourites(~chosen):
                return
            # Fewer, but surer; if they carry others of their kind along, these come next.
            least = 0.0 if number else self.undecided / 2
            share = NEXT_SUSPECTS * 2**number
            believed = self.is_believed(least)
            chosen = believed & (rank_within(-self.margins, self.labels) < share)
            if within_first:
                chosen &= first | self.is_oftener(believed, first)
            if chosen.sum() < SMALLEST_GROUP:
                return

    def sharpen(self, before: dict[str, Tensor]) -> None:
        """Begin anew with those of the found whose parts look most like other labels, if that makes deeper valleys.

        Above a shallow valley lie honest samples too, as sure of their label as the poison is; trained on, they take
        others of their style along. The half that contradicts its label most holds hardly any of them. Where the found
        look foreign as a whole, deep enough will do.
        """
        if all(valley.depth >= CLEAR * self.settings.least_depth for valley in self.found.values()):
            return
        least = self.settings.least_depth
        asked = {k: min(least, v.depth) if self.looks_foreign(k, v) else v.depth for k, v in self.found.items()}
        flagged: BoolArray = np.zeros(len(self.all_labels), dtype=bool)
        flagged[self.rows] = above_valleys(self.margins, self.labels, self.found)
        found = np.flatnonzero(flagged[self.rows])
        is_foreign = rank_within(-self.resemblance.contradiction[found], self.labels[found]) < 0.5
        after, drawn = weights(self.head.net), self.head.draws.bit_generator.state
        self.head.net.load_state_dict(before)
        self.reinforce(self.rows[found[is_foreign]], flagged)
        margins = self.head.look(self.rows)
        valleys = self.find_valleys(margins, self.labels, set(self.found))
        if all(valleys[label].depth > asked[label] for label in self.found):
            self.margins, self.found = margins, self.noted(valleys)
        else:
            self.head.net.load_state_dict(after)
            self.head.draws.bit_generator.state = drawn

    def is_found(self, label: int, valley: Valley, demand: Demand) -> bool:
        """Whether a valley is deep enough, or would be if what lies above it looks foreign, and it does."""
        if valley.depth >= demand.alone or valley.depth < demand.if_foreign:
            return valley.depth >= demand.alone and not self.is_inverted(label, self.above(label, valley))
        return self.looks_foreign(label, valley)

    def is_inverted(self, label: int, above: BoolArray) -> bool:
        """Whether the few below the valley of a label are the odd ones: then the class is above.

        They lie as other labels do, or what they carry is of other labels.
        """
        below = (self.labels == label) & ~above
        if self.settings.by_place and strength_of_place(below, label, self.resemblance) == 1:
            return True
        if self.constellations is None or below.sum() >= above.sum():
            return False
        return self.constellations.carried(label, below).strength == 1

    def is_evidence(self, label: int, valley: Valley, demand: Demand) -> bool:
        """Whether a valley would make its label suspect if only it were deeper; one of 1 or less is none at all."""
        is_open = demand.alone < np.inf or valley.depth <= max(1.0, self.deepest.get(label, 0.0))
        return is_open or self.looks_foreign(label, valley)

    def looks_foreign(self, label: int, valley: Valley) -> bool:
        """Whether what lies above the valley of a label could be of other labels."""
        group, is_clear = self.above(label, valley), valley.depth >= CLEAR * self.settings.least_depth
        if self.settings.are_labels_few and self.resemblance.is_at_home(group, label):
            return False
        return self.resemblance.is_foreign(group, label, is_clear=is_clear)

    def above(self, label: int, valley: Valley) -> BoolArray:
        """The rows of a label that lie above its valley."""
        return above_valleys(self.margins, self.labels, {label: valley})

    def is_quiet(self, suspicion: FloatArray) -> BoolArray:
        """The less suspicious half of the rows."""
        return rank(-suspicion) > 0.5

    def is_believed(self, least: float) -> BoolArray:
        """Rows with a larger margin than this that are believed more than those of other labels."""
        return believed_most(self.margins, self.labels, least)

    def is_oftener(self, chosen: BoolArray, than: BoolArray) -> BoolArray:
        """Rows whose label has more of the chosen than of some others."""
        n = self.head.feed.n_classes
        more = np.bincount(self.labels[chosen], minlength=n) > np.bincount(self.labels[than], minlength=n)
        return np.asarray(more[self.labels])

    def try_favourites(self, counted: BoolArray) -> bool:
        """Whether a label that alone is still believed consists of poison almost whole; if not, nothing has changed.

        With its believed samples as suspects, the few others of such a label stay behind. A class that is merely
        distinctive comes along as a whole.
        """
        favourites = find_favourites(self.margins, self.labels, counted)
        tried = {k: v for k, v in favourites.items() if v.depth >= FAVOURITE_RATIO}
        flagged = np.zeros(len(self.all_labels), dtype=bool)
        flagged[self.rows] = above_valleys(self.margins, self.labels, tried)
        if flagged.sum() < SMALLEST_GROUP:
            return False
        before = weights(self.head.net)
        self.favourites = set(tried)
        self.reinforce(self.half(np.flatnonzero(flagged)), flagged)
        margins = self.head.look(self.rows)
        kept = {
            label: valley
            for label, valley in self.find_valleys(margins, self.labels, self.favourites).items()
            if valley.depth >= self.settings.least_depth
            and (margins[self.labels == label] > valley.cut).mean() >= NEARLY_ALL
            and not self.is_inverted(label, above_valleys(margins, self.labels, {label: valley}))
        }
        if not kept:
            self.head.net.load_state_dict(before)
            self.favourites = set()
            return False
        self.margins, self.favourites, self.found = margins, set(kept), self.noted(kept)
        return True

    def settle(self) -> Caught | None:
        """Keep the labels whose finding repeats itself, then let the samples that were missed stand out as well.

        None if no finding is left.
        """
        n, wanted = len(self.all_labels), self.found
        by_features: BoolArray = np.zeros(n, dtype=bool)
        by_features[self.rows] = self.populations.flagged
        flagged = by_features.copy()
        flagged[self.rows] |= above_valleys(self.margins, self.labels, wanted)
        suspected, margins = {*wanted, *self.populations.labels}, self.margins
        for rows in (self.rows, self.pool):
            if flagged.sum() < SMALLEST_GROUP:
                return None
            found = np.flatnonzero(flagged)
            held_out = self.held_out(found) if rows is self.rows else found[:0]
            self.reinforce(np.setdiff1d(found, held_out), flagged)
            margins = self.head.look(rows)
            valleys = self.find_valleys(margins, self.all_labels[rows], suspected)
            refuted = self.refuted(held_out, margins)
            wanted = {k: v for k, v in valleys.items() if v.depth >= self.needed(k) and k not in refuted}
            suspected = {*wanted, *self.populations.labels}
            flagged = by_features.copy()
            flagged[rows] |= above_valleys(margins, self.all_labels[rows], wanted)
        if flagged.sum() < SMALLEST_GROUP:
            return None
        return self.caught(flagged, by_features, margins, suspected)

    def needed(self, label: int) -> float:
        """The depth that the valley of a label must keep once what was found is trained on: a trigger does not fade."""
        least = self.settings.least_depth
        depth = self.found[label].depth if label in self.found else least
        return min(KEPT * max(depth, least), least)

    def nothing(self) -> Caught:
        """The outcome of a search that found nothing: margins of all samples, and the evidence that there was."""
        margins = self.margins if len(self.rows) == len(self.pool) else self.head.look(self.pool)
        none: BoolArray = np.zeros(len(self.all_labels), dtype=bool)
        return self.caught(none, none, margins, set())

    def caught(self, core: BoolArray, by_features: BoolArray, margins: FloatArray, labels: set[int]) -> Caught:
        """An outcome with the evidence of each label and the cost; the margins are those of the pool."""
        isolated, all_margins = core.copy(), np.full(len(core), np.nan)
        isolated[self.pool] = self.widened(margins, core[self.pool], labels)
        all_margins[self.pool] = margins
        return Caught(
            isolated=isolated,
            core=core,
            content=by_features,
            margins=all_margins,
            removable=np.zeros(len(isolated), dtype=bool),
            across=np.zeros(len(isolated), dtype=bool),
            depths=self.by_label(self.deepest),
            gains=self.by_label(self.populations.gains),
            carried=self.by_label(self.carried),
            labels=tuple(sorted(labels)),
            steps=self.head.steps,
            rounds=np.array([] if core.any() else self.rounds, dtype=np.float32).reshape(-1, len(self.rows)),
        )

    def by_label(self, values: dict[int, float]) -> FloatArray:
        """A value for each label, `(K,)`; nan where there is none."""
        return np.array([values.get(label, np.nan) for label in range(self.head.feed.n_classes)])

    def held_out(self, found: IntArray) -> IntArray:
        """The half of the found samples that the settlement does not train on at first."""
        return self.half(found)

    def half(self, rows: IntArray) -> IntArray:
        """Half of the rows of each label, drawn at random."""
        return rows[rank_within(self.head.draws.random(len(rows)), self.all_labels[rows]) >= 0.5]

    def widened(self, margins: FloatArray, flagged: BoolArray, suspected: set[int]) -> BoolArray:
        """What is isolated of the pool: the flagged, and what stands out of the rest of their labels.

        A class within the label may do so too: what is added must be like what was found. Where content stood in for a
        valley, it must carry some by itself; where place did, nothing is added, nor between few labels, where honest
        styles stand out.
        """
        if self.settings.are_labels_few:
            return flagged
        labels = self.all_labels[self.pool]
        widened = widen(margins, labels, flagged, suspected)
        is_searched = np.isin(self.pool, self.rows, assume_unique=True)
        for label in sorted(suspected):
            near = widened & ~flagged & (labels == label)
            more, found = near[is_searched], (flagged & (labels == label))[is_searched]
            is_like_found = more.sum() < SMALLEST_GROUP or self.resemblance.is_alike(more, found, label)
            if label in self.placed or not is_like_found:
                widened &= ~near
            if label in self.asked and self.constellations is not None:
                carried = self.constellations.carried(label, more)
                widened &= ~near | (carried.strength >= KEPT)
        return widened

    def refuted(self, held_out: IntArray, margins: FloatArray) -> set[int]:
        """Labels whose found samples are not believed in once they are not trained on: a memory, not a short-cut."""
        believed = margins[np.searchsorted(self.rows, held_out)] > 0
        members = label_rows(self.all_labels[held_out])
        return {label for label, rows in members.items() if believed[rows].mean() < LEAST_REPEATED}

    def reinforce(self, suspects: IntArray, flagged: BoolArray) -> None:
        """A round of confusion with found samples as suspects, against the less believed half of the others."""
        quiet = ~flagged[self.rows] & self.is_quiet(self.margins)
        # The rest of a label that nearly all of it was found in is poison that was missed: leave it alone.
        quiet &= ~np.isin(self.labels, list(self.favourites))
        self.head.confuse(suspects, self.rows[quiet])

    def noted(self, valleys: dict[int, Valley]) -> dict[int, Valley]:
        """The same valleys, once the deepest of each label are kept."""
        for label, valley in valleys.items():
            self.deepest[label] = max(valley.depth, self.deepest.get(label, 0.0))
        return valleys

    def find_valleys(self, margins: FloatArray, labels: IntArray, wanted: set[int]) -> dict[int, Valley]:
        """The valley in the margins of each wanted label that has enough samples, or what is as good."""
        members = {k: r for k, r in label_rows(labels).items() if k in wanted and len(r) >= SMALLEST_LABEL}
        valleys = {label: find_valley(margins[rows]) for label, rows in members.items()}
        for label, other in self.as_good(margins, labels, members):
            valleys[label] = max(valleys[label], other)
        for label in sorted(self.placed & valleys.keys()):
            above = above_valleys(margins, labels, {label: valleys[label]})[self.among(margins)]
            strength = strength_of_place(above, label, self.resemblance)
            valleys[label] = max(valleys[label], Valley(strength * self.settings.least_depth, valleys[label].cut))
        return valleys

    def as_good(
        self, margins: FloatArray, labels: IntArray, members: dict[int, IntArray]
    ) -> Iterator[tuple[int, Valley]]:
        """What counts as a valley in some labels, and how deep.

        A group of few samples makes no deep one: between few labels, a gap that sets it apart counts. Nor do few clean
        samples: where most of a label is foreign, all that is believed is a group of its own if hardly anything of
        other labels is. And content counts where it was what a label was found by.
        """
        least = self.settings.least_depth
        if self.settings.are_labels_few and self.settings.by_gaps:
            gaps = {label: find_gap(margins[rows]) for label, rows in members.items()}
            yield from ((label, Valley(least, cut)) for label, cut in gaps.items() if cut < np.inf)
        if self.foreign:
            favourites = find_favourites(margins, labels, np.ones(len(labels), dtype=bool))
            for label in sorted(self.foreign & favourites.keys() & members.keys()):
                depth, cut = favourites[label]
                yield label, Valley(depth, max(cut, 0.0))
        for label, (cut, carried) in self.content_of_believed(margins, labels, self.asked & members.keys()).items():
            yield label, Valley(carried.strength * least, cut)

    def among(self, values: FloatArray) -> IntArray | slice:
        """Where the rows are among values of theirs, or of the pool."""
        return np.searchsorted(self.pool, self.rows) if len(values) > len(self.rows) else slice(None)
