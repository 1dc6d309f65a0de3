"""Zip and tar archives of pictures."""

from __future__ import annotations

import io
import struct
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np

from .case import Box, Case, Table, mutated
from .generators_pictures import CLASSES, classes_of, reading


def _members(box: Box) -> dict[str, bytes]:
    folder = box.material / "pics"
    return {str(place.relative_to(folder)): place.read_bytes() for place in sorted(folder.rglob("*.png"))}


def _written(path: Path, members: dict[str, bytes], extra: tuple[zipfile.ZipInfo, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)
        if extra is not None:
            # `writestr` takes no empty name. The warning about a second member of the name is not the product's.
            with warnings.catch_warnings(action="ignore"), archive.open(extra[0], "w") as file:
                file.write(extra[1])
    return path


def bytes_of_a_zip(box: Box) -> Case:
    """Some bytes of an archive are changed."""
    place = box.inputs / "data.zip"
    place.write_bytes(mutated((box.material / "pics.zip").read_bytes(), box.rng))
    return reading(box, place)


def directory_of_a_zip(box: Box) -> Case:
    """Some bytes of the archive's directory are changed: sizes, offsets, names, methods."""
    data = (box.material / "pics.zip").read_bytes()
    start = data.find(b"PK\x01\x02")
    place = box.inputs / "data.zip"
    place.write_bytes(data[:start] + mutated(data[start:], box.rng))
    return reading(box, place)


def name_of_a_member(box: Box) -> Case:
    """One member has an odd name."""
    name = box.pick(
        "", "/", "/etc/x.png", "../x.png", "class0/../../x.png", "C:/x.png", "a\\b.png",
        "class0/" + "x" * 60000 + ".png",
        "x/" * 2000 + "x.png", "class0//x.png", "./class0/./x.png", "class0/\n.png", "class0/\x1b[2J.png", "class0/",
        ".png",
        "class0/000.png", "class1/=1+1.png", "\0.png", "class0/a\0b.png", "class0/ .png", " /x.png", "…/x.png",
    )  # fmt: skip
    data = _members(box)["class0/000.png"]
    return reading(
        box, _written(box.inputs / "data.zip", _members(box), (zipfile.ZipInfo(name), data)), ascii(name)[:50]
    )


def kind_of_a_member(box: Box) -> Case:
    """One member is a link, a device, encrypted, of an odd method or date."""
    info = zipfile.ZipInfo("class0/odd.png")
    kind = int(box.rng.integers(5))
    data = _members(box)["class0/000.png"]
    if kind == 0:
        info.external_attr, data = 0o120777 << 16, b"../../outside/precious.txt"
    elif kind == 1:
        info.external_attr = 0o010644 << 16
    elif kind == 2:
        info.comment = box.rng.bytes(60000)
    path = _written(box.inputs / "data.zip", _members(box), (info, data))
    raw = bytearray(path.read_bytes())
    central = raw.rfind(b"PK\x01\x02")
    if kind == 3:
        raw[central + 8] |= 1
    elif kind == 4:
        struct.pack_into("<H", raw, central + 10, int(box.pick(1, 6, 9, 12, 14, 93, 99, 65535)))
    path.write_bytes(raw)
    return reading(box, path, f"kind {kind}")


def old_names(box: Box) -> Case:
    """Names in UTF-8 without the flag that says so."""
    names = {"class0": "blühend", "class1": "größe"}
    members = {f"{names[name[:6]]}/{name[7:]}": data for name, data in _members(box).items()}
    path = _written(box.inputs / "data.zip", members)
    raw = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = raw.find(mark)
        while place >= 0:
            struct.pack_into("<H", raw, place + offset, struct.unpack_from("<H", raw, place + offset)[0] & ~0x800)
            place = raw.find(mark, place + 4)
    path.write_bytes(raw)
    return classes_of(path, set(names.values()))


def split_names_in_a_zip(box: Box) -> Case:
    """Split folders under names of the wild, in an archive."""
    train, test = box.pick(("seg_train", "seg_test"), ("training_set", "test_set"), ("images_train", "images_test"))
    names = list(_members(box).items())
    members = {f"{train if row % 3 else test}/{name}": data for row, (name, data) in enumerate(names)}
    if box.chance(0.4):
        members = {f"top/{name}": data for name, data in members.items()}
    return classes_of(_written(box.inputs / "data.zip", members), set(CLASSES))


def bombs(box: Box) -> Case:
    """Archives that unpack to far more than they hold, whose members overlap, or are archives."""
    path, kind = box.inputs / "data.zip", int(box.rng.integers(4))
    if kind == 0:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in ("class0/a.png", "class1/a.png"):
                archive.writestr(name, b"\0" * 2**27)
    elif kind == 1:
        raw = bytearray((box.material / "pics.zip").read_bytes())
        for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
            struct.pack_into("<I", raw, raw.find(mark) + offset, int(box.pick(0, 1, 2**32 - 2, 2**28)))
        path.write_bytes(raw)
    elif kind == 2:
        inner = (box.material / "pics.zip").read_bytes()
        _written(path, {"class0/a.zip": inner, "class0/x.png": b"", "class1/b.zip": inner})
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for number in range(20000):
                archive.writestr(f"class{number % 2}/{number}.txt", b"")
    return reading(box, path, f"kind {kind}")


def tars(box: Box) -> Case:
    """Tar archives, whole or damaged, with links and paths that lead out."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=box.pick("w", "w:gz", "w:bz2", "w:xz")) as archive:
        archive.add(box.material / "pics", "pics")
        info = tarfile.TarInfo(box.pick("../x.png", "/x.png", "pics/class0/link.png", "pics/class0/y.png"))
        info.type = box.pick(tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)
        info.linkname = "../../outside/precious.txt"
        archive.addfile(info)
    data = file.getvalue()
    path = box.inputs / box.pick("data.tar", "data.tar.gz", "data.tgz", "data.zip")
    path.write_bytes(mutated(data, box.rng) if box.chance(0.5) else data)
    return reading(box, path)


def trailing(box: Box) -> Case:
    """Archives with something before or behind them, or two in one."""
    data = (box.material / "pics.zip").read_bytes()
    extra = box.pick(b"#!/bin/sh\n", box.rng.bytes(100), data, np.zeros(5000, np.uint8).tobytes())
    path = box.inputs / "data.zip"
    path.write_bytes(extra + data if box.chance(0.5) else data + extra)
    return reading(box, path)


ARCHIVES = Table(
    {
        "zip bytes": bytes_of_a_zip, "zip directory": directory_of_a_zip, "zip member name": name_of_a_member,
        "zip old names": old_names, "zip split names": split_names_in_a_zip, "zip trailing": trailing,
    },
    {"zip member kind": kind_of_a_member, "zip bombs": bombs, "tar": tars},
)  # fmt: skip
