"""What a format gives to the readers: named splits of samples whose inputs are not decoded yet."""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
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
    """Collects samples that cannot be read and files that were not looked at, while a data set is read.

    As a context, it ends in one error that lists all samples that cannot be read, unless these are to be left out.

    Attributes:
        on_error: "raise" or "skip".
        skipped: What could not be read so far, in the order met.
        unread: What was not looked at, in the order met: it is no sample, or in a split that is not used.
    """

    def __init__(self, on_error: OnError, list_in: Path | None = None) -> None:
        """`list_in` is a folder for a list of what one message cannot hold."""
        if on_error not in ("raise", "skip"):
            raise DataError(f"on_error is {on_error!r}; it must be 'raise' or 'skip'")
        self.on_error = on_error
        self.skipped: list[Skipped] = []
        self.unread: list[Skipped] = []
        self._list_in = list_in
        self._has_raised = False

    def report(self, sample_id: str, reason: str) -> None:
        """Note that a sample cannot be read."""
        self.skipped.append(Skipped(as_text(sample_id), one_line(as_text(reason))))

    def pass_over(self, name: str, reason: str) -> None:
        """Note that a file, or an array, is not looked at; the reason goes on after its name."""
        self.unread.append(Skipped(one_line(as_text(name)), one_line(as_text(reason))))

    def __enter__(self) -> Faults:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        # An error that follows, such as a class without a sample, is most often their consequence.
        follows = error is None or (isinstance(error, DataError) and not self._has_raised)
        if self.on_error == "raise" and self.skipped and follows:
            self._has_raised = True
            raise self._all_skipped() from error

    def _all_skipped(self) -> DataError:
        n, first = len(self.skipped), self.skipped[0].reason
        if n == 1:
            return DataError(f"{first}; fix or remove it, or leave such samples out with --on-error skip")
        error = DataError(
            f"{n} samples cannot be read, the first: {first}; fix or remove them, or leave such samples out with "
            f"--on-error skip"
        )
        for fault in self.skipped[:MOST_LISTED]:
            error.add_note(fault.reason)
        if n > MOST_LISTED:
            error.add_note(f"and {n - MOST_LISTED} more{self._listed()}")
        return error

    def _listed(self) -> str:
        if self._list_in is None:
            return ""
        file = self._list_in / f"unreadable-{os.getpid()}.txt"
        text = "".join(f"{fault.reason}\n" for fault in self.skipped)
        try:
            self._list_in.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError:  # the message is the better part
            return ""
        return f", all of them in {file}"

    def warn(self) -> None:
        """Tell of what was left out where the caller gets no list of it."""
        if self.skipped and self.on_error == "skip":  # else the error that follows lists them
            first = self.skipped[0]
            warnings.warn(
                f"{len(self.skipped)} unreadable samples were left out, the first: {first.reason}",
                stacklevel=3,
            )
        if told := summary(self.unread):
            warnings.warn(told, stacklevel=3)


def summary(unread: Sequence[Skipped]) -> str:
    """How many files were not looked at, and what is most often the reason; "" if there are none."""
    if not unread:
        return ""
    reasons = Counter(skipped.reason for skipped in unread).most_common()
    shown = "; ".join(f"{reason} ({n:,}, such as {_example(unread, reason)})" for reason, n in reasons[:_MOST_REASONS])
    more = f"; and {len(reasons) - _MOST_REASONS} more reasons" if len(reasons) > _MOST_REASONS else ""
    n_files = "1 file was" if len(unread) == 1 else f"{len(unread):,} files were"
    return f"{n_files} not looked at. Why: {shown}{more}. In a run folder, skipped.csv lists all."


def _example(unread: Sequence[Skipped], reason: str) -> str:
    return next(skipped.id for skipped in unread if skipped.reason == reason)


MOST_LISTED = 20  # lines of one message
_MOST_REASONS = 4
# What `poison` writes beside the data: nobody has to be told that these are no samples.
OWN_FILES = ("truth.parquet", "trigger.json", "trigger.safetensors", "card.html")
CANNOT_OPEN = "cannot be opened"  # what the system says of a file, not what is in it


def as_text(name: str) -> str:
    """A file name that is not UTF-8 with its odd bytes escaped, since tables and reports hold text."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def one_line(text: str) -> str:
    """The text without line breaks or control characters, as file names may hold them."""
    return "".join(c if c.isprintable() else " " for c in text)


class Survey(NamedTuple):
    """What the samples look like before they are decoded."""

    sizes: Counter[tuple[int, ...]]  # (H, W) or (T,) -> number of samples
    channels: int
    deep_bits: int = 0  # significant bits of images with 16 bits a channel, at most 16; 0 if there are none
    n_deep: int = 0  # how many there are
    n_dim: int = 0  # how many of them need a quarter of the range at most


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
    groups: tuple[str, ...] = ()  # of each sample, where the source names them

    def select(self, rows: IntArray) -> Listed:
        """Only these rows (ascending)."""
        chosen = rows.tolist()
        return Listed(
            tuple(self.ids[i] for i in chosen),
            tuple(self.classes[i] for i in chosen) if self.classes else (),
            self.content.select(rows),
            tuple(self.groups[i] for i in chosen) if self.groups else (),
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


def in_one_form(source: Source) -> Source:
    """The source with class names in Unicode's composed form (NFC), since systems write one name in several ways.

    Raises:
        DataError: If two of the declared names are one.
    """
    names = source.class_names
    if names is not None:
        names = tuple(unicodedata.normalize("NFC", name) for name in names)
        if len(set(names)) < len(names):
            twice = Counter(names).most_common(1)[0][0]
            raise DataError(f"the class {one_line(twice)!r} is declared twice, in two forms of Unicode; keep one")
    splits = {
        split: replace(listed, classes=tuple(unicodedata.normalize("NFC", name) for name in listed.classes))
        for split, listed in source.splits.items()
    }
    return replace(source, splits=splits, class_names=names)


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
