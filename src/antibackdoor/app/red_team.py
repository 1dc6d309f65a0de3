"""Poison a data set on disk, so that a defense can be measured: the data in the same format, and the truth apart."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from antibackdoor.attacks import Poisoned, poison, save_trigger, write_truth
from antibackdoor.attacks.plans import shortfall
from antibackdoor.data.output import complete_or_absent
from antibackdoor.data.reading import FORMATS, DataSet
from antibackdoor.data.samples import StrArray
from antibackdoor.data.streams import Stream, stream
from antibackdoor.errors import ConfigError, DataError, RunError, cannot
from antibackdoor.protocols import Attack, Plan
from antibackdoor.report import Changes, write_card

CARD_SAMPLES = 200  # poisoned samples that the card measures how visible they are on


@dataclass(frozen=True)
class Aim:
    """What the attacker wants; None leaves it to the attack's paper.

    Attributes:
        rate: Share of the training samples that are poisoned, in [0, 1].
        target_label: Name or number of the class that the trigger shall lead to.
        source_label: Name or number of the class that is attacked, for attacks on one class.
        cover_rate: Share of samples that carry the trigger under their own label, in [0, 1].
    """

    rate: float | None = None
    target_label: str | None = None
    source_label: str | None = None
    cover_rate: float | None = None


def poison_data_set(data: DataSet, attack: Attack, aim: Aim, out: Path, *, seed: int) -> dict[str, Any]:
    """Write a poisoned copy of a data set.

    Args:
        data: The clean data; only its training part is poisoned.
        attack: Trigger and plan.
        aim: Rate and labels in place of the plan's own.
        out: A new folder: the data in the format it was read from, `truth.parquet`, `trigger.safetensors` and
            `trigger.json`, `card.html`.
        seed: Chooses rows and trigger.

    Returns:
        Counts for the user: plain values.

    Raises:
        ConfigError: If the aim does not fit data or attack, or the folder exists.
        DataError: If the format cannot hold the data, or the folder cannot be written. There is nothing at `out` then,
            nor if the process is killed.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists already; give --out a new folder")
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed is {seed}; give a number from 0 to below 2^32")
    for name, value in _settings(attack).items():
        if isinstance(value, float) and not np.isfinite(value):
            raise ConfigError(f"{name} is {value}; give a number")
    names = data.train.class_names
    plan = _aimed(attack.plan(), aim, names)
    poisoned = poison(data.train, attack, plan=plan, seed=seed)
    counts = _counts(poisoned, names)
    facts = {**counts, **_settings(attack)}
    if shortfall(poisoned.plan, data.train.labels, counts["n_poisoned"]):
        facts["poisoning_rate_asked_for"] = f"{getattr(poisoned.plan, 'rate', 0.0):.1%}, more than the classes hold"
    try:
        if out.exists():
            out.rmdir()
        with complete_or_absent(out) as folder:
            place = _write_data(data, poisoned, folder)
            save_trigger(folder, poisoned.trigger, poisoned.plan, attack=attack)
            write_card(folder, type(attack).__name__, facts, _changes(data, poisoned, seed))
    except (OSError, RunError) as error:  # which tell of files in the temporary folder
        raise DataError(cannot("write", out, error.__cause__ or error)) from error
    return {"data": place, **counts}


def _write_data(data: DataSet, poisoned: Poisoned, folder: Path) -> str:
    """Write data and truth; returns where in the folder the data are."""
    format_ = FORMATS[data.format]
    if format_.SUFFIXES:
        folder.mkdir()
    target = folder / f"poisoned{format_.SUFFIXES[0]}" if format_.SUFFIXES else folder
    written = format_.write(target, poisoned.samples, data.test)
    write_truth(folder / "truth.parquet", written.train_ids, poisoned.truth)
    return written.path.name if format_.SUFFIXES else "."


def _settings(attack: Attack) -> dict[str, Any]:
    """Fields of an attack that fit on a card."""
    values = {field.name: getattr(attack, field.name) for field in fields(attack)}
    return {name: value for name, value in values.items() if isinstance(value, str | int | float | bool)}


def _changes(data: DataSet, poisoned: Poisoned, seed: int) -> Changes:
    """Some poisoned samples, drawn evenly, before and after."""
    rows = np.flatnonzero(poisoned.truth.is_poisoned)
    rows = stream(seed, Stream.CARD).permutation(rows)[:CARD_SAMPLES]
    return Changes(
        clean=np.asarray(data.train.inputs[rows]),
        poisoned=np.asarray(poisoned.samples.inputs[rows]),
        ids=data.train.ids[rows],
        true_labels=data.train.labels[rows],
        labels=poisoned.samples.labels[rows],
        class_names=data.train.class_names,
    )


def _aimed(plan: Plan, aim: Aim, names: StrArray) -> Plan:
    wanted: dict[str, Any] = {
        "rate": aim.rate,
        "target_label": label_number(aim.target_label, names),
        "source_label": label_number(aim.source_label, names),
        "cover_rate": aim.cover_rate,
    }
    changes = {name: value for name, value in wanted.items() if value is not None}
    for name in changes:
        if name not in {known.name for known in fields(plan)}:
            raise ConfigError(f"this attack has no --{name.replace('_', '-')}; leave it out or choose another attack")
    return replace(plan, **changes)


def label_number(label: str | None, names: StrArray) -> int | None:
    """The number of a class given by its name, or by its number where no class has that name.

    Raises:
        ConfigError: If there is no such class.
    """
    if label is None:
        return None
    found = np.flatnonzero(names == label)
    if len(found):
        return int(found[0])
    if label.isdecimal() and int(label) < len(names):
        return int(label)
    raise ConfigError(f"there is no class '{label}': give one of {', '.join(names[:10].tolist())}")


def _counts(poisoned: Poisoned, names: StrArray) -> dict[str, Any]:
    truth, n = poisoned.truth, len(poisoned.samples)
    target = getattr(poisoned.plan, "target_label", None)
    return {
        "n_samples": n,
        "n_poisoned": int(truth.is_poisoned.sum()),
        "n_covers": int(truth.is_cover.sum()),
        "poisoning_rate": round(float(truth.is_poisoned.mean()), 6),
        "target_label": str(names[target]) if isinstance(target, int) else None,
    }
