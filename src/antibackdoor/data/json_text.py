"""Reading JSON that somebody else may have made: one object of plain values that fit into 64 bits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from antibackdoor.data.regular_files import read_regular

JSON_BYTES = 16 * 2**20  # settings, metrics, names of classes: a thousand times what they usually need
_DEEPEST = 50  # levels; settings have five
_LARGEST = 2**63


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a regular file.

    Raises:
        OSError: It is missing, no regular file or too large.
        ValueError: It is no such object.
    """
    return json_object(read_regular(path, most=JSON_BYTES))


def json_object(text: bytes) -> dict[str, Any]:
    """One JSON object of few levels, with finite numbers and whole ones of 64 bits.

    Raises:
        ValueError: The text is something else.
    """
    try:
        values = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if not isinstance(values, dict):
        raise ValueError("it is not a JSON object")
    _check(values, _DEEPEST)
    return values


def _check(value: object, levels: int) -> None:
    if isinstance(value, dict | list):
        if not levels:
            raise ValueError(f"it is nested more than {_DEEPEST} levels deep")
        for part in value.values() if isinstance(value, dict) else value:
            _check(part, levels - 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"it holds {value}, which is not a number")
    elif isinstance(value, int) and abs(value) >= _LARGEST:
        raise ValueError("it holds a whole number of more than 64 bits")
