"""Pictures for triggers: the user's own, or drawn stand-ins for copyrighted and trademarked ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, UnidentifiedImageError

from antibackdoor.attacks.stamps import Float32Array
from antibackdoor.data.streams import Stream, stream
from antibackdoor.errors import ConfigError


def full_pattern(name: str, picture: str | None, shape: tuple[int, ...], seed: int) -> Float32Array:
    """A pattern as large as the image, `(C, H, W)` float32 in [0, 1] on the 8-bit grid."""
    grey_levels: NDArray[Any]
    if name == "random":
        grey_levels = stream(seed, Stream.GRAY_PATTERN).integers(0, 256, shape)
    elif name == "cartoon":
        grey_levels = resized(cartoon_face(seed), shape)
    elif name == "picture":
        if picture is None:
            raise ConfigError("the pattern 'picture' needs the path of an image file")
        grey_levels = resized(read_picture(Path(picture)), shape)
    else:
        raise ConfigError(f"there is no pattern {name!r}; choose random, cartoon or picture")
    pattern: Float32Array = grey_levels.astype(np.float32) / np.float32(255)
    return pattern


def cartoon_face(seed: int) -> Image.Image:
    """A face in flat colors with outlines, 256x256 RGB; the seed picks the colors."""
    rng = stream(seed, Stream.DRAWN_PICTURE)
    ground, skin, bow = (tuple(int(v) for v in rng.integers(90, 256, 3)) for _ in range(3))
    image = Image.new("RGB", (256, 256), ground)
    draw = ImageDraw.Draw(image)
    ink = (20, 20, 20)
    draw.polygon([(48, 110), (58, 30), (120, 70)], skin, ink, 6)
    draw.polygon([(208, 110), (198, 30), (136, 70)], skin, ink, 6)
    draw.ellipse([28, 56, 228, 230], skin, ink, 6)
    draw.polygon([(150, 60), (216, 30), (216, 100)], bow, ink, 6)
    draw.polygon([(150, 60), (100, 30), (100, 100)], bow, ink, 6)
    for left in (78, 158):
        draw.ellipse([left, 128, left + 20, 160], fill=ink)
    draw.ellipse([116, 160, 140, 176], (240, 190, 40), ink, 6)
    for y, tilt in ((150, -10), (172, 6)):
        draw.line([(10, y + tilt), (62, y)], fill=ink, width=6)
        draw.line([(246, y + tilt), (194, y)], fill=ink, width=6)
    return image


def resized(image: Image.Image, shape: tuple[int, ...]) -> Float32Array:
    """A picture in the shape `(C, H, W)` of the samples, float32 grey levels 0..255."""
    channels, height, width = shape
    mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(channels)
    if mode is None:
        raise ConfigError(f"pictures have 1, 3 or 4 channels, the samples {channels}; use the pattern 'random'")
    pixels = np.asarray(image.convert(mode).resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32)
    return pixels.reshape(height, width, channels).transpose(2, 0, 1)


def read_picture(path: Path) -> Image.Image:
    """A user's image file; raises `ConfigError` if it cannot be read."""
    try:
        with Image.open(path) as image:
            return image.convert("RGBA")
    except (OSError, ValueError, UnidentifiedImageError) as error:
        raise ConfigError(f"{path} cannot be read as an image: {error}") from error


def logo(side: int, *, flipped: bool = False) -> Image.Image:
    """A round swirl of two colors on a transparent ground, `side` pixels wide, RGBA.

    Stands in for the trademarked browser logo of the published attacks: on 13 pixels it has about 140 opaque
    ones, as theirs. `flipped` mirrors it and changes the colors, for a second logo.
    """
    rows, columns = np.mgrid[0:side, 0:side] - (side - 1) / 2
    radius, angle = np.hypot(rows, columns), np.arctan2(rows, -columns if flipped else columns)
    warm, cool = ((250, 200, 40), (190, 30, 90)) if flipped else ((255, 140, 20), (40, 60, 200))
    swirl = (np.sin(angle + 5.0 * radius / side) > 0)[..., None]
    pixels = np.empty((side, side, 4), dtype=np.uint8)
    pixels[..., :3] = np.where(swirl, warm, cool)
    pixels[..., 3] = np.where(radius <= 0.515 * side, 255, 0)
    return Image.fromarray(pixels, "RGBA")


def logo_patch(picture: str | None, side: int, channels: int, *, flipped: bool = False) -> tuple[Float32Array, ...]:
    """The user's or the drawn logo `(C, side, side)` in [0, 1] and its opacity `(1, side, side)`."""
    image = logo(side, flipped=flipped) if picture is None else read_picture(Path(picture))
    opacity = resized(image.getchannel("A"), (1, side, side)) / np.float32(255)
    return resized(image.convert("RGB"), (channels, side, side)) / np.float32(255), opacity


def scene(seed: int, number: int) -> Image.Image:
    """A made-up scene, 128x128 RGB: a sky, a ground, and soft boxes, discs and poles of many colors.

    Free of any license, it has the spread of scales and brightness that a photograph in a reflection has.
    """
    rng = stream(seed, Stream.SCENE, number)
    top, bottom = rng.uniform(0, 255, 3), rng.uniform(0, 255, 3)
    mix = np.linspace(0, 1, 128)[:, None, None]
    sky = np.broadcast_to((1 - mix) * top + mix * bottom, (128, 128, 3))
    image = Image.fromarray(sky.astype(np.uint8), "RGB")
    draw = ImageDraw.Draw(image)
    for shape in rng.integers(0, 3, int(rng.integers(8, 20))):
        color = tuple(int(v) for v in rng.integers(0, 256, 3))
        x, y, width, height = (int(v) for v in (*rng.integers(-20, 120, 2), *rng.integers(6, 60, 2)))
        if shape == 0:
            draw.rectangle([x, y, x + width, y + height], fill=color)
        elif shape == 1:
            draw.ellipse([x, y, x + width, y + height], fill=color)
        else:
            draw.line([x, y, x + 2 * width - 60, y + 2 * height], fill=color, width=1 + width // 10)
    return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.5))))
