"""Which samples an attacker poisons, under which label, and which test samples count.

A plan knows nothing of triggers, so that every plan goes with every trigger. All rates are fractions of the
whole data set and all counts are exact: `round(rate * N)`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from antibackdoor.attacks.stamps import require_fraction
from antibackdoor.data.samples import BoolArray, IntArray
from antibackdoor.errors import ConfigError


def _require_label(name: str, label: int, n_classes: int) -> None:
    if not 0 <= label < n_classes:
        raise ConfigError(f"{name} {label} does not exist: the data have classes 0..{n_classes - 1}")


def _count(name: str, rate: float, total: int) -> int:
    require_fraction(name, rate)
    return round(rate * total)


def _choose(rng: np.random.Generator, pool: NDArray[Any], count: int, what: str) -> IntArray:
    if count > len(pool):
        raise ConfigError(f"{what} asks for {count} samples, but only {len(pool)} are available; lower the rate")
    return np.sort(rng.permutation(pool)[:count]).astype(np.int64)


def shortfall(plan: Any, labels: IntArray, n_poisoned: int) -> str:
    """What to say where a plan poisons fewer samples than its rate asks for; "" where it keeps the rate.

    Args:
        plan: A fitted plan; those that work on one or two classes stop at their size.
        labels: `(N,)` labels before poisoning.
        n_poisoned: Rows that it drew.
    """
    if getattr(plan, "rate_of", "dataset") != "dataset":
        return ""
    asked = _count("poisoning rate", plan.rate, len(labels))
    if n_poisoned >= asked:
        return ""
    return (
        f"the poisoning rate {plan.rate:g} asks for {asked} of {len(labels)} samples, but this attack works on part of "
        f"the classes, which has only {n_poisoned}: all of them are poisoned, a rate of {n_poisoned / len(labels):g}"
    )


def _draw(
    pool: BoolArray, count: int, seed: int, cover_pool: BoolArray | None = None, n_covers: int = 0
) -> tuple[IntArray, IntArray]:
    rng = np.random.default_rng(seed)
    poisoned = _choose(rng, np.flatnonzero(pool), count, "the poisoning rate")
    free = np.zeros_like(pool) if cover_pool is None else cover_pool.copy()
    free[poisoned] = False
    return poisoned, _choose(rng, np.flatnonzero(free), n_covers, "the cover rate")


@dataclass(frozen=True)
class AllToOne:
    """Dirty label: samples of any other class get the trigger and the target label.

    Attributes:
        rate: Poisoned share of the data set, in [0, 1]. NAD, ABL and E2ABL use 0.1, AdvrBD 0.05.
        target_label: The attacker's label. NAD and ABL use 0, AdvrBD 1.
        cover_rate: Share of the data set that carries the trigger under its own label (Adaptive-Blend,
            Adaptive-Patch, noise mode of WaNet). Covers never come from the target class, where they would
            be poison.
        include_target: Draw from all samples, as the ABL, NAD and BackdoorBench code does; samples of the
            target class then count as poisoned though their label stays.

    Raises:
        ConfigError: If more samples are asked for than there are, or the target label does not exist.
    """

    rate: float = 0.1
    target_label: int = 0
    cover_rate: float = 0.0
    include_target: bool = False

    def fit(self, n_classes: int) -> AllToOne:
        """Check the labels against K classes."""
        _require_label("target label", self.target_label, n_classes)
        return self

    def draw(self, labels: IntArray, *, seed: int) -> tuple[IntArray, IntArray]:
        """Rows to poison and rows of covers."""
        count = _count("poisoning rate", self.rate, len(labels))
        n_covers = _count("cover rate", self.cover_rate, len(labels))
        others = labels != self.target_label
        pool = np.ones(len(labels), dtype=bool) if self.include_target else others
        return _draw(pool, count, seed, others, n_covers)

    def eligible(self, labels: IntArray) -> BoolArray:
        """Test samples of every class but the target's."""
        mask: BoolArray = labels != self.target_label
        return mask

    def goal(self, labels: IntArray) -> IntArray:
        """The target label for all."""
        return np.full(len(labels), self.target_label, dtype=np.int64)


