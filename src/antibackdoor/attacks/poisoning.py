"""Poison a data set: a trigger and a plan meet here, block by block, and the truth is written down."""

from __future__ import annotations

import hashlib
import math
import warnings
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from antibackdoor.attacks.plans import shortfall
from antibackdoor.attacks.stamps import Staged
from antibackdoor.data.samples import BoolArray, InputArray, IntArray, Samples, StrArray
from antibackdoor.data.tables import numbers, open_table, read_columns, texts
from antibackdoor.errors import ConfigError, DataError, cannot, shortened

if TYPE_CHECKING:
    from antibackdoor.protocols import Attack, Plan, Trigger

# About 4 MB of float32 at a time: small enough for the cache and for data sets larger than memory.
_BLOCK_ELEMENTS = 2**20

ALSO_TRUE = "also_true_label"  # the column of truth.parquet that only composites have


@dataclass(frozen=True, eq=False)
class Truth:
    """What a defense may not know.

    Attributes:
        is_poisoned: `(N,)` bool, the payload: triggered, and (if the plan is dirty label) mislabelled.
        true_labels: `(N,)` int64, the labels before poisoning.
        is_cover: `(N,)` bool, triggered under their own label; never poisoned as well.
        also_true: `(N,)` int64, labels that are right as well: of a composite of two classes the other class, of any
            other sample its true label. None where no sample shows two classes, and where it was not written down.
    """

    is_poisoned: BoolArray
    true_labels: IntArray
    is_cover: BoolArray
    also_true: IntArray | None = None

    def take(self, rows: IntArray) -> Truth:
        """The truth of some rows, in their order."""
        also_true = None if self.also_true is None else self.also_true[rows]
        return Truth(self.is_poisoned[rows], self.true_labels[rows], self.is_cover[rows], also_true)


@dataclass(frozen=True, eq=False)
class Poisoned:
    """A poisoned copy of a data set with all that is needed to measure a defense on it.

    Attributes:
        samples: The poisoned samples; rows, ids and class names are those of the original.
        truth: Which rows were changed; for metrics only.
        trigger: The trigger, for test data.
        plan: The plan fitted to the data, with the labels the attacker aims at.
        attack: The attack that made the trigger.
    """

    samples: Samples
    truth: Truth
    trigger: Trigger
    plan: Plan
    attack: Attack


def sample_numbers(ids: StrArray) -> IntArray:
    """Stable numbers `(N,)` int64 >= 0 of samples, by their ids `(N,)` str.

    A hash, not the row: a trigger that differs from sample to sample must stay the same when the rows are
    filtered or reordered.
    """
    digests = b"".join(hashlib.blake2b(str(name).encode(), digest_size=8).digest() for name in ids)
    numbers: IntArray = (np.frombuffer(digests, dtype="<u8") >> np.uint64(1)).astype(np.int64)
    return numbers


def stamp(
    inputs: InputArray,
    trigger: Trigger,
    ids: IntArray,
    *,
    rows: IntArray | None = None,
    out: InputArray | None = None,
) -> InputArray:
    """Stamp rows of the inputs, a block at a time.

    Args:
        inputs: `(N, *shape)` uint8 or float32, may be a memmap; it is only read.
        trigger: The trigger to apply.
        ids: `(N,)` stable numbers of the samples.
        rows: Positions to stamp; None stamps all.
        out: `(N, *shape)` array that receives the stamped rows, may be a memmap; its other rows stay as they
            are. None gives a new array of the stamped rows only, in the order of `rows`.

    Returns:
        `out`, or the new array.
    """
    chosen = np.arange(len(inputs)) if rows is None else rows
    if out is not None:
        return _stamp_into(out, chosen, inputs, chosen, trigger, ids)
    fresh = np.empty((len(chosen), *inputs.shape[1:]), inputs.dtype)
    return _stamp_into(fresh, np.arange(len(chosen)), inputs, chosen, trigger, ids)


