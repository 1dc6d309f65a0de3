"""The path that a sample is written to, by its class and its id."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

from antibackdoor.data.image_formats import IMAGE_SUFFIXES, is_litter
from antibackdoor.data.samples import Samples, StrArray
from antibackdoor.data.source import one_line
from antibackdoor.data.split_names import SPLITS, are_folds, role, role_within
from antibackdoor.errors import DataError


def written_names(samples: Samples, split: str) -> StrArray:
    """The path `[split/]class/…/stem.png` under which each sample is written, `(N,)` str.

    The class folder is that of the given label; what stood below the class folder in the id is kept. Two
    samples may now want one name (a relabelled one meets a namesake in its new class): the sample that was in
    the class before keeps it, the other gets its row number appended.

    Raises:
        DataError: If a class name cannot be a folder name, or a class has no sample and would be lost.
    """
    names = [_safe_folder(str(name)) for name in samples.class_names]
    reserved = next((name for name in names if role(name)), None)
    if reserved is None and (are_folds(set(names)) or all(role_within(name) for name in names)):
        reserved = names[0]
    if not split and reserved is not None:
        raise DataError(f"class name {reserved!r} would be taken for a split when read; rename it, or use .npz")
    if split != "test":
        empty = np.flatnonzero(np.bincount(samples.labels, minlength=len(names)) == 0)
        if len(empty):
            raise DataError(f"class {names[int(empty[0])]!r} has no sample left, so a folder cannot hold it; use .npz")
    homes, rests = zip(*(_below_class(str(sample_id)) for sample_id in samples.ids), strict=True)
    folders = [names[label] for label in samples.labels.tolist()]
    stays = [home == folder for home, folder in zip(homes, folders, strict=True)]
    result = [""] * len(folders)
    taken: set[str] = set()
    for row in sorted(range(len(folders)), key=lambda i: not stays[i]):
        stem = "/".join(part for part in (split, folders[row], rests[row]) if part)
        name = f"{stem}.png"
        while name in taken:
            stem = f"{stem}-{row}"
            name = f"{stem}.png"
        taken.add(name)
        result[row] = name
    return np.array(result, dtype=np.str_)


def _below_class(sample_id: str) -> tuple[str, str]:
    """The class folder in an id (or "") and the rest without its suffix."""
    parts: Sequence[str] = [part for part in sample_id.split("/") if part not in ("", ".", "..")] or ["sample"]
    if len(parts) > 1 and parts[0].lower() in SPLITS:
        parts = parts[1:]
    home, rest = (parts[0], parts[1:]) if len(parts) > 1 else ("", parts)
    file = PurePosixPath(rest[-1])
    stem = file.stem if file.suffix.lower() in IMAGE_SUFFIXES else file.name
    return home, "/".join([*(part.lstrip(".") or "_" for part in rest[:-1]), stem.lstrip(".") or "_"])


def _safe_folder(name: str) -> str:
    if not name or is_litter(name) or set(name) & set("/\\:\0") or not name.isprintable():
        raise DataError(f"class name {one_line(name)!r} cannot be the name of a folder; rename it, or use .npz")
    return name
