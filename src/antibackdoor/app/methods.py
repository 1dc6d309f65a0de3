"""All methods by name, over the three tables."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Collection
from dataclasses import asdict, is_dataclass
from typing import Any

from antibackdoor.defenses import DEFENSES
from antibackdoor.detectors import DETECTORS
from antibackdoor.errors import ConfigError
from antibackdoor.protocols import ALWAYS_THERE, FLAGS, NoFacts
from antibackdoor.purifiers import PURIFIERS

TABLES: tuple[dict[str, Any], ...] = (DEFENSES, DETECTORS, PURIFIERS)

# Names of earlier versions, and what to write now.
RENAMED = {"e2abl-published": "e2abl (and the default, which was called e2abl, is dual-head)"}


def method_name(method: Any) -> str:
    """The key of a method in its table; the name of its class if it is in none."""
    for table in TABLES:
        for name, kind in table.items():
            if type(method) is kind:
                return name
    return type(method).__name__


def look_up(name: str, table: dict[str, Any], flag: str) -> Any:
    """The class of a method.

    Raises:
        ConfigError: If there is none of this name; the message lists those that there are.
    """
    if name in RENAMED:
        raise ConfigError(f"{flag} {name} has a new name: write {RENAMED[name]}")
    if name not in table:
        raise ConfigError(f"{flag} {name} is unknown: choose one of {', '.join(table)}")
    return table[name]


def usual_purifier(*, has_clean: bool, has_suspicious: bool) -> str:
    """The name of the purifier that is taken where none is named, by what there is to purify with."""
    return "self-clean" if has_suspicious and not has_clean else "fine-tune"


def check_purifier(method: Any, there: Collection[str]) -> None:
    """Check that a purifier is given what it needs, before a model is opened.

    Args:
        method: The purifier.
        there: Names of the fields of `Given` that are given.

    Raises:
        ConfigError: If something is missing; the message names another method where one needs less.
    """
    name = method_name(method)
    missing = next((part for part in method.needs if part not in {*there, *ALWAYS_THERE}), None)
    if missing == "clean":
        raise ConfigError(
            f"--method {name} needs clean samples: give --clean, or use --method self-clean, which needs --suspicious "
            "alone"
        )
    if missing is not None:
        raise ConfigError(f"--method {name} needs {missing}: give {FLAGS[missing]}")


def method_summary(method: Any) -> str:
    """What a method does, and where it comes from: the first line of its docstring, and its references."""
    text = inspect.getdoc(method) or ""
    first, _, rest = text.partition("\n\n")
    cited = next((part for part in rest.split("\n\n") if part.startswith(("Reference", "It keeps"))), "")
    return " ".join(f"{first} {cited}".split())


def facts_of(kind: type[Any]) -> tuple[type[Any], ...]:
    """The dataclasses of facts that a method may return: those of its module called `...Facts`."""
    named = [value for name, value in vars(sys.modules[kind.__module__]).items() if name.endswith("Facts")]
    return tuple(one for one in named if isinstance(one, type) and is_dataclass(one) and one is not NoFacts)


def hyper_parameters(method: Any) -> dict[str, Any]:
    """The fields of a method in JSON's types."""
    return asdict(method)
