"""Adaptive-Blend and Adaptive-Patch: weak parts of a trigger in training, the whole of it at test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from antibackdoor.attacks.badnets import patch_pattern
from antibackdoor.attacks.pictures import full_pattern, logo_patch
from antibackdoor.attacks.plans import AllToOne
from antibackdoor.attacks.stamps import (
    Float32Array,
    Patch,
    Staged,
    fit_window,
    require_fraction,
    require_kind,
    require_shape,
    sample_generator,
    to_pixels,
    white,
)
from antibackdoor.data.samples import InputArray, IntArray, Samples
from antibackdoor.data.streams import Stream, stream
from antibackdoor.errors import ConfigError

if TYPE_CHECKING:
    from antibackdoor.protocols import Plan, Trigger

_LOGO_SIDE = 13


@dataclass(frozen=True, eq=False)
class PartialBlend:
    """Blends a random half of the blocks of a full-size pattern, another half for every sample.

    Attributes:
        pattern: `(C, H, W)` float32 in [0, 1].
        alpha: Share of the pattern in the blocks that are kept, in [0, 1].
        blocks: Blocks a side.
        seed: Together with the number of a sample it decides the blocks.
        shape: `(C, H, W)` of the images.
    """

    pattern: Float32Array
    alpha: float
    blocks: int
    seed: int
    shape: tuple[int, ...]

    def apply(self, inputs: InputArray, ids: IntArray) -> InputArray:
        """Stamp images `(B, C, H, W)`."""
        require_shape(inputs, self.shape)
        height, width = self.shape[1:]
        n_blocks = self.blocks**2
        block_rows = np.arange(height)[:, None] * self.blocks // height
        block_of = block_rows * self.blocks + np.arange(width) * self.blocks // width
        weight = np.zeros((len(inputs), n_blocks), dtype=np.float32)
        for position, number in enumerate(ids):
            order = sample_generator(self.seed, int(number)).permutation(n_blocks)
            weight[position, order[: n_blocks // 2]] = self.alpha
        weights = weight[:, block_of][:, None]
        pattern = np.float32(white(inputs)) * self.pattern
        return to_pixels(inputs * (1 - weights) + weights * pattern, inputs.dtype)


@dataclass(frozen=True, eq=False)
class OneOf:
    """Stamps every sample with one of several triggers, picked by its number.

    Attributes:
        choices: The triggers.
        seed: Together with the number of a sample it decides which.
    """

    choices: tuple[Trigger, ...]
    seed: int

    def apply(self, inputs: InputArray, ids: IntArray) -> InputArray:
        """Stamp inputs `(B, *shape)`."""
        picks = np.array([sample_generator(self.seed, int(i)).integers(len(self.choices)) for i in ids], dtype=int)
        stamped = np.array(inputs)
        for pick, trigger in enumerate(self.choices):
            rows = picks == pick
            stamped[rows] = trigger.apply(inputs[rows], ids[rows])
        return stamped


@dataclass(frozen=True, eq=False)
class InTurn:
    """Stamps several triggers one after the other.

    Attributes:
        steps: The triggers, at least one.
    """

    steps: tuple[Trigger, ...]

    def apply(self, inputs: InputArray, ids: IntArray) -> InputArray:
        """Stamp inputs `(B, *shape)`."""
        stamped = inputs
        for trigger in self.steps:
            stamped = trigger.apply(stamped, ids)
        return stamped


@dataclass(frozen=True)
class AdaptiveBlend:
    """Blends half of a picture's 16 blocks in training, all of them at test time; covers keep their label.

    Attributes:
        alpha: Opacity of the pattern in training, in [0, 1]; 0.15 in the release, 0.2 in AdvrBD.
        alpha_test: Opacity of the pattern at test time, in [0, 1]; 0.2.
        blocks: Blocks per side, at least 1; 4.
        pattern: "cartoon" replaces the copyrighted Hello Kitty; "random" is noise; "picture" is a file.
        picture: Image file for "picture".

    Raises:
        ConfigError: If the samples are no images or a value is out of its range.

    Reference: Qi et al., Revisiting the Assumption of Latent Separability for Backdoor Defenses, ICLR 2023,
    arXiv 2205.13613.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    evidence: ClassVar[str] = "B"
    threat_model: ClassVar[str] = "P"

    alpha: float = 0.15
    alpha_test: float = 0.2
    blocks: int = 4
    pattern: Literal["cartoon", "random", "picture"] = "cartoon"
    picture: str | None = None

    def trigger(self, samples: Samples, *, seed: int, plan: Plan | None = None) -> Staged:
        """The pattern for images of this shape."""
        require_kind(samples, "image", "AdaptiveBlend")
        require_fraction("alpha", self.alpha)
        require_fraction("alpha_test", self.alpha_test)
        if not 1 <= self.blocks <= min(samples.shape[1:]):
            raise ConfigError(f"blocks is {self.blocks}; images of {samples.shape} allow 1 to {min(samples.shape[1:])}")
        pattern = full_pattern(self.pattern, self.picture, samples.shape, seed)
        half = PartialBlend(pattern, self.alpha, self.blocks, seed, samples.shape)
        opacity = np.full((1, *samples.shape[1:]), self.alpha_test, dtype=np.float32)
        return Staged(half, half, Patch(pattern, opacity, 0, 0, samples.shape))

    def plan(self) -> AllToOne:
        """All-to-one at 0.3 % with as many covers (release; AdvrBD 5 % and 1 %)."""
        return AllToOne(rate=0.003, cover_rate=0.003)


