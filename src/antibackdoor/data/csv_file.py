"""Univariate series in `.csv` or `.tsv`, the layout of the UCR archive: the class first, then the values.

A header row is recognized and passed over. Empty or NaN cells at the end of a row mean a shorter series;
series of unequal length are resampled to the longest (linear interpolation). Classes such as `1.0` or
`1.0000000e+00` are read as `1`.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from antibackdoor.data.options import Request
from antibackdoor.data.output import complete_or_absent
from antibackdoor.data.pairs import test_beside, written_pair
from antibackdoor.data.samples import Samples, StrArray
from antibackdoor.data.series import SeriesArray, SeriesList, is_number, parse_values, read_lines
from antibackdoor.data.source import Faults, Listed, Source, Written, one_line
from antibackdoor.errors import DataError

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = tuple(_DELIMITERS)
_LABEL_TITLES = frozenset({"label", "class", "target", "y"})


def open_source(path: Path, faults: Faults, request: Request) -> Source:
    """Read a file, and `NAME_TEST` if it is `NAME_TRAIN`; ids are `train/row` and `test/row`, counted from 0.

    The first column is the class also with `labelled=False`; it is then ignored.

    Raises:
        DataError: If a row is malformed; the message names the line.
    """
    labelled = request.labelled
    splits = {"train": _read(path, "train", faults, labelled)}
    test_path = test_beside(path) if labelled else None
    if test_path is not None:
        splits["test"] = _read(test_path, "test", faults, labelled)
    return Source(splits)


def _read(path: Path, split: str, faults: Faults, labelled: bool) -> Listed:
    lines = read_lines(path)
    try:
        reader = csv.reader(lines, delimiter=_DELIMITERS[path.suffix.lower()], strict=True)
        rows = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise DataError(f"{path} cannot be parsed ({error}); check its quotes and delimiters") from error
    if rows and _is_header(rows):
        del rows[0]
    ids: list[str] = []
    classes: list[str] = []
    values: list[SeriesArray] = []
    for row, (number, cells) in enumerate(rows):
        sample_id = f"{split}/{row}"
        try:
            label, series = _sample(cells, f"{path}, line {number},")
        except ValueError as error:
            faults.report(sample_id, str(error))
            continue
        ids.append(sample_id)
        classes.append(label)
        values.append(series)
    if not values:
        raise DataError(f"{path} holds no series: expected rows of a class and then its values")
    return Listed(tuple(ids), tuple(classes) if labelled else (), SeriesList(values))


def _is_header(rows: list[tuple[int, list[str]]]) -> bool:
    title, *cells = rows[0][1]
    filled = [cell for cell in cells if cell.strip()]
    if filled and not any(is_number(cell) for cell in filled):
        return True
    alone = all(cells[0] != title for _, cells in rows[1:])
    if alone and not is_number(title) and (title.strip().lower() in _LABEL_TITLES or _counts_up(filled)):
        return True
    return len(rows) > 1 and not is_number(title) and all(is_number(cells[0]) for _, cells in rows[1:])


def _counts_up(cells: list[str]) -> bool:
    """Whether these are column numbers, as pandas writes them."""
    n = len(cells)
    return n > 2 and cells in ([str(i) for i in range(n)], [str(i) for i in range(1, n + 1)])


def _sample(cells: list[str], where: str) -> tuple[str, SeriesArray]:
    label = _class_text(cells[0].strip())
    if not label or label == "?" or label.lower() == "nan":
        raise ValueError(f"{where} has no class in its first column")
    end = len(cells)
    while end > 1 and cells[end - 1].strip().lower() in ("", "nan"):
        end -= 1
    if end == 1:
        split = "; the columns must be divided by commas, not semicolons" if ";" in label else ""
        raise ValueError(f"{where} has a class but no values{split}")
    return label, parse_values(cells[1:end], where)[None]


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
        header = alone and name.lower() in _LABEL_TITLES
        if missing or changed or mixed or header:
            raise DataError(f"class name {one_line(name)!r} cannot be written to .csv; rename it, or use .npz")


def _write_split(path: Path, samples: Samples, split: str) -> StrArray:
    with complete_or_absent(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=_DELIMITERS[path.suffix.lower()], lineterminator="\n")
        for series, label in zip(samples.inputs, samples.labels.tolist(), strict=True):
            writer.writerow([samples.class_names[label], *series[0].astype(np.str_).tolist()])
    return np.array([f"{split}/{row}" for row in range(len(samples))], dtype=np.str_)
