"""Images that a caller has as paths, encoded bytes or Pillow images, as the content of a split."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from antibackdoor.data.image_files import ImageFiles
from antibackdoor.data.regular_files import open_regular
from antibackdoor.errors import DataError

_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"})


def is_encoded(item: Any) -> bool:
    """Whether an item is a path, encoded bytes, a Pillow image, or a dictionary of `bytes` and `path`.

    >>> [is_encoded(item) for item in ("cat.png", b"", {"bytes": b"", "path": None}, [0.0, 1.0])]
    [True, True, True, False]
    """
    return isinstance(item, str | os.PathLike | bytes | bytearray | Image.Image) or (
        isinstance(item, Mapping) and {"bytes", "path"} <= {*item}
    )


def encoded_images(items: Sequence[Any], ids: tuple[str, ...], where: str, folder: Path | None) -> ImageFiles:
    """The content of a split.

    Args:
        items: Whatever `is_encoded` takes.
        ids: What the samples are called.
        where: What the data are called in messages.
        folder: Where relative paths start; by default the working directory.

    Raises:
        DataError: If an item is of another type.
    """
    found = [_opener(items[row], f"{where}[{row}]", folder) for row in range(len(items))]

    def fetch(key: str) -> BinaryIO:
        return found[int(key)].open()

    keys = tuple(str(row) for row in range(len(found)))
    return ImageFiles(where, "", ids, keys, tuple(image.stamp for image in found), fetch)


class _File:
    """An image in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            status = path.stat()
            self.stamp = f"{status.st_size} {status.st_mtime_ns} {os.path.realpath(path)}"
        except OSError:  # decoding reports it
            self.stamp = f"-1 0 {path}"

    def open(self) -> BinaryIO:
        return os.fdopen(open_regular(self.path.resolve()), "rb")


class _Bytes:
    """An encoded image in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.stamp = f"{len(data)} {hashlib.sha256(data).hexdigest()}"

    def open(self) -> BinaryIO:
        return BytesIO(self.data)


class _Pillow:
    """A decoded image, which is encoded without loss when it is asked for."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        pixels = image.tobytes()
        about = f"{image.mode} {image.size} {image.getexif().tobytes()!r}".encode()
        self.stamp = f"{max(len(pixels), 1)} {hashlib.sha256(about + pixels).hexdigest()}"

    def open(self) -> BinaryIO:
        buffer = BytesIO()
        if self.image.mode in _PNG_MODES:
            self.image.save(buffer, "PNG", compress_level=1, exif=self.image.getexif())
        elif self.image.mode == "F":
            self.image.save(buffer, "TIFF")
        else:
            self.image.convert("RGB").save(buffer, "PNG", compress_level=1)
        buffer.seek(0)
        return buffer


def _opener(item: Any, name: str, folder: Path | None) -> _File | _Bytes | _Pillow:
    if isinstance(item, Mapping) and {"bytes", "path"} <= {*item}:
        item = item["path"] if item["bytes"] is None else item["bytes"]
    if isinstance(item, bytes | bytearray):
        return _Bytes(bytes(item))
    if isinstance(item, Image.Image):
        return _Pillow(item)
    if isinstance(item, str | os.PathLike):
        return _File(Path(folder or "") / item)
    raise DataError(f"{name} is of type {type(item).__name__}, where others are images; give one kind")