@dataclass(frozen=True)
class AdaptivePatch:
    """One of several patches per training sample, several together at test time; covers keep their label.

    "quarter4" cuts a 13x13 logo near the top right corner into quarters, stamps one a sample in training and
    all four at test: the likely meaning of "Firefox*4" in AdvrBD. "mixed4" follows the release: a logo
    (opacity 0.5), another logo (0.2), grids in all four corners (0.5) and an 8x8 square (0.3) in training;
    the first logo and the corners at full strength at test.

    Attributes:
        preset: "quarter4" or "mixed4".
        picture: Image file to use instead of the first drawn logo.

    Raises:
        ConfigError: If the samples are no images, or too small for the patches.

    Differs from the release: drawn logos stand in for trademarks and the square is noise; every sample picks
    its patch at random, where the release splits the samples evenly.

    Reference: Qi et al., Revisiting the Assumption of Latent Separability for Backdoor Defenses, ICLR 2023,
    arXiv 2205.13613.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    evidence: ClassVar[str] = "D"
    threat_model: ClassVar[str] = "P"

    preset: Literal["quarter4", "mixed4"] = "quarter4"
    picture: str | None = None

    def trigger(self, samples: Samples, *, seed: int, plan: Plan | None = None) -> Staged:
        """The patches for images of this shape."""
        require_kind(samples, "image", "AdaptivePatch")
        train: tuple[Trigger, ...]
        test: tuple[Trigger, ...]
        if self.preset == "quarter4":
            train = test = _quarters(samples.shape, self.picture)
        elif self.preset == "mixed4":
            train, test = _mixed(samples.shape, self.picture, seed)
        else:
            raise ConfigError(f"there is no preset {self.preset!r}; choose quarter4 or mixed4")
        planted = OneOf(train, seed)
        return Staged(planted, planted, InTurn(test))

    def plan(self) -> AllToOne:
        """All-to-one at 0.3 % with twice as many covers (release; AdvrBD 5 % and 1 %)."""
        return AllToOne(rate=0.003, cover_rate=0.006)


def _quarters(shape: tuple[int, ...], picture: str | None) -> tuple[Patch, ...]:
    pattern, opacity = logo_patch(picture, _LOGO_SIDE, shape[0])
    top, left, half = 1, shape[2] - _LOGO_SIDE - 1, _LOGO_SIDE // 2
    fit_window(shape, _LOGO_SIDE, _LOGO_SIDE, top, left, "the logo")
    parts = (slice(0, half), slice(half, None))
    return tuple(
        Patch(
            pattern[:, rows, columns],
            opacity[:, rows, columns],
            top + rows.start,
            left + columns.start,
            shape,
        )
        for rows in parts
        for columns in parts
    )


def _mixed(shape: tuple[int, ...], picture: str | None, seed: int) -> tuple[tuple[Trigger, ...], tuple[Trigger, ...]]:
    def at(top: int, left: int, pattern: Float32Array, opacity: Float32Array) -> Patch:
        fit_window(shape, pattern.shape[1], pattern.shape[2], top, left, "the preset 'mixed4'")
        return Patch(pattern, opacity.astype(np.float32), top, left, shape)

    channels, height, width = shape
    first, first_opacity = logo_patch(picture, _LOGO_SIDE, channels)
    second, second_opacity = logo_patch(None, _LOGO_SIDE, channels, flipped=True)
    square = stream(seed, Stream.ADAPTIVE_PATTERN).random((channels, 8, 8), dtype=np.float32)
    right = width - _LOGO_SIDE - 1

    def corners(opacity: float) -> InTurn:
        grid = np.repeat(patch_pattern("grid_br")[None], channels, axis=0)
        flat = np.full((1, 3, 3), opacity)
        return InTurn(tuple(at(top, left, grid, flat) for top in (0, height - 3) for left in (0, width - 3)))

    train = (
        at(1, right, first, 0.5 * first_opacity),
        at(1, 1, second, 0.2 * second_opacity),
        corners(0.5),
        at(height - 11, width - 11, square, np.full((1, 8, 8), 0.3)),
    )
    return train, (at(1, right, first, first_opacity), corners(1.0))
