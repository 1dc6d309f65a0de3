"""The kept samples of a data set of the user's own, for a training loop of the user's own."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.utils.data import Dataset, Subset

from antibackdoor.data.samples import BoolArray
from antibackdoor.errors import ConfigError


def kept_subset(dataset: Dataset[Any], keep: BoolArray) -> Subset[Any]:
    """The samples of a torch data set that are kept.

    Args:
        dataset: The map-style data set that was read.
        keep: `(N,)` bool, one entry a sample of it.

    Raises:
        ConfigError: If it is of another length than the data that were judged.
    """
    n = len(dataset) if hasattr(dataset, "__len__") else -1
    if n != len(keep):
        raise ConfigError(f"dataset has {max(n, 0)} samples, but {len(keep)} were judged: give the one that was read")
    return Subset(dataset, np.flatnonzero(keep).tolist())
