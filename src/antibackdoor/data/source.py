"""What a format gives to the readers: named splits of samples whose inputs are not decoded yet."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from antibackdoor.data.options import Request
from antibackdoor.data.samples import InputArray, IntArray, Samples, StrArray
from antibackdoor.errors import DataError

LONGEST_NUMBER = 1000  # digits of a class name that counts as a number; Python reads some thousands
OnError = Literal["raise", "skip"]
Kind = Literal["image", "series"]


@dataclass(frozen=True)
class Skipped:
    """A sample that was left out because it could not be read."""

    id: str
    reason: str


class Faults:
    """Decides what a sample that cannot be read leads to: an error, or an entry in `skipped`.

    Attributes:
        on_error: "raise" or "skip".
        skipped: What was left out so far, in the order met.
    """

    def __init__(self, on_error: OnError) -> None:
        if on_error not in ("raise", "skip"):
            raise DataError(f"on_error is {on_error!r}; it must be 'raise' or 'skip'")
        self.on_error = on_error
        self.skipped: list[Skipped] = []

    def report(self, sample_id: str, reason: str) -> None:
        """Note that a sample cannot be read.

        Raises:
            DataError: If `on_error` is "raise".
        """
        if self.on_error == "raise":
            raise DataError(f"{one_line(reason)}; mend or remove it, or leave such samples out with --on-error skip")
        self.skipped.append(Skipped(sample_id, one_line(reason)))

    def warn(self) -> None:
        """Tell of what was left out where the caller gets no list of it."""
        if self.skipped:
            first = self.skipped[0]
            warnings.warn(
                f"{len(self.skipped)} unreadable samples were left out, the first: {first.reason}",
                stacklevel=3,
            )


CANNOT_OPEN = "cannot be opened"  # what the system says of a file, not what is in it


def one_line(text: str) -> str:
    """The text without line breaks or control characters, as file names may hold them."""
    return "".join(c if c.isprintable() else " " for c in text)


class Survey(NamedTuple):
    """What the samples look like before they are decoded."""

    sizes: Counter[tuple[int, ...]]  # (H, W) or (T,) -> number of samples
    channels: int


class Block(NamedTuple):
    """Some decoded samples."""

    rows: IntArray  # (B,) positions in the content; those of unreadable samples are missing
    inputs: InputArray  # (B, *shape)


class Content(Protocol):
    """The undecoded inputs of one split."""

    @property
    def kind(self) -> Kind:
        """Whether these are images or series."""
        ...

    @property
    def dtype(self) -> type[Any]:
        """`numpy.uint8` or `numpy.float32`."""
        ...

    @property
    def in_memory(self) -> bool:
        """Whether the values are at hand, so that nothing need be decoded and kept in the cache."""
        ...

    def __len__(self) -> int: ...

    def select(self, rows: IntArray) -> Content:
        """The same content with only these rows (ascending)."""
        ...

    def fingerprint(self) -> str:
        """Changes whenever a decoded value could."""
        ...

    def survey(self, progress: bool) -> Survey:
        """The sizes of all samples; unreadable ones are passed over here and reported by `blocks`."""
        ...

    def blocks(self, shape: tuple[int, ...], faults: Faults) -> Iterator[Block]:
        """All samples in order, brought to `shape`; at most a few blocks are in memory at once."""
        ...


@dataclass(frozen=True, eq=False)
class Listed:
    """One split: an id and a class (as text) for each sample, and the undecoded inputs."""

    ids: tuple[str, ...]
    classes: tuple[str, ...]  # empty where the source is unlabelled
    content: Content

    def select(self, rows: IntArray) -> Listed:
        """Only these rows (ascending)."""
        chosen = rows.tolist()
        return Listed(
            tuple(self.ids[i] for i in chosen),
            tuple(self.classes[i] for i in chosen) if self.classes else (),
            self.content.select(rows),
        )


@dataclass(frozen=True, eq=False)
class Source:
    """A data set as a format sees it.

    Attributes:
        splits: "train" and "test"; a data set without splits is all "train". One of the two may be missing.
        class_names: All classes in label order where the source declares them, else None.
        notes: Facts for `DataSet.notes`.
    """

    splits: dict[str, Listed]
    class_names: tuple[str, ...] | None = None
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Written:
    """Where a data set was written, and the ids its samples will have when it is read again.

    Attributes:
        path: What to give to `read`.
        train_ids: `(N,)` str, in the order of the samples that were written.
        test_ids: The same for the test split; None without one.
    """

    path: Path
    train_ids: StrArray
    test_ids: StrArray | None


class Format(Protocol):
    """One file format: a module with these three members."""

    @property
    def SUFFIXES(self) -> tuple[str, ...]:
        """Endings of file names in lower case; none means that this format is a folder."""
        ...

    def open_source(self, path: Path, faults: Faults, request: Request) -> Source:
        """List the samples; where no labels are asked for, all of them are one unlabelled split."""
        ...

    def write(self, path: Path, train: Samples, test: Samples | None) -> Written:
        """Write a data set that `open_source` reads."""
        ...


def in_natural_order(names: set[str]) -> tuple[str, ...]:
    """Class names in label order: by value where all are whole numbers, else alphabetically.

    >>> in_natural_order({"10", "9", "-1"})
    ('-1', '9', '10')
    """
    if all(name.removeprefix("-").isdecimal() and len(name) <= LONGEST_NUMBER for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))
