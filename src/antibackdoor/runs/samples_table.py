"""`samples.parquet`: one row a sample, with what a method says about it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from antibackdoor.data.samples import DIGEST, BoolArray, DigestArray, FloatArray, IntArray, StrArray
from antibackdoor.errors import RunError
from antibackdoor.protocols import CRITERIA, STATUSES, Verdict
from antibackdoor.runs.atomic import cannot, one_line, replacing

SAMPLES, MIDWAY = "samples.parquet", "midway.parquet"

_ROW_GROUP = 65_536  # samples encoded at a time; bounds the memory that a table of millions takes
_CODES = {"status": STATUSES, "criterion": CRITERIA}


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
    # An open file, here and below, since pyarrow takes no path that is not UTF-8.
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
    present = sample_column_names(run, name)
    wanted = [column for column in _SCHEMA.names if column in present or column in _CODES]
    columns, class_names = read_sample_columns(run, wanted, name=name)
    about = _about(run / name)
    return SamplesTable(
        ids=np.asarray(columns["id"], dtype=np.str_),
        given_label=columns["given_label"],
        class_names=np.asarray(class_names, np.str_),
        verdict=Verdict(
            suspicion=columns["suspicion"],
            status=columns["status"],
            suggested_label=columns["suggested_label"],
            criterion=columns["criterion"],
            poisoned=about["poisoned"],
            target_labels=tuple(about["target_labels"]),
            p_value=about["p_value"],
            unexamined=tuple(about["unexamined"]),
            margin=columns.get("margin"),
        ),
        prediction=columns.get("prediction"),
        confidence=columns.get("confidence"),
        contents=columns.get("content"),
    )


def _about(path: Path) -> dict[str, Any]:
    """What the metadata say of the data; unknown where an older version wrote them."""
    with path.open("rb") as file:
        metadata = pq.read_schema(file).metadata or {}
    try:
        poisoned, p_value = (json.loads(metadata.get(key, b"null")) for key in (b"poisoned", b"p_value"))
        labels, unexamined = (json.loads(metadata.get(key, b"[]")) for key in (b"target_labels", b"unexamined"))
        return {
            "poisoned": None if poisoned is None else bool(poisoned),
            "target_labels": [int(label) for label in labels],
            "p_value": None if p_value is None else float(p_value),
            "unexamined": [int(label) for label in unexamined],
        }
    except (ValueError, TypeError) as error:
        raise RunError(f"{path} is damaged: {one_line(error)}") from error


def sample_column_names(run: Path, name: str = SAMPLES) -> set[str]:
    """Which columns the table has; some are there only if the method tells them.

    Raises:
        RunError: It is missing or corrupt.
    """
    try:
        with (run / name).open("rb") as file:
            return set(pq.read_schema(file).names)
    except OSError as error:
        raise RunError(cannot("read", run / name, error)) from error
    except pa.ArrowException as error:
        raise RunError(f"{run / name} is damaged: {one_line(error)}") from error


def read_sample_columns(
    run: Path, names: Sequence[str], rows: IntArray | None = None, *, name: str = SAMPLES
) -> tuple[dict[str, NDArray[Any]], tuple[str, ...]]:
    """Read some columns of the table (all rows, or the chosen ones), and the class names.

    `status` and `criterion` come as uint8 codes of `STATUSES` and `CRITERIA`; tables of older versions, which had
    `isolated`, `recovered` and `evidence`, are read as what they meant. The column `id` comes as an object array: with
    one long path among millions of ids, numpy's fixed-width strings would fill the memory.

    Raises:
        RunError: The file is missing or corrupt, lacks a column, or has fewer rows than asked for.
    """
    path = run / name
    present = sample_column_names(run, name)
    stored = [part for column in names for part in _stored(column, present)]
    try:
        with path.open("rb") as file:
            table = pq.read_table(file, columns=list(dict.fromkeys(stored)))
        class_names = tuple(str(name) for name in json.loads(table.schema.metadata[b"class_names"]))
        if rows is not None:
            table = table.take(pa.array(rows))
        return {column: _decoded(table, column, present) for column in names}, class_names
    except OSError as error:
        raise RunError(cannot("read", path, error)) from error
    except (pa.ArrowException, KeyError, TypeError, ValueError, IndexError) as error:
        raise RunError(f"{path} is damaged: {one_line(error)}") from error


def _stored(column: str, present: set[str]) -> list[str]:
    """The columns of a file that tell a column of today."""
    if column == "status" and column not in present:
        return ["isolated", "recovered"]
    if column == "criterion" and column not in present:
        return ["isolated", *({"evidence"} & present)]
    return [column]


def _decoded(table: pa.Table, column: str, present: set[str]) -> NDArray[Any]:
    if column == "content":
        return _digests(table.column(column))
    if column not in _CODES:
        return np.asarray(table.column(column).to_numpy())
    if column in present:
        values = table.column(column).cast(pa.string()).to_pylist()
        places = {text: place for place, text in enumerate(_CODES[column])}
        return np.array([places[text] for text in values], dtype=np.uint8)
    isolated = table.column("isolated").to_numpy().astype(bool)
    if column == "status":
        recovered = table.column("recovered").to_numpy().astype(bool)
        return np.where(recovered, STATUSES.index("relabeled"), isolated * STATUSES.index("isolated")).astype(np.uint8)
    if "evidence" not in present:
        return np.where(isolated, CRITERIA.index("score"), 0).astype(np.uint8)
    old = {"near": "nearby", "": "none"}
    texts = [old.get(text, text) for text in table.column("evidence").to_pylist()]
    return np.array([CRITERIA.index(text) for text in texts], dtype=np.uint8)


def _digests(column: pa.ChunkedArray) -> DigestArray:
    if column.type != pa.binary(DIGEST.itemsize) or column.null_count:
        raise ValueError(f"content is of type {column.type}, or has gaps")
    return np.frombuffer(b"".join(column.to_pylist()), dtype=DIGEST)


def stored_id(text: str) -> str:
    """An id as the table holds it: bytes of a file name that are not UTF-8 stand as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
