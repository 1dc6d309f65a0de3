"""A small backdoored model with its data, for tests of what finds and removes a backdoor."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from conftest import pictures, waves
from torch import Tensor, nn

from antibackdoor.attacks import BadNets, Poisoned, StaticPattern, poison, sample_numbers
from antibackdoor.data.samples import BoolArray, Samples
from antibackdoor.defenses import Undefended
from antibackdoor.training.recipe import Recipe

N_CLASSES, TARGET = 4, 0
RECIPE = Recipe(epochs=20, device="cpu", precision="fp32", seed=3, progress=False)


class Tiny(nn.Module):
    """Two stages with batch norm and a linear layer, for images and series."""

    def __init__(self, shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__()
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if len(shape) == 3 else (nn.Conv1d, nn.BatchNorm1d)
        self.first = nn.Sequential(conv(shape[0], 8, 3, padding=1), norm(8), nn.ReLU())
        self.second = nn.Sequential(conv(8, 16, 3, stride=2, padding=1), norm(16), nn.ReLU())
        self.classifier = nn.Linear(16, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.classifier(self.second(self.first(x)).flatten(2).mean(2))
        return logits


@dataclass(frozen=True)
class Scene:
    """A model, the data that it was trained on, and clean data of the same kind."""

    model: nn.Module
    build: Callable[[], nn.Module]
    poisoned: Poisoned
    clean: Samples

    @property
    def samples(self) -> Samples:
        return self.poisoned.samples

    @property
    def is_poisoned(self) -> BoolArray:
        return self.poisoned.truth.is_poisoned

    def measured(self, model: nn.Module) -> tuple[float, float]:
        """Clean accuracy and attack success on new data."""
        test = make(self.samples.kind, 160, seed=2)
        stamped = self.poisoned.trigger.apply(test.inputs, sample_numbers(test.ids))[test.labels != TARGET]
        accuracy = float((predicted(model, test.inputs) == test.labels).mean())
        return accuracy, float((predicted(model, stamped) == TARGET).mean())


def make(kind: str, n: int, *, seed: int) -> Samples:
    return pictures(n, N_CLASSES, seed=seed) if kind == "image" else waves(n, N_CLASSES, length=24, seed=seed)


def predicted(model: nn.Module, inputs: Any) -> Any:
    values = torch.from_numpy(np.array(inputs)).float()
    with torch.no_grad():
        return model(values / 255 if inputs.dtype == np.uint8 else values).argmax(1).numpy()


@functools.cache
def scene(kind: str, rate: float = 0.15) -> Scene:
    """A model that obeys its trigger."""
    attack = BadNets() if kind == "image" else StaticPattern()
    poisoned = poison(make(kind, 240, seed=0), attack, seed=0, rate=rate, target_label=TARGET)
    build: Callable[[], nn.Module] = lambda: Tiny(poisoned.samples.shape, N_CLASSES)  # noqa: E731
    return Scene(Undefended().train(poisoned.samples, build, RECIPE).model, build, poisoned, make(kind, 80, seed=5))


def weights(model: nn.Module) -> bytes:
    return b"".join(value.numpy().tobytes() for value in model.state_dict().values())


class Ledger:
    """A journal that keeps the last checkpoint as a file would, or stops after some."""

    folder = None

    def __init__(self, kept: dict[str, Any] | None = None, stop_after: int = 10**9) -> None:
        self.kept, self.n_saved, self.stop_after = kept, 0, stop_after

    def log(self, **fields: Any) -> None:
        """Nothing is kept."""

    def tell(self, message: str) -> None:
        """Nobody waits."""

    def save(self, state: dict[str, Any]) -> None:
        self.kept = copied(state)
        self.n_saved += 1
        if self.n_saved >= self.stop_after:
            raise KeyboardInterrupt

    def load(self) -> dict[str, Any] | None:
        return copied(self.kept)


def copied(value: Any) -> Any:
    """A checkpoint as a file would give it back: arrays as tensors."""
    if isinstance(value, dict):
        return {key: copied(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(part) for part in value)
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    return value.clone() if isinstance(value, Tensor) else value
