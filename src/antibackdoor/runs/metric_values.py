"""What a metric may be, by its key: `metrics.json` may come from somebody else, and pages calculate with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from antibackdoor.runs.metric_keys import METRIC_KEYS

_TEXTS = {"method", "method_summary", "backbone", "purified_from", "loaded_by", "normalization", "test_split"}
_ANSWERS = {"poisoned", "classes_reordered"}
_NAMES = {"target_labels", "unexamined_labels", "reading_notes"}
_WHOLE = {"schema_version", "seed", "epochs"}
_FRACTIONS = ("accuracy", "rate", "precision", "recall", "auroc", "tpr", "p_value")  # parts of their names


def wrong_metric(metrics: Mapping[str, Any]) -> str:
    """The first metric that cannot be what its key says, in words; empty if there is none.

    Keys that a method adds of its own may hold any plain value, or a list of plain values. None is always allowed: the
    value is not known.
    """
    for key, value in metrics.items():
        what, fits = _kind(key)
        if value is not None and not fits(value):
            return f"{key!r} is not {what}"
    return ""


def _kind(key: str) -> tuple[str, Callable[[Any], bool]]:
    """What the value of a key must be, in words, and whether it is."""
    if key in _TEXTS or key.endswith("_fingerprint"):
        return "a text", lambda value: isinstance(value, str)
    if key in _ANSWERS:
        return "true or false", lambda value: isinstance(value, bool)
    if key in _NAMES:
        return "a list of names", lambda value: isinstance(value, list) and all(_is_name(part) for part in value)
    if key in _WHOLE:
        return "a whole number", lambda value: type(value) is int
    if key == "seconds":
        return "a number of 0 or more", lambda value: _is_number(value) and value >= 0
    if key in METRIC_KEYS and key.startswith("n_"):
        return "a whole number of 0 or more", lambda value: type(value) is int and value >= 0
    if is_fraction(key):
        return "a fraction in [0, 1]", lambda value: _is_number(value) and 0 <= value <= 1
    return "a plain value, or a list of plain values", _is_plain


def is_fraction(key: str) -> bool:
    """Whether a key that every method shares tells a fraction in [0, 1]."""
    return key in METRIC_KEYS and not key.startswith("n_") and any(part in key for part in _FRACTIONS)


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _is_name(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_plain(value: object) -> bool:
    parts = value if isinstance(value, list) else [value]
    return not any(isinstance(part, list | dict) for part in parts)
