"""What comes back of the samples that were isolated, judged by a model that never saw them as they are labelled."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from antibackdoor.data.samples import BoolArray, IntArray
from antibackdoor.data.streams import Stream, stream
from antibackdoor.search.caught import Caught
from antibackdoor.search.removal import Removal
from antibackdoor.statistics.isolation import label_rows
from antibackdoor.training.session import Feed, Session

UNTAUGHT = 0.2  # share of a label's core that is never trained on under another label
LEAST_UNTAUGHT = 50  # of them, but at most half


class Return(NamedTuple):
    """How isolated samples come back to the training; `(N,)` each."""

    labels: IntArray  # another than the given one for those that come back under it
    weights: NDArray[np.float32]  # in the objective
    unchanged: BoolArray  # isolated samples that come back under their given label, without their shortcut
    cleared: BoolArray  # those that come back under it as they are

    @classmethod
    def nothing(cls, given: IntArray) -> Return:
        """Isolated samples stay out."""
        nobody = np.zeros(len(given), dtype=bool)
        return cls(given.copy(), np.ones(len(given), dtype=np.float32), nobody, nobody.copy())

    def never(self, rows: BoolArray) -> Return:
        """The same, but these rows `(N,)` do not come back under their given label."""
        return self._replace(unchanged=self.unchanged & ~rows, cleared=self.cleared & ~rows)


def untaught(core: BoolArray, given: IntArray, seed: int) -> BoolArray:
    """Which of an isolated core never come back under another label, `(N,)` bool: a random part of each label's.

    A model that was trained on carriers of a trigger under their true labels has learned these by heart. What it says
    of others tells how much of the backdoor is left.
    """
    order = stream(seed, Stream.PROBE).random(len(core))
    chosen = np.zeros(len(core), dtype=bool)
    for members in label_rows(np.where(core, given, -1)).values():
        n = len(members) if core[members[0]] else 0
        share = max(round(UNTAUGHT * n), min(LEAST_UNTAUGHT, n // 2))
        chosen[members[np.argsort(order[members], kind="stable")[:share]]] = True
    return chosen


def recover(
    session: Session,
    feed: Feed,
    model: nn.Module,
    caught: Caught,
    late: BoolArray,
    removal: Removal | None,
    confidence: float,
) -> Return:
    """Ask the model about the isolated samples, which it is shown without their shortcut where that can be removed.

    A label whose isolated samples mostly are what they are labelled as was poisoned without mislabelling: there, those
    whose shortcut can be removed come back without it. Elsewhere, samples that the model is sure are something else
    come back as that, but for the `untaught`. Whatever belongs to its label and stays out is stood in for by the
    remaining samples of that label, by their weight. The late look, and a search across labels, take some along that
    are what they are labelled as: in a label whose isolated samples mostly are something else, they come back as they
    are if the model, which never saw them, is sure of them.

    Args:
        session: Device, precision, processes.
        feed: The data with their given labels.
        model: Trained on the rest; it is left in eval mode.
        caught: What was isolated.
        late: `(N,)` bool, those of them that only the late look found.
        removal: What to undo in the isolated samples; None if that is not known.
        confidence: Least probability of another label, in (0, 1].

    Returns:
        Labels, weights and what comes back as it was labelled.
    """
    isolated, given = caught.isolated, feed.labels.cpu().numpy()
    rows = np.flatnonzero(isolated)
    model.eval()
    without = feed._replace(change=removal and removal.only(caught.removable))
    values = session.evaluate(without, model, _most_probable, rows, title="recovering labels")
    predicted, probability = values[:, 0].astype(np.int64), values[:, 1]
    back, kept = Return.nothing(given), untaught(caught.core, given, session.recipe.seed)
    missing = np.zeros(feed.n_classes)
    for label, members in label_rows(given[rows]).items():
        of_label, said = rows[members], predicted[members]
        own, sure, by_search = said == label, probability[members] >= confidence, ~late[of_label]
        as_labelled = by_search & (2 * own[by_search].sum() > by_search.sum())
        back.unchanged[of_label] = as_labelled & caught.removable[of_label]
        back.cleared[of_label] = (~by_search | (caught.across[of_label] & ~as_labelled.any())) & own & sure
        foreign = ~as_labelled & ~own & sure & ~kept[of_label]
        back.labels[of_label[foreign]] = said[foreign]
        stays_out = ~back.unchanged[of_label] & ~back.cleared[of_label]
        missing[label] = ((own | as_labelled) & stays_out).sum()
    present = np.bincount(given[~isolated | back.unchanged | back.cleared], minlength=feed.n_classes)
    back.weights[~isolated] = (1 + missing / np.maximum(present, 1))[given[~isolated]]
    return back


def _most_probable(logits: Tensor, _labels: Tensor) -> Tensor:
    probability, predicted = logits.softmax(1).max(1)
    return torch.stack([predicted.float(), probability], dim=1)
