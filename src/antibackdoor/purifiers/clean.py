"""The clean samples that a purifier is given: checked, divided, and used to measure a model."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from antibackdoor.data.samples import IntArray, Samples
from antibackdoor.data.streams import Stream, stream
from antibackdoor.errors import ConfigError, DataError, ModelError
from antibackdoor.models.hooks import evaluation_mode
from antibackdoor.protocols import Given, check_given
from antibackdoor.training.session import Feed, Session

FEWEST = 2  # batch statistics need two samples


@dataclass(frozen=True)
class PurifiedFacts:
    """What a purifier saw of the clean samples.

    Attributes:
        n_clean: Clean samples that were given.
        accuracy_before: Share of them that the given model classifies correctly, in [0, 1].
        accuracy_after: The same for the purified model; it was trained on them, so this is no estimate for new data.
    """

    n_clean: int
    accuracy_before: float
    accuracy_after: float


def clean_samples(method: Any, model: nn.Module, given: Given | None) -> Samples:
    """The clean samples, once they are known to be there and to fit the model.

    Raises:
        ConfigError: If the method misses something, or was given something that it would ignore.
        DataError: If there are fewer than two samples, or their classes are not those of the model.
        ModelError: If the model does not take such samples.
    """
    clean = check_given(method, given).clean
    assert clean is not None
    if len(clean) < FEWEST:
        raise DataError(f"too few clean samples ({len(clean)}): give at least {FEWEST}, preferably 5% of the data")
    try:
        with torch.no_grad(), evaluation_mode(model):
            logits = model(torch.zeros(FEWEST, *clean.shape))
    except Exception as error:  # the user's network may raise anything
        cause = " ".join(str(error).split())
        raise ModelError(f"the model fails on clean samples of shape {clean.shape}: {cause}") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != FEWEST:
        raise ModelError(f"the model must return logits (B, K) for clean samples of shape {clean.shape}")
    if logits.shape[1] != clean.n_classes:
        raise DataError(
            f"the model has {logits.shape[1]} classes, the clean samples have {clean.n_classes}: give clean "
            "samples of the same classes in the same order"
        )
    return clean


def working_copy(model: nn.Module) -> nn.Module:
    """A copy all of whose parameters can be trained."""
    return deepcopy(model).requires_grad_(True)


def hold_back(samples: Samples, share: float, *, seed: int) -> tuple[IntArray, IntArray]:
    """Rows to train on and rows to measure on, both ascending: a share of each class, at least one if it has two.

    Args:
        samples: The clean samples.
        share: In [0, 1); 0 holds nothing back.
        seed: Decides which.

    Raises:
        ConfigError: If a share is wanted, but no class has two samples.
    """
    held = np.zeros(len(samples), dtype=bool)
    rng = stream(seed, Stream.HELD_BACK)
    for label in range(samples.n_classes):
        rows = rng.permutation(np.flatnonzero(samples.labels == label))
        if share > 0 and len(rows) > 1:
            held[rows[: int(np.clip(round(share * len(rows)), 1, len(rows) - 1))]] = True
    if share > 0 and not held.any():
        raise ConfigError(f"held_out is {share}, but no class has two clean samples: give more, or held_out 0")
    return np.flatnonzero(~held).astype(np.int64), np.flatnonzero(held).astype(np.int64)


def accuracy(
    session: Session,
    feed: Feed,
    model: nn.Module,
    rows: IntArray | None = None,
    *,
    forward: Callable[[Tensor], Tensor] | None = None,
) -> float:
    """Share of samples that a model classifies correctly, in eval mode and without augmentation.

    Args:
        session: Device, precision, processes.
        feed: The data.
        model: On the session's device; its mode is left as it was.
        rows: `(M,)` samples to look at; all by default.
        forward: Inputs to logits, in place of the model's own way.
    """
    with evaluation_mode(model):
        correct = session.evaluate(
            feed._replace(change=None),
            forward or model,
            lambda logits, labels: (logits.argmax(1) == labels).float(),
            rows,
            title="measuring accuracy",
        )
    return float(correct.mean()) if len(correct) else float("nan")
