"""Normalization inside the model, so that triggers, stored images and predictions all see [0, 1]."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from antibackdoor.data.samples import FloatArray, Samples
from antibackdoor.errors import DataError, ModelError


class Normalize(nn.Module):
    """Subtracts a mean and divides by a standard deviation, channel by channel.

    It is the first layer of every model, so that triggers, patches and attacks always see images in [0, 1].

    Args:
        mean: `(C,)`, in the units of the inputs (images: [0, 1]).
        std: `(C,)`, same units; a constant channel (0, or within float32 rounding of its mean) counts as 1.
    """

    mean: Tensor  # (C,)
    std: Tensor  # (C,)

    def __init__(self, mean: FloatArray | Sequence[float], std: FloatArray | Sequence[float]) -> None:
        super().__init__()
        center, spread = np.asarray(mean, np.float64), np.asarray(std, np.float64)
        spread = np.where(spread <= 1e-7 * np.abs(center), 1.0, spread)
        self.register_buffer("mean", torch.as_tensor(center, dtype=torch.float32))
        self.register_buffer("std", torch.as_tensor(spread, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `(B, C, H, W)` or `(B, C, T)`; same shape."""
        if x.shape[1] != len(self.mean):  # one channel would broadcast silently
            raise ModelError(f"inputs have {x.shape[1]} channels, the model was made for {len(self.mean)}")
        shape = (-1, *[1] * (x.ndim - 2))
        return (x - self.mean.view(shape)) / self.std.view(shape)


def normalized(
    network: nn.Module, mean: FloatArray | Sequence[float], std: FloatArray | Sequence[float]
) -> nn.Sequential:
    """`network` behind a `Normalize` layer; its own layers are then named `network.…`."""
    return nn.Sequential(OrderedDict(normalize=Normalize(mean, std), network=network))


def channel_statistics(samples: Samples, *, max_samples: int = 20_000) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation of each channel, `(C,)` float64 each; uint8 images count as [0, 1].

    Reads at most `max_samples` rows, evenly spread, in blocks of about 4 million values, so that a
    memory-mapped set larger than memory is fine. Blocks are merged by the formula of Chan et al. (1979):
    sums of squares would cancel for series with a large offset.

    Raises:
        DataError: If there are no samples, or they hold NaN or infinite values.
    """
    n = len(samples)
    if n == 0:
        raise DataError("there are no samples to take the mean of: check the folder or the filter")
    rows = np.linspace(0, n - 1, min(n, max_samples)).astype(np.int64)
    block = max(1, 2**22 // max(1, int(np.prod(samples.shape))))
    count, mean, squares = 0, np.zeros(samples.shape[0]), np.zeros(samples.shape[0])
    for start in range(0, len(rows), block):
        values = np.moveaxis(samples.inputs[rows[start : start + block]], 1, 0).astype(np.float64)
        values = values.reshape(samples.shape[0], -1)
        if samples.inputs.dtype == np.uint8:
            values /= 255.0
        if not np.isfinite(values).all():
            raise DataError("the inputs hold NaN or infinite values: fill or remove these samples first")
        m, gap = values.shape[1], values.mean(axis=1) - mean
        squares += values.var(axis=1) * m + gap**2 * count * m / (count + m)
        mean += gap * m / (count + m)
        count += m
    return mean, np.sqrt(squares / count)
