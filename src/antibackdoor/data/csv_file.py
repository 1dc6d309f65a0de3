"""Univariate series in `.csv` or `.tsv`: a class and values a row, by default in the layout of the UCR archive.

Without titles the class comes first, then the values. A first row of titles is recognized: a column called label,
class, target or y is the class, one called id or index is left out. Where this cannot be told the table is refused,
and `label_column` and `id_column` decide. Missing cells at the end of a row mean a shorter series; series of unequal
length are resampled to the longest (linear interpolation). Classes such as `1.0` or `1.0000000e+00` are read as `1`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np

from antibackdoor.data.columns import LABEL_TITLES, LOOKED_AT, find_columns, refuse_values_as_classes
from antibackdoor.data.csv_cells import from_cell, write_rows
from antibackdoor.data.options import Request
from antibackdoor.data.output import complete_or_absent
from antibackdoor.data.pairs import test_beside, written_pair
from antibackdoor.data.samples import Samples, StrArray
from antibackdoor.data.series import Gaps, SeriesArray, SeriesList, is_number, parse_values, read_lines
from antibackdoor.data.source import Faults, Listed, Source, Written, one_line
from antibackdoor.errors import DataError

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = tuple(_DELIMITERS)


def open_source(path: Path, faults: Faults, request: Request) -> Source:
    """Read a file, and `NAME_TEST` if it is `NAME_TRAIN`; ids are `train/row` and `test/row`, counted from 0.

    Raises:
        DataError: If a row is malformed (the message names the line), or it cannot be told which column holds what.
    """
    gaps = Gaps(request.all_options.missing)
    train, note = _read(path, "train", faults, request, gaps)
    splits = {"train": train}
    test_path = test_beside(path) if request.labelled else None
    if test_path is not None:
        splits["test"], _ = _read(test_path, "test", faults, request, gaps)
    return Source(splits, None, {**({"table": note} if note else {}), **gaps.notes()})


def _read(path: Path, split: str, faults: Faults, request: Request, gaps: Gaps) -> tuple[Listed, str]:
    rows = _rows(path)
    ahead = list(islice(rows, LOOKED_AT))
    if not ahead:
        raise DataError(f"{path} holds no series: expected rows of a class and then its values")
    labelled = request.labelled
    columns = find_columns([cells for _, cells in ahead], request, path)
    ids: list[str] = []
    classes: list[str] = []
    groups: list[str] = []
    values: list[SeriesArray] = []
    for row, (number, cells) in enumerate(chain(ahead[1:] if columns.titles else ahead, rows)):
        where = f"{path}, line {number},"
        sample_id = f"{split}/{row}"
        try:
            if columns.name is not None:
                sample_id = _cell(cells, columns.name, where, "id")
            label = ""
            if labelled and columns.label is not None:
                label = from_cell(_class_text(_cell(cells, columns.label, where, "class")))
            group = "" if columns.group is None else _cell(cells, columns.group, where, "group")
            series = _series(columns.values(cells), label, where, gaps)
        except ValueError as error:
            faults.report(sample_id, str(error))
            continue
        ids.append(sample_id)
        classes.append(label)
        groups.append(group)
        values.append(series)
    if not values:
        raise DataError(f"{path} holds no series: expected rows of a class and then its values")
    content = SeriesList(values)
    if columns.assumed and labelled:
        refuse_values_as_classes(classes, content, path)
    grouped = () if columns.group is None else tuple(groups)
    return Listed(tuple(ids), tuple(classes) if labelled else (), content, grouped), columns.note


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows that hold something, each with the number of its line."""
    reader = csv.reader(read_lines(path), delimiter=_DELIMITERS[path.suffix.lower()], strict=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, cells
    except csv.Error as error:
        raise DataError(f"{path} cannot be parsed ({error}); check its quotes and delimiters") from error


def _cell(cells: list[str], place: int, where: str, what: str) -> str:
    text = cells[place].strip() if -len(cells) <= place < len(cells) else ""
    if text.lower() in ("", "?", "nan"):
        raise ValueError(f"{where} has no {what} in its column {place + 1 if place >= 0 else place}")
    return text


def _series(cells: list[str], label: str, where: str, gaps: Gaps) -> SeriesArray:
    if all(cell.strip().lower() in ("", "nan") for cell in cells):
        split = "; the columns must be separated by commas, not semicolons" if ";" in label else ""
        raise ValueError(f"{where} has a class but no values{split}")
    return gaps.whole(parse_values(cells, where)[None], where)


def _class_text(cell: str) -> str:
    """The class; whole numbers written as decimals lose their decimals."""
    if is_number(cell) and not cell.removeprefix("-").isdecimal() and "_" not in cell:
        value = float(cell)
        return str(int(value)) if value.is_integer() else cell
    return cell


def write(path: Path, train: Samples, test: Samples | None) -> Written:
    """Write `NAME_TRAIN` and `NAME_TEST` files, or one file if there is no test split; no header row.

    Raises:
        DataError: If a file exists, the samples are not univariate series, or a class name cannot be written.
    """
    for samples in (train, test):
        if samples is not None:
            _refuse_what_csv_cannot_hold(samples)
    if len(np.unique(train.labels)) < train.n_classes:
        raise DataError("a class has no sample left, so a .csv cannot hold it; use .npz")
    train_path, test_path = written_pair(path, with_test=test is not None)
    train_ids = _write_split(train_path, train, "train")
    test_ids = _write_split(test_path, test, "test") if test is not None and test_path is not None else None
    return Written(train_path, train_ids, test_ids)


def _refuse_what_csv_cannot_hold(samples: Samples) -> None:
    if samples.kind != "series" or samples.shape[0] != 1:
        raise DataError(f"samples of shape {samples.shape} cannot be written to .csv; use .npz, or .ts")
    names = samples.class_names.tolist()
    first = samples.labels[:1].tolist()
    for label, name in enumerate(names):
        missing = name.lower() in ("", "?", "nan")
        changed = name != _class_text(name.strip()) or not name.isprintable()
        mixed = is_number(name) != is_number(names[0])  # a lone word above numbers is taken for a header
        alone = first == [label] and (samples.labels == label).sum() == 1
        header = alone and name.lower() in LABEL_TITLES
        if missing or changed or mixed or header:
            raise DataError(f"class name {one_line(name)!r} cannot be written to .csv; rename it, or use .npz")


def _write_split(path: Path, samples: Samples, split: str) -> StrArray:
    with complete_or_absent(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        rows = (
            [str(samples.class_names[label]), *series[0].astype(np.str_).tolist()]
            for series, label in zip(samples.inputs, samples.labels.tolist(), strict=True)
        )
        write_rows(file, rows, delimiter=_DELIMITERS[path.suffix.lower()], end="\n")
    return np.array([f"{split}/{row}" for row in range(len(samples))], dtype=np.str_)
