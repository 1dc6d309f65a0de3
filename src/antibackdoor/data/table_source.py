"""Splits that lie in Arrow tables, whatever files these are in: images or series, and their classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

import pyarrow as pa

from antibackdoor.data.arrow_columns import ArrowColumns, class_cells, features_of, find_arrow_columns, series_cells
from antibackdoor.data.given_arrays import Arrays
from antibackdoor.data.image_files import ImageFiles
from antibackdoor.data.labels import class_texts
from antibackdoor.data.options import Axes, Request
from antibackdoor.data.regular_files import open_regular
from antibackdoor.data.series import Gaps
from antibackdoor.data.source import Faults, Listed, Source
from antibackdoor.data.written_rows import AXES
from antibackdoor.errors import DataError


class Shards(Protocol):
    """The tables of one split, one after the other."""

    @property
    def schema(self) -> pa.Schema:
        """That of all of them."""
        ...

    @property
    def n_rows(self) -> int:
        """Of all of them."""
        ...

    @property
    def identity(self) -> str:
        """Changes whenever a value could."""
        ...

    @property
    def where(self) -> str:
        """What to call them in messages."""
        ...

    @property
    def folder(self) -> Path:
        """Where relative paths start."""
        ...

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Some columns, whole; `a.b` is a part of the column a."""
        ...

    def cell(self, column: str, row: int) -> Any:
        """One cell, as Python has it; called by several threads."""
        ...


def tables_source(
    splits: Mapping[str, Shards], faults: Faults, request: Request, features: Mapping[str, Any] | None = None
) -> Source:
    """A source from tables, all of one layout.

    Args:
        splits: "train" and, if there is one, "test".
        faults: Is told of series that cannot be used.
        request: Names columns where the user says so.
        features: What the library `datasets` says of the columns, where that stands beside the tables.

    Raises:
        DataError: If it cannot be told which column is what, or a label is missing.
    """
    options = request.all_options
    arrays = Arrays(options.axes or _declared(splits), Gaps(options.missing), faults)
    listed: dict[str, Listed] = {}
    names: tuple[str, ...] | None = None
    note = ""
    for split, shards in splits.items():
        columns = find_arrow_columns(
            shards.schema, features or features_of(shards.schema), shards.where, label=options.label_column,
            id=options.id_column, labelled=request.labelled,
        )  # fmt: skip
        listed[split] = _listed(split, shards, columns, arrays, request.labelled)
        names, note = names or columns.class_names, note or columns.note
    return Source(listed, names if request.labelled else None, {"table": note, **arrays.gaps.notes()})


def _declared(splits: Mapping[str, Shards]) -> Axes:
    """The order of axes that a table says itself, as `write` puts it there."""
    said = {bytes((shards.schema.metadata or {}).get(AXES.encode(), b"")) for shards in splits.values()}
    return "NCT" if said == {b"NCT"} else ""


def _listed(split: str, shards: Shards, columns: ArrowColumns, arrays: Arrays, labelled: bool) -> Listed:
    if not shards.n_rows:
        raise DataError(f"{shards.where} holds no rows")
    classes: tuple[str, ...] = ()
    if labelled:
        cells = class_cells(shards.read([columns.label]), columns)
        classes = class_texts(cells, columns.class_names, f"{shards.where}, column {columns.label!r}, row ")
    ids = _ids(split, shards, columns)
    if columns.is_image:
        fetch = _fetch(shards, columns.inputs[0])
        rows = tuple(map(str, range(len(ids))))
        # Sizes are not known before the cells are read; that nothing is empty is found out then.
        return Listed(ids, classes, ImageFiles(shards.where, shards.identity, ids, rows, ("1",) * len(ids), fetch))
    content, kept = arrays.content(series_cells(shards.read(columns.inputs), columns), ids, shards.where)
    chosen = kept.tolist()
    return Listed(tuple(ids[i] for i in chosen), tuple(classes[i] for i in chosen) if classes else (), content)


def _ids(split: str, shards: Shards, columns: ArrowColumns) -> tuple[str, ...]:
    """As a column says, or by the paths of images where all have one that tells nothing of a machine; else by row."""
    found: list[Any] = []
    if columns.id:
        found = shards.read([columns.id]).column(0).to_pylist()
        if None in found:
            raise DataError(f"{shards.where} has rows without an id in the column {columns.id!r}; fill them in")
    elif columns.is_image and pa.types.is_struct(shards.schema.field(columns.inputs[0]).type):
        part = shards.read([f"{columns.inputs[0]}.path"]).column(0)
        found = [cell["path"] if isinstance(cell, dict) else cell for cell in part.to_pylist()]
        if not all(isinstance(path, str) and _is_inside(path) for path in found) or len({*found}) < len(found):
            found = []
    return tuple(map(str, found)) if found else tuple(f"{split}/{row}" for row in range(shards.n_rows))


def _is_inside(path: str) -> bool:
    parts = PurePosixPath(path.replace("\\", "/")).parts
    return bool(parts) and not path.startswith(("/", "\\")) and ".." not in parts and ":" not in parts[0]


def _fetch(shards: Shards, column: str) -> Callable[[str], BinaryIO]:
    def fetch(key: str) -> BinaryIO:
        cell = shards.cell(column, int(key))
        if isinstance(cell, dict):
            path, cell = cell.get("path"), cell.get("bytes")
            if cell is None and path:
                if not _is_inside(path):
                    raise ValueError("is only a path that leads out of the data")
                return open(open_regular(shards.folder / path), "rb")  # noqa: PTH123
        if not isinstance(cell, bytes):
            raise ValueError("holds no image")
        return BytesIO(cell)

    return fetch
