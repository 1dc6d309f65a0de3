"""Which network is trained, and how a delivered one is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from antibackdoor.data.samples import Samples
from antibackdoor.errors import ConfigError, ModelError, RunError
from antibackdoor.models.backbones import build_backbone, default_backbone
from antibackdoor.models.normalization import channel_statistics, normalized
from antibackdoor.models.own_network import adapt_factory, load_factory
from antibackdoor.runs.atomic import read_json
from antibackdoor.runs.model_file import ModelSpec, load_model_spec, load_weights
from antibackdoor.runs.run_folder import CONFIG
from antibackdoor.training.recipe import Recipe

Factory = Callable[..., nn.Module]


@dataclass(frozen=True)
class NetworkChoice:
    """Which network to use.

    Attributes:
        backbone: A key of `BACKBONES`; empty chooses by data and machine.
        model: The user's own network in place of a backbone: `package.module:factory`, or the factory itself (it
            may take `input_shape` and `n_classes`).
    """

    backbone: str = ""
    model: str | Factory = ""

    @property
    def factory(self) -> Factory | None:
        """The factory, where it is given as an object and not by name."""
        return None if isinstance(self.model, str) else self.model


def describe_model(
    samples: Samples, choice: NetworkChoice, recipe: Recipe, method: str, image_size: str | None = None
) -> ModelSpec:
    """Which network is to be trained on these samples, by which method.

    Raises:
        ConfigError: If the choice names two networks, or none that can be found.
    """
    named = named_network(choice)
    gpu = recipe.device in ("auto", "cuda") and torch.cuda.is_available()
    mean, std = channel_statistics(samples)
    return ModelSpec(
        backbone=named or default_backbone(samples.kind, samples.shape, len(samples), gpu),
        kind=samples.kind,
        input_shape=samples.shape,
        class_names=tuple(samples.class_names.tolist()),
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        image_size=image_size,
        method=method,
        package_version=version("antibackdoor"),
    )


def named_network(choice: NetworkChoice, *, role: str = "") -> str:
    """What a choice names: a key of `BACKBONES`, `package.module:factory`, or nothing ("").

    Args:
        choice: The choice.
        role: As in `flag_of`.

    Raises:
        ConfigError: If it names two networks, or none that can be found.
    """
    backbone, model = flag_of("backbone", role), flag_of("model", role)
    if choice.backbone and choice.model:
        raise ConfigError(f"{backbone} and {model} exclude each other: give one of them")
    if ":" in choice.backbone:
        raise ConfigError(f"{backbone} {choice.backbone} names code: give it with {model}, which runs it")
    own = choice.model if isinstance(choice.model, str) else _factory_name(choice.model)
    if own and ":" not in own:
        raise ConfigError(f"{model} {own} names no factory: write package.module:factory, without a path or .py")
    return own or choice.backbone


def flag_of(name: str, role: str = "") -> str:
    """The flag that says something of a model; `role` is what another than the first one is for, such as a teacher.

    >>> flag_of("model"), flag_of("model", "teacher")
    ('--model', '--teacher-model')
    """
    return f"--{role}-{name}" if role else f"--{name}"


def _factory_name(factory: Factory) -> str:
    return f"{factory.__module__}:{getattr(factory, '__qualname__', type(factory).__name__)}"


def builder(spec: ModelSpec, factory: Factory | None = None) -> Callable[[], nn.Module]:
    """Makes the untrained network of a description, its normalization inside; `factory` is the user's, if given."""
    n_classes = len(spec.class_names)
    if factory is not None:
        make = adapt_factory(factory, spec.input_shape, n_classes, name=spec.backbone)
        return lambda: normalized(make(), spec.mean, spec.std)
    if ":" in spec.backbone:
        factory = load_factory(spec.backbone, spec.input_shape, n_classes)
        return lambda: normalized(factory(), spec.mean, spec.std)
    return lambda: normalized(build_backbone(spec.backbone, spec.input_shape, n_classes), spec.mean, spec.std)


def check_own_network(run: Path, spec: ModelSpec, *, is_given: bool, role: str = "") -> None:
    """Check, before any code is imported, that a network of the user's own is given just where a run needs it.

    Args:
        run: The run folder.
        spec: Its model.
        is_given: Whether a network of one's own is given.
        role: As in `flag_of`.

    Raises:
        ModelError: If it is missing, or would be run for nothing.
    """
    is_own, flag = ":" in spec.backbone, flag_of("model", role)
    if is_own and not is_given:
        raise ModelError(
            f"{run} was trained with a network of your own, {spec.backbone!r}: if you trust that code, name it "
            f"with {flag} (from Python, give the factory)"
        )
    if is_given and not is_own:
        raise ModelError(f"{run} was trained with the backbone {spec.backbone}: leave {flag} out")


def check_resumed_network(run: Path, spec: ModelSpec) -> None:
    """Check, before the code of a user's own network is called, that a run to be resumed began with it.

    Raises:
        RunError: If the run began with another network.
    """
    if ":" not in spec.backbone or not (run / CONFIG).exists():
        return
    settings = read_json(run / CONFIG).get("settings")
    model = settings.get("model") if isinstance(settings, dict) else None
    began = model.get("network") if isinstance(model, dict) else None
    if began != spec.backbone:
        raise RunError(
            f"{run} was started with the network {began}, not with {spec.backbone}: give the same, or another --out"
        )


def load_model(run: str | Path, factory: Factory | None = None) -> tuple[nn.Module, ModelSpec]:
    """The delivered model of a run, in eval mode on the CPU, and its description.

    Args:
        run: The run folder.
        factory: Of the user's own network. The folder only names it: nothing that it names is ever run.

    Raises:
        ModelError: If the files are missing, damaged or do not fit each other, or an own network is not given.
    """
    run = Path(run)
    spec = load_model_spec(run)
    check_own_network(run, spec, is_given=factory is not None)
    model = builder(spec, factory)()
    load_weights(run, model)
    return model.eval(), spec
