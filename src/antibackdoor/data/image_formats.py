"""Which files are images: by their names, and by their content where the name does not say."""

from __future__ import annotations

import importlib
from contextlib import suppress
from functools import cache
from pathlib import PurePosixPath
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

# Endings that are used for images alone. Files with another one, or none, are recognized by their content.
IMAGE_SUFFIXES = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif"}
    | {".jp2", ".j2k", ".j2c", ".jpc", ".jpx", ".jpf"}
    | {".bmp", ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".webp", ".tif", ".tiff"}
    | {".gif", ".avif", ".avifs", ".heic", ".heics", ".heif", ".hif", ".tga"}
    | {".ico", ".cur", ".icns", ".dds", ".qoi", ".pcx", ".psd", ".sgi"}
)
# What programs put beside data. Their pictures, such as a file server's thumbnails, are copies of samples.
_LITTER = frozenset(
    {"__macosx", "@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "system volume information"}
    | {"lost+found", "__pycache__", "found.000"}
)
_COMMON = ("PNG", "JPEG", "BMP", "DIB", "PPM", "WEBP", "TIFF", "GIF", "AVIF", "HEIF")
# EPS is a program that Ghostscript would have to run; of the others Pillow only knows the name.
_NOT_DECODED = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_PREFIX_BYTES = 64  # of which Pillow's formats look at 16


class MissingDecoder(Exception):
    """An image of a known format that this installation cannot read; the message follows the name of a file."""


def is_litter(name: str) -> bool:
    """Whether a file or folder is hidden, or is one that programs leave among data.

    >>> [is_litter(name) for name in ("cat", ".ipynb_checkpoints", "@eaDir", "__MACOSX")]
    [False, True, True, True]
    """
    return name.startswith(".") or name.lower() in _LITTER


def why_litter(path: str) -> str:
    """Why a file is not looked at whatever it holds; "" where there is no reason.

    >>> why_litter("cat/@eaDir/1.png"), why_litter("cat/.1.png"), why_litter("cat/1.png")
    ("lies in '@eaDir', which is not a class but made by a program", 'is hidden', '')
    """
    *folders, name = path.split("/")
    for folder in folders:
        if folder.startswith("."):
            return f"lies in the hidden folder {folder!r}"
        if is_litter(folder):
            return f"lies in {folder!r}, which is not a class but made by a program"
    return "is hidden" if name.startswith(".") else ""


def has_image_suffix(path: str) -> bool:
    """Whether the ending of the name is one of images."""
    return PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES


def is_image(path: str) -> bool:
    """Whether the name says image; hidden files and what programs leave among data are not.

    >>> [is_image(p) for p in ("cat/1.JPG", "cat/1.jfif", "cat/.1.jpg", "__MACOSX/cat/1.jpg", "cat/notes.txt")]
    [True, True, False, False, False]
    """
    return not why_litter(path) and has_image_suffix(path)


@cache
def decoders() -> tuple[str, ...]:
    """The formats that are read, common ones first: all that Pillow decodes by itself, and HEIC with the extra."""
    with suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    Image.init()
    known = [name for name in Image.OPEN if name not in _NOT_DECODED]
    return (*(name for name in _COMMON if name in known), *sorted(set(known) - set(_COMMON)))


def holds_image(file: BinaryIO) -> bool:
    """Whether the content is an image, by its first bytes and its header; also one that only a missing extra reads."""
    prefix = file.read(_PREFIX_BYTES)
    if _is_heic(prefix):
        return True
    # Formats without a signature accept nearly everything; TGA alone is common, and its header can be checked.
    possible = [*(name for name in decoders() if _accepts(name, prefix)), "TGA"]
    file.seek(0)
    try:
        with Image.open(file, formats=possible):
            return True
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return True  # decoding reports it
    except Exception:  # headers that are none fail in any way
        return False


def _accepts(name: str, prefix: bytes) -> bool:
    accept = Image.OPEN[name][1]
    try:
        return accept is not None and bool(accept(prefix[:16]))
    except Exception:  # of too few bytes
        return False


def open_image(file: BinaryIO) -> Image.Image:
    """The image, of which only the header is read.

    Raises:
        MissingDecoder: If it is a HEIC image and the extra is missing.
        Exception: Whatever Pillow raises for a file that it cannot read.
    """
    try:
        image = Image.open(file, formats=decoders())
    except UnidentifiedImageError:
        file.seek(0)
        if _is_heic(file.read(_PREFIX_BYTES)):
            raise MissingDecoder("is a HEIC image, which needs: pip install 'antibackdoor[heic]'") from None
        raise
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels, more than {limit}")
    return image


def _is_heic(prefix: bytes) -> bool:
    return prefix[4:8] == b"ftyp" and prefix[8:12] in _HEIC_BRANDS
