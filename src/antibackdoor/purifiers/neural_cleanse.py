"""Neural Cleanse: the smallest trigger that leads to each label, and the label whose trigger is an outlier.

Reference: Wang et al., "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks", IEEE S&P 2019.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from antibackdoor.data.samples import FloatArray, InputArray, IntArray
from antibackdoor.data.streams import Stream, stream
from antibackdoor.errors import ConfigError
from antibackdoor.training.loop import cross_entropy
from antibackdoor.training.session import Feed, Session

Float32Array = NDArray[np.float32]

# How the penalty on the mask moves in the authors' code: after 5 successes in a row it is doubled, after 5 failures
# divided by 2^1.5. There a success is that of a pass over the data, here of a batch.
IN_A_ROW, UP, DOWN = 5, 2.0, 2.0**1.5
BETAS = (0.5, 0.9)  # of Adam, as there
MAD_TO_DEVIATION = 1.4826  # of a normal distribution


@dataclass(frozen=True, eq=False)
class RecoveredTrigger:
    """A trigger of the form `A(x) = (1 - m) x + m p`.

    Attributes:
        mask: `(1, *places)` float32 in [0, 1]; `places` are `(H, W)` or `(T,)`.
        pattern: `(C, *places)` float32; images in [0, 1].
    """

    mask: Float32Array
    pattern: Float32Array

    def apply(self, inputs: InputArray, ids: IntArray) -> InputArray:
        """Stamp raw inputs `(B, C, *places)`, uint8 or float32."""
        if inputs.shape[1:] != self.pattern.shape:
            raise ConfigError(f"the trigger is for samples of shape {self.pattern.shape}, not {inputs.shape[1:]}")
        if inputs.dtype == np.uint8:
            mixed = (1 - self.mask) * inputs + self.mask * 255 * self.pattern
            return np.rint(mixed).clip(0, 255).astype(np.uint8)
        return ((1 - self.mask) * inputs + self.mask * self.pattern).astype(np.float32)

    def stamped(self, inputs: Tensor) -> Tensor:
        """Stamp float inputs `(B, C, *places)` on any device."""
        mask, pattern = (torch.from_numpy(part).to(inputs) for part in (self.mask, self.pattern))
        return (1 - mask) * inputs + mask * pattern


@dataclass(frozen=True, eq=False)
class Recovered:
    """The smallest trigger of each of K labels.

    Attributes:
        masks: `(K, 1, *places)` float32 in [0, 1].
        patterns: `(K, C, *places)` float32.
        success: `(K,)` share of the samples of other labels that the trigger leads to the label.
        sizes: `(K,)` L1 norm of each mask; the number of places where no mask had the wanted success.
    """

    masks: Float32Array
    patterns: Float32Array
    success: FloatArray
    sizes: FloatArray

    @property
    def anomaly(self) -> FloatArray:
        """`(K,)` how far each size lies below the median, in deviations; see `anomaly_index`."""
        return anomaly_index(self.sizes)

    @property
    def target_label(self) -> int:
        """The label whose trigger is smallest."""
        return int(self.sizes.argmin())

    def trigger(self, label: int) -> RecoveredTrigger:
        """The trigger of a label."""
        return RecoveredTrigger(self.masks[label], self.patterns[label])


def anomaly_index(sizes: FloatArray) -> FloatArray:
    """`(median - size) / (1.4826 MAD)` of sizes `(K,)`: positive for small ones. Above 2 is an outlier in the paper.

    >>> anomaly_index(np.array([2.0, 10.0, 11.0, 12.0, 13.0])).round(2).tolist()
    [6.07, 0.67, 0.0, -0.67, -1.35]
    """
    below = np.median(sizes) - sizes
    deviation = MAD_TO_DEVIATION * np.median(np.abs(below))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below == 0, 0.0, below / deviation)


@dataclass(frozen=True)
class Reversal:
    """How a trigger is recovered.

    Attributes:
        steps: Of Adam, for each label.
        learning_rate: Of Adam.
        penalty: First weight of the L1 norm of the mask.
        success: Share of a batch that must reach the label.
        batch_size: Samples a step.
        seed: Decides where the search starts and what it sees.
    """

    steps: int = 1000
    learning_rate: float = 0.1
    penalty: float = 1e-3
    success: float = 0.99
    batch_size: int = 64
    seed: int = 0


Step = Callable[[int, dict[str, Any]], dict[str, Any]]


def _in_turn(n: int, state: dict[str, Any], step: Step) -> dict[str, Any]:
    for place in range(n):
        state = step(place, state)
    return state


def recover_trigger(
    session: Session,
    feed: Feed,
    model: nn.Module,
    search: Reversal,
    *,
    fold: Callable[[int, dict[str, Any], Step], dict[str, Any]] = _in_turn,
) -> Recovered:
    """The smallest trigger that leads samples of all other labels to a label, for each label.

    Args:
        session: Device and precision.
        feed: Clean samples; images in [0, 1] or raw series.
        model: On the session's device; left as it is.
        search: How to search.
        fold: `(n, state, step)` to the last state, for callers that keep checkpoints.
    """
    frozen = deepcopy(model).requires_grad_(False).eval()
    n, shape = feed.n_classes, tuple(feed.inputs.shape[1:])
    nothing = {
        "masks": np.zeros((n, 1, *shape[1:]), dtype=np.float32),
        "patterns": np.zeros((n, *shape), dtype=np.float32),
        "success": np.zeros(n),
        "sizes": np.zeros(n),
    }

    def label(place: int, state: dict[str, Any]) -> dict[str, Any]:
        trigger, size = smallest_trigger(session, feed, frozen, place, search)
        success = trigger_success(session, feed, frozen, trigger, place)
        found = {"masks": trigger.mask, "patterns": trigger.pattern, "success": success, "sizes": size}
        return {key: _replaced(state[key], place, value) for key, value in found.items()}

    return Recovered(**fold(n, nothing, label))


def _replaced(values: NDArray[Any], place: int, value: Any) -> NDArray[Any]:
    """A copy with another value at a place: a checkpoint may hold the array itself."""
    changed = values.copy()
    changed[place] = value
    return changed


def smallest_trigger(
    session: Session, feed: Feed, model: nn.Module, label: int, search: Reversal
) -> tuple[RecoveredTrigger, float]:
    """The trigger with the smallest mask that still leads to a label, and its size.

    Minimizes `CE(f((1 - m) x + m p), label) + penalty * |m|_1` over `m` and `p`, while the penalty follows the success.
    If no batch reached the label, the last trigger is returned, and the number of places for its size.
    """
    rng, device = stream(search.seed, Stream.REVERSED_TRIGGER, label), session.device
    others = np.flatnonzero(feed.labels.cpu().numpy() != label)
    rows = others if len(others) else np.arange(len(feed.labels))
    low, high = (part.to(device) for part in value_range(feed))
    shape = tuple(feed.inputs.shape[1:])
    start = [rng.standard_normal(size).astype(np.float32) for size in ((1, *shape[1:]), shape)]
    raw_mask, raw_pattern = (torch.from_numpy(part).to(device).requires_grad_(True) for part in start)
    adam = torch.optim.Adam([raw_mask, raw_pattern], lr=search.learning_rate, betas=BETAS)
    smallest, size = None, float(np.prod(shape[1:]))
    penalty, successes, failures = search.penalty, 0, 0
    for _ in range(search.steps):
        mask, pattern = raw_mask.sigmoid(), low + (high - low) * raw_pattern.sigmoid()
        batch = session.batch(feed, rng.choice(rows, min(search.batch_size, len(rows)), replace=False))
        logits = model((1 - mask) * batch.inputs + mask * pattern).float()
        wanted = torch.full_like(batch.rows, label)
        reached = float((logits.argmax(1) == wanted).float().mean())
        if reached >= search.success and float(mask.sum().detach()) < size:
            size = float(mask.sum().detach())
            smallest = mask.detach().clone(), pattern.detach().clone()
        adam.zero_grad()
        torch.autograd.backward(cross_entropy(logits, wanted).mean() + penalty * mask.sum())
        adam.step()
        successes, failures = (successes + 1, 0) if reached >= search.success else (0, failures + 1)
        if successes == IN_A_ROW:
            penalty, successes = penalty * UP, 0
        if failures == IN_A_ROW:
            penalty, failures = penalty / DOWN, 0
    if smallest is None:
        smallest = raw_mask.detach().sigmoid(), low + (high - low) * raw_pattern.detach().sigmoid()
    arrays = [np.ascontiguousarray(part.cpu().numpy(), dtype=np.float32) for part in smallest]
    return RecoveredTrigger(*arrays), size


def value_range(feed: Feed) -> tuple[Tensor, Tensor]:
    """Least and largest value of a pattern, `(C, 1, ...)`: 0 and 1 of images, those of each variable of series."""
    inputs = feed.inputs
    if inputs.ndim == 4:
        return torch.zeros(inputs.shape[1], 1, 1), torch.ones(inputs.shape[1], 1, 1)
    low, high = inputs.amin((0, 2)), inputs.amax((0, 2))
    return low[:, None], high[:, None]


def trigger_success(session: Session, feed: Feed, model: nn.Module, trigger: RecoveredTrigger, label: int) -> float:
    """Share of the samples of other labels that the trigger leads to a label; nan if there are none."""
    rows = np.flatnonzero(feed.labels.cpu().numpy() != label)
    reached = session.evaluate(
        feed, lambda x: model(trigger.stamped(x)), lambda logits, _: (logits.argmax(1) == label).float(), rows
    )
    return float(reached.mean()) if len(reached) else float("nan")
