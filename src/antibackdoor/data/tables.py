"""Reading Parquet tables that somebody else may have made: columns of a known type, without gaps, of a size that fits.

The file is read into memory that belongs to Arrow, and decoded in one thread. A thread of Arrow that still holds a
Python object while the interpreter ends (a file, or bytes) aborts the process with exit status 134.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from antibackdoor.data.regular_files import regular_file

LONGEST_TEXT = 8192  # bytes of an id: twice the longest path of Linux
_FILE_BYTES = 4 * 2**30  # some hundred million samples
# Snappy, which this program writes, packs 64 KiB into 3 KiB at best. Each row has an id of its own, so that even a
# table of constants has more bytes than rows.
_UNPACKED = 24
_OVERHEAD = 2**20  # bytes that a small table may unpack to all the same


def open_table(path: Path, texts: Sequence[str] = ()) -> pq.ParquetFile:
    """The table, with nothing of its columns decoded yet; read them by `read_columns`.

    Args:
        path: A regular file.
        texts: Columns of text. They are decoded as they are stored, each different text once.

    Raises:
        OSError: It is missing or no regular file.
        ValueError: It claims more than its size can hold.
        pyarrow.ArrowException: It is damaged.
    """
    with regular_file(path, most=_FILE_BYTES) as file:
        buffer = pa.allocate_buffer(file.seek(0, 2))
        file.seek(0)
        if len(buffer) and file.readinto(memoryview(buffer)) != len(buffer):
            raise ValueError("it changes while it is read")
    about = pq.read_metadata(pa.BufferReader(buffer))
    leaves = [about.schema.column(place) for place in range(len(about.schema.names))]
    stored = [leaf.path for leaf in leaves if leaf.path in texts and leaf.physical_type == "BYTE_ARRAY"]
    groups = [about.row_group(place) for place in range(about.num_row_groups)]
    if about.num_rows > len(buffer) or sum(group.total_byte_size for group in groups) > _allowed(len(buffer)):
        raise ValueError(f"{len(buffer):,} bytes cannot hold the {about.num_rows:,} rows that it claims")
    if any(group.total_byte_size < 0 or group.num_rows < 0 for group in groups):
        raise ValueError("it claims a negative size")
    return pq.ParquetFile(pa.BufferReader(buffer), metadata=about, read_dictionary=stored, pre_buffer=False)


def read_columns(table: pq.ParquetFile, names: Sequence[str]) -> pa.Table:
    """Some of the columns, decoded.

    Raises:
        ValueError: A column is missing, or stands there twice.
        pyarrow.ArrowException: The file is damaged.
    """
    present = table.schema_arrow.names
    for name in names:
        if present.count(name) != 1:
            raise ValueError(f"there is no column {name!r}" if name not in present else f"two columns {name!r}")
    return table.read(columns=list(names), use_threads=False)


def numbers(table: pa.Table, name: str, dtype: type[np.generic]) -> NDArray[Any]:
    """A column of numbers or booleans, `(N,)`, as the given type.

    Raises:
        ValueError: It is of another kind, or has empty cells.
    """
    column = table.column(name)
    kind = np.dtype(dtype).kind
    fits = {"i": pa.types.is_integer, "f": pa.types.is_floating, "b": pa.types.is_boolean}[kind]
    if not fits(column.type):
        raise ValueError(f"the column {name!r} is of type {column.type}")
    if column.null_count:
        raise ValueError(f"the column {name!r} has {column.null_count} empty cells")
    return np.asarray(column.to_numpy()).astype(dtype)


def texts(table: pa.Table, name: str) -> NDArray[np.object_]:
    """A column of texts, `(N,)` Python strings.

    Raises:
        ValueError: It is of another kind, has empty cells, or repeats long texts beyond measure.
    """
    chunks = _text_chunks(table, name)
    size = longest = 0
    for chunk in chunks:
        lengths = pc.binary_length(chunk.dictionary).to_numpy(zero_copy_only=False)
        size += int(lengths[_indices(chunk)].sum(dtype=np.int64)) if len(chunk) else 0
        longest = max(longest, int(lengths.max(initial=0)))
    if size > _allowed(table.nbytes) or longest > LONGEST_TEXT:
        raise ValueError(f"the texts of the column {name!r} are {size:,} bytes, one of them {longest:,}")
    values = [np.array(chunk.dictionary.to_pylist(), dtype=object)[_indices(chunk)] for chunk in chunks if len(chunk)]
    return np.concatenate(values) if values else np.zeros(0, dtype=object)


def codes(table: pa.Table, name: str, known: Sequence[str]) -> NDArray[np.uint8]:
    """A column of texts as their places among the known ones, `(N,)`.

    Raises:
        ValueError: It is of another kind, has empty cells, or a text that is not known.
    """
    values = []
    for chunk in _text_chunks(table, name):
        places = np.array([known.index(t) if t in known else -1 for t in chunk.dictionary.to_pylist()], dtype=np.int64)
        found = places[_indices(chunk)] if len(chunk) else np.zeros(0, dtype=np.int64)
        if len(found) and found.min() < 0:
            raise ValueError(f"the column {name!r} has values other than {', '.join(filter(None, known))}")
        values.append(found.astype(np.uint8))
    return np.concatenate(values) if values else np.zeros(0, dtype=np.uint8)


def _text_chunks(table: pa.Table, name: str) -> list[pa.DictionaryArray]:
    column = table.column(name)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.dictionary_encode()
    if not (pa.types.is_dictionary(column.type) and pa.types.is_string(column.type.value_type)):
        raise ValueError(f"the column {name!r} is of type {column.type}")
    if column.null_count or any(chunk.dictionary.null_count for chunk in column.chunks):
        raise ValueError(f"the column {name!r} has empty cells")
    column.validate(full=True)
    return list(column.chunks)


def _indices(chunk: pa.DictionaryArray) -> NDArray[np.int64]:
    return np.asarray(chunk.indices.to_numpy(zero_copy_only=False)).astype(np.int64)


def _allowed(n_bytes: int) -> int:
    return _UNPACKED * n_bytes + _OVERHEAD
