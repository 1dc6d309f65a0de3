"""TaCT: the trigger works on one source class only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from antibackdoor.attacks.badnets import BadNets, Pattern
from antibackdoor.attacks.plans import SourceSpecific
from antibackdoor.attacks.stamps import Patch
from antibackdoor.data.samples import Samples

if TYPE_CHECKING:
    from antibackdoor.protocols import Plan


@dataclass(frozen=True)
class TaCT:
    """A BadNets patch that works only on one source class.

    Samples of the source class get the patch and the target label; covers of other classes get the patch
    and keep their label, so that the patch alone no longer separates the poisoned samples.

    Attributes:
        pattern: The patch, as in `BadNets`; the 3x3 white square in AdvrBD.
        cell: Side of one cell of the pattern in pixels, at least 1.

    Raises:
        ConfigError: If the samples are no images or too small, or the classes do not fit.

    Reference: Tang et al., Demon in the Variant: Statistical Analysis of DNNs for Robust Backdoor
    Contamination Detection, USENIX Security 2021, arXiv 1908.00686.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    evidence: ClassVar[str] = "A"
    threat_model: ClassVar[str] = "P"

    pattern: Pattern = "white3_br"
    cell: int = 1

    def trigger(self, samples: Samples, *, seed: int, plan: Plan | None = None) -> Patch:
        """The patch for images of this shape; it does not depend on the seed."""
        return BadNets(pattern=self.pattern, cell=self.cell).trigger(samples, seed=seed)

    def plan(self) -> SourceSpecific:
        """Source 0 to target 1 at 5 %, covers of all other classes at 1 % (AdvrBD)."""
        return SourceSpecific(rate=0.05, target_label=1, cover_rate=0.01)
