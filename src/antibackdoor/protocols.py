"""The architecture on one page: what a method takes and what it gives back.

A method is a frozen dataclass with one public method. Its fields are its hyper-parameters. A defense sees
`Samples`, which hold no ground truth; only `metrics` may see which samples were poisoned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import nn

from antibackdoor.data.samples import BoolArray, FloatArray, InputArray, IntArray, Samples, StrArray
from antibackdoor.training.history import LossHistory
from antibackdoor.training.loop import Journal
from antibackdoor.training.recipe import Recipe

Build = Callable[[], nn.Module]


@dataclass(frozen=True, eq=False)
class Trained:
    """What a training-time defense returns.

    Attributes:
        model: The delivered classifier, on the CPU, in eval mode; it takes images in [0, 1] or raw series.
        history: Loss of every sample over time.
        suspicion: `(N,)` float64, higher is more suspicious; a probability if there are margins.
        isolated: `(N,)` bool, the samples kept from the delivered model under their given label.
        recovered: `(N,)` bool, those of the isolated samples that came back under another label.
        labels: `(N,)` int64, the label suggested for each sample; the given one where nothing else is known.
        backdoor_labels: The labels that the evidence names as backdoor targets; empty if none.
        poisoned: Whether the evidence says that the data are poisoned; None if the defense does not judge.
        evidence: `(N,)` str, what speaks against each isolated sample; None if the defense does not tell.
        margins: `(N,)` float64, the log-odds of each given label that the suspicion rests on, or None.
        returned: `(N,)` bool, those of the isolated samples that came back under their given label, without their
            shortcut; None if the defense brings none back so.
        untaught: `(N,)` bool, those of the isolated samples that the model was not to be trained on under another
            label, so that it can be asked about them; None if the defense chose none.
        notes: Flat facts about the run for `metrics.json` and the report (plain numbers and strings).
    """

    model: nn.Module
    history: LossHistory
    suspicion: FloatArray
    isolated: BoolArray
    recovered: BoolArray
    labels: IntArray
    backdoor_labels: tuple[int, ...] = ()
    poisoned: bool | None = None
    evidence: StrArray | None = None
    margins: FloatArray | None = None
    returned: BoolArray | None = None
    untaught: BoolArray | None = None
    notes: dict[str, Any] | None = None


class TrainingDefense(Protocol):
    """Trains a clean model on data that may be poisoned."""

    def train(self, samples: Samples, build: Build, recipe: Recipe, *, journal: Journal = ...) -> Trained:
        """Train `build()` on `samples`; the journal keeps checkpoints, so that a killed run resumes."""
        ...


class Trigger(Protocol):
    """How a sample is changed; fixed once it is made, so that it can be saved and used on test data."""

    def apply(self, inputs: InputArray, ids: IntArray) -> InputArray:
        """Stamp raw inputs `(B, *shape)` (uint8 or float32); a new array of the same shape and type.

        `ids` `(B,)` are stable numbers of the samples, so that triggers that differ from sample to sample
        are reproducible whatever the batches are.
        """
        ...


class Plan(Protocol):
    """Which samples are poisoned, under which label, and what counts as success at test time."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def fit(self, n_classes: int) -> Plan:
        """The plan for data with K classes; raises `ConfigError` if a label lies outside `0..K-1`."""
        ...

    def draw(self, labels: IntArray, *, seed: int) -> tuple[IntArray, IntArray]:
        """Sorted rows to poison and sorted rows of covers (triggered, own label), disjoint."""
        ...

    def eligible(self, labels: IntArray) -> BoolArray:
        """Which test samples `(N,)` count for the attack success rate, by their true labels."""
        ...

    def goal(self, labels: IntArray) -> IntArray:
        """The label `(N,)` int64 that the attacker wants for a sample of each true label."""
        ...


class Attack(Protocol):
    """A trigger family with its hyper-parameters."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    kinds: ClassVar[tuple[str, ...]]  # "image", "series"
    evidence: ClassVar[str]  # A text and code agree, B they differ, C gaps filled, D reconstruction
    threat_model: ClassVar[str]  # P poisoning only, P+M and a surrogate model, T controls the training

    def trigger(self, samples: Samples, *, seed: int, plan: Plan | None = None) -> Trigger:
        """Make the trigger for data like these; `plan` tells attacks that optimize the labels they aim at."""
        ...

    def plan(self) -> Plan:
        """The poisoning plan of the paper, at its rate."""
        ...


class Purifier(Protocol):
    """Removes a backdoor from a given model with a few clean samples."""

    def purify(self, model: nn.Module, clean: Samples, recipe: Recipe) -> nn.Module:
        """A purified copy of the model."""
        ...


class Detector(Protocol):
    """Scores samples with the help of a model trained on them."""

    def score(self, model: nn.Module, samples: Samples, recipe: Recipe) -> FloatArray:
        """`(N,)` float64, higher is more suspicious."""
        ...
