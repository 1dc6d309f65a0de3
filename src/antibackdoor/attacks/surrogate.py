"""A small network of the attacker's own, for triggers that are optimized against one."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from antibackdoor.attacks.stamps import Float32Array, white
from antibackdoor.data.samples import InputArray, Samples
from antibackdoor.data.streams import Stream, stream
from antibackdoor.errors import ConfigError

if TYPE_CHECKING:
    from antibackdoor.protocols import Plan

_CHUNK = 32
_LARGEST_CACHE = 2
_SMALLEST_BATCH, _LARGEST_BATCH = 16, 128  # of a training
_cache: OrderedDict[str, Surrogate] = OrderedDict()


class SmallNet(nn.Module):
    """Three convolutions with batch normalization, mean over space or time, and a linear layer.

    Standardizes its inputs, so that triggers are optimized in the units of the data.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__()
        is_image = len(shape) == 3
        self.register_buffer("mean", torch.zeros((shape[0], *[1] * (len(shape) - 1))))
        self.register_buffer("std", torch.ones_like(self.mean))
        convolution: Any = nn.Conv2d if is_image else nn.Conv1d
        normalization: Any = nn.BatchNorm2d if is_image else nn.BatchNorm1d
        layers: list[nn.Module] = []
        width = shape[0]
        for next_width, kernel in zip((32, 64, 128), (3, 3, 3) if is_image else (7, 5, 3), strict=True):
            layers += [convolution(width, next_width, kernel, padding="same", bias=False)]
            layers += [normalization(next_width), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if is_image and next_width < 128 else []
            width = next_width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, n_classes)

    def features(self, inputs: Tensor) -> Tensor:
        """Penultimate features `(B, 128)` of inputs `(B, *shape)`."""
        hidden: Tensor = self.body((inputs - self.mean) / self.std)
        return hidden.flatten(2).mean(dim=2)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `(B, K)`."""
        # A sum in place of a matrix product, whose rounding depends on the row in the batch.
        return (self.features(inputs)[:, None] * self.head.weight).sum(dim=2) + self.head.bias


@dataclass(frozen=True, eq=False)
class Surrogate:
    """A trained `SmallNet` as plain arrays, so that it can be part of a saved trigger.

    Attributes:
        weights: Parameters and buffers in the order of the network's state.
        shape: Shape of one sample.
        n_classes: K.
    """

    weights: tuple[Float32Array, ...]
    shape: tuple[int, ...]
    n_classes: int

    def network(self) -> SmallNet:
        """The network in evaluation mode, without gradients for its weights."""
        network = SmallNet(self.shape, self.n_classes)
        load_weights(network, self.weights)
        return network


def weights_of(network: nn.Module) -> tuple[Float32Array, ...]:
    """Parameters and buffers of a network as arrays."""
    return tuple(value.detach().numpy().copy() for value in _state(network).values())


def load_weights(network: nn.Module, weights: tuple[Float32Array, ...]) -> None:
    """Put arrays from `weights_of` back, and freeze the network in evaluation mode."""
    state = dict(zip(_state(network), (torch.from_numpy(np.array(value)) for value in weights), strict=True))
    network.load_state_dict(state, strict=False)
    network.eval().requires_grad_(False)


def single_target(plan: Plan, attack: str) -> int:
    """The one label that the plan aims at; raises `ConfigError` if there are several."""
    label = getattr(plan, "target_label", None)
    if not isinstance(label, int):
        raise ConfigError(f"{attack} needs one target label, which the plan {type(plan).__name__} lacks")
    return label


def to_tensor(inputs: InputArray) -> Tensor:
    """Raw inputs as float32: images in [0, 1], series as they are."""
    scale = white(inputs) if inputs.ndim == 4 else 1.0
    return torch.from_numpy(np.array(inputs, dtype=np.float32, order="C") / np.float32(scale))


def in_chunks(change: Callable[..., Tensor], inputs: InputArray, *beside: Tensor) -> NDArray[np.float32]:
    """Change raw inputs `(B, *shape)` in chunks of one fixed size, the last filled up with zeros.

    Tensors `(B, ...)` given beside them are cut alike and passed on.

    Convolutions may round differently for different batch sizes, and the sign of a gradient carries that
    into whole gray levels; with one size a sample gives the same bytes in whatever batch it comes.
    """
    tensors = to_tensor(inputs)
    changed = torch.empty_like(tensors)
    for start in range(0, len(tensors), _CHUNK):
        parts = [values[start : start + _CHUNK] for values in (tensors, *beside)]
        filled = [torch.cat([part, part.new_zeros((_CHUNK - len(part), *part.shape[1:]))]) for part in parts]
        changed[start : start + _CHUNK] = change(*filled)[: len(parts[0])].detach()
    return changed.numpy()


def chosen_rows(samples: Samples, limit: int, seed: int) -> NDArray[np.int64]:
    """At most `limit` rows, sorted, for the attacker to work with."""
    order = stream(seed, Stream.SURROGATE_ORDER).permutation(len(samples))
    return np.sort(order[:limit])


def attacker_data(samples: Samples, limit: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs `(M, *shape)` and labels `(M,)` that the attacker works with, at most `limit`."""
    rows = chosen_rows(samples, limit, seed)
    return to_tensor(samples.inputs[rows]), torch.from_numpy(samples.labels[rows].copy())


