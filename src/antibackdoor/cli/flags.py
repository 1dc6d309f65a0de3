"""From the hyper-parameters of methods to flags: one dataclass a command, whose fields the parser reads.

A method's field becomes a flag unless its metadata say otherwise; fields of a part, such as the search of a defense,
stand beside those of the whole. A method that has a field of the recipe's name owns that flag, and a recipe's field
that a method does not use has none: to give it is refused.
"""

from __future__ import annotations

import inspect
from dataclasses import MISSING, Field, field, fields, is_dataclass, make_dataclass, replace
from typing import Annotated, Any, get_type_hints

from cyclopts import Group, Parameter

from antibackdoor.cli.limits import check_sizes
from antibackdoor.data.options import ReadOptions
from antibackdoor.errors import ConfigError

DATA = Group("Data", sort_key=1)
TRAINING = Group("Training", sort_key=2)
METHOD = Group("Method", sort_key=3)
OUTPUT = Group("Output", sort_key=4)

# What is printed of a value that the parser would not take.
OWNED = ("epochs", "learning_rate", "momentum", "weight_decay", "batch_size", "augment")


def flag(name: str) -> str:
    """A field as a flag: `learning_rate` is `--learning-rate`."""
    return f"--{name.replace('_', '-')}"


def descriptions(kind: type[Any]) -> dict[str, str]:
    """What the docstring of a dataclass says of each of its fields, on one line."""
    text = inspect.getdoc(kind) or ""
    _, _, listed = text.partition("Attributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in listed.split("\n"):
        if not line.strip():
            break
        if line.startswith("    ") and not line.startswith("     "):
            name, _, rest = line.strip().partition(":")
            found[name] = rest.strip()
        elif name:
            found[name] += f" {line.strip()}"
    return found


def flat_fields(kind: type[Any]) -> dict[str, tuple[type[Any], Field[Any]]]:
    """The fields of a method that are flags, its parts' included, and the class that each is of.

    A part has no flag of the recipe's name: `--epochs` of a training is not that of its search.
    """
    found: dict[str, tuple[type[Any], Field[Any]]] = {}
    hints = get_type_hints(kind)
    for part in fields(kind):
        if not part.metadata.get("flag", True):
            continue
        if is_dataclass(hints[part.name]):
            default = part.default_factory() if part.default_factory is not MISSING else part.default
            for name, (owner, inner) in flat_fields(hints[part.name]).items():
                is_own = name not in found and name not in OWNED
                if is_own and getattr(default, name) == default_of(inner):
                    found[name] = (owner, inner)
        else:
            found[part.name] = (kind, part)
    return found


def default_of(part: Field[Any]) -> Any:
    """The default of a field."""
    return part.default_factory() if part.default_factory is not MISSING else part.default


def settings_type(kind: type[Any], group: Group, *, without: tuple[str, ...] = (), defaults: Any = None) -> type[Any]:
    """A dataclass with the flags of a method (or of the recipe), described and grouped; an instance gives defaults."""
    parts: list[tuple[str, Any, Any]] = []
    for name, (owner, part) in flat_fields(kind).items():
        if name in without:
            continue
        hint = get_type_hints(owner)[name]
        parameter = Parameter(group=group, help=descriptions(owner).get(name, ""))
        default = default_of(part) if defaults is None else getattr(defaults, name)
        parts.append((name, Annotated[hint, parameter], field(default=default)))
    return parsed(f"{kind.__name__}Settings", parts)


def parsed(name: str, parts: list[tuple[str, Any, Any]]) -> type[Any]:
    """A dataclass that the parser takes apart into flags; one without flags keeps a hidden one."""
    hidden = ("nothing", Annotated[bool, Parameter(show=False)], field(default=False))
    # The parser takes classes of the standard library, where made ones are at home, as values.
    return make_dataclass(name, parts or [hidden], frozen=True, namespace={"__module__": __name__})


def made(kind: type[Any], settings: Any, base: Any = None) -> Any:
    """The method with the values of its flags; an instance gives what is no flag."""
    values = {part.name: getattr(settings, part.name) for part in fields(settings)}
    check_sizes(values)
    hints = get_type_hints(kind)
    own: dict[str, Any] = {}
    for part in fields(kind):
        if is_dataclass(hints[part.name]):
            inner = default_of(part)
            names = {name for name in flat_fields(type(inner)) if name in values and name not in OWNED}
            own[part.name] = replace(inner, **{name: values[name] for name in names})
        elif part.name in values:
            own[part.name] = values[part.name]
    return kind(**own) if base is None else replace(base, **own)


def recipe_without(kind: type[Any]) -> tuple[str, ...]:
    """Fields of the recipe that are no flags beside this method: it owns them, or does not use them."""
    return (*kind.unused, *(name for name in flat_fields(kind) if name in OWNED))


def refuse_unused(arguments: list[str], kind: type[Any], name: str) -> None:
    """Say in one line that a flag of the recipe changes nothing with this method.

    Raises:
        ConfigError: If one of them is given.
    """
    given = {argument.split("=", 1)[0] for argument in arguments}
    for part in kind.unused:
        if {flag(part), f"--no-{flag(part)[2:]}"} & given and part not in flat_fields(kind):
            raise ConfigError(f"{flag(part)} changes nothing with {name}: leave it out")


# How data are read: the same flags in every command that reads some.
READING: Any = settings_type(ReadOptions, DATA)


def read_options(settings: Any) -> dict[str, Any]:
    """What the user said of the data with these flags, as arguments of the functions that read them.

    Raises:
        ConfigError: If a value is not one of those possible.
    """
    options: ReadOptions = made(ReadOptions, settings)
    return options.chosen()
