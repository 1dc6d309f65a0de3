"""The files of a run folder: verdicts, history, metrics. Nothing in them is pickled.

    config.json           settings, command line, versions          (run_folder.py)
    log.jsonl             one line an epoch                         (run_folder.py)
    checkpoint.pt         only while the run is unfinished          (run_folder.py)
    model.safetensors     weights            model.json             to rebuild the network  (model_file.py)
    samples.parquet       one row a sample   history.safetensors    the loss of each sample over time
    gallery.npz           pictures           metrics.json           the run's results; its presence = finished
    checksums.json        of the weights, the history, the tables of samples and the pictures of a finished run
    classes.csv           accuracy of each class, and attack success where a trigger was measured
    measurements.json     every measurement of the model, with its data and trigger      (measurements.py)
    attention.npz         where the networks of a purification look
    skipped.csv           what could not be read, or was not looked at, and why

Each file is written atomically and none holds an absolute path, so a folder may be copied or moved.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from antibackdoor.data.csv_cells import from_cell, write_rows
from antibackdoor.data.regular_files import read_regular, regular_name
from antibackdoor.data.samples import StrArray
from antibackdoor.errors import RunError
from antibackdoor.runs.atomic import cannot, one_line, read_json, replacing, write_json
from antibackdoor.runs.checksums import check
from antibackdoor.runs.metric_values import wrong_metric
from antibackdoor.training.history import Losses, LossHistory

HISTORY, METRICS = "history.safetensors", "metrics.json"
SKIPPED, CLASSES = "skipped.csv", "classes.csv"

Scalar = float | int | str | bool | None
Metrics = Mapping[str, Scalar | Sequence[Scalar]]

SCHEMA_VERSION = 2  # of metrics.json; 1 had backdoor_label, backdoor_labels, n_recovered and n_returned
MOST_EXACT = 1 << 26  # losses that are kept as float32

_CSV_BYTES = 64 * 2**20  # a million classes
_MOST_COUNTED = 2**53  # samples: whole numbers that a float holds exactly


def write_history(run: Path, history: LossHistory) -> None:
    """Write `history.safetensors`; a large one as float16, which takes half the space and keeps three digits.

    Raises:
        RunError: The folder cannot be written.
    """
    losses: NDArray[Any] = history.losses
    if losses.size > MOST_EXACT:
        # A diverged loss must not turn into infinity.
        limit = float(np.finfo(np.float16).max)
        losses = np.clip(losses, -limit, limit).astype(np.float16)
    tensors = {"losses": np.ascontiguousarray(losses), "steps": np.ascontiguousarray(history.steps)}
    with replacing(run / HISTORY) as temporary:
        try:
            safetensors.numpy.save_file(tensors, temporary)
        except SafetensorError as error:
            raise RunError(cannot("write", run / HISTORY, error)) from error


def read_history(run: Path) -> LossHistory:
    """Read all of `history.safetensors`, as float32.

    Raises:
        RunError: It is missing or corrupt.
    """
    with _open_history(run) as file:
        losses = np.asarray(file.get_tensor("losses"), dtype=np.float32)
        return LossHistory(losses, np.asarray(file.get_tensor("steps"), dtype=np.int64))


def iterate_history(run: Path, max_moments: int) -> Iterator[tuple[int, Losses]]:
    """Yield `(step, losses (N,))` one moment at a time, at most `max_moments`, dense early and sparse late.

    Raises:
        RunError: The file is missing or corrupt.
    """
    with _open_history(run) as file:
        steps = file.get_tensor("steps")
        losses = file.get_slice("losses")
        for moment in _spread(len(steps), max_moments):
            yield int(steps[moment]), np.asarray(losses[moment : moment + 1], dtype=np.float32)[0]


def _spread(count: int, limit: int) -> list[int]:
    """At most `limit` positions in `0..count-1`, evenly spaced on a logarithmic scale, ends included."""
    if count <= limit:
        return list(range(count))
    return sorted({int(position) - 1 for position in np.geomspace(1, count, limit).round()})


@contextmanager
def _open_history(run: Path) -> Iterator[Any]:
    path = run / HISTORY
    check(run, HISTORY)
    try:
        with regular_name(path) as name, safe_open(name, framework="numpy") as file:
            wrong = _wrong_in_history(file)
            if wrong:
                raise RunError(f"{path} is damaged: {wrong}")
            yield file
    except SafetensorError as error:
        raise RunError(f"{path} is damaged: {one_line(error)}") from error
    except OSError as error:
        raise RunError(cannot("read", path, error)) from error


def _wrong_in_history(file: Any) -> str:
    """What is not as `write_history` writes it, in words; empty if all is."""
    if set(file.keys()) != {"losses", "steps"}:
        return "it does not hold the two arrays 'losses' and 'steps'"
    shapes = {name: file.get_slice(name).get_shape() for name in ("losses", "steps")}
    types = {name: file.get_slice(name).get_dtype() for name in shapes}
    if types["losses"] not in ("F16", "F32") or types["steps"] != "I64":
        return f"losses are {types['losses']} and steps {types['steps']}"
    if len(shapes["losses"]) != 2 or shapes["steps"] != shapes["losses"][:1] or not shapes["losses"][0]:
        return f"losses have shape {tuple(shapes['losses'])} and steps {tuple(shapes['steps'])}"
    steps = file.get_tensor("steps")
    return "its steps go backwards" if steps[0] < 0 or (np.diff(steps) < 0).any() else ""


def write_skipped(run: Path, skipped: Sequence[tuple[str, str]]) -> None:
    """Write `skipped.csv`: id and reason of each sample or file that was not read; no file if there is none.

    Raises:
        RunError: The folder cannot be written.
    """
    if not skipped:
        return
    write_table(run / SKIPPED, [("id", "reason"), *skipped])


def write_classes(run: Path, class_names: StrArray, columns: Mapping[str, Sequence[Scalar]]) -> None:
    """Write `classes.csv`: one row for each of the K classes, each column of K values; None is left empty.

    Raises:
        RunError: The folder cannot be written.
    """
    write_table(run / CLASSES, [("class", *columns), *zip(class_names.tolist(), *columns.values(), strict=True)])


def read_classes(run: Path) -> tuple[list[str], dict[str, list[float | None]]]:
    """Read `classes.csv`: the class names, and each column; None where a cell is empty.

    Raises:
        RunError: It is missing or damaged.
    """
    path = run / CLASSES
    try:
        text = read_regular(path, most=_CSV_BYTES).decode("utf-8")
        header, *rows = csv.reader(io.StringIO(text, newline=""))
        if any(len(row) != len(header) for row in rows) or len(set(header)) != len(header) or header[0] != "class":
            raise ValueError("its rows differ in length, or its first column is not the class")
        columns = {name: [_share_or_count(row[place]) for row in rows] for place, name in enumerate(header) if place}
        return [from_cell(row[0]) for row in rows], columns
    except OSError as error:
        raise RunError(cannot("read", path, error)) from error
    except (ValueError, IndexError, csv.Error) as error:
        raise RunError(f"{path} is damaged: {one_line(error)}") from error


def _share_or_count(cell: str) -> float | None:
    value = float(cell) if cell else None
    if value is not None and not 0 <= value < _MOST_COUNTED:
        raise ValueError(f"{cell[:20]} is neither a share nor a number of samples")
    return value


def write_table(path: Path, rows: Iterable[Iterable[Scalar]]) -> None:
    """Write a CSV file, whole or not at all; no cell of it is a formula.

    Raises:
        RunError: The file cannot be written.
    """
    with (
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        write_rows(file, rows)


def write_metrics(run: Path, metrics: Metrics) -> None:
    """Write `metrics.json`: flat keys and a `schema_version`; values that are not finite become null.

    Raises:
        RunError: A value is nested, or the folder cannot be written.
    """
    for key, value in metrics.items():
        parts = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(part, Mapping | list | tuple | set) for part in parts):
            raise RunError(f"metric {key!r} is nested: give plain values, or a list of plain values")
    write_json(run / METRICS, {"schema_version": SCHEMA_VERSION, **metrics})


def read_metrics(run: Path) -> dict[str, Any]:
    """Read `metrics.json`; keys of an older version come under their names of today.

    Raises:
        RunError: It is missing (the run is not finished), damaged, or of a newer version.
    """
    metrics = read_json(run / METRICS)
    version = metrics.get("schema_version", 1)
    if type(version) is not int or version > SCHEMA_VERSION:
        raise RunError(
            f"{run / METRICS} has schema version {one_line(repr(version), 20)}, this program knows {SCHEMA_VERSION}: "
            "update it"
        )
    if version < SCHEMA_VERSION:
        metrics = _renamed(metrics)
    wrong = wrong_metric(metrics)
    if wrong:
        raise RunError(f"{run / METRICS} is damaged: {one_line(wrong)}")
    return metrics


def _renamed(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics of version 1 under the names of version 2."""
    judged = not {"backdoor_labels", "backdoor_label"}.isdisjoint(metrics)
    several, one = metrics.pop("backdoor_labels", None), metrics.pop("backdoor_label", None)
    if "target_labels" not in metrics:
        metrics["target_labels"] = several or ([] if one is None else [one])
    # At first a label of None was how a run said that it had found nothing.
    metrics.setdefault("poisoned", bool(metrics["target_labels"]) if judged else None)
    for before, now in (("n_recovered", "n_relabeled"), ("n_returned", "n_cleaned")):
        if before in metrics:
            metrics[now] = metrics.pop(before)
    if "smallest_visible_rate" in metrics:
        metrics.setdefault("n_planted_rates", 1)
    names = {"e2abl": "dual-head", "e2abl-published": "e2abl", "scan": "confusion"}
    method = str(metrics.pop("defense", ""))
    return {**metrics, "method": names.get(method, method), "schema_version": SCHEMA_VERSION}
