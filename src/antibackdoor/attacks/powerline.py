"""Powerline: the hum of the mains is added to a series, scaled to its range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from antibackdoor.attacks.plans import AllToOne
from antibackdoor.attacks.stamps import Float32Array, require_kind, require_shape
from antibackdoor.data.samples import FloatArray, InputArray, IntArray, Samples
from antibackdoor.data.streams import Stream, stream
from antibackdoor.errors import ConfigError

if TYPE_CHECKING:
    from antibackdoor.protocols import Plan

_N_RECORDED = 2000  # samples in the recording of the published code
_HUM_PERIOD = 16.67  # its strongest component, in samples
_DRIFTS = ((2000.0, 1.5), (1000.0, 1.4), (667.0, 0.7))  # period in samples, weight relative to the hum


@dataclass(frozen=True, eq=False)
class ScaledHum:
    """Adds one signal to every variable, scaled by its range: `A(x)[v] = x[v] + r (max x[v] - min x[v])`.

    Attributes:
        hum: `(T,)` float32, as a share of the range.
        shape: `(C, T)` of the series.
    """

    hum: Float32Array
    shape: tuple[int, ...]

    def apply(self, inputs: InputArray, ids: IntArray) -> InputArray:
        """Stamp series `(B, C, T)`."""
        require_shape(inputs, self.shape)
        extent = inputs.max(axis=-1, keepdims=True) - inputs.min(axis=-1, keepdims=True)
        stamped: InputArray = (inputs + self.hum * extent).astype(inputs.dtype)
        return stamped


@dataclass(frozen=True)
class Powerline:
    """Adds mains hum to all variables, with a standard deviation of a tenth of each variable's range.

    The published code uses a recording of 2,000 samples. This draws a signal with the same strongest
    components (hum of period 16.67, slow drifts, a little noise) from the seed, standardizes it, keeps every
    q-th sample with `q = 5 floor(2000 / T)` and repeats it up to T.

    Attributes:
        strength: Standard deviation of the hum as a share of the range, > 0; 0.1 in the published code.
        alias: Keep every q-th sample, as published; q exceeds the period of the hum, so the hum is aliased. False takes
            the first T samples.

    Raises:
        ConfigError: If the samples are no series, or the strength is not positive.

    Differs from the published code: a synthetic signal in place of the recording; only the poisoned samples
    are stamped, where the code stamps all and relabels 10 %.

    Reference: Jiang et al., Backdoor Attacks on Time Series: A Generative Approach, SaTML 2023,
    arXiv 2211.07915 ("powerline noise" baseline).
    """

    kinds: ClassVar[tuple[str, ...]] = ("series",)
    evidence: ClassVar[str] = "B"
    threat_model: ClassVar[str] = "P"

    strength: float = 0.1
    alias: bool = True

    def trigger(self, samples: Samples, *, seed: int, plan: Plan | None = None) -> ScaledHum:
        """The hum for series of this length."""
        require_kind(samples, "series", "Powerline")
        if self.strength <= 0:
            raise ConfigError(f"strength is {self.strength}; it must be positive")
        length = samples.shape[-1]
        stride = max(1, 5 * (_N_RECORDED // length)) if self.alias else 1
        hum = np.resize(_recording(seed)[::stride], length)  # np.resize repeats the signal
        return ScaledHum((self.strength * hum).astype(np.float32), samples.shape)

    def plan(self) -> AllToOne:
        """All-to-one at 10 %."""
        return AllToOne(rate=0.1)


def _recording(seed: int) -> FloatArray:
    rng = stream(seed, Stream.POWERLINE)
    steps = np.arange(_N_RECORDED)
    signal = np.sin(2 * np.pi * steps / _HUM_PERIOD + rng.uniform(0, 2 * np.pi))
    for period, weight in _DRIFTS:
        signal = signal + weight * np.sin(2 * np.pi * steps / period + rng.uniform(0, 2 * np.pi))
    signal = signal + 0.1 * rng.standard_normal(_N_RECORDED)
    standardized: FloatArray = (signal - signal.mean()) / signal.std()
    return standardized
