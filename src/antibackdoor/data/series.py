"""Time series of equal or unequal length, brought to one length by linear interpolation."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antibackdoor.data.options import Missing
from antibackdoor.data.samples import IntArray
from antibackdoor.data.source import Block, Faults, Kind, Survey, one_line
from antibackdoor.errors import DataError

SeriesArray = NDArray[np.float32]  # (C, T)
_BLOCK = 1024
_LONGEST_LINE = 2**28  # characters: some tens of millions of values
_MISSING = frozenset({"", "?", "nan", "na", "n/a", "null", "none"})


@dataclass(frozen=True, eq=False)
class SeriesList:
    """The series of one split, in memory; all have the same number of channels.

    Attributes:
        values: Each `(C, T)` float32, finite; T may differ.
    """

    values: Sequence[SeriesArray]

    @property
    def kind(self) -> Kind:
        """These are series."""
        return "series"

    @property
    def dtype(self) -> type[Any]:
        """Values are single precision."""
        return np.float32

    @property
    def in_memory(self) -> bool:
        """Nothing is decoded."""
        return True

    def __len__(self) -> int:
        return len(self.values)

    def select(self, rows: IntArray) -> SeriesList:
        """Only these rows."""
        return SeriesList([self.values[row] for row in rows.tolist()])

    def fingerprint(self) -> str:
        """A digest of the values."""
        digest = hashlib.sha256()
        for value in self.values:
            digest.update(f"{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
        return digest.hexdigest()

    def survey(self, progress: bool) -> Survey:
        """The lengths."""
        return Survey(Counter((value.shape[1],) for value in self.values), self.values[0].shape[0])

    def blocks(self, shape: tuple[int, ...], faults: Faults) -> Iterator[Block]:
        """Series of the length that `shape` asks for, in order."""
        for start in range(0, len(self.values), _BLOCK):
            part = [resample(value, shape[1]) for value in self.values[start : start + _BLOCK]]
            yield Block(np.arange(start, start + len(part), dtype=np.int64), np.stack(part))


def resample(series: SeriesArray, length: int) -> SeriesArray:
    """The series `(C, T)` at `length` equally spaced times from its first to its last value, `(C, length)`.

    >>> resample(np.array([[0, 2, 4]], np.float32), 5).tolist()
    [[0.0, 1.0, 2.0, 3.0, 4.0]]
    """
    if series.shape[1] == length:
        return series
    times = np.linspace(0, series.shape[1] - 1, length)
    known = np.arange(series.shape[1])
    return np.stack([np.interp(times, known, channel) for channel in series]).astype(np.float32)


class Gaps:
    """One rule for missing values in all formats, and a count of those that were filled in.

    Steps at the end that no channel has a value for are no steps: the series is shorter. Values that are missing
    before that are refused, or interpolated between their neighbors (at the start the first known one is repeated).
    """

    def __init__(self, missing: Missing) -> None:
        self.missing = missing
        self.n_values = 0
        self.n_series = 0

    def whole(self, series: SeriesArray, where: str) -> SeriesArray:
        """The series `(C, T)`, in which NaN stands for a missing value, without any.

        Raises:
            ValueError: With the whole message, if it has infinite values, none at all, or gaps that are refused.
        """
        if np.isinf(series).any():
            raise ValueError(f"{where} holds an infinite value, or one too large for float32")
        absent = np.isnan(series)
        if not absent.any():
            return series
        known = np.flatnonzero(~absent.all(axis=0))
        if not len(known):
            raise ValueError(f"{where} holds no value at all")
        series, absent = series[:, : known[-1] + 1], absent[:, : known[-1] + 1]
        if not absent.any():
            return series
        if self.missing == "refuse":
            raise ValueError(f"{where} holds a missing value before its end (--missing interpolate would fill it)")
        if absent.all(axis=1).any():
            raise ValueError(f"{where} holds a channel without any value, so nothing can be interpolated")
        self.n_values += int(absent.sum())
        self.n_series += 1
        times = np.arange(series.shape[1])
        filled = [np.interp(times, times[~gap], channel[~gap]) for channel, gap in zip(series, absent, strict=True)]
        return np.stack(filled).astype(np.float32)

    def notes(self) -> dict[str, Any]:
        """What was filled in."""
        if not self.n_values:
            return {}
        return {"missing_values": f"{self.n_values} values in {self.n_series} series interpolated"}


def parse_values(cells: Sequence[str], where: str) -> SeriesArray:
    """One channel `(T,)` from text; NaN stands for a missing value.

    Raises:
        ValueError: With the whole message, if a value is not a number.
    """
    try:
        values = np.array(cells, dtype=np.float64)
    except ValueError:
        cells = ["nan" if is_missing(cell) else cell for cell in cells]
        bad = next((cell for cell in cells if not is_number(cell)), None)
        if bad is not None:
            raise ValueError(f"{where} holds {one_line(bad[:40])!r}, which is not a number") from None
        values = np.array([float(cell) for cell in cells])
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, which is refused
        return values.astype(np.float32)


def is_number(cell: str) -> bool:
    """Whether the text is a number (NaN and infinity are)."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def is_missing(cell: str) -> bool:
    """Whether the text stands for a value that is not there."""
    return cell.strip().lower() in _MISSING


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a text file with their ends, one after the other.

    Raises:
        DataError: If it cannot be opened, is not UTF-8, or has a line that is no line of a table.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            while line := file.readline(_LONGEST_LINE):
                if len(line) == _LONGEST_LINE and not line.endswith("\n"):
                    raise DataError(f"{path} has a line of more than {_LONGEST_LINE} characters; is it a table?")
                yield line
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text ({one_line(str(error))}); save it as UTF-8") from error
