"""Messages name flags of the command line; who calls from Python reads the names of arguments instead."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from antibackdoor.errors import AntibackdoorError

# A flag and, where there is one, the value that the message gives with it.
_VALUE = r"[A-Z]{2,}\b|\d[\w.]*|skip\b|raise\b|interpolate\b|cpu\b|self-clean\b"
_FLAG = re.compile(rf"--(no-)?([a-z][a-z-]*[a-z])(?:(?:=| )({_VALUE}))?")
_PLACEHOLDERS = frozenset({"FOLDER", "FILE", "RUN", "DATA", "NAME", "PATH"})
# Switches, and flags that Python has under another name.
_ALONE = {"resume": "resume=True", "follow_links": "follow_links=True", "checkpoint": "given=Given(model=...)"}


def in_python_words(message: str) -> str:
    """The message with arguments in place of flags.

    >>> in_python_words("leave such samples out with --on-error skip")
    "leave such samples out with on_error='skip'"
    >>> in_python_words("give another folder with --cache, or set --test-fraction 0; --resume goes on")
    'give another folder with cache, or set test_fraction=0; resume=True goes on'
    """
    return _FLAG.sub(_argument, message)


def _argument(found: re.Match[str]) -> str:
    negated, flag, value = found.groups()
    name = flag.replace("-", "_")
    if negated:
        return f"{name}=False"
    if value is None or value in _PLACEHOLDERS:
        return _ALONE.get(name, name)
    is_number = value.replace(".", "", 1).isdigit()
    return f"{name}={value}" if is_number else f"{name}={value!r}"


@contextmanager
def python_words() -> Iterator[None]:
    """Within, or in a function that this decorates, errors that a user can fix speak of arguments, not of flags."""
    try:
        yield
    except AntibackdoorError as error:
        message = in_python_words(str(error))
        if message == str(error):
            raise
        translated = type(error)(message)
        for note in getattr(error, "__notes__", ()):
            translated.add_note(note)
        raise translated from error
