"""`measurements.json`: every measurement of a run's model, each with the data and the trigger that it was made with.

`metrics.json` holds the last measurement on data that the model was not trained on. Here none replaces another, unless
it is of the same data and the same trigger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from antibackdoor.errors import RunError
from antibackdoor.runs.atomic import read_json, write_json

MEASUREMENTS = "measurements.json"
SPLITS = ("test", "held out", "train", "all")  # which part of its data was measured


@dataclass(frozen=True)
class Measurement:
    """What was measured on some data.

    Attributes:
        split: One of `SPLITS`.
        test_fingerprint: A short hash of the data.
        trigger_fingerprint: A short hash of the trigger; None if none was measured.
        numbers: Metrics, as in `metrics.json`.
        class_names: The K classes.
        by_class: Columns of K values, as in `classes.csv`.
    """

    split: str
    test_fingerprint: str
    trigger_fingerprint: str | None
    numbers: Mapping[str, float | int | None]
    class_names: Sequence[str] = ()
    by_class: Mapping[str, Sequence[float | int | None]] = field(default_factory=dict)

    @property
    def n_counted(self) -> int:
        """How many samples count for the accuracy: those that the model was trained on do not."""
        left_out = (self.numbers.get(key) or 0 for key in ("n_test_copies", "n_test_conflicting"))
        return int(self.numbers.get("n_test") or 0) - int(sum(left_out))


def read_measurements(run: Path) -> list[Measurement]:
    """All measurements of a run, in the order made; none where an older version wrote the run.

    Raises:
        RunError: The file is damaged.
    """
    path = run / MEASUREMENTS
    if not path.exists() and not path.is_symlink():
        return []
    found = read_json(path).get("measurements")
    if not isinstance(found, list):
        raise RunError(f"{path} is damaged: it is not a list of measurements")
    return [_checked(path, entry) for entry in found]


def keep_measurement(run: Path, new: Measurement) -> Measurement:
    """Add a measurement; one of the same data and trigger is replaced, and tells the split.

    Returns:
        The measurement as it was kept.

    Raises:
        RunError: The file is damaged, or the folder cannot be written.
    """
    kept = read_measurements(run)
    of_these_data = [old for old in kept if old.test_fingerprint == new.test_fingerprint]
    if new.split == "test" and of_these_data:  # who divides the data once more only sees a test split
        new = replace(new, split=of_these_data[0].split)
    kept = [old for old in kept if _about(old) != _about(new)]
    write_json(run / MEASUREMENTS, {"measurements": [asdict(entry) for entry in (*kept, new)]})
    return new


def _about(measurement: Measurement) -> tuple[str, str | None]:
    return measurement.test_fingerprint, measurement.trigger_fingerprint


def _checked(path: Path, entry: Any) -> Measurement:
    """One entry of the file, once its types are known to be right."""
    try:
        found = Measurement(**entry)
        columns = [found.numbers.values(), *found.by_class.values()]
        numbers = [value for column in columns for value in column]
        texts = [found.split, found.test_fingerprint, *found.class_names]
        if found.trigger_fingerprint is not None:
            texts.append(found.trigger_fingerprint)
        sizes = {len(column) for column in found.by_class.values()} - {len(found.class_names)}
    except (TypeError, AttributeError) as error:
        raise RunError(f"{path} is damaged: {str(error)[:100]}") from error
    is_number = all(v is None or (isinstance(v, int | float) and not isinstance(v, bool)) for v in numbers)
    if not is_number or not all(isinstance(text, str) for text in texts) or sizes or found.split not in SPLITS:
        raise RunError(f"{path} is damaged: it holds something that is not a measurement")
    return found
