"""Every error that a user can fix, in one tree.

The command line prints the message of an `AntibackdoorError` as one line and exits with code 2. A message
names what is wrong, where, and what to do about it.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from pathlib import Path

MOST_ECHOED = 200  # characters of a value that a message repeats

# What libraries say that write files without Python: safetensors (Rust), numpy, pyarrow.
_FULL = re.compile(r"No space left|Disk quota exceeded|\(os error (28|122)\)|\d+ requested and \d+ written")


class AntibackdoorError(Exception):
    """Root of all errors that this package raises on purpose."""


class DataError(AntibackdoorError):
    """The data set cannot be used as it stands: a corrupt file, one class only, a label out of range."""


class ModelError(AntibackdoorError):
    """The network cannot be built, split at a layer, or loaded."""


class ConfigError(AntibackdoorError):
    """A setting is out of its range or does not fit the data."""


class RunError(AntibackdoorError):
    """A run folder cannot be written, resumed or read."""


def spelled_out(text: str) -> str:
    """The text with escapes for all that is not printable: names of files and classes must not steer a terminal."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii") for sign in text)


def disk_is_full(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from, says that the disk has no room left."""
    return any(
        getattr(known, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or _FULL.search(str(known))
        for known in _chain(error)
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it was raised from: libraries hide what the system said behind words of their own."""
    known: BaseException | None = error
    for _ in range(10):  # a chain may be a ring
        if known is None:
            return
        yield known
        known = known.__cause__ or known.__context__


def cannot(verb: str, path: str | Path, error: BaseException) -> str:
    """One line that says what could not be done to a file, why, and how to go on where the disk is full.

    >>> cannot("write", "a/b", OSError(errno.ENOSPC, "No space left on device"))
    'cannot write a/b: the disk is full; free some space, or choose a folder on another disk'
    """
    where = shortened(str(path))
    if disk_is_full(error):
        return f"cannot {verb} {where}: the disk is full; free some space, or choose a folder on another disk"
    system = next((known.strerror for known in _chain(error) if isinstance(known, OSError) and known.strerror), None)
    said = system or " ".join(str(error).split()) or type(error).__name__
    return f"cannot {verb} {where}: {shortened(said)}"


def shortened(text: str, limit: int = MOST_ECHOED) -> str:
    """The text, or its beginning and its end where it is longer than `limit` characters.

    >>> shortened("a" * 300, 21)
    'aaaaaaaaaa…aaaaaaaaaa'
    """
    half = (limit - 1) // 2
    return text if len(text) <= limit else f"{text[:half]}…{text[-half:]}"


def readable_size(n_bytes: int) -> str:
    """A number of bytes in the unit that shows a difference.

    >>> readable_size(0), readable_size(1_600_000), readable_size(2_000_000_000)
    ('0 bytes', '1.6 MB', '2.0 GB')
    """
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes} bytes"
