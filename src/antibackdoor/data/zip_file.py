"""A zip of class folders, read in place: nothing is extracted, so no member can be written anywhere."""

from __future__ import annotations

import re
import stat
import zipfile
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import BinaryIO

from antibackdoor.data.image_files import MAX_FILE_BYTES, layout_of, list_images
from antibackdoor.data.layout import is_image, written_names
from antibackdoor.data.options import Request
from antibackdoor.data.output import complete_or_absent, pngs
from antibackdoor.data.samples import Samples
from antibackdoor.data.source import Faults, Source, Written, one_line
from antibackdoor.errors import DataError

SUFFIXES = (".zip",)
_MAX_RATIO = 200  # of unpacked to packed bytes, for archives that unpack to more than _HARMLESS_BYTES
_HARMLESS_BYTES = 64 * 2**20


def open_source(path: Path, faults: Faults, request: Request) -> Source:
    """List the images in a zip; ids are paths in the archive.

    Raises:
        DataError: If it is damaged, encrypted, a decompression bomb, or holds links or paths that lead out.
    """
    archive = open_archive(path)
    found: dict[str, str] = {}
    raw_names: dict[str, str] = {}
    for member in archive.infolist():
        name = _safe_name(member, path)
        if member.is_dir() or not is_image(name):
            continue
        if name in found:
            raise DataError(f"{path} holds {one_line(name)!r} twice; remove one of the two, ids must be unique")
        if member.file_size > MAX_FILE_BYTES:
            raise DataError(f"{name} in {path} unpacks to {member.file_size} bytes, too many for an image; remove it")
        found[name] = f"{member.file_size} {member.CRC:08x}"
        raw_names[name] = member.filename

    lock = Lock()  # opening and closing a member counts references in the archive, which threads share

    def fetch(name: str) -> BinaryIO:
        with lock:
            member = archive.open(raw_names[name])
        try:
            return BytesIO(member.read())
        finally:
            with lock:
                member.close()

    # Checksums alone would not do: CRC-32 is easily forged, and a cache must not vouch for another archive.
    status = path.stat()
    identity = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
    return list_images(layout_of(found, str(path), labelled=request.labelled), found, str(path), identity, fetch)


def open_archive(path: Path) -> zipfile.ZipFile:
    """Open a zip after checking that it is neither damaged nor a decompression bomb.

    Raises:
        DataError: If it is.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(
            f"{path} is not a zip archive that can be read ({one_line(str(error))}); make it anew"
        ) from error
    members = archive.infolist()
    packed = sum(member.compress_size for member in members)
    unpacked = sum(member.file_size for member in members)
    if packed > path.stat().st_size:
        raise DataError(f"{path}: its members overlap, as in a decompression bomb; make the archive anew")
    if unpacked > _HARMLESS_BYTES and unpacked > _MAX_RATIO * path.stat().st_size:
        raise DataError(
            f"{path} would unpack to {unpacked} bytes, more than {_MAX_RATIO} times its size, as a "
            f"decompression bomb does; make the archive anew without compression"
        )
    return archive


def _safe_name(member: zipfile.ZipInfo, path: Path) -> str:
    name = member.filename.replace("\\", "/")
    shown = one_line(member.filename)
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in name.split("/"):
        raise DataError(f"{path}: the member {shown!r} leads out of the archive; make it anew with relative names")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise DataError(f"{path}: the member {shown!r} is a symbolic link; make the archive anew with the files")
    if member.flag_bits & 0x1:
        raise DataError(f"{path} is encrypted ({shown!r}); make it anew without a password")
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def write(path: Path, train: Samples, test: Samples | None) -> Written:
    """Write lossless PNG members `class/stem.png`, below `train/` and `test/` if there is a test split.

    Members are stored (PNG is compressed already) with a fixed date: same samples, same bytes.

    Raises:
        DataError: If `path` exists, or the samples are no uint8 images.
    """
    train_names = written_names(train, "train" if test is not None else "")
    test_names = written_names(test, "test") if test is not None else None
    with complete_or_absent(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for samples, names in ((train, train_names), (test, test_names)):
            if samples is None or names is None:
                continue
            for name, data in zip(names.tolist(), pngs(samples), strict=True):
                archive.writestr(zipfile.ZipInfo(name), data)
    return Written(path, train_names, test_names)
