"""A folder of images and a table beside them that names the class of each: `labels.csv`, or `metadata.csv`.

The table has titles: a column of file names (file, file_name, image, path, id, ...) and one of classes. A name may be
without its suffix, and the files may lie in a folder below. A column split (or set, subset) divides the data.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from antibackdoor.data.columns import LABEL_TITLES
from antibackdoor.data.csv_cells import from_cell, write_rows
from antibackdoor.data.folder import SUFFIXES as FOLDER
from antibackdoor.data.image_files import ImageFiles
from antibackdoor.data.image_formats import has_image_suffix, is_image
from antibackdoor.data.options import Request
from antibackdoor.data.output import complete_or_absent, pngs
from antibackdoor.data.regular_files import open_regular
from antibackdoor.data.samples import Samples, StrArray
from antibackdoor.data.source import Faults, Listed, Source, Written, one_line
from antibackdoor.data.split_names import role
from antibackdoor.errors import DataError

SUFFIXES = FOLDER
_TABLES = {"labels.csv": ",", "labels.tsv": "\t", "metadata.csv": ",", "train.csv": ","}
_FILES = (
    "file_name",
    "filename",
    "file name",
    "file",
    "image",
    "image_name",
    "image_path",
    "img",
    "path",
    "id",
    "name",
)
_SPLITS = frozenset({"split", "set", "subset", "partition"})
_MOST_BYTES = 2**30


def is_labelled_folder(path: Path) -> bool:
    """Whether a folder holds a table that names a class for images in it."""
    table = _table(path)
    if table is None:
        return False
    try:
        titles, rows = _rows(table)
        place = _place(titles, _FILES)
        first = next(rows, None)
        return place is not None and first is not None and bool(_found(path, [first[place]]))
    except (DataError, OSError, IndexError, UnicodeDecodeError):
        return False


def open_source(path: Path, faults: Faults, request: Request) -> Source:
    """List the images that the table names; ids are their paths in the folder.

    Raises:
        DataError: If the table lacks a column, or names an image twice.
    """
    table = _table(path)
    assert table is not None
    options = request.all_options
    titles, rows = _rows(table)
    files, label = _columns(titles, table, options.label_column, options.id_column, request.labelled)
    split_at = _place(titles, tuple(_SPLITS))
    cells = [row for row in rows if any(cell.strip() for cell in row)]
    found = _found(path, [row[files] for row in cells])
    splits: dict[str, list[tuple[str, str]]] = {}
    seen: set[str] = set()
    for number, row in enumerate(cells, 2):
        name, where = row[files].strip(), f"{table.name}, row {number},"
        relative = found.get(name)
        if relative is None:
            faults.report(name or f"row {number}", f"{where} names {one_line(name)!r}, which is not an image in {path}")
            continue
        if relative in seen:
            raise DataError(f"{where} names {one_line(name)!r} again; each image needs one class")
        seen.add(relative)
        text = row[label].strip() if label is not None else ""
        if request.labelled and not text:
            faults.report(relative, f"{where} has no class for {one_line(name)!r}")
            continue
        part = role(row[split_at].strip()) if split_at is not None and request.labelled else "train"
        splits.setdefault(part or "train", []).append((relative, text))
    for stranger in sorted({*_images(path)} - seen):
        faults.pass_over(stranger, f"is not named in {table.name}")
    validation = splits.pop("val", None)
    if validation and "test" not in splits:
        splits["test"] = validation
    if not splits:
        raise DataError(f"{table} names no image in {path}; check its column {titles[files]!r}")
    note = f"{table.name}: files in {one_line(titles[files])!r}"
    note += f", class in {one_line(titles[label])!r}" if label is not None else ""
    listed = {name: _listed(path, members, request.labelled) for name, members in splits.items()}
    return Source(listed, None, {"labels": note})


def _listed(path: Path, members: Sequence[tuple[str, str]], labelled: bool) -> Listed:
    ids = tuple(name for name, _ in members)
    stamps = []
    for name in ids:
        status = (path / name).stat()
        stamps.append(f"{status.st_size} {status.st_mtime_ns}")

    def fetch(relative: str) -> BinaryIO:
        return open(open_regular(path / relative), "rb")  # noqa: PTH123

    content = ImageFiles(str(path), os.path.realpath(path), ids, ids, tuple(stamps), fetch)
    return Listed(ids, tuple(text for _, text in members) if labelled else (), content)


def _table(path: Path) -> Path | None:
    return next((path / name for name in _TABLES if (path / name).is_file()), None)


def _rows(table: Path) -> tuple[list[str], Iterator[list[str]]]:
    """Titles, and rows of as many cells."""
    if table.stat().st_size > _MOST_BYTES:
        raise DataError(f"{table} has more than {_MOST_BYTES} bytes; a table of labels is smaller")
    text = table.read_text(encoding="utf-8-sig", errors="strict")
    try:
        rows = [*csv.reader(text.splitlines(keepends=True), delimiter=_TABLES[table.name], strict=True)]
    except csv.Error as error:
        raise DataError(f"{table} cannot be parsed ({error}); check its quotes and delimiters") from error
    if not rows:
        raise DataError(f"{table} is empty")
    width = len(rows[0])
    short = next((number for number, row in enumerate(rows, 1) if len(row) != width and any(row)), None)
    if short is not None:
        raise DataError(f"{table}, row {short}, has {len(rows[short - 1])} cells, but there are {width} titles")
    return [title.strip() for title in rows[0]], ([from_cell(cell) for cell in row] for row in rows[1:])


def _columns(titles: list[str], table: Path, label: str, files: str, labelled: bool) -> tuple[int, int | None]:
    places: dict[str, Any] = {}
    for option, flag in ((files, "--id-column"), (label, "--label-column")):
        if option and option not in titles:
            raise DataError(f"{table} has no column {one_line(option)!r} for {flag}; it has {', '.join(titles[:8])}")
        places[flag] = titles.index(option) if option else None
    name = places["--id-column"] if files else _place(titles, _FILES)
    if name is None:
        raise DataError(f"{table} has no column of file names ({', '.join(titles[:8])}): say which with --id-column")
    found = [place for place, title in enumerate(titles) if title.lower() in LABEL_TITLES and place != name]
    if places["--label-column"] is not None:
        return name, places["--label-column"]
    rest = [p for p, title in enumerate(titles) if p != name and title.lower() not in _SPLITS]
    chosen = found if len(found) == 1 else rest if len(rest) == 1 else []
    if labelled and not chosen:
        raise DataError(
            f"{table} has no column that is known to hold the class ({', '.join(titles[:8])}): say --label-column"
        )
    return name, chosen[0] if chosen else None


def _place(titles: Sequence[str], known: Sequence[str]) -> int | None:
    lowered = [title.lower() for title in titles]
    return next((lowered.index(title) for title in known if title in lowered), None)


def _images(path: Path) -> list[str]:
    """The images below a folder, by their relative paths; links are not followed."""
    found = []
    for folder, _, files in os.walk(path):
        below = PurePosixPath(Path(folder).relative_to(path).as_posix())
        found += [str(below / name) for name in files if is_image(str(below / name))]
    return found


def _found(path: Path, names: Sequence[str]) -> dict[str, str]:
    """For each name of the table the one image that it can mean: its path, its last part, or that without a suffix."""
    images = _images(path)
    by_name: dict[str, list[str]] = {}
    for image in images:
        pure = PurePosixPath(image)
        for key in {image, pure.name, str(pure.with_suffix("")), pure.stem}:
            by_name.setdefault(key, []).append(image)
    found = {}
    for name in {name.strip() for name in names}:
        plain = str(PurePosixPath(name.replace("\\", "/")))
        matches = [plain] if plain in images and has_image_suffix(plain) else by_name.get(plain, [])
        if len(matches) == 1:
            found[name] = matches[0]
    return found


def write(path: Path, train: Samples, test: Samples | None) -> Written:
    """Write PNG files and `labels.csv`; the folder appears only once it is complete.

    Raises:
        DataError: If `path` exists, or the samples are no uint8 images.
    """
    splits = {"train": train} if test is None else {"train": train, "test": test}
    ids: dict[str, StrArray] = {}
    names = [str(name) for name in train.class_names]
    if any(name != name.strip() or not name for name in names):
        raise DataError("a class name is empty, or begins or ends with a space, which a table cannot hold; rename it")
    with complete_or_absent(path) as temporary:
        temporary.mkdir()
        rows = [["file", "label", "split"]]
        for split, samples in splits.items():
            ids[split] = np.array([f"{split}-{row:06d}.png" for row in range(len(samples))], dtype=np.str_)
            for name, label, data in zip(ids[split].tolist(), samples.labels.tolist(), pngs(samples), strict=True):
                (temporary / name).write_bytes(data)
                rows.append([name, names[label], split])
        with (temporary / "labels.csv").open("w", encoding="utf-8", newline="") as file:
            write_rows(file, rows, end="\n")
    return Written(path, ids["train"], ids.get("test"))
