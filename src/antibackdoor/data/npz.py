"""Arrays in an `.npz`: `x_train`, `y_train`, and optionally `x_test`, `y_test` and `class_names`.

What `x` holds is told by its type and number of axes:

| type           | axes                                            | read as                                    |
| -------------- | ----------------------------------------------- | ------------------------------------------ |
| uint8          | `[N,H,W]`                                       | images                                     |
| uint8, integer | `[N,H,W,1]`, `[N,H,W,3]`                        | images with values in 0..255               |
| float          | `[N,H,W,1]`, `[N,H,W,3]`                        | images with values in [0, 1]               |
| float, integer | `[N,C,T]`, `[N,T]`                              | series                                     |

With four axes `[N,1,H,W]` and `[N,3,H,W]` are recognized too, where the last axis is neither 1 nor 3. Where shape and
type allow two readings, such as `[N,T,C]`, floats that may be grey images, or bytes that may be sound, the file is
refused; an array `axes` in the file, such as `"NTC"`, or the option `axes` decides. Labels are whole numbers of any
range, or strings; with `class_names` they must be numbers in 0..K-1.

Steps at the end that are NaN in all channels, and with `lengths_train` (and `lengths_test`) what lies behind these
lengths, are padding: each series is resampled from its true length to the longest true length by linear
interpolation. Python objects are never loaded.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antibackdoor.data.axes import axes_of, declared
from antibackdoor.data.images import fit
from antibackdoor.data.npy_stream import StoredArray, stored_arrays, write_array
from antibackdoor.data.options import Axes, Request
from antibackdoor.data.output import batches, complete_or_absent
from antibackdoor.data.samples import IntArray, Samples, StrArray
from antibackdoor.data.series import Gaps, SeriesArray, SeriesList
from antibackdoor.data.source import Block, Faults, Kind, Listed, Source, Survey, Written, one_line
from antibackdoor.errors import DataError

SUFFIXES = (".npz",)
_MOST_NAMES = 2**20  # classes


@dataclass(frozen=True, eq=False)
class ImageArray:
    """Some rows of an array of images, read from the file a block at a time."""

    array: StoredArray
    axes: Axes
    rows: IntArray  # ascending
    split: str

    @property
    def kind(self) -> Kind:
        """These are images."""
        return "image"

    @property
    def dtype(self) -> type[Any]:
        """Any float becomes single precision, any whole number a byte."""
        return np.float32 if self.array.dtype.kind == "f" else np.uint8

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
                yield Block(positions, fit(images.astype(self.dtype, copy=False), shape))
            start += len(values)

    def _channels_first(self, values: NDArray[Any]) -> NDArray[Any]:
        if self.axes == "NHW":
            values = values[:, None]
        elif self.axes == "NHWC":
            values = values.transpose(0, 3, 1, 2)
        return values

    def _checked(self, positions: IntArray, images: NDArray[Any], faults: Faults) -> tuple[IntArray, NDArray[Any]]:
        flat = images.reshape(len(images), -1)
        floats = self.array.dtype.kind == "f"
        good = ((flat >= 0) & (flat <= (1 if floats else 255))).all(axis=1)  # NaN compares as false
        said = "1 or NaN" if floats else "255"
        for row in self.rows[positions[~good]].tolist():
            faults.report(
                f"{self.split}/{row}",
                f"row {row} of {self.array.where} has values outside of 0..{said} "
                f"(images of floats are in [0, 1]: divide by 255, or save them as uint8)",
            )
        return positions[good], images[good]


def open_source(path: Path, faults: Faults, request: Request) -> Source:
    """Read labels, and series; images stay in the file. Ids are `train/row` and `test/row`, counted from 0.

    With `labelled=False` the inputs are `x_test`, or else `x_train`, or else `x`.

    Raises:
        DataError: If an array is missing, damaged, of the wrong type or shape, or holds Python objects.
    """
    arrays = stored_arrays(path)
    reading = _Reading(arrays, faults, request)
    if not request.labelled:
        split = next((name for name in ("test", "train") if f"x_{name}" in arrays), "")
        name = f"x_{split}" if split else "x"
        listed = reading.listed(_get(arrays, name, path), split or "train", ())
        _tell_of_others(arrays, {split} if split else set(), {name}, faults)
        return Source({"train": listed}, None, reading.all_notes())
    names = _text(_get(arrays, "class_names", path)) if "class_names" in arrays else None
    splits: dict[str, Listed] = {}
    for split in ("train", "test") if "x_test" in arrays else ("train",):
        inputs, labels = _get(arrays, f"x_{split}", path), _get(arrays, f"y_{split}", path)
        if labels.shape[:1] != inputs.shape[:1]:
            n_labels = labels.shape[0] if labels.shape else "no"
            raise DataError(f"{inputs.where} has shape {inputs.shape}, but there are {n_labels} labels; give one each")
        splits[split] = reading.listed(inputs, split, _classes(labels, names))
    _tell_of_others(arrays, set(splits), set(), faults)
    notes = {"lengths": "each series resampled from its true length"} if "lengths_train" in arrays else {}
    return Source(splits, names, {**notes, **reading.all_notes()})


def _tell_of_others(arrays: dict[str, StoredArray], splits: set[str], used: set[str], faults: Faults) -> None:
    """Arrays that nothing reads, such as `x_val`, are not passed over in silence."""
    used = used | {"class_names", "axes"} | {f"{part}_{split}" for part in ("x", "y", "lengths") for split in splits}
    for name in sorted(set(arrays) - used):
        faults.pass_over(name, "is an array that is not read here")


def _get(arrays: dict[str, StoredArray], name: str, path: Path) -> StoredArray:
    if name not in arrays:
        held = one_line(", ".join(sorted(arrays))[:200]) or "nothing"
        raise DataError(f"{path} has no array {name!r} (it holds {held}); save x_train, y_train, x_test, y_test")
    return arrays[name]


class _Reading:
    """Reads the inputs of one file, and gathers what is to be said of them."""

    def __init__(self, arrays: dict[str, StoredArray], faults: Faults, request: Request) -> None:
        self.arrays = arrays
        self.faults = faults
        self.gaps = Gaps(request.all_options.missing)
        said = request.options.axes
        self.said: Axes = said or (declared(arrays["axes"]) if "axes" in arrays else "")
        self.is_told = bool(said) or "axes" not in arrays
        self.recorded = request.recorded.axes
        self.notes: dict[str, Any] = {}

    def all_notes(self) -> dict[str, Any]:
        """How axes were read, and what was filled in."""
        return {**self.notes, **self.gaps.notes()}

    def listed(self, inputs: StoredArray, split: str, classes: tuple[str, ...]) -> Listed:
        """One split; images stay in the file."""
        axes, note = axes_of(inputs, self.said, self.recorded)
        if note and self.is_told:
            self.notes.setdefault("axes", note)
        if not inputs.shape[0]:
            raise DataError(f"{inputs.where} holds no samples; leave it out or fill it")
        if "H" in axes:
            rows = np.arange(inputs.shape[0], dtype=np.int64)
            content = ImageArray(inputs, axes, rows, split)
            return Listed(tuple(f"{split}/{row}" for row in rows.tolist()), classes, content)
        return self._series(inputs, axes, split, classes)

    def _series(self, inputs: StoredArray, axes: Axes, split: str, classes: tuple[str, ...]) -> Listed:
        with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite and is reported below
            values = inputs.read().astype(np.float32, copy=False)
        values = values[:, None] if values.ndim == 2 else values.transpose(0, 2, 1) if axes == "NTC" else values
        lengths = self.arrays.get(f"lengths_{split}")
        ends = _lengths(lengths, values.shape) if lengths is not None else None
        series: list[SeriesArray] = []
        kept: list[int] = []
        for row in range(len(values)):
            sample = values[row] if ends is None else values[row, :, : ends[row]]
            try:
                series.append(self.gaps.whole(sample, f"row {row} of {inputs.where}"))
                kept.append(row)
            except ValueError as error:
                self.faults.report(f"{split}/{row}", str(error))
        if not series:
            raise DataError(f"{inputs.where} has no series without missing or infinite values")
        chosen = tuple(classes[row] for row in kept) if classes else ()
        return Listed(tuple(f"{split}/{row}" for row in kept), chosen, SeriesList(series))


def _lengths(array: StoredArray, shape: tuple[int, ...]) -> list[int]:
    whole = array.dtype.kind in "iu" and array.shape == shape[:1]
    lengths = array.read() if whole else np.empty(0)
    if not whole or lengths.min() < 1 or lengths.max() > shape[2]:
        raise DataError(f"{array.where} must hold {shape[0]} whole numbers from 1 to {shape[2]}, the true lengths")
    return [int(length) for length in lengths]


def _text(array: StoredArray) -> tuple[str, ...]:
    if array.dtype.kind not in "US" or len(array.shape) != 1 or array.shape[0] > _MOST_NAMES:
        raise DataError(f"{array.where} must hold different strings in one dimension")
    names = _strings(array)
    if len(set(names)) < len(names):
        raise DataError(f"{array.where} must hold different strings in one dimension")
    return names


def _strings(array: StoredArray) -> tuple[str, ...]:
    try:
        found = [x.decode("utf-8", "replace") if isinstance(x, bytes) else x for x in array.read().reshape(-1).tolist()]
        "".join(found).encode()
    except (ValueError, SystemError) as error:  # code points that do not exist, or halves of pairs
        raise DataError(f"{array.where} holds strings that are not valid text; save the file again") from error
    return tuple(found)


def _classes(array: StoredArray, names: tuple[str, ...] | None) -> tuple[str, ...]:
    one_a_row = len(array.shape) == 1 or (len(array.shape) == 2 and array.shape[1] == 1)
    if not one_a_row or array.dtype.kind not in "iubUS":
        raise DataError(f"{array.where} is {array.dtype} of shape {array.shape}; expected one number or string per row")
    if array.dtype.kind in "US":
        return _strings(array)
    labels = array.read().reshape(-1)
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
    """Write `x`, `y`, `class_names` and `axes`; images as `[N,H,W,C]`, series as `[N,C,T]`. Uncompressed.

    Raises:
        DataError: If the file exists.
    """
    with complete_or_absent(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for split, samples in (("train", train), ("test", test)):
            if samples is not None:
                _write_split(archive, split, samples)
        names = train.class_names.astype(np.str_)
        write_array(archive, "class_names", names.shape, names.dtype, [names])
        axes = np.array("NHWC" if train.kind == "image" else "NCT")
        write_array(archive, "axes", axes.shape, axes.dtype, [axes])
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
