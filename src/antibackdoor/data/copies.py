"""Exact copies: inputs that occur more than once, found by a hash of what was decoded.

A test sample that is a copy of a training sample measures memory, not learning. A sample that stands under two labels
has at least one wrong label.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from antibackdoor.data.samples import BoolArray, DigestArray, IntArray, Samples


class Uncounted(NamedTuple):
    """Test samples that count for no accuracy; no sample is in both masks."""

    trained_on: BoolArray  # (N,) copies of training samples, under any label
    conflicting: BoolArray  # (N,) of the others, those that stand in the test data under two labels

    @property
    def any_of_them(self) -> BoolArray:
        """`(N,)` bool, all of them."""
        return np.asarray(self.trained_on | self.conflicting)


def uncounted(test: Samples, trained_on: DigestArray | None) -> Uncounted:
    """Which test samples say nothing about a model.

    Args:
        test: The test samples.
        trained_on: `(M,)` hashes of the inputs that the model was trained on (`Samples.contents`); None if they are
            not known.
    """
    known = np.zeros(len(test), dtype=bool) if trained_on is None else np.isin(test.contents, trained_on)
    return Uncounted(known, under_two_labels(test.contents, test.labels) & ~known)


def under_two_labels(contents: DigestArray, labels: IntArray) -> BoolArray:
    """`(N,)` bool, samples whose input stands under another label as well.

    >>> same = np.array([b"a" * 16, b"a" * 16, b"b" * 16], dtype="V16")
    >>> under_two_labels(same, np.array([0, 1, 1])).tolist()
    [True, True, False]
    """
    if not len(contents):
        return np.zeros(0, dtype=bool)
    _, which = np.unique(contents, return_inverse=True)
    which = which.reshape(-1)
    lowest = np.full(which.max() + 1, np.iinfo(np.int64).max)
    highest = np.full(which.max() + 1, -1)
    np.minimum.at(lowest, which, labels)
    np.maximum.at(highest, which, labels)
    return np.asarray((lowest < highest)[which])
