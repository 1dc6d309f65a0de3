"""Data sets of the library `datasets`, which is not imported here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from antibackdoor.data.arrow_columns import class_cells, features_of, find_arrow_columns, series_cells
from antibackdoor.data.from_python import Split, data_set_of
from antibackdoor.data.options import Axes, Missing
from antibackdoor.data.reading import DataSet
from antibackdoor.data.source import OnError
from antibackdoor.data.split_names import role
from antibackdoor.errors import DataError


def from_huggingface(
    dataset: Any,
    *,
    label: str = "",
    id: str = "",
    test: Any = None,
    test_fraction: float = 0.2,
    axes: Axes = "",
    missing: Missing = "refuse",
    image_size: int | tuple[int, int] | None = None,
    on_error: OnError = "raise",
    cache: Path | None = None,
    seed: int = 0,
) -> DataSet:
    """A data set from a `datasets.Dataset` or a `datasets.DatasetDict`.

    Args:
        dataset: With a column of images (`Image`), of series (lists of numbers), or one column a time step. Of a
            dictionary the splits train and test (or validation) are used.
        label: The column with the class; by default the one of type `ClassLabel`, or one called label, class or so.
        id: The column that names the samples; by default they are `train/0`, `train/1`, ...: the rows of `dataset`.
        test: A `datasets.Dataset` with the test samples.
        test_fraction: As in `from_arrays`; also `axes`, `missing`, `image_size`, `on_error`, `cache` and `seed`.

    Raises:
        DataError: If the data cannot be used, or it cannot be told which column is what.
        ConfigError: If `test_fraction`, `axes` or `image_size` is out of range.
    """
    if isinstance(dataset, Mapping):
        roles = {role(str(name)): name for name in reversed([*dataset])}
        if "train" not in roles:
            raise DataError(f"dataset has no split 'train' (it has {', '.join(map(str, dataset))}); give one of them")
        held = roles.get("test", roles.get("val"))
        test = dataset[held] if test is None and held is not None else test
        dataset = dataset[roles["train"]]
    train, names = _split(dataset, "train", "dataset", label, id)
    splits = [train] if test is None else [train, _split(test, "test", "test", label, id)[0]]
    return data_set_of(
        splits, names, "huggingface", test_fraction=test_fraction, axes=axes, missing=missing, image_size=image_size,
        on_error=on_error, cache=cache, seed=seed,
    )  # fmt: skip


def is_huggingface(data: Any) -> bool:
    """Whether an object is a data set, or a dictionary of such, of the library `datasets`."""
    return type(data).__module__.partition(".")[0] == "datasets"


def _split(dataset: Any, split: str, name: str, label: str, id: str) -> tuple[Split, tuple[str, ...] | None]:
    if not hasattr(dataset, "with_format") or not hasattr(dataset, "__len__"):
        raise DataError(f"{name} is of type {type(dataset).__name__}; give a datasets.Dataset that is not a stream")
    if not len(dataset):
        raise DataError(f"{name} holds no samples")
    table: pa.Table = dataset.with_format("arrow")[:]
    features = dataset.features.to_dict() if hasattr(dataset.features, "to_dict") else features_of(table.schema)
    columns = find_arrow_columns(table.schema, features, name, label=label, id=id)
    if columns.is_image:
        inputs: Any = [value for chunk in table.column(columns.inputs[0]).chunks for value in chunk.to_pylist()]
    else:
        inputs = series_cells(table, columns)
    ids = table.column(id).to_pylist() if id else None
    labels = class_cells(table, columns)
    return Split(split, inputs, labels, ids, name, f"{name}[{columns.label!r}]"), columns.class_names
