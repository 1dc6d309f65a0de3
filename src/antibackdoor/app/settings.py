"""From keyword arguments to a method and a recipe: a field that a method owns goes there, all others to the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, get_type_hints

import numpy as np

from antibackdoor.errors import ConfigError
from antibackdoor.training.recipe import Recipe, named_recipe

_WORDS = {int: "a whole number", float: "a number", str: "a string", bool: "True or False"}


def chosen_method(method: Any, table: Mapping[str, Any], argument: str) -> Any:
    """The method of a name, with its defaults; an instance is taken as it is.

    Raises:
        ConfigError: If it is neither.
    """
    if isinstance(method, str):
        if method not in table:
            raise ConfigError(f"{argument} is {method!r}; give one of {', '.join(table)}")
        return table[method]()
    kinds = tuple(table.values())
    if isinstance(method, type) and issubclass(method, kinds):
        return method()
    work = {"defense": "train", "detector": "detect", "method": "purify"}[argument]
    if is_dataclass(method) and hasattr(method, work):
        return method
    raise ConfigError(
        f"{argument} is of type {type(method).__name__}; give a name such as {next(iter(table))!r}, or an instance of "
        f"one of these methods"
    )


def applied(method: Any, recipe: Recipe | str | None, given: Mapping[str, Any], argument: str) -> tuple[Any, Recipe]:
    """The method and the recipe with the settings that were given.

    Args:
        method: Its own fields of these names come first.
        recipe: Where the others go, or its name; the default recipe if None.
        given: Names to values; None stands for what was not given.
        argument: What the method is called, for messages.

    Raises:
        ConfigError: If a value is of the wrong type or out of range, or changes nothing with this method.
    """
    if isinstance(recipe, str):
        recipe = named_recipe(recipe)
    if recipe is not None and not isinstance(recipe, Recipe):
        raise ConfigError(f"recipe is of type {type(recipe).__name__}; give a name or an antibackdoor.Recipe")
    hints = get_type_hints(Recipe)
    own = {part.name for part in fields(method)}
    of_method: dict[str, Any] = {}
    of_recipe: dict[str, Any] = {}
    for name, value in given.items():
        if value is None:
            continue
        value = _typed(name, value, hints[name])
        if name in own:
            of_method[name] = value
        elif name in method.unused:
            raise ConfigError(f"{name} changes nothing with this {argument} ({type(method).__name__}): leave it out")
        else:
            of_recipe[name] = value
    recipe = replace(recipe or Recipe(), **of_recipe)
    return (replace(method, **of_method) if of_method else method), recipe


def _typed(name: str, value: Any, hint: Any) -> Any:
    """The value as a plain one of its type; numbers of numpy will do."""
    kind = hint if hint in _WORDS else str
    if isinstance(value, np.generic):
        value = value.item()
    fits = isinstance(value, int | float if kind is float else kind) and (kind is bool or not isinstance(value, bool))
    if not fits:
        raise ConfigError(f"{name} is {value!r:.60} (of type {type(value).__name__}); give {_WORDS[kind]}")
    return value
