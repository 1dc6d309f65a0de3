"""WaNet: a smooth elastic warp, with covers under random warps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from antibackdoor.attacks.plans import AllToOne
from antibackdoor.attacks.stamps import Float32Array, Staged, require_kind, require_shape, sample_generator, to_pixels
from antibackdoor.data.samples import InputArray, IntArray, Samples
from antibackdoor.data.streams import Stream, stream
from antibackdoor.errors import ConfigError

if TYPE_CHECKING:
    from antibackdoor.protocols import Plan


@dataclass(frozen=True, eq=False)
class Warp:
    """Samples every image at the same displaced positions.

    Attributes:
        grid: `(H, W, 2)` float32, positions (x, y) in [-1, 1] with aligned corners.
        shape: `(C, H, W)` of the images.
    """

    grid: Float32Array
    shape: tuple[int, ...]

    def apply(self, inputs: InputArray, ids: IntArray) -> InputArray:
        """Warp images `(B, C, H, W)`."""
        require_shape(inputs, self.shape)
        return _sample(inputs, np.broadcast_to(self.grid, (len(inputs), *self.grid.shape)))


@dataclass(frozen=True, eq=False)
class NoisyWarp:
    """As `Warp`, with other random displacements of up to one pixel for every image.

    Attributes:
        grid: `(H, W, 2)` float32, positions in [-1, 1].
        seed: Together with the number of a sample it decides the displacements.
        shape: `(C, H, W)` of the images.
    """

    grid: Float32Array
    seed: int
    shape: tuple[int, ...]

    def apply(self, inputs: InputArray, ids: IntArray) -> InputArray:
        """Warp images `(B, C, H, W)`."""
        require_shape(inputs, self.shape)
        grids = np.empty((len(inputs), *self.grid.shape), dtype=np.float32)
        for position, number in enumerate(ids):
            noise = sample_generator(self.seed, int(number)).random(self.grid.shape, dtype=np.float32)
            grids[position] = self.grid + (2 * noise - 1) / np.float32(self.grid.shape[0])
        return _sample(inputs, grids.clip(-1, 1))


@dataclass(frozen=True)
class WaNet:
    """Warps the image with one smooth displacement field, drawn from the seed.

    A `k x k` field of uniform displacements is divided by its mean size, enlarged to `H x W` (bicubic) and
    scaled by `strength / H`. Covers are warped by that field plus noise, another for every cover, and keep
    their label ("noise mode"), which forces the network to learn the precise warp.

    Attributes:
        k: Side of the control grid, at least 2; 4 in the paper.
        strength: Size s of the displacements, >= 0; 0.5 in the paper. 0 means no warp.
        grid_rescale: Scale factor for the positions, > 0; 1 in the paper.

    Raises:
        ConfigError: If the samples are no images or a value is out of its range.

    Differs from the paper: the poisoned samples are fixed once and rounded to 8 bits, where the paper draws
    new ones in every epoch and trains on the floats. This static form is much weaker (AdvrBD: 51 %).

    Reference: Nguyen and Tran, WaNet: Imperceptible Warping-Based Backdoor Attack, ICLR 2021,
    arXiv 2102.10369.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    evidence: ClassVar[str] = "A"
    threat_model: ClassVar[str] = "P"

    k: int = 4
    strength: float = 0.5
    grid_rescale: float = 1.0

    def trigger(self, samples: Samples, *, seed: int, plan: Plan | None = None) -> Staged:
        """The warp for images of this shape."""
        require_kind(samples, "image", "WaNet")
        if self.k < 2:
            raise ConfigError(f"k is {self.k}; the control grid has at least 2 points a side")
        if self.strength < 0:
            raise ConfigError(f"strength is {self.strength}; it must not be negative")
        if self.grid_rescale <= 0:
            raise ConfigError(f"grid_rescale is {self.grid_rescale}; it must be positive")
        height, width = samples.shape[1:]
        control = stream(seed, Stream.WARP).uniform(-1, 1, (1, 2, self.k, self.k)).astype(np.float32)
        control /= np.abs(control).mean()
        flow = F.interpolate(torch.from_numpy(control), (height, width), mode="bicubic", align_corners=True)
        rows, columns = np.linspace(-1, 1, height), np.linspace(-1, 1, width)
        identity = np.stack(np.meshgrid(columns, rows), axis=-1)
        moved = identity + self.strength / height * flow[0].permute(1, 2, 0).numpy()
        grid = (moved * self.grid_rescale).clip(-1, 1).astype(np.float32)
        warp = Warp(grid, samples.shape)
        return Staged(warp, NoisyWarp(grid, seed, samples.shape), warp)

    def plan(self) -> AllToOne:
        """All-to-one at 10 % with twice as many covers (AdvrBD: 5 % and as many covers)."""
        return AllToOne(rate=0.1, cover_rate=0.2)


def _sample(inputs: InputArray, grids: Float32Array) -> InputArray:
    images = torch.from_numpy(np.array(inputs, dtype=np.float32, order="C"))
    positions = torch.from_numpy(np.array(grids, dtype=np.float32, order="C"))
    if not len(images):
        return np.array(inputs)
    with torch.no_grad():
        warped = F.grid_sample(images, positions, mode="bilinear", padding_mode="zeros", align_corners=True)
    return to_pixels(warped.numpy(), inputs.dtype)
