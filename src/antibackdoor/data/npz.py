"""Arrays in an `.npz`: `x_train`, `y_train`, and optionally `x_test`, `y_test` and `class_names`.

What `x` holds is told by its type and number of axes:

| type  | axes                                            | read as                                    |
| ----- | ----------------------------------------------- | ------------------------------------------ |
| uint8 | `[N,H,W]`, `[N,H,W,1]`, `[N,H,W,3]`             | images                                     |
| float | `[N,H,W,1]`, `[N,H,W,3]`                        | images with values in [0, 1]               |
| float | `[N,C,T]`, `[N,T]`                              | series                                     |

With four axes `[N,1,H,W]` and `[N,3,H,W]` are recognized too, where the last axis is neither 1 nor 3. Labels
are whole numbers of any range, or strings; with `class_names` they must be numbers in 0..K-1. With
`lengths_train` (and `lengths_test`), series are padded behind these lengths: each is resampled from its true
length to the longest true length by linear interpolation. Python objects are never loaded.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from antibackdoor.data.images import fit
from antibackdoor.data.npy_stream import StoredArray, stored_arrays, write_array
from antibackdoor.data.options import Request
from antibackdoor.data.output import batches, complete_or_absent
from antibackdoor.data.samples import InputArray, IntArray, Samples, StrArray
from antibackdoor.data.series import SeriesArray, SeriesList
from antibackdoor.data.source import Block, Faults, Kind, Listed, Source, Survey, Written
from antibackdoor.errors import DataError

_Axes = Literal["NHW", "NHWC", "NCHW"]
SUFFIXES = (".npz",)


@dataclass(frozen=True, eq=False)
class ImageArray:
    """Some rows of an array of images, read from the file a block at a time."""

    array: StoredArray
    axes: _Axes
    rows: IntArray  # ascending
    split: str

    @property
    def kind(self) -> Kind:
        """These are images."""
        return "image"

    @property
    def dtype(self) -> type[Any]:
        """Bytes stay bytes; any float becomes single precision."""
        return np.uint8 if self.array.dtype == np.uint8 else np.float32

    @property
    def in_memory(self) -> bool:
        """They stay in the file."""
        return False

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, rows: IntArray) -> ImageArray:
        """Only these rows."""
        return replace(self, rows=self.rows[rows])

    def fingerprint(self) -> str:
        """The file, the checksum of the array and the chosen rows."""
        array = self.array
        rows = hashlib.sha256(self.rows.tobytes()).hexdigest()
        status = array.path.stat()
        identity = f"{array.path.resolve()} {status.st_size} {status.st_mtime_ns} {array.name} {array.checksum}"
        return f"{identity} {array.shape} {array.dtype} {array.fortran} {self.axes} {rows}"

    def survey(self, progress: bool) -> Survey:
        """One size for all."""
        shape = self.array.shape
        height, width = shape[2:4] if self.axes == "NCHW" else shape[1:3]
        channels = {"NHW": 1, "NHWC": shape[-1], "NCHW": shape[1]}[self.axes]
        return Survey(Counter({(height, width): len(self)}), channels)

    def blocks(self, shape: tuple[int, ...], faults: Faults) -> Iterator[Block]:
        """The chosen rows in order."""
        start = 0
        for values in self.array.read_blocks():
            first, last = np.searchsorted(self.rows, (start, start + len(values)))
            if last > first:
                images = self._channels_first(values[self.rows[first:last] - start])
                positions = np.arange(first, last, dtype=np.int64)
                if images.dtype != np.uint8:
                    positions, images = self._checked(positions, images, faults)
                yield Block(positions, fit(images, shape))
            start += len(values)

    def _channels_first(self, values: NDArray[Any]) -> InputArray:
        if self.axes == "NHW":
            values = values[:, None]
        elif self.axes == "NHWC":
            values = values.transpose(0, 3, 1, 2)
        return values.astype(self.dtype)

    def _checked(self, positions: IntArray, images: InputArray, faults: Faults) -> tuple[IntArray, InputArray]:
        flat = images.reshape(len(images), -1)
        good = ((flat >= 0) & (flat <= 1)).all(axis=1)  # NaN compares as false
        for row in self.rows[positions[~good]].tolist():
            faults.report(
                f"{self.split}/{row}",
                f"row {row} of {self.array.where} has values outside of 0..1 or NaN "
                f"(images of floats are in [0, 1]: divide by 255, or save them as uint8)",
            )
        return positions[good], images[good]


def open_source(path: Path, faults: Faults, request: Request) -> Source:
    """Read labels, and series; images stay in the file. Ids are `train/row` and `test/row`, counted from 0.

    With `labelled=False` the inputs are `x_test`, or else `x_train`, or else `x`.

    Raises:
        DataError: If an array is missing, damaged, of the wrong type or shape, or holds Python objects.
    """
    labelled = request.labelled
    arrays = stored_arrays(path)
    if not labelled:
        split = next((name for name in ("test", "train") if f"x_{name}" in arrays), "")
        name = f"x_{split}" if split else "x"
        return Source({"train": _listed(_get(arrays, name, path), split or "train", arrays, (), faults)})
    names = _text(_get(arrays, "class_names", path)) if "class_names" in arrays else None
    splits: dict[str, Listed] = {}
    for split in ("train", "test") if "x_test" in arrays else ("train",):
        inputs = _get(arrays, f"x_{split}", path)
        classes = _classes(_get(arrays, f"y_{split}", path), names)
        if len(classes) != (inputs.shape[0] if inputs.shape else -1):
            raise DataError(
                f"{inputs.where} has shape {inputs.shape} but there are {len(classes)} labels; give one a row"
            )
        splits[split] = _listed(inputs, split, arrays, classes, faults)
    notes = {"lengths": "each series resampled from its true length"} if "lengths_train" in arrays else {}
    return Source(splits, names, notes)


def _get(arrays: dict[str, StoredArray], name: str, path: Path) -> StoredArray:
    if name not in arrays:
        held = ", ".join(sorted(arrays)) or "nothing"
        raise DataError(f"{path} has no array {name!r} (it holds {held}); save x_train, y_train, x_test, y_test")
    return arrays[name]


def _listed(
    inputs: StoredArray, split: str, arrays: dict[str, StoredArray], classes: tuple[str, ...], faults: Faults
) -> Listed:
    axes = _axes(inputs)
    if not inputs.shape[0]:
        raise DataError(f"{inputs.where} holds no samples; leave it out or fill it")
    rows = np.arange(inputs.shape[0], dtype=np.int64)
    if axes is not None:
        content = ImageArray(inputs, axes, rows, split)
        return Listed(tuple(f"{split}/{row}" for row in rows.tolist()), classes, content)
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite and is reported below
        values = inputs.read().astype(np.float32)
    values = values[:, None] if values.ndim == 2 else values
    lengths = arrays.get(f"lengths_{split}")
    ends = _lengths(lengths, values.shape) if lengths is not None else None
    series: list[SeriesArray] = []
    kept: list[int] = []
    for row in rows.tolist():
        sample = values[row] if ends is None else values[row, :, : ends[row]]
        if np.isfinite(sample).all():
            kept.append(row)
            series.append(sample)
        else:
            faults.report(f"{split}/{row}", f"row {row} of {inputs.where} holds NaN or an infinite value")
    if not series:
        raise DataError(f"{inputs.where} has no series without NaN or infinite values")
    chosen = tuple(classes[row] for row in kept) if classes else ()
    return Listed(tuple(f"{split}/{row}" for row in kept), chosen, SeriesList(series))


def _axes(inputs: StoredArray) -> _Axes | None:
    """How the axes are to be read; None for series."""
    shape, kind = inputs.shape, inputs.dtype
    if 0 in shape[1:]:
        raise DataError(f"{inputs.where} has shape {shape}: a sample without values; make the file anew")
    if kind == np.uint8 and len(shape) == 3:
        return "NHW"
    if (kind == np.uint8 or kind.kind == "f") and len(shape) == 4:
        if shape[3] in (1, 3):
            return "NHWC"
        if shape[1] in (1, 3):
            return "NCHW"
    if kind.kind == "f" and len(shape) in (2, 3):
        return None
    raise DataError(
        f"{inputs.where} is {kind} of shape {shape}; expected uint8 images [N,H,W], [N,H,W,1] or [N,H,W,3], "
        f"float images [N,H,W,3] in 0..1, or float series [N,C,T]"
    )


def _lengths(array: StoredArray, shape: tuple[int, ...]) -> list[int]:
    lengths = array.read()
    whole = array.dtype.kind in "iu" and lengths.shape == shape[:1]
    if not whole or lengths.min() < 1 or lengths.max() > shape[2]:
        raise DataError(f"{array.where} must hold {shape[0]} whole numbers from 1 to {shape[2]}, the true lengths")
    return [int(length) for length in lengths]


def _text(array: StoredArray) -> tuple[str, ...]:
    names = array.read()
    if names.dtype.kind not in "US" or names.ndim != 1 or len(set(names.tolist())) < len(names):
        raise DataError(f"{array.where} must hold different strings in one dimension")
    return tuple(name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names.tolist())


def _classes(array: StoredArray, names: tuple[str, ...] | None) -> tuple[str, ...]:
    labels = array.read()
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iubUS":
        raise DataError(f"{array.where} is {labels.dtype} of shape {labels.shape}; expected one number or string a row")
    if labels.dtype.kind in "US":
        return tuple(x.decode("utf-8", "replace") if isinstance(x, bytes) else x for x in labels.tolist())
    numbers = labels.astype(np.int64)
    if names is None:
        return tuple(str(number) for number in numbers.tolist())
    wrong = np.flatnonzero((numbers < 0) | (numbers >= len(names)))
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"row {row} of {array.where} is {numbers[row]}, but there are {len(names)} class names: "
            f"labels must lie in 0..{len(names) - 1}"
        )
    return tuple(names[number] for number in numbers.tolist())


def write(path: Path, train: Samples, test: Samples | None) -> Written:
    """Write `x`, `y` and `class_names`; images as `[N,H,W,C]`, series as `[N,C,T]`. Uncompressed.

    Raises:
        DataError: If the file exists.
    """
    with complete_or_absent(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for split, samples in (("train", train), ("test", test)):
            if samples is not None:
                _write_split(archive, split, samples)
        names = train.class_names.astype(np.str_)
        write_array(archive, "class_names", names.shape, names.dtype, [names])
    return Written(path, _row_ids(train, "train"), _row_ids(test, "test") if test is not None else None)


def _write_split(archive: zipfile.ZipFile, split: str, samples: Samples) -> None:
    blocks = batches(samples)
    shape = samples.inputs.shape
    if samples.kind == "image":
        blocks = (batch.transpose(0, 2, 3, 1) for batch in blocks)
        shape = (shape[0], shape[2], shape[3], shape[1])
    write_array(archive, f"x_{split}", shape, np.dtype(samples.inputs.dtype), blocks)
    write_array(archive, f"y_{split}", samples.labels.shape, np.dtype(np.int64), [samples.labels])


def _row_ids(samples: Samples, split: str) -> StrArray:
    return np.array([f"{split}/{row}" for row in range(len(samples))], dtype=np.str_)
