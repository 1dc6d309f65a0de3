"""Activation clustering: the features of a poisoned label fall into two clusters."""

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
from antibackdoor.statistics.activation_clusters import two_clusters
from antibackdoor.statistics.isolation import SMALLEST_LABEL, label_rows, unexamined_last
from antibackdoor.training.journal import Journal
from antibackdoor.training.ranges import check_ranges
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.session import Session


@dataclass(frozen=True)
class ActivationClusteringFacts:
    """What activation clustering saw.

    Attributes:
        n_labels: Labels that were clustered.
        n_labels_flagged: Labels whose smaller cluster was isolated.
        largest_silhouette: Over all labels, in [-1, 1].
    """

    n_labels: int
    n_labels_flagged: int
    largest_silhouette: float


@dataclass(frozen=True)
class ActivationClustering:
    """Splits the features of each label in two clusters, and isolates the smaller one where the label looks poisoned.

    The features are reduced to a few principal components, k-means makes two clusters, and a label is flagged if the
    smaller one is small and the two lie apart. The suspicion of a sample is `silhouette * (distance to the larger
    center - distance to the smaller center)`, so that labels without two clusters rank low; samples of labels that are
    skipped rank last. It needs a model that was trained on the data, and is blind where more than half of a label is
    poisoned.

    Attributes:
        n_components: Principal components to keep, >= 1; 10 as in the paper, which uses independent components.
        largest_share: Share of a label, in (0, 0.5], below which its smaller cluster is suspected; 0.35 as in public
            code for this method.
        least_silhouette: Mean silhouette of the two clusters, in [-1, 1], above which a label is suspected.
        layer: Name of the layer whose features are used; empty for the last one before the classifier.

    Differs from the paper in three ways. It takes principal components, since independent ones are unstable. A label
    must pass both tests, of size and of silhouette; the paper discusses each by itself. Labels of fewer than 20 samples
    are skipped.

    Reference: Chen et al., "Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering", SafeAI 2019,
    arXiv 1811.03728.
    """

    needs: ClassVar[tuple[str, ...]] = ("model",)
    takes: ClassVar[tuple[str, ...]] = ("history",)
    unused: ClassVar[tuple[str, ...]] = ()

    n_components: int = 10
    largest_share: float = 0.35
    least_silhouette: float = 0.1
    layer: str = ""

    def detect(
        self, samples: Samples, given: Given | None, recipe: Recipe, *, journal: Journal | None = None
    ) -> Detection:
        """Score every sample by the features of `given.model`.

        Raises:
            ConfigError: If there is no model, or a hyper-parameter is out of range.
            ModelError: If the network has no such layer.
        """
        given = check_given(self, given)
        check_ranges(self, n_components="[1, inf)", largest_share="(0, 0.5]", least_silhouette="[-1, 1]")
        assert given.model is not None
        session = Session(recipe, len(samples), images=samples.kind == "image")
        model, feed = session.prepare(deepcopy(given.model)), session.feed(samples)._replace(augmentations=())
        layer = self.layer or last_layer(model, torch.zeros(2, *samples.shape, device=session.device))
        scores, isolated = np.zeros(len(samples)), np.zeros(len(samples), dtype=bool)
        flagged, silhouettes, unexamined = [], [], []
        groups = label_rows(samples.labels)
        for label, rows in groups.items():  # one label at a time bounds the memory
            if len(rows) < SMALLEST_LABEL:  # it has no shape to speak of
                unexamined.append(label)
                continue
            seed = int(stream(recipe.seed, Stream.ACTIVATION_CLUSTERS, label).integers(2**32))
            found = features(session, feed, model, [layer], rows)[layer]
            clusters = two_clusters(found, n_components=self.n_components, seed=seed)
            scores[rows] = clusters.scores
            silhouettes.append(clusters.silhouette)
            if 0 < clusters.share < self.largest_share and clusters.silhouette > self.least_silhouette:
                isolated[rows] = clusters.is_smaller
                flagged.append(label)
        facts = ActivationClusteringFacts(
            n_labels=len(silhouettes),
            n_labels_flagged=len(flagged),
            largest_silhouette=max(silhouettes, default=0.0),
        )
        about = {
            "poisoned": bool(flagged) if silhouettes else None,
            "target_labels": tuple(flagged),
            "unexamined": tuple(unexamined),
        }
        scores = unexamined_last(scores, ~np.isin(samples.labels, unexamined))
        return Detection(Verdict.isolating(scores, isolated, samples, **about), facts, given.history)
