"""The decisions of one review: made, taken back, and saved at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from antibackdoor.data.regular_files import read_regular
from antibackdoor.errors import RunError
from antibackdoor.review.suspects import Group, evidence_of, groups_of
from antibackdoor.runs.atomic import write_bytes
from antibackdoor.runs.decisions import ACCEPTED, DECISIONS, REJECTED, Decision, decisions_text, read_decisions
from antibackdoor.runs.samples_table import SamplesTable

Said = dict[int, str]  # row of the table -> accepted, rejected, or "" for undecided


class ReviewSession:
    """What a person has said of a run's suspects so far. Safe to use from several threads.

    Attributes:
        path: `decisions.csv` in the run folder.
        table: The run's verdict on every sample.
        groups: The suspects.
    """

    def __init__(self, run: Path, table: SamplesTable) -> None:
        """Go on with the decisions that the folder holds.

        Raises:
            RunError: These decisions cannot be read.
        """
        self.path, self.table, self.groups = run / DECISIONS, table, groups_of(table)
        self._decisions: dict[str, Decision] = read_decisions(self.path) if self.path.exists() else {}
        self._known = self._stored()
        self._undo: list[dict[str, Decision | None]] = []
        self._row_of = {str(name): row for row, name in enumerate(table.ids.tolist())}
        self._lock = Lock()

    def said(self, row: int) -> str:
        """What was said of a row: accepted, rejected, or "" for nothing."""
        decision = self._decisions.get(str(self.table.ids[row]))
        return "" if decision is None else decision.decision

    def counts(self, group: Group) -> tuple[int, int, int]:
        """How many of a group are accepted, rejected and undecided."""
        said = [self.said(row) for row in group.rows.tolist()]
        n_accepted, n_rejected = said.count(ACCEPTED), said.count(REJECTED)
        return n_accepted, n_rejected, len(said) - n_accepted - n_rejected

    def decide(self, rows: Sequence[int], decision: str) -> Said:
        """Say one thing of several suspects, and save; "" takes back what was said.

        Returns:
            What is said now of the rows that changed.

        Raises:
            RunError: The decision is none, a row is not in the table, or the file cannot be written, or was changed by
                another program. Then nothing has changed.
        """
        if decision not in (ACCEPTED, REJECTED, ""):
            raise RunError(f"a decision is {ACCEPTED} or {REJECTED}, not {decision[:40]!r}")
        if any(not 0 <= row < len(self.table.ids) for row in rows):
            raise RunError("there is no such sample in this run")
        with self._lock:
            change: dict[str, Decision | None] = {}
            for row in dict.fromkeys(rows):
                if self.said(row) != decision:
                    seen = evidence_of(self.table, row)
                    change[seen.id] = Decision(decision, seen.given, seen.suggested) if decision else None
            return self._apply(change, undoable=True)

    def undo(self) -> Said:
        """Take the last decision back, and save. Returns what is said now of the rows that changed."""
        with self._lock:
            if not self._undo:
                return {}
            changed = self._apply(self._undo[-1], undoable=False)
            self._undo.pop()
            return changed

    def _apply(self, change: dict[str, Decision | None], *, undoable: bool) -> Said:
        if not change:
            return {}
        before = {name: self._decisions.get(name) for name in change}
        whole = {name: said for name, said in (self._decisions | change).items() if said is not None}
        if self._stored() != self._known:
            raise RunError(f"{self.path} was changed by another program: start the review again")
        data = decisions_text(whole)
        write_bytes(self.path, data)
        self._decisions, self._known = whole, data
        if undoable:
            self._undo.append(before)
        return {self._row_of[name]: "" if said is None else said.decision for name, said in change.items()}

    def _stored(self) -> bytes | None:
        try:
            return read_regular(self.path, most=2**30)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunError(f"cannot read {self.path}: {error.strerror}; start the review again") from error
