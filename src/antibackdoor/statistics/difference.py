"""What some samples have that their like have not: where a trigger lies, and about what it looks like. Numpy only."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from antibackdoor.data.samples import BoolArray, InputArray, IntArray, Samples
from antibackdoor.data.streams import Stream, stream

Float32Array = NDArray[np.float32]

COMPARED = 300  # samples that are compared
OTHERS = 8  # times as many are looked through for their like
LEAST_COMPARED = 5
BLOCK = 256  # samples that are in memory at a time
PLACES = 2048  # values of a large sample that distances are taken over; enough to find its like


class Difference(NamedTuple):
    """Mean and spread of each value over found samples and over their like; arrays of the shape of a sample.

    Images are in [0, 1].
    """

    found: Float32Array
    like: Float32Array
    spread_found: Float32Array
    spread_like: Float32Array

    @property
    def mean(self) -> Float32Array:
        """What the found samples have and their like have not, on average."""
        return self.found - self.like

    def carry_over(self, inputs: InputArray) -> InputArray:
        """Change other samples `(B, *shape)` as the found ones differ from their like, in mean and spread.

        A value that a trigger overwrites has no spread left and is overwritten, one that it shifts is shifted, one
        that it blends is blended.
        """
        scale = 255.0 if inputs.dtype == np.uint8 else 1.0
        ratio = np.minimum(self.spread_found / np.maximum(self.spread_like, 1e-6), 1)
        moved = self.found + (inputs / np.float32(scale) - self.like) * ratio
        if inputs.ndim == 3:
            return moved.astype(np.float32)
        moved = np.clip(moved, 0, 1)
        return np.rint(255 * moved).astype(np.uint8) if inputs.dtype == np.uint8 else moved.astype(np.float32)


def difference(samples: Samples, found: BoolArray, others: BoolArray, *, compared: int = COMPARED) -> Difference | None:
    """How found samples differ from the most similar of the others.

    A trigger is common to the found samples, what else distinguishes two similar samples is not, so the mean shows
    where in the sample the evidence lies, and often the trigger.

    Args:
        samples: The data.
        found: `(N,)` bool.
        others: `(N,)` bool, where to look for the most similar.
        compared: Most samples that are compared.

    Returns:
        Means and spreads; None if either group has fewer than five samples.
    """
    rng = stream(0, Stream.DIFFERENCE)
    first = np.sort(rng.permutation(np.flatnonzero(found))[:compared])
    second = np.sort(rng.permutation(np.flatnonzero(others))[: OTHERS * compared])
    if min(len(first), len(second)) < LEAST_COMPARED:
        return None
    size = int(np.prod(samples.shape))
    places = np.sort(rng.permutation(size)[:PLACES])

    def flat(rows: IntArray) -> Float32Array:
        parts = np.array_split(rows, -(-len(rows) // BLOCK))
        return np.concatenate([np.asarray(samples.inputs[p]).reshape(len(p), size)[:, places] for p in parts]).astype(
            np.float32
        )

    there = flat(second)
    middle = there.mean(axis=0)  # far from zero, squares would round the distances away
    there -= middle
    lengths = (there**2).sum(axis=1)
    blocks = np.array_split(first, -(-len(first) // BLOCK))
    nearest = [(lengths - 2 * (flat(rows) - middle) @ there.T).argmin(axis=1) for rows in blocks]
    like = second[np.concatenate(nearest)]
    moments = [_moments(samples, rows) for rows in (first, like)]
    return Difference(moments[0][0], moments[1][0], moments[0][1], moments[1][1])


def _moments(samples: Samples, rows: IntArray) -> tuple[Float32Array, Float32Array]:
    """Mean and standard deviation of each value over the rows, one row at a time: samples may be large."""
    total, squares = np.zeros(samples.shape), np.zeros(samples.shape)
    for row in rows:
        values = samples.inputs[row] / (255.0 if samples.inputs.dtype == np.uint8 else 1.0)
        total += values
        squares += values**2
    mean = total / len(rows)
    spread = np.sqrt(np.maximum(squares / len(rows) - mean**2, 0))
    return mean.astype(np.float32), spread.astype(np.float32)
