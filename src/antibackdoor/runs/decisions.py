"""`decisions.csv`: what a person said of samples. One row a sample; it may be edited in a spreadsheet.

    id,given_label,suggested_label,decision
    dog/17.png,dog,cat,rejected
    dog/18.png,dog,cat,accepted

An accepted sample is fine as it is, and no method isolates it. A rejected one is never trained on under its label.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from antibackdoor.data.csv_cells import from_cell, write_rows
from antibackdoor.data.regular_files import read_regular
from antibackdoor.errors import RunError, shortened
from antibackdoor.runs.atomic import cannot, one_line, write_bytes

DECISIONS = "decisions.csv"
ACCEPTED, REJECTED = "accepted", "rejected"
COLUMNS = ("id", "given_label", "suggested_label", "decision")

_MOST_BYTES = 2**30  # of a file: ten million samples with names of a hundred characters


@dataclass(frozen=True)
class Decision:
    """What a person said of one sample.

    Attributes:
        decision: `accepted` or `rejected`.
        given: Name of the label that the sample had; empty if the file does not say.
        suggested: Name of the label that the run suggested; empty if the file does not say.
    """

    decision: str
    given: str = ""
    suggested: str = ""


def decisions_text(decisions: Mapping[str, Decision]) -> bytes:
    """The file, by id; names that are not UTF-8 are written with escapes, as in `samples.parquet`."""
    text = io.StringIO(newline="")
    rows = [(name, said.given, said.suggested, said.decision) for name, said in decisions.items()]
    write_rows(text, [COLUMNS, *rows])
    return text.getvalue().encode("utf-8", "backslashreplace")


def write_decisions(path: Path, decisions: Mapping[str, Decision]) -> None:
    """Replace the file, wholly or not at all.

    Raises:
        RunError: The folder cannot be written.
    """
    write_bytes(path, decisions_text(decisions))


def read_decisions(path: Path) -> dict[str, Decision]:
    """The decisions by id; rows with an empty decision count as none.

    Raises:
        RunError: The file is missing or damaged, lacks a column, or says two things of one sample.
    """
    try:
        text = read_regular(path, most=_MOST_BYTES).decode("utf-8-sig")
        rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        columns = {str(name).strip().lower(): name for name in rows.fieldnames or ()}
        if not {"id", "decision"} <= columns.keys():
            raise RunError(f"{path} has no columns 'id' and 'decision'; give the {DECISIONS} of a review")
        found: dict[str, Decision] = {}
        for row in rows:
            values = {name: from_cell(row[column] or "") for name, column in columns.items()}
            _add(found, values, f"{path}, line {rows.line_num}")
    except OSError as error:
        raise RunError(cannot("read", path, error)) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise RunError(f"{path} is not a CSV file of decisions: {one_line(error)}; save it as CSV in UTF-8") from error
    return found


def _add(found: dict[str, Decision], values: Mapping[str, str], where: str) -> None:
    name, said = values["id"], values["decision"].strip().lower()
    if not said:
        return
    if said not in (ACCEPTED, REJECTED):
        raise RunError(f"{where}: the decision is {shortened(said, 40)!r}; write {ACCEPTED} or {REJECTED}, or nothing")
    if found.get(name, Decision(said)).decision != said:
        raise RunError(f"{where}: {shortened(name, 80)!r} is accepted and rejected; remove one of the two rows")
    found[name] = Decision(said, values.get("given_label", ""), values.get("suggested_label", ""))
