"""Writing a file so that it is always whole: the old content or the new, never half of either."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from antibackdoor.errors import AntibackdoorError, RunError

TEMPORARY_PREFIX = ".writing-"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well it takes the place of `path`.

    The data reach the disk before the name does (fsync, then rename, then fsync of the folder), so neither
    a killed process nor a power cut leaves a torn file. If the block fails the temporary file is removed.

    Raises:
        RunError: The disk is full, or the folder is missing or not writable.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(4)}-{path.name}")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        # Windows cannot open a folder; its rename is journaled by the file system.
        if os.name == "posix":
            _sync(path.parent)
    except OSError as error:
        raise RunError(cannot("write", path, error)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


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
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise kind(cannot("read", path, error)) from error
    except (ValueError, RecursionError) as error:
        raise kind(f"{path} is damaged: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise kind(f"{path} is damaged: it holds no JSON object")
    return values


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


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of a killed process. Call it only while no one else writes here."""
    for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):
        with suppress(OSError):
            leftover.unlink()


def cannot(verb: str, path: Path, error: OSError) -> str:
    """One line that says what could not be done to a file, and why: `cannot write a/b: No space left`."""
    return one_line(f"cannot {verb} {path}: {error.strerror or error}")


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
