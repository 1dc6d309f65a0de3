"""`run.toml`: the options of the command that made a run, so that `--config run.toml` repeats it."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from antibackdoor.errors import ConfigError, shortened
from antibackdoor.runs.atomic import cannot, one_line, write_bytes

OPTIONS = "run.toml"
CONFIGURABLE = ("train", "scan", "purify", "compare", "demo")  # commands that take `--config`

_OF_ONE_RUN = ("out", "resume", "config", "cache")  # where it goes and how it went, not what it is
_LONGEST = 1 << 20  # bytes of a file of options
_KEY = re.compile(r"[a-z][a-z0-9_-]*")
_DATA = {"demo": "", "purify": "CHECKPOINT "}  # what the command is about; most are about data
_ABOUT = """\
# The options of this run. Repeat it with
#   antibackdoor {command} {data}--out NEW_FOLDER --config {file}
# Flags on the command line win. Of an absolute path only the name is kept, since run folders are passed on: give such
# a flag again.
"""

Value = bool | int | float | str | list[Any]


def options_of(arguments: Sequence[str]) -> dict[str, Value]:
    """What the flags of a command say: `--name value`, `--name=value`, `--name`, `--no-name`; repeated ones are lists.

    >>> options_of(["data", "--epochs", "3", "--no-power", "--mean=0.5", "--mean=.4", "--out", "run"])
    {'epochs': 3, 'power': False, 'mean': [0.5, '.4']}
    """
    found: dict[str, Value] = {}
    for place, argument in enumerate(arguments):
        if not argument.startswith("--") or len(argument) < 3:
            continue
        name, equals, text = argument[2:].partition("=")
        name = name.replace("_", "-")
        following = arguments[place + 1] if place + 1 < len(arguments) else "--"
        value: Value
        if equals:
            value = _typed(text)
        elif name.startswith("no-"):
            name, value = name[3:], False
        else:
            value = True if following.startswith("--") else _typed(following)
        if name in _OF_ONE_RUN:
            continue
        before = found.get(name)
        found[name] = value if before is None else [*(before if isinstance(before, list) else [before]), value]
    return found


def write_options(run: Path, command: Sequence[str]) -> None:
    """Write `run.toml` for a command line `antibackdoor COMMAND …`; nothing for one that takes no `--config`.

    Raises:
        RunError: The folder cannot be written.
    """
    if len(command) < 2 or command[1] not in CONFIGURABLE:
        return
    about = _ABOUT.format(command=command[1], data=_DATA.get(command[1], "DATA "), file=OPTIONS)
    lines = [f"{name} = {_toml(value)}" for name, value in options_of(command[2:]).items()]
    text = "\n".join([f'{about}command = "{command[1]}"', *lines, ""])
    write_bytes(run / OPTIONS, text.encode("utf-8", "replace"))


def read_options(path: Path, command: str) -> dict[str, Value]:
    """The options in a TOML file for a command.

    Raises:
        ConfigError: The file cannot be read, is of another command, or holds more than plain values.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LONGEST + 1)
    except OSError as error:
        raise ConfigError(cannot("read", path, error)) from error
    if len(content) > _LONGEST:
        raise ConfigError(f"--config {path} has more than {_LONGEST:,} bytes; give a file of options such as {OPTIONS}")
    try:
        values = tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--config {path} is not a TOML file: {one_line(error)}; write epochs = 3") from error
    wanted = values.pop("command", command)
    if wanted != command:
        raise ConfigError(f"--config {path} is for {shortened(str(wanted), 40)}, not for {command}: give another file")
    for name, value in values.items():
        if not _KEY.fullmatch(name):
            raise ConfigError(f"--config {path}: {shortened(name, 40)!r} is not an option; write flags without dashes")
        for part in value if isinstance(value, list) else [value]:
            if not isinstance(part, bool | int | float | str):
                raise ConfigError(f"--config {path}: {name} is not a plain value; give a number, text, true or false")
    return {name.replace("_", "-"): value for name, value in values.items()}


def as_flags(name: str, value: Value) -> list[str]:
    """An option as arguments.

    >>> as_flags("epochs", 3), as_flags("power", False), as_flags("mean", [0.5, 0.4])
    (['--epochs=3'], ['--no-power'], ['--mean=0.5', '--mean=0.4'])
    """
    if isinstance(value, list):
        return [flag for part in value for flag in as_flags(name, part)]
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}={value}"]


def _typed(text: str) -> Value:
    """A number where it is written as TOML and Python write it, so that nothing is lost; else the text."""
    if re.fullmatch(r"-?\d{1,18}", text) and str(int(text)) == text:
        return int(text)
    if re.fullmatch(r"-?\d+\.\d+", text) and repr(float(text)) == text:
        return float(text)
    return text


def _toml(value: Value) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
