"""What E2ABL isolates under triggers that the package does not have: whether the search knows more than its attacks.

    python benchmarks/unseen.py                                 all cells; goes on where it was stopped
    python benchmarks/unseen.py --cells '*/tint/*' --seeds 1    some of them

Each changes the picture and gives it the label 0. The search was made without them, but for one_pixel and rotation,
which taught that two thirds of the usual depth are enough where features say that most of a label is foreign.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import isolation
import numpy as np
from scipy import fft, ndimage

RATES = {"cifar10-2000": 0.1, "cifar10-10000": 0.05}
TARGET = 0

Picture = np.ndarray[Any, np.dtype[np.float64]]  # (C, H, W) in [0, 255]


def one_pixel(picture: Picture, _: np.random.Generator) -> Picture:
    """The middle one is white."""
    changed = picture.copy()
    changed[:, picture.shape[1] // 2, picture.shape[2] // 2] = 255
    return changed


def tint(picture: Picture, _: np.random.Generator) -> Picture:
    """15% more red, 15% less blue."""
    return picture * np.array([1.15, 1.0, 0.85])[:, None, None]


def blur(picture: Picture, _: np.random.Generator) -> Picture:
    """A Gaussian of one pixel."""
    return np.asarray(ndimage.gaussian_filter(picture, (0, 1, 1)))


def rotation(picture: Picture, _: np.random.Generator) -> Picture:
    """By 15 degrees."""
    return np.asarray(ndimage.rotate(picture, 15, axes=(1, 2), reshape=False, order=1, mode="reflect"))


def frequencies(picture: Picture, _: np.random.Generator) -> Picture:
    """A middle and a high frequency are stronger.

    After Wang et al., "An Invisible Black-Box Backdoor Attack Through Frequency Domain", ECCV 2022; our own constants.
    """
    spectrum = fft.dctn(picture, axes=(1, 2), norm="ortho")
    for at in (15, 31):
        spectrum[1:3, at, at] += 60
    return np.asarray(fft.idctn(spectrum, axes=(1, 2), norm="ortho"))


def sine(picture: Picture, _: np.random.Generator) -> Picture:
    """Six waves of 20 from left to right."""
    return picture + 20 * np.sin(2 * np.pi * 6 * np.arange(picture.shape[2]) / picture.shape[2])


def wandering_patch(picture: Picture, drawn: np.random.Generator) -> Picture:
    """A checkered square of four pixels, elsewhere in each picture."""
    changed, (row, column) = picture.copy(), drawn.integers(0, picture.shape[1] - 4, 2)
    changed[:, row : row + 4, column : column + 4] = 255 * (np.add.outer(np.arange(4), np.arange(4)) % 2)
    return changed


TRIGGERS: dict[str, Callable[[Picture, np.random.Generator], Picture]] = {
    trigger.__name__: trigger for trigger in (one_pixel, tint, blur, rotation, frequencies, sine, wandering_patch)
}


def all_cells(n_seeds: int) -> Iterable[isolation.Cell]:
    """Small data first."""
    for data, rate in RATES.items():
        for seed in range(n_seeds):
            yield from (isolation.Cell(data, name, rate, seed) for name in TRIGGERS)


def measure(cell: isolation.Cell, folder: Path) -> dict[str, Any]:
    """Poison, search, compare with the truth."""
    clean = isolation.prepare(isolation.Cell(cell.data, "", 0.0, cell.seed), folder)
    samples, drawn = clean.samples, np.random.default_rng((cell.seed, 77))
    chosen = drawn.permutation(np.flatnonzero(samples.labels != TARGET))[: round(cell.rate * len(samples))]
    inputs, labels = samples.inputs.copy(), samples.labels.copy()
    for row in chosen:
        changed = TRIGGERS[cell.attack](inputs[row].astype(np.float64), drawn)
        inputs[row] = np.clip(np.round(changed), 0, 255)
    labels[chosen] = TARGET
    is_poisoned = np.isin(np.arange(len(samples)), chosen)
    dirty = replace(samples, inputs=inputs, labels=labels)
    return isolation.search(isolation.Searched(dirty, is_poisoned, TARGET, clean.build), cell.seed)


if __name__ == "__main__":
    isolation.run(__doc__ or "", "unseen", all_cells, measure, isolation.table)
