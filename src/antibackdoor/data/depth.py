"""Images of 16 bits a channel: how many of them a data set uses, and how its values become bytes.

Cameras and scanners often keep 10 to 14 bits in files of 16: divided by 257, such an image is nearly black. So the
values of a whole data set are scaled by one range: the bits that its largest value needs, or that a file says it has
(PNG's `sBIT`, TIFF's `BitsPerSample` and `MaxSampleValue`). The model keeps that range for what it classifies later.
"""

from __future__ import annotations

import struct
import sys
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from antibackdoor.data.image_formats import open_image
from antibackdoor.data.source import Survey

_FULL_BITS = 16
MOST_SCALED = 14  # an image that needs 15 bits uses more than a quarter of the range: it is not dark by mistake
_ALREADY_FULL = ("PPM", "JPEG2000")  # Pillow stretches these to 16 bits by the range that the file states
_BITS_PER_SAMPLE, _MAX_SAMPLE_VALUE = 258, 281  # TIFF tags
_OTHER_ORDER = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}


class Depth(NamedTuple):
    """The bits of one image of 16 bits a channel."""

    needed: int  # by its largest value
    stated: int  # by its file; 0 if that says nothing

    @property
    def bits(self) -> int:
        """Significant bits: what is stated, where the values fit."""
        return max(self.needed, self.stated)


def significant_bits(most: int) -> int | None:
    """The bits that a data set is scaled by, from the most that one of its images has; None without such images.

    >>> significant_bits(12), significant_bits(15), significant_bits(5), significant_bits(0)
    (12, 16, 8, None)
    """
    if not most:
        return None
    return max(8, most) if most <= MOST_SCALED else _FULL_BITS


def pixel_note(survey: Survey) -> str:
    """What is done to images of 16 bits a channel, and whether some stay dark."""
    bits = significant_bits(survey.deep_bits) or _FULL_BITS
    note = f"0 to {2**bits - 1} in files of 16 bits, scaled to 0 to 255"
    if bits == _FULL_BITS and survey.n_dim:
        note += f"; {survey.n_dim:,} of these {survey.n_deep:,} use {MOST_SCALED} bits at most and become dark"
    return note


def is_deep(image: Image.Image) -> bool:
    """Whether an image has integers of 16 bits a channel."""
    return image.mode.startswith("I") or _deep_tile(image) != ""


def depth_of(image: Image.Image, file: BinaryIO) -> Depth:
    """The bits of a deep image, for which all of it is decoded.

    Raises:
        ValueError: If its values do not fit into 16 bits.
    """
    values = np.asarray(image)
    if not image.mode.startswith("I"):  # the high bytes
        colors = values[..., :1] if image.mode == "LA" else values[..., :3]
        return Depth(8 + int(colors.max()).bit_length(), _stated(image, file))
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("integer pixels outside of 16 bits")
    return Depth(int(values.max()).bit_length(), _stated(image, file))


def eight_bits(image: Image.Image, file: BinaryIO, bits: int | None) -> Image.Image:
    """A deep image scaled to bytes, upright.

    Args:
        image: Just opened from `file`.
        file: The file itself.
        bits: What the data set is scaled by; None if no image of the training had 16 bits.

    Raises:
        ValueError: If its values do not fit the range.
    """
    depth = depth_of(image, file)
    bits = _bits_for(depth, bits)
    upright = ImageOps.exif_transpose(image)
    white = 2**bits - 1
    if image.mode.startswith("I"):
        return Image.fromarray(_scaled(np.asarray(upright), white))
    if bits == _FULL_BITS:
        return upright
    return _color(upright, image, file, white)


def _bits_for(depth: Depth, bits: int | None) -> int:
    if bits is None:
        if 0 < depth.stated <= MOST_SCALED and depth.needed <= depth.stated:
            return max(8, depth.stated)
        if 0 < depth.bits <= MOST_SCALED:
            raise ValueError(
                f"16-bit pixels that use only {depth.bits} bits, with an unknown range: save it with 8 bits"
            )
        return _FULL_BITS
    if depth.needed > bits:
        raise ValueError(f"pixels of {depth.needed} bits, but the training images have {bits}: scale it to their range")
    return bits


def _scaled(values: NDArray[Any], white: int) -> NDArray[np.uint8]:
    return ((values.astype(np.int64) * 255 + white // 2) // white).astype(np.uint8)


def _color(high: Image.Image, opened: Image.Image, file: BinaryIO, white: int) -> Image.Image:
    """A color image from its high bytes and its low ones, which Pillow gives for the other order of bytes."""
    if _deep_tile(opened).startswith("LA"):
        raise ValueError("16-bit grey with transparency that does not use all bits: save it without transparency")
    file.seek(0)
    with open_image(file) as image:
        raw = _deep_tile(image)
        image.tile = [(*tile[:3], _with_raw_mode(tile[3], raw)) for tile in image.tile]  # type: ignore[attr-defined]
        low = np.asarray(ImageOps.exif_transpose(image)).astype(np.int64)
    pixels = np.array(high)
    pixels[..., :3] = _scaled(pixels[..., :3].astype(np.int64) * 256 + low[..., :3], white)
    return Image.fromarray(pixels, high.mode)


def _with_raw_mode(arguments: Any, raw: str) -> Any:
    other = raw[:-3] + _OTHER_ORDER[raw[-3:]]
    return other if isinstance(arguments, str) else tuple(other if part == raw else part for part in arguments)


def _deep_tile(image: Image.Image) -> str:
    """The raw mode of colors with 16 bits a channel, such as "RGB;16B"; "" for others."""
    if image.mode not in ("RGB", "RGBA", "RGBX", "LA"):
        return ""
    for tile in getattr(image, "tile", ()):
        for part in [tile[3]] if isinstance(tile[3], str) else tile[3] or ():
            if isinstance(part, str) and part[-4:] in (";16B", ";16L", ";16N"):
                return part
    return ""


def _stated(image: Image.Image, file: BinaryIO) -> int:
    if image.format in _ALREADY_FULL:
        return _FULL_BITS
    if image.format == "PNG":
        return _png_bits(file)
    tags = getattr(image, "tag_v2", {})
    for tag, is_value in ((_BITS_PER_SAMPLE, False), (_MAX_SAMPLE_VALUE, True)):
        stated = tags.get(tag, 0)
        number = int(stated[0] if isinstance(stated, tuple) else stated)
        bits = number.bit_length() if is_value else number
        if 8 < bits < _FULL_BITS:
            return bits
    return 0


def _png_bits(file: BinaryIO) -> int:
    """The largest number in the chunk `sBIT`; 0 if there is none before the pixels."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IDAT":
            return 0
        if kind == b"sBIT":
            bits = max(file.read(min(length, 4)), default=0)
            return bits if 8 < bits < _FULL_BITS else 0
        file.seek(length + 4, 1)
    return 0
