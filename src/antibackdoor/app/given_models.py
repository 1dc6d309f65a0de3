"""A trained model that somebody gives: a run folder, or a bare file of weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from antibackdoor.app.networks import (
    NetworkChoice,
    builder,
    check_own_network,
    describe_model,
    flag_of,
    load_model,
    named_network,
)
from antibackdoor.data.samples import Samples
from antibackdoor.errors import ConfigError, ModelError
from antibackdoor.models.backbones import BACKBONES
from antibackdoor.models.checkpoint import LoadedCheckpoint, load_checkpoint, read_state_dict
from antibackdoor.models.clean_check import (
    best_normalization,
    has_learned_nothing,
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

CHANNELS = (3, 1, 4, 2)  # of images, tried in this order where no data tell it
LARGEST = 4 * 2**30  # bytes of a file that is read before its network is known
LARGEST_SIDE = 1024  # pixels: a network is tried on images of the side that is said
ENOUGH = 1000  # samples that tell whether a model works


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
        image_size: Side of the square images that the model takes, in pixels; None for that of the data.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    class_names: tuple[str, ...] = ()
    image_size: int | None = None


def check_words(path: str | Path, choice: NetworkChoice, hints: FileHints | None = None, *, role: str = "") -> None:
    """Check what is said of a model, before any data are read: a run folder knows it all, a bare file does not.

    Args:
        path: As in `open_model`; also `choice` and `hints`.
        choice: What network it is.
        hints: What else is said.
        role: As in `flag_of`.

    Raises:
        ConfigError: If too much is said, or too little.
    """
    path, hints = Path(path), hints or FileHints()
    if path.is_dir():
        known = {"backbone": choice.backbone, "mean": hints.mean, "std": hints.std, "classes": hints.class_names}
        said = [name for name, value in {**known, "image-size": hints.image_size}.items() if value]
        if said:
            raise ConfigError(
                f"{path} is a run folder, which knows its network, normalization and classes: leave "
                f"{flag_of(said[0], role)} out"
            )
        return
    if not named_network(choice, role=role):
        flags = f"{flag_of('backbone', role)} or {flag_of('model', role)}"
        raise ConfigError(f"{path} is a bare file: name its network with {flags}")
    for one, other in (("mean", "std"), ("std", "mean")):
        if getattr(hints, one) and not getattr(hints, other):
            raise ConfigError(f"--{one} is given without --{other}: give both or neither")
    if not all(np.isfinite(value) for value in (*hints.mean, *hints.std)) or min(hints.std, default=1) <= 0:
        raise ConfigError("--mean and --std must be finite, and --std above 0: give the values used in training")
    if hints.image_size is not None and not 1 <= hints.image_size <= LARGEST_SIDE:
        raise ConfigError(f"--image-size is {hints.image_size}; give 1 to {LARGEST_SIDE} pixels")
    if len(set(hints.class_names)) < len(hints.class_names):
        raise ConfigError("--classes names a class twice: give each class once")


def teacher_choice(teacher: Path | None, backbone: str, model: Any) -> NetworkChoice:
    """What is said of a teacher's network.

    Args:
        teacher: The teacher; None if there is none.
        backbone: As in `NetworkChoice`; also `model`.
        model: Its network, if it is one of one's own.

    Raises:
        ConfigError: If there is no teacher, or it is a run folder, which knows it.
    """
    choice = NetworkChoice(backbone, model)
    if teacher is None:
        if backbone or model:
            raise ConfigError(f"--teacher-{'backbone' if backbone else 'model'} needs a teacher: give --teacher")
    elif not teacher.exists():
        raise ConfigError(f"there is no {teacher}; give --teacher a run folder or a file of weights")
    elif backbone or model:
        check_words(teacher, choice, role="teacher")
    return choice


def class_names_in(classes: str | Path | Sequence[str] | None) -> tuple[str, ...]:
    """The names of classes: those of a sequence, or the lines of a text file that are not empty.

    Raises:
        ConfigError: If the file cannot be read, or holds none.
    """
    if classes is None or not isinstance(classes, str | Path):
        return tuple(str(name) for name in classes or ())
    if not Path(classes).is_file():
        raise ConfigError(f"--classes {classes} is not a file; give a text file with one class per line")
    try:
        lines = Path(classes).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--classes {classes} cannot be read as text; write it in UTF-8, one class per line"
        ) from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise ConfigError(f"--classes {classes} is empty; write one class per line")
    return names


def open_model(
    path: str | Path,
    choice: NetworkChoice,
    samples: Samples | None,
    recipe: Recipe,
    hints: FileHints | None = None,
    *,
    role: str = "",
) -> Opened:
    """Load a run folder or a bare file of weights.

    Args:
        path: A run folder, or a `.safetensors`, `.pt`, `.pth` or `.tar` file.
        choice: What network a bare file holds. For a run of a network of one's own: its factory.
        samples: Labelled samples of the classes that the model knows, to check a bare file on; clean ones if there
            are any. A run folder needs none, nor does a bare file of which the hints say enough.
        recipe: Where to compute.
        hints: What is known of a bare file; None where nothing can be said.
        role: As in `flag_of`.

    Raises:
        ConfigError: If the choice or the hints do not say what a bare file holds, or say it of a run folder.
        ModelError: If the file cannot be read, does not fit, or is near chance on the samples.
    """
    path = Path(path)
    check_words(path, choice, hints, role=role)
    if path.is_dir():
        check_own_network(path, load_model_spec(path), is_given=bool(choice.model), role=role)
        model, spec = load_model(path, own_factory(choice))
        known = samples is None or (spec.input_shape, spec.class_names) == (samples.shape, tuple(samples.class_names))
        if not known:
            raise ModelError(f"{path} was trained on other shapes or classes than the data have")
        history = read_history(path) if (path / HISTORY).exists() else None
        return Opened(model, spec, builder(spec, own_factory(choice)), history, {})
    if samples is None:
        return _open_without_data(path, choice, hints or FileHints())
    return _open_file(path, choice, samples, recipe, hints)


def open_teacher(
    path: str | Path, choice: NetworkChoice, student: Opened, student_choice: NetworkChoice, samples: Samples | None
) -> Opened:
    """Load the teacher of another model; unless it is said what network it holds, it is that of the student.

    Args:
        path: As in `open_model`.
        choice: What network the teacher is, where that is said.
        student: The other model.
        student_choice: What was said of that one.
        samples: As in `open_model`.

    Raises:
        ConfigError: As `open_model`.
        ModelError: As `open_model`.
    """
    path = Path(path)
    is_alike = not path.is_dir() or load_model_spec(path).backbone == student.spec.backbone
    if choice.backbone or choice.model or not is_alike:
        return open_model(path, choice, samples, Recipe(), role="teacher")
    backbone = "" if student_choice.model or path.is_dir() else student.spec.backbone
    try:
        return open_model(path, NetworkChoice(backbone, student_choice.model), samples, Recipe(), role="teacher")
    except ModelError as error:
        if path.is_dir():
            raise
        raise ModelError(
            f"{error}; it was read as {student.spec.backbone}, the network of the model: if the teacher is another, "
            "say so with --teacher-backbone or --teacher-model"
        ) from error


def refuse_near_chance(path: str | Path, model: nn.Module, clean: Samples) -> None:
    """Check that a model has learned something.

    Args:
        path: Where it comes from.
        model: On the CPU.
        clean: Samples that are known to be clean; of many, some evenly spread ones are looked at.

    Raises:
        ModelError: If it has not, as far as so many samples can tell.
    """
    rows = np.linspace(0, len(clean) - 1, min(len(clean), ENOUGH)).astype(np.int64)
    some = clean.take(rows)
    accuracy, largest = _accuracy(model, some)
    if has_learned_nothing(accuracy, len(some), some.n_classes, largest_class=largest):
        raise ModelError(
            f"{path} is near chance on the clean samples ({accuracy:.1%} of {len(some)}), so there is nothing to "
            "purify: check that they are labeled and read like its training data, or retrain it"
        )


def own_factory(choice: NetworkChoice) -> Any:
    """The factory of a network of one's own, as an object."""
    from antibackdoor.models.own_network import import_factory

    return import_factory(choice.model) if isinstance(choice.model, str) and choice.model else choice.factory


