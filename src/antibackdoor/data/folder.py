"""A folder of class folders, with or without `train` and `test` (or `val`) above them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from antibackdoor.data.image_files import Found, list_images, report_empty_classes, sift
from antibackdoor.data.image_formats import has_image_suffix, holds_image, is_litter
from antibackdoor.data.options import Request
from antibackdoor.data.output import complete_or_absent, pngs
from antibackdoor.data.samples import Samples
from antibackdoor.data.source import CANNOT_OPEN, Faults, Source, Written, one_line
from antibackdoor.data.written_names import written_names
from antibackdoor.errors import DataError

SUFFIXES: tuple[str, ...] = ()  # a folder
_SPECIAL = {stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket", stat.S_ISCHR: "a device", stat.S_ISBLK: "a device"}


def open_source(path: Path, faults: Faults, request: Request) -> Source:
    """List the images below a folder; ids are paths relative to it.

    Each real folder is read once, by its own name rather than by that of a link to it. A link that leads out of
    `path` cannot be read, unless links are to be followed.

    Raises:
        DataError: If there are no images, or they are not in class folders.
    """
    walk = _Walk(path, faults, request.all_options.follow_links)
    walk.run()

    def fetch(relative: str) -> BinaryIO:
        return _open_regular(path / relative)

    found = Found(sift(walk.files, fetch, faults), str(path), os.path.realpath(path), fetch)
    source, layout = list_images(found, faults, labelled=request.labelled)
    report_empty_classes(layout, walk.folders, found, faults)
    return source


def open_image_file(path: Path) -> Source:
    """One image file as an unlabelled source."""
    status = path.stat()
    stamps = {path.name: f"{status.st_size} {status.st_mtime_ns}"}
    found = Found(stamps, str(path.parent), os.path.realpath(path), lambda name: _open_regular(path))
    return list_images(found, Faults("raise"), labelled=False)[0]


def is_image_file(path: Path) -> bool:
    """Whether a file is an image, by its name or its content."""
    if has_image_suffix(path.name) or not path.is_file():
        return has_image_suffix(path.name)
    with _open_regular(path) as file:
        return holds_image(file)


@dataclass
class _Walk:
    """Goes through a folder; links come last, when it is known which folders they would show again.

    Attributes:
        files: Relative path of each regular file -> size and time of change.
        folders: Relative path of each folder.
    """

    root: Path
    faults: Faults
    follow_links: bool
    files: dict[str, str] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Fill `files` and `folders`."""
        self._real_root = os.path.realpath(self.root)
        self._seen: dict[tuple[int, int], str] = {}
        self._links: list[str] = []
        self._below("")
        while self._links:  # following one may show more
            links, self._links = sorted(self._links), []
            for link in links:
                self._follow(link)

    def _below(self, start: str) -> None:
        """Everything below a folder without recursion, which deep folders would exhaust."""
        status = os.stat(self.root / start)  # noqa: PTH116
        self._seen[status.st_dev, status.st_ino] = start
        waiting = [start]
        while waiting:
            folder = waiting.pop()
            if folder:
                self.folders.add(folder)
            for entry in self._entries(folder):
                relative = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_symlink():
                    self._links.append(relative)
                elif entry.is_dir():
                    status = os.stat(entry.path)  # noqa: PTH116 - that of the entry has no number on Windows
                    if self._seen.setdefault((status.st_dev, status.st_ino), relative) == relative:
                        waiting.append(relative)
                else:
                    self._file(relative, entry.stat())

    def _entries(self, folder: str) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(self.root / folder) as entries:
                yield from entries
        except OSError as error:
            if not folder:
                raise
            reason = f"the folder {folder} in {self.root} {CANNOT_OPEN} ({error.strerror})"
            self.faults.report(folder, reason)

    def _file(self, relative: str, status: os.stat_result) -> None:
        if stat.S_ISREG(status.st_mode):
            self.files[relative] = f"{status.st_size} {status.st_mtime_ns}"
            return
        kind = next((name for is_kind, name in _SPECIAL.items() if is_kind(status.st_mode)), "no file")
        self.faults.pass_over(relative, f"is {kind}, which is not opened")

    def _follow(self, link: str) -> None:
        path = self.root / link
        try:
            status = path.stat()
        except (OSError, RuntimeError) as error:  # it leads nowhere, or to itself
            if is_litter(PurePosixPath(link).name):
                self.faults.pass_over(link, "is a hidden link")
            else:
                self.faults.report(link, f"{link} in {self.root} is a link that {CANNOT_OPEN} ({_said(error)})")
            return
        is_folder = stat.S_ISDIR(status.st_mode)
        if is_folder and (shown := self._seen.get((status.st_dev, status.st_ino))) is not None:
            where = repr(shown) if shown else "the whole folder"
            self.faults.pass_over(link, f"is a link to {where}, which is read under its own name")
        elif not self.follow_links and not self._is_inside(path):
            if is_litter(PurePosixPath(link).name):
                self.faults.pass_over(link, "is a hidden link that leads out of the folder")
            else:
                self.faults.report(
                    link,
                    f"{link} is a link that leads out of {self.root} (to read it nevertheless, give --follow-links)",
                )
        elif is_folder:
            self._below(link)
        else:
            self._file(link, status)

    def _is_inside(self, path: Path) -> bool:
        real = os.path.realpath(path)
        return os.path.commonpath([real, self._real_root]) == self._real_root


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; what has become a pipe or a device since it was listed is not waited for."""
    flags = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY", "O_NOCTTY"))
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataError(f"{one_line(str(path))} is not a regular file; replace it with one")
    return os.fdopen(descriptor, "rb")


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
