"""The report of a purified model: what was done to which model, in words, numbers and classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antibackdoor.report.words import KeyNumber, Verdict, count, duration, percent, printable, quoted, remarks
from antibackdoor.runs.artifacts import CLASSES, read_classes

Facts = Mapping[str, Any]

MOST_CLASSES = 30  # rows of a table of classes

# What the page tells elsewhere; the rest of the metrics are the method's own facts.
TOLD = (
    "clean_accuracy",
    "attack_success_rate",
    "robust_accuracy",
    *("method", "backbone", "purified_from", "seconds", "seed", "schema_version", "n_test", "n_triggered"),
    *("test_fingerprint", "trigger_fingerprint"),
)


@dataclass(frozen=True)
class ClassChange:
    """A number of one class, and perhaps what it was before.

    Attributes:
        name: Class name, or "12 other classes".
        value: Fraction in [0, 1].
        before: The same before the purification; None where there is no before.
        numbers: `93.1% → 92.0% of 1,000`.
    """

    name: str
    value: float
    before: float | None
    numbers: str


@dataclass(frozen=True)
class ClassTable:
    """One number for each class."""

    title: str
    caption: str
    rows: tuple[ClassChange, ...]


def is_purified(metrics: Facts | None) -> bool:
    """Whether these are the metrics of a purification."""
    return metrics is not None and "purified_from" in metrics


def purified_verdict(metrics: Facts) -> Verdict:
    """What was done to which model; whether it was backdoored is judged by a known trigger only."""
    source = str(metrics.get("purified_from"))
    came = "a weights file" if source == "given" else f"a run of {quoted(source)}"
    sentences = [f"The given model, from {came}, was purified with {quoted(metrics.get('method'))}."]
    before, after = _number(metrics, "clean_accuracy_before"), _number(metrics, "clean_accuracy")
    if after is None:
        sentences.append("The cost in accuracy is unknown: no test data were given.")
    elif before is None:
        sentences.append(f"It classifies {percent(after)} of {_how_many(metrics, 'n_test')} test samples correctly.")
    else:
        sentences.append(
            f"Of {_how_many(metrics, 'n_test')} test samples, it classified {percent(before)} correctly before and "
            f"{percent(after)} after."
        )
    return Verdict("open", _title(metrics), (*sentences, _about_poison(metrics), *remarks(metrics)))


def _title(metrics: Facts) -> str:
    before, after = _number(metrics, "attack_success_rate_before"), _number(metrics, "attack_success_rate")
    if before is not None and after is not None:
        return f"Attack success {percent(before)} before, {percent(after)} after."
    if after is not None:
        return f"Attack success {percent(after)} after the purification."
    return "A model was purified; whether it had a backdoor is unknown."


def _about_poison(metrics: Facts) -> str:
    before, after = _number(metrics, "attack_success_rate_before"), _number(metrics, "attack_success_rate")
    if after is None:
        return (
            "Whether it had a backdoor, and whether one is left, is unknown: no trigger was given. The method "
            "changes every model, with or without a backdoor."
        )
    right = _number(metrics, "robust_accuracy")
    obeyed = (
        f"{percent(after)} get the attacker's label"
        if before is None
        else f"{percent(before)} got the attacker's label before and {percent(after)} get it after"
    )
    regained = "" if right is None else f"; {percent(right)} get their true label"
    return f"Of {_how_many(metrics, 'n_triggered')} triggered test samples, {obeyed}{regained}."


def purified_numbers(metrics: Facts) -> list[KeyNumber]:
    """The numbers below the verdict, `before → after`."""
    tested, triggered = _how_many(metrics, "n_test"), _how_many(metrics, "n_triggered")
    numbers = []
    for key, name, note in (
        ("clean_accuracy", "Clean accuracy", f"of {tested} test samples"),
        ("attack_success_rate", "Attack success rate", f"of {triggered} triggered samples; lower is better"),
        ("robust_accuracy", "Robust accuracy", "triggered samples that get their true label"),
    ):
        before, after = _number(metrics, f"{key}_before"), _number(metrics, key)
        if after is None:
            continue
        low, high = _number(metrics, f"{key}_low"), _number(metrics, f"{key}_high")
        if low is not None and high is not None:
            note = f"{note}; 95% interval after: {percent(low)} to {percent(high)}"
        numbers.append(KeyNumber(name, _arrow(before, after), note))
    seconds = _number(metrics, "seconds")
    return numbers if seconds is None else [*numbers, KeyNumber("Time", duration(seconds))]


def purified_facts(metrics: Facts) -> list[tuple[str, str]]:
    """What the method itself tells, and how a given file was understood: `(name, value)`."""
    facts = []
    for key, value in metrics.items():
        if key in TOLD or any(key.startswith(f"{name}_") for name in TOLD[:3]):
            continue
        facts.append((printable(key, 80), shown(value)))
    return facts


def class_tables(run: Path) -> list[ClassTable]:
    """What `classes.csv` says of each class; empty if there is none.

    Raises:
        RunError: The file is damaged.
    """
    if not (run / CLASSES).exists():
        return []
    names, columns = read_classes(run)
    tables = []
    for key, title, caption in (
        ("clean_accuracy", "Clean accuracy by class", "Test samples of the class that are classified correctly."),
        (
            "attack_success_rate",
            "Attack success by true class",
            "Triggered samples of the class that get the attacker's label.",
        ),
    ):
        if key not in columns:
            continue
        before = columns.get(f"{key}_before")
        rows = _changes(names, columns[key], before, columns.get(f"{key}_n"))
        if before is not None:
            caption += " The thin bar is the given model, the thick one the purified model."
        tables.append(ClassTable(title, caption, tuple(rows)))
    return tables


def _changes(
    names: Sequence[str],
    values: Sequence[float | None],
    before: Sequence[float | None] | None,
    sizes: Sequence[float | None] | None,
) -> list[ClassChange]:
    """One row a class in the order of the data; of many classes those that changed most, and the rest together."""
    known = [k for k, value in enumerate(values) if value is not None and (before is None or before[k] is not None)]
    shown = known
    if len(known) > MOST_CLASSES:
        change = {k: abs(_at(values, k) - (1 if before is None else _at(before, k))) for k in known}
        shown = sorted(sorted(known, key=lambda k: -change[k])[: MOST_CLASSES - 1])
    rows = [
        _change(printable(names[k], 80), _at(values, k), None if before is None else _at(before, k), _size(sizes, k))
        for k in shown
    ]
    rest = [k for k in known if k not in set(shown)]
    if rest:
        total = sum(_size(sizes, k) for k in rest)
        after = _mean(values, sizes, rest)
        rows.append(
            _change(
                f"{count(len(rest))} other classes",
                after,
                None if before is None else _mean(before, sizes, rest),
                total,
            )
        )
    return rows


def _change(name: str, value: float, before: float | None, size: float) -> ClassChange:
    return ClassChange(name, value, before, f"{_arrow(before, value)} of {count(size)}")


def _mean(values: Sequence[float | None], sizes: Sequence[float | None] | None, rows: Sequence[int]) -> float:
    return sum(_at(values, k) * _size(sizes, k) for k in rows) / max(sum(_size(sizes, k) for k in rows), 1)


def _at(values: Sequence[float | None], place: int) -> float:
    return min(max(values[place] or 0.0, 0.0), 1.0)


def _size(sizes: Sequence[float | None] | None, place: int) -> float:
    return 0.0 if sizes is None else sizes[place] or 0.0


def _arrow(before: float | None, after: float) -> str:
    return percent(after) if before is None else f"{percent(before)} → {percent(after)}"


def _how_many(metrics: Facts, key: str) -> str:
    size = _number(metrics, key)
    return "the" if size is None else count(size)


def shown(value: object) -> str:
    """A fact's value as text."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return printable(", ".join(shown(part) for part in value), 300)
    return printable(value, 300)


def _number(metrics: Facts, key: str) -> float | None:
    value = metrics.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)
