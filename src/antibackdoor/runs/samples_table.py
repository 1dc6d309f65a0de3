"""`samples.parquet`: one row a sample, with what a method says about it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from antibackdoor.data.json_text import json_object
from antibackdoor.data.samples import DIGEST, BoolArray, DigestArray, FloatArray, IntArray, StrArray
from antibackdoor.data.tables import codes, numbers, open_table, read_columns, texts
from antibackdoor.errors import RunError
from antibackdoor.protocols import CRITERIA, STATUSES, Verdict
from antibackdoor.runs.atomic import cannot, one_line, replacing
from antibackdoor.runs.checksums import check

SAMPLES, MIDWAY = "samples.parquet", "midway.parquet"

_ROW_GROUP = 65_536  # samples encoded at a time; bounds the memory that a table of millions takes
_CODES = {"status": STATUSES, "criterion": CRITERIA}
_NEEDED = ("id", "given_label", "suspicion", "status", "criterion", "suggested_label")
_TEXTS = ("id", "status", "criterion", "evidence")
_ABOUT = {b"class_names", b"poisoned", b"target_labels", b"p_value", b"unexamined"}  # keys of the metadata


@dataclass(frozen=True, eq=False)
class SamplesTable:
    """The verdict on every sample.

    Attributes:
        ids: `(N,)` str.
        given_label: `(N,)` int64, the label that came with the data.
        class_names: `(K,)` str, the classes in label order.
        verdict: What the method says.
        prediction: `(N,)` int64, what the delivered model says; None if there is no model, as after a scan.
        confidence: `(N,)` float64 in [0, 1], the probability of that prediction, or None.
        contents: `(N,)` 16 bytes each, `Samples.contents`: a hash of every input; None where an older version wrote.
    """

    ids: StrArray
    given_label: IntArray
    class_names: StrArray
    verdict: Verdict
    prediction: IntArray | None = None
    confidence: FloatArray | None = None
    contents: DigestArray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        judged = {None: "not judged", True: "poisoned", False: "nothing found"}[self.verdict.poisoned]
        return f"SamplesTable({len(self)} samples, {int(self.isolated.sum())} isolated, {judged})"

    @classmethod
    def load(cls, run: str | Path) -> SamplesTable:
        """The table of a run folder.

        Raises:
            RunError: It is missing, corrupt or of another make.
        """
        return read_samples_table(Path(run))

    def to_arrow(self) -> pa.Table:
        """One row a sample, the names of classes beside their numbers.

        Columns: id, given_label, given_class, suspicion, status, criterion, suggested_label, suggested_class; where
        there are such also prediction, predicted_class, confidence, margin.
        """
        verdict = self.verdict
        columns: dict[str, Any] = {
            "id": _encoded(_SCHEMA.field("id"), self.ids),
            "given_label": self.given_label,
            "given_class": self._classes(self.given_label),
            "suspicion": verdict.suspicion,
            "status": _encoded(_SCHEMA.field("status"), verdict.status),
            "criterion": _encoded(_SCHEMA.field("criterion"), verdict.criterion),
            "suggested_label": verdict.suggested_label,
            "suggested_class": self._classes(verdict.suggested_label),
        }
        if self.prediction is not None:
            columns |= {"prediction": self.prediction, "predicted_class": self._classes(self.prediction)}
        columns |= {"confidence": self.confidence, "margin": verdict.margin}
        return pa.table({name: values for name, values in columns.items() if values is not None})

    def to_pandas(self) -> Any:
        """`to_arrow` as a `pandas.DataFrame`; texts that repeat are categories. Needs pandas.

        Raises:
            RunError: pandas is not installed.
        """
        try:
            return self.to_arrow().to_pandas()
        except ImportError as error:
            raise RunError("pandas is not installed: pip install 'antibackdoor[pandas]', or use to_arrow()") from error

    def _classes(self, labels: IntArray) -> pa.Array:
        names = pa.array([stored_id(str(name)) for name in self.class_names], pa.string())
        return pa.DictionaryArray.from_arrays(pa.array(labels, pa.int32()), names)

    @property
    def isolated(self) -> BoolArray:
        """`(N,)` bool, what was kept from the model under its given label."""
        return self.verdict.isolated

    @property
    def suspicion(self) -> FloatArray:
        """`(N,)` float64, higher is more suspicious."""
        return self.verdict.suspicion

    @property
    def status(self) -> StrArray:
        """`(N,)` of `kept`, `isolated`, `relabeled`, `cleaned`."""
        return np.array(STATUSES)[self.verdict.status]


def _coded() -> pa.DataType:
    return pa.dictionary(pa.int8(), pa.string())


_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("given_label", pa.int64()),
        ("suspicion", pa.float64()),
        ("status", _coded()),
        ("criterion", _coded()),
        ("suggested_label", pa.int64()),
        ("prediction", pa.int64()),
        ("confidence", pa.float64()),
        ("margin", pa.float64()),
        ("content", pa.binary(DIGEST.itemsize)),
    ]
)


def write_samples_table(run: Path, table: SamplesTable, name: str = SAMPLES) -> None:
    """Write the table; labels are indices, the class names stand in the metadata as a JSON list.

    Bytes of a file name that are not UTF-8 (surrogates in the id) become `\\udcXX`, which Parquet can hold.

    Args:
        run: The run folder.
        table: What to write.
        name: Of the file.

    Raises:
        RunError: Columns differ in length, or the folder cannot be written.
    """
    verdict = table.verdict
    given: dict[str, Any] = {
        "id": table.ids,
        "given_label": table.given_label,
        "suspicion": verdict.suspicion,
        "status": verdict.status,
        "criterion": verdict.criterion,
        "suggested_label": verdict.suggested_label,
        "prediction": table.prediction,
        "confidence": table.confidence,
        "margin": verdict.margin,
        "content": table.contents,
    }
    known = [field for field in _SCHEMA if given[field.name] is not None]
    if len({len(given[field.name]) for field in known}) != 1:
        lengths = ", ".join(f"{field.name} {len(given[field.name])}" for field in known)
        raise RunError(f"the columns of {name} differ in length: {lengths}")
    about = {
        "class_names": [str(name) for name in table.class_names],
        "poisoned": verdict.poisoned,
        "target_labels": list(verdict.target_labels),
        "p_value": verdict.p_value,
        "unexamined": list(verdict.unexamined),
    }
    schema = pa.schema(known, metadata={key: json.dumps(value) for key, value in about.items()})
    # An open file, since pyarrow takes no path that is not UTF-8.
    with (
        replacing(run / name) as temporary,
        temporary.open("wb") as file,
        pq.ParquetWriter(file, schema) as writer,
    ):
        for start in range(0, max(len(table.ids), 1), _ROW_GROUP):
            chunk = [_encoded(field, given[field.name][start : start + _ROW_GROUP]) for field in known]
            writer.write_table(pa.Table.from_arrays(chunk, schema=schema))


def _encoded(field: pa.Field, values: NDArray[Any]) -> pa.Array:
    if field.name in _CODES:
        return pa.DictionaryArray.from_arrays(pa.array(values.astype(np.int8)), pa.array(_CODES[field.name]))
    if field.name == "id":
        return pa.array([stored_id(str(name)) for name in values], field.type)
    if field.name == "content":
        return pa.FixedSizeBinaryArray.from_buffers(field.type, len(values), [None, pa.py_buffer(values.tobytes())])
    return pa.array(values, field.type)


def read_samples_table(run: Path, name: str = SAMPLES) -> SamplesTable:
    """Read the whole table.

    Raises:
        RunError: It is missing, corrupt or of another make.
    """
    opened = _opened(run, name)
    wanted = [column for column in _SCHEMA.names if column in opened.present or column in _NEEDED]
    columns = _columns(opened, wanted, None)
    if len(set(columns["id"].tolist())) < len(columns["id"]):
        raise RunError(f"{run / name} is damaged: an id appears twice")
    return SamplesTable(
        ids=np.asarray(columns["id"], dtype=np.str_),
        given_label=columns["given_label"],
        class_names=np.asarray(opened.class_names, np.str_),
        verdict=Verdict(
            suspicion=columns["suspicion"],
            status=columns["status"],
            suggested_label=columns["suggested_label"],
            criterion=columns["criterion"],
            poisoned=opened.poisoned,
            target_labels=opened.target_labels,
            p_value=opened.p_value,
            unexamined=opened.unexamined,
            margin=columns.get("margin"),
        ),
        prediction=columns.get("prediction"),
        confidence=columns.get("confidence"),
        contents=columns.get("content"),
    )


class _Opened(NamedTuple):
    """A table whose columns are not decoded yet, and what its metadata say of the data."""

    path: Path
    file: pq.ParquetFile
    present: frozenset[str]  # columns
    class_names: tuple[str, ...]
    poisoned: bool | None  # unknown, as what follows, where an older version wrote it
    target_labels: tuple[int, ...]
    p_value: float | None
    unexamined: tuple[int, ...]


def _opened(run: Path, name: str) -> _Opened:
    path = run / name
    check(run, name)
    try:
        file = open_table(path, _TEXTS)
        metadata = file.schema_arrow.metadata or {}
        about = json_object(
            b"{" + b",".join(b'"%s":%s' % (key, metadata[key]) for key in _ABOUT & set(metadata)) + b"}"
        )
        opened = _Opened(
            path,
            file,
            frozenset(file.schema_arrow.names),
            tuple(_listed(about, "class_names", str)),
            about.get("poisoned"),
            tuple(_listed(about, "target_labels", int)),
            about.get("p_value"),
            tuple(_listed(about, "unexamined", int)),
        )
        _check_about(opened)
        return opened
    except OSError as error:
        raise RunError(cannot("read", path, error)) from error
    except (pa.ArrowException, ValueError) as error:
        raise RunError(f"{path} is damaged: {one_line(error)}") from error


def _listed(about: Mapping[str, Any], key: str, kind: type[Any]) -> list[Any]:
    values = about.get(key, [])
    if not isinstance(values, list) or any(type(value) is not kind for value in values):
        raise ValueError(f"{key!r} is not a list of {kind.__name__}")
    return values


def _check_about(opened: _Opened) -> None:
    n_classes, p_value = len(opened.class_names), opened.p_value
    if not n_classes or len(set(opened.class_names)) < n_classes:
        raise ValueError("it names no classes, or one twice")
    if not all(0 <= label < n_classes for label in (*opened.target_labels, *opened.unexamined)):
        raise ValueError(f"it has a label outside of 0..{n_classes - 1}")
    if opened.poisoned is not None and not isinstance(opened.poisoned, bool):
        raise ValueError("'poisoned' is neither true nor false")
    if p_value is not None and (type(p_value) not in (int, float) or not 0 <= p_value <= 1):
        raise ValueError("'p_value' is not a probability")


def sample_column_names(run: Path, name: str = SAMPLES) -> set[str]:
    """Which columns the table has; some are there only if the method tells them.

    Raises:
        RunError: It is missing or corrupt.
    """
    return set(_opened(run, name).present)


def read_sample_columns(
    run: Path, names: Sequence[str], rows: IntArray | None = None, *, name: str = SAMPLES
) -> tuple[dict[str, NDArray[Any]], tuple[str, ...]]:
    """Read some columns of the table (all rows, or the chosen ones), and the class names.

    `status` and `criterion` come as uint8 codes of `STATUSES` and `CRITERIA`; tables of older versions, which had
    `isolated`, `recovered` and `evidence`, are read as what they meant. The column `id` comes as an object array: with
    one long path among millions of ids, numpy's fixed-width strings would fill the memory.

    Raises:
        RunError: The file is missing or corrupt, lacks a column, has fewer rows than asked for, or a label that does
            not exist.
    """
    opened = _opened(run, name)
    return _columns(opened, names, rows), opened.class_names


def _columns(opened: _Opened, names: Sequence[str], rows: IntArray | None) -> dict[str, NDArray[Any]]:
    stored = dict.fromkeys(part for column in names for part in _stored(column, opened.present))
    try:
        table = read_columns(opened.file, list(stored))
        if rows is not None:
            table = table.take(pa.array(rows))
        columns = {column: _decoded(table, column, opened.present) for column in names}
        for column, values in columns.items():
            _check_range(column, values, len(opened.class_names))
    except (OSError, pa.ArrowException, ValueError, IndexError) as error:
        raise RunError(f"{opened.path} is damaged: {one_line(error)}") from error
    return columns


def _check_range(column: str, values: NDArray[Any], n_classes: int) -> None:
    if column in ("given_label", "suggested_label", "prediction") and len(values):
        if values.min() < 0 or values.max() >= n_classes:
            raise ValueError(f"{column} runs from {values.min()} to {values.max()}, beyond the {n_classes} classes")
    elif column == "confidence" and not ((values >= 0) & (values <= 1)).all():
        raise ValueError("a confidence is not a probability")


def _stored(column: str, present: Set[str]) -> list[str]:
    """The columns of a file that tell a column of today."""
    if column == "status" and column not in present:
        return ["isolated", "recovered"]
    if column == "criterion" and column not in present:
        return ["isolated", *({"evidence"} & present)]
    return [column]


def _decoded(table: pa.Table, column: str, present: Set[str]) -> NDArray[Any]:
    if column == "id":
        return texts(table, column)
    if column == "content":
        return _digests(table.column(column))
    if column not in _CODES:
        is_whole = pa.types.is_integer(_SCHEMA.field(column).type) if column in _SCHEMA.names else False
        return numbers(table, column, np.int64 if is_whole else np.float64)
    if column in present:
        return codes(table, column, _CODES[column])
    isolated = numbers(table, "isolated", np.bool_)
    if column == "status":
        recovered = numbers(table, "recovered", np.bool_)
        return np.where(recovered, STATUSES.index("relabeled"), isolated * STATUSES.index("isolated")).astype(np.uint8)
    if "evidence" not in present:
        return np.where(isolated, CRITERIA.index("score"), 0).astype(np.uint8)
    old = {"nearby": "near", "none": ""}
    return codes(table, "evidence", [old.get(text, text) for text in CRITERIA])


def _digests(column: pa.ChunkedArray) -> DigestArray:
    if column.type != pa.binary(DIGEST.itemsize) or column.null_count:
        raise ValueError(f"content is of type {column.type}, or has gaps")
    return np.frombuffer(b"".join(column.to_pylist()), dtype=DIGEST)


def stored_id(text: str) -> str:
    """An id as the table holds it: bytes of a file name that are not UTF-8 stand as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
