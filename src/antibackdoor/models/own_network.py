"""The user's own network: import its factory, call it with what it accepts, and try what it returns."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from antibackdoor.errors import ModelError
from antibackdoor.models.hooks import evaluation_mode


def check_network(network: nn.Module, input_shape: Sequence[int], n_classes: int, *, name: str) -> None:
    """Run a batch of two random inputs in [0, 1] through `network`, in eval mode.

    Raises:
        ModelError: If that fails or does not give logits of shape `(2, n_classes)`; `name` leads the message.
    """
    batch = torch.rand((2, *input_shape), generator=torch.Generator().manual_seed(0))
    try:
        with evaluation_mode(network), torch.no_grad():
            logits = network(batch)
    except Exception as error:
        raise ModelError(
            f"{name}: the network fails on inputs of shape {tuple(batch.shape)}: {_brief(error)}"
        ) from error
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (2, n_classes):
        got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ModelError(
            f"{name}: for inputs of shape {tuple(batch.shape)} the network returns {got}; "
            f"it must return a tensor of logits of shape (2, {n_classes})"
        )


def load_factory(spec: str, input_shape: Sequence[int], n_classes: int) -> Callable[[], nn.Module]:
    """The user's own network: import `"package.module:factory"`, try it, return a builder without arguments.

    The module may lie in the current working directory. The factory is called with those of the keywords
    `input_shape` (a tuple, `(C, H, W)` or `(C, T)`) and `n_classes` that it accepts; with none, it is called
    bare. The network that it returns takes images in [0, 1] or series, normalized, and gives logits
    `(B, n_classes)`. One network is built and tried; torch's random state is left as it was.

    Raises:
        ModelError: If module or factory are not found, it raises, or its network does not fit the data.

    >>> build = load_factory("torch.nn:PReLU", (3,), 3)
    >>> build()
    PReLU(num_parameters=1)
    """
    return adapt_factory(import_factory(spec), input_shape, n_classes, name=spec)


def adapt_factory(
    factory: Callable[..., nn.Module], input_shape: Sequence[int], n_classes: int, *, name: str
) -> Callable[[], nn.Module]:
    """A builder without arguments around the user's factory, as `load_factory` describes it.

    Raises:
        ModelError: If the factory raises, or its network does not fit the data; `name` leads the message.
    """
    offered: dict[str, Any] = {"input_shape": tuple(input_shape), "n_classes": n_classes}
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # some compiled callables have no signature
        parameters = inspect.signature(load_factory).parameters
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        offered = {key: value for key, value in offered.items() if key in parameters}
    build: Callable[[], nn.Module] = partial(factory, **offered)
    with torch.random.fork_rng(devices=[]):
        try:
            network = build()
        except (Exception, SystemExit) as error:
            call = ", ".join(f"{key}={value}" for key, value in offered.items())
            raise ModelError(f"{name}({call}) fails: {_brief(error)}") from error
        if not isinstance(network, nn.Module):
            raise ModelError(f"{name} returns a {type(network).__name__}; it must return a torch.nn.Module")
        was_lazy = _is_lazy(network)
        check_network(network, input_shape, n_classes, name=name)
        _check_training(network, input_shape, n_classes, name=name)
        if not any(parameter.requires_grad for parameter in network.parameters()):
            raise ModelError(f"{name}: no parameter of the network can be trained; set requires_grad on some")
    return partial(_ready, build, (2, *input_shape)) if was_lazy else build


def _check_training(network: nn.Module, input_shape: Sequence[int], n_classes: int, *, name: str) -> None:
    """The same in training mode, where some networks return more than logits; its running statistics change.

    Raises:
        ModelError: As `check_network`.
    """
    network.train()
    batch = torch.rand((2, *input_shape), generator=torch.Generator().manual_seed(0))
    try:
        logits = network(batch)
    except Exception as error:
        raise ModelError(f"{name}: the network fails in training mode: {_brief(error)}") from error
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (2, n_classes):
        raise ModelError(f"{name}: in training mode the network must return logits of shape (2, {n_classes}), too")


def _is_lazy(network: nn.Module) -> bool:
    return any(isinstance(parameter, UninitializedParameter) for parameter in network.parameters())


def _ready(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> nn.Module:
    """A network whose lazy layers have met an input and know their size."""
    network = build()
    with evaluation_mode(network), torch.no_grad():
        network(torch.zeros(shape))
    return network


def import_factory(spec: str) -> Callable[..., Any]:
    """What `"package.module:factory"` names; importing runs the module's code.

    Raises:
        ModelError: If module or factory are not found.
    """
    module_name, _, factory_name = spec.partition(":")
    if not module_name or not factory_name or "/" in module_name or module_name.endswith(".py"):
        raise ModelError(f"'{spec}' names no factory: write package.module:factory, without a path or .py")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise ModelError(f"'{module_name}' cannot be imported from {here}: {_brief(error)}") from error
    finally:
        sys.path.remove(here)
    factory: Callable[..., Any] | None = getattr(module, factory_name, None)
    if factory is None or not callable(factory):
        raise ModelError(f"'{module_name}' has no function or class '{factory_name}'")
    return factory


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0]}"
