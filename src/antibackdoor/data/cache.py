"""Decoded images on disk, so that a data set may be larger than memory and is decoded only once.

An entry is a folder `images-<fingerprint>` with `inputs.npy` (memory-mapped), `rows.npy` (which samples could
be read) and `index.json`. It is built under a temporary name and moved into place, so it is complete or
absent; one that does not fit its own index is built anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from antibackdoor.data.json_text import json_object, read_json_object
from antibackdoor.data.parallel import progress_bar
from antibackdoor.data.regular_files import mapped_array, read_regular
from antibackdoor.data.samples import InputArray, IntArray
from antibackdoor.data.source import CANNOT_OPEN, Block, Content, Faults, Skipped, Survey
from antibackdoor.errors import ConfigError, DataError, cannot, readable_size

_VERSION = 2  # raise it whenever decoding or resizing changes
_ABANDONED_SECONDS = 24 * 3600
_FAULT_BYTES = 16 * 2**10  # of the name of an unreadable sample, and the reason, as JSON


class Stored(NamedTuple):
    """Decoded images and the rows of the content that they belong to."""

    inputs: InputArray  # (N, C, H, W), a read-only memmap
    rows: IntArray  # (N,) positions in the chained contents


def cache_folder(cache: Path | None, data: str | Path | None = None) -> Path:
    """Where decoded images are kept: `cache`, or the user's cache directory.

    Raises:
        ConfigError: If `cache` lies in the folder `data`: it would be read as one of the classes.
        DataError: If there is no cache, and the user has no home folder.
    """
    if cache is not None:
        place = Path(cache).resolve()
        if data is not None and Path(data).is_dir() and Path(data).resolve() in (place, *place.parents):
            raise ConfigError(f"--cache {cache} lies in the data folder {data}; choose a folder outside of it")
        return Path(cache)
    try:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    except RuntimeError as error:
        raise DataError("this user has no home folder for decoded images; give one with --cache") from error
    return Path(base) / "antibackdoor"


def surveyed(content: Content, cache: Path, *, progress: bool) -> Survey:
    """`content.survey`, remembered where it opens every file."""
    if content.in_memory:
        return content.survey(progress)
    file = cache / f"survey-{_key([content], ())}.json"
    try:
        return _kept_survey(read_json_object(file), len(content))
    except (OSError, ValueError, KeyError, TypeError):
        survey = content.survey(progress)
    counts = [[list(size), n] for size, n in survey.sizes.items()]
    deep = [survey.deep_bits, survey.n_deep, survey.n_dim]
    text = json.dumps({"sizes": counts, "channels": survey.channels, "deep": deep})
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        temporary.replace(file)
    except OSError as error:
        raise _unwritable(cache, error) from error
    return survey


def _kept_survey(kept: Mapping[str, Any], n_samples: int) -> Survey:
    """A survey as it was kept.

    Raises:
        ValueError: It tells sizes that there cannot be, or of other samples; or KeyError, TypeError.
    """
    sizes = Counter({tuple(size): n for size, n in kept["sizes"]})
    channels, (deep_bits, n_deep, n_dim) = kept["channels"], kept["deep"]
    counts = [channels, deep_bits + 1, n_deep + 1, n_dim + 1]
    whole = [*(side for size in sizes for side in size), *sizes.values(), *counts]
    if any(type(number) is not int or number < 1 for number in whole) or sizes.total() > n_samples:
        raise ValueError("it is no survey of these samples")
    return Survey(sizes, channels, deep_bits, n_deep, n_dim)


def stored(
    contents: Sequence[Content], shape: tuple[int, ...], faults: Faults, cache: Path, *, progress: bool
) -> Stored:
    """The decoded contents, one after the other, from the cache or decoded into it.

    Raises:
        DataError: If a sample cannot be read (and `faults` raises), or the cache cannot be written.
    """
    entry = cache / f"images-{_key(contents, shape)}"
    known = _load(entry, contents, shape)
    if known is not None and any(CANNOT_OPEN in fault.reason for fault in known[1]):
        _remove(entry)  # permissions and network drives may be mended by now
        known = None
    if known is None:
        collected = Faults(faults.on_error)
        _build(entry, contents, shape, collected, progress)
        known = _load(entry, contents, shape)
        if known is None:
            raise DataError(f"the cache entry {entry} changed while it was read; try again or give --cache FOLDER")
    result, skipped = known
    for fault in skipped:
        faults.report(fault.id, fault.reason)
    return result


def _key(contents: Sequence[Content], shape: tuple[int, ...]) -> str:
    parts = [str(_VERSION), str(shape), *(content.fingerprint() for content in contents)]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _load(entry: Path, contents: Sequence[Content], shape: tuple[int, ...]) -> tuple[Stored, list[Skipped]] | None:
    """The entry, or None if it is absent, damaged or half-written."""
    n_rows = sum(len(content) for content in contents)
    try:
        if entry.is_symlink():
            return None
        index = json_object(read_regular(entry / "index.json", most=_FAULT_BYTES * (n_rows + 1)))
        skipped = [Skipped(str(fault["id"]), str(fault["reason"])) for fault in index["skipped"]]
        rows, inputs = mapped_array(entry / "rows.npy"), mapped_array(entry / "inputs.npy")
    except (OSError, ValueError, KeyError, TypeError):
        return None
    fits = (
        rows.dtype == np.int64
        and rows.ndim == 1
        and inputs.shape == (len(rows), *shape)
        and inputs.dtype == contents[0].dtype
        and len(rows) + len(skipped) == n_rows
    )
    if not fits:
        return None
    places: IntArray = np.array(rows, dtype=np.int64)
    in_order = bool((np.diff(places, prepend=-1) > 0).all()) and bool((places < n_rows).all())
    return (Stored(inputs, places), skipped) if in_order else None


def _remove(entry: Path) -> None:
    """Delete a folder of ours, or what stands in its place; a link is not followed."""
    if entry.is_symlink() or entry.is_file():
        entry.unlink()
    shutil.rmtree(entry, ignore_errors=True)


def _build(entry: Path, contents: Sequence[Content], shape: tuple[int, ...], faults: Faults, progress: bool) -> None:
    cache = entry.parent
    temporary = cache / f".{entry.name}.{uuid.uuid4().hex}"
    try:
        _make_room(cache, entry, sum(len(c) for c in contents) * _row_bytes(contents[0], shape))
        temporary.mkdir()
        _fill(temporary, contents, shape, faults, progress)
        index = [{"id": fault.id, "reason": fault.reason} for fault in faults.skipped]
        (temporary / "index.json").write_text(json.dumps({"version": _VERSION, "skipped": index}))
        if _load(entry, contents, shape) is None:
            _remove(entry)
        _publish(temporary, entry)
    except OSError as error:
        raise _unwritable(cache, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary: Path, entry: Path) -> None:
    try:
        temporary.replace(entry)
    except OSError:
        if not entry.is_dir():  # otherwise another process was faster, and its entry is as good
            raise


def _fill(folder: Path, contents: Sequence[Content], shape: tuple[int, ...], faults: Faults, progress: bool) -> None:
    dtype = np.dtype(contents[0].dtype)
    kept: list[IntArray] = []
    total = sum(len(content) for content in contents)
    with (
        (folder / "inputs.npy").open("wb") as file,
        progress_bar("Decoding images", total, show=progress) as advance,
    ):
        body = _write_header(file, (total, *shape), dtype)
        for block in _chained(contents, shape, faults):
            file.write(np.ascontiguousarray(block.inputs, dtype).data)
            kept.append(block.rows)
            advance(len(block.rows))
        rows = np.concatenate(kept) if kept else np.empty(0, np.int64)
        if not len(rows):
            raise DataError(f"none of the {total} images can be read; the first: {faults.skipped[0].reason}")
        file.seek(0)
        if _write_header(file, (len(rows), *shape), dtype) != body:
            raise AssertionError("numpy pads headers so that the first axis may change")
        file.flush()
        os.fsync(file.fileno())
    np.save(folder / "rows.npy", rows, allow_pickle=False)


def _write_header(file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> int:
    """Write a `.npy` header at the current position; returns where the values start."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.tell()


def _chained(contents: Sequence[Content], shape: tuple[int, ...], faults: Faults) -> Iterator[Block]:
    offset = 0
    for content in contents:
        for block in content.blocks(shape, faults):
            yield Block(block.rows + offset, block.inputs)
        offset += len(content)


def _row_bytes(content: Content, shape: tuple[int, ...]) -> int:
    return int(np.prod(shape)) * np.dtype(content.dtype).itemsize


def _make_room(cache: Path, entry: Path, n_bytes: int) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    for leftover in [*cache.glob(".images-*"), *cache.glob(".survey-*")]:  # of processes that were killed
        with suppress(OSError):
            if time.time() - leftover.lstat().st_mtime > _ABANDONED_SECONDS:
                _remove(leftover)
    free = shutil.disk_usage(cache).free
    if n_bytes > free:
        raise DataError(
            f"the decoded images need {readable_size(n_bytes)}, but the disk of {cache} has only "
            f"{readable_size(free)} left: free some, give another folder with --cache, or a smaller --image-size"
        )


def _unwritable(cache: Path, error: OSError) -> DataError:
    return DataError(f"{cannot('write to the cache', cache, error)}; give another folder with --cache")
