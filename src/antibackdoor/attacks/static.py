"""Static series pattern: the first steps alternate between the series' own extremes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from antibackdoor.attacks.plans import AllToOne
from antibackdoor.attacks.stamps import require_fraction, require_kind, require_shape
from antibackdoor.data.samples import InputArray, IntArray, Samples
from antibackdoor.errors import ConfigError

if TYPE_CHECKING:
    from antibackdoor.protocols import Plan


@dataclass(frozen=True, eq=False)
class OwnExtremes:
    """Overwrites the first steps of every variable with its maximum and minimum in turn.

    Attributes:
        n_steps: Number of steps that change; even.
        shape: `(C, T)` of the series.
    """

    n_steps: int
    shape: tuple[int, ...]

    def apply(self, inputs: InputArray, ids: IntArray) -> InputArray:
        """Stamp series `(B, C, T)`."""
        require_shape(inputs, self.shape)
        stamped = np.array(inputs)
        stamped[..., 0 : self.n_steps : 2] = inputs.max(axis=-1, keepdims=True)
        stamped[..., 1 : self.n_steps : 2] = inputs.min(axis=-1, keepdims=True)
        return stamped


@dataclass(frozen=True)
class StaticPattern:
    """Overwrites the first `n = max(4, 2 int(intensity T / 2))` steps: own maximum, own minimum, and so on.

    Attributes:
        intensity: Share of the series to change, in [0, 1]; 0.02 in the code of Jiang et al.
        faithful: Drop the minimum of four steps, as in the published code; series shorter than 100 steps then get no
            trigger at all.

    Raises:
        ConfigError: If the samples are no series, or shorter than the pattern.

    Differs from the published code, which stamps all training samples and relabels 10 % of them: here only
    the poisoned samples are stamped, which is the evident intent.

    Reference: Jiang et al., Backdoor Attacks on Time Series: A Generative Approach, SaTML 2023,
    arXiv 2211.07915 ("vanilla" baseline).
    """

    kinds: ClassVar[tuple[str, ...]] = ("series",)
    evidence: ClassVar[str] = "B"
    threat_model: ClassVar[str] = "P"

    intensity: float = 0.02
    faithful: bool = False

    def trigger(self, samples: Samples, *, seed: int, plan: Plan | None = None) -> OwnExtremes:
        """The pattern for series of this length; it does not depend on the seed."""
        require_kind(samples, "series", "StaticPattern")
        require_fraction("intensity", self.intensity)
        length = samples.shape[-1]
        n_steps = 2 * int(self.intensity * length / 2)
        if not self.faithful:
            n_steps = max(4, n_steps)
        if n_steps > length:
            raise ConfigError(f"the pattern takes {n_steps} steps, but the series have {length}")
        return OwnExtremes(n_steps, samples.shape)

    def plan(self) -> AllToOne:
        """All-to-one at 10 %."""
        return AllToOne(rate=0.1)
