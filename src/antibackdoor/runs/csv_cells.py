"""Cells of CSV files that a spreadsheet takes for text, whatever names came with untrusted data.

A spreadsheet runs a cell that begins with `=`, `+`, `-`, `@`, a tab or a carriage return as a formula (OWASP, "CSV
Injection"). Such a cell gets an apostrophe in front, and so does one that has apostrophes and then such a sign, so that
each text comes back as it was.
"""

from __future__ import annotations

import re

_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def as_cell(text: str) -> str:
    """The text as a cell that is no formula.

    >>> as_cell("=1+1"), as_cell("cat/1.png"), as_cell("'=x")
    ("'=1+1", 'cat/1.png', "''=x")
    """
    return f"'{text}" if _FORMULA.match(text) else text


def from_cell(cell: str) -> str:
    """The text of a cell that `as_cell` wrote; a cell that it never writes is taken as it is.

    >>> from_cell("'=1+1"), from_cell("-5"), from_cell("'quoted'")
    ('=1+1', '-5', "'quoted'")
    """
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
