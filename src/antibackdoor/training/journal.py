"""Where a training writes what it did, and from where it resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol


class Journal(Protocol):
    """Keeps the log and the checkpoint of a run.

    Attributes:
        folder: Where large temporary files may go; None for the system's own place.
    """

    folder: Path | None

    def log(self, **fields: float | int | str | bool | None) -> None:
        """Write one line of measurements."""
        ...

    def tell(self, message: str) -> None:
        """Say something to the person who waits, such as how long it will take."""
        ...

    def save(self, state: dict[str, Any]) -> None:
        """Keep a checkpoint: nested dicts and lists of tensors, arrays, numbers and strings."""
        ...

    def load(self) -> dict[str, Any] | None:
        """The last checkpoint, or None."""
        ...


class NoJournal:
    """A journal that keeps nothing, for use from Python."""

    folder: Path | None = None

    def log(self, **fields: float | int | str | bool | None) -> None:
        """Forget the line."""

    def tell(self, message: str) -> None:
        """Say nothing."""

    def save(self, state: dict[str, Any]) -> None:
        """Forget the checkpoint."""

    def load(self) -> dict[str, Any] | None:
        """Nothing was kept."""
        return None


def spoken(seconds: float) -> str:
    """A time span as one says it: `about 40 seconds`, `about 12 minutes`, `about 3 hours`.

    >>> [spoken(seconds) for seconds in (0.2, 41, 700, 10_900)]
    ['about 1 seconds', 'about 41 seconds', 'about 12 minutes', 'about 3 hours']
    """
    if seconds > 7200:
        return f"about {seconds / 3600:.0f} hours"
    return f"about {seconds / 60:.0f} minutes" if seconds > 100 else f"about {max(seconds, 1):.0f} seconds"
