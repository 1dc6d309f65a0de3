"""A trained model that somebody gives: a run folder, or a bare file of weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from antibackdoor.app.networks import NetworkChoice, builder, check_own_network, describe_model, load_model
from antibackdoor.data.samples import Samples
from antibackdoor.errors import ConfigError, ModelError
from antibackdoor.models.checkpoint import load_checkpoint
from antibackdoor.models.clean_check import (
    best_normalization,
    is_near_chance,
    match_classes,
    predictions,
    reorder_classes,
)
from antibackdoor.models.normalization import Normalize
from antibackdoor.protocols import Build
from antibackdoor.runs.artifacts import HISTORY, read_history
from antibackdoor.runs.model_file import ModelSpec, load_model_spec
from antibackdoor.training.history import LossHistory
from antibackdoor.training.recipe import Recipe


@dataclass(frozen=True, eq=False)
class Opened:
    """A given model, ready to be used.

    Attributes:
        model: On the CPU, in eval mode, its normalization inside.
        spec: What it is.
        build: Makes the same network untrained.
        history: Loss of each sample over its training, where a run folder tells it.
        notes: How a bare file was understood: plain values.
    """

    model: nn.Module
    spec: ModelSpec
    build: Build
    history: LossHistory | None
    notes: dict[str, Any]


@dataclass(frozen=True)
class FileHints:
    """What a person may say of a bare file of weights.

    Attributes:
        mean: Mean of each channel that the model's inputs were normalized with, images in [0, 1].
        std: Standard deviation of each channel.
        class_names: The classes in the order of the model's outputs; empty for the data's order, checked on the data.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    class_names: tuple[str, ...] = ()


def open_model(
    path: str | Path, choice: NetworkChoice, samples: Samples | None, recipe: Recipe, hints: FileHints | None = None
) -> Opened:
    """Load a run folder or a bare file of weights.

    Args:
        path: A run folder, or a `.safetensors`, `.pt`, `.pth` or `.tar` file.
        choice: What network a bare file holds. For a run of a network of one's own: its factory.
        samples: Labelled samples of the classes that the model knows, to check a bare file on; clean ones if there
            are any. A run folder needs none.
        recipe: Where to compute.
        hints: What is known of a bare file.

    Raises:
        ConfigError: If the choice does not say what a bare file holds.
        ModelError: If the file cannot be read, does not fit, or is near chance on the samples.
    """
    path, hints = Path(path), hints or FileHints()
    if path.is_dir():
        if choice.backbone:
            raise ConfigError(f"{path} is a run folder, which knows its network: leave --backbone out")
        check_own_network(path, load_model_spec(path), is_given=bool(choice.model))
        model, spec = load_model(path, own_factory(choice))
        known = samples is None or (spec.input_shape, spec.class_names) == (samples.shape, tuple(samples.class_names))
        if not known:
            raise ModelError(f"{path} was trained on other shapes or classes than the data have")
        history = read_history(path) if (path / HISTORY).exists() else None
        return Opened(model, spec, builder(spec, own_factory(choice)), history, {})
    if not (choice.backbone or choice.model):
        raise ConfigError(f"{path} is a bare file: say with --backbone or --model what network it holds")
    if samples is None:
        raise ConfigError(f"{path} is a bare file: give some data, which tell its classes and its normalization")
    return _open_file(path, choice, samples, recipe, hints)


def own_factory(choice: NetworkChoice) -> Any:
    """The factory of a network of one's own, as an object."""
    from antibackdoor.models.own_network import import_factory

    return import_factory(choice.model) if isinstance(choice.model, str) and choice.model else choice.factory


def _open_file(path: Path, choice: NetworkChoice, samples: Samples, recipe: Recipe, hints: FileHints) -> Opened:
    spec = describe_model(samples, choice, recipe, "given")
    model = builder(spec, choice.factory)()
    loaded = load_checkpoint(path, model, example=torch.zeros(2, *samples.shape))
    notes: dict[str, Any] = {"loaded_by": loaded.by, "n_tensors": loaded.n_tensors}
    if hints.mean or hints.std:
        _set_normalization(model, _channels(hints.mean, samples, "--mean"), _channels(hints.std, samples, "--std"))
        notes["normalization"] = "given"
    elif not loaded.has_normalization:
        fit = best_normalization(model, samples)
        _set_normalization(model, fit.mean, fit.std)
        notes["normalization"] = fit.name
    order = _given_order(hints.class_names, samples) if hints.class_names else match_classes(model, samples)
    if (order != np.arange(len(order))).any():
        reorder_classes(model, order, torch.zeros(2, *samples.shape))
    notes["classes_reordered"] = bool((order != np.arange(len(order))).any())
    accuracy = float((predictions(model, samples) == samples.labels).mean())
    largest = float(np.bincount(samples.labels).max()) / len(samples)
    if is_near_chance(accuracy, len(samples), samples.n_classes, largest_class=largest):
        raise ModelError(
            f"{path} is near chance on these data ({accuracy:.1%} of {len(samples)} samples): check the network, the "
            "normalization (--mean, --std) and the order of classes (--classes)"
        )
    normalize = next(module for module in model.modules() if isinstance(module, Normalize))
    spec = replace(spec, mean=tuple(normalize.mean.tolist()), std=tuple(normalize.std.tolist()))
    return Opened(model.eval(), spec, builder(spec, choice.factory), None, {**notes, "accuracy_as_given": accuracy})


def _channels(values: Sequence[float], samples: Samples, flag: str) -> tuple[float, ...]:
    if len(values) not in (1, samples.shape[0]):
        raise ConfigError(
            f"{flag} has {len(values)} values, the data have {samples.shape[0]} channels: give one for each"
        )
    return tuple(values) * (samples.shape[0] if len(values) == 1 else 1)


def _set_normalization(model: nn.Module, mean: Sequence[float] | Any, std: Sequence[float] | Any) -> None:
    layer = next(module for module in model.modules() if isinstance(module, Normalize))
    layer.load_state_dict(Normalize(mean, std).state_dict())


def _given_order(names: tuple[str, ...], samples: Samples) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    known = [str(name) for name in samples.class_names.tolist()]
    if sorted(names) != sorted(known):
        odd = sorted(set(names) ^ set(known))[:5]
        raise ConfigError(
            f"--classes and the data name other classes: {', '.join(odd)}; give the {len(known)} of the data"
        )
    return np.array([names.index(name) for name in known], dtype=np.int64)
