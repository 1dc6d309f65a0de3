"""`--config FILE`: options of a TOML file become flags before the parser sees them; flags that are given win."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from antibackdoor.errors import ConfigError


def with_config(arguments: Sequence[str]) -> list[str]:
    """The arguments, in which `--config FILE` is replaced by the options of the file that are not given.

    Raises:
        ConfigError: The file cannot be read, is of another command, or is named twice.
    """
    from antibackdoor.runs.options_file import CONFIGURABLE, as_flags, read_options

    places = [place for place, argument in enumerate(arguments) if argument.split("=", 1)[0] == "--config"]
    if not places or arguments[0] not in CONFIGURABLE:
        return list(arguments)
    if len(places) > 1:
        raise ConfigError("--config is given twice: give one file")
    place = places[0]
    _, equals, name = arguments[place].partition("=")
    following = arguments[place + 1 : place + 2]
    if not equals and not following:
        raise ConfigError("--config needs a file: give the run.toml of a run")
    rest = [*arguments[:place], *arguments[place + (1 if equals else 2) :]]
    given = {_option(argument) for argument in rest if argument.startswith("--")}
    options = read_options(Path(name if equals else following[0]), arguments[0])
    return [*rest, *(flag for key, value in options.items() if key not in given for flag in as_flags(key, value))]


def _option(argument: str) -> str:
    """The option that a flag sets: `--no-power` sets power, `--epochs=3` epochs."""
    return argument.split("=", 1)[0].removeprefix("--").removeprefix("no-").replace("_", "-")
