"""A folder of class folders, with or without `train` and `test` (or `val`) above them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from antibackdoor.data.image_files import MAX_FILE_BYTES, layout_of, list_images
from antibackdoor.data.layout import is_image, written_names
from antibackdoor.data.options import Request
from antibackdoor.data.output import complete_or_absent, pngs
from antibackdoor.data.samples import Samples
from antibackdoor.data.source import Faults, Source, Written

SUFFIXES: tuple[str, ...] = ()  # a folder


def open_source(path: Path, faults: Faults, request: Request) -> Source:
    """List the images below a folder; ids are paths relative to it.

    Raises:
        DataError: If there are none, they are not in class folders, or a class folder is empty.
    """
    found: dict[str, str] = {}
    for relative, entry in _walk(path, PurePosixPath(), frozenset({os.path.realpath(path)})):
        try:
            status = entry.stat()
            found[relative] = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:  # a broken link: decoding reports it
            found[relative] = "-1 0"

    def fetch(relative: str) -> BinaryIO:
        file = path / relative
        if file.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"larger than {MAX_FILE_BYTES} bytes")
        return file.open("rb")

    layout = layout_of(found, str(path), labelled=request.labelled)
    for parent in layout.parents:
        _refuse_empty_classes(path / parent, faults)
    return list_images(layout, found, str(path), os.path.realpath(path), fetch)


def open_image_file(path: Path) -> Source:
    """One image file as an unlabelled source."""
    found = {path.name: f"{path.stat().st_size} {path.stat().st_mtime_ns}"}
    layout = layout_of(found, str(path.parent), labelled=False)
    return list_images(layout, found, str(path.parent), os.path.realpath(path), lambda name: path.open("rb"))


def _walk(root: Path, below: PurePosixPath, above: frozenset[str]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Every image file with its relative path; links are followed, but not into a folder that holds them."""
    with os.scandir(root / below) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            relative = below / entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                real = os.path.realpath(entry.path)
                if real not in above:
                    yield from _walk(root, relative, above | {real})
            elif is_image(str(relative)) and (entry.is_file() or entry.is_symlink()):
                yield str(relative), entry


def _refuse_empty_classes(parent: Path, faults: Faults) -> None:
    """An empty class folder is most often a failed copy, so it is not passed over in silence."""
    for folder in sorted(parent.iterdir()):
        hidden = folder.name.startswith(".") or folder.name == "__MACOSX"
        if folder.is_dir() and not hidden and next(_walk(folder, PurePosixPath(), frozenset()), None) is None:
            faults.report(folder.name, f"the class folder {folder} holds no images")


def write(path: Path, train: Samples, test: Samples | None) -> Written:
    """Write lossless PNG files `class/stem.png`, below `train/` and `test/` if there is a test split.

    The folder appears only once it is complete.

    Raises:
        DataError: If `path` exists, or the samples are no uint8 images.
    """
    train_names = written_names(train, "train" if test is not None else "")
    test_names = written_names(test, "test") if test is not None else None
    with complete_or_absent(path) as temporary:
        for samples, names in ((train, train_names), (test, test_names)):
            if samples is None or names is None:
                continue
            for folder in {str(PurePosixPath(name).parent) for name in names.tolist()}:
                (temporary / folder).mkdir(parents=True, exist_ok=True)
            for name, data in zip(names.tolist(), pngs(samples), strict=True):
                (temporary / name).write_bytes(data)
    return Written(path, train_names, test_names)
