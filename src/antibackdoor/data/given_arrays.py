"""Arrays that a caller has in memory, as the split of a data set: read by the same rules as arrays in files."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from antibackdoor.data.axes import axes_of
from antibackdoor.data.images import fit
from antibackdoor.data.npy_stream import StoredArray
from antibackdoor.data.options import Axes
from antibackdoor.data.samples import IntArray
from antibackdoor.data.series import Gaps, SeriesArray, SeriesList
from antibackdoor.data.source import Block, Content, Faults, Kind, Survey
from antibackdoor.errors import DataError

_BLOCK = 1024


@dataclass(frozen=True, eq=False)
class ImagesInMemory:
    """Images of one or of several sizes.

    Attributes:
        values: An array `(N, C, H, W)`, or N arrays `(C, H, W)`; whole numbers in 0..255 or floats in [0, 1].
        ids: What the samples are called in messages.
        where: What the data are called in messages.
    """

    values: NDArray[Any] | Sequence[NDArray[Any]]
    ids: tuple[str, ...]
    where: str

    @property
    def kind(self) -> Kind:
        """These are images."""
        return "image"

    @property
    def dtype(self) -> type[Any]:
        """Any float becomes single precision, any whole number a byte."""
        return np.float32 if any(image.dtype.kind == "f" for image in self.values[:1]) else np.uint8

    @property
    def in_memory(self) -> bool:
        """Nothing is decoded."""
        return True

    def __len__(self) -> int:
        return len(self.values)

    def select(self, rows: IntArray) -> ImagesInMemory:
        """Only these rows."""
        chosen = rows.tolist()
        is_array = isinstance(self.values, np.ndarray)
        values = self.values[rows] if is_array else [self.values[row] for row in chosen]  # type: ignore[call-overload]
        return replace(self, values=values, ids=tuple(self.ids[row] for row in chosen))

    def fingerprint(self) -> str:
        """A digest of the values."""
        digest = hashlib.sha256()
        for image in self.values:
            digest.update(f"{image.shape} {image.dtype}".encode() + np.ascontiguousarray(image).tobytes())
        return digest.hexdigest()

    def survey(self, progress: bool) -> Survey:
        """The sizes; one channel only if every image is grey."""
        shapes = Counter(tuple(image.shape) for image in self.values)
        sizes: Counter[tuple[int, ...]] = Counter()
        for (_, height, width), n in shapes.items():
            sizes[height, width] += n
        return Survey(sizes, max(shape[0] for shape in shapes))

    def blocks(self, shape: tuple[int, ...], faults: Faults) -> Iterator[Block]:
        """Images of the size that `shape` asks for, in order."""
        for start in range(0, len(self), _BLOCK):
            part = self.values[start : start + _BLOCK]
            good = [row for row in range(len(part)) if self._is_in_range(part[row])]
            for row in sorted({*range(len(part))} - {*good}):
                faults.report(self.ids[start + row], f"{self.ids[start + row]} of {self.where} {self._out_of_range()}")
            if isinstance(part, np.ndarray):
                images = fit(part[good].astype(self.dtype), shape)
            else:
                images = np.empty((len(good), *shape), self.dtype)
                for place, row in enumerate(good):
                    images[place] = fit(part[row].astype(self.dtype)[None], shape)[0]
            yield Block(np.array(good, dtype=np.int64) + start, images)

    def _is_in_range(self, image: NDArray[Any]) -> bool:
        return bool(image.min() >= 0 and image.max() <= (1 if self.dtype is np.float32 else 255))  # NaN compares false

    def _out_of_range(self) -> str:
        if self.dtype is np.float32:
            return (
                "has values outside of [0, 1], or NaN: divide by the largest possible value, and leave out any "
                "normalization, which the model holds itself"
            )
        return "has whole numbers outside of 0..255: convert the images to floats in [0, 1], or to uint8"


@dataclass(frozen=True, eq=False)
class _View:
    """An array in memory with what is asked of one in a file."""

    values: NDArray[Any]
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    @property
    def where(self) -> str:
        return self.name

    def read_blocks(self) -> Iterator[NDArray[Any]]:
        yield self.values[:_BLOCK]


@dataclass
class Arrays:
    """Turns arrays into the contents of splits, and gathers what is to be said of them.

    Attributes:
        axes: Order of the axes as the caller said it; empty to find it by type and shape.
        gaps: What is done about missing values of series.
        faults: Is told of samples that cannot be used.
        note: How the axes were read, where that is not the plain way.
    """

    axes: Axes
    gaps: Gaps
    faults: Faults
    note: str = ""

    def content(self, values: Any, ids: tuple[str, ...], name: str) -> tuple[Content, IntArray]:
        """The content of a split, and `(M,)` the rows of `values` that it holds.

        Args:
            values: An array, a torch tensor on the CPU, or a sequence of such, of equal or unequal shapes.
            ids: What the samples are called.
            name: What the argument is called in messages.

        Raises:
            DataError: If these are no numbers, or it cannot be told what they are.
        """
        array = as_array(values, name)
        if array is not None:
            return self._of_array(array, ids, name)
        items = [as_numbers(value, f"{name}[{row}]") for row, value in enumerate(values)]
        if len({item.ndim for item in items}) > 1:
            dimensions = sorted({item.ndim for item in items})
            raise DataError(f"{name} holds arrays of {' and '.join(map(str, dimensions))} dimensions; give one kind")
        axes, note = axes_of(cast(StoredArray, _View(items[0][None], f"{name}[0] (with N in front)")), self.axes)
        self.note = self.note or note
        if "H" in axes:
            images = [_image(item, axes) for item in items]
            return ImagesInMemory(images, ids, name), np.arange(len(items), dtype=np.int64)
        series = [item.astype(np.float32) for item in items]
        series = [one[None] if one.ndim == 1 else one.T if axes == "NTC" else one for one in series]
        n_channels = {one.shape[0] for one in series}
        if len(n_channels) > 1:
            hint = "; if the channels are last, give axes='NTC'" if axes == "NCT" else ""
            raise DataError(f"the series in {name} have {min(n_channels)} to {max(n_channels)} channels{hint}")
        return self._whole(series, name, ids)

    def _of_array(self, array: NDArray[Any], ids: tuple[str, ...], name: str) -> tuple[Content, IntArray]:
        if not len(array):
            raise DataError(f"{name} holds no samples (shape {array.shape})")
        axes, note = axes_of(cast(StoredArray, _View(array, name)), self.axes)
        self.note = self.note or note
        if "H" in axes:
            images = array[:, None] if axes == "NHW" else array.transpose(0, 3, 1, 2) if axes == "NHWC" else array
            return ImagesInMemory(images, ids, name), np.arange(len(array), dtype=np.int64)
        with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite and is reported below
            values = array.astype(np.float32)
        values = values[:, None] if axes == "NT" else values.transpose(0, 2, 1) if axes == "NTC" else values
        return self._whole(list(values), name, ids)

    def _whole(self, series: Sequence[SeriesArray], name: str, ids: tuple[str, ...]) -> tuple[Content, IntArray]:
        kept: list[int] = []
        good: list[SeriesArray] = []
        for row, one in enumerate(series):
            try:
                good.append(self.gaps.whole(one, f"{ids[row]} of {name}"))
                kept.append(row)
            except ValueError as error:
                self.faults.report(ids[row], str(error))
        if not good:
            raise DataError(f"{name} has no series without missing or infinite values")
        return SeriesList(good), np.array(kept, dtype=np.int64)


def as_array(values: Any, name: str) -> NDArray[Any] | None:
    """Values as one array of numbers, `(N, ...)`; None where the samples differ in shape.

    Raises:
        DataError: If they are no numbers.
    """
    if hasattr(values, "detach") or (isinstance(values, np.ndarray) and values.dtype != object):
        return as_numbers(values, name)
    if not hasattr(values, "__len__") or not hasattr(values, "__getitem__") or isinstance(values, str | bytes | dict):
        raise DataError(f"{name} is of type {type(values).__name__}; give an array, or a list of arrays")
    if not len(values):
        raise DataError(f"{name} holds no samples")
    items = [as_numbers(values[row], f"{name}[{row}]") for row in range(len(values))]
    if len({item.shape for item in items}) > 1:
        return None
    return np.stack(items)


def as_numbers(value: Any, name: str) -> NDArray[Any]:
    """An array of numbers from an array, a torch tensor, or nested lists.

    Raises:
        DataError: If it is none.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float().numpy() if value.dtype.is_floating_point else value.numpy()
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(f"{name} cannot be converted to an array ({error}); give numbers of one shape") from error
    if array.dtype == object:
        with suppress(TypeError, ValueError):
            array = array.astype(np.float64)
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    if array.dtype.kind not in "uif":
        raise DataError(f"{name} is of type {type(value).__name__} ({array.dtype}); expected numbers")
    return array


def _image(item: NDArray[Any], axes: Axes) -> NDArray[Any]:
    """One image `(C, H, W)`."""
    return item[None] if axes == "NHW" else item.transpose(2, 0, 1) if axes == "NHWC" else item
