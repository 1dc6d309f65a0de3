"""SCAn: a poisoned label is explained far better by two groups than by one."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from antibackdoor.data.samples import BoolArray, FloatArray, IntArray, Samples
from antibackdoor.data.streams import Stream, stream
from antibackdoor.errors import DataError
from antibackdoor.models.features import features, last_layer
from antibackdoor.protocols import Detection, Given, Verdict, check_given
from antibackdoor.statistics.isolation import SMALLEST_LABEL, label_rows, unexamined_last
from antibackdoor.statistics.scan_model import LabelSplit, SharedVariation, anomalies, fit_shared_variation, split_label
from antibackdoor.training.journal import Journal
from antibackdoor.training.ranges import check_ranges
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.session import Feed, Session


@dataclass(frozen=True)
class SCAnFacts:
    """What SCAn saw.

    Attributes:
        n_dimensions: In which the shared variation was estimated; the clean set may allow fewer than wanted.
        n_labels_flagged: Labels in which a group was isolated.
        largest_anomaly: Over all labels, in robust standard deviations; None where fewer than three labels compare, or
            most are alike. Nothing is isolated then.
    """

    n_dimensions: int
    n_labels_flagged: int
    largest_anomaly: float | None


@dataclass(frozen=True)
class SCAn:
    """Splits the features of each label in two groups, and isolates one where two explain far more than one.

    A feature vector is the component of its class and a variation that is the same in all classes. A small clean set
    tells both covariances (an EM algorithm). Each label, its clean samples included, is split into two groups by
    Mahalanobis distance. A label is flagged if what two groups explain lies above the median of all labels by more than
    `threshold` robust standard deviations. The group with fewer of the clean samples is isolated. The suspicion of a
    sample is the log-likelihood ratio of that group times what two groups explain; samples of labels that are too small
    rank last. It needs a model that was trained on the data, and at least three labels.

    Attributes:
        threshold: Anomaly above which a label is flagged, > 0; e^2 = 7.389 as in the paper (a common reimplementation
            uses e).
        n_components: Principal components to keep, >= 1; at most one per five clean samples. The paper keeps all
            features, but 1,000 clean samples cannot determine their covariance.
        layer: Name of the layer whose features are used; empty for the last one before the classifier.

    Differs from the published code: the mean of one group is the posterior mean of the paper's EM step; only labels
    above the median can be flagged; what two groups explain is measured against what chance explains in as many
    samples, so that small labels are not flagged for being small.

    Reference: Tang et al., "Demon in the Variant: Statistical Analysis of DNNs for Robust Backdoor Contamination
    Detection", USENIX Security 2021, arXiv 1908.00686.
    """

    needs: ClassVar[tuple[str, ...]] = ("model", "clean")
    takes: ClassVar[tuple[str, ...]] = ("history",)
    unused: ClassVar[tuple[str, ...]] = ()

    threshold: float = math.exp(2)
    n_components: int = 64
    layer: str = ""

    def detect(
        self, samples: Samples, given: Given | None, recipe: Recipe, *, journal: Journal | None = None
    ) -> Detection:
        """Score every sample by the features of `given.model`, against those of `given.clean`.

        Raises:
            ConfigError: If model or clean samples are missing, or a hyper-parameter is out of range.
            DataError: If the clean samples are too few, or of another kind than the data.
            ModelError: If the network has no such layer.
        """
        given = check_given(self, given)
        check_ranges(self, threshold="(0, inf)", n_components="[1, inf)")
        assert given.model is not None and given.clean is not None
        check_alike(given.clean, samples)
        looked = _Looked(self, Session(recipe, len(samples), images=samples.kind == "image"), given.model, given.clean)
        groups = label_rows(samples.labels)
        scores, suspected = np.zeros(len(samples)), np.zeros(len(samples), dtype=bool)
        gains = np.full(len(groups), np.nan)
        feed = looked.session.feed(samples)._replace(augmentations=())
        for place, (label, rows) in enumerate(groups.items()):  # one label at a time bounds the memory
            x = looked.reduced(feed, rows)
            clean = looked.clean[given.clean.labels == label]
            if len(x) + len(clean) < SMALLEST_LABEL:  # it has no shape to speak of
                continue
            seed = int(stream(recipe.seed, Stream.SCAN_GROUPS, label).integers(2**32))
            split = split_label(np.concatenate([x, clean]), looked.shared, seed=seed)
            ratios, suspected[rows] = _towards_poison(split, len(x))
            scores[rows], gains[place] = split.gain * ratios, split.gain
        apart = anomalies(gains)
        flagged = tuple(label for label, a in zip(groups, apart, strict=True) if a > self.threshold)
        is_judged = bool(np.isfinite(apart).any())
        facts = SCAnFacts(
            n_dimensions=looked.shared.n_dimensions,
            n_labels_flagged=len(flagged),
            largest_anomaly=float(np.nanmax(apart)) if is_judged else None,
        )
        isolated = suspected & np.isin(samples.labels, flagged)
        unexamined = tuple(label for label, gain in zip(groups, gains, strict=True) if np.isnan(gain))
        about = {"poisoned": bool(flagged) if is_judged else None, "target_labels": flagged, "unexamined": unexamined}
        scores = unexamined_last(scores, ~np.isin(samples.labels, unexamined))
        return Detection(Verdict.isolating(scores, isolated, samples, **about), facts, given.history)


class _Looked:
    """A model as SCAn sees it: a layer, and the variation of its clean features."""

    def __init__(self, method: SCAn, session: Session, model: nn.Module, clean: Samples) -> None:
        self.session, self.model = session, session.prepare(deepcopy(model))
        self.layer = method.layer or last_layer(self.model, torch.zeros(2, *clean.shape, device=session.device))
        feed = session.feed(clean)._replace(augmentations=())
        found = features(session, feed, self.model, [self.layer])[self.layer]
        self.shared: SharedVariation = fit_shared_variation(found, clean.labels, most_dimensions=method.n_components)
        self.clean: FloatArray = self.shared.reduced(found)  # (M, d)

    def reduced(self, feed: Feed, rows: IntArray) -> FloatArray:
        """Features of rows of a feed, `(len(rows), d)`."""
        found = features(self.session, feed, self.model, [self.layer], rows)[self.layer]
        return self.shared.reduced(found)


def _towards_poison(split: LabelSplit, n_inspected: int) -> tuple[FloatArray, BoolArray]:
    """Log-likelihood ratios of the suspected group, and who is in it, of the inspected samples that come first."""
    of_clean = np.bincount(split.in_second[n_inspected:], minlength=2)
    of_all = np.bincount(split.in_second, minlength=2)
    second = (of_clean[1], of_all[1]) < (of_clean[0], of_all[0])
    ratios = split.ratios if second else -split.ratios
    return ratios[:n_inspected], (split.in_second == second)[:n_inspected]


def check_alike(clean: Samples, samples: Samples) -> None:
    """Check that clean samples are of the kind of the data.

    Raises:
        DataError: If their shape or their classes differ.
    """
    if clean.shape != samples.shape:
        raise DataError(f"the clean samples have shape {clean.shape}, the data {samples.shape}: give the same kind")
    if list(clean.class_names) != list(samples.class_names):
        raise DataError(
            f"the clean samples have the classes {_listed(clean)}, the data {_listed(samples)}: give the same ones"
        )


def _listed(samples: Samples) -> str:
    names = [str(name) for name in samples.class_names]
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
