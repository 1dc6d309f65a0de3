"""Which split and class an image belongs to, by its path; and the path that a sample is written to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from antibackdoor.data.samples import Samples, StrArray
from antibackdoor.data.source import in_natural_order, one_line
from antibackdoor.errors import DataError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".pbm", ".webp", ".tif", ".tiff", ".gif"})
_TRAIN = frozenset({"train", "training"})
_TEST = frozenset({"test", "testing"})
_VALIDATION = frozenset({"val", "valid", "validation"})
_SPLITS = _TRAIN | _TEST | _VALIDATION


@dataclass(frozen=True)
class Layout:
    """Images by split.

    Attributes:
        splits: "train" and "test" -> (path, class name) of each image, by class and then by path.
        wrapper: Folders around the whole data set, ending in "/"; not part of the ids.
        left_out: A `val` folder beside `test`, which nothing reads.
        parents: The folders that hold the class folders, wrapper included; "" is the top.
    """

    splits: dict[str, list[tuple[str, str]]]
    wrapper: str
    left_out: tuple[str, ...]
    parents: tuple[str, ...] = ()


def is_image(path: str) -> bool:
    """Whether the name says image; hidden files and what macOS leaves in archives are not.

    >>> [is_image(p) for p in ("cat/1.JPG", "cat/.1.jpg", "__MACOSX/cat/1.jpg", "cat/notes.txt")]
    [True, False, False, False]
    """
    parts = path.split("/")
    if any(part.startswith(".") or part == "__MACOSX" for part in parts):
        return False
    return PurePosixPath(parts[-1]).suffix.lower() in IMAGE_SUFFIXES


def arrange(paths: Iterable[str], where: str) -> Layout:
    """Sort image paths `[split/]class/…/file` into splits and classes.

    A split layout is one whose top folders are all called train, test or val (or their long forms). A single
    folder around everything is stepped into. If there are both `test` and `val`, `test` is used.

    Raises:
        DataError: If there is no image, an image lies outside the class folders, or `train` stands among
            folders that are not splits.
    """
    split_paths = sorted(path.split("/") for path in paths)
    wrapper = ""
    while split_paths and _is_wrapped(split_paths):
        wrapper += split_paths[0][0] + "/"
        split_paths = [parts[1:] for parts in split_paths]
    if not split_paths:
        raise DataError(
            f"{where} holds no images: expected class/image.png or train/class/image.png "
            f"({', '.join(sorted(IMAGE_SUFFIXES))})"
        )
    tops = {parts[0] for parts in split_paths if len(parts) > 1}
    roles = {top: _role(top) for top in tops}
    deep = tops - {parts[0] for parts in split_paths if len(parts) == 2}
    is_split = all(roles.values()) or any(role and top in deep for top, role in roles.items())
    for parts in split_paths:
        _check_depth(parts, is_split, where)
    if not is_split:
        return Layout({"train": _by_class(split_paths, 0)}, wrapper, (), (wrapper,))
    strangers = sorted(top for top, role in roles.items() if not role)
    if strangers:
        raise DataError(
            f"{where}: the folder {one_line(strangers[0])!r} lies beside the split folders "
            f"{sorted(tops - set(strangers))}; move it away, or give --test instead of split folders"
        )
    return _split_layout(split_paths, roles, wrapper)


def _is_wrapped(split_paths: list[list[str]]) -> bool:
    first = split_paths[0][0]
    return not _role(first) and all(parts[0] == first and len(parts) > 2 for parts in split_paths)


def _role(top: str) -> str:
    name = top.lower()
    return "train" if name in _TRAIN else "test" if name in _TEST else "val" if name in _VALIDATION else ""


def _check_depth(parts: list[str], is_split: bool, where: str) -> None:
    if len(parts) < (3 if is_split else 2):
        folder = "/".join([where, *parts[:-1]])
        raise DataError(
            f"{one_line(folder)} holds images outside of class folders ({one_line(parts[-1])}): "
            f"put each image into a folder named after its class"
        )


def _split_layout(split_paths: list[list[str]], roles: dict[str, str], wrapper: str) -> Layout:
    by_role: dict[str, list[list[str]]] = {}
    for parts in split_paths:
        by_role.setdefault(roles[parts[0]], []).append(parts)
    left_out: tuple[str, ...] = ()
    if "val" in by_role:
        validation = by_role.pop("val")
        if "test" in by_role:
            left_out = tuple(sorted({parts[0] for parts in validation}))
        else:
            by_role["test"] = validation
    parents = tuple(wrapper + top for top in sorted(roles) if top not in left_out)
    return Layout(
        {role: _by_class(by_role[role], 1) for role in ("train", "test") if role in by_role}, wrapper, left_out, parents
    )


def _by_class(split_paths: list[list[str]], depth: int) -> list[tuple[str, str]]:
    rank = {name: i for i, name in enumerate(in_natural_order({parts[depth] for parts in split_paths}))}
    ordered = sorted(split_paths, key=lambda parts: (rank[parts[depth]], parts))
    return [("/".join(parts), parts[depth]) for parts in ordered]


def written_names(samples: Samples, split: str) -> StrArray:
    """The path `[split/]class/…/stem.png` under which each sample is written, `(N,)` str.

    The class folder is that of the given label; what stood below the class folder in the id is kept. Two
    samples may now want one name (a relabelled one meets a namesake in its new class): the sample that was in
    the class before keeps it, the other gets its row number appended.

    Raises:
        DataError: If a class name cannot be a folder name, or a class has no sample and would be lost.
    """
    names = [_safe_folder(str(name)) for name in samples.class_names]
    reserved = next((name for name in names if _role(name)), None)
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
    if len(parts) > 1 and parts[0].lower() in _SPLITS:
        parts = parts[1:]
    home, rest = (parts[0], parts[1:]) if len(parts) > 1 else ("", parts)
    file = PurePosixPath(rest[-1])
    stem = file.stem if file.suffix.lower() in IMAGE_SUFFIXES else file.name
    return home, "/".join([*(part.lstrip(".") or "_" for part in rest[:-1]), stem.lstrip(".") or "_"])


def _safe_folder(name: str) -> str:
    if not name or name.startswith(".") or name == "__MACOSX" or set(name) & set("/\\:\0") or not name.isprintable():
        raise DataError(f"class name {one_line(name)!r} cannot be the name of a folder; rename it, or use .npz")
    return name
