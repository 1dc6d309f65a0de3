"""What the calls from Python share: where they write, which network is meant, and how they tell what they do."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from antibackdoor.app.given_data import samples_for
from antibackdoor.app.networks import Factory, NetworkChoice, describe_model
from antibackdoor.app.pipeline import Outcome
from antibackdoor.app.read_as import record_of
from antibackdoor.data.reading import DataSet
from antibackdoor.data.samples import Samples
from antibackdoor.errors import ConfigError
from antibackdoor.models.own_network import import_factory
from antibackdoor.training.recipe import Recipe


def free_folder(out: str | Path | None, name: str, *, resume: bool) -> Path:
    """Where to write: as said, or the first free one of `name`, `name-2`, `name-3`, ...

    Raises:
        ConfigError: If `out` is no path.
    """
    if out is not None:
        if not isinstance(out, str | Path):
            raise ConfigError(f"out is of type {type(out).__name__}; give the path of a folder")
        return Path(out)
    if resume or not Path(name).exists():
        return Path(name)
    number = 2
    while Path(f"{name}-{number}").exists():
        number += 1
    return Path(f"{name}-{number}")


def factory_of(model: str | Factory) -> Factory | None:
    """The factory of a network of one's own; None if there is none."""
    if isinstance(model, str):
        return import_factory(model) if model else None
    return model


def path_of(model: Any, argument: str) -> Path:
    """Where a given model lies: a run folder, a file of weights, or what `train` returned.

    Args:
        model: What was given.
        argument: What it is called.

    Raises:
        ConfigError: If it is something else, or not there.
    """
    place = model.run if isinstance(model, Outcome) else model
    if not isinstance(place, str | Path):
        kind = type(place).__name__
        raise ConfigError(f"{argument} is of type {kind}; give a run folder, a file of weights, or what train returned")
    if not Path(place).exists():
        raise ConfigError(f"there is no {place}; give {argument} a run folder or a file of weights")
    return Path(place)


def samples_like(data: DataSet, given: Any, name: str) -> Samples:
    """Labelled samples of the shape and the classes of these data, and read as these were; see `samples_for`."""
    spec = replace(describe_model(data.train, NetworkChoice(), Recipe(), ""), **record_of(data))
    return samples_for(spec, given, name)


def tell(message: str) -> None:
    """Print a message while the work goes on."""
    print(message, file=sys.stderr, flush=True)
