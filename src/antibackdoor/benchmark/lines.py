"""Results as JSON lines, one a measured cell. A killed benchmark loses no more than the line that it was writing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from antibackdoor.errors import RunError
from antibackdoor.runs.atomic import cannot, plain

Line = dict[str, Any]


def identity(cell: Mapping[str, Any]) -> str:
    """What makes two cells the same: their fields but those that are empty, zero or false.

    A field with such a value is as one that did not exist when an older line was written.

    >>> identity({"data": "digits", "seed": 1, "plan": ""}) == identity({"seed": 1, "data": "digits"})
    True
    """
    return json.dumps({key: value for key, value in plain(cell).items() if value}, sort_keys=True)


def read_lines(path: Path) -> list[Line]:
    """The last line of each cell, in the order in which the cells came first; none if there is no file.

    Torn lines, and those that are no line of a cell, are passed over.

    Raises:
        RunError: If the file cannot be read.
    """
    latest: dict[str, Line] = {}
    try:
        written = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise RunError(cannot("read", path, error)) from error
    for text in written.split(b"\n"):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("cell"), dict):
            latest[identity(line["cell"])] = line
    return list(latest.values())


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line, in one write. After a torn line it begins a new one. NaN and infinity become null.

    Raises:
        RunError: If the file cannot be written.
    """
    text = (json.dumps(plain(line), allow_nan=False) + "\n").encode("ascii")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    text = b"\n" + text
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunError(cannot("write", path, error)) from error
