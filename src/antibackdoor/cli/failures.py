"""How a command fails: one line that says what is wrong and what to do, and exit status 2. Warnings are sentences."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn, TextIO

import cyclopts

from antibackdoor.cli.signals import is_helper_process
from antibackdoor.errors import AntibackdoorError, disk_is_full, shortened, spelled_out

USER_ERROR = 2

LONGEST_WORD = 400  # characters; the longest names of files have 255
LONGEST_SENTENCE = 2000
_MEMORY = re.compile(r"can't allocate memory|out of memory|not enough memory|Unable to allocate", re.IGNORECASE)
_PEER = re.compile(r"Connection (was likely )?(closed|reset)|Broken pipe", re.IGNORECASE)


def sentence(message: str) -> str:
    """A message as one line that a terminal can take: control characters are spelled out, what is too long is cut.

    >>> sentence("there is\\n no " + "x" * 500)[-3:], sentence("a\\x1b[2Jb")
    ('xxx', 'a\\\\x1b[2Jb')
    """
    words = [shortened(word, LONGEST_WORD) for word in message.split()]
    return spelled_out(shortened(" ".join(words), LONGEST_SENTENCE))


def fail(message: str, details: Sequence[str] = ()) -> NoReturn:
    """Say what is wrong in one line on standard error, and what it is made of in more, and exit with 2."""
    if is_helper_process():  # the first process meets the same mistake, says so, and must not be killed before it has
        sys.exit(0)
    with suppress(OSError):  # standard error may be on the disk that is full
        print(f"antibackdoor: {sentence(message)}", file=sys.stderr)
        for detail in details:
            print(f"  {sentence(detail)}", file=sys.stderr)
        sys.stderr.flush()
    sys.exit(USER_ERROR)


@contextmanager
def failing_in_words() -> Iterator[None]:
    """End with `fail` what the user can fix; errors of this package's own making go on."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # else Python meets a full disk or a closed pipe at its own end
    except AntibackdoorError as error:
        fail(str(error), getattr(error, "__notes__", ()))
    except cyclopts.CycloptsError as error:
        fail(str(error))
    except BrokenPipeError:  # whoever read our output has gone
        _drop_output()
        sys.exit(1)
    except OSError as error:
        if error.filename is not None:
            why = "the disk is full" if disk_is_full(error) else error.strerror
            fail(f"{error.filename!s}: {why}; check the path and its permissions, or use another path")
        if not disk_is_full(error):
            raise
        _drop_output()
        fail("the disk is full; free some space, or choose a folder on another disk")
    except (MemoryError, RuntimeError) as error:
        if is_helper_process() and _PEER.search(str(error)):  # the first process ended, and said why
            os._exit(USER_ERROR)
        if not isinstance(error, MemoryError) and not _MEMORY.search(str(error)):
            raise
        said = str(error).strip().splitlines() or ["allocation failed"]
        fail(f"there is not enough memory ({shortened(said[0])}); use smaller values, such as a smaller --batch-size")


@contextmanager
def warning_in_sentences() -> Iterator[None]:
    """Print a warning as one sentence on standard error, without the line of code that it came from."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*even kernel lengths.*")
        warnings.filterwarnings("ignore", message="Detected pickle protocol")  # of a file read without unpickling
        warnings.showwarning = _show
        yield


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if not is_helper_process():
        print(f"antibackdoor: note: {sentence(str(message))}", file=sys.stderr)


def _drop_output() -> None:
    """Let Python's last flush go nowhere."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
