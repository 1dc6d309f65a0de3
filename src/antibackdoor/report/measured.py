"""What was measured of a run's model, each time with the data it was measured on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from antibackdoor.report.words import count, percent, printable
from antibackdoor.runs.measurements import Measurement, read_measurements

MOST_ROWS = 50
NOTHING = "–"
DATA = {"test": "test split", "held out": "held out", "train": "training split", "all": "all of the data"}


@dataclass(frozen=True)
class MeasuredRow:
    """One measurement in words.

    Attributes:
        data: Which data, with their fingerprint.
        samples: How many, and how many of them do not count.
        accuracy: Clean accuracy of those that count.
        balanced: Balanced accuracy of those that count.
        uncounted: Clean accuracy of all samples, where some do not count.
        attack: Attack success rate, with the trigger's fingerprint.
    """

    data: str
    samples: str
    accuracy: str
    balanced: str
    uncounted: str
    attack: str


def measured_rows(run: Path) -> list[MeasuredRow]:
    """All measurements of a run, the last ones if there are many.

    Raises:
        RunError: The file is damaged.
    """
    return [_row(measurement) for measurement in read_measurements(run)[-MOST_ROWS:]]


def _row(measurement: Measurement) -> MeasuredRow:
    known = measurement.numbers
    of = f" of {printable(measurement.trigger_fingerprint, 20)}" if measurement.trigger_fingerprint else ""
    attack = _percent(known.get("attack_success_rate"))
    return MeasuredRow(
        data=f"{DATA[measurement.split]} ({printable(measurement.test_fingerprint, 20)})",
        samples=_samples(measurement),
        accuracy=_percent(known.get("clean_accuracy")),
        balanced=_percent(known.get("balanced_accuracy")),
        uncounted=_percent(known.get("clean_accuracy_with_copies")),
        attack=attack if attack == NOTHING else f"{attack}{of}",
    )


def _samples(measurement: Measurement) -> str:
    n_test = int(measurement.numbers.get("n_test") or 0)
    parts = [count(n_test)]
    for key, why in (("n_test_copies", "trained on"), ("n_test_conflicting", "with two labels")):
        some = int(measurement.numbers.get(key) or 0)
        if some:
            parts.append(f"{count(some) if some < n_test else 'all'} {why}")
    return ", ".join(parts)


def _percent(value: float | int | None) -> str:
    return NOTHING if value is None else percent(value)
