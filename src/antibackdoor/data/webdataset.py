"""Shards of WebDataset: tar archives in which the files of one sample share a name, such as `000.jpg` and `000.cls`.

The class is in `.cls`, `.txt` or `.label` as text, or in `.json` under a title such as label; the input is an image, or
a series in `.npy`. Shards are called by their split, such as `train-000000.tar`. Nothing is extracted.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from antibackdoor.data.columns import LABEL_TITLES
from antibackdoor.data.given_arrays import Arrays
from antibackdoor.data.image_files import MAX_FILE_BYTES, ImageFiles
from antibackdoor.data.image_formats import IMAGE_SUFFIXES
from antibackdoor.data.options import Request
from antibackdoor.data.output import batches, complete_or_absent, pngs
from antibackdoor.data.pairs import test_beside, written_pair
from antibackdoor.data.regular_files import npy_header
from antibackdoor.data.samples import Samples, StrArray
from antibackdoor.data.series import Gaps
from antibackdoor.data.source import Faults, Listed, Source, Written, one_line
from antibackdoor.data.split_names import role_within
from antibackdoor.errors import DataError

SUFFIXES = (".tar",)
_LABELS = (".cls", ".label", ".txt")
_MOST_TEXT = 2**20  # bytes of a label or of a JSON beside a sample


@dataclass
class _Sample:
    """Where the files of one sample lie: archive, first byte, size."""

    shard: Path
    input: tuple[str, int, int] | None = None
    label: str | None = None
    others: list[str] = field(default_factory=list)


def is_folder_of_shards(path: Path) -> bool:
    """Whether a folder holds tar archives, and no folders or images beside them."""
    return bool(_shards(path))


def _shards(path: Path) -> list[Path]:
    entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    shards = sorted(entry for entry in entries if entry.suffix.lower() in SUFFIXES)
    strange = any(entry.is_dir() or entry.suffix.lower() in IMAGE_SUFFIXES for entry in entries)
    return [] if strange else shards


def open_source(path: Path, faults: Faults, request: Request) -> Source:
    """List the samples; ids are names in the archive, with that of the archive in front if there are several.

    Raises:
        DataError: If an archive is damaged, or a sample has no class.
    """
    splits: dict[str, list[Path]] = {}
    if path.is_dir():
        for shard in _shards(path):
            splits.setdefault(role_within(shard.stem) or "train", []).append(shard)
        validation = splits.pop("val", None)
        if validation and "test" not in splits:
            splits["test"] = validation
    else:
        beside = test_beside(path)
        splits = {"train": [path], **({"test": [beside]} if beside is not None and request.labelled else {})}
    arrays = Arrays(request.all_options.axes, Gaps(request.all_options.missing), faults)
    listed = {split: _listed(split, shards, arrays, faults, request.labelled) for split, shards in splits.items()}
    return Source(listed, None, arrays.gaps.notes())


def _listed(split: str, shards: list[Path], arrays: Arrays, faults: Faults, labelled: bool) -> Listed:
    where = one_line(str(shards[0] if len(shards) == 1 else shards[0].parent))
    found: list[tuple[str, _Sample]] = []
    for shard in shards:
        for sample in _samples(shard):
            if sample.input is None:
                for name in sample.others:
                    faults.pass_over(name, "belongs to no image or series of its name")
                continue
            name = sample.input[0] if len(shards) == 1 else f"{shard.stem}/{sample.input[0]}"
            if labelled and not sample.label:
                faults.report(name, f"{name} in {where} has no class next to it (.cls, .txt, or a label in .json)")
                continue
            found.append((name, sample))
    if not found:
        raise DataError(f"{where} holds no samples: expected files such as 000.jpg and 000.cls in a .tar")
    ids = tuple(name for name, _ in found)
    classes = tuple(str(sample.label) for _, sample in found) if labelled else ()
    kinds = {sample.input[0].lower().endswith(".npy") for _, sample in found if sample.input}
    if len(kinds) > 1:
        raise DataError(f"{where} holds images and series; give data of one kind")
    if kinds == {True}:
        return _series(found, ids, classes, where, arrays)
    stats = {shard: shard.stat() for shard in shards}
    identity = "\0".join(f"{os.path.realpath(s)} {stat.st_size} {stat.st_mtime_ns}" for s, stat in stats.items())
    places = [(sample.shard, *sample.input[1:]) for _, sample in found if sample.input]
    stamps = tuple(f"{size} {start}" for _, start, size in places)

    def fetch(key: str) -> BinaryIO:
        return io.BytesIO(_bytes(*places[int(key)]))

    keys = tuple(map(str, range(len(ids))))
    return Listed(ids, classes, ImageFiles(where, identity, ids, keys, stamps, fetch))


def _series(
    found: list[tuple[str, _Sample]], ids: tuple[str, ...], classes: tuple[str, ...], where: str, arrays: Arrays
) -> Listed:
    values = []
    for name, sample in found:
        assert sample.input is not None
        try:
            data = _bytes(sample.shard, *sample.input[1:])
            values.append(_array(data))
        except ValueError as error:
            raise DataError(f"{name} in {where} is not a readable array ({error}); save it again") from error
    content, kept = arrays.content(values, ids, where)
    chosen = kept.tolist()
    return Listed(tuple(ids[i] for i in chosen), tuple(classes[i] for i in chosen) if classes else (), content)


def _array(data: bytes) -> NDArray[Any]:
    file = io.BytesIO(data)
    header = npy_header(file)
    if header.dtype.kind not in "iuf" or file.tell() + header.n_bytes != len(data):
        raise ValueError(f"{header.dtype} of shape {header.shape} in {len(data)} bytes")
    return np.frombuffer(data, header.dtype, offset=file.tell()).reshape(header.shape, order=header.order)


def _bytes(shard: Path, start: int, size: int) -> bytes:
    with shard.open("rb") as file:
        file.seek(start)
        return file.read(size)


def _samples(shard: Path) -> Iterator[_Sample]:
    """The samples of an archive in its order; files of one sample need not follow each other.

    Raises:
        DataError: If it is damaged or compressed, or its files are too large to be samples.
    """
    samples: dict[str, _Sample] = {}
    try:
        _refuse_cut_off(shard)
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if not member.isreg() or member.issparse():
                    continue
                name = member.name.removeprefix("./")
                folder, slash, last = name.rpartition("/")
                first, dot, rest = last.partition(".")  # the name of a sample ends at the first dot
                if not first:  # hidden
                    continue
                if member.size > MAX_FILE_BYTES:
                    raise DataError(f"{one_line(name)} in {shard} has {member.size} bytes, too many for a sample")
                sample = samples.setdefault(f"{folder}{slash}{first}", _Sample(shard))
                _add(sample, archive, member, name, (dot + rest).lower())
    except (tarfile.TarError, OSError, ValueError) as error:
        raise DataError(
            f"{shard} is not a readable tar archive ({one_line(str(error))[:200]}); shards must not be compressed"
        ) from error
    yield from samples.values()


def _refuse_cut_off(shard: Path) -> None:
    """An archive ends in blocks of zeros; one without was not copied to its end, and may lack samples."""
    with shard.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - tarfile.BLOCKSIZE))
        if size % tarfile.BLOCKSIZE or any(file.read()):
            raise ValueError("it is cut off, or compressed")


def _add(sample: _Sample, archive: tarfile.TarFile, member: tarfile.TarInfo, name: str, suffix: str) -> None:
    last = f".{suffix.rpartition('.')[2]}"
    if last in IMAGE_SUFFIXES or last == ".npy":
        if sample.input is not None:
            raise DataError(f"{one_line(name)} in {sample.shard} is a second input of its sample; keep only one")
        sample.input = (name, member.offset_data, member.size)
    elif suffix in _LABELS and member.size <= _MOST_TEXT:
        sample.label = _text(archive, member)
    elif suffix == ".json" and member.size <= _MOST_TEXT:
        sample.label = sample.label or _in_json(_text(archive, member))
    sample.others.append(name)


def _text(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = archive.extractfile(member)
    return "" if file is None else file.read().decode("utf-8", "replace").strip()


def _in_json(text: str) -> str | None:
    try:
        about = json.loads(text)
    except (ValueError, RecursionError):
        return None
    titles = [title for title in about if title.lower() in LABEL_TITLES | {"cls"}] if isinstance(about, dict) else []
    value = about[titles[0]] if len(titles) == 1 else None
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


def write(path: Path, train: Samples, test: Samples | None) -> Written:
    """Write `NAME_TRAIN.tar` and `NAME_TEST.tar`, or one file: PNG images or `.npy` series, each with its `.txt`.

    Raises:
        DataError: If a file exists, or these are images of floats.
    """
    train_path, test_path = written_pair(path, with_test=test is not None)
    ids = _write_split(train_path, train)
    return Written(
        train_path, ids, _write_split(test_path, test) if test is not None and test_path is not None else None
    )


def _write_split(path: Path, samples: Samples) -> StrArray:
    suffix = "png" if samples.kind == "image" else "npy"
    files = pngs(samples) if samples.kind == "image" else _npys(samples)
    names = [str(name) for name in samples.class_names]
    if any(name != name.strip() or not name for name in names):
        raise DataError("a class name is empty, or begins or ends with a space, which a .tar cannot hold; rename it")
    ids = np.array([f"{row:06d}.{suffix}" for row in range(len(samples))], dtype=np.str_)
    with complete_or_absent(path) as temporary, tarfile.open(temporary, "w") as archive:
        for row, (data, label) in enumerate(zip(files, samples.labels.tolist(), strict=True)):
            for name, content in ((ids[row], data), (f"{row:06d}.txt", names[label].encode())):
                member = tarfile.TarInfo(str(name))  # a fixed date and owner: same samples, same bytes
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return ids


def _npys(samples: Samples) -> Iterator[bytes]:
    for batch in batches(samples):
        for series in batch:
            buffer = io.BytesIO()
            np.save(buffer, series, allow_pickle=False)
            yield buffer.getvalue()
