"""DFST-style: a sunrise tint over the whole image in place of a trained style generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from antibackdoor.attacks.plans import AllToOne
from antibackdoor.attacks.stamps import Float32Array, require_fraction, require_kind, require_shape, to_pixels, white
from antibackdoor.data.samples import InputArray, IntArray, Samples

if TYPE_CHECKING:
    from antibackdoor.protocols import Plan

# Lightness, red against blue, green against magenta: nearly uncorrelated in natural images.
_OPPONENTS = np.array([[1, 1, 1], [1, 0, -1], [-1, 2, -1]]) / np.sqrt([[3.0], [2.0], [6.0]])
_SUNRISE_MEAN = _OPPONENTS @ np.array([0.78, 0.47, 0.32])
_SUNRISE_STD = np.array([0.30, 0.12, 0.05])
_WARM, _DARK = (1.0, 0.62, 0.28), (0.16, 0.07, 0.12)


@dataclass(frozen=True, eq=False)
class GlobalStyle:
    """Gives every image the color statistics of a palette, mixes in a gradient, and blends the result.

    Attributes:
        mix: `(C, C)` float32, orthonormal; its rows are the components whose mean and deviation are set.
        means, stds: `(C,)` float32, of the palette, for pixels in [0, 1].
        gradient: `(C, H, 1)` float32 in [0, 1].
        gradient_share: Share of the gradient in the styled image, in [0, 1].
        alpha: Share of the styled image in the result, in [0, 1].
        shape: `(C, H, W)` of the images.
    """

    mix: Float32Array
    means: Float32Array
    stds: Float32Array
    gradient: Float32Array
    gradient_share: float
    alpha: float
    shape: tuple[int, ...]

    def apply(self, inputs: InputArray, ids: IntArray) -> InputArray:
        """Restyle images `(B, C, H, W)`."""
        require_shape(inputs, self.shape)
        images = np.array(inputs, dtype=np.float32, order="C") / np.float32(white(inputs))
        parts = _turn(self.mix, images)
        center = parts.mean(axis=(2, 3), keepdims=True)
        # A flat image has no deviation to set; the floor keeps its noise from being blown up.
        spread = np.maximum(parts.std(axis=(2, 3), keepdims=True), np.float32(0.02))
        means, stds = (values[None, :, None, None] for values in (self.means, self.stds))
        styled = np.clip(_turn(self.mix.T, (parts - center) / spread * stds + means), 0, 1)
        share, alpha = np.float32(self.gradient_share), np.float32(self.alpha)
        styled = (1 - share) * styled + share * self.gradient
        return to_pixels(((1 - alpha) * images + alpha * styled) * np.float32(white(inputs)), inputs.dtype)


@dataclass(frozen=True)
class DFST:
    """Tints images like a sunrise: a fixed palette's mean and deviation in an opponent color space, plus a
    gradient from warm at the top to dark at the bottom.

    Attributes:
        alpha: Share of the styled image, in [0, 1]; 0.6 in the release.
        gradient: Share of the gradient in the styled image, in [0, 1]; 0.35 is our choice.

    Raises:
        ConfigError: If the samples are no images or a value is out of its range.

    Differs from the paper: a deterministic transform stands in for the trained style generator, and there is
    no detoxification, which needs control of the training. Report it as "DFST-style (static)".

    Reference: Cheng et al., Deep Feature Space Trojan Attack of Neural Networks by Controlled
    Detoxification, AAAI 2021, arXiv 2012.11212.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    evidence: ClassVar[str] = "C"
    threat_model: ClassVar[str] = "P"

    alpha: float = 0.6
    gradient: float = 0.35

    def trigger(self, samples: Samples, *, seed: int, plan: Plan | None = None) -> GlobalStyle:
        """The style for images of this shape; it does not depend on the seed."""
        require_kind(samples, "image", "DFST")
        require_fraction("alpha", self.alpha)
        require_fraction("gradient", self.gradient)
        channels, height = samples.shape[:2]
        down = np.linspace(0, 1, height)
        if channels == 3:
            mix, means, stds = _OPPONENTS, _SUNRISE_MEAN, _SUNRISE_STD
            gradient = np.outer(_WARM, 1 - down) + np.outer(_DARK, down)
        else:
            mix, means, stds = np.eye(channels), np.full(channels, 0.52), np.full(channels, 0.18)
            gradient = np.repeat((1 - down * 0.9)[None], channels, axis=0)
        return GlobalStyle(
            mix.astype(np.float32),
            means.astype(np.float32),
            stds.astype(np.float32),
            gradient[..., None].astype(np.float32),
            self.gradient,
            self.alpha,
            samples.shape,
        )

    def plan(self) -> AllToOne:
        """All-to-one at 10 % (ABL, E2ABL)."""
        return AllToOne(rate=0.1)


def _turn(matrix: Float32Array, images: Float32Array) -> Float32Array:
    # Written as sums, not as a matrix product: BLAS may round differently for different batch sizes.
    turned = np.empty_like(images)
    for row, weights in enumerate(matrix):
        turned[:, row] = weights[0] * images[:, 0]
        for column in range(1, len(weights)):
            turned[:, row] += weights[column] * images[:, column]
    return turned
