"""A journal in memory: it keeps every checkpoint as a file would give it back, or stops after some."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Ledger:
    """Keeps the last checkpoint and all lines of the log; a training dies right after its `stop_after`th checkpoint."""

    folder: Path | None = None

    def __init__(self, kept: dict[str, Any] | None = None, stop_after: int = 10**9) -> None:
        self.kept, self.n_saved, self.stop_after = kept, 0, stop_after
        self.lines: list[dict[str, Any]] = []
        self.told: list[str] = []

    def log(self, **fields: Any) -> None:
        self.lines.append(fields)

    def tell(self, message: str) -> None:
        self.told.append(message)

    def save(self, state: dict[str, Any]) -> None:
        # A copy, as the file is: training goes on in the same tensors.
        self.kept = as_from_a_file(state)
        self.n_saved += 1
        if self.n_saved >= self.stop_after:
            raise KeyboardInterrupt

    def load(self) -> dict[str, Any] | None:
        return None if self.kept is None else as_from_a_file(self.kept)


def as_from_a_file(value: Any) -> Any:
    """A checkpoint as a file would give it back: arrays as tensors, nothing shared with the training.

    Raises:
        TypeError: If a file could not hold it.
    """
    if isinstance(value, dict):
        return {key: as_from_a_file(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(as_from_a_file(part) for part in value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(value.copy())
    if isinstance(value, Tensor):
        return value.detach().clone()
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")
