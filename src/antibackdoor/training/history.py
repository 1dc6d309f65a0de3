"""The loss of every sample over time: the evidence that E2ABL reasons from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Losses = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class LossHistory:
    """Per-sample losses at successive moments of training.

    Attributes:
        losses: `(T, N)` float32; row 0 stands for the untrained network and is the constant log K.
        steps: `(T,)` int64, the number of optimizer steps taken at each moment.
    """

    losses: Losses
    steps: NDArray[np.int64]

    def __repr__(self) -> str:
        return f"LossHistory({self.n_samples} samples at {len(self)} moments)"

    @classmethod
    def start(cls, n_samples: int, n_classes: int) -> LossHistory:
        """The history before training: every sample at log K, the loss of a guess among the labels."""
        first = np.full((1, n_samples), np.log(n_classes), dtype=np.float32)
        return cls(first, np.zeros(1, dtype=np.int64))

    def append(self, losses: Losses, step: int) -> LossHistory:
        """A new history with one more moment: losses `(N,)` after `step` optimizer steps."""
        return LossHistory(
            np.concatenate([self.losses, losses.astype(np.float32)[None]]),
            np.append(self.steps, np.int64(step)),
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"losses": self.losses, "steps": self.steps}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> LossHistory:
        """The history of a checkpoint."""
        return cls(np.asarray(state["losses"], dtype=np.float32), np.asarray(state["steps"], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.losses)

    @property
    def n_samples(self) -> int:
        """Number of samples N."""
        return int(self.losses.shape[1])
