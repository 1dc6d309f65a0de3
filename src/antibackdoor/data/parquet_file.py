"""Parquet tables, one file or a folder of shards: a column of images or of series, and a column with the class.

Shards are called by their split, such as `train-00000-of-00002.parquet`, in a folder or in its folder `data`. Images
are decoded one group of rows at a time, so that a file may be larger than memory.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from antibackdoor.data.image_formats import has_image_suffix
from antibackdoor.data.options import Request
from antibackdoor.data.output import batches, complete_or_absent, pngs
from antibackdoor.data.pairs import test_beside, written_pair
from antibackdoor.data.regular_files import regular_name
from antibackdoor.data.samples import Samples, StrArray
from antibackdoor.data.source import Faults, Source, Written, one_line
from antibackdoor.data.split_names import role_within
from antibackdoor.data.table_source import tables_source
from antibackdoor.data.written_rows import row_names, schema_of
from antibackdoor.errors import DataError

SUFFIXES = (".parquet", ".pq")
_MOST_RATIO, _HARMLESS_BYTES = 200, 64 * 2**20  # of unpacked to packed bytes, as for archives
_GROUPS_IN_MEMORY = 2  # threads decode neighboring rows, which may lie on both sides of a border
_ROW_GROUP = 256
_NO_DATA = ("truth.parquet", "samples.parquet")  # beside poisoned data, and in run folders


def open_source(path: Path, faults: Faults, request: Request) -> Source:
    """List the rows; ids are the paths of the images in the table, or `train/row` and `test/row`.

    Raises:
        DataError: If a file is damaged, or it cannot be told which column is what.
    """
    if path.is_dir():
        splits = _by_split(path)
    else:
        splits = {"train": [path]}
        beside = test_beside(path)
        if beside is not None and request.labelled:
            splits["test"] = [beside]
    return tables_source({split: _Files(files) for split, files in splits.items()}, faults, request)


def is_folder_of_shards(path: Path) -> bool:
    """Whether a folder, or its folder `data`, holds Parquet files, and neither other folders nor images."""
    return bool(_shards(path))


def _shards(path: Path) -> list[Path]:
    entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    others = [entry for entry in entries if entry.is_dir() and entry.name != "data"]
    if others or any(entry.name in _NO_DATA or has_image_suffix(entry.name) for entry in entries):
        return []
    for folder in (path, path / "data"):
        found = sorted(file for file in folder.glob("*.parquet") if file.is_file() and not file.name.startswith("."))
        if found:
            return found
    return []


def _by_split(path: Path) -> dict[str, list[Path]]:
    splits: dict[str, list[Path]] = {}
    for file in _shards(path):
        splits.setdefault(role_within(file.stem) or "train", []).append(file)
    validation = splits.pop("val", None)
    if validation and "test" not in splits:
        splits["test"] = validation
    return splits


class _Files:
    """The files of one split."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files
        self.folder, self.where = files[0].parent, one_line(str(files[0] if len(files) == 1 else files[0].parent))
        self.tables = [_opened(file) for file in files]
        self.schema: pa.Schema = self.tables[0].schema_arrow
        for file, table in zip(files, self.tables, strict=True):
            if not table.schema_arrow.equals(self.schema):
                raise DataError(f"{file} has other columns than {files[0].name}; give both the same columns")
        groups = [(table, place) for table in self.tables for place in range(table.metadata.num_row_groups)]
        self._groups = groups
        self._starts = [0, *accumulate(table.metadata.row_group(place).num_rows for table, place in groups)]
        self._kept: dict[tuple[str, int], Any] = {}
        self._lock = Lock()

    @property
    def n_rows(self) -> int:
        """Of all files."""
        return int(self._starts[-1])

    @cached_property
    def identity(self) -> str:
        """Names, sizes and times of the files."""
        stats = [(file, file.stat()) for file in self.files]
        return "\0".join(f"{os.path.realpath(file)} {stat.st_size} {stat.st_mtime_ns}" for file, stat in stats)

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Some columns, whole."""
        try:
            return pa.concat_tables([table.read(columns=list(columns), use_threads=False) for table in self.tables])
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.where} is damaged ({one_line(str(error))[:200]}); get it again") from error

    def cell(self, column: str, row: int) -> Any:
        """One cell; the groups of rows that were asked for last stay decoded."""
        place = bisect_right(self._starts, row) - 1
        with self._lock:
            group = self._kept.get((column, place))
            if group is None:
                while len(self._kept) >= _GROUPS_IN_MEMORY:
                    del self._kept[next(iter(self._kept))]
                table, number = self._groups[place]
                group = table.read_row_group(number, columns=[column], use_threads=False).column(0)
                self._kept[column, place] = group
        return group[row - self._starts[place]].as_py()


def _opened(file: Path) -> pq.ParquetFile:
    """The file, mapped into memory: no thread of Arrow holds an object of Python.

    Raises:
        DataError: If it is damaged, or claims more than its size can hold.
    """
    try:
        with regular_name(file) as name:
            table = pq.ParquetFile(pa.memory_map(name), pre_buffer=False)
        about, size = table.metadata, file.stat().st_size
        groups = [about.row_group(place) for place in range(about.num_row_groups)]
        unpacked = sum(group.total_byte_size for group in groups)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{file} is not a readable Parquet file ({one_line(str(error))[:200]})") from error
    if any(group.total_byte_size < 0 or group.num_rows < 0 for group in groups) or (
        unpacked > _HARMLESS_BYTES and unpacked > _MOST_RATIO * size
    ):
        raise DataError(f"{file} claims {unpacked} bytes in {size}, as a decompression bomb does; write it again")
    return table


def write(path: Path, train: Samples, test: Samples | None) -> Written:
    """Write `NAME_TRAIN` and `NAME_TEST`, or one file; images as PNG, classes as `datasets` declares them.

    Raises:
        DataError: If a file exists, or these are images of floats.
    """
    train_path, test_path = written_pair(path, with_test=test is not None)
    ids = _write_split(train_path, train, "train")
    test_ids = _write_split(test_path, test, "test") if test is not None and test_path is not None else None
    return Written(train_path, ids, test_ids)


def _write_split(path: Path, samples: Samples, split: str) -> StrArray:
    names, schema = row_names(samples, split), schema_of(samples)
    with complete_or_absent(path) as temporary, pq.ParquetWriter(str(temporary), schema) as writer:
        for table in tables_of(samples, names, schema):
            writer.write_table(table)
    return names


def tables_of(samples: Samples, names: StrArray, schema: pa.Schema) -> Iterator[pa.Table]:
    """The samples as tables of a few hundred rows each."""
    cells: Iterator[Any]
    if samples.kind == "image":
        cells = ({"bytes": data, "path": name} for data, name in zip(pngs(samples), names.tolist(), strict=True))
    else:
        cells = (series.tolist() for batch in batches(samples) for series in batch)
    for start in range(0, len(samples), _ROW_GROUP):
        labels = samples.labels[start : start + _ROW_GROUP]
        inputs = [next(cells) for _ in range(len(labels))]
        yield pa.table([pa.array(inputs, schema.field(0).type), pa.array(labels)], schema=schema)
