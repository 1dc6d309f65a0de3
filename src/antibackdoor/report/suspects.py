"""`suspects.csv`: every isolated sample, for people who work with tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from antibackdoor.protocols import CRITERIA
from antibackdoor.runs.artifacts import write_table
from antibackdoor.runs.samples_table import read_samples_table

SUSPECTS = "suspects.csv"
HEADER = ("id", "given_label", "suggested_label", "suspicion", "status", "criterion")


def write_suspects(run: Path) -> None:
    """Write one row for each isolated sample of a run, the most suspicious first; no file if there is none.

    Raises:
        RunError: If the table is damaged, or the folder cannot be written.
    """
    table = read_samples_table(run)
    rows = np.flatnonzero(table.isolated)
    if not len(rows):
        (run / SUSPECTS).unlink(missing_ok=True)
        return
    rows = rows[np.argsort(-table.suspicion[rows], kind="stable")]
    names, suggested = table.class_names, table.verdict.suggested_label
    lines = [
        (
            str(table.ids[row]),
            str(names[table.given_label[row]]),
            str(names[suggested[row]]),
            f"{table.suspicion[row]:.6f}",
            str(table.status[row]),
            CRITERIA[table.verdict.criterion[row]],
        )
        for row in rows
    ]
    write_table(run / SUSPECTS, [HEADER, *lines])
