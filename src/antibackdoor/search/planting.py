"""What could a search have seen? Known triggers, planted in a copy of the data at several rates at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from antibackdoor.data.samples import BoolArray, FloatArray, InputArray, IntArray, Samples
from antibackdoor.data.streams import Stream, stream
from antibackdoor.statistics.isolation import SMALLEST_GROUP

# Shares of all samples, the most telling ones first: with few labels not all of them find a place.
RATES = (0.01, 0.05, 0.002, 0.02, 0.005, 0.001)
LEAST_FOUND = 0.5  # share of planted samples from which a backdoor counts as seen
SIDE = 3 / 32  # of the shorter side of an image, covered by the planted patch
SPAN = 1 / 20  # of a series, covered by the planted pattern


@dataclass(frozen=True, eq=False)
class Planted:
    """A copy of a data set with a backdoor of its own in some labels.

    Attributes:
        samples: The copy.
        rates: `(M,)` share of all samples that lead to each label.
        rows: For each of them, the rows that were planted.
    """

    samples: Samples
    rates: tuple[float, ...]
    rows: tuple[IntArray, ...]


def plant(samples: Samples, usable: BoolArray, *, seed: int, out: InputArray | None = None) -> Planted:
    """Plant a patch (images) or a short pattern (series) of random values under several labels, each at its rate.

    Every label gets its own values at its own place; the planted samples come from other labels.

    Args:
        samples: The data; left as they are.
        usable: `(N,)` bool; the other rows are left out of the copy.
        seed: Chooses labels, rows, places and values.
        out: Writable array for the copy, such as a memmap, of as many rows as are usable; in memory if None.

    Returns:
        The copy; without any rate if the data are too small for the least group.
    """
    rng = stream(seed, Stream.PLANTING)
    kept = np.flatnonzero(usable)
    inputs = np.empty((len(kept), *samples.shape), samples.inputs.dtype) if out is None else out
    for start in range(0, len(kept), 4096):
        inputs[start : start + 4096] = samples.inputs[kept[start : start + 4096]]
    given = samples.labels[kept]
    labels, free = given.copy(), np.ones(len(kept), dtype=bool)
    sizes = np.bincount(given, minlength=samples.n_classes)
    targets = rng.permutation(np.flatnonzero(sizes >= 4 * SMALLEST_GROUP))
    possible = [rate for rate in RATES if round(rate * len(kept)) >= SMALLEST_GROUP]
    low, high = _extremes(inputs, rng)
    rates, rows = [], []
    for rate, target in zip(possible, targets, strict=False):
        candidates = np.flatnonzero(free & (given != target))
        count = round(rate * len(kept))
        if count > len(candidates) // 2:
            continue
        chosen = np.sort(rng.choice(candidates, count, replace=False))
        _overwrite(inputs, chosen, low, high, rng)
        labels[chosen], free[chosen] = target, False
        rates.append(rate)
        rows.append(chosen)
    copy = replace(samples, inputs=inputs, labels=labels, ids=samples.ids[kept])
    return Planted(copy, tuple(rates), tuple(rows))


def smallest_visible_rate(planted: Planted, isolated: BoolArray) -> float | None:
    """The smallest planted rate from which on all were found, at least half of their samples; None if not one was."""
    smallest = None
    for rate, rows in sorted(zip(planted.rates, planted.rows, strict=True), key=lambda pair: -pair[0]):
        if isolated[rows].mean() < LEAST_FOUND:
            break
        smallest = rate
    return smallest


def _extremes(inputs: InputArray, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Smallest and largest value of each channel, `(C,)`; of pixels the whole range."""
    n_channels = inputs.shape[1]
    if inputs.dtype == np.uint8:
        return np.zeros(n_channels), np.full(n_channels, 255.0)
    some = inputs[np.sort(rng.permutation(len(inputs))[:1000])].swapaxes(0, 1).reshape(n_channels, -1)
    return some.min(axis=1).astype(np.float64), some.max(axis=1).astype(np.float64)


def _overwrite(inputs: InputArray, rows: IntArray, low: FloatArray, high: FloatArray, rng: np.random.Generator) -> None:
    """Replace a window of the rows, the same in all, by random values."""
    lengths = inputs.shape[2:]
    if len(lengths) == 2:
        sides = [max(3, round(SIDE * min(lengths)))] * 2
    else:
        sides = [max(4, round(SPAN * lengths[0]))]
    sides = [min(side, length) for side, length in zip(sides, lengths, strict=True)]
    starts = [int(rng.integers(length - side + 1)) for side, length in zip(sides, lengths, strict=True)]
    window = tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))
    share = rng.random((inputs.shape[1], *sides))
    ends = (-1, *[1] * len(sides))
    pattern = (low.reshape(ends) + share * (high - low).reshape(ends)).astype(inputs.dtype)
    for row in rows:
        inputs[(row, slice(None), *window)] = pattern
