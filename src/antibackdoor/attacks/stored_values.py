"""Triggers and plans from stored values that somebody else may have written: each field as its class declares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from antibackdoor.protocols import Trigger

MOST_STEPS = 100_000  # of a search in each sample, members of its population, and the like: a day's work
_COUNTED = {"n_steps", "rounds", "population", "generations", "n_candidates", "blocks", "width", "jitter", "n_classes"}


def made(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """A frozen dataclass from its values.

    Raises:
        ValueError: A field is missing, unknown, of another type than declared, or beyond all measure.
    """
    known = {field.name: field.default is MISSING for field in fields(kind)}
    odd = sorted(set(values) - set(known)) or sorted(
        name for name, needed in known.items() if needed and name not in values
    )
    if odd:
        raise ValueError(f"{kind.__name__} has other fields than stored: {', '.join(odd)}")
    hints = get_type_hints(kind, localns={"Trigger": Trigger})
    for name, value in values.items():
        if not _fits(value, hints[name]):
            raise ValueError(f"{name!r} of {kind.__name__} has the wrong type")
        if name in _COUNTED and type(value) is int and not 0 <= value <= MOST_STEPS:
            raise ValueError(f"{name!r} of {kind.__name__} is {value}; it must lie in 0..{MOST_STEPS}")
    return kind(**values)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is what a type hint of a field says."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return any(value == part and type(value) is type(part) for part in parts)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is tuple:
        return _fits_tuple(value, parts)
    if origin is np.ndarray:
        return isinstance(value, np.ndarray) and _is_array_of(value, get_args(parts[1])[0])
    if hint is Trigger:
        return is_dataclass(value) and hasattr(value, "apply")
    if hint in (float, int, bool, str, NoneType):
        return _is_plain(value, hint)
    return isinstance(value, hint)


def _fits_tuple(value: Any, parts: tuple[Any, ...]) -> bool:
    if not isinstance(value, tuple):
        return False
    if len(parts) == 2 and parts[1] is Ellipsis:
        return all(_fits(part, parts[0]) for part in value)
    return len(value) == len(parts) and all(_fits(part, hint) for part, hint in zip(value, parts, strict=True))


def _is_plain(value: Any, kind: type[Any]) -> bool:
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is kind


def _is_array_of(array: np.ndarray[Any, Any], scalar: Any) -> bool:
    is_kind = scalar is Any or array.dtype == scalar
    return is_kind and array.dtype.kind in "buif" and bool(np.isfinite(array).all())
