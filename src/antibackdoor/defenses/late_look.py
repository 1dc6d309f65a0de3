"""A look at what the main head has learned: mislabelled samples that the search did not see."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from antibackdoor.models import coarse, find_last, trunk_features
from antibackdoor.populations import Populations, strangers
from antibackdoor.samples import BoolArray, FloatArray, IntArray, Samples
from antibackdoor.session import Feed, Session
from antibackdoor.training import evaluate, predict, shuffled
from antibackdoor.trap import Caught, n_searched

WIDEST = 512  # values of a sample in four cells; wider features are averaged over all places


def look_again(session: Session, feed: Feed, model: nn.Module, isolated: BoolArray) -> Populations:
    """Test the samples that the model is trained on for labels that hold samples of all the others.

    The model knows the classes by now, so in its last features a mislabelled sample lies with those that it was taken
    from until the model has learned it by heart. That needs no trigger that stands out: it sees the smooth and the
    half hidden ones, if they are not rare. It is blind to clean-label poison, and to poison of one source only.

    Args:
        session: Device, precision, processes.
        feed: The data with their given labels.
        model: Well trained; it is left in eval mode.
        isolated: `(N,)` bool, what the model is not trained on.

    Returns:
        Members and labels, over all N.
    """
    labels = feed.labels.cpu().numpy()
    trained_on = np.flatnonzero(~isolated)
    part = trained_on[shuffled(len(trained_on), session.recipe.seed, 9)]
    rows = np.sort(part[: n_searched(len(trained_on), feed.n_classes)])
    model.eval()
    layer = find_last(model, torch.zeros(2, *feed.inputs.shape[1:], device=session.device))
    found = _test(session, feed, model, layer, rows, labels)
    if found.labels and len(rows) < len(trained_on):
        rows = np.union1d(rows, trained_on[np.isin(labels[trained_on], found.labels)])
        found = _test(session, feed, model, layer, rows, labels)
    flagged = np.zeros(len(labels), dtype=bool)
    flagged[rows] = found.flagged
    return found._replace(flagged=flagged)


def with_strangers(caught: Caught, found: Populations) -> Caught:
    """What was caught, and the members of further populations."""
    gains: FloatArray = np.array([found.gains.get(label, np.nan) for label in range(len(caught.gains))])
    return replace(
        caught,
        isolated=caught.isolated | found.flagged,
        core=caught.core | found.flagged,
        content=caught.content | found.flagged,
        gains=gains,
        labels=tuple(sorted({*caught.labels, *found.labels})),
    )


def reconsidered(session: Session, samples: Samples, model: nn.Module, caught: Caught, late: BoolArray) -> Caught:
    """The same with those in the core only that a model which never saw them calls something else than their label.

    The late look divides a label less sharply than the search does; the others were isolated to be safe.
    """
    rows = np.flatnonzero(late)
    own = np.zeros(len(late), dtype=bool)
    own[rows] = predict(session, model, samples.take(rows)).labels == samples.labels[rows]
    return replace(caught, core=caught.core & ~own, content=caught.content & ~own)


def _test(session: Session, feed: Feed, model: nn.Module, layer: str, rows: IntArray, labels: IntArray) -> Populations:
    def forward(inputs: Tensor) -> Tensor:
        features = trunk_features(model, layer, inputs).float()
        cells = coarse(features)
        return cells if cells.shape[1] <= WIDEST else features.reshape(*features.shape[:2], -1).mean(2)

    values = evaluate(session, feed, forward, lambda values, _: values, rows, title="looking again")
    return strangers(values, labels[rows], seed=session.recipe.seed)