@dataclass(frozen=True)
class AllToAll:
    """Dirty label: every class moves to the next, `y -> (y + 1) mod K`.

    Reference: Gu et al., BadNets, 2017, section 4.3.

    Attributes:
        rate: Poisoned share of the data set, in [0, 1]; 0.1 in the appendix of NAD.
        n_classes: K; `fit` fills it in from the data.
    """

    rate: float = 0.1
    n_classes: int | None = None

    def fit(self, n_classes: int) -> AllToAll:
        """The plan for K classes."""
        if self.n_classes not in (None, n_classes):
            raise ConfigError(f"the plan is for {self.n_classes} classes, but the data have {n_classes}")
        return replace(self, n_classes=n_classes)

    def draw(self, labels: IntArray, *, seed: int) -> tuple[IntArray, IntArray]:
        """Rows to poison; there are no covers."""
        everything = np.ones(len(labels), dtype=bool)
        return _draw(everything, _count("poisoning rate", self.rate, len(labels)), seed)

    def eligible(self, labels: IntArray) -> BoolArray:
        """All test samples."""
        return np.ones(len(labels), dtype=bool)

    def goal(self, labels: IntArray) -> IntArray:
        """The next class."""
        if self.n_classes is None:
            raise ConfigError("AllToAll does not know the number of classes; call fit(n_classes) first")
        return (labels + 1) % self.n_classes


@dataclass(frozen=True)
class CleanLabel:
    """Clean label: samples of the target class get the trigger and keep their label.

    Attributes:
        rate: Share in [0, 1] of `rate_of`; NAD uses 0.08, ABL and E2ABL 0.1.
        target_label: The class that is poisoned.
        rate_of: "dataset" counts against all samples and stops at the size of the class, as AdvrBD and
            BackdoorBench mean it; "target_class" counts against the class, which is what the ABL and NAD
            code amounts to.
    """

    rate: float = 0.1
    target_label: int = 0
    rate_of: Literal["dataset", "target_class"] = "dataset"

    def fit(self, n_classes: int) -> CleanLabel:
        """Check the labels against K classes."""
        _require_label("target label", self.target_label, n_classes)
        if self.rate_of not in ("dataset", "target_class"):
            raise ConfigError(f"rate_of is {self.rate_of!r}; choose 'dataset' or 'target_class'")
        return self

    def draw(self, labels: IntArray, *, seed: int) -> tuple[IntArray, IntArray]:
        """Rows to poison; there are no covers."""
        pool = labels == self.target_label
        in_class = int(pool.sum())
        total = len(labels) if self.rate_of == "dataset" else in_class
        return _draw(pool, min(_count("poisoning rate", self.rate, total), in_class), seed)

    def eligible(self, labels: IntArray) -> BoolArray:
        """Test samples of every class but the target's."""
        mask: BoolArray = labels != self.target_label
        return mask

    def goal(self, labels: IntArray) -> IntArray:
        """The target label for all."""
        return np.full(len(labels), self.target_label, dtype=np.int64)


@dataclass(frozen=True)
class SourceSpecific:
    """Dirty label for one source class; covers of other classes carry the trigger under their own label.

    Reference: Tang et al., Demon in the Variant, USENIX Security 2021.

    Attributes:
        rate: Poisoned share of the data set, in [0, 1], which stops at the size of the source class (5 % of
            CIFAR-100 is five times one class). AdvrBD uses 0.05.
        target_label: The attacker's label; AdvrBD uses 1.
        source_label: The class that the trigger works on; None takes the first that is not the target.
        cover_rate: Share of the data set that serves as covers; AdvrBD uses 0.01.
        cover_labels: Classes of the covers; empty means all but source and target.
    """

    rate: float = 0.05
    target_label: int = 0
    source_label: int | None = None
    cover_rate: float = 0.01
    cover_labels: tuple[int, ...] = ()

    @property
    def _source(self) -> int:
        if self.source_label is not None:
            return self.source_label
        return 1 if self.target_label == 0 else 0

    def fit(self, n_classes: int) -> SourceSpecific:
        """Check the labels against K classes."""
        _require_label("target label", self.target_label, n_classes)
        _require_label("source label", self._source, n_classes)
        for label in self.cover_labels:
            _require_label("cover label", label, n_classes)
        if self._source == self.target_label:
            raise ConfigError(f"source and target label are both {self._source}; choose two classes")
        if {self._source, self.target_label} & set(self.cover_labels):
            raise ConfigError(f"cover labels {self.cover_labels} contain the source or the target label")
        return self

    def draw(self, labels: IntArray, *, seed: int) -> tuple[IntArray, IntArray]:
        """Rows to poison and rows of covers."""
        pool = labels == self._source
        if self.cover_labels:
            covers = np.isin(labels, self.cover_labels)
        else:
            covers = ~pool & (labels != self.target_label)
        count = min(_count("poisoning rate", self.rate, len(labels)), int(pool.sum()))
        return _draw(pool, count, seed, covers, _count("cover rate", self.cover_rate, len(labels)))

    def eligible(self, labels: IntArray) -> BoolArray:
        """Test samples of the source class."""
        mask: BoolArray = labels == self._source
        return mask

    def goal(self, labels: IntArray) -> IntArray:
        """The target label for all."""
        return np.full(len(labels), self.target_label, dtype=np.int64)


