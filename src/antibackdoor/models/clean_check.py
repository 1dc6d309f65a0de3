"""What clean data say about a stranger's network: the inputs it expects, its order of classes, whether it works."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom
from torch import Tensor, nn

from antibackdoor.data.samples import FloatArray, IntArray, Samples
from antibackdoor.errors import DataError, ModelError, spelled_out
from antibackdoor.models.hooks import evaluation_mode, hooked
from antibackdoor.models.normalization import Normalize

__all__ = [
    "NORMALIZATIONS",
    "NormalizationFit",
    "best_normalization",
    "has_learned_nothing",
    "is_near_chance",
    "match_classes",
    "predictions",
    "reorder_classes",
]

LEVEL = 0.001  # of the tests below, as in the search
BATCH = 256  # rows at a time; only speed and memory depend on it

# The first is what NAD, ABL and E2ABL feed. "cifar10" has the deviations of all pixels, "cifar10-images" the mean
# deviation within an image, which much public code has in their place.
NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "none": ((0.0,), (1.0,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar10-images": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5,), (0.5,)),
}


@dataclass(frozen=True, eq=False)
class NormalizationFit:
    """The normalization with which a network does best.

    Attributes:
        name: Its name in the table.
        mean: `(C,)`, for `models.normalization.normalized`.
        std: `(C,)`.
        accuracy: Its clean accuracy in [0, 1], under the best matching of classes.
        accuracies: The same of every one that was tried.
    """

    name: str
    mean: FloatArray
    std: FloatArray
    accuracy: float
    accuracies: dict[str, float]


def best_normalization(
    network: nn.Module,
    samples: Samples,
    candidates: Mapping[str, tuple[Sequence[float], Sequence[float]]] = NORMALIZATIONS,
) -> NormalizationFit:
    """The normalization of the inputs with which a network classifies clean samples best.

    Each is tried; of equals the first wins. The accuracy is that under the best one-to-one matching of outputs
    and classes, so that a network with another order of classes finds its normalization, too.

    Args:
        network: Maps normalized `(B, *shape)` to logits `(B, K)`. Of a network made by
            `models.normalization.normalized` all but the `Normalize` layer is tried.
        samples: Clean samples; a few hundred suffice.
        candidates: Name to mean and standard deviation, each of one value or one a channel, for inputs in
            [0, 1] (or series as they are). Those for another number of channels are passed over.

    Raises:
        DataError: If there are no samples.
        ModelError: If no candidate is for these channels, or the network fails.
    """
    has_layer = isinstance(network, nn.Sequential) and isinstance(next(network.children(), None), Normalize)
    inner = nn.Sequential(*list(network.children())[1:]) if has_layer else network
    channels = samples.shape[0]
    fitting = {name: pair for name, pair in candidates.items() if {len(pair[0]), len(pair[1])} <= {1, channels}}
    if not fitting:
        raise ModelError(f"no candidate has {channels} channels; give means and deviations of 1 or {channels} values")
    accuracies: dict[str, float] = {}
    for name, (mean, std) in fitting.items():
        layer = Normalize(_per_channel(mean, channels), _per_channel(std, channels)).to(_device(network))
        predicted = predictions(nn.Sequential(layer, inner), samples)
        order = _assigned(predicted, samples.labels, samples.n_classes)
        accuracies[name] = float((predicted == order[samples.labels]).mean())
    best = max(accuracies, key=lambda name: accuracies[name])
    mean, std = fitting[best]
    return NormalizationFit(
        best, _per_channel(mean, channels), _per_channel(std, channels), accuracies[best], accuracies
    )


def match_classes(network: nn.Module, samples: Samples, *, level: float = LEVEL) -> IntArray:
    """Which output of a network stands for which class of the data, found on clean samples.

    The matching that gets most right, each class counting the same (Kuhn's Hungarian method). The data's own
    order is kept unless another is significantly better. Otherwise the matching found on one half of the samples
    must be better than chance on the other, and no two classes may be exchanged without significant loss.

    Args:
        network: Maps `(B, *shape)`, images in [0, 1], to logits `(B, K)`.
        samples: Clean samples of the K classes.
        level: Of each one-sided sign or binomial test.

    Returns:
        `(K,)`: the output for class 0, for class 1, …; `0..K-1` if the orders agree.

    Raises:
        DataError: If there are no samples.
        ModelError: If the network is near chance under every matching, or the matching is ambiguous.

    Reference: Kuhn, "The Hungarian Method for the Assignment Problem", 1955.
    """
    labels, n_classes = samples.labels, samples.n_classes
    predicted = predictions(network, samples)
    order = _assigned(predicted, labels, n_classes)
    largest = float(np.bincount(labels).max()) / len(labels)
    right, given = predicted == order[labels], predicted == labels
    gains, losses = int((right & ~given).sum()), int((given & ~right).sum())
    works = not is_near_chance(float(given.mean()), len(labels), n_classes, largest_class=largest, level=level)
    if works and float(binom.sf(gains - 1, gains + losses, 0.5)) >= level:
        return np.arange(n_classes, dtype=np.int64)

    across = _accuracy_across(predicted, labels, n_classes)
    if is_near_chance(across, len(labels), n_classes, largest_class=largest, level=level):
        raise ModelError(
            f"the model is near chance ({across:.1%} of {len(labels)} clean samples) in every order of its classes: "
            "check the backbone, the normalization and the data"
        )
    doubtful = _exchangeable(predicted, labels, order, level)
    if doubtful:
        named = [f"{samples.class_names[a]} and {samples.class_names[b]}" for a, b in doubtful[:5]]
        pairs = spelled_out(", ".join(named))
        raise ModelError(
            f"the model's order of classes differs from the data's, and {len(doubtful)} pairs cannot be told apart "
            f"({pairs}): give more clean samples of them, or a model in the data's order"
        )
    return order


def is_near_chance(
    accuracy: float, n: int, n_classes: int, *, largest_class: float = 0.0, level: float = LEVEL
) -> bool:
    """Whether an accuracy could be that of a network that has learned nothing.

    A one-sided binomial test against guessing: 1/K, or the share of the largest class if that is more.

    Args:
        accuracy: Share of samples that are classified right, in [0, 1].
        n: Number of samples.
        n_classes: K.
        largest_class: Share of the most frequent class, in [0, 1]; always naming it gets as many right.
        level: p-values from here on count as near chance.

    >>> is_near_chance(0.13, 500, 10), is_near_chance(0.17, 500, 10)
    (True, False)
    """
    chance = max(1 / n_classes, largest_class)
    return n == 0 or float(binom.sf(round(accuracy * n) - 1, n, chance)) >= level


def has_learned_nothing(
    accuracy: float, n: int, n_classes: int, *, largest_class: float = 0.0, level: float = LEVEL
) -> bool:
    """Whether so many samples suffice to say that a network is near chance.

    It is not significantly better than guessing (`is_near_chance`), and significantly worse than half way from there
    to 1. A few samples cannot tell, and nothing is said of them.

    Args:
        accuracy: As in `is_near_chance`; also the arguments that follow.

    >>> has_learned_nothing(0.13, 500, 10), has_learned_nothing(0.17, 500, 10), has_learned_nothing(0.5, 4, 10)
    (True, False, False)
    """
    half_way = (1 + max(1 / n_classes, largest_class)) / 2
    is_bad = float(binom.cdf(round(accuracy * n), n, half_way)) < level
    return is_bad and is_near_chance(accuracy, n, n_classes, largest_class=largest_class, level=level)


def reorder_classes(network: nn.Module, order: IntArray, example: Tensor) -> None:
    """Exchange the outputs of a network, in place, so that output k becomes what output `order[k]` was.

    The rows of the last linear layer are exchanged; its output must be the logits.

    Args:
        network: Maps `(B, *shape)` to logits `(B, K)`.
        order: `(K,)` from `match_classes`.
        example: `(B, *shape)`, on the network's device.

    Raises:
        ModelError: If no linear layer gives the logits as they are, or it shares its weights.
    """
    heard: list[tuple[nn.Linear, Tensor]] = []

    def record(module: nn.Module, _inputs: object, output: Tensor) -> None:
        if isinstance(module, nn.Linear):
            heard.append((module, output))

    with ExitStack() as stack:
        for module in network.modules():
            if isinstance(module, nn.Linear):
                stack.enter_context(hooked(module, record))
        logits = _logits(network, example)
    giving = [module for module, output in heard if output.shape == logits.shape and torch.equal(output, logits)]
    if len(giving) != 1 or sum(value is giving[0].weight for value in _every_parameter(network)) != 1:
        raise ModelError(
            "the network's logits are not the output of one linear layer of its own, so its classes cannot be put into "
            "another order: name the classes in the model's order"
        )
    rows = torch.as_tensor(order, device=giving[0].weight.device)
    with torch.no_grad():
        for value in (giving[0].weight, giving[0].bias):
            if value is not None:
                value.copy_(value[rows].clone())


def predictions(network: nn.Module, samples: Samples) -> IntArray:
    """The output with the largest logit for each sample, `(N,)` in `0..K-1`.

    Args:
        network: Maps `(B, *shape)`, images in [0, 1], to logits `(B, K)`; K as in the samples.
        samples: N of them.

    Raises:
        DataError: If there are no samples.
        ModelError: If the network fails or gives logits of another shape.
    """
    if len(samples) == 0:
        raise DataError("there are no clean samples to try the model on; give a few hundred")
    device = _device(network)
    parts = []
    for start in range(0, len(samples), BATCH):
        inputs = np.ascontiguousarray(samples.inputs[start : start + BATCH], dtype=np.float32)
        if samples.inputs.dtype == np.uint8:
            inputs /= 255
        logits = _logits(network, torch.from_numpy(inputs).to(device))
        if logits.shape != (len(inputs), samples.n_classes):
            raise ModelError(
                f"the model gives outputs of shape {tuple(logits.shape)} for {len(inputs)} samples of "
                f"{samples.n_classes} classes; it was made for other data"
            )
        parts.append(logits.argmax(1).cpu().numpy())
    return np.concatenate(parts).astype(np.int64)


def _logits(network: nn.Module, inputs: Tensor) -> Tensor:
    try:
        with evaluation_mode(network), torch.no_grad():
            logits = network(inputs)
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        raise ModelError(f"the model fails on inputs of shape {tuple(inputs.shape)}: {reason}") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise ModelError("the model must return logits (B, K)")
    return logits


def _per_channel(values: Sequence[float], channels: int) -> FloatArray:
    return np.broadcast_to(np.asarray(values, np.float64), channels).copy()


def _device(network: nn.Module) -> torch.device:
    return next((value.device for value in chain(network.parameters(), network.buffers())), torch.device("cpu"))


def _every_parameter(network: nn.Module) -> Iterator[nn.Parameter]:
    """Each as often as the network names it."""
    for _, value in network.named_parameters(remove_duplicate=False):
        yield value


def _confusion(predicted: IntArray, labels: IntArray, n_classes: int) -> IntArray:
    """`(K, K)` counts: true class, predicted output."""
    counts = np.bincount(labels * n_classes + predicted, minlength=n_classes**2)
    return counts.reshape(n_classes, n_classes).astype(np.int64)


def _assigned(predicted: IntArray, labels: IntArray, n_classes: int) -> IntArray:
    """`(K,)` the output for each class; of equally good matchings the one nearest to `0..K-1`."""
    counts = _confusion(predicted, labels, n_classes)
    recall = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    nudge = 1e-9 * np.eye(n_classes)  # below any difference of recalls: they are fractions of counts
    return np.asarray(linear_sum_assignment(recall + nudge, maximize=True)[1], dtype=np.int64)


def _accuracy_across(predicted: IntArray, labels: IntArray, n_classes: int) -> float:
    """Accuracy where each half of every class is judged by the matching found on the other half."""
    rank = np.zeros(len(labels), dtype=np.int64)
    for label in range(n_classes):
        rows = np.flatnonzero(labels == label)
        rank[rows] = np.arange(len(rows))
    right = 0
    for half in (rank % 2 == 0, rank % 2 == 1):
        order = _assigned(predicted[~half], labels[~half], n_classes)
        right += int((predicted[half] == order[labels[half]]).sum())
    return right / len(labels)


def _exchangeable(predicted: IntArray, labels: IntArray, order: IntArray, level: float) -> list[tuple[int, int]]:
    """Pairs of classes, one of them not in its own place, that could be exchanged without significant loss."""
    n_classes = len(order)
    matched = _confusion(predicted, labels, n_classes)[:, order]
    right = np.diag(matched)
    kept, lost = right[:, None] + right[None, :], matched + matched.T
    doubtful = binom.sf(kept - 1, kept + lost, 0.5) >= level
    moved = order != np.arange(n_classes)
    pairs = np.argwhere(np.triu(doubtful & (moved[:, None] | moved[None, :]), k=1))
    return [(int(a), int(b)) for a, b in pairs]
