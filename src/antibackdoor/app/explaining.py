"""Why a sample is suspected, and which training samples probably taught a network what it does to an input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from antibackdoor.app.networks import Factory, load_model
from antibackdoor.app.read_as import as_trained
from antibackdoor.app.run_data import data_of
from antibackdoor.data.reading import read_inputs
from antibackdoor.data.samples import BoolArray, IntArray, Samples
from antibackdoor.errors import ConfigError, shortened
from antibackdoor.models.features import coarse_or_mean, features, last_layer, stages
from antibackdoor.protocols import STATUSES
from antibackdoor.review.suspects import Evidence, evidence_of
from antibackdoor.runs.model_file import SPEC, ModelSpec
from antibackdoor.runs.samples_table import SamplesTable, read_samples_table
from antibackdoor.statistics.culprits import likely, similarity
from antibackdoor.training.loop import predict
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.session import Session


@dataclass(frozen=True)
class Neighbor:
    """A training sample that is like another one.

    Attributes:
        id: Its name in the data.
        similarity: In [-1, 1]; see `antibackdoor.statistics.culprits`.
        given: The label that came with the data.
        status: What the run did with it.
    """

    id: str
    similarity: float
    given: str
    status: str


@dataclass(frozen=True)
class Explanation:
    """What is known of one training sample.

    Attributes:
        evidence: What the run says of it.
        kept: The nearest samples that the run kept.
        isolated: The nearest samples that it isolated.
        note: Why there are no neighbors; empty if there are.
    """

    evidence: Evidence
    kept: tuple[Neighbor, ...] = ()
    isolated: tuple[Neighbor, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Culprits:
    """Who probably taught a network what it says of an input.

    Attributes:
        id: The input's name.
        prediction: What the network says.
        confidence: Its probability, in [0, 1].
        ranked: Training samples with that label, the most similar first.
        n_likely: How many of these stand apart from the others by their similarity.
        n_candidates: How many training samples have that label.
    """

    id: str
    prediction: str
    confidence: float
    ranked: tuple[Neighbor, ...]
    n_likely: int
    n_candidates: int


@dataclass(frozen=True)
class Explainer:
    """Explains what a run did.

    Attributes:
        run: The run folder.
        data: Its data; None explains without neighbors.
        top: How many neighbors are told, at least 1.
        factory: Of the user's own network, if the run was trained with one.
        device: `auto`, `cpu`, `cuda` or `mps`.
        cache: Where decoded images are kept.
    """

    run: Path
    data: Path | None = None
    top: int = 10
    factory: Factory | None = None
    device: str = "auto"
    cache: Path | None = None

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ConfigError(f"top is {self.top}; give 1 or more")

    def sample(self, sample_id: str) -> Explanation:
        """The evidence on a training sample, and its nearest neighbors under its labels.

        Raises:
            ConfigError: If the run did not judge such a sample.
            RunError: If the folder holds no verdict.
            DataError: If the data are not those of the run.
        """
        table = read_samples_table(self.run)
        found = np.flatnonzero(table.ids == sample_id)
        if not len(found):
            like = [name for name in table.ids.tolist() if sample_id in name][:3]
            advice = f"did you mean {', '.join(like)}?" if like else "see --keep and --quarantine of `export`"
            raise ConfigError(f"{self.run} judged no sample {shortened(sample_id, 80)!r}: {shortened(advice, 200)}")
        row = int(found[0])
        evidence = evidence_of(table, row)
        if not (self.run / SPEC).exists():
            return Explanation(evidence, note="a scan has no model: train on the data to see neighbors")
        if self.data is None:
            return Explanation(evidence, note="give --data to see neighbors")
        network = _Network.of(self)
        whole = data_of(self.run, table, self.data, cache=self.cache)
        labels = {int(table.given_label[row]), int(table.verdict.suggested_label[row])}
        rows = np.flatnonzero(np.isin(table.given_label, [*labels]))
        known = network.features(whole.samples, whole.rows[rows])
        place = int(np.flatnonzero(rows == row)[0])
        alike = similarity(known, [part[place : place + 1] for part in known])[0]
        alike[place] = -np.inf
        isolated = table.isolated[rows]
        return Explanation(
            evidence,
            kept=_nearest(table, rows, alike, ~isolated & (rows != row), self.top),
            isolated=_nearest(table, rows, alike, isolated & (rows != row), self.top),
        )

    def inputs(self, path: Path) -> list[Culprits]:
        """For each input of a file: training samples under the label that the run's model gives it, by similarity.

        Raises:
            ConfigError: If no data are given.
            ModelError: If the run has no model, or it needs the user's own network.
            DataError: If the data are not those of the run, or the file cannot be read.
        """
        if self.data is None:
            raise ConfigError("to find what taught the model, give its training data with --data")
        network = _Network.of(self)
        inputs, ids = read_inputs(
            path, shape=network.spec.input_shape, cache=self.cache, **as_trained(network.spec, accept_unlike=True)
        )
        names = np.array(network.spec.class_names)
        asked = Samples(inputs, np.zeros(len(inputs), dtype=np.int64), ids, names)
        table = read_samples_table(self.run)
        whole = data_of(self.run, table, self.data, cache=self.cache)
        said = predict(network.session, network.model, asked)
        found: dict[int, Culprits] = {}
        for label in np.unique(said.labels).tolist():
            chosen = np.flatnonzero(said.labels == label)
            candidates = np.flatnonzero(table.given_label == label)
            alike = np.zeros((len(chosen), 0))
            if len(candidates):
                known = network.features(whole.samples, whole.rows[candidates])
                alike = similarity(known, network.features(asked, chosen))
            for row, similarities in zip(chosen.tolist(), alike, strict=True):
                found[row] = Culprits(
                    id=str(ids[row]),
                    prediction=str(names[label]),
                    confidence=float(said.confidence[row]),
                    ranked=_nearest(table, candidates, similarities, np.ones(len(candidates), dtype=bool), self.top),
                    n_likely=int(likely(similarities).sum()),
                    n_candidates=len(candidates),
                )
        return [found[row] for row in range(len(ids))]


@dataclass(frozen=True, eq=False)
class _Network:
    """The model of a run, ready to tell features."""

    model: nn.Module
    spec: ModelSpec
    session: Session
    layers: tuple[str, ...]

    @classmethod
    def of(cls, explainer: Explainer) -> _Network:
        model, spec = load_model(explainer.run, explainer.factory)
        return cls.made(model, spec, explainer.device)

    @classmethod
    def made(cls, model: nn.Module, spec: ModelSpec, device: str) -> _Network:
        recipe = Recipe(device=device, precision="fp32", progress=False)
        session = Session(recipe, 1, images=spec.kind == "image")
        model = session.prepare(model).eval()
        return cls(model, spec, session, layers_of(model, torch.zeros(2, *spec.input_shape, device=session.device)))

    def features(self, samples: Samples, rows: IntArray) -> list[NDArray[np.float32]]:
        """Features of some rows at each layer."""
        part = samples.take(rows)
        found = features(self.session, self.session.feed(part), self.model, self.layers, pool=coarse_or_mean)
        return [found[layer] for layer in self.layers]


def layers_of(model: nn.Module, example: torch.Tensor) -> tuple[str, ...]:
    """The layers whose features are compared: the ends of all stages, and the last."""
    return tuple(dict.fromkeys([*stages(model, example), last_layer(model, example)]))


def _nearest(
    table: SamplesTable, rows: IntArray, alike: NDArray[Any], among: BoolArray, top: int
) -> tuple[Neighbor, ...]:
    order: Sequence[int] = [place for place in np.argsort(-alike, kind="stable").tolist() if among[place]][:top]
    return tuple(
        Neighbor(
            id=str(table.ids[rows[place]]),
            similarity=float(alike[place]),
            given=str(table.class_names[table.given_label[rows[place]]]),
            status=STATUSES[table.verdict.status[rows[place]]],
        )
        for place in order
    )
