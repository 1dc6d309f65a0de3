"""A look at what the main head has learned: mislabelled samples that the search missed, and whom to suspect next."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from antibackdoor.data.samples import BoolArray, FloatArray, IntArray
from antibackdoor.models.features import coarse_or_mean, features, last_layer
from antibackdoor.search.caught import SEEN_LATE, Caught, joined, with_more
from antibackdoor.search.search import searched_rows
from antibackdoor.statistics.carriers import carriers
from antibackdoor.statistics.populations import Populations, smaller_groups, strangers, with_strange
from antibackdoor.training.session import Feed, Session

FAR_MORE = 2.0  # times the gain of the middle layer
LEAST_LEFT = 0.75  # of the median size of the other labels before, for what is left of a label to be a class


class Looked(NamedTuple):
    """What a look at a trained network shows."""

    strangers: Populations  # over all N
    middle: NDArray[np.float32]  # (M, D) features of the `searched_rows` in the middle layer
    apart: FloatArray  # of the `searched_rows`: log-odds of the smaller of two groups of their label


def look_again(session: Session, feed: Feed, model: nn.Module, middle: str, pool: IntArray) -> Looked:
    """Test the samples that the model is trained on for labels that hold samples of all the others.

    The model knows the classes by now, so a mislabelled sample lies with those that it was taken from: in the last
    features until the model has learned its trigger, in the middle ones even then. There, the last features must agree:
    either some of the same label lie with others, or the carriers of a trigger that is learned well are set apart. That
    needs no trigger that stands out; it sees the smooth and the half hidden ones, if they are not rare. It is
    blind to clean-label poison, and to poison from one source only.

    Args:
        session: Device, precision, processes.
        feed: The data with their given labels.
        model: Well trained; it is left in eval mode.
        middle: A layer about the middle at which the model can be cut.
        pool: Rows that the model is trained on, of copies one.

    Returns:
        Who does not belong, and who is set apart: two separate witnesses, of which the second proves nothing alone.
    """
    labels = feed.labels.cpu().numpy()
    rows = searched_rows(session, feed, pool)
    model.eval()
    looked = _test(session, feed, model, middle, rows, labels)
    found = looked.strangers
    if found.labels and len(rows) < len(pool):
        rows = np.union1d(rows, pool[np.isin(labels[pool], found.labels)])
        found = _test(session, feed, model, middle, rows, labels).strangers
    flagged = np.zeros(len(labels), dtype=bool)
    flagged[rows] = found.flagged
    return Looked(found._replace(flagged=flagged), looked.middle, looked.apart)


def more_carriers(session: Session, feed: Feed, model: nn.Module, pool: IntArray, isolated: BoolArray) -> BoolArray:
    """Samples of the labels with a finding that the model shows to be of the same kind.

    Args:
        session: Device, precision, processes.
        feed: The data with their given labels.
        model: Well trained; it is left in eval mode.
        pool: Rows to look at, of copies one.
        isolated: `(N,)` bool, what was found so far.

    Returns:
        `(N,)` bool, none of them isolated.
    """
    labels = feed.labels.cpu().numpy()
    more = np.zeros(len(labels), dtype=bool)
    if not isolated.any():
        return more
    suspected = np.isin(labels[pool], labels[isolated])
    rows = np.union1d(pool[suspected], searched_rows(session, feed, pool[~suspected]))
    model.eval()
    features = _features(session, feed, model, _last(session, feed, model), rows)
    more[rows] = carriers(features, labels[rows], isolated[rows], seed=session.recipe.seed)
    return more


def with_strangers(caught: Caught, found: Populations) -> Caught:
    """What was caught, and the members of further populations."""
    gains: FloatArray = np.array([found.gains.get(label, np.nan) for label in range(len(caught.gains))])
    labels = tuple(sorted({*caught.labels, *found.labels}))
    ways = joined(caught.ways, (SEEN_LATE,))
    return with_more(replace(caught, gains=gains, labels=labels, ways=ways), found.flagged)


def _test(session: Session, feed: Feed, model: nn.Module, middle: str, rows: IntArray, labels: IntArray) -> Looked:
    """What two layers show. The last one counts where it tells far more: then no trigger misleads it yet."""
    given, seed = labels[rows], session.recipe.seed
    deep = _features(session, feed, model, _last(session, feed, model), rows)
    apart = smaller_groups(deep, given, seed=seed)
    shallower = _features(session, feed, model, middle, rows)
    last = seconded(strangers(deep, given, seed=seed), shallower, given, seed=seed)
    inner = strangers(shallower, given, seed=seed, apart=apart > 0, known=last.labels)
    inner = with_strange(inner, shallower, given, seed=seed)
    by_last = [
        label for label in last.labels if label not in inner.labels or last.gains[label] > FAR_MORE * inner.gains[label]
    ]
    both = Populations(
        flagged=np.where(np.isin(given, by_last), last.flagged, inner.flagged),
        labels=tuple(sorted({*inner.labels, *last.labels})),
        gains={label: max(gain, last.gains[label]) for label, gain in inner.gains.items()},
        blurred=inner.blurred,
    )
    return Looked(both, shallower, apart)


def seconded(last: Populations, middle: NDArray[np.float32], given: IntArray, *, seed: int) -> Populations:
    """What the last layer shows, but for labels that would be foreign almost whole, and the middle one denies it.

    A class that lies among the others is described as well by what those are made of, and the poison in it as the odd
    rest, if the network obeys its trigger. Then more than half of the label would be foreign, and the rest smaller than
    a class.

    Args:
        last: What the last layer shows of N samples.
        middle: `(N, D)` features of the middle layer.
        given: `(N,)` labels.
        seed: Chooses starts, and samples where there are many.
    """
    most = [label for label in last.labels if _is_almost_whole(last.flagged, given, label)]
    if not most:
        return last
    told = strangers(middle, given, seed=seed, apart=last.flagged).labels
    doubted = [label for label in most if label not in told]
    return last._replace(
        flagged=last.flagged & ~np.isin(given, doubted),
        labels=tuple(label for label in last.labels if label not in doubted),
        gains=last.gains | dict.fromkeys(doubted, 0.0),
    )


def _is_almost_whole(flagged: BoolArray, given: IntArray, label: int) -> bool:
    """Whether most of a label is flagged, and more than if a class were left: one like the others, had these it all."""
    of_label = given == label
    n_taken = (of_label & flagged).sum()
    n_left = of_label.sum() - n_taken
    others = np.unique(given[~of_label], return_counts=True)[1]
    return bool(n_left < n_taken and n_left < LEAST_LEFT * (np.median(others) + n_taken / len(others)))


def _last(session: Session, feed: Feed, model: nn.Module) -> str:
    return last_layer(model, torch.zeros(2, *feed.inputs.shape[1:], device=session.device))


def _features(session: Session, feed: Feed, model: nn.Module, layer: str, rows: IntArray) -> NDArray[np.float32]:
    """Features of the rows at a layer, `(len(rows), D)`: of four cells, or their mean if that is wide."""
    return features(session, feed, model, [layer], rows, pool=coarse_or_mean)[layer]
