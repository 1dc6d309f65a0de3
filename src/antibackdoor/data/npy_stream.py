"""Arrays inside an `.npz`, read and written a block of rows at a time and never through pickle."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from antibackdoor.data.source import one_line
from antibackdoor.data.zip_file import open_archive
from antibackdoor.errors import DataError

_BLOCK_BYTES = 4 * 2**20
_MOST_AXES = 32  # of a numpy array before version 2
_DAMAGE = (OSError, EOFError, ValueError, NotImplementedError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class StoredArray:
    """The header of one array in an `.npz`, checked against what the archive says of its size."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    checksum: int

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.name} in {self.path}"

    def read(self) -> NDArray[Any]:
        """The whole array."""
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{self.name}.npy") as file:
                _read_header(file)
                values = np.frombuffer(file.read(), self.dtype)
        except _DAMAGE as error:
            raise self._damaged(error) from error
        return values.reshape(self.shape, order="F" if self.fortran else "C")

    def read_blocks(self) -> Iterator[NDArray[Any]]:
        """The rows in blocks of a few MiB (an array in Fortran order has to be read as a whole)."""
        row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])
        step = max(1, _BLOCK_BYTES // max(1, row_bytes))
        if self.fortran:
            whole = self.read()
            for start in range(0, self.shape[0], step):
                yield whole[start : start + step]
            return
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{self.name}.npy") as file:
                _read_header(file)
                for start in range(0, self.shape[0], step):
                    n_rows = min(step, self.shape[0] - start)
                    values = np.frombuffer(file.read(n_rows * row_bytes), self.dtype)
                    yield values.reshape(n_rows, *self.shape[1:])
        except _DAMAGE as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> DataError:
        return DataError(f"{self.where} is damaged ({one_line(str(error))}); save the file again")


def stored_arrays(path: Path) -> dict[str, StoredArray]:
    """The headers of all arrays in an `.npz`.

    Raises:
        DataError: If the file is damaged, encrypted, holds Python objects, or a header belies its size.
    """
    arrays: dict[str, StoredArray] = {}
    with open_archive(path) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name == member.filename:
                continue
            if member.flag_bits & 0x1:
                raise DataError(f"{path} is encrypted; save it again with numpy.savez")
            try:
                with archive.open(member) as file:
                    shape, fortran, dtype = _read_header(file)
                    header_bytes = file.tell()
            except Exception as error:  # numpy parses the header text and fails in many ways on a damaged one
                raise DataError(
                    f"{name} in {path} has a damaged header ({one_line(str(error))}); save it again"
                ) from error
            if not _is_possible(shape, dtype):
                raise DataError(
                    f"{name} in {path} has a header that no array has (shape {str(shape)[:60]}, {str(dtype)[:20]}); "
                    f"save the file again"
                )
            if dtype.hasobject:
                raise DataError(
                    f"{name} in {path} holds Python objects, which could run code when loaded; "
                    f"save it as a plain array of numbers or strings"
                )
            if header_bytes + math.prod(shape) * dtype.itemsize != member.file_size:
                raise DataError(f"{name} in {path} does not have the size that its header claims; save the file again")
            arrays[name] = StoredArray(path, name, shape, dtype, fortran, member.CRC)
    return arrays


def _is_possible(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    """Whether a header names an array that can be read: numpy's own parser takes negative and boolean sizes."""
    whole = all(type(size) is int and size >= 0 for size in shape)
    return whole and len(shape) <= _MOST_AXES and dtype.itemsize > 0


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"version {version} of the .npy format is not read")


def write_array(
    archive: zipfile.ZipFile,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    blocks: Iterable[NDArray[Any]],
) -> None:
    """Add one array to an `.npz` from blocks of its rows, with a fixed date: same values, same bytes."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype).tobytes())
