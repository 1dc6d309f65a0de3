"""One image: from a file to uint8 pixels, by rules that keep every part of it.

The whole image is resized to the common size (bicubic, antialiased), without keeping its aspect ratio and
without cropping: triggers often sit in a corner, and a crop would hide them from the defense. Orientation
from EXIF is applied. Transparent pixels are composited on white. 16-bit values are scaled by the bits that the
data set uses (`depth.py`). Of an animation the first frame is read.
"""

from __future__ import annotations

from collections import Counter
from io import BytesIO
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from antibackdoor.data.depth import depth_of, eight_bits, is_deep
from antibackdoor.data.image_formats import open_image
from antibackdoor.data.samples import InputArray
from antibackdoor.data.source import Survey
from antibackdoor.errors import ConfigError, DataError

_GREY_MODES = frozenset({"1", "L", "LA", "La", "F"})
_SIDEWAYS = frozenset({5, 6, 7, 8})  # EXIF orientations that swap height and width
SMALLEST, LARGEST = 16, 224  # sides that the default rule chooses from
_LARGEST_SHARED = 256  # a size shared by all images is kept up to this side
_IMAGE_SIZE_LIMITS = (8, 1024)


class Look(NamedTuple):
    """What an image is like before it is brought to the common size."""

    size: tuple[int, int]  # (H, W), upright
    is_grey: bool
    deep_bits: int  # significant bits if it has 16 a channel, else 0


def look_at(file: BinaryIO) -> Look:
    """Size and colors of an image from its header alone; only one of 16 bits a channel is decoded."""
    with open_image(file) as image:
        width, height = image.size
        # getexif() of a PNG without an early EXIF chunk would decode the whole image.
        sideways = "exif" in image.info and image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS
        grey = image.mode in _GREY_MODES or image.mode.startswith("I") or _has_grey_palette(image)
        bits = max(1, depth_of(image, file).bits) if is_deep(image) else 0
        return Look((width, height) if sideways else (height, width), grey, bits)


def decode(file: BinaryIO, shape: tuple[int, ...], bits: int | None = None) -> NDArray[np.uint8]:
    """The image as `(C, H, W)` uint8; C is 1 or 3.

    Args:
        file: The image file.
        shape: What to bring it to.
        bits: What images of 16 bits a channel are scaled by; None if no image of the training was one.

    Raises:
        Exception: Whatever Pillow raises for a file that it cannot read.
    """
    channels, height, width = shape
    with open_image(file) as image:
        side = 2 * max(height, width)
        image.draft(None, (side, side))  # a JPEG much larger than needed is decoded at a lower scale
        deep = is_deep(image)
        upright = eight_bits(image, file, bits) if deep else _from_floats(ImageOps.exif_transpose(image))
        flat = _on_white(upright).convert("L" if channels == 1 else "RGB")
    if flat.size != (width, height):
        flat = flat.resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(flat).reshape(height, width, channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _has_grey_palette(image: Image.Image) -> bool:
    if image.mode != "P" or image.palette is None or image.palette.mode != "RGB":
        return False
    colors = np.frombuffer(bytes(image.palette.palette), np.uint8)
    colors = colors[: len(colors) // 3 * 3].reshape(-1, 3)
    return bool((colors == colors[:, :1]).all())


def _from_floats(image: Image.Image) -> Image.Image:
    if image.mode != "F":
        return image
    values = np.asarray(image)
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise ValueError("floating-point pixels outside of 0..1")
    return Image.fromarray(np.rint(values * 255).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    with_alpha = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", with_alpha.size, "white"), with_alpha)


def image_shape(survey: Survey, image_size: int | tuple[int, int] | None) -> tuple[tuple[int, ...], str]:
    """The common `(C, H, W)` of a data set, and the rule that chose it.

    By default the size that all images share, if no side exceeds 256; otherwise a square whose side is the
    median shorter side, clipped to 16..224 and rounded to a multiple of 8. `image_size` overrides this.

    Raises:
        ConfigError: If `image_size` is out of 8..1024.
    """
    if image_size is not None:
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        low, high = _IMAGE_SIZE_LIMITS
        if not (low <= height <= high and low <= width <= high):
            raise ConfigError(f"image_size is {image_size}; give sides from {low} to {high} pixels")
        return (survey.channels, height, width), "as asked for"
    if len(survey.sizes) == 1:
        (shared,) = survey.sizes
        if max(shared) <= _LARGEST_SHARED:
            return (survey.channels, *shared), "the size of all images"
    shorter = np.repeat([min(size) for size in survey.sizes], list(survey.sizes.values()))
    median = float(np.median(shorter)) if len(shorter) else 32.0
    side = int(np.clip(8 * round(median / 8), SMALLEST, LARGEST))
    return (survey.channels, side, side), "a square of the median shorter side"


def merge(surveys: list[Survey]) -> Survey:
    """One survey of several splits: as many channels as any needs."""
    sizes: Counter[tuple[int, ...]] = Counter()
    for survey in surveys:
        sizes.update(survey.sizes)
    return Survey(
        sizes,
        max(survey.channels for survey in surveys),
        max(survey.deep_bits for survey in surveys),
        sum(survey.n_deep for survey in surveys),
        sum(survey.n_dim for survey in surveys),
    )


def fit(images: InputArray, shape: tuple[int, ...]) -> InputArray:
    """Bring decoded images `(B, C, H, W)`, uint8 or float32, to another number of channels and size."""
    channels, height, width = shape
    if images.shape[1] == 1 and channels == 3:
        images = np.repeat(images, 3, axis=1)
    elif images.shape[1] == 3 and channels == 1:
        luma = np.tensordot(np.array([0.299, 0.587, 0.114]), images.astype(np.float64), (0, 1))[:, None]
        images = (np.rint(luma) if images.dtype == np.uint8 else luma).astype(images.dtype)
    if images.shape[2:] == (height, width):
        return images
    resized = np.empty((len(images), channels, height, width), images.dtype)
    for source, target in zip(images.reshape(-1, *images.shape[2:]), resized.reshape(-1, height, width), strict=True):
        plane = Image.fromarray(np.ascontiguousarray(source))
        target[:] = np.asarray(plane.resize((width, height), Image.Resampling.BICUBIC))
    return np.clip(resized, 0, 1) if images.dtype == np.float32 else resized


def encode_png(image: NDArray[Any]) -> bytes:
    """A lossless PNG of one `(C, H, W)` uint8 image.

    Raises:
        DataError: If it is not uint8, or has neither 1 nor 3 channels.
    """
    if image.dtype != np.uint8:
        raise DataError("images of floats would lose precision as PNG; write them as .npz")
    if image.shape[0] not in (1, 3):
        raise DataError(f"an image has {image.shape[0]} channels; PNG takes 1 or 3, so write them as .npz")
    pixels = image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)
    buffer = BytesIO()
    # Level 1: on small images higher levels take several times as long and save next to nothing.
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