def poison(
    samples: Samples,
    attack: Attack,
    *,
    seed: int,
    plan: Plan | None = None,
    rate: float | None = None,
    target_label: int | None = None,
    trigger: Trigger | None = None,
    out: InputArray | None = None,
) -> Poisoned:
    """Poison a copy of the samples.

    Args:
        samples: The clean data; left as they are.
        attack: Makes the trigger, and the plan if none is given.
        seed: Decides the rows and the trigger; the same seed gives the same bytes.
        plan: Which rows, which labels, which covers; None takes the plan of the attack's paper.
        rate: Poisoning rate in [0, 1], in place of the plan's own.
        target_label: The attacker's label, in place of the plan's own.
        trigger: A trigger made earlier (`load_trigger`), in place of a new one.
        out: Array of the shape and type of `samples.inputs` that receives the poisoned inputs, such as a
            writable memmap for data larger than memory; None keeps them in memory.

    Raises:
        ConfigError: If a rate or label does not fit the data, or the attack does not fit their kind.

    Warns:
        UserWarning: If the classes that the attack works on hold fewer samples than the rate asks for.

    Example:
        >>> import numpy as np
        >>> from antibackdoor.attacks import BadNets
        >>> images = np.zeros((20, 3, 8, 8), dtype=np.uint8)
        >>> labels, ids = np.arange(20) % 4, np.arange(20).astype(str)
        >>> clean = Samples(images, labels, ids, np.array(["a", "b", "c", "d"]))
        >>> poisoned = poison(clean, BadNets(), seed=0, rate=0.1, target_label=3)
        >>> rows = poisoned.truth.is_poisoned
        >>> int(rows.sum()), poisoned.samples.labels[rows].tolist()
        (2, [3, 3])
    """
    fitted = _fitted(samples, attack, seed, plan, rate, target_label)
    poisoned_rows, cover_rows = fitted.draw(samples.labels, seed=seed)
    if less := shortfall(fitted, samples.labels, len(poisoned_rows)):
        warnings.warn(less, stacklevel=2)
    made = attack.trigger(samples, seed=seed, plan=fitted) if trigger is None else trigger
    planted, cover = (made.planted, made.cover) if isinstance(made, Staged) else (made, made)

    inputs = _copy(samples.inputs, out)
    numbers = sample_numbers(samples.ids)
    stamp(samples.inputs, planted, numbers, rows=poisoned_rows, out=inputs)
    stamp(samples.inputs, cover, numbers, rows=cover_rows, out=inputs)
    labels = samples.labels.copy()
    labels[poisoned_rows] = fitted.goal(labels[poisoned_rows])
    truth = Truth(
        _mask(len(labels), poisoned_rows),
        samples.labels.copy(),
        _mask(len(labels), cover_rows),
        _also_true(fitted, samples.labels, poisoned_rows),
    )
    return Poisoned(replace(samples, inputs=inputs, labels=labels), truth, made, fitted, attack)


def make_trigger(
    samples: Samples, attack: Attack, *, seed: int, rate: float | None = None, target_label: int | None = None
) -> tuple[Trigger, Plan]:
    """The trigger and the plan that `poison` takes with the same arguments, without poisoning a sample."""
    fitted = _fitted(samples, attack, seed, None, rate, target_label)
    return attack.trigger(samples, seed=seed, plan=fitted), fitted


def trigger_test_set(samples: Samples, trigger: Trigger, plan: Plan, *, out: InputArray | None = None) -> Samples:
    """The test samples that count for the attack success rate, with the trigger and their true labels.

    Args:
        samples: The clean test data.
        trigger: The trigger as shown at test time.
        plan: Tells which samples are eligible.
        out: `(number of eligible samples, *shape)` array for the inputs, such as a memmap.

    Raises:
        ConfigError: If `out` has another shape or type.

    Returns:
        The eligible rows in their order; compare predictions with `plan.goal(result.labels)`.
    """
    rows = np.flatnonzero(plan.eligible(samples.labels))
    stamped = np.empty((len(rows), *samples.shape), samples.inputs.dtype) if out is None else out
    if stamped.shape != (len(rows), *samples.shape) or stamped.dtype != samples.inputs.dtype:
        raise ConfigError(
            f"out is {stamped.dtype} {stamped.shape}, "
            f"but {samples.inputs.dtype} {(len(rows), *samples.shape)} are to be written"
        )
    numbers = sample_numbers(samples.ids)
    _stamp_into(stamped, np.arange(len(rows)), samples.inputs, rows, trigger, numbers)
    return replace(samples, inputs=stamped, labels=samples.labels[rows], ids=samples.ids[rows])


