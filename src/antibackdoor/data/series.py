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

from antibackdoor.data.samples import IntArray
from antibackdoor.data.source import Block, Faults, Kind, Survey, one_line
from antibackdoor.errors import DataError

SeriesArray = NDArray[np.float32]  # (C, T)
_BLOCK = 1024


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


def parse_values(cells: Sequence[str], where: str) -> SeriesArray:
    """One channel `(T,)` from text.

    Raises:
        ValueError: With the whole message, if a value is missing, not a number, or not finite in float32.
    """
    try:
        values = np.array(cells, dtype=np.float64)
    except ValueError:
        bad = next(cell for cell in cells if not is_number(cell))
        what = "a missing value" if bad.strip() in ("?", "") else f"{one_line(bad[:40])!r}, which is not a number"
        raise ValueError(f"{where} holds {what}; fill it in or remove the series") from None
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    if not np.isfinite(single).all():
        raise ValueError(f"{where} holds NaN or an infinite value; fill it in or remove the series")
    return single


def is_number(cell: str) -> bool:
    """Whether the text is a number (NaN and infinity are)."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def read_lines(path: Path) -> list[str]:
    """The lines of a text file.

    Raises:
        DataError: If it cannot be opened or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text ({one_line(str(error))}); save it as UTF-8") from error