@dataclass(frozen=True)
class MultiTarget:
    """Dirty label with several targets: class y goes to `target_labels[y mod m]`.

    The target depends on the class, for a single trigger can lead to several labels only if the rest of the
    image tells which. Samples that are already where they should go are neither poisoned nor counted.

    Attributes:
        rate: Poisoned share of the data set, in [0, 1].
        target_labels: m >= 1 different labels.
    """

    rate: float = 0.1
    target_labels: tuple[int, ...] = (0, 1)

    def fit(self, n_classes: int) -> MultiTarget:
        """Check the labels against K classes."""
        if not self.target_labels or len(set(self.target_labels)) < len(self.target_labels):
            raise ConfigError(f"target labels {self.target_labels} must be one or more different labels")
        for label in self.target_labels:
            _require_label("target label", label, n_classes)
        return self

    def draw(self, labels: IntArray, *, seed: int) -> tuple[IntArray, IntArray]:
        """Rows to poison; there are no covers."""
        return _draw(self.eligible(labels), _count("poisoning rate", self.rate, len(labels)), seed)

    def eligible(self, labels: IntArray) -> BoolArray:
        """Test samples whose goal is not their own label."""
        mask: BoolArray = labels != self.goal(labels)
        return mask

    def goal(self, labels: IntArray) -> IntArray:
        """The target label of each class."""
        return np.asarray(self.target_labels, dtype=np.int64)[labels % len(self.target_labels)]


@dataclass(frozen=True)
class Composite:
    """Dirty label for composites of two classes; mixes within one class are covers (CBA).

    Reference: Lin et al., Composite Backdoor Attack, CCS 2020.

    Attributes:
        rate: Poisoned share of the data set, in [0, 1], drawn from both classes; it stops at their size.
            ABL and E2ABL use 0.1.
        target_label: The label C of a composite.
        source_labels: The classes A and B.
        cover_rate: Share of the data set, of any class, that is mixed within its class.
    """

    rate: float = 0.1
    target_label: int = 2
    source_labels: tuple[int, int] = (0, 1)
    cover_rate: float = 0.1

    def fit(self, n_classes: int) -> Composite:
        """Check the labels against K classes."""
        labels = (*self.source_labels, self.target_label)
        for name, label in zip(("source label", "source label", "target label"), labels, strict=True):
            _require_label(name, label, n_classes)
        if len(set(labels)) < 3:
            raise ConfigError(f"sources {self.source_labels} and target {self.target_label} must all differ")
        return self

    def draw(self, labels: IntArray, *, seed: int) -> tuple[IntArray, IntArray]:
        """Rows to poison and rows of covers."""
        pool = np.isin(labels, self.source_labels)
        count = min(_count("poisoning rate", self.rate, len(labels)), int(pool.sum()))
        covers = np.ones(len(labels), dtype=np.bool_)
        return _draw(pool, count, seed, covers, _count("cover rate", self.cover_rate, len(labels)))

    def eligible(self, labels: IntArray) -> BoolArray:
        """Test samples of class A, which the trigger composes with images of class B."""
        mask: BoolArray = labels == self.source_labels[0]
        return mask

    def goal(self, labels: IntArray) -> IntArray:
        """The target label for all."""
        return np.full(len(labels), self.target_label, dtype=np.int64)


PLANS: dict[str, type[Any]] = {
    "all_to_one": AllToOne,
    "all_to_all": AllToAll,
    "clean_label": CleanLabel,
    "source_specific": SourceSpecific,
    "multi_target": MultiTarget,
    "composite": Composite,
}