def write_truth(path: Path, ids: StrArray, truth: Truth) -> None:
    """Write the ground truth as parquet: `id, is_poisoned, true_label, is_cover`, one row a sample.

    Composites of two classes add the column `also_true_label`.
    """
    columns = {
        "id": pa.array([str(name) for name in ids], pa.string()),
        "is_poisoned": pa.array(truth.is_poisoned),
        "true_label": pa.array(truth.true_labels),
        "is_cover": pa.array(truth.is_cover),
    }
    if truth.also_true is not None:
        columns[ALSO_TRUE] = pa.array(truth.also_true)
    with path.open("wb") as file:  # pyarrow takes no path that is not UTF-8
        pq.write_table(pa.table(columns), file)


def read_truth(path: Path) -> tuple[StrArray, Truth]:
    """Read what `write_truth` wrote: the ids `(N,)` and the truth.

    Raises:
        DataError: If the file is missing, is no parquet or lacks a column.
    """
    try:
        file = open_table(path, ["id"])
        optional = [ALSO_TRUE] if ALSO_TRUE in file.schema_arrow.names else []
        table = read_columns(file, ["id", "is_poisoned", "true_label", "is_cover", *optional])
        ids = texts(table, "id").astype(np.str_)
        is_poisoned, is_cover = (numbers(table, name, np.bool_) for name in ("is_poisoned", "is_cover"))
        true_labels = numbers(table, "true_label", np.int64)
        also_true = numbers(table, ALSO_TRUE, np.int64) if optional else None
        is_negative = (true_labels < 0).any() or (also_true is not None and (also_true < 0).any())
        if len(set(ids.tolist())) < len(ids) or is_negative or (is_poisoned & is_cover).any():
            raise ValueError("an id appears twice, a label is negative, or a sample is both poisoned and a cover")
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}; give the truth.parquet that `poison` wrote") from error
    except OSError as error:
        raise DataError(cannot("read the truth", path, error)) from error
    except (ValueError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is not a table of ground truth: {shortened(reason)}") from error
    return ids, Truth(is_poisoned, true_labels, is_cover, also_true)


def _fitted(
    samples: Samples, attack: Attack, seed: int, plan: Plan | None, rate: float | None, target_label: int | None
) -> Plan:
    if seed < 0:
        raise ConfigError(f"seed is {seed}; it must not be negative")
    return _override(attack.plan() if plan is None else plan, rate, target_label).fit(samples.n_classes)


def _override(plan: Plan, rate: float | None, target_label: int | None) -> Plan:
    wanted: dict[str, Any] = {"rate": rate, "target_label": target_label}
    changes = {name: value for name, value in wanted.items() if value is not None}
    for name in changes:
        if name not in {field.name for field in fields(plan)}:
            raise ConfigError(f"the plan {type(plan).__name__} has no {name}; leave it out or choose another plan")
    return replace(plan, **changes)


def _also_true(plan: Plan, labels: IntArray, rows: IntArray) -> IntArray | None:
    """The other class of each composite among the rows; None where the plan composes no two classes."""
    pair = getattr(plan, "source_labels", ())
    if not pair:
        return None
    first, second = pair
    also_true = labels.copy()
    also_true[rows] = np.where(labels[rows] == first, second, first)
    return also_true


def _stamp_into(
    out: InputArray, places: IntArray, inputs: InputArray, rows: IntArray, trigger: Trigger, ids: IntArray
) -> InputArray:
    block = _block_length(inputs)
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        out[places[start : start + block]] = trigger.apply(np.asarray(inputs[part]), ids[part])
    return out


def _block_length(inputs: InputArray) -> int:
    return max(1, _BLOCK_ELEMENTS // max(1, math.prod(inputs.shape[1:])))


def _copy(inputs: InputArray, out: InputArray | None) -> InputArray:
    if out is None:
        return np.array(inputs)
    if out.shape != inputs.shape or out.dtype != inputs.dtype:
        raise ConfigError(f"out is {out.dtype} {out.shape}, but the inputs are {inputs.dtype} {inputs.shape}")
    block = _block_length(inputs)
    for start in range(0, len(inputs), block):
        out[start : start + block] = inputs[start : start + block]
    return out


def _mask(n: int, rows: IntArray) -> BoolArray:
    mask = np.zeros(n, dtype=np.bool_)
    mask[rows] = True
    return mask
