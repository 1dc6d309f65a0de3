"""Check the hyper-parameters of a method against the ranges that its documentation states."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin, get_type_hints

from antibackdoor.errors import ConfigError

# Metadata of a hyper-parameter that is for research: a field in Python, no flag of the command line.
RESEARCH = {"flag": False}


def check_ranges(method: Any, **ranges: str) -> None:
    """Check numbers of a method against intervals such as `"(0, 1]"` or `"[0, inf)"`; nan lies in none.

    Raises:
        ConfigError: If one lies outside; the message names it, its value and the interval.
    """
    for name, interval in ranges.items():
        low, high = (float(end) for end in interval[1:-1].split(","))
        value = getattr(method, name)
        above = value >= low if interval[0] == "[" else value > low
        below = value <= high if interval[-1] == "]" else value < high
        if not (above and below):
            raise ConfigError(f"{name} is {value}; give a number in {interval}")


def check_choices(method: Any) -> None:
    """Check the fields of a dataclass that are typed as `Literal`.

    Raises:
        ConfigError: If one has a value that its type does not list.
    """
    for name, kind in get_type_hints(type(method)).items():
        if get_origin(kind) is Literal and getattr(method, name) not in get_args(kind):
            raise ConfigError(f"{name} is {getattr(method, name)!r}; choose one of {', '.join(get_args(kind))}")
