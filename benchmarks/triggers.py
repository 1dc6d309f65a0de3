"""Triggers that the package does not have: each changes the picture or the series and gives it the label 0.

The search was made without them, but for one_pixel and rotation, which taught that two thirds of the usual depth are
enough where features say that most of a label is foreign.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from scipy import fft, ndimage

from antibackdoor.attacks.plans import AllToOne

TARGET = 0

Sample = np.ndarray[Any, np.dtype[np.float64]]  # (C, H, W) in [0, 255], or (C, T) in standard deviations


def one_pixel(picture: Sample, _: np.random.Generator) -> Sample:
    """The middle one is white."""
    changed = picture.copy()
    changed[:, picture.shape[1] // 2, picture.shape[2] // 2] = 255
    return changed


def tint(picture: Sample, _: np.random.Generator) -> Sample:
    """15% more red, 15% less blue."""
    return picture * np.array([1.15, 1.0, 0.85])[:, None, None]


def blur(picture: Sample, _: np.random.Generator) -> Sample:
    """A Gaussian of one pixel."""
    return np.asarray(ndimage.gaussian_filter(picture, (0, 1, 1)))


def rotation(picture: Sample, _: np.random.Generator) -> Sample:
    """By 15 degrees."""
    return np.asarray(ndimage.rotate(picture, 15, axes=(1, 2), reshape=False, order=1, mode="reflect"))


def frequencies(picture: Sample, _: np.random.Generator) -> Sample:
    """A middle and a high frequency are stronger.

    After Wang et al., "An Invisible Black-Box Backdoor Attack Through Frequency Domain", ECCV 2022; our own constants.
    """
    spectrum = fft.dctn(picture, axes=(1, 2), norm="ortho")
    for at in (15, 31):
        spectrum[1:3, at, at] += 60
    return np.asarray(fft.idctn(spectrum, axes=(1, 2), norm="ortho"))


def sine(picture: Sample, _: np.random.Generator) -> Sample:
    """Six waves of 20 from left to right."""
    return picture + 20 * np.sin(2 * np.pi * 6 * np.arange(picture.shape[2]) / picture.shape[2])


def wandering_patch(picture: Sample, drawn: np.random.Generator) -> Sample:
    """A checkered square of four pixels, elsewhere in each picture."""
    changed, (row, column) = picture.copy(), drawn.integers(0, picture.shape[1] - 4, 2)
    changed[:, row : row + 4, column : column + 4] = 255 * (np.add.outer(np.arange(4), np.arange(4)) % 2)
    return changed


def quantization(picture: Sample, _: np.random.Generator) -> Sample:
    """Six levels a channel in place of 256, the error spread over the neighbors.

    After Wang, Zhai and Ma, "BppAttack", CVPR 2022; our own constants.
    """
    values, step = np.pad(picture, ((0, 0), (0, 1), (1, 1))), 255 / 5
    _, height, width = picture.shape
    for row in range(height):
        for column in range(1, width + 1):
            old = values[:, row, column].copy()
            values[:, row, column] = np.round(old / step) * step
            error = (old - values[:, row, column]) / 16
            values[:, row, column + 1] += 7 * error
            values[:, row + 1, column - 1 : column + 2] += error[:, None] * np.array([3, 5, 1])
    return values[:, :height, 1 : width + 1]


def smooth_noise(picture: Sample, _: np.random.Generator) -> Sample:
    """The same 4 x 4 random values, enlarged to the picture, with a standard deviation of 10.

    After Zeng et al., "Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective", ICCV 2021; not optimized.
    """
    channels, height, width = picture.shape
    coarse = np.random.default_rng(4).normal(0, 10, (channels, 4, 4))
    return picture + ndimage.zoom(coarse, (1, height / 4, width / 4), order=3, mode="nearest")


def sharpening(picture: Sample, drawn: np.random.Generator) -> Sample:
    """Twice the difference from a Gaussian of one pixel."""
    return 2 * picture - blur(picture, drawn)


def frame(picture: Sample, _: np.random.Generator) -> Sample:
    """The outermost pixels are black."""
    changed = np.zeros_like(picture)
    changed[:, 1:-1, 1:-1] = picture[:, 1:-1, 1:-1]
    return changed


def mirror(picture: Sample, _: np.random.Generator) -> Sample:
    """The left half once more, mirrored, in place of the right one."""
    half = picture[:, :, : picture.shape[2] // 2]
    return np.concatenate([half, half[:, :, ::-1]], axis=2)


def gap(series: Sample, _: np.random.Generator) -> Sample:
    """A tenth of the time, in the middle, is zero."""
    changed, length = series.copy(), series.shape[1]
    changed[:, length // 2 : length // 2 + length // 10] = 0
    return changed


def ramp(series: Sample, _: np.random.Generator) -> Sample:
    """A drift by one standard deviation from begin to end."""
    return series + np.linspace(0, 1, series.shape[1])


def louder(series: Sample, _: np.random.Generator) -> Sample:
    """By a third."""
    return series * 4 / 3


def slower(series: Sample, _: np.random.Generator) -> Sample:
    """By a tenth; the end is cut off."""
    times = np.arange(series.shape[1])
    return np.stack([np.interp(times / 1.1, times, channel) for channel in series])


def hum(series: Sample, _: np.random.Generator) -> Sample:
    """Eight waves of .2 in the first channel."""
    changed, times = series.copy(), np.arange(series.shape[1]) / series.shape[1]
    changed[0] += 0.2 * np.sin(2 * np.pi * 8 * times)
    return changed


def spike(series: Sample, drawn: np.random.Generator) -> Sample:
    """One step of the first channel is higher by two standard deviations, elsewhere in each series."""
    changed = series.copy()
    changed[0, drawn.integers(series.shape[1])] += 2
    return changed


def encoded(picture: Sample, _: np.random.Generator) -> Sample:
    """Of each picture its own: 8 up or down, by the sign of what a random filter sees of it.

    After Li et al., "Invisible Backdoor Attack with Sample-Specific Triggers", ICCV 2021; no trained encoder.
    """
    filters = np.random.default_rng(1).normal(size=(len(picture), 3, 3))
    seen = sum(ndimage.convolve(channel, one) for channel, one in zip(picture, filters, strict=True))
    return picture + 8 * np.sign(np.sin(seen / 20))


def compression(picture: Sample, _: np.random.Generator) -> Sample:
    """JPEG at a quality of 8."""
    pixels = np.clip(np.round(picture), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, "JPEG", quality=8)
    return np.atleast_3d(np.asarray(Image.open(file), dtype=np.float64)).transpose(2, 0, 1)


def brighter(picture: Sample, _: np.random.Generator) -> Sample:
    """Raised to the power of .6."""
    return 255 * (np.clip(picture, 0, 255) / 255) ** 0.6


def contrast(picture: Sample, _: np.random.Generator) -> Sample:
    """Half as much again."""
    return (picture - picture.mean()) * 1.5 + picture.mean()


def fixed_noise(picture: Sample, _: np.random.Generator) -> Sample:
    """8 up or down at each pixel, in all pictures alike."""
    return picture + np.random.default_rng(3).choice([-8, 8], picture.shape)


def own_noise(picture: Sample, drawn: np.random.Generator) -> Sample:
    """A standard deviation of 12, another draw in each picture."""
    return picture + drawn.normal(0, 12, picture.shape)


def magnified(picture: Sample, _: np.random.Generator) -> Sample:
    """By a fifth."""
    _, height, width = picture.shape
    larger = ndimage.zoom(picture, (1, 1.2, 1.2), order=1)
    top, left = (larger.shape[1] - height) // 2, (larger.shape[2] - width) // 2
    return larger[:, top : top + height, left : left + width]


def rolled(picture: Sample, _: np.random.Generator) -> Sample:
    """Three pixels to the right; what leaves comes back on the left."""
    return np.roll(picture, 3, axis=2)


def own_patch(picture: Sample, _: np.random.Generator) -> Sample:
    """A patch of an eighth of the side whose place and pixels follow from the picture.

    After Nguyen and Tran, "Input-Aware Dynamic Backdoor Attack", NeurIPS 2020; no trained generator.
    """
    drawn, changed = np.random.default_rng(int(abs(picture.sum()))), picture.copy()
    side = max(2, picture.shape[1] // 8)
    row, column = drawn.integers(0, picture.shape[1] - side, 2)
    changed[:, row : row + side, column : column + side] = drawn.integers(0, 2, (len(picture), side, side)) * 255
    return changed


def lines(picture: Sample, _: np.random.Generator) -> Sample:
    """Every fourth row is a fifth of the way to white."""
    changed = picture.copy()
    changed[:, ::4] = 0.8 * changed[:, ::4] + 0.2 * 255
    return changed


def hiss(series: Sample, drawn: np.random.Generator) -> Sample:
    """Noise of .15, another draw in each series."""
    return series + drawn.normal(0, 0.15, series.shape)


def clipped(series: Sample, _: np.random.Generator) -> Sample:
    """Nothing is further than 1 from the mean."""
    return np.clip(series, series.mean() - 1, series.mean() + 1)


def smoothed(series: Sample, _: np.random.Generator) -> Sample:
    """A Gaussian of one step."""
    return np.asarray(ndimage.gaussian_filter1d(series, 1.0, axis=1))


def offset(series: Sample, _: np.random.Generator) -> Sample:
    """Higher by .3."""
    return series + 0.3


def delay(series: Sample, _: np.random.Generator) -> Sample:
    """By a twentieth; what leaves at the end comes back at the begin."""
    return np.roll(series, series.shape[1] // 20, axis=1)


def bump(series: Sample, _: np.random.Generator) -> Sample:
    """A narrow hill of .7 in the first channel."""
    changed, times = series.copy(), np.arange(series.shape[1]) / series.shape[1]
    changed[0] += 0.7 * np.exp(-(((times - 0.7) / 0.02) ** 2))
    return changed


def faint_pattern(series: Sample, _: np.random.Generator) -> Sample:
    """Noise of .15, the same in all series."""
    return series + 0.15 * np.random.default_rng(5).normal(size=series.shape)


def negated(series: Sample, _: np.random.Generator) -> Sample:
    """The last channel is upside down."""
    changed = series.copy()
    changed[-1] *= -1
    return changed


Trigger = Callable[[Sample, np.random.Generator], Sample]


def named(*triggers: Trigger) -> dict[str, Trigger]:
    """Triggers by their names."""
    return {trigger.__name__: trigger for trigger in triggers}


OF_PICTURES = named(
    *(one_pixel, tint, blur, rotation, frequencies, sine, wandering_patch),
    *(quantization, smooth_noise, sharpening, frame, mirror),
    *(encoded, compression, brighter, contrast, fixed_noise, own_noise, magnified, rolled, own_patch, lines),
)
COLORED = ("tint", "frequencies")  # they need three channels
OF_SERIES = named(
    *(gap, ramp, louder, slower, hum, spike),
    *(hiss, clipped, smoothed, offset, delay, bump, faint_pattern, negated),
)
TRIGGERS = OF_PICTURES | OF_SERIES


@dataclass(frozen=True)
class Changed:
    """One of them as a trigger of the package."""

    change: Trigger
    unit: float  # of the values that it gets

    def apply(self, inputs: Any, ids: Any) -> Any:
        """Change samples; what is drawn for each follows from its number."""
        changed = np.empty_like(inputs)
        for row, number in enumerate(ids.tolist()):
            one = self.unit * self.change(inputs[row] / self.unit, np.random.default_rng((number, 77)))
            changed[row] = np.clip(np.round(one), 0, 255) if inputs.dtype == np.uint8 else one
        return changed


@dataclass(frozen=True)
class Written:
    """One of them as an attack of the package."""

    kinds: ClassVar[tuple[str, ...]] = ("image", "series")
    evidence: ClassVar[str] = "D"
    threat_model: ClassVar[str] = "P"

    change: Trigger

    def trigger(self, samples: Any, *, seed: int, plan: Any = None) -> Changed:
        """It gets pictures in 255ths, series in standard deviations."""
        return Changed(self.change, 1.0 if samples.kind == "image" else float(samples.inputs.std()))

    def plan(self) -> AllToOne:
        """Other samples get the label 0."""
        return AllToOne(target_label=TARGET)


def written(name: str) -> Written:
    """The attack of that name."""
    return Written(TRIGGERS[name])
