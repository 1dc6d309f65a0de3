"""The files of a run folder: verdicts, history, metrics. Nothing in them is pickled.

    config.json           settings, command line, versions          (run_folder.py)
    log.jsonl             one line an epoch                         (run_folder.py)
    checkpoint.pt         only while the run is unfinished          (run_folder.py)
    model.safetensors     weights            model.json             to rebuild the network  (model_file.py)
    samples.parquet       one row a sample   history.safetensors    the loss of each sample over time
    gallery.npz           pictures           metrics.json           the run's results; its presence = finished
    classes.csv           accuracy and attack success of each class, after an evaluation
    skipped.csv           only with --on-error skip: what could not be read, and why

Each file is written atomically and none holds an absolute path, so a folder may be copied or moved.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from antibackdoor.data.samples import BoolArray, FloatArray, IntArray, StrArray
from antibackdoor.errors import RunError
from antibackdoor.runs.atomic import cannot, one_line, read_json, replacing, write_json
from antibackdoor.training.history import Losses, LossHistory

SAMPLES, HISTORY, METRICS = "samples.parquet", "history.safetensors", "metrics.json"
SKIPPED, CLASSES = "skipped.csv", "classes.csv"

Scalar = float | int | str | bool | None
Metrics = Mapping[str, Scalar | Sequence[Scalar]]

MOST_EXACT = 1 << 26  # losses that are kept as float32
_ROW_GROUP = 65_536  # samples encoded at a time; bounds the memory that a table of millions takes


@dataclass(frozen=True, eq=False)
class SamplesTable:
    """The verdict for every sample.

    Attributes:
        ids: `(N,)` str.
        given_label: `(N,)` int64, the label that came with the data.
        suspicion: `(N,)` float64, higher is more suspicious; the probability of being poisoned if there are margins.
        isolated: `(N,)` bool, kept from the delivered model under its given label.
        recovered: `(N,)` bool, isolated but used under the suggested label.
        suggested_label: `(N,)` int64; the given one where nothing else is known.
        class_names: The K classes in label order.
        prediction: `(N,)` int64, what the delivered model says; None if there is no model, as after a scan.
        confidence: `(N,)` float64 in [0, 1], the probability of that prediction, or None.
        margin: `(N,)` float64, log-odds of the given label that the suspicion rests on, or None.
        evidence: `(N,)` str, what speaks against an isolated sample (`antibackdoor.search.evidence.evidence`), or None.
    """

    ids: StrArray
    given_label: IntArray
    suspicion: FloatArray
    isolated: BoolArray
    recovered: BoolArray
    suggested_label: IntArray
    class_names: StrArray
    prediction: IntArray | None = None
    confidence: FloatArray | None = None
    margin: FloatArray | None = None
    evidence: StrArray | None = None

    @property
    def verdict(self) -> StrArray:
        """`(N,)` of `clean` (nothing found), `isolated` and `recovered`."""
        return np.where(self.recovered, "recovered", np.where(self.isolated, "isolated", "clean"))


_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("given_label", pa.int64()),
        ("suspicion", pa.float64()),
        ("isolated", pa.bool_()),
        ("recovered", pa.bool_()),
        ("suggested_label", pa.int64()),
        ("prediction", pa.int64()),
        ("confidence", pa.float64()),
        ("margin", pa.float64()),
        ("verdict", pa.string()),
        ("evidence", pa.string()),
    ]
)


def write_samples_table(run: Path, table: SamplesTable) -> None:
    """Write `samples.parquet`; labels are indices, the class names stand in the metadata as a JSON list.

    Bytes of a file name that are not UTF-8 (surrogates in the id) become `\\udcXX`, which Parquet can hold.

    Raises:
        RunError: Columns differ in length, or the folder cannot be written.
    """
    given = {"id": table.ids, **{name: getattr(table, name) for name in _SCHEMA.names[1:]}}
    known = [field for field in _SCHEMA if given[field.name] is not None]
    columns = [given[field.name] for field in known]
    if len({len(column) for column in columns}) != 1:
        lengths = ", ".join(f"{name} {len(column)}" for name, column in given.items() if column is not None)
        raise RunError(f"the columns of {SAMPLES} differ in length: {lengths}")
    names = json.dumps([str(name) for name in table.class_names])
    schema = pa.schema(known, metadata={"class_names": names})
    # An open file, here and below, since pyarrow takes no path that is not UTF-8.
    with (
        replacing(run / SAMPLES) as temporary,
        temporary.open("wb") as file,
        pq.ParquetWriter(file, schema) as writer,
    ):
        for start in range(0, max(len(table.ids), 1), _ROW_GROUP):
            chunk = [column[start : start + _ROW_GROUP] for column in columns]
            chunk[0] = [_utf8(str(name)) for name in chunk[0]]
            arrays = [pa.array(part, field.type) for part, field in zip(chunk, schema, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def read_samples_table(run: Path) -> SamplesTable:
    """Read all of `samples.parquet`.

    Raises:
        RunError: It is missing, corrupt or of another make.
    """
    present = sample_column_names(run)
    wanted = [name for name in _SCHEMA.names if name in present and name != "verdict"]
    columns, class_names = read_sample_columns(run, wanted)
    texts: dict[str, Any] = {
        name: np.asarray(columns.pop(name), dtype=np.str_) for name in ("evidence",) if name in columns
    }
    return SamplesTable(
        ids=np.asarray(columns.pop("id"), dtype=np.str_),
        class_names=np.asarray(class_names, np.str_),
        **texts,
        **columns,
    )


def sample_column_names(run: Path) -> set[str]:
    """Which columns `samples.parquet` has; some are there only if the defense tells them.

    Raises:
        RunError: It is missing or corrupt.
    """
    try:
        with (run / SAMPLES).open("rb") as file:
            return set(pq.read_schema(file).names)
    except OSError as error:
        raise RunError(cannot("read", run / SAMPLES, error)) from error
    except pa.ArrowException as error:
        raise RunError(f"{run / SAMPLES} is damaged: {one_line(error)}") from error


def read_sample_columns(
    run: Path, names: Sequence[str], rows: IntArray | None = None
) -> tuple[dict[str, NDArray[Any]], tuple[str, ...]]:
    """Read some columns of `samples.parquet` (all rows, or the chosen ones), and the class names.

    The column `id` comes as an object array: with one long path among millions of ids, numpy's fixed-width
    strings would fill the memory.

    Raises:
        RunError: The file is missing or corrupt, lacks a column, or has fewer rows than asked for.
    """
    path = run / SAMPLES
    try:
        with path.open("rb") as file:
            table = pq.read_table(file, columns=list(names))
        class_names = tuple(str(name) for name in json.loads(table.schema.metadata[b"class_names"]))
        if rows is not None:
            table = table.take(pa.array(rows))
        return {name: table.column(name).to_numpy() for name in names}, class_names
    except OSError as error:
        raise RunError(cannot("read", path, error)) from error
    except (pa.ArrowException, KeyError, TypeError, ValueError, IndexError) as error:
        raise RunError(f"{path} is damaged: {one_line(error)}") from error


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
            raise RunError(f"cannot write {run / HISTORY}: {one_line(error)}") from error


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
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except SafetensorError as error:
        raise RunError(f"{path} is damaged: {one_line(error)}") from error
    except OSError as error:
        raise RunError(cannot("read", path, error)) from error


def write_skipped(run: Path, skipped: Sequence[tuple[str, str]]) -> None:
    """Write `skipped.csv`: id and reason of each sample that could not be read; no file if there is none.

    Raises:
        RunError: The folder cannot be written.
    """
    if not skipped:
        return
    _write_csv(run / SKIPPED, [("id", "reason"), *skipped])


def write_classes(run: Path, class_names: StrArray, columns: Mapping[str, Sequence[Scalar]]) -> None:
    """Write `classes.csv`: one row for each of the K classes, each column of K values; None is left empty.

    Raises:
        RunError: The folder cannot be written.
    """
    _write_csv(run / CLASSES, [("class", *columns), *zip(class_names.tolist(), *columns.values(), strict=True)])


def _write_csv(path: Path, rows: Iterable[Iterable[Scalar]]) -> None:
    with (
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        csv.writer(file).writerows(rows)


def write_metrics(run: Path, metrics: Metrics) -> None:
    """Write `metrics.json`: flat keys; values that are not finite become null.

    Raises:
        RunError: A value is nested, or the folder cannot be written.
    """
    for key, value in metrics.items():
        parts = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(part, Mapping | list | tuple | set) for part in parts):
            raise RunError(f"metric {key!r} is nested: give plain values, or a list of plain values")
    write_json(run / METRICS, metrics)


def read_metrics(run: Path) -> dict[str, Any]:
    """Read `metrics.json`.

    Raises:
        RunError: It is missing (the run is not finished) or damaged.
    """
    return read_json(run / METRICS)


def _utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
