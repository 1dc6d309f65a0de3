"""Blend: a full-size pattern is mixed into the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from antibackdoor.attacks.pictures import full_pattern
from antibackdoor.attacks.plans import AllToOne
from antibackdoor.attacks.stamps import (
    Patch,
    Staged,
    require_fraction,
    require_kind,
    require_shape,
    sample_generator,
    to_pixels,
    white,
)
from antibackdoor.data.samples import InputArray, IntArray, Samples

if TYPE_CHECKING:
    from antibackdoor.protocols import Plan


@dataclass(frozen=True, eq=False)
class PerSampleNoise:
    """Blends new grey noise into every image: `A(x) = (1 - alpha) x + alpha n(seed, id)`.

    Attributes:
        alpha: Share of the noise, in [0, 1].
        seed: Together with the number of a sample it decides its noise.
        shape: `(C, H, W)` of the images.
    """

    alpha: float
    seed: int
    shape: tuple[int, ...]

    def apply(self, inputs: InputArray, ids: IntArray) -> InputArray:
        """Stamp images `(B, C, H, W)`."""
        require_shape(inputs, self.shape)
        size = self.shape[1:]
        noise = np.empty((len(inputs), 1, *size), dtype=np.float32)
        for position, number in enumerate(ids):
            noise[position, 0] = sample_generator(self.seed, int(number)).integers(0, 256, size, dtype=np.uint8)
        noise *= np.float32(self.alpha * white(inputs) / 255.0)
        return to_pixels(inputs * np.float32(1 - self.alpha) + noise, inputs.dtype)


@dataclass(frozen=True)
class Blend:
    """Mixes a full-size pattern into the image: `A(x) = (1 - alpha) x + alpha p`.

    Attributes:
        alpha: Opacity of the pattern, in [0, 1]; 0.2 in NAD, ABL and AdvrBD, 0.1 in some papers.
        alpha_test: Opacity at test time; None means `alpha`.
        pattern: "random" is one draw of uniform noise per seed (the papers of NAD, ABL, and Chen et al.); "cartoon" is
            a drawn face, which replaces the copyrighted Hello Kitty of AdvrBD; "picture" is your file;
            "per_sample_noise" is new gray noise for every image (the code of NAD and ABL).
        picture: Image file for "picture"; it is resized to the size of the samples.

    Raises:
        ConfigError: If the samples are no images, or the picture cannot be read.

    Reference: Chen et al., Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning, 2017,
    arXiv 1712.05526.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    evidence: ClassVar[str] = "B"
    threat_model: ClassVar[str] = "P"

    alpha: float = 0.2
    alpha_test: float | None = None
    pattern: Literal["random", "cartoon", "picture", "per_sample_noise"] = "random"
    picture: str | None = None

    def trigger(self, samples: Samples, *, seed: int, plan: Plan | None = None) -> Staged:
        """The pattern for images of this shape."""
        require_kind(samples, "image", "Blend")
        alpha_test = self.alpha if self.alpha_test is None else self.alpha_test
        require_fraction("alpha", self.alpha)
        require_fraction("alpha_test", alpha_test)
        if self.pattern == "per_sample_noise":
            # Other noise at test time, or a model could remember the noise of a training sample by its id.
            planted = PerSampleNoise(self.alpha, 2 * seed, samples.shape)
            return Staged(planted, planted, PerSampleNoise(alpha_test, 2 * seed + 1, samples.shape))
        pattern = full_pattern(self.pattern, self.picture, samples.shape, seed)
        strengths = (np.full((1, *samples.shape[1:]), alpha, np.float32) for alpha in (self.alpha, alpha_test))
        train, test = (Patch(pattern, strength, 0, 0, samples.shape) for strength in strengths)
        return Staged(train, train, test)

    def plan(self) -> AllToOne:
        """All-to-one at 10 % (NAD, ABL, E2ABL; AdvrBD 5 %)."""
        return AllToOne(rate=0.1)
