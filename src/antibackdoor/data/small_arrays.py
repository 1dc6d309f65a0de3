"""Reading small `.npz` files that somebody else may have made: all arrays at once, never through pickle."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antibackdoor.data.regular_files import npy_header, read_regular


def read_arrays(path: Path, names: Sequence[str], *, most: int) -> dict[str, NDArray[Any]]:
    """Those of the named arrays that the file holds; others are refused.

    Args:
        path: A regular file.
        names: Of all arrays that it may hold.
        most: Bytes that it may have, and that it may unpack to.

    Raises:
        OSError: It is missing, no regular file or too large.
        ValueError: It is damaged, or would unpack to more.
    """
    data = read_regular(path, most=most)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            odd = sorted({member.filename for member in members} - {f"{name}.npy" for name in names})
            if odd or len({member.filename for member in members}) < len(members):
                raise ValueError("it holds other arrays than it should")
            if sum(member.file_size for member in members) > most:
                raise ValueError(f"it would unpack to more than {most:,} bytes")
            return {member.filename.removesuffix(".npy"): _array(archive.read(member)) for member in members}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"it is not a complete .npz file ({error})") from error


def _array(data: bytes) -> NDArray[Any]:
    file = io.BytesIO(data)
    header = npy_header(file)
    start = file.tell()
    if header.n_bytes != len(data) - start:
        raise ValueError("the size of an array is not what its header claims")
    return np.frombuffer(data, header.dtype, offset=start).reshape(header.shape, order=header.order)
