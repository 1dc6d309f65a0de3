"""A stratified test split for data that comes without one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from antibackdoor.data.samples import IntArray, StrArray
from antibackdoor.data.streams import Stream, stream
from antibackdoor.errors import ConfigError, DataError


def hold_out(
    labels: NDArray[np.int64], class_names: StrArray, fraction: float, *, seed: int
) -> tuple[IntArray, IntArray]:
    """Rows for training and rows for testing, both ascending; every class has at least one row in each.

    Raises:
        ConfigError: If `fraction` is not in (0, 1).
        DataError: If a class has a single sample.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"test_fraction is {fraction}; it must lie in [0, 1)")
    rng = stream(seed, Stream.HOLD_OUT)
    is_test = np.zeros(len(labels), np.bool_)
    for label in range(len(class_names)):
        rows = np.flatnonzero(labels == label)
        if len(rows) == 1:
            raise DataError(
                f"class {str(class_names[label])!r} has a single sample, which cannot be split: "
                f"add samples, remove the class, give test data with --test, or set --test-fraction 0"
            )
        if len(rows):
            n_test = int(np.clip(round(fraction * len(rows)), 1, len(rows) - 1))
            is_test[rng.permutation(rows)[:n_test]] = True
    return np.flatnonzero(~is_test).astype(np.int64), np.flatnonzero(is_test).astype(np.int64)
