"""Writing a file so that it is always whole: the old content or the new, never half of either."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from antibackdoor.data.json_text import read_json_object
from antibackdoor.data.regular_files import open_regular
from antibackdoor.errors import MOST_ECHOED, AntibackdoorError, RunError, disk_is_full
from antibackdoor.errors import cannot as could_not

if sys.platform != "win32":
    import fcntl

TEMPORARY_PREFIX = ".writing-"
_TOKEN = 4  # bytes that tell the temporary files of two processes apart


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well it takes the place of `path`.

    The data reach the disk before the name does (fsync, then rename, then fsync of the folder), so neither
    a killed process nor a power cut leaves a torn file. If the block fails the temporary file is removed; what a
    killed process left of an earlier attempt is removed by the next.

    Raises:
        RunError: The disk is full, or the folder is missing or not writable.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(_TOKEN)}-{path.name}")
    held: int | None = None
    try:
        _remove_abandoned(path)
        # Made first, so that it has the mode that the user's umask gives, and locked while it is written.
        held = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666)
        mode = stat.S_IMODE(os.fstat(held).st_mode)
        held = _locked(held)
        yield temporary
        if os.name == "posix":  # safetensors writes a file of its own, with another mode, in its place
            temporary.chmod(mode)
        _sync(temporary)
        temporary.replace(path)
        # Windows cannot open a folder; its rename is journaled by the file system.
        if os.name == "posix":
            _sync(path.parent)
    except OSError as error:
        raise RunError(cannot("write", path, error)) from error
    except Exception as error:
        if disk_is_full(error) and not isinstance(error, AntibackdoorError):  # torch and safetensors say it so
            raise RunError(cannot("write", path, error)) from error
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if held is not None:
            os.close(held)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the content of `path` by `data`, wholly or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Replace `path` by a JSON object in ASCII (so that any file name fits); NaN and infinity become null.

    Raises:
        RunError: The folder cannot be written.
    """
    write_bytes(path, (json.dumps(plain(values), indent=2, allow_nan=False) + "\n").encode("ascii"))


def read_json(path: Path, kind: type[AntibackdoorError] = RunError) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        AntibackdoorError: Of the given kind, if the file is missing or is not a JSON object.
    """
    try:
        return read_json_object(path)
    except OSError as error:
        raise kind(cannot("read", path, error)) from error
    except ValueError as error:
        raise kind(f"{path} is damaged: {one_line(error)}") from error


def plain(value: object) -> Any:
    """The same value in JSON's types: numpy scalars and arrays, tuples and paths are turned, NaN is None."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)


def _locked(descriptor: int) -> int | None:
    """The descriptor, locked while it is open; closed, and None, where an open file cannot be moved."""
    if sys.platform == "win32":
        os.close(descriptor)
        return None
    with suppress(OSError):  # no locks on this file system: a killed process leaves a file behind
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def _remove_abandoned(path: Path) -> None:
    """Delete what killed processes left of this file; what another process still writes is locked."""
    if sys.platform == "win32":
        return
    name = re.compile(f"{re.escape(TEMPORARY_PREFIX)}[0-9a-f]{{{2 * _TOKEN}}}-{re.escape(path.name)}")
    found: list[Path] = []
    with suppress(OSError):  # the folder may be missing, or only be there to write into
        found = [entry for entry in path.parent.iterdir() if name.fullmatch(entry.name)]
    for leftover in found:
        with suppress(OSError):
            descriptor = open_regular(leftover)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                leftover.unlink()
            finally:
                os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of a killed process. Call it only while no one else writes here."""
    for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):
        with suppress(OSError):
            leftover.unlink()


def entries(folder: Path) -> set[str]:
    """The names in a folder of runs, without what a kill has left; none if there is no folder.

    Raises:
        RunError: One of them is a link, so that a run would be written where it leads.
    """
    found = list(folder.iterdir()) if folder.is_dir() else []
    link = next((entry for entry in sorted(found) if entry.is_symlink()), None)
    if link is not None:
        raise RunError(f"{link} is a link, which may lead out of the folder; replace it with the folder itself")
    return {entry.name for entry in found if not entry.name.startswith(TEMPORARY_PREFIX)}


def cannot(verb: str, path: Path, error: BaseException) -> str:
    """One line that says what could not be done to a file, and why."""
    return one_line(could_not(verb, path, error), 3 * MOST_ECHOED)


def one_line(error: object, limit: int = 300) -> str:
    """The message of an error of another library on one line of at most `limit` characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _sync(path: Path) -> None:
    # Windows refuses to fsync what is open for reading only.
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
