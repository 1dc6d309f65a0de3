"""The one writer of CSV: no cell that it writes is a formula, whatever names came with untrusted data.

A spreadsheet runs a cell that begins with `=`, `+`, `-`, `@`, a tab or a line break as a formula (OWASP, "CSV
Injection"). Such a text gets an apostrophe in front, and so does one that has apostrophes and then such a sign, so that
each text comes back as it was. Numbers stay as they are, also those that are given as text.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from typing import IO

_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
_NUMBER = re.compile(r"-\d+(\.\d*)?([eE][+-]?\d+)?")


def as_cell(text: str) -> str:
    """The text as a cell that is no formula.

    >>> as_cell("=1+1"), as_cell("cat/1.png"), as_cell("'=x"), as_cell("-1.5")
    ("'=1+1", 'cat/1.png', "''=x", '-1.5')
    """
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def from_cell(cell: str) -> str:
    """The text of a cell that `as_cell` wrote; a cell that it never writes is taken as it is.

    >>> from_cell("'=1+1"), from_cell("-5"), from_cell("'quoted'")
    ('=1+1', '-5', "'quoted'")
    """
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def write_rows(file: IO[str], rows: Iterable[Iterable[object]], *, delimiter: str = ",", end: str = "\r\n") -> None:
    """Write rows of numbers and texts; None is an empty cell.

    Args:
        file: Opened with `newline=""`.
        rows: The header, if there is one, and all others.
        delimiter: Between cells.
        end: Of each line.
    """
    writer = csv.writer(file, delimiter=delimiter, lineterminator=end)
    for row in rows:
        writer.writerow([as_cell(cell) if isinstance(cell, str) else cell for cell in row])
