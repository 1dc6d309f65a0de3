"""One writer a folder: a lock file that is there only while somebody writes."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from antibackdoor.data.regular_files import open_regular
from antibackdoor.errors import RunError
from antibackdoor.runs.atomic import cannot, remove_leftovers

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK = ".lock"


def acquire(folder: Path) -> int:
    """Lock the folder; the system drops the lock when the process ends, however it ends.

    Raises:
        OSError: The folder cannot be written, or something else than a regular file stands in the way.
        RunError: Another process holds it.
    """
    path = folder / LOCK
    while True:
        descriptor = open_regular(path, os.O_RDWR | os.O_CREAT)
        try:
            _lock(descriptor)
            if _is_still(path, descriptor):
                return descriptor
        except (BlockingIOError, PermissionError) as error:
            os.close(descriptor)
            raise RunError(f"another process writes to {folder}; wait for it or choose another folder") from error
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the one who held it has removed the file meanwhile: what is locked has no name


def release(folder: Path, descriptor: int) -> None:
    """Let other processes write to the folder, and leave no lock file behind."""
    if sys.platform == "win32":  # which removes no file that is open
        os.close(descriptor)
        with suppress(OSError):
            (folder / LOCK).unlink()
        return
    # While it is held: who waits for this file sees that it is gone, and makes another.
    with suppress(OSError):
        if _is_still(folder / LOCK, descriptor):
            (folder / LOCK).unlink()
    os.close(descriptor)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder against other writers, and remove first what killed ones left in it.

    Raises:
        RunError: Another process holds it, or it cannot be written.
    """
    try:
        descriptor = acquire(folder)
    except OSError as error:
        raise RunError(cannot("write to", folder, error)) from error
    try:
        remove_leftovers(folder)
        yield
    finally:
        release(folder, descriptor)


def _lock(descriptor: int) -> None:
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise
    except OSError as error:
        # Some network file systems have no locks; a run there is better than none.
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the open file is the one of this name."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
