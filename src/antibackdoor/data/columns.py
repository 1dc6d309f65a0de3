"""Which column of a table holds what: found by titles and by what the first rows look like, or as the user says."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from antibackdoor.data.options import NO_COLUMN, Request
from antibackdoor.data.series import SeriesList, is_missing, is_number
from antibackdoor.data.source import one_line
from antibackdoor.errors import DataError

LOOKED_AT = 100  # rows that are looked at before the first is read
LABEL_TITLES = frozenset({"label", "labels", "class", "classes", "target", "targets", "y"})
_ID_TITLES = frozenset({"id", "ids", "index", "idx", "uid", "sample_id", "sample id", "sampleid", "unnamed: 0"})
_FEWEST_NUMBERED = 4  # columns; fewer numbers may count up by chance
_FEWEST = 10  # rows from which a table is asked whether its first column can be the class
_SAY = "say which column holds the class with --label-column (a title, or a number: 1 is the first, -1 the last)"
Row = Sequence[str]


@dataclass(frozen=True)
class Columns:
    """The layout of a table.

    Attributes:
        titles: The first row, where it holds titles; else empty.
        label: Place of the class, counted from the end where it is negative; None if there is none.
        name: Place of the ids, likewise.
        left_out: Places of other columns that are no values.
        group: Place of the column that says what samples belong together.
        assumed: Whether the first column is taken for the class only because it is the first.
        note: What was found, for the user; empty for the plain layout.
    """

    titles: tuple[str, ...]
    label: int | None
    name: int | None = None
    left_out: tuple[int, ...] = ()
    assumed: bool = False
    note: str = ""
    group: int | None = None

    def values(self, cells: Row) -> list[str]:
        """The cells of a row that are values of the series."""
        apart = [place for place in (self.label, self.name, self.group, *self.left_out) if place is not None]
        places = {place + len(cells) if place < 0 else place for place in apart}
        return [cell for place, cell in enumerate(cells) if place not in places]


def find_columns(rows: list[Row], request: Request, path: Path) -> Columns:
    """The layout of a table by its first rows, which hold at least one.

    Raises:
        DataError: If a column that the user named is not there, or it cannot be told which one holds the class.
    """
    options, recorded = request.options, request.recorded
    named = (options.label_column, options.id_column, options.group_by)
    titles = tuple(cell.strip() for cell in rows[0]) if _is_header(rows, named) else ()
    body = rows[1:] if titles else rows
    width = len(titles) or max(len(row) for row in rows)
    name = _place(options.id_column, titles, width, path, "--id-column")
    if name is None:
        name = _place_if_there(recorded.id_column, titles, width)
    left_out = _index_columns(titles, body)
    group = _group(options.group_by or recorded.group_by, titles)
    taken = left_out | {place for place in (name, group) if place is not None}
    label, assumed = _label(width, titles, body, taken, request, path)
    columns = Columns(titles, label, name, tuple(sorted(left_out - {label, name, group})), assumed, group=group)
    _refuse_strangers(columns, path)
    return replace(columns, note=_note(columns))


def _group(group_by: str, titles: tuple[str, ...]) -> int | None:
    """Where the column of groups is; None if this is the title of none, and so a pattern on ids."""
    return titles.index(group_by) if group_by and titles.count(group_by) == 1 else None


def _is_header(rows: list[Row], named: tuple[str, ...]) -> bool:
    cells = [cell.strip() for cell in rows[0]]
    below = rows[1:]
    if any(name and not is_number(name) and name in cells for name in named):
        return True
    words = _words(cells)
    if not words:  # columns that pandas has numbered, perhaps behind an index without a title
        if len(cells) > _FEWEST_NUMBERED and _counts_up(cells):
            return not any(list(row) == list(rows[0]) for row in below)
        return not cells[0] and _counts_up(cells[1:]) and all(row[0].strip() for row in below)
    numbers = [cell for cell in cells if is_number(cell) and not is_missing(cell)]
    if len(words) > 1 and not numbers:
        return True
    alone = [place for place in words if all(len(row) <= place or row[place].strip() != cells[place] for row in below)]
    if any(cells[place].lower() in LABEL_TITLES | _ID_TITLES for place in alone):
        return True
    return words == [0] and bool(alone) and _is_time_axis(numbers)


def _words(cells: Row) -> list[int]:
    """Places of cells that are neither numbers nor empty."""
    try:
        np.array(cells, dtype=np.float64)  # a row may have a million values
    except ValueError:
        return [place for place, cell in enumerate(cells) if not is_number(cell) and not is_missing(cell)]
    return []


def _counts_up(cells: Row) -> bool:
    n = len(cells)
    return n > 2 and list(cells) in ([str(i) for i in range(n)], [str(i) for i in range(1, n + 1)])


def _is_time_axis(cells: Row) -> bool:
    steps = np.diff(np.array([float(cell) for cell in cells]))
    return len(steps) > 1 and steps[0] > 0 and bool(np.allclose(steps, steps[0], rtol=1e-3))


def _place(column: str, titles: tuple[str, ...], width: int, path: Path, flag: str) -> int | None:
    """Where a column is that the user named; None without a name, or for "none".

    Raises:
        DataError: If it is not there, or there are two of them.
    """
    if column in ("", NO_COLUMN):
        return None
    for wanted, known in ((column, titles), (column.lower(), tuple(title.lower() for title in titles))):
        if known.count(wanted) > 1:
            raise DataError(f"{path} has {known.count(wanted)} columns called {one_line(wanted)!r}; give its number")
        if wanted in known:
            return known.index(wanted)
    if re.fullmatch(r"-?[1-9][0-9]{0,8}", column):
        number = int(column)
        if abs(number) <= width:
            # With titles all rows are of one form; without, the last cell of a shorter row is its last column.
            return number - 1 if number > 0 else number + width if titles else number
        raise DataError(f"{path} has {width} columns, so there is no {flag} {number}")
    held = f"its columns are {_some(titles)}" if titles else "its first row holds no titles; give the column's number"
    raise DataError(f"{path} has no column {one_line(column)!r:.60} for {flag}: {held}")


def _place_if_there(column: str, titles: tuple[str, ...], width: int) -> int | None:
    try:
        return _place(column, titles, width, Path(), "")
    except DataError:
        return None


def _index_columns(titles: tuple[str, ...], body: list[Row]) -> set[int]:
    """Columns that number the rows or name them, by their titles."""
    found: set[int] = {place for place, title in enumerate(titles) if title.lower() in _ID_TITLES}
    if titles and not titles[0] and [row[0].strip() for row in body] == [str(i) for i in range(len(body))]:
        found.add(0)  # as pandas writes its index
    return found


def _label(
    width: int, titles: tuple[str, ...], body: list[Row], taken: set[int], request: Request, path: Path
) -> tuple[int | None, bool]:
    """Where the class is, and whether that is only assumed."""
    options, recorded = request.options, request.recorded
    if options.label_column:
        if options.label_column == NO_COLUMN and request.labelled:
            raise DataError(f"{path} is to be read with classes, so --label-column cannot be none")
        return _place(options.label_column, titles, width, path, "--label-column"), False
    titled = [place for place, title in enumerate(titles) if title.lower() in LABEL_TITLES and place not in taken]
    known = _place_if_there(recorded.label_column, titles, width)
    if known is not None and (request.labelled or (titles and known not in taken)):
        return known, False
    if len(titled) > 1:
        raise DataError(
            f"{path} has several columns that may be the class ({_some([titles[p] for p in titled])}): {_SAY}"
        )
    if titled:
        return titled[0], False
    words = _columns_of_words(body, width) - taken
    if len(words) > 1:
        raise DataError(f"{path} has {len(words)} columns of words, and one of them may be the class: {_SAY}")
    if request.labelled:
        return (next(iter(words)), False) if words else _untitled(titles, taken, path)
    return _label_to_drop(width, words, known, taken, request, path), False


def _label_to_drop(
    width: int, words: set[int], known: int | None, taken: set[int], request: Request, path: Path
) -> int | None:
    """The class in data that are to be predicted, if there is one: then there is a column more than steps."""
    if words:
        return next(iter(words))
    wanted = None if request.shape is None else request.shape[-1]
    width -= len(taken)
    if wanted is None or width == wanted + 1:
        return 0 if known is None else known
    if width != wanted:
        raise DataError(
            f"{path} has {width} columns of numbers and the model takes {wanted} steps, so it is unclear whether "
            f"one is the class: name it with --label-column (1 is the first), or say --label-column none"
        )
    return None


def _columns_of_words(body: list[Row], width: int) -> set[int]:
    """Columns in which most cells that are filled are no numbers."""
    counts = Counter(place for row in body for place in _words(row) if place < width)
    found = set()
    for place, n_words in counts.items():
        n_filled = sum(place < len(row) and not is_missing(row[place]) for row in body)
        if 2 * n_words > n_filled:
            found.add(place)
    return found


def _untitled(titles: tuple[str, ...], taken: set[int], path: Path) -> tuple[int, bool]:
    """The class in a table of numbers that does not call any column so."""
    if all(is_number(title) for title in titles):
        return 0, True
    forms = {place: _form(title) for place, title in enumerate(titles) if place not in taken}
    usual, n_usual = Counter(forms.values()).most_common(1)[0]
    others = [place for place, form in forms.items() if form != usual]
    if len(others) == 1 and n_usual > 1:
        return others[0], True
    raise DataError(f"{path} has no column called 'label' or 'class' (it has {_some(titles)}): {_SAY}")


def _form(title: str) -> str:
    """A title without its numbers: those of the steps of a series are alike.

    >>> _form("t12") == _form("t3"), _form("0.25")
    (True, '#')
    """
    return re.sub(r"\d+(\.\d+)?", "#", title.lower())


def _refuse_strangers(columns: Columns, path: Path) -> None:
    """Refuse columns among numbered ones that are called otherwise: an age is no step of a series."""
    places = columns.values([str(place) for place in range(len(columns.titles))]) if columns.titles else []
    forms = {int(place): _form(columns.titles[int(place)]) for place in places}
    if not forms:
        return
    usual, n_usual = Counter(forms.values()).most_common(1)[0]
    strangers = [columns.titles[place] for place, form in forms.items() if form != usual]
    if "#" in usual and strangers and n_usual > len(strangers):
        raise DataError(
            f"{path} has columns that do not seem to be values of the series ({_some(strangers)}, where others are "
            f"called like {usual.replace('#', '1')!r}): remove them, rename them, or name one with --id-column"
        )


def _note(columns: Columns) -> str:
    if not columns.titles:
        first = columns.label in (0, None) and columns.name is None
        return "" if first else f"class in column {columns.label if columns.label is None else _number(columns.label)}"
    of = columns.titles
    said = [
        "first row read as titles",
        "no class" if columns.label is None else f"class in {_some([of[columns.label]])}",
    ]
    if columns.name is not None:
        said.append(f"ids in {_some([of[columns.name]])}")
    if columns.group is not None:
        said.append(f"groups in {one_line(of[columns.group])!r}")
    if columns.left_out:
        said.append(f"left out {_some([of[place] for place in columns.left_out])}")
    return "; ".join(said)


def _number(place: int) -> int:
    return place + 1 if place >= 0 else place


def _some(titles: Sequence[str]) -> str:
    return ", ".join(repr(one_line(title)[:30]) for title in titles[:5]) + (", ..." if len(titles) > 5 else "")


def refuse_values_as_classes(classes: Sequence[str], series: SeriesList, path: Path) -> None:
    """Refuse a table whose first column was taken for the class, but looks like one more value.

    It does if most of its numbers are no whole ones, or most appear once; or if it has as many different values as its
    neighbor, and the last column has far fewer than the one before.

    Raises:
        DataError: If it does.
    """
    if len(classes) < _FEWEST or not all(is_number(name) for name in classes):
        return
    counts = Counter(classes)
    fractions = sum(not float(name).is_integer() for name in classes)
    if 2 * fractions > len(classes) or 2 * sum(n == 1 for n in counts.values()) > len(classes):
        raise DataError(f"the first column of {path} has {len(counts)} different numbers, unlike a class: {_SAY}")
    if {value.shape[1] for value in series.values} != {series.values[0].shape[1]} or series.values[0].shape[1] < 3:
        return
    ends = np.stack([value[0, [0, -2, -1]] for value in series.values])
    n_second, n_before, n_last = (len(np.unique(column)) for column in ends.T)
    last_is_whole = bool((ends[:, 2] == np.rint(ends[:, 2])).all())
    if last_is_whole and 2 <= n_last < len(counts) and 2 * n_last <= n_before and 2 * len(counts) >= n_second:
        raise DataError(
            f"the first column of {path} has {len(counts)} different numbers, the last only {n_last}, so the last may "
            f"be the class: {_SAY}"
        )
