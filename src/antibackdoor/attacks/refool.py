"""Refool: the reflection of another scene, as in a picture taken through glass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from scipy.ndimage import gaussian_filter, shift

from antibackdoor.attacks.pictures import read_picture, resized, scene
from antibackdoor.attacks.plans import CleanLabel
from antibackdoor.attacks.stamps import (
    Float32Array,
    Staged,
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
    from antibackdoor.protocols import Plan

_CANVAS = 560  # longer side, in pixels, on which the paper blends; its distances refer to it
_GAMMA = np.float32(2.2)


@dataclass(frozen=True, eq=False)
class Reflections:
    """Overlays one of P ready reflections, picked by the number of the sample, in linear light.

    Attributes:
        layers: `(P, C, H, W)` float32, the reflected light, blurred or doubled.
        weights: `(P, 1, H, W)` float32, the share of the reflection at each pixel.
        alphas: `(P,)` float32, the share of the image.
        dims: `(P,)` float32, how strongly an out-of-focus reflection gives way where the sum would be over
            exposed; 0 for ghosts.
        seed: Together with the number of a sample it decides the reflection.
        shape: `(C, H, W)` of the images.
    """

    layers: Float32Array
    weights: Float32Array
    alphas: Float32Array
    dims: Float32Array
    seed: int
    shape: tuple[int, ...]

    def apply(self, inputs: InputArray, ids: IntArray) -> InputArray:
        """Overlay images `(B, C, H, W)`."""
        require_shape(inputs, self.shape)
        n_layers = len(self.layers)
        picks = np.array([sample_generator(self.seed, int(i)).integers(n_layers) for i in ids], dtype=np.int64)
        scene_light = (np.array(inputs, dtype=np.float32, order="C") / np.float32(white(inputs))) ** _GAMMA
        light, dim = self.layers[picks], self.dims[picks][:, None, None, None]
        total = light + scene_light
        over = total > 1
        count = np.maximum(over.sum(axis=(2, 3), keepdims=True), 1).astype(np.float32)
        excess = np.where(over, total - 1, np.float32(0)).sum(axis=(2, 3), keepdims=True) / count
        light = np.where(dim > 0, np.clip(light - excess * dim, 0, 1), light)
        alpha = self.alphas[picks][:, None, None, None]
        blended = np.clip(light * self.weights[picks] + alpha * scene_light, 0, 1)
        return to_pixels(blended ** (1 / _GAMMA) * np.float32(white(inputs)), inputs.dtype)


@dataclass(frozen=True)
class Refool:
    """Overlays reflections on images of the target class, which keep their label.

    In linear light (gamma 2.2) the image keeps the share `alpha = 1 - U(0.05, 0.45)`. A ghost (probability
    `ghost_rate`) is the reflection twice, shifted by 3 to 8 of 560 pixels; otherwise the reflection is out of
    focus, blurred by a Gaussian of 1 to 5 of 560 pixels and fading from the center.

    Attributes:
        folder: Folder of photos to reflect, sorted by name; None draws license-free scenes.
        n_reflections: Number of reflections in the pool, at least 1; the paper keeps 200 candidates.
        ghost_rate: Share of ghost reflections, in [0, 1]; 0.49 in the code.

    Raises:
        ConfigError: If the samples are no images, or the folder holds no pictures.

    Differs from the paper: the random values belong to a reflection of the pool and not to each use of it;
    the blending is done at the size of the samples with distances scaled down, not at 560 pixels; the
    reflections are not selected by trial poisoning.

    Reference: Liu et al., Reflection Backdoor: A Natural Backdoor Attack on Deep Neural Networks, ECCV 2020,
    arXiv 2007.02343.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    evidence: ClassVar[str] = "B"
    threat_model: ClassVar[str] = "P"

    folder: str | None = None
    n_reflections: int = 64
    ghost_rate: float = 0.49

    def trigger(self, samples: Samples, *, seed: int, plan: Plan | None = None) -> Staged:
        """The pool of reflections for images of this shape."""
        require_kind(samples, "image", "Refool")
        require_fraction("ghost_rate", self.ghost_rate)
        if self.n_reflections < 1:
            raise ConfigError(f"n_reflections is {self.n_reflections}; the pool needs at least 1")
        scenes = self._scenes(samples.shape, seed)
        n_ghosts = round(self.ghost_rate * len(scenes))
        made = [
            (_ghost if number < n_ghosts else _out_of_focus)(light, stream(seed, Stream.REFLECTION, number))
            for number, light in enumerate(scenes)
        ]
        layers, weights = (np.stack([parts[i] for parts in made]).astype(np.float32) for i in (0, 1))
        alphas, dims = (np.array([parts[i] for parts in made], dtype=np.float32) for i in (2, 3))
        # Test samples draw anew, or they would share the reflection of the training sample of equal id.
        train, test = (Reflections(layers, weights, alphas, dims, 2 * seed + stage, samples.shape) for stage in (0, 1))
        return Staged(train, train, test)

    def plan(self) -> CleanLabel:
        """Clean label at 8 % of the data set, at most the class (NAD)."""
        return CleanLabel(rate=0.08)

    def _scenes(self, shape: tuple[int, ...], seed: int) -> list[Float32Array]:
        channels, height, width = shape
        colors = (3 if channels == 3 else 1, height, width)
        if self.folder is None:
            images = [scene(seed, number) for number in range(self.n_reflections)]
        else:
            endings = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm"}
            folder = Path(self.folder)
            paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in endings)
            if not paths:
                raise ConfigError(f"{self.folder} holds no pictures (.jpg, .png, .bmp, .webp or .ppm)")
            images = [read_picture(path) for path in paths[: self.n_reflections]]
        stored = [resized(image.convert("RGB"), colors) / np.float32(255) for image in images]
        return [np.broadcast_to(picture**_GAMMA, shape).astype(np.float32) for picture in stored]


_Layer = tuple[Float32Array, Float32Array, float, float]


def _ghost(light: Float32Array, rng: np.random.Generator) -> _Layer:
    scale = max(light.shape[1:]) / _CANVAS
    offset = rng.integers(3, 9, 2) * scale
    share = abs(round(rng.random()) - rng.uniform(0.15, 0.5))
    moved = shift(light, (0.0, *offset), order=1, mode="nearest")
    alpha = 1 - rng.uniform(0.05, 0.45)
    weight = np.full((1, *light.shape[1:]), 1 - alpha, dtype=np.float32)
    return (share * light + (1 - share) * moved).astype(np.float32), weight, alpha, 0.0


def _out_of_focus(light: Float32Array, rng: np.random.Generator) -> _Layer:
    height, width = light.shape[1:]
    side = max(height, width)
    sigma = rng.uniform(1, 5) * side / _CANVAS
    blurred = gaussian_filter(light, (0, sigma, sigma)).astype(np.float32)
    # A window of 3 sigma over the longer side, cut out at a random place where the image is shorter.
    bell = np.exp(-0.5 * ((np.arange(side) - (side - 1) / 2) / (side / 6)) ** 2)
    top, left = (int(rng.integers(side - length + 1)) for length in (height, width))
    alpha = 1 - rng.uniform(0.05, 0.45)
    window = np.outer(bell[top : top + height], bell[left : left + width])
    weight = (window[None] * (1 - alpha / 2)).astype(np.float32)
    return blurred, weight, alpha, 1.08 + rng.uniform(0, 0.1)
