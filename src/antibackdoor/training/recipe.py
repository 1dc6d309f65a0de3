"""How a network is trained, whatever the defense."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from antibackdoor.data.samples import Samples
from antibackdoor.errors import ConfigError
from antibackdoor.training.schedules import SCHEDULES, Schedule

LEAST_STEPS = 3000  # fewer make a short training
LEAST_PASSES, MOST_PASSES = 20, 200
MIXING = ("mixup", "cutmix")  # augmentations that mix two samples and their labels


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, whatever the defense.

    Attributes:
        epochs: Passes over the training data; 0 chooses from the size of the data (20 passes, or more for small data to
            reach 3,000 steps, at most 200 passes).
        batch_size: Samples per step, summed over all processes; 0 chooses 128, or 32 below 5,000 samples.
        learning_rate: Peak learning rate of SGD with Nesterov momentum.
        schedule: Learning-rate schedule: `triangle` rises over the first fifth of the training, then falls linearly to
            zero; `step` divides by 10 at one half and at three quarters; `cosine` falls to zero; `constant`.
        momentum: Momentum of SGD.
        weight_decay: L2 penalty on all weights.
        augment: Comma-separated augmentations: `crop`, `flip`, `cutout`, `physical` for images, `jitter`, `scale`,
            `shift` for series, `mixup`, `cutmix` for both, `none`; `auto` is crop for images of at least 16 pixels,
            else none.
        precision: `bf16` (autocast), `fp32`, or `auto`: bf16 if the hardware supports it.
        device: `auto`, `cpu`, `cuda` or `mps`.
        devices: Number of processes (devices) that share each batch.
        seed: Random seed.
        progress: Show progress bars on standard error, if it is a terminal.
    """

    epochs: int = 0
    batch_size: int = 0
    learning_rate: float = 0.1
    schedule: Literal["triangle", "step", "cosine", "constant"] = "triangle"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: str = "auto"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    device: str = "auto"
    devices: int = 1
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        for name, low in (("epochs", 0), ("batch_size", 0), ("devices", 1), ("seed", 0)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name} is {getattr(self, name)}; give {low} or more")
        if self.batch_size == 1:
            raise ConfigError("batch_size is 1; give 2 or more, since batch statistics need them, or 0 to choose")
        if self.seed >= 2**32:
            raise ConfigError(f"seed is {self.seed}; give a number below 2^32")
        if not 0 < self.learning_rate < 100:
            raise ConfigError(f"learning_rate is {self.learning_rate}; give a number above 0, such as 0.1")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum is {self.momentum}; give a number in [0, 1), such as 0.9")
        if not 0 <= self.weight_decay < 100:
            raise ConfigError(f"weight_decay is {self.weight_decay}; give 0 or more, such as 0.0005")
        if self.schedule not in SCHEDULES:
            raise ConfigError(f"schedule is {self.schedule!r}; give one of {', '.join(SCHEDULES)}")
        if self.precision not in ("auto", "bf16", "fp32"):
            raise ConfigError(f"precision is {self.precision!r}; give auto, bf16 or fp32")

    def rate(self) -> Schedule:
        """The learning rate over the training."""
        return SCHEDULES[self.schedule](self.learning_rate)

    def batch(self, n_samples: int) -> int:
        """Samples a step for a data set of this size."""
        chosen = self.batch_size or (128 if n_samples >= 5000 else 32)
        return min(chosen, n_samples)

    def passes(self, n_samples: int) -> int:
        """Passes over a data set of this size."""
        if self.epochs:
            return self.epochs
        return enough_passes(n_samples, self.batch(n_samples), passes=LEAST_PASSES, steps=LEAST_STEPS)


def enough_passes(n_samples: int, batch_size: int, *, passes: int, steps: int) -> int:
    """At least so many passes over the data; over small data as many as make the steps, but no more than 200.

    >>> [enough_passes(n, 32, passes=5, steps=1000) for n in (50_000, 1_600, 50)]
    [5, 20, 200]
    """
    return int(np.clip(math.ceil(steps * batch_size / n_samples), passes, MOST_PASSES))


def augmentation_names(setting: str, samples: Samples) -> tuple[str, ...]:
    """The augmentations of single samples that a recipe's setting means for these samples; see `mixing_names`.

    Raises:
        ConfigError: If a name is unknown or belongs to the other kind of data.
    """
    own = ("crop", "flip", "cutout", "physical") if samples.kind == "image" else ("jitter", "scale", "shift")
    if setting == "auto":
        return ("crop",) if samples.kind == "image" and min(samples.shape[1:]) >= 16 else ()
    known = (*own, *MIXING)
    for name in _listed(setting):
        if name not in known:
            raise ConfigError(
                f"augmentation '{name}' does not exist for {samples.kind} data: choose among {', '.join(known)}, none"
            )
    return tuple(name for name in _listed(setting) if name in own)


def mixing_names(setting: str) -> tuple[str, ...]:
    """The augmentations of a recipe's setting that mix two samples and their labels.

    >>> mixing_names("crop, mixup")
    ('mixup',)
    """
    return tuple(name for name in _listed(setting) if name in MIXING)


def _listed(setting: str) -> tuple[str, ...]:
    return tuple(name for name in setting.replace(" ", "").split(",") if name not in ("", "none"))


# How the papers train attack models, and how we train; epochs and seed are the caller's. The papers leave much open.
# ABL follows NAD: neither augments, since that hinders triggers; their defenses augment by fields of their own.
_NAD = Recipe(batch_size=64, schedule="step", weight_decay=1e-4, augment="none")
PRESETS: dict[str, Recipe] = {
    "practical": Recipe(),
    "nad": _NAD,
    "abl": _NAD,
    "e2abl": Recipe(batch_size=128, schedule="cosine", weight_decay=1e-4, augment="none"),
}


def named_recipe(name: str) -> Recipe:
    """A key of `PRESETS` as a recipe.

    >>> named_recipe("nad").batch_size
    64

    Raises:
        ConfigError: If there is none of this name.
    """
    if name not in PRESETS:
        raise ConfigError(f"recipe is {name!r}; give one of {', '.join(PRESETS)}")
    return PRESETS[name]
