"""Which column of an Arrow table holds what: the class, the image or the values of a series, the name of a sample.

Tables written by the library `datasets` say which columns are classes and images in their metadata. Other tables are
read by the titles and types of their columns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from antibackdoor.data.columns import LABEL_TITLES
from antibackdoor.data.source import one_line
from antibackdoor.errors import DataError

_ID_TITLES = frozenset({"id", "ids", "index", "idx", "uid", "sample_id", "__index_level_0__"})


@dataclass(frozen=True)
class ArrowColumns:
    """The layout of a table.

    Attributes:
        label: The column with the class; "" where none is needed and none is there.
        class_names: The names of the classes, where the table declares them.
        inputs: The column of images or of series, or the columns of a series, one a time step.
        is_image: Whether `inputs` is one column of images.
        id: The column that names the samples, or "".
        note: What was found, for the user.
    """

    label: str
    class_names: tuple[str, ...] | None
    inputs: tuple[str, ...]
    is_image: bool
    id: str
    note: str


def features_of(schema: pa.Schema) -> dict[str, Any]:
    """What the library `datasets` says of the columns; empty where it did not write the table."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return dict(about) if isinstance(about, Mapping) else {}


def find_arrow_columns(
    schema: pa.Schema,
    features: Mapping[str, Any],
    where: str,
    *,
    label: str = "",
    id: str = "",
    labelled: bool = True,
) -> ArrowColumns:
    """The layout of a table.

    Args:
        schema: Of the table.
        features: What `datasets` says of the columns.
        where: What to call the table in messages.
        label: The column with the class, as the user says; empty to find it.
        id: The column that names the samples, likewise; none by default.
        labelled: Whether classes are needed.

    Raises:
        DataError: If it cannot be told which column is what.
    """
    names = [str(name) for name in schema.names]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{where} has two columns {one_line(twice)!r}; rename one of them")
    for option, flag in ((label, "--label-column"), (id, "--id-column")):
        if option and option not in names:
            raise DataError(f"{where} has no column {one_line(option)!r} for {flag}; it has {_some(names)}")
    label = label or _label(names, features, where, labelled)
    left = [name for name in names if name not in (label, id) and name.strip().lower() not in _ID_TITLES]
    images = [name for name in left if _is_image(schema.field(name).type, features.get(name))]
    lists = [name for name in left if _is_series(schema.field(name).type)]
    scalars = [name for name in left if _is_number(schema.field(name).type)]
    inputs, is_image = _inputs(images, lists, scalars, where, names)
    unused = [name for name in names if name not in (label, id, *inputs)]
    said = [f"class in {one_line(label)!r}"] if label else []
    shown = one_line(inputs[0]) if len(inputs) == 1 else f"{one_line(inputs[0])} ... {one_line(inputs[-1])}"
    said.append(f"{'images' if is_image else 'values'} in {shown!r}")
    said += [f"left out {_some(unused)}"] if unused else []
    return ArrowColumns(label, _class_names(features.get(label)), inputs, is_image, id, "; ".join(said))


def _label(names: Sequence[str], features: Mapping[str, Any], where: str, labelled: bool) -> str:
    declared = [name for name in names if _class_names(features.get(name)) is not None]
    titled = [name for name in names if name.strip().lower() in LABEL_TITLES]
    for found in (declared, titled):
        if len(found) == 1:
            return found[0]
    if not labelled and not (declared or titled):
        return ""
    both = declared or titled
    why = (
        f"has several columns that may hold the class ({_some(both)})"
        if both
        else f"has no class column ({_some(names)})"
    )
    raise DataError(f"{where} {why}: say which one with --label-column")


def _class_names(feature: Any) -> tuple[str, ...] | None:
    if isinstance(feature, Mapping) and feature.get("_type") == "ClassLabel":
        names = feature.get("names")
        if isinstance(names, list) and all(isinstance(name, str) for name in names) and len({*names}) == len(names):
            return tuple(names)
    return None


def _inputs(
    images: list[str], lists: list[str], scalars: list[str], where: str, names: Sequence[str]
) -> tuple[tuple[str, ...], bool]:
    for found, is_image in ((images, True), (lists, False)):
        if len(found) == 1:
            return (found[0],), is_image
        if found:
            raise DataError(
                f"{where} has several columns that may be the inputs ({_some(found)}); keep only one of them"
            )
    if len(scalars) > 1:
        return tuple(scalars), False
    raise DataError(
        f"{where} has no column of images (bytes) or series (lists), and no columns of numbers; it has {_some(names)}"
    )


def _is_image(kind: pa.DataType, feature: Any) -> bool:
    if pa.types.is_struct(kind):
        return {kind.field(place).name for place in range(kind.num_fields)} >= {"bytes", "path"}
    is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return is_bytes or (isinstance(feature, Mapping) and feature.get("_type") == "Image")


def _is_series(kind: pa.DataType) -> bool:
    storage = getattr(kind, "storage_type", kind)
    if not (pa.types.is_list(storage) or pa.types.is_large_list(storage) or pa.types.is_fixed_size_list(storage)):
        return False
    return _is_number(storage.value_type) or _is_series(storage.value_type)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _some(names: Sequence[str]) -> str:
    return ", ".join(repr(one_line(name)[:30]) for name in names[:5]) + (", ..." if len(names) > 5 else "")


def class_cells(table: pa.Table, columns: ArrowColumns) -> list[Any]:
    """The label of each row: whole numbers, or texts."""
    column = table.column(columns.label)
    return [value for chunk in column.chunks for value in chunk.to_pylist()]


def series_cells(table: pa.Table, columns: ArrowColumns) -> Any:
    """The values of each row: an array `(N, T)`, or N arrays `(T,)` or `(C, T)`; missing ones are NaN."""
    if len(columns.inputs) > 1:
        parts = [np.asarray(table.column(name).to_numpy(), dtype=np.float64) for name in columns.inputs]
        return np.stack(parts, axis=1)
    column = table.column(columns.inputs[0])
    rows = [value for chunk in column.chunks for value in getattr(chunk, "storage", chunk).to_pylist()]
    return [np.array(_without_none(value), dtype=np.float64) for value in rows]


def _without_none(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_none(part) for part in value]
    return np.nan if value is None else value