def _open_file(path: Path, choice: NetworkChoice, samples: Samples, recipe: Recipe, said: FileHints | None) -> Opened:
    hints = said or FileHints()
    spec = describe_model(samples, choice, recipe, "given")
    model = builder(spec, choice.factory)()
    loaded = load_checkpoint(path, model, example=torch.zeros(2, *samples.shape))
    notes: dict[str, Any] = {"loaded_by": loaded.by, "n_tensors": loaded.n_tensors}
    if hints.mean:
        _set_given_normalization(model, hints, samples.shape[0])
        notes["normalization"] = "given"
    elif not loaded.has_normalization:
        fit = best_normalization(model, samples)
        _set_normalization(model, fit.mean, fit.std)
        notes["normalization"] = fit.name
    order = _given_order(hints.class_names, samples) if hints.class_names else match_classes(model, samples)
    if (order != np.arange(len(order))).any():
        reorder_classes(model, order, torch.zeros(2, *samples.shape))
    notes["classes_reordered"] = bool((order != np.arange(len(order))).any())
    accuracy, largest = _accuracy(model, samples)
    if is_near_chance(accuracy, len(samples), samples.n_classes, largest_class=largest):
        words = " (--mean, --std)", " (--classes)"
        normalization, classes = ("", "") if said is None else words
        raise ModelError(
            f"{path} is near chance on these data ({accuracy:.1%} of {len(samples)} samples): check the network, the "
            f"normalization{normalization} and the order of classes{classes}"
        )
    return _opened(model, spec, choice, {**notes, "accuracy_as_given": accuracy})


