"""What lies in the cache of decoded images: how large it is, and how it is deleted."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

from antibackdoor.errors import DataError, cannot

# Nothing else in the folder is ours, whatever its name: images-…, survey-….json, and those that are being written.
_OURS = re.compile(r"\.?(images|survey)-[0-9a-f]{32}(\.json)?(\.[0-9a-f]{32})?")


class Entry(NamedTuple):
    """One data set's decoded images, or what is known of their sizes."""

    path: Path
    n_bytes: int


def entries(cache: Path) -> list[Entry]:
    """All entries of a cache folder, by name; none where there is no such folder.

    Raises:
        DataError: If the folder cannot be read.
    """
    if not cache.exists():
        return []
    try:
        found = sorted(entry for entry in cache.iterdir() if _OURS.fullmatch(entry.name) and not entry.is_symlink())
        return [Entry(path, _size(path)) for path in found]
    except OSError as error:
        raise DataError(cannot("read", cache, error)) from error


def clear_entries(found: list[Entry]) -> int:
    """Delete entries; one that another process has open stays readable for it. Returns how many are gone.

    Raises:
        DataError: If one cannot be deleted.
    """
    for number, entry in enumerate(found):
        try:
            if entry.path.is_dir():
                shutil.rmtree(entry.path)
            else:
                entry.path.unlink(missing_ok=True)
        except OSError as error:
            raise DataError(f"{cannot('delete', entry.path, error)}; {number} entries are deleted") from error
    return len(found)


def _size(path: Path) -> int:
    if not path.is_dir():
        return path.lstat().st_size
    return sum(os.lstat(Path(folder) / name).st_size for folder, _, names in os.walk(path) for name in names)
