"""A zip of class folders, read in place: nothing is extracted, so no member can be written anywhere."""

from __future__ import annotations

import re
import stat
import struct
import zipfile
import zlib
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import BinaryIO, cast

from antibackdoor.data.image_files import MAX_FILE_BYTES, Found, list_images, report_empty_classes, sift
from antibackdoor.data.image_formats import why_litter
from antibackdoor.data.options import Request
from antibackdoor.data.output import complete_or_absent, pngs
from antibackdoor.data.samples import Samples
from antibackdoor.data.source import Faults, Source, Written, one_line
from antibackdoor.data.written_names import written_names
from antibackdoor.errors import DataError

SUFFIXES = (".zip",)
_MAX_RATIO = 200  # of unpacked to packed bytes, for archives that unpack to more than _HARMLESS_BYTES
_HARMLESS_BYTES = 64 * 2**20
_UTF8_FLAG = 0x800
_UNICODE_PATH = 0x7075  # Info-ZIP's extra field


def open_source(path: Path, faults: Faults, request: Request) -> Source:
    """List the images in a zip; ids are paths in the archive.

    Raises:
        DataError: If it is damaged, encrypted, a decompression bomb, or holds links or paths that lead out.
    """
    archive = open_archive(path)
    members: dict[str, zipfile.ZipInfo] = {}
    folders: set[str] = set()
    guessed: list[str] = []
    for member in archive.infolist():
        raw, is_guess = _decoded_name(member)
        name = _safe_name(member, raw, path)
        if is_guess:
            guessed.append(raw)
        if raw.replace("\\", "/").endswith("/"):
            folders.add(name)
        elif reason := _why_special(member):
            (faults.pass_over if why_litter(name) else faults.report)(name, f"{name} in {path} {reason}")
        elif name in members:
            raise DataError(f"{path} holds {one_line(name)!r} twice; remove one of the two, ids must be unique")
        else:
            members[name] = member
    lock = Lock()  # opening and closing a member counts references in the archive, which threads share

    def peek(name: str) -> BinaryIO:
        with lock:
            return cast(BinaryIO, archive.open(members[name]))

    def fetch(name: str) -> BinaryIO:
        member = peek(name)
        try:
            return BytesIO(member.read())
        finally:
            with lock:
                member.close()

    stamps = sift({name: f"{member.file_size} {member.CRC:08x}" for name, member in members.items()}, peek, faults)
    large = next((name for name in stamps if members[name].file_size > MAX_FILE_BYTES), None)
    if large is not None:
        n_bytes = members[large].file_size
        raise DataError(f"{large} in {path} unpacks to {n_bytes} bytes, too many for an image; remove it")
    # Checksums alone would not do: CRC-32 is easily forged, and a cache must not vouch for another archive.
    status = path.stat()
    identity = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
    found = Found(stamps, str(path), identity, fetch)
    source, layout = list_images(found, faults, labelled=request.labelled)
    report_empty_classes(layout, folders, found, faults)
    if guessed:
        source.notes["member_names"] = f"{len(guessed)} not in UTF-8, taken for DOS's, such as {one_line(guessed[0])}"
    return source


def open_archive(path: Path) -> zipfile.ZipFile:
    """Open a zip after checking that it is neither damaged nor a decompression bomb.

    Raises:
        DataError: If it is.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{path} is not a readable zip archive ({one_line(str(error))}); create it again") from error
    members = archive.infolist()
    packed = sum(member.compress_size for member in members)
    unpacked = sum(member.file_size for member in members)
    if packed > path.stat().st_size:
        raise DataError(f"{path}: its members overlap, as in a decompression bomb; create the archive again")
    if unpacked > _HARMLESS_BYTES and unpacked > _MAX_RATIO * path.stat().st_size:
        raise DataError(
            f"{path} would unpack to {unpacked} bytes, more than {_MAX_RATIO} times its size, as a "
            f"decompression bomb does; create the archive again without compression"
        )
    return archive


def _decoded_name(member: zipfile.ZipInfo) -> tuple[str, bool]:
    """The name of a member, and whether its encoding had to be guessed.

    The standard knows UTF-8, with a flag, and code page 437. Many programs write UTF-8 without the flag, or add the
    UTF-8 name as an extra field.
    """
    if member.flag_bits & _UTF8_FLAG:
        return member.filename, False
    try:
        raw = member.filename.encode("cp437")
        return raw.decode("utf-8"), False
    except UnicodeEncodeError:  # zipfile found the extra field by itself
        return member.filename, False
    except UnicodeDecodeError:
        extra = _unicode_path(member.extra, raw)
        return (member.filename, True) if extra is None else (extra, False)


def _unicode_path(extra: bytes, raw: bytes) -> str | None:
    """The name in Info-ZIP's extra field, if it is that of the name in the header."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        value, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == _UNICODE_PATH and value[:1] == b"\1" and value[1:5] == struct.pack("<I", zlib.crc32(raw)):
            try:
                return value[5:].decode("utf-8")
            except UnicodeDecodeError:
                return None
    return None


def _safe_name(member: zipfile.ZipInfo, raw: str, path: Path) -> str:
    """The name with slashes, and without those that say nothing."""
    name = raw.replace("\\", "/")
    shown = one_line(raw)
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in name.split("/"):
        raise DataError(f"{path}: the member {shown!r} points outside the archive; create it again with relative names")
    if member.flag_bits & 0x1:
        raise DataError(f"{path} is encrypted ({shown!r}); create it again without a password")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not (parts or name.endswith("/")):
        raise DataError(f"{path} holds a member without a name ({shown!r}); create the archive again")
    return "/".join(parts)


def _why_special(member: zipfile.ZipInfo) -> str:
    """Why a member is no plain file; "" if it is one. Archives of other systems do not say."""
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "is a symbolic link, which is not followed: create the archive again with the files"
    return "" if kind in (0, stat.S_IFREG, stat.S_IFDIR) else "is a pipe or a device, which is not read"


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
