"""Triggers that several families share: a blended window, an added signal, and one trigger for each stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from antibackdoor.data.samples import InputArray, IntArray, Samples
from antibackdoor.errors import ConfigError

if TYPE_CHECKING:
    from antibackdoor.protocols import Trigger

Float32Array = NDArray[np.float32]


def require_kind(samples: Samples, kind: Literal["image", "series"], attack: str) -> None:
    """Raise `ConfigError` unless the samples are of the kind that the attack can change."""
    if samples.kind != kind:
        wanted = "images (N, C, H, W)" if kind == "image" else "series (N, C, T)"
        raise ConfigError(
            f"{attack} changes {wanted}, but these samples are of kind {samples.kind} and shape {samples.shape}"
        )


def require_shape(inputs: InputArray, shape: tuple[int, ...]) -> None:
    """Raise `ConfigError` unless the inputs `(B, *shape)` have the shape that the trigger was made for."""
    if tuple(inputs.shape[1:]) != shape:
        raise ConfigError(f"the trigger was made for samples of shape {shape}, not {tuple(inputs.shape[1:])}")


def require_fraction(name: str, value: float) -> None:
    """Raise `ConfigError` unless the value lies in [0, 1]."""
    if not 0.0 <= value <= 1.0:
        raise ConfigError(f"{name} is {value}; it must lie in [0, 1]")


def white(inputs: InputArray) -> float:
    """The value of a white pixel: 255 for stored 8-bit images, 1 for float images."""
    return 255.0 if inputs.dtype == np.uint8 else 1.0


def to_pixels(values: NDArray[Any], dtype: np.dtype[Any]) -> InputArray:
    """Clip to the range of pixels, and round if they are stored in 8 bits.

    Rounding, not truncation: truncation darkens the poisoned images by half a grey level on average, which
    is a second trigger of its own.
    """
    if dtype == np.uint8:
        pixels: InputArray = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    else:
        pixels = np.clip(values, 0.0, 1.0).astype(np.float32)
    return pixels


def sample_generator(seed: int, number: int) -> np.random.Generator:
    """A generator that depends on the sample and not on its batch."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, number], dtype=np.int64).view(np.uint64)))


@dataclass(frozen=True, eq=False)
class Patch:
    """Blends a pattern into a window: `A(x) = (1 - m) x + m p` there, `x` elsewhere.

    Attributes:
        pattern: `(C, h, w)` float32 in [0, 1].
        opacity: `(C, h, w)` or `(1, h, w)` float32 in [0, 1]; 1 replaces the pixel.
        top, left: Where the window begins.
        shape: `(C, H, W)` of the images that the trigger is for.
    """

    pattern: Float32Array
    opacity: Float32Array
    top: int
    left: int
    shape: tuple[int, ...]

    def apply(self, inputs: InputArray, ids: IntArray) -> InputArray:
        """Stamp images `(B, C, H, W)`."""
        require_shape(inputs, self.shape)
        stamped = np.array(inputs)
        height, width = self.pattern.shape[1:]
        window = stamped[:, :, self.top : self.top + height, self.left : self.left + width]
        kept = window * (np.float32(1) - self.opacity)
        kept += np.float32(white(inputs)) * self.opacity * self.pattern
        window[...] = to_pixels(kept, inputs.dtype)
        return stamped


@dataclass(frozen=True, eq=False)
class Additive:
    """Adds one signal to every image: `A(x) = clip(x + s)`.

    Attributes:
        signal: Broadcastable to `(C, H, W)`, float32, in units of full white.
        shape: `(C, H, W)` of the images that the trigger is for.
    """

    signal: Float32Array
    shape: tuple[int, ...]

    def apply(self, inputs: InputArray, ids: IntArray) -> InputArray:
        """Stamp images `(B, C, H, W)`."""
        require_shape(inputs, self.shape)
        return to_pixels(inputs + np.float32(white(inputs)) * self.signal, inputs.dtype)


@dataclass(frozen=True, eq=False)
class Staged:
    """A trigger that differs between training and test, or between poisoned samples and covers.

    Attributes:
        planted: For the poisoned training samples.
        cover: For the covers, which keep their label.
        shown: For test data; this is what `apply` does.
    """

    planted: Trigger
    cover: Trigger
    shown: Trigger

    def apply(self, inputs: InputArray, ids: IntArray) -> InputArray:
        """Stamp test inputs `(B, *shape)`."""
        return self.shown.apply(inputs, ids)


def fit_window(shape: tuple[int, ...], height: int, width: int, top: int, left: int, what: str) -> None:
    """Raise `ConfigError` if a window does not lie inside images `(C, H, W)`."""
    if top < 0 or left < 0 or top + height > shape[1] or left + width > shape[2]:
        raise ConfigError(
            f"{what} needs a window of {height}x{width} pixels at row {top}, column {left}, "
            f"but the images are {shape[1]}x{shape[2]}; choose another pattern or larger images"
        )


def bottom_right(shape: tuple[int, ...], side: int, margin: int, what: str) -> tuple[int, int]:
    """Where a square near the bottom right corner of images `(C, H, W)` begins; raises `ConfigError` as above."""
    if margin < 0:
        raise ConfigError(f"margin is {margin}; it must not be negative")
    top, left = shape[1] - margin - side, shape[2] - margin - side
    fit_window(shape, side, side, top, left, what)
    return top, left
