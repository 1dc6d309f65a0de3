"""Features of a network's layers, and coarse values of the inputs themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from antibackdoor.data.samples import IntArray
from antibackdoor.models.hooks import maps, outputs_and_maps
from antibackdoor.models.splitting import find_attach, find_last, find_stages

__all__ = [
    "Evaluates",
    "coarse",
    "coarse_or_mean",
    "features",
    "last_layer",
    "maps",
    "mean_pooled",
    "middle_layer",
    "n_parts",
    "outputs_and_maps",
    "pooled_parts",
    "stages",
]

WIDEST = 512  # values of a sample in four cells; wider features are averaged over all places

IMAGE_CELLS, IMAGE_PARTS = 8, 2  # an image is averaged over 8 x 8 cells; its parts are quarters
SERIES_CELLS, SERIES_PARTS = 64, 8  # a series is averaged over 64 spans; its parts are eighths


class Evaluates(Protocol):
    """A training session, as far as features need one."""

    device: torch.device

    def evaluate(
        self,
        feed: Any,
        forward: Callable[[Tensor], Tensor],
        reduce: Callable[[Tensor, Tensor], Tensor],
        rows: IntArray | None = None,
        *,
        title: str = "evaluating",
    ) -> NDArray[np.float32]:
        """Apply a network to rows of a feed."""
        ...


def features(
    session: Evaluates,
    feed: Any,
    model: nn.Module,
    layers: Sequence[str],
    rows: IntArray | None = None,
    *,
    pool: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Features of samples at several layers, in one pass.

    Args:
        session: Device, precision, processes.
        feed: The data.
        model: A trained network; it is put into eval mode.
        layers: Names as in `model.named_modules()`.
        rows: `(M,)` samples to look at; all by default.
        pool: A layer's output `(B, C, *spatial)` to `(B, D)`; the mean over all places by default.

    Returns:
        Layer to `(M, D)` float32, D the width of that layer after pooling.
    """
    model.eval()
    reduce = pool or mean_pooled
    widths: list[int] = []

    def forward(inputs: Tensor) -> Tensor:
        parts = [reduce(output.float()) for output in maps(model, inputs, layers).values()]
        widths[:] = [part.shape[1] for part in parts]
        return torch.cat(parts, dim=1)

    values = session.evaluate(feed, forward, lambda kept, _labels: kept, rows, title="features")
    ends = np.cumsum(widths)[:-1]
    return dict(zip(dict.fromkeys(layers), np.split(values, ends, axis=1), strict=True))


def mean_pooled(features: Tensor) -> Tensor:
    """Features averaged over all places, `(B, C)`; flat ones stay as they are."""
    return features.flatten(2).mean(2) if features.ndim > 2 else features


def coarse_or_mean(features: Tensor) -> Tensor:
    """Features of four cells, `(B, 4 C)`, or their mean `(B, C)` if that is wide."""
    cells = coarse(features)
    return cells if cells.shape[1] <= WIDEST else mean_pooled(features)


def middle_layer(model: nn.Module, example: Tensor) -> str:
    """Name of a layer about the middle of the convolutions at which the network can be cut."""
    return find_attach(model, example)


def last_layer(model: nn.Module, example: Tensor) -> str:
    """Name of the last layer at which the network can be cut, if possible one with places to average over."""
    return find_last(model, example)


def stages(model: nn.Module, example: Tensor) -> tuple[str, ...]:
    """Names of the layers that end the stages of a network: residual groups, where there are any."""
    return find_stages(model, example)


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
