"""Poisoned data whose classes are harder than the trigger, and checks that tests of training defenses share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from backdoored import Ledger, predicted, weights
from torch import Tensor, nn

from antibackdoor.attacks import BadNets, Poisoned, StaticPattern, poison, trigger_test_set
from antibackdoor.data.samples import BoolArray, Samples
from antibackdoor.protocols import Trained
from antibackdoor.training.recipe import Recipe

RECIPE = Recipe(epochs=2, device="cpu", precision="fp32", augment="none", seed=3, progress=False)


class Quick(nn.Module):
    """Two convolutions that know where something is; fast, and of a user's own making."""

    def __init__(self, shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__()
        is_image = len(shape) == 3
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if is_image else (nn.Conv1d, nn.BatchNorm1d)
        pool = nn.AdaptiveAvgPool2d(4) if is_image else nn.AdaptiveAvgPool1d(8)
        self.first = nn.Sequential(conv(shape[0], 12, 3, stride=2, padding=1), norm(12), nn.ReLU())
        self.second = nn.Sequential(conv(12, 24, 3, padding=1), norm(24), nn.ReLU(), pool)
        self.classifier = nn.Linear(24 * (16 if is_image else 8), n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.classifier(self.second(self.first(x)).flatten(1))
        return logits


def noisy(kind: str, n: int, n_classes: int, *, seed: int = 0) -> Samples:
    """Noise with a pattern of the class: blocks of gray, or a sine of any phase."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n, dtype=np.int64) % n_classes
    if kind == "image":
        blocks = np.random.default_rng(77).normal(size=(n_classes, 1, 4, 4)).repeat(4, axis=2).repeat(4, axis=3)
        inputs = (128 + 6 * blocks[labels] + 40 * rng.normal(size=(n, 1, 16, 16))).clip(0, 255).astype(np.uint8)
    else:
        phase = rng.uniform(0, 2 * np.pi, (n, 1, 1))
        waves = np.sin((1 + labels)[:, None, None] * np.linspace(0, 2 * np.pi, 32) + phase)
        inputs = (0.5 * waves + 0.5 * rng.normal(size=(n, 1, 32))).astype(np.float32)
    return Samples(inputs, labels, np.arange(n).astype(str), np.array([f"class{k}" for k in range(n_classes)]))


def poisoned(kind: str, n: int, n_classes: int, rate: float = 0.1) -> Poisoned:
    """Noisy data with a loud trigger for label 0."""
    attack = BadNets(cell=2) if kind == "image" else StaticPattern(intensity=0.2)
    return poison(noisy(kind, n, n_classes), attack, seed=0, rate=rate, target_label=0)


def builder(samples: Samples) -> Callable[[], nn.Module]:
    return lambda: Quick(samples.shape, samples.n_classes)


@dataclass(frozen=True)
class Outcome:
    """What a defense achieved."""

    accuracy: float
    attack_success: float
    recall: float
    false_alarms: float


def outcome(result: Trained, data: Poisoned) -> Outcome:
    """Measured on new samples, and against the truth."""
    samples, is_poisoned = data.samples, data.truth.is_poisoned
    test = noisy(samples.kind, 200, samples.n_classes, seed=9)
    stamped = trigger_test_set(test, data.trigger, data.plan)
    isolated: BoolArray = result.verdict.isolated
    return Outcome(
        accuracy=float((predicted(result.model, test.inputs) == test.labels).mean()),
        attack_success=float((predicted(result.model, stamped.inputs) == 0).mean()),
        recall=float(isolated[is_poisoned].mean()),
        false_alarms=float(isolated[~is_poisoned].mean()),
    )


def told(result: Trained) -> tuple[Any, ...]:
    """All that a training leaves, as bytes."""
    verdict = result.verdict
    arrays = (verdict.suspicion, verdict.status, verdict.suggested_label, verdict.criterion, result.history.losses)
    return (weights(result.model), *(part.tobytes() for part in arrays), result.facts)


def check_resume(method: Any, samples: Samples, recipe: Recipe = RECIPE, **given: Any) -> Trained:
    """Stopped after any checkpoint, a training ends as an unbroken one does; inputs stay as they are."""
    before, build = samples.inputs.tobytes(), builder(samples)
    whole = Ledger()
    unbroken: Trained = method.train(samples, build, recipe, journal=whole, **given)
    assert told(unbroken) == told(method.train(samples, build, recipe, **given))
    assert told(unbroken) != told(method.train(samples, build, dataclasses.replace(recipe, seed=4), **given))
    for stop in range(1, whole.n_saved + 1):
        broken = Ledger(stop_after=stop)
        with pytest.raises(KeyboardInterrupt):
            method.train(samples, build, recipe, journal=broken, **given)
        rest = Ledger(broken.kept)
        resumed = method.train(samples, build, recipe, journal=rest, **given)
        assert told(resumed) == told(unbroken), f"stopped after checkpoint {stop} of {whole.n_saved}"
        assert broken.n_saved + rest.n_saved == whole.n_saved
    assert samples.inputs.tobytes() == before
    assert not unbroken.model.training and all(torch.isfinite(p).all() for p in unbroken.model.parameters())
    return unbroken
