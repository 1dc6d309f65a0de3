"""A stratified test split for data that comes without one."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from antibackdoor.data.groups import numbered
from antibackdoor.data.samples import BoolArray, IntArray, StrArray
from antibackdoor.data.streams import Stream, stream
from antibackdoor.errors import ConfigError, DataError


def hold_out(
    labels: NDArray[np.int64],
    class_names: StrArray,
    fraction: float,
    *,
    seed: int,
    groups: tuple[str, ...] | None = None,
) -> tuple[IntArray, IntArray]:
    """Rows for training and rows for testing, both ascending; every class has at least one row in each.

    Args:
        labels: `(N,)`, of each row.
        class_names: `(K,)`.
        fraction: Share of each class that is held out; with groups, about.
        seed: Chooses the rows.
        groups: N names; rows of one group stay together.

    Raises:
        ConfigError: If `fraction` is not in (0, 1).
        DataError: If a class has a single sample, or groups leave a class out on one side.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"test_fraction is {fraction}; it must lie in [0, 1)")
    rng = stream(seed, Stream.HOLD_OUT)
    if groups is not None:
        is_test = _whole_groups(labels, numbered(groups), class_names, fraction, rng)
        return np.flatnonzero(~is_test).astype(np.int64), np.flatnonzero(is_test).astype(np.int64)
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


def _whole_groups(
    labels: IntArray, groups: IntArray, class_names: StrArray, fraction: float, rng: np.random.Generator
) -> BoolArray:
    """Which rows are held out: groups in random order, each if that brings the classes nearer to their shares.

    Then, for each class without a test sample, the smallest group that has some.
    """
    n_classes = len(class_names)
    cells, counts = np.unique(groups * n_classes + labels, return_counts=True)
    starts = np.searchsorted(cells // n_classes, np.arange(groups.max() + 2))
    members = [(cells[a:b] % n_classes, counts[a:b]) for a, b in itertools.pairwise(starts.tolist())]
    totals = np.bincount(labels, minlength=n_classes)
    taken = np.zeros(n_classes, dtype=np.int64)
    chosen: set[int] = set()

    def is_possible(group: int) -> bool:
        classes, n = members[group]
        return group not in chosen and bool((taken[classes] + n < totals[classes]).all())

    def take(group: int) -> None:
        classes, n = members[group]
        taken[classes] += n
        chosen.add(group)

    order = rng.permutation(len(members)).tolist()
    for group in order:
        classes, n = members[group]
        now, then = taken[classes] / totals[classes], (taken[classes] + n) / totals[classes]
        if is_possible(group) and ((then - fraction) ** 2).sum() < ((now - fraction) ** 2).sum():
            take(group)
    for label in np.flatnonzero((totals > 0) & (taken == 0)).tolist():
        able = [group for group in order if label in members[group][0] and is_possible(group)]
        if able and not taken[label]:
            take(min(able, key=lambda group: int(members[group][1].sum())))
        if not taken[label]:
            n_groups = sum(label in classes for classes, _ in members)
            raise DataError(
                f"the samples of class {str(class_names[label])!r:.60} are in {n_groups} group"
                f"{'' if n_groups == 1 else 's'}, so it cannot be in both training and test data without "
                "splitting one: give test data with --test, another --group-by, or set --test-fraction 0"
            )
    return np.isin(groups, list(chosen))
