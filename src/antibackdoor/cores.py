"""Fewer threads where other programs need the processor as well.

The threads of an operation wait for each other without sleeping, in oneDNN's kernels too, where no setting of OpenMP
reaches. With fewer free cores than threads each waits for the others' time slices at every barrier: two trainings at
the same time on two cores take up to thirty times as long as one alone (`benchmarks/beside.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

THREADS = Path("/proc/self/task")  # on Linux; elsewhere nothing is noticed
WINDOW = 1.0  # seconds between two looks, at least
PRESSED = 50.0  # times a second that a thread is interrupted: about 13 on a free machine, 75 to 130 beside a training
PATIENCE = 300.0  # seconds without pressure after which all threads are tried again


class Cores:
    """How many threads torch may use at present: as many as it wants, unless they are pushed off their cores."""

    def __init__(self) -> None:
        self.most = self.allowed = torch.get_num_threads()
        self.looked, self.pressed = 0.0, 0.0
        self.interrupted: dict[str, int] = {}

    @contextmanager
    def shared(self) -> Iterator[Callable[[], None]]:
        """Within, call what is yielded after each step; afterwards torch has as many threads as before."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.allowed)
        self.looked, self.interrupted = time.monotonic(), interruptions() if self.most > 1 else {}
        try:
            yield self.look
        finally:
            torch.set_num_threads(before)

    def look(self) -> None:
        """One thread less for each that lost its core to others since the last look."""
        now = time.monotonic()
        lasted = now - self.looked
        if self.most == 1 or lasted < WINDOW:
            return
        interrupted = interruptions()
        n_pressed = sum(n - self.interrupted.get(name, n) > PRESSED * lasted for name, n in interrupted.items())
        if n_pressed:
            self.allowed, self.pressed = max(1, self.allowed - n_pressed), now
        elif now - self.pressed > PATIENCE:
            self.allowed = self.most
        torch.set_num_threads(self.allowed)
        self.looked, self.interrupted = now, interrupted


def interruptions() -> dict[str, int]:
    """How often each thread of this process was interrupted while it could have gone on; empty where nobody counts."""
    counts = {}
    for thread in THREADS.glob("*/status"):
        with suppress(OSError):  # it may have ended
            counts[thread.parent.name] = _interruptions(thread.read_text(encoding="ascii", errors="replace"))
    return counts


def _interruptions(status: str) -> int:
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("nonvoluntary_ctxt")), 0)
