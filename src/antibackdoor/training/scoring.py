"""Scores of samples that need their inputs and draw at random, such as scores under a perturbation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from antibackdoor.data.samples import IntArray
from antibackdoor.data.streams import Stream, number
from antibackdoor.training.session import Feed, Session

Score = Callable[[Tensor, torch.Generator], Tensor]
"""Inputs `(B, *shape)` and randomness on the CPU to scores `(B,)`."""


def score_rows(
    session: Session,
    feed: Feed,
    score: Score,
    rows: IntArray | None = None,
    *,
    seed: tuple[int, Stream, *tuple[int, ...]],
    title: str,
) -> NDArray[np.float32]:
    """The score of each row, computed in batches without gradients.

    Args:
        session: Device, precision, processes.
        feed: The data, without augmentation.
        score: What to compute.
        rows: `(M,)`; all by default.
        seed: Seed, stream and position; each batch draws from a place of its own in it.
        title: Name in the progress bar.

    Returns:
        `(M,)` float32, alike in all processes.
    """
    numbered = feed._replace(labels=torch.arange(len(feed.labels)))

    def reduce(inputs: Tensor, own: Tensor) -> Tensor:
        if not len(own):
            return inputs.new_zeros(0)
        return score(inputs, torch.Generator().manual_seed(number(*seed, int(own[0]))))

    return session.evaluate(numbered, lambda inputs: inputs, reduce, rows, title=title)
