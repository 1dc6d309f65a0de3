"""PhysicalBA: a logo near the corner, for victims that train with physical-like transformations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from antibackdoor.attacks.pictures import logo_patch
from antibackdoor.attacks.plans import AllToOne
from antibackdoor.attacks.stamps import Patch, fit_window, require_kind
from antibackdoor.data.samples import Samples
from antibackdoor.errors import ConfigError

if TYPE_CHECKING:
    from antibackdoor.protocols import Plan


@dataclass(frozen=True)
class PhysicalBA:
    """Stamps a round logo near the top right corner.

    The attack assumes that the victim trains with flips, changes of light and affine transformations, so that
    the trigger survives a camera. They belong to the training and not to the data: train with the augmentation
    `physical` to reproduce the paper.

    Attributes:
        side: Width of the logo in pixels, at least 1; 13 at 32x32 pixels (rows 1..13, columns 18..30).
        picture: Image file (transparency is used) to use instead of the drawn logo.

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
