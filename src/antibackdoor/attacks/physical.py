"""PhysicalBA: a logo near the corner, for victims that train with physical-like transformations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from antibackdoor.attacks.pictures import logo_patch
from antibackdoor.attacks.plans import AllToOne
from antibackdoor.attacks.stamps import Patch, fit_window, require_kind
from antibackdoor.errors import ConfigError
from antibackdoor.samples import Samples

if TYPE_CHECKING:
    from antibackdoor.protocols import Plan


@dataclass(frozen=True)
class PhysicalBA:
    """Stamps a round logo near the top right corner.

    The attack assumes that the victim trains with flips, changes of light and affine transformations, so that
    the trigger survives a camera. They belong to the training and not to the data: give
    `physical_transforms` to the recipe as augmentation to reproduce the paper.

    Attributes:
        side: Width of the logo in pixels, at least 1; 13 at 32x32 pixels (rows 1..13, columns 18..30).
        picture: Image file (with transparency, if it has any) in place of the drawn logo.

    Raises:
        ConfigError: If the samples are no images, or too small for the logo.

    Differs from AdvrBD: a drawn swirl stands in for the trademarked Firefox logo.

    Reference: Li et al., Backdoor Attack in the Physical World, 2021, arXiv 2104.02361.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    evidence: ClassVar[str] = "C"
    threat_model: ClassVar[str] = "P"

    side: int = 13
    picture: str | None = None

    def trigger(self, samples: Samples, *, seed: int, plan: Plan | None = None) -> Patch:
        """The logo for images of this shape; it does not depend on the seed."""
        require_kind(samples, "image", "PhysicalBA")
        if self.side < 1:
            raise ConfigError(f"side is {self.side}; the logo is at least 1 pixel wide")
        top, left = 1, samples.shape[2] - self.side - 1
        fit_window(samples.shape, self.side, self.side, top, left, "the logo")
        pattern, opacity = logo_patch(self.picture, self.side, samples.shape[0])
        return Patch(pattern, opacity, top, left, samples.shape)

    def plan(self) -> AllToOne:
        """All-to-one at 5 % (AdvrBD)."""
        return AllToOne(rate=0.05)


def physical_transforms(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random flip, brightness and contrast +-20 %, rotation +-10 degrees, shift +-10 %, scale 0.8 to 0.9.

    Args:
        images: `(B, C, H, W)` float in [0, 1], poisoned and clean alike.
        generator: Randomness, on the CPU.

    Returns:
        New images of the same shape in [0, 1]; what is moved in from outside is black.
    """

    def uniform(low: float, high: float) -> Tensor:
        draws = torch.rand(len(images), generator=generator) * (high - low) + low
        return draws.to(images.device, images.dtype)

    brightness, contrast = (uniform(0.8, 1.2)[:, None, None, None] for _ in range(2))
    lit = (images * brightness).clamp(0, 1)
    mean = lit.mean(dim=(1, 2, 3), keepdim=True)
    lit = (mean + contrast * (lit - mean)).clamp(0, 1)

    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    angle, scale = uniform(-10, 10).deg2rad(), uniform(0.8, 0.9)
    ratio = images.shape[-2] / images.shape[-1]
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    # affine_grid maps output to input in units of half the width and height, hence the ratio.
    across = torch.stack((flip * cos, flip * sin * ratio, uniform(-0.2, 0.2)), dim=1)
    down = torch.stack((-sin / ratio, cos, uniform(-0.2, 0.2)), dim=1)
    grid = F.affine_grid(torch.stack((across, down), dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(lit, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
