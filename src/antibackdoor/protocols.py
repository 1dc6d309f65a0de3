"""The architecture on one page: what a method is given, and what it returns.

A method is a frozen dataclass with one public method. Its fields are its hyper-parameters. `Samples` hold no ground
truth, so no method can see which samples are poisoned; only `statistics.metrics` may.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from antibackdoor.data.samples import BoolArray, FloatArray, InputArray, IntArray, Samples
from antibackdoor.errors import ConfigError
from antibackdoor.training.history import LossHistory
from antibackdoor.training.journal import Journal
from antibackdoor.training.recipe import Recipe

Build = Callable[[], nn.Module]
CodeArray = NDArray[np.uint8]

# What becomes of a sample. The codes of `Verdict.status` are positions in this tuple.
STATUSES = ("kept", "isolated", "relabeled", "cleaned")
KEPT, ISOLATED, RELABELED, CLEANED = range(len(STATUSES))

# What decided. The codes of `Verdict.criterion` are positions in this tuple.
CRITERIA = ("none", "shortcut", "content", "nearby", "score", "decision")
NO_CRITERION, SHORTCUT, CONTENT, NEARBY, SCORE, DECISION = range(len(CRITERIA))


@dataclass(frozen=True, eq=False)
class Verdict:
    """What a method says about each of N samples, and about the data.

    One rule holds for every method: within a label, no isolated sample is less suspicious than a kept one (`ordered`).

    Attributes:
        suspicion: `(N,)` float64, higher is more suspicious. A probability where the method says so.
        status: `(N,)` uint8, a position in `STATUSES`. `kept`: trained on as it is. `isolated`: kept from the model.
            `relabeled`: isolated, and used under `suggested_label`. `cleaned`: isolated, and used under its given
            label without what looks like its trigger.
        suggested_label: `(N,)` int64, the label that the method would give; the given one where it has no other.
        criterion: `(N,)` uint8, a position in `CRITERIA`: which criterion isolated the sample; 0 for none.
        poisoned: Whether the data are poisoned; None where the method does not judge.
        target_labels: Labels that a trigger seems to lead to; empty if none is known.
        p_value: Of the strongest finding, in (0, 1]; None where the method has no calibrated one.
        margin: `(N,)` float64, log-odds of the given label that the suspicion rests on; None where there are none.
        unexamined: Labels that the method could not examine, because they have too few samples. Silence about them
            means nothing.
    """

    suspicion: FloatArray
    status: CodeArray
    suggested_label: IntArray
    criterion: CodeArray
    poisoned: bool | None = None
    target_labels: tuple[int, ...] = ()
    p_value: float | None = None
    margin: FloatArray | None = None
    unexamined: tuple[int, ...] = ()

    def __repr__(self) -> str:
        judged = {None: "not judged", True: "poisoned", False: "nothing found"}[self.poisoned]
        return f"Verdict({len(self.status)} samples, {int(self.isolated.sum())} isolated, {judged})"

    @property
    def isolated(self) -> BoolArray:
        """`(N,)` bool: everything that is not kept."""
        return np.asarray(self.status != KEPT)

    def ordered(self, labels: IntArray) -> Verdict:
        """The same verdict, with a suspicion that agrees with the status.

        A method may isolate by other evidence than its score: a person's decision, the like of what was found. Where
        that leaves an isolated sample below a kept one of its given label `(N,)`, the label's values are dealt out
        again: the isolated samples get the highest, and both groups keep their own order. Else nothing changes.
        """
        suspicion = self.suspicion.copy()
        keys = np.nan_to_num(suspicion, nan=-np.inf, posinf=np.inf, neginf=-np.inf)
        by_label = np.argsort(labels, kind="stable")
        for rows in np.split(by_label, np.flatnonzero(np.diff(labels[by_label])) + 1):
            isolated = self.isolated[rows]
            if not isolated.any():
                continue
            if isolated.all() or keys[rows[isolated]].min() >= keys[rows[~isolated]].max():
                continue
            values = rows[np.argsort(keys[rows], kind="stable")]
            suspicion[rows[np.lexsort((keys[rows], isolated))]] = self.suspicion[values]
        return replace(self, suspicion=suspicion)

    @classmethod
    def ranking(cls, suspicion: FloatArray, samples: Samples) -> Verdict:
        """A verdict that ranks all samples and isolates none."""
        nobody = np.zeros(len(samples), dtype=np.uint8)
        return cls(np.asarray(suspicion, dtype=np.float64), nobody, samples.labels, nobody)

    @classmethod
    def isolating(cls, suspicion: FloatArray, isolated: BoolArray, samples: Samples, **about: Any) -> Verdict:
        """A verdict of a method with a rule: `isolated` `(N,)` bool, decided by the score."""
        codes = np.where(isolated, ISOLATED, KEPT).astype(np.uint8)
        decided = np.where(isolated, SCORE, NO_CRITERION).astype(np.uint8)
        verdict = cls(np.asarray(suspicion, dtype=np.float64), codes, samples.labels, decided, **about)
        return verdict.ordered(samples.labels)


@dataclass(frozen=True)
class NoFacts:
    """The facts of a method that has none to tell."""


@dataclass(frozen=True, eq=False)
class Detection:
    """What a detector returns.

    Attributes:
        verdict: About each sample and the data.
        facts: A frozen dataclass of plain values, for `metrics.json`.
        history: Loss of each sample over time, where the detector recorded one.
    """

    verdict: Verdict
    facts: Any = NoFacts()
    history: LossHistory | None = None

    def __repr__(self) -> str:
        return f"Detection({self.verdict!r})"


@dataclass(frozen=True, eq=False)
class Trained:
    """What a training defense returns.

    Attributes:
        model: The classifier, on the CPU, in eval mode. It takes images in [0, 1], or raw series.
        history: Loss of each sample over time.
        verdict: About each sample and the data.
        facts: A frozen dataclass of plain values, for `metrics.json`.
        midway: The verdict in the middle of the training, where the method's paper measures it; None if it does not.
        probe: `(N,)` bool, isolated samples, drawn at random, that the model was never trained on under any label.
            What it says of them tells how much of the backdoor is left. None where there are none.
    """

    model: nn.Module
    history: LossHistory
    verdict: Verdict
    facts: Any = NoFacts()
    midway: Verdict | None = None
    probe: BoolArray | None = None

    def __repr__(self) -> str:
        return f"Trained({type(self.model).__name__}, {self.verdict!r})"


@dataclass(frozen=True, eq=False)
class Purified:
    """What a purifier returns.

    Attributes:
        model: The purified classifier, on the CPU, in eval mode; the given one is unchanged.
        facts: A frozen dataclass of plain values, for `metrics.json`.
        teacher: A network that the method trained to teach the purified one, on the CPU; None where there is none.
    """

    model: nn.Module
    facts: Any = NoFacts()
    teacher: nn.Module | None = None

    def __repr__(self) -> str:
        return f"Purified({type(self.model).__name__}, {self.facts!r})"


@dataclass(frozen=True, eq=False)
class Given:
    """What a method may be given beside the data. What is not there is None.

    Attributes:
        build: Makes the untrained network.
        model: A trained model, possibly backdoored, on the CPU.
        history: Loss of each sample over the training of that model.
        clean: Samples that are known to be clean.
        suspicious: The data that the model was trained on.
        isolated: `(N,)` bool, samples of `suspicious` (or of the data) that are known to be poisoned.
        verdict: What another method said about the same data.
        decisions: A person's verdict on the same data; it wins.
        teacher: Another trained model, for distillation.
        trigger: A known or recovered trigger.
        input_shape: Shape of one sample, `(C, H, W)` or `(C, T)`, for methods that get no data.
    """

    build: Build | None = None
    model: nn.Module | None = None
    history: LossHistory | None = None
    clean: Samples | None = None
    suspicious: Samples | None = None
    isolated: BoolArray | None = None
    verdict: Verdict | None = None
    decisions: Verdict | None = None
    teacher: nn.Module | None = None
    trigger: Trigger | None = None
    input_shape: tuple[int, ...] | None = None

    def __repr__(self) -> str:
        return f"Given({', '.join(field.name for field in fields(self) if getattr(self, field.name) is not None)})"


# What the application knows without asking. It comes with everything, and no method is refused for it.
ALWAYS_THERE = ("build", "input_shape")

# How the command line names what a person can give.
FLAGS = {
    "model": "--checkpoint",
    "history": "--checkpoint",
    "clean": "--clean",
    "suspicious": "--suspicious",
    "isolated": "--verdict",
    "verdict": "--verdict",
    "decisions": "--decisions",
    "teacher": "--teacher",
    "trigger": "--trigger",
}


def check_given(method: Any, given: Given | None) -> Given:
    """What a method was given, once it is known to be all that it needs and nothing that it would ignore.

    `method.needs` names the fields of `Given` that it cannot do without, `method.takes` those that it can use.

    Raises:
        ConfigError: If something is missing or useless; the message names the flag.
    """
    given = given or Given()
    name = type(method).__name__
    there = {field.name for field in fields(given) if getattr(given, field.name) is not None} - {*ALWAYS_THERE}
    for missing in [part for part in method.needs if part not in {*there, *ALWAYS_THERE}]:
        raise ConfigError(f"{name} needs {missing}: give {FLAGS[missing]} (from Python, Given({missing}=...))")
    for useless in sorted(there - {*method.needs, *method.takes}):
        raise ConfigError(f"{name} cannot use {useless}: leave {FLAGS[useless]} out, or choose another method")
    return given


class TrainingDefense(Protocol):
    """Trains a clean model on data that may be poisoned."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    needs: ClassVar[tuple[str, ...]]  # fields of `Given` that must be there
    takes: ClassVar[tuple[str, ...]]  # fields of `Given` that may be there
    unused: ClassVar[tuple[str, ...]]  # fields of `Recipe` that change nothing

    def train(
        self,
        samples: Samples,
        build: Build,
        recipe: Recipe,
        *,
        given: Given | None = ...,
        journal: Journal | None = ...,
    ) -> Trained:
        """Train `build()` on `samples`; the journal keeps checkpoints, so that a killed run resumes."""
        ...


class Detector(Protocol):
    """Says which samples are suspicious."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    needs: ClassVar[tuple[str, ...]]
    takes: ClassVar[tuple[str, ...]]
    unused: ClassVar[tuple[str, ...]]

    def detect(self, samples: Samples, given: Given, recipe: Recipe, *, journal: Journal | None = ...) -> Detection:
        """Judge every sample; a ranking method isolates none unless its paper has a rule."""
        ...


class Purifier(Protocol):
    """Removes a backdoor from a given model."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    needs: ClassVar[tuple[str, ...]]
    takes: ClassVar[tuple[str, ...]]
    unused: ClassVar[tuple[str, ...]]

    def purify(self, model: nn.Module, given: Given, recipe: Recipe, *, journal: Journal | None = ...) -> Purified:
        """A purified copy of the model; the given one is left as it is."""
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
