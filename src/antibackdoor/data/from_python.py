"""Data that a caller has in Python: arrays, tables of pandas, data sets of torch and of Hugging Face.

Each function gives what `read` gives for files. None of these libraries is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from antibackdoor.data.columns import LABEL_TITLES
from antibackdoor.data.encoded import encoded_images, is_encoded
from antibackdoor.data.given_arrays import Arrays
from antibackdoor.data.labels import class_texts
from antibackdoor.data.options import Axes, Missing, ReadOptions
from antibackdoor.data.reading import DataSet, prepared
from antibackdoor.data.series import Gaps
from antibackdoor.data.source import Faults, Listed, OnError, Source
from antibackdoor.errors import DataError


@dataclass(frozen=True)
class Split:
    """What is given of one split.

    Attributes:
        name: "train" or "test".
        inputs: An array, or one item a sample.
        labels: One a sample.
        ids: What the samples are called; `train/0`, `train/1`, ... if None.
        x: What the caller knows the inputs as.
        y: What the caller knows the labels as.
    """

    name: str
    inputs: Any
    labels: Any
    ids: Sequence[Any] | None = None
    x: str = "X"
    y: str = "y"


def from_arrays(
    X: Any,
    y: Any,
    *,
    ids: Sequence[Any] | None = None,
    class_names: Sequence[str] | None = None,
    X_test: Any = None,
    y_test: Any = None,
    test_fraction: float = 0.2,
    axes: Axes = "",
    missing: Missing = "refuse",
    image_size: int | tuple[int, int] | None = None,
    on_error: OnError = "raise",
    cache: Path | None = None,
    seed: int = 0,
) -> DataSet:
    """A data set from arrays, or from lists of arrays, paths, encoded bytes or Pillow images.

    Args:
        X: Series `(N, T)` or `(N, C, T)`, images `(N, H, W)`, `(N, H, W, C)` or `(N, C, H, W)` (uint8, or floats in
            [0, 1]): an array, a tensor, or a list whose samples may differ in size. Also a list of images.
        y: One class a sample, `(N,)` whole numbers or strings.
        ids: A unique name for each sample; `train/0`, `train/1`, ... by default.
        class_names: The classes in label order. By default those in `y`, numbers by value, strings by alphabet.
        X_test: Test samples, likewise.
        y_test: Their classes.
        test_fraction: Part of each class that is held out if there are no test samples, in [0, 1).
        axes: Order of the axes where the shape does not tell it, such as `"NTC"` for samples, steps, channels.
        missing: Whether missing values inside of a series are refused, or interpolated between their neighbors.
        image_size: Side, or `(height, width)`, in pixels, 8..1024; as for `read` by default.
        on_error: Whether a sample that cannot be used is an error or is left out and listed in `skipped`.
        cache: Folder for decoded images, where images are given encoded.
        seed: Chooses the held-out samples.

    Raises:
        DataError: If the data cannot be used; one line that says which argument, and what to do.
        ConfigError: If `test_fraction`, `axes` or `image_size` is out of range.

    >>> data = from_arrays([[0.0, 1.0], [1.0, 0.0], [0.5, 1.0], [1.0, 0.5]], ["up", "down", "up", "down"])
    >>> data.train.shape, data.train.class_names.tolist(), len(data.test)
    ((1, 2), ['down', 'up'], 2)
    """
    if (X_test is None) != (y_test is None):
        lacking = "y_test" if y_test is None else "X_test"
        raise DataError(f"{lacking} is missing; give X_test and y_test, or neither")
    splits = [Split("train", X, y, ids)]
    if X_test is not None:
        splits.append(Split("test", X_test, y_test, None, "X_test", "y_test"))
    return data_set_of(
        splits, class_names, "arrays", test_fraction=test_fraction, axes=axes, missing=missing, image_size=image_size,
        on_error=on_error, cache=cache, seed=seed,
    )  # fmt: skip


def from_dataframe(
    frame: Any,
    *,
    label: str = "",
    inputs: str | Sequence[str] = "",
    id: str = "",
    test: Any = None,
    folder: str | Path | None = None,
    test_fraction: float = 0.2,
    axes: Axes = "",
    missing: Missing = "refuse",
    image_size: int | tuple[int, int] | None = None,
    on_error: OnError = "raise",
    cache: Path | None = None,
    seed: int = 0,
) -> DataSet:
    """A data set from a table of pandas.

    Args:
        frame: A `pandas.DataFrame`, one sample a row.
        label: Title of the column with the class; by default one called label, class, target or y.
        inputs: The column of paths, images or arrays, or the columns of a series, one a time step, in this order. By
            default all other columns.
        id: Title of a column that names the samples; by default the index, if it is not just 0, 1, 2, ...
        test: A table with the test samples, with the same columns.
        folder: Where relative paths start; by default the working directory.
        test_fraction: As in `from_arrays`; also `axes`, `missing`, `image_size`, `on_error`, `cache` and `seed`.

    Raises:
        DataError: If the data cannot be used, or a column is not there.
        ConfigError: If `test_fraction`, `axes` or `image_size` is out of range.
    """
    _check_frame(frame, "frame")
    label = label or _label_column([*frame.columns])
    names = _categories(frame[label]) if label in frame.columns else None
    splits = [_of_frame(frame, "train", label, inputs, id)]
    if test is not None:
        _check_frame(test, "test")
        splits.append(_of_frame(test, "test", label, inputs, id))
    return data_set_of(
        splits, names, "dataframe", folder=None if folder is None else Path(folder), test_fraction=test_fraction,
        axes=axes, missing=missing, image_size=image_size, on_error=on_error, cache=cache, seed=seed,
    )  # fmt: skip


def from_torch(
    dataset: Any,
    *,
    test: Any = None,
    ids: Sequence[Any] | None = None,
    class_names: Sequence[str] | None = None,
    test_fraction: float = 0.2,
    axes: Axes = "",
    missing: Missing = "refuse",
    image_size: int | tuple[int, int] | None = None,
    on_error: OnError = "raise",
    cache: Path | None = None,
    seed: int = 0,
) -> DataSet:
    """A data set from a map-style `torch.utils.data.Dataset` of pairs of input and label.

    Every sample is read once, so a random augmentation of the data set would be frozen: leave it out, and leave out a
    normalization as well, since the trained model holds its own.

    Args:
        dataset: It has a length, and `dataset[i]` is `(input, label)`: a tensor, an array or a Pillow image, and a
            number or a string.
        test: Another one with the test samples.
        ids: A unique name for each sample; `train/0`, `train/1`, ... by default: the numbers are those of `dataset`.
        class_names: The classes in label order; by default `dataset.classes`, if it has that.
        test_fraction: As in `from_arrays`; also `axes`, `missing`, `image_size`, `on_error`, `cache` and `seed`.

    Raises:
        DataError: If the data cannot be used.
        ConfigError: If `test_fraction`, `axes` or `image_size` is out of range.
    """
    splits = [replace(_of_torch(dataset, "train", "dataset"), ids=ids)]
    if test is not None:
        splits.append(_of_torch(test, "test", "test"))
    return data_set_of(
        splits, class_names or _classes_of(dataset, splits[0].labels), "torch", test_fraction=test_fraction, axes=axes,
        missing=missing, image_size=image_size, on_error=on_error, cache=cache, seed=seed,
    )  # fmt: skip


def data_set_of(
    splits: Sequence[Split],
    class_names: Sequence[str] | None,
    format: str,
    *,
    folder: Path | None = None,
    test_fraction: float,
    axes: Axes,
    missing: Missing,
    image_size: int | tuple[int, int] | None,
    on_error: OnError,
    cache: Path | None,
    seed: int,
) -> DataSet:
    """A data set from its splits; the arguments are those of `from_arrays`."""
    options = ReadOptions(axes=axes, missing=missing)
    faults = Faults(on_error)
    arrays = Arrays(axes, Gaps(missing), faults)
    listed = {split.name: _listed(split, class_names, arrays, folder) for split in splits}
    notes = {**({"axes": arrays.note} if arrays.note else {}), **arrays.gaps.notes()}
    names = None if class_names is None else tuple(str(name) for name in class_names)
    data = prepared(
        Source(listed, names, notes), faults, format, splits[0].x, where_test=splits[-1].x,
        test_fraction=test_fraction, image_size=image_size, cache=cache, seed=seed,
    )  # fmt: skip
    row_of = {text: row for row, text in enumerate(_ids(splits[0], len(splits[0].inputs)))}
    rows = np.array([row_of[text] for text in data.train.ids.tolist()], dtype=np.int64)
    return replace(data, options=options, rows=rows, n_given=len(splits[0].inputs))


def _listed(split: Split, class_names: Sequence[str] | None, arrays: Arrays, folder: Path | None) -> Listed:
    inputs = split.inputs
    if not hasattr(inputs, "__len__") or isinstance(inputs, str | bytes):
        raise DataError(
            f"{split.x} is of type {type(inputs).__name__}; give an array, or a list with one item per sample"
        )
    classes = class_texts(split.labels, class_names, split.y)
    if len(classes) != len(inputs):
        raise DataError(f"{split.x} has {len(inputs)} samples, {split.y} has {len(classes)} labels; give one each")
    if not len(inputs):
        raise DataError(f"{split.x} holds no samples")
    ids = _ids(split, len(inputs))
    if is_encoded(inputs[0]):
        return Listed(ids, classes, encoded_images(inputs, ids, split.x, folder))
    content, kept = arrays.content(inputs, ids, split.x)
    rows = kept.tolist()
    return Listed(tuple(ids[row] for row in rows), tuple(classes[row] for row in rows), content)


def _ids(split: Split, n: int) -> tuple[str, ...]:
    if split.ids is None:
        return tuple(f"{split.name}/{row}" for row in range(n))
    if len(split.ids) != n:
        raise DataError(f"ids has {len(split.ids)} entries, {split.x} has {n} samples; give one per sample")
    return tuple(str(name) for name in split.ids)


# --------------------------------------------------------------------------- pandas


def _check_frame(frame: Any, name: str) -> None:
    if not (hasattr(frame, "columns") and hasattr(frame, "iloc")):
        raise DataError(f"{name} is of type {type(frame).__name__}; give a pandas.DataFrame")
    twice = [str(title) for title in frame.columns[frame.columns.duplicated()]]
    if twice:
        raise DataError(f"{name} has two columns {twice[0]!r}; rename one of them")


def _label_column(titles: Sequence[Any]) -> str:
    found = [title for title in titles if str(title).strip().lower() in LABEL_TITLES]
    if len(found) != 1:
        why = "several columns" if found else "no column"
        raise DataError(f"{why} of frame may hold the class ({_some(found or titles)}); say which one with label=...")
    return found[0]  # type: ignore[no-any-return]


def _categories(column: Any) -> list[str] | None:
    """The categories of a categorical column, in their order, as far as it uses them."""
    if not hasattr(column, "cat"):
        return None
    return [str(name) for name in column.cat.remove_unused_categories().cat.categories]


def _of_frame(frame: Any, split: str, label: str, inputs: str | Sequence[str], id: str) -> Split:
    titles = [*frame.columns]
    chosen = [inputs] if isinstance(inputs, str) and inputs else [*inputs]
    for title in (label, *([id] if id else []), *chosen):
        if title not in titles:
            raise DataError(f"there is no column {title!r} in frame; it has {_some(titles)}")
    columns = chosen or [title for title in titles if title not in (label, id)]
    if not columns:
        raise DataError("frame has no column besides the class; name the one with the inputs with inputs=...")
    kinds = {title: frame[title].dtype for title in columns}
    numeric = [title for title, kind in kinds.items() if getattr(kind, "kind", "O") in "iufb"]
    if len(columns) > 1 and len(numeric) < len(columns):
        odd = [title for title in columns if title not in numeric]
        raise DataError(
            f"the columns {_some(odd)} of frame are not numeric; name the column of paths, images or arrays, or those "
            "of the series, with inputs=..."
        )
    if numeric:
        values: Any = frame[columns].to_numpy(dtype=np.float64, na_value=np.nan)
    else:
        values = frame[columns[0]].tolist()
    labels = frame[label].astype(object).tolist() if hasattr(frame[label], "cat") else frame[label].tolist()
    ids = frame[id].tolist() if id else _index_of(frame)
    where = "frame" if split == "train" else "test"
    return Split(split, values, labels, ids, where, f"{where}[{label!r}]")


def _index_of(frame: Any) -> list[Any] | None:
    index = frame.index
    plain = type(index).__name__ == "RangeIndex" or not index.is_unique
    return None if plain else ["/".join(map(str, one)) if isinstance(one, tuple) else one for one in index.tolist()]


def _some(titles: Sequence[Any]) -> str:
    return ", ".join(repr(str(title)[:30]) for title in titles[:5]) + (", ..." if len(titles) > 5 else "")


# --------------------------------------------------------------------------- torch


def _of_torch(dataset: Any, split: str, name: str) -> Split:
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise DataError(f"{name} is of type {type(dataset).__name__}; give a map-style Dataset (with len and an index)")
    inputs: list[Any] = []
    labels: list[Any] = []
    for row in range(len(dataset)):
        item = dataset[row]
        if not isinstance(item, tuple | list) or len(item) < 2:
            held = f"a dictionary of {_some([*item])}" if isinstance(item, Mapping) else f"a {type(item).__name__}"
            raise DataError(f"{name}[{row}] is {held}; expected a pair (input, label)")
        inputs.append(item[0])
        labels.append(item[1].item() if hasattr(item[1], "item") else item[1])
    return Split(split, inputs, labels, None, name, f"the labels of {name}")


def _classes_of(dataset: Any, labels: Sequence[Any]) -> list[str] | None:
    """`dataset.classes`, also of a subset's data set, where the labels are positions in it."""
    while hasattr(dataset, "dataset") and not hasattr(dataset, "classes"):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    if not isinstance(names, list | tuple) or not all(isinstance(label, int) for label in labels):
        return None
    return [str(name) for name in names] if all(0 <= label < len(names) for label in labels) else None
