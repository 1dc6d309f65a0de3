"""Which split and class an image belongs to, by its path."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field

from antibackdoor.data.source import in_natural_order, one_line
from antibackdoor.data.split_names import are_folds, are_parts, role, role_within
from antibackdoor.errors import DataError

_Parts = list[str]  # a path, folder by folder
_EXPECTED = "expected class/image.png or train/class/image.png"


@dataclass(frozen=True)
class Layout:
    """Images by split.

    Attributes:
        splits: "train" and "test" -> (path, class name) of each image, by class and then by path.
        wrapper: Folders around the whole data set, ending in "/"; not part of the ids.
        unused: Split folder -> paths in it: a `val` folder beside `test`, which nothing reads.
        parents: The folders that hold the class folders, wrapper included; "" is the top.
        notes: What was assumed of the folders.
    """

    splits: dict[str, list[tuple[str, str]]]
    wrapper: str
    unused: dict[str, list[str]]
    parents: tuple[str, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)


def arrange(paths: Iterable[str], where: str) -> Layout:
    """Sort image paths `[split/]class/…/file`, or `class/split/file`, into splits and classes.

    A split layout is one whose top folders are all called train, test or val (or their long forms), or that has a
    train and a test folder by a word in their names, as `seg_train` and `seg_test`. A single folder around
    everything, or around all of a split, is stepped into. If there are both `test` and `val`, `test` is used.

    Raises:
        DataError: If there is no image, an image lies outside the class folders, or folders may as well be splits
            as classes.
    """
    split_paths = sorted(path.split("/") for path in paths)
    wrapper = ""
    while split_paths and _is_wrapped(split_paths):
        wrapper += split_paths[0][0] + "/"
        split_paths = [parts[1:] for parts in split_paths]
    if not split_paths:
        raise DataError(f"{where} holds no images: {_EXPECTED}")
    roles = _roles(split_paths, where)
    for parts in split_paths:
        _check_depth(parts, bool(roles), where)
    if roles:
        return _split_layout(split_paths, roles, wrapper)
    _refuse_folds(split_paths, where)
    if _has_splits_in_classes(split_paths, where):
        by_role: dict[str, list[tuple[_Parts, int]]] = {}
        for parts in split_paths:
            by_role.setdefault(role(parts[1]), []).append((parts, 0))
        return _layout(by_role, {"val": ["val"]}, wrapper, (wrapper,), {"splits": "folders within each class"})
    return _layout({"train": [(parts, 0) for parts in split_paths]}, {}, wrapper, (wrapper,), _shared_note(split_paths))


def _is_wrapped(split_paths: list[_Parts]) -> bool:
    first = split_paths[0][0]
    return not role(first) and all(parts[0] == first and len(parts) > 2 for parts in split_paths)


def _below(split_paths: list[_Parts]) -> dict[str, set[str]]:
    """Top folders that hold no image directly, and the folders in each."""
    direct = {parts[0] for parts in split_paths if len(parts) == 2}
    below: dict[str, set[str]] = {}
    for parts in split_paths:
        if len(parts) > 2 and parts[0] not in direct:
            below.setdefault(parts[0], set()).add(parts[1])
    return below


def _roles(split_paths: list[_Parts], where: str) -> dict[str, str]:
    """The role of each top folder; empty if these are classes."""
    tops = {parts[0] for parts in split_paths if len(parts) > 1}
    below = _below(split_paths)
    exact = {top: role(top) for top in tops}
    roles = {top: exact[top] or role_within(top) for top in tops}
    deep = {roles[top] for top in below} - {""}
    if not (all(exact.values()) or any(exact[top] for top in below)):
        trained_and_tested = "train" in deep and len(deep) > 1
        by_name = all(roles.values()) and len(set(roles.values())) > 1
        if not (trained_and_tested or by_name or (all(roles.values()) and _n_shared(below) > 1)):
            alone = next((top for top in sorted(below) if roles[top] and _n_shared(below) > 1), None)
            if alone is None:
                return {}
            raise DataError(
                f"{where}: the folder {one_line(alone)!r} may be a split or a class, and holds the same folders as "
                f"another one; call it 'train', 'test' or 'val' if it is a split, or rename it"
            )
    strangers = sorted(top for top in tops if not roles[top])
    if strangers:
        raise DataError(
            f"{where}: the folder {one_line(strangers[0])!r} lies beside the split folders "
            f"{sorted(tops - set(strangers))}; move it away, or give --test instead of split folders"
        )
    return roles


def _n_shared(below: dict[str, set[str]]) -> int:
    """How many names of folders occur within more than one top folder."""
    names = [name for inner in below.values() for name in inner]
    return sum(names.count(name) > 1 for name in set(names))


def _refuse_folds(split_paths: list[_Parts], where: str) -> None:
    tops = {parts[0] for parts in split_paths}
    below = _below(split_paths)
    if are_folds(tops) or (are_parts(tops) and set(below) == tops and _n_shared(below) > 1):
        shown = ", ".join(one_line(top) for top in sorted(tops)[:3])
        raise DataError(
            f"{where}: the folders {shown} look like parts of one data set, not like classes; merge them, put them "
            f"into the folders 'train' and 'test', or give one of them as the data and another with --test"
        )


def _has_splits_in_classes(split_paths: list[_Parts], where: str) -> bool:
    """Whether each class folder holds the splits, as in `cat/train/1.png`."""
    inner: dict[str, set[str]] = {}
    for parts in split_paths:
        inner.setdefault(parts[0], set()).add(role(parts[1]) if len(parts) > 2 else "")
    if all("train" in roles and "" not in roles for roles in inner.values()) and any(
        len(roles) > 1 for roles in inner.values()
    ):
        if all(len(parts) == 3 for parts in split_paths):
            return True
    elif not any("train" in roles and roles & {"test", "val"} for roles in inner.values()):
        return False
    mixed = next(top for top, roles in inner.items() if "train" in roles)
    raise DataError(
        f"{where}: {one_line(mixed)!r} holds split folders, which are too deep or not in each of the top folders; "
        f"{_EXPECTED}"
    )


def _shared_note(split_paths: list[_Parts]) -> dict[str, str]:
    below = _below(split_paths)
    if len(below) < 2 or _n_shared(below) < 2 or len(below) < len({parts[0] for parts in split_paths}):
        return {}
    return {"classes": f"the {len(below)} top folders, although they hold folders of the same names"}


def _check_depth(parts: _Parts, is_split: bool, where: str) -> None:
    if len(parts) < (3 if is_split else 2):
        folder = "/".join([where, *parts[:-1]])
        raise DataError(
            f"{one_line(folder)} holds images outside of class folders ({one_line(parts[-1])}): "
            f"put each image into a folder named after its class"
        )


def _split_layout(split_paths: list[_Parts], roles: dict[str, str], wrapper: str) -> Layout:
    by_top: dict[str, list[_Parts]] = {}
    for parts in split_paths:
        by_top.setdefault(parts[0], []).append(parts)
    depths = _class_depths(by_top, roles)
    by_role: dict[str, list[tuple[_Parts, int]]] = {}
    folders: dict[str, list[str]] = {}
    for top, members in by_top.items():
        by_role.setdefault(roles[top], []).extend((parts, depths[top]) for parts in members)
        folders.setdefault(roles[top], []).append(top)
    unused = folders.get("val", []) if "test" in by_role else []
    parents = tuple(wrapper + "/".join(by_top[top][0][: depths[top]]) for top in sorted(by_top) if top not in unused)
    recognized = {top: roles[top] for top in sorted(roles) if not role(top)}
    told = ", ".join(f"{one_line(top)} is {name}" for top, name in recognized.items())
    return _layout(by_role, folders, wrapper, parents, {"splits": told} if told else {})


def _class_depths(by_top: dict[str, list[_Parts]], roles: dict[str, str]) -> dict[str, int]:
    """Where in the paths of each split the class stands: deeper than 1 where one folder holds all of the split."""
    depths = {top: _wrapped_depth(members) for top, members in by_top.items()}
    trained = [top for top in by_top if roles[top] == "train"]
    if any(depths[top] == 1 for top in trained):  # each may hold other classes
        depths |= dict.fromkeys(trained, 1)
    classes = {parts[depths[top]] for top in trained for parts in by_top[top]}
    for top in set(by_top) - set(trained):
        if by_top[top][0][1] in classes:  # a test split may have one class only
            depths[top] = 1
    return depths


def _wrapped_depth(members: list[_Parts]) -> int:
    depth = 1
    while len({parts[depth] for parts in members}) == 1 and all(len(parts) > depth + 2 for parts in members):
        depth += 1
    return depth


def _layout(
    by_role: dict[str, list[tuple[_Parts, int]]],
    folders: dict[str, list[str]],
    wrapper: str,
    parents: tuple[str, ...],
    notes: dict[str, str],
) -> Layout:
    """The layout of paths that stand with the position of their class; `val` is the test split if there is no other."""
    unused: dict[str, list[str]] = {}
    if "val" in by_role:
        validation = by_role.pop("val")
        if "test" in by_role:
            unused = {name: [] for name in folders["val"]}
            for parts, _ in validation:
                unused[parts[0] if parts[0] in unused else "val"].append("/".join(parts))
        else:
            by_role["test"] = validation
    splits: dict[str, list[tuple[str, str]]] = {
        name: _by_class(by_role[name]) for name in ("train", "test") if name in by_role
    }
    return Layout(splits, wrapper, unused, parents, notes)


def _by_class(members: list[tuple[_Parts, int]]) -> list[tuple[str, str]]:
    """Systems write one name in several ways (NFC, NFD); a class has one."""
    named = [(unicodedata.normalize("NFC", parts[depth]), parts) for parts, depth in members]
    rank = {name: i for i, name in enumerate(in_natural_order({name for name, _ in named}))}
    return [("/".join(parts), name) for name, parts in sorted(named, key=lambda member: (rank[member[0]], member[1]))]
