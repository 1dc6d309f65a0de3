"""Opening files in a folder that somebody else may have made: regular files, of a size that makes sense, and no links.

A link may lead out of the folder, a pipe never ends, a device never stops. All are refused before a byte is read or
written. What is wrong is raised as an `OSError` whose `strerror` says it, as the system says that a file is missing.
"""

from __future__ import annotations

import errno
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

_LONGEST_HEADER = 10_000  # characters of a `.npy` header, as numpy limits them
_SPECIAL = {
    stat.S_ISLNK: "it is a link, which may lead out of the folder; put a copy of the file in its place",
    stat.S_ISDIR: "it is a folder; put the file in its place",
    stat.S_ISFIFO: "it is a pipe; put a regular file in its place",
    stat.S_ISSOCK: "it is a socket; put a regular file in its place",
    stat.S_ISCHR: "it is a device; put a regular file in its place",
    stat.S_ISBLK: "it is a device; put a regular file in its place",
}


def open_regular(path: Path, flags: int = os.O_RDONLY, *, most: int | None = None) -> int:
    """The descriptor of a regular file, which is the caller's to close.

    Args:
        path: The file. The folders above it may be links, the file itself must not be.
        flags: As for `os.open`. A file opened for writing must have no second name (hard link).
        most: Bytes beyond which a file is refused.

    Raises:
        OSError: The file is missing, is no regular file, is too large, or cannot be opened.
    """
    try:
        _refuse_special(os.lstat(path).st_mode)
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
    # Something else may have taken its place meanwhile: not followed, not waited for, and looked at again.
    careful = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY", "O_NOCTTY"))
    descriptor = os.open(path, flags | careful, 0o666)
    try:
        found = os.fstat(descriptor)
        _refuse_special(found.st_mode)
        if flags & (os.O_WRONLY | os.O_RDWR) and found.st_nlink > 1:
            raise OSError(errno.EMLINK, "it is one file under several names (hard links); put a copy in its place")
        if most is not None and found.st_size > most:
            raise OSError(
                errno.EFBIG, f"it has {found.st_size:,} bytes, and such a file has at most {most:,}; get it again"
            )
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def regular_file(path: Path, *, most: int | None = None) -> Iterator[BufferedReader]:
    """The regular file, open for reading.

    Raises:
        OSError: As `open_regular`.
    """
    with os.fdopen(open_regular(path, most=most), "rb") as file:
        yield file


@contextmanager
def regular_name(path: Path, *, most: int | None = None) -> Iterator[str]:
    """A name by which libraries open the very file that was checked, even if another takes its place meanwhile.

    Raises:
        OSError: As `open_regular`.
    """
    with regular_file(path, most=most) as file:
        name = f"/dev/fd/{file.fileno()}"
        yield name if os.path.exists(name) else str(path)  # noqa: PTH110


def read_regular(path: Path, *, most: int) -> bytes:
    """The content of a regular file of at most so many bytes.

    Raises:
        OSError: As `open_regular`; also if the file grows while it is read.
    """
    with regular_file(path, most=most) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(size + 1)  # not `most`, for which the memory would be taken first
    if len(data) > size:
        raise OSError(errno.EBUSY, "it grows while it is read; try again")
    return data


class NpyHeader(NamedTuple):
    """What the header of a `.npy` file tells."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    order: Literal["C", "F"]

    @property
    def n_bytes(self) -> int:
        """Of the values."""
        return math.prod(self.shape) * self.dtype.itemsize


def npy_header(file: BinaryIO) -> NpyHeader:
    """Read a `.npy` header; the file then stands at the values.

    Raises:
        ValueError: The header is damaged, or of Python objects.
    """
    try:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read(file, max_header_size=_LONGEST_HEADER)
    except Exception as error:  # numpy parses it as Python's text, which fails in a dozen ways
        raise ValueError(f"a damaged header ({type(error).__name__})") from error
    whole = all(type(side) is int and side >= 0 for side in shape)
    if not whole or dtype.hasobject or not dtype.itemsize:
        raise ValueError("a header that was not written by this program")
    return NpyHeader(shape, dtype, "F" if fortran else "C")


def mapped_array(path: Path) -> NDArray[np.generic]:
    """The array of a `.npy` file as a read-only memmap.

    Raises:
        OSError: As `open_regular`.
        ValueError: The header is damaged, or does not fit the size of the file.
    """
    with regular_file(path) as file:
        header = npy_header(file)
        start, size = file.tell(), os.fstat(file.fileno()).st_size
        if start + header.n_bytes != size:
            raise ValueError("a header that does not fit the size of the file")
        if not header.n_bytes:  # nothing can be mapped
            return np.zeros(header.shape, header.dtype)
        return np.memmap(file, header.dtype, mode="r", offset=start, shape=header.shape, order=header.order)


def _refuse_special(mode: int) -> None:
    if not stat.S_ISREG(mode):
        said = next((text for is_kind, text in _SPECIAL.items() if is_kind(mode)), "it is not a regular file")
        raise OSError(errno.EINVAL, said)
