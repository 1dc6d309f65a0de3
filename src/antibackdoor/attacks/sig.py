"""SIG: a sinusoidal wave over images of the target class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from antibackdoor.attacks.plans import CleanLabel
from antibackdoor.attacks.stamps import Additive, Float32Array, Patch, Staged, require_kind
from antibackdoor.data.samples import Samples
from antibackdoor.errors import ConfigError

if TYPE_CHECKING:
    from antibackdoor.protocols import Plan


@dataclass(frozen=True)
class SIG:
    """Adds a sine wave across the columns to images of the target class, which keep their label.

    `A(x)[c, i, j] = clip(x[c, i, j] + delta/255 sin(2 pi f j / W))`, j the column.

    Attributes:
        mode: "additive" is the formula. "abl_wrapped" is what the ABL and NAD code does: the wave `20 sin(0.8 j)` is
            wrapped to 8 bits, so its negative half is nearly white, and blended at 0.2; a far stronger trigger. It uses
            `delta` and ignores `frequency`.
        delta: Amplitude in gray levels, in (0, 255]; 20 in NAD, 40 in BackdoorBench.
        delta_test: Amplitude at test time; None means `delta`. Barni et al. use up to 40.
        frequency: Cycles over the width of the image, > 0; 6 in all papers.

    Raises:
        ConfigError: If the samples are no images or a value is out of its range.

    Reference: Barni et al., A New Backdoor Attack in CNNs by Training Set Corruption Without Label
    Poisoning, ICIP 2019, arXiv 1902.11237.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    evidence: ClassVar[str] = "B"
    threat_model: ClassVar[str] = "P"

    mode: Literal["additive", "abl_wrapped"] = "additive"
    delta: float = 20.0
    delta_test: float | None = None
    frequency: float = 6.0

    def trigger(self, samples: Samples, *, seed: int, plan: Plan | None = None) -> Staged:
        """The wave for images of this shape; it does not depend on the seed."""
        require_kind(samples, "image", "SIG")
        delta_test = self.delta if self.delta_test is None else self.delta_test
        for name, value in (("delta", self.delta), ("delta_test", delta_test)):
            if not 0 < value <= 255:
                raise ConfigError(f"{name} is {value} grey levels; it must lie in (0, 255]")
        if self.frequency <= 0:
            raise ConfigError(f"frequency is {self.frequency} cycles; it must be positive")
        train, test = self._wave(self.delta, samples.shape), self._wave(delta_test, samples.shape)
        return Staged(train, train, test)

    def _wave(self, delta: float, shape: tuple[int, ...]) -> Additive | Patch:
        columns = np.arange(shape[2])
        if self.mode == "additive":
            wave = delta / 255 * np.sin(2 * np.pi * self.frequency * columns / shape[2])
            return Additive(wave.astype(np.float32).reshape(1, 1, -1), shape)
        if self.mode == "abl_wrapped":
            grey_levels = np.trunc(delta * np.sin(0.8 * columns)) % 256
            pattern: Float32Array = np.broadcast_to((grey_levels / 255).astype(np.float32), shape).copy()
            return Patch(pattern, np.full((1, *shape[1:]), 0.2, dtype=np.float32), 0, 0, shape)
        raise ConfigError(f"there is no mode {self.mode!r}; choose additive or abl_wrapped")

    def plan(self) -> CleanLabel:
        """Clean label at 10 % of the data set, at most the class (ABL, E2ABL; NAD 8 %)."""
        return CleanLabel(rate=0.1)
