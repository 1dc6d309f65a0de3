"""BadNets: a small fixed patch overwrites some pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from antibackdoor.attacks.plans import AllToOne
from antibackdoor.attacks.stamps import Float32Array, Patch, fit_window, require_fraction, require_kind
from antibackdoor.data.samples import Samples
from antibackdoor.errors import ConfigError

if TYPE_CHECKING:
    from antibackdoor.protocols import Plan

Pattern = Literal["grid_br", "white3_br", "cross3_br", "grid_center"]

# Grey levels (0..255), row by row; the margin is the distance of the patch from the bottom right corner.
_GRID = ((0, 0, 255), (0, 255, 0), (255, 0, 255))
_PATTERNS: dict[str, tuple[tuple[tuple[int, ...], ...], int]] = {
    "grid_br": (_GRID, 0),
    "white3_br": (((255,) * 3,) * 3, 0),
    "cross3_br": (_GRID, 0),
    "grid_center": (((255, 128, 255), (128, 255, 128), (255, 128, 128)), 11),
}


def patch_pattern(name: str) -> Float32Array:
    """A named 3x3 pattern, `(3, 3)` float32 in [0, 1]."""
    if name not in _PATTERNS:
        raise ConfigError(f"there is no patch pattern {name!r}; choose one of {', '.join(_PATTERNS)}")
    return np.asarray(_PATTERNS[name][0], dtype=np.float32) / np.float32(255)


@dataclass(frozen=True)
class BadNets:
    """Stamps a 3x3 patch, the same in all channels, and gives the sample the target label.

    `A(x) = (1 - M) x + M p`. The default "grid_br" has four white pixels, on the anti-diagonal and in the
    corner, on black: the trigger of the ABL and NAD code. "white3_br" is the white square of BackdoorBench
    and AdvrBD, "cross3_br" that of backdoor-toolbox (its pixels equal "grid_br"), "grid_center" the patch
    of the adaptive attack in the appendix of NAD, 14 pixels from the bottom right corner.

    Attributes:
        pattern: The patch.
        alpha: Brightness of the patch in [0, 1]; NAD uses 0.2, 0.5, 0.8 and 1 with "grid_center".
        cell: Side of one cell of the pattern in pixels, at least 1; the papers use 1 at 32x32 pixels.

    Raises:
        ConfigError: If the samples are no images, or smaller than the patch and its margin.

    Differs from the papers: NAD's text gives the corner patch the values 128 and 255, its code 0 and 255;
    this follows the code.

    Reference: Gu et al., BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain,
    2017, arXiv 1708.06733.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    evidence: ClassVar[str] = "A"
    threat_model: ClassVar[str] = "P"

    pattern: Pattern = "grid_br"
    alpha: float = 1.0
    cell: int = 1

    def trigger(self, samples: Samples, *, seed: int, plan: Plan | None = None) -> Patch:
        """The patch for images of this shape; it does not depend on the seed."""
        require_kind(samples, "image", "BadNets")
        require_fraction("alpha", self.alpha)
        if self.cell < 1:
            raise ConfigError(f"cell is {self.cell}; a cell of the pattern is at least 1 pixel wide")
        grey = np.kron(patch_pattern(self.pattern), np.ones((self.cell, self.cell), dtype=np.float32))
        channels, height, width = samples.shape
        side, margin = grey.shape[0], _PATTERNS[self.pattern][1]
        top, left = height - margin - side, width - margin - side
        fit_window(samples.shape, side, side, top, left, f"the patch {self.pattern!r}")
        pattern = np.repeat(np.float32(self.alpha) * grey[None], channels, axis=0)
        return Patch(pattern, np.ones((1, side, side), dtype=np.float32), top, left, samples.shape)

    def plan(self) -> AllToOne:
        """All-to-one at 10 % (NAD, ABL, E2ABL; AdvrBD 5 %)."""
        return AllToOne(rate=0.1)
