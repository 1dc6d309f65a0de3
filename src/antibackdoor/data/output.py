"""Writing a data set: nothing is overwritten or appears half-written, and few batches are in memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from antibackdoor.data.images import encode_png
from antibackdoor.data.parallel import in_order
from antibackdoor.data.samples import InputArray, Samples
from antibackdoor.data.source import one_line
from antibackdoor.errors import DataError

_BATCH_BYTES = 4 * 2**20


def refuse_existing(path: Path) -> None:
    """Check that nothing is at `path`.

    Raises:
        DataError: If something is.
    """
    if path.exists():
        raise DataError(f"{one_line(str(path))} exists already; remove it or write to another path")


@contextmanager
def complete_or_absent(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that is moved to it if the block succeeds, and removed if not.

    Raises:
        DataError: If `path` exists.
    """
    refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def batches(samples: Samples) -> Iterator[InputArray]:
    """The inputs in order, a few MiB at a time."""
    step = max(1, _BATCH_BYTES // max(1, samples.inputs[:1].nbytes))
    for start in range(0, len(samples), step):
        yield samples.inputs[start : start + step]


def pngs(samples: Samples) -> Iterator[bytes]:
    """All images as PNG, in order.

    Raises:
        DataError: If the samples are series, or floats.
    """
    if samples.kind != "image":
        raise DataError("series cannot be written as images; use .npz, .ts or .csv")
    for encoded in in_order(lambda batch: [encode_png(image) for image in batch], batches(samples)):
        yield from encoded
