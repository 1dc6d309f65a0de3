"""Writing a data set: nothing is overwritten or appears half-written, and few batches are in memory."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from antibackdoor.data.images import encode_png
from antibackdoor.data.parallel import in_order
from antibackdoor.data.samples import InputArray, Samples
from antibackdoor.data.source import one_line
from antibackdoor.errors import DataError

if sys.platform != "win32":
    import fcntl

_BATCH_BYTES = 4 * 2**20
_WRITING = ".writing-"
_LONGEST_NAME = 255  # bytes of a name on the usual file systems
_TOKEN = 4  # bytes that tell the folders of two processes apart


def refuse_existing(path: Path) -> None:
    """Check that nothing is at `path`.

    Raises:
        DataError: If something is.
    """
    if path.exists() or path.is_symlink():
        raise DataError(f"{one_line(str(path))} exists already; remove it or write to another path")


@contextmanager
def complete_or_absent(path: Path) -> Iterator[Path]:
    """A temporary path that is moved to `path` if the block succeeds, and removed if not.

    It lies in a folder of its own beside `path`, so that a killed process leaves nothing else behind; the next call
    for the same path removes that folder. One that another process still writes to is locked and left alone.

    Raises:
        DataError: If `path` exists.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    refuse_existing(path)
    folder, lock = _own_folder(path)
    try:
        yield folder / path.name
        refuse_existing(path)  # somebody may have been faster
        (folder / path.name).replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _unlock(lock)


def _own_folder(path: Path) -> tuple[Path, int | None]:
    """A new locked folder beside `path`, and its lock."""
    while True:
        folder = path.with_name(f"{_prefix(path)}{secrets.token_hex(_TOKEN)}")
        folder.mkdir()
        # Another process may take it for a leftover before it is locked.
        with suppress(BlockingIOError, FileNotFoundError):
            lock = _locked(folder)
            if folder.is_dir():
                return folder, lock
            _unlock(lock)


def _remove_leftovers(path: Path) -> None:
    """Remove what killed processes left of earlier calls for `path`."""
    leftover = re.compile(re.escape(_prefix(path)) + f"[0-9a-f]{{{2 * _TOKEN}}}")
    with suppress(OSError):  # a folder that cannot be listed is left as it is
        for entry in list(path.parent.iterdir()):
            if leftover.fullmatch(entry.name) and entry.is_dir() and not entry.is_symlink():
                with suppress(OSError):
                    lock = _locked(entry)
                    if lock is not None:
                        shutil.rmtree(entry, ignore_errors=True)
                        _unlock(lock)


def _prefix(path: Path) -> str:
    # A name that is as long as names may be leaves no room for more.
    room = _LONGEST_NAME - len(_WRITING) - 1 - 2 * _TOKEN
    return f"{_WRITING}{os.fsdecode(os.fsencode(path.name)[:room])}-"


def _locked(folder: Path) -> int | None:
    """Lock a folder; None where there are no locks.

    Raises:
        OSError: Another process holds it, or it is gone.
    """
    if sys.platform == "win32":
        return None
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):  # as on some network file systems
            return None
        raise
    return descriptor


def _unlock(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)


def batches(samples: Samples) -> Iterator[InputArray]:
    """The inputs in order, a few MiB at a time."""
    step = max(1, _BATCH_BYTES // max(1, samples.inputs[:1].nbytes))
    for start in range(0, len(samples), step):
        yield samples.inputs[start : start + step]


def pngs(samples: Samples) -> Iterator[bytes]:
    """All images as PNG, in order.

    Raises:
        DataError: If the samples are series, or floats.
    """
    if samples.kind != "image":
        raise DataError("series cannot be written as images; use .npz, .ts or .csv")
    for encoded in in_order(lambda batch: [encode_png(image) for image in batch], batches(samples)):
        yield from encoded
