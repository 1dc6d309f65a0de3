"""What a case may end in, and which of these are faults."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

OK, REFUSED = "ok", "refused"
TRACEBACK, HANG, EXECUTION, OUTSIDE, DAMAGED, MEMORY = (
    "traceback", "hang", "execution", "write outside", "damaged file", "memory",
)  # fmt: skip
CRASH, UNTIDY, WRONG, BROKEN = "crash", "untidy", "wrong", "broken generator"
FAULTS = (EXECUTION, OUTSIDE, DAMAGED, HANG, MEMORY, CRASH, TRACEBACK, UNTIDY, WRONG, BROKEN)

LONGEST_MESSAGE = 2000  # characters of the one line: twenty names of files, and what to do
_OUT_OF_MEMORY = re.compile(
    r"MemoryError|bad_alloc|can't allocate|cannot allocate|unable to allocate|out of memory", re.I
)
_RAW_WARNING = re.compile(r"\.py:\d+: \w*Warning: ")


@dataclass(frozen=True)
class Ended:
    """How the process of a case ended.

    Attributes:
        code: Its exit code; None if it was killed.
        signal: The signal that ended it, or 0.
        timed_out: Whether the driver killed it.
        notes: What the process noted of itself: violations, errors, hashes.
        changed: Files that the case may not change, and that are no longer as before.
        out: Its standard output.
        err: Its standard error.
    """

    code: int | None
    signal: int
    timed_out: bool
    notes: list[dict[str, Any]]
    changed: list[str]
    out: str
    err: str


@dataclass(frozen=True)
class Allowed:
    """What a case says of its end.

    Attributes:
        expect: `ok`, `refused` or `either`.
        codes: Exit codes that are right beside 0 and 2.
        may_run_out: Whether it asks for so much memory that to say so is right.
        may_warn: Whether it is a call from Python, where warnings are shown as Python shows them.
    """

    expect: str
    codes: tuple[int, ...] = ()
    may_run_out: bool = False
    may_warn: bool = False


@dataclass(frozen=True)
class Outcome:
    """The verdict on a case.

    Attributes:
        kind: `ok`, `refused` or one of `FAULTS`.
        what: What happened, in a line.
        group: Faults with the same group have most likely one cause.
    """

    kind: str
    what: str
    group: str

    @property
    def is_fault(self) -> bool:
        """Whether the package did wrong (or the campaign did)."""
        return self.kind in FAULTS


def judge(ended: Ended, allowed: Allowed) -> Outcome:
    """The worst of what happened."""
    noted = {note["note"]: note for note in reversed(ended.notes)}
    for kind in (BROKEN, EXECUTION, OUTSIDE):
        if kind in noted:
            return Outcome(kind, str(noted[kind]["what"]), str(noted[kind].get("group", noted[kind]["what"])))
    if ended.changed:
        return Outcome(DAMAGED, ", ".join(ended.changed[:5]), ended.changed[0].rsplit("/", 1)[-1])
    if ended.timed_out:
        return Outcome(HANG, _last_line(ended.err) or "no end", "")
    error = noted.get("error")
    text = f"{ended.err}\n{error['what'] if error else ''}"
    if _OUT_OF_MEMORY.search(text) and not (allowed.may_run_out and ended.code == 2):
        return Outcome(MEMORY, _last_line(text), error["group"] if error else "refused only when memory was at an end")
    if ended.signal:
        return Outcome(CRASH, f"signal {ended.signal}: {_last_line(ended.err)}", f"signal {ended.signal}")
    if error:
        return Outcome(WRONG if error["type"] == "Wrong" else TRACEBACK, error["what"], error["group"])
    if "Traceback (most recent call last)" in ended.err:
        return Outcome(TRACEBACK, _last_line(ended.err), _last_line(ended.err))
    return _tidy(ended, allowed) or _as_expected(ended, allowed.expect)


def _tidy(ended: Ended, allowed: Allowed) -> Outcome | None:
    """Whether codes and messages are not what a user is promised."""
    if ended.code not in (0, 2, *allowed.codes):
        return Outcome(UNTIDY, f"exit code {ended.code}: {_last_line(ended.err)}", f"exit code {ended.code}")
    if _RAW_WARNING.search(ended.err) and not allowed.may_warn:
        return Outcome(UNTIDY, f"a raw warning: {_last_line(ended.err)}", "raw warning")
    lines = [
        line for line in ended.err.splitlines() if line.strip() and not line.startswith("  ")
    ]  # details are set off
    if ended.code == 2 and not (lines and lines[-1].startswith("antibackdoor: ")):
        return Outcome(UNTIDY, f"refused without its line: {ended.err[-300:]!r}", "no line")
    if ended.code == 2 and len(lines[-1]) > LONGEST_MESSAGE:
        return Outcome(UNTIDY, f"{len(lines[-1])} characters: {lines[-1][:200]!r}", "long line")
    unprintable = [sign for sign in ended.err + ended.out if not sign.isprintable() and sign not in "\n\r\t"]
    if unprintable:
        return Outcome(UNTIDY, f"unprintable {unprintable[0]!r} went to the terminal", "unprintable")
    return None


def _as_expected(ended: Ended, expect: str) -> Outcome:
    kind = REFUSED if ended.code == 2 else OK
    if expect not in ("either", kind):
        return Outcome(WRONG, f"expected {expect}, but {kind}: {_last_line(ended.err)}", f"expected {expect}")
    return Outcome(kind, _last_line(ended.err) if kind == REFUSED else "", "")


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:400] if lines else ""