def poisoned_share(labels: Tensor, plan: Plan) -> Tensor:
    """Positions of the eligible samples among these labels, as many as the plan would poison of them."""
    eligible = np.flatnonzero(plan.eligible(labels.numpy()))
    wanted = round(float(getattr(plan, "rate", 0.1)) * len(labels))
    return torch.from_numpy(eligible[: max(1, wanted)])


def fit(
    network: SmallNet,
    inputs: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    seed: int,
    learning_rate: float = 3e-3,
    robust_epsilon: float = 0.0,
) -> None:
    """Train a network by Adam and cross entropy; it ends frozen in evaluation mode.

    A batch has a tenth of the samples, but at least 16 and at most 128, so that few samples make enough steps.

    With `robust_epsilon` > 0 every batch is first moved by one random-start sign step within that distance
    (fast adversarial training, Wong et al., 2020), which suits images in [0, 1] only.
    """
    generator = torch.Generator().manual_seed(seed)
    network.train().requires_grad_(True)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    size = min(max(len(inputs) // 10, _SMALLEST_BATCH), _LARGEST_BATCH)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(inputs), generator=generator), size):
            batch = inputs[rows]
            if robust_epsilon > 0:
                start = (torch.rand(batch.shape, generator=generator) * 2 - 1) * robust_epsilon
                moved = (batch + start).clamp(0, 1).requires_grad_(True)
                (slope,) = torch.autograd.grad(F.cross_entropy(network(moved), labels[rows]), moved)
                step = start + 1.25 * robust_epsilon * slope.sign()
                batch = (batch + step.clamp(-robust_epsilon, robust_epsilon)).clamp(0, 1)
            loss = F.cross_entropy(network(batch), labels[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    network.eval().requires_grad_(False)


def train_surrogate(samples: Samples, *, seed: int, epochs: int, limit: int, robust_epsilon: float = 0.0) -> Surrogate:
    """Train a surrogate on at most `limit` samples; the last two are kept, by the hash of what decides them.

    Raises:
        ConfigError: If epochs or limit are below 1.
    """
    if epochs < 1 or limit < 1:
        raise ConfigError(f"the surrogate needs at least 1 epoch and 1 sample, not {epochs} and {limit}")
    rows = chosen_rows(samples, limit, seed)
    raw, labels = np.array(samples.inputs[rows]), samples.labels[rows]
    digest = hashlib.blake2b(raw.tobytes() + labels.tobytes())
    digest.update(repr((raw.shape, str(raw.dtype), samples.n_classes, seed, epochs, robust_epsilon)).encode())
    key = digest.hexdigest()
    if key not in _cache:
        inputs = to_tensor(raw)
        network = new_network(samples, inputs, seed)
        fit(
            network,
            inputs,
            torch.from_numpy(labels),
            epochs=epochs,
            seed=seed,
            robust_epsilon=robust_epsilon,
        )
        _cache[key] = Surrogate(weights_of(network), samples.shape, samples.n_classes)
    _cache.move_to_end(key)
    while len(_cache) > _LARGEST_CACHE:
        _cache.popitem(last=False)
    return _cache[key]


def new_network(samples: Samples, inputs: Tensor, seed: int) -> SmallNet:
    """An untrained network that standardizes by the statistics of the inputs `(M, *shape)`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SmallNet(samples.shape, samples.n_classes)
    others = [0, *range(2, inputs.ndim)]
    network.mean.copy_(inputs.mean(dim=others).reshape(network.mean.shape))
    network.std.copy_(inputs.std(dim=others).clamp_min(1e-3).reshape(network.std.shape))
    return network


def _state(network: nn.Module) -> dict[str, Tensor]:
    # The count of batches is an integer that an evaluated network never reads.
    return {name: value for name, value in network.state_dict().items() if "num_batches" not in name}