def _open_without_data(path: Path, choice: NetworkChoice, hints: FileHints) -> Opened:
    """A bare file of images, of which its weights and the hints tell all."""
    if hints.image_size is None:
        raise ConfigError(
            f"{path} is a bare file: give some data to find its classes and normalization, or for a method "
            "that needs none --image-size, --mean and --std"
        )
    spec, model, loaded = _fitting(path, choice, hints)
    notes: dict[str, Any] = {"loaded_by": loaded.by, "n_tensors": loaded.n_tensors}
    if hints.mean:
        _set_given_normalization(model, hints, spec.input_shape[0])
        notes["normalization"] = "given"
    elif not loaded.has_normalization:
        raise ConfigError(
            f"{path} holds no normalization: give --mean and --std (0 and 1 if its inputs were not normalized), or "
            "give some clean data to find it"
        )
    return _opened(model, spec, choice, notes)


def _fitting(path: Path, choice: NetworkChoice, hints: FileHints) -> tuple[ModelSpec, nn.Module, LoadedCheckpoint]:
    """The network that a file fills, whatever its classes and channels; no data tell them."""
    name = named_network(choice)
    if name in BACKBONES and BACKBONES[name].kind == "series":
        raise ConfigError(f"{path} is a bare file for series: give some data to find their length")
    failure: ModelError | None = None
    for n_classes, channels in product(_numbers_of_classes(path, hints), CHANNELS):
        spec = ModelSpec(
            backbone=name,
            kind="image",
            input_shape=(channels, hints.image_size or 0, hints.image_size or 0),
            class_names=hints.class_names or tuple(map(str, range(n_classes))),
            mean=(0.0,) * channels,
            std=(1.0,) * channels,
            image_size=None,
            method="given",
            package_version=version("antibackdoor"),
        )
        try:
            model = builder(spec, choice.factory)()
            return spec, model, load_checkpoint(path, model, example=torch.zeros(2, *spec.input_shape))
        except ModelError as error:
            failure = failure or error
    assert failure is not None  # CHANNELS and the numbers are not empty
    raise failure


def _numbers_of_classes(path: Path, hints: FileHints) -> list[int]:
    """How many classes there may be: as the hints say, else the outputs of each linear layer, the last one first."""
    if hints.class_names:
        return [len(hints.class_names)]
    state = read_state_dict(path, max_bytes=LARGEST)
    outputs = [len(value) for value in state.values() if value.ndim == 2 and len(value) > 1]
    if not outputs:
        raise ConfigError(f"{path} has no linear layer that shows the number of classes: name them with --classes")
    return list(dict.fromkeys(reversed(outputs)))


def _opened(model: nn.Module, spec: ModelSpec, choice: NetworkChoice, notes: dict[str, Any]) -> Opened:
    """A filled network, with the normalization that is in it."""
    normalize = next(module for module in model.modules() if isinstance(module, Normalize))
    spec = replace(spec, mean=tuple(normalize.mean.tolist()), std=tuple(normalize.std.tolist()))
    return Opened(model.eval(), spec, builder(spec, choice.factory), None, notes)


def _accuracy(model: nn.Module, samples: Samples) -> tuple[float, float]:
    """Share of the samples that a model gets right, and share of the largest class, which a constant answer gets."""
    right = float((predictions(model, samples) == samples.labels).mean())
    return right, float(np.bincount(samples.labels).max()) / len(samples)


def _set_given_normalization(model: nn.Module, hints: FileHints, n_channels: int) -> None:
    mean, std = _channels(hints.mean, n_channels, "--mean"), _channels(hints.std, n_channels, "--std")
    _set_normalization(model, mean, std)


def _channels(values: Sequence[float], n_channels: int, flag: str) -> tuple[float, ...]:
    if len(values) not in (1, n_channels):
        raise ConfigError(f"{flag} has {len(values)} values, the inputs have {n_channels} channels: give one for each")
    return tuple(values) * (n_channels if len(values) == 1 else 1)


def _set_normalization(model: nn.Module, mean: Sequence[float] | Any, std: Sequence[float] | Any) -> None:
    layer = next(module for module in model.modules() if isinstance(module, Normalize))
    layer.load_state_dict(Normalize(mean, std).state_dict())


def _given_order(names: tuple[str, ...], samples: Samples) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    known = [str(name) for name in samples.class_names.tolist()]
    if sorted(names) != sorted(known):
        odd = sorted(set(names) ^ set(known))[:5]
        raise ConfigError(
            f"--classes and the data have different classes: {', '.join(odd)}; give the {len(known)} of the data"
        )
    return np.array([names.index(name) for name in known], dtype=np.int64)
