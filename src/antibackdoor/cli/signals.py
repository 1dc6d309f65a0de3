"""Ctrl-C, SIGTERM and SIGHUP end a command alike: cleaned up, with one line of advice, and a status that tells which.

The status is what shells give for a signal: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP. Only the standard
library is imported here, since a signal may arrive while all else is.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

TYPE_CHECKING = False  # as typing has it, which takes its time to import
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
ADVICE = "Stopped."

# A second Ctrl-C would break off what the first one tidies up; after this time it means that the end takes too long.
PATIENCE_SECONDS = 3.0
LONGEST_END_SECONDS = 10.0  # a lost connection to another process would hold it up for half an hour


class Stopped(KeyboardInterrupt):
    """A signal asked the command to end."""


class _Listener:
    """Turns the first signal into an exception, and passes over those that follow at once."""

    def __init__(self, *, is_program: bool = False) -> None:
        self.is_program = is_program
        self.advice = ADVICE
        self.since: float | None = None
        self.number = int(signal.SIGINT)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        first = self.since is None
        if self.since is None:
            self.since, self.number = now, number
        if is_helper_process():  # which writes nothing that could be left half done
            os._exit(0)
        if first and not _is_importing(frame):
            raise Stopped(f"signal {number}")
        if first or now - self.since > PATIENCE_SECONDS:
            self.end_at_once(number)

    def end_at_once(self, number: int) -> NoReturn:
        if is_helper_process():
            os._exit(0)
        with suppress(OSError):  # the terminal may be gone
            os.write(2, f"\n{self.advice}\n".encode(errors="backslashreplace"))
        os._exit(128 + number)


_listener = _Listener()


@contextmanager
def listening(*, afterwards: bool) -> Iterator[None]:
    """Let signals raise `Stopped` within the block.

    Args:
        afterwards: Keep on listening: the end of Python takes a moment, too.
    """
    global _listener
    _listener = _Listener(is_program=afterwards)
    before = {}
    for name in SIGNALS:
        number = getattr(signal, name, None)
        # Whoever started us may have set a signal to be ignored, as `nohup` does.
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            with suppress(ValueError):  # not in the first thread of a program, which has to care for itself
                before[number] = signal.signal(number, _listener)
    if afterwards and before and sys.platform != "win32":
        _watch(_listener)
    try:
        yield
    finally:
        if not afterwards:
            for number, handler in before.items():
                signal.signal(number, handler)


def _watch(listener: _Listener) -> None:
    """End the program if a signal has not: Python hears of one only once a call outside of it returns, if ever."""
    heard, sent = os.pipe()
    os.set_blocking(sent, False)
    signal.set_wakeup_fd(sent, warn_on_full_buffer=False)

    def wait() -> None:
        number = os.read(heard, 1)[0]
        while number not in {getattr(signal, name, None) for name in SIGNALS}:  # such as that a child has ended
            number = os.read(heard, 1)[0]
        time.sleep(LONGEST_END_SECONDS)
        listener.end_at_once(number)

    threading.Thread(target=wait, name="signals", daemon=True).start()


@contextmanager
def advising(advice: str) -> Iterator[None]:
    """Say how to go on if a signal ends what happens within."""
    before, _listener.advice = _listener.advice, advice
    yield
    _listener.advice = before  # only after success: the exception that ends the block is told with its advice


def was_stopped() -> bool:
    """Whether a signal came: what fails after it is its consequence, such as a lost connection."""
    return _listener.since is not None


def end() -> NoReturn:
    """Say that the command was stopped and how to go on, and exit with the status of the signal."""
    if is_helper_process():
        sys.exit(0)
    with suppress(OSError):
        print(f"\n{_listener.advice}", file=sys.stderr, flush=True)
        sys.stdout.flush()
    if _listener.is_program:  # what Python does at its end would wait for processes that the signal ended as well
        os._exit(128 + _listener.number)
    sys.exit(128 + _listener.number)


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported: libraries do not survive an exception there, or turn it into another."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def is_helper_process() -> bool:
    """Whether this is one of several processes of a command, but not the first, which speaks for all."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in ("LOCAL_RANK", "RANK"))
