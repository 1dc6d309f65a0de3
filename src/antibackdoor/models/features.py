"""Features of a network's layers, and coarse values of the inputs themselves."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

IMAGE_CELLS, IMAGE_PARTS = 8, 2  # an image is averaged over 8 x 8 cells; its parts are quarters
SERIES_CELLS, SERIES_PARTS = 64, 8  # a series is averaged over 64 spans; its parts are eighths


def coarse(features: Tensor) -> Tensor:
    """Features pooled to four cells, `(B, 4 C)`: where in the sample something is found matters a little."""
    if features.ndim == 4:
        return F.adaptive_avg_pool2d(features, 2).flatten(1)
    if features.ndim == 3:
        return F.adaptive_avg_pool1d(features, 4).flatten(1)
    return features.flatten(1)


def n_parts(shape: tuple[int, ...]) -> int:
    """Into how many parts samples of this shape are cut."""
    return IMAGE_PARTS**2 if len(shape) == 3 else SERIES_PARTS


def pooled_parts(inputs: Tensor) -> Tensor:
    """Coarse values of each part, `(B, P * D)` part after part, of images `(B, C, H, W)` or series `(B, C, T)`."""
    n, channels = inputs.shape[:2]
    if inputs.ndim == 4:
        size = IMAGE_CELLS // IMAGE_PARTS
        coarse = F.adaptive_avg_pool2d(inputs, IMAGE_CELLS).reshape(n, channels, IMAGE_PARTS, size, IMAGE_PARTS, size)
        return coarse.permute(0, 2, 4, 1, 3, 5).reshape(n, -1)
    coarse = F.adaptive_avg_pool1d(inputs, SERIES_CELLS).reshape(n, channels, SERIES_PARTS, -1)
    return coarse.permute(0, 2, 1, 3).reshape(n, -1)
