"""Spectral signatures: poison lies along the first singular vector of the features of its label."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from antibackdoor.data.samples import Samples
from antibackdoor.data.streams import Stream, stream
from antibackdoor.models.features import features, last_layer
from antibackdoor.protocols import Detection, Given, Verdict, check_given
from antibackdoor.statistics.isolation import highest, label_rows
from antibackdoor.statistics.spectral import spectral_scores
from antibackdoor.training.journal import Journal
from antibackdoor.training.ranges import check_ranges
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.session import Session

REMOVED = 1.5  # of the expected number of poisoned samples, in each label (Tran et al., Algorithm 1)
MOST = 0.5  # of a label: more than half of it cannot be the exception


@dataclass(frozen=True)
class SpectralSignatures:
    """Ranks the samples of each label by their squared projection on the first singular vector of its features.

    `s_i = ((g_i - mean g) . v)^2`, divided by its mean over the label, so that labels compare. The rule of the paper
    isolates the top `1.5 * expected_rate * N` of every label, at most half of it: clean labels lose as many. It needs a
    model that was trained on the data.

    Attributes:
        expected_rate: Expected poisoning rate, in [0, 1); the paper knows it. 0 isolates nothing.
        layer: Name of the layer whose features are used; empty for the last one before the classifier.

    Reference: Tran, Li, Madry, "Spectral Signatures in Backdoor Attacks", NeurIPS 2018, arXiv 1811.00636.
    """

    needs: ClassVar[tuple[str, ...]] = ("model",)
    takes: ClassVar[tuple[str, ...]] = ("history",)
    unused: ClassVar[tuple[str, ...]] = ()

    expected_rate: float = 0.0
    layer: str = ""

    def detect(
        self, samples: Samples, given: Given | None, recipe: Recipe, *, journal: Journal | None = None
    ) -> Detection:
        """Score every sample by the features of `given.model`.

        Raises:
            ConfigError: If there is no model, or the rate is out of range.
            ModelError: If the network has no such layer.
        """
        given = check_given(self, given)
        check_ranges(self, expected_rate="[0, 1)")
        assert given.model is not None
        session = Session(recipe, len(samples), images=samples.kind == "image")
        model, feed = session.prepare(deepcopy(given.model)), session.feed(samples)._replace(augmentations=())
        layer = self.layer or last_layer(model, torch.zeros(2, *samples.shape, device=session.device))
        scores, isolated = np.zeros(len(samples)), np.zeros(len(samples), dtype=bool)
        ties = stream(recipe.seed, Stream.ISOLATION_TIES).permutation(len(samples))
        for rows in label_rows(samples.labels).values():  # one label at a time bounds the memory
            scores[rows] = spectral_scores(features(session, feed, model, [layer], rows)[layer])
            share = min(REMOVED * self.expected_rate * len(samples) / len(rows), MOST)
            isolated[rows] = highest(scores[rows], share, ties=[ties[rows]])
        return Detection(Verdict.isolating(scores, isolated, samples), history=given.history)
