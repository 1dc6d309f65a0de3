"""Data sets that the library `datasets` saved to disk: a folder, or one folder for each split, of Arrow files.

They are mapped into memory and read by pyarrow alone. Nothing in them is run.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from antibackdoor.data.options import Request
from antibackdoor.data.output import complete_or_absent
from antibackdoor.data.parquet_file import tables_of
from antibackdoor.data.regular_files import read_regular, regular_name
from antibackdoor.data.samples import Samples
from antibackdoor.data.source import Faults, Source, Written, one_line
from antibackdoor.data.split_names import role
from antibackdoor.data.table_source import tables_source
from antibackdoor.data.written_rows import row_names, schema_of
from antibackdoor.errors import DataError

SUFFIXES: tuple[str, ...] = ()  # a folder
_STATE, _SPLITS, _INFO = "state.json", "dataset_dict.json", "dataset_info.json"
_FILE = "data-00000-of-00001.arrow"
_JSON_BYTES = 64 * 2**20  # names of a hundred thousand classes, with room to spare


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder is what `save_to_disk` writes."""
    return (path / _SPLITS).is_file() or ((path / _STATE).is_file() and (path / _INFO).is_file())


def open_source(path: Path, faults: Faults, request: Request) -> Source:
    """List the rows; ids are the paths of the images in the table, or `train/row` and `test/row`.

    Raises:
        DataError: If a file is missing or damaged, or it cannot be told which column is what.
    """
    folders = {"train": path}
    if (path / _SPLITS).is_file():
        names = _json(path / _SPLITS).get("splits")
        if not isinstance(names, list) or not all(isinstance(name, str) and _is_plain(name) for name in names):
            raise DataError(f"{path / _SPLITS} names no splits; save the data set again")
        folders = {role(name) or name: path / name for name in reversed(names)}
        held = folders.get("test", folders.get("val"))
        if "train" not in folders and held is None:
            raise DataError(f"{path} has the splits {', '.join(map(one_line, names))}; one must be called train")
        folders = {"train": folders.get("train"), "test": held}  # type: ignore[dict-item]
    shards = {split: _Mapped(folder) for split, folder in folders.items() if folder is not None}
    if not request.labelled:
        shards = {"train": shards.get("test") or shards["train"]}
    features = _json(next(iter(shards.values())).folder / _INFO).get("features")
    return tables_source(shards, faults, request, features if isinstance(features, dict) else None)


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_regular(file, most=_JSON_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read ({one_line(str(error))[:200]}); save the data set again") from error
    if not isinstance(found, dict):
        raise DataError(f"{file} is not what `datasets` writes; save the data set again")
    return found


def _is_plain(name: str) -> bool:
    return bool(name) and not {*name} & {*"/\\:\0"} and name not in (".", "..")


class _Mapped:
    """The Arrow files of one split."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.where = folder, one_line(str(folder))
        state = _json(folder / _STATE)
        try:
            names = [str(file["filename"]) for file in state["_data_files"]]
        except (KeyError, TypeError) as error:
            raise DataError(f"{folder / _STATE} names no files; save the data set again") from error
        if not names or not all(map(_is_plain, names)):
            raise DataError(f"{folder / _STATE} names files outside of its folder, or none; save the data set again")
        self.files = [folder / name for name in names]
        tables = [_mapped(file) for file in self.files]
        self.schema: pa.Schema = tables[0].schema
        if not all(table.schema.equals(self.schema) for table in tables):
            raise DataError(f"the files of {folder} differ in their columns; save the data set again")
        self.table = pa.concat_tables(tables)
        self._starts = [0, *accumulate(len(batch) for batch in self.table.to_batches())]
        self._batches = self.table.to_batches()

    @property
    def n_rows(self) -> int:
        """Of all files."""
        return int(self.table.num_rows)

    @cached_property
    def identity(self) -> str:
        """Names, sizes and times of the files."""
        stats = [(file, file.stat()) for file in self.files]
        return "\0".join(f"{os.path.realpath(file)} {stat.st_size} {stat.st_mtime_ns}" for file, stat in stats)

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Some columns, whole."""
        parts = {name: name.split(".") for name in columns}
        found = {}
        for name, (first, *rest) in parts.items():
            column = self.table.column(first)
            found[name] = pa.chunked_array([pc.struct_field(part, rest) for part in column.chunks]) if rest else column
        return pa.table(found)

    def cell(self, column: str, row: int) -> Any:
        """One cell."""
        place = bisect_right(self._starts, row) - 1
        return self._batches[place].column(column)[row - self._starts[place]].as_py()


def _mapped(file: Path) -> pa.Table:
    try:
        with regular_name(file) as name:
            table = pa.ipc.open_stream(pa.memory_map(name)).read_all()
        table.validate(full=True)  # offsets that lead out of the file would be followed
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{file} is not a readable Arrow file ({one_line(str(error))[:200]})") from error
    return table


def write(path: Path, train: Samples, test: Samples | None) -> Written:
    """Write what `datasets.load_from_disk` reads; the folder appears only once it is complete.

    Raises:
        DataError: If `path` exists, or these are images of floats.
    """
    splits = {"train": train} if test is None else {"train": train, "test": test}
    with complete_or_absent(path) as temporary:
        temporary.mkdir()
        for split, samples in splits.items():
            folder = temporary if test is None else temporary / split
            folder.mkdir(exist_ok=True)
            schema = schema_of(samples)
            with pa.OSFile(str(folder / _FILE), "wb") as sink, pa.ipc.new_stream(sink, schema) as stream:
                for table in tables_of(samples, row_names(samples, split), schema):
                    stream.write_table(table)
            features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
            (folder / _INFO).write_text(json.dumps({"features": features}), encoding="utf-8")
            state: dict[str, Any] = {
                "_data_files": [{"filename": _FILE}],
                "_fingerprint": "0" * 16,
                "_format_columns": None,
            }
            state |= {"_format_kwargs": {}, "_format_type": None, "_output_all_columns": False, "_split": split}
            (folder / _STATE).write_text(json.dumps(state), encoding="utf-8")
        if test is not None:
            (temporary / _SPLITS).write_text(json.dumps({"splits": [*splits]}), encoding="utf-8")
    return Written(path, row_names(train, "train"), None if test is None else row_names(test, "test"))
