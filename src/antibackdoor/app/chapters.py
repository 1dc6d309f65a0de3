"""One run folder for several trainings, one after the other: each sees a checkpoint of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from antibackdoor.training.journal import Journal


class Chapters:
    """Divides a journal into chapters. What a chapter leaves for the next ones is kept in every checkpoint."""

    def __init__(self, journal: Journal) -> None:
        state = journal.load() or {}
        self.journal = journal
        self._name: str = state.get("chapter", "")
        self._state: dict[str, Any] | None = state.get("state")
        self._kept: dict[str, Any] = state.get("kept", {})

    def journal_of(self, name: str) -> Chapter:
        """The journal of a chapter; it resumes if the run was stopped there."""
        state, self._state = (self._state if self._name == name else None), None
        self._name = name
        return Chapter(self, state)

    def kept(self, name: str) -> Any:
        """What a finished chapter left; None if it is not finished."""
        return self._kept.get(name)

    def keep(self, name: str, value: Any) -> None:
        """Finish a chapter."""
        self._kept[name] = value
        self.save(None)

    def save(self, state: dict[str, Any] | None) -> None:
        """Write a checkpoint."""
        self.journal.save({"chapter": self._name, "state": state, "kept": self._kept})


class Chapter:
    """The journal of a single chapter."""

    def __init__(self, book: Chapters, state: dict[str, Any] | None) -> None:
        self._book, self._first = book, state
        self.folder: Path | None = book.journal.folder

    def log(self, **fields: float | int | str | bool | None) -> None:
        """Write one line of measurements."""
        self._book.journal.log(**fields)

    def tell(self, message: str) -> None:
        """Say something to the person who waits."""
        self._book.journal.tell(message)

    def save(self, state: dict[str, Any]) -> None:
        """Keep a checkpoint of this chapter."""
        self._first = state
        self._book.save(state)

    def load(self) -> dict[str, Any] | None:
        """The last checkpoint of this chapter."""
        return self._first
