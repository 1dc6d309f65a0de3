"""`purify` as it is called from Python: a run folder or a file of weights, and data in any form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from antibackdoor.app import purifying
from antibackdoor.app.call_parts import factory_of, free_folder, path_of
from antibackdoor.app.given_data import as_data_set, samples_for
from antibackdoor.app.given_models import (
    FileHints,
    Opened,
    check_words,
    class_names_in,
    open_model,
    open_teacher,
    refuse_near_chance,
    teacher_choice,
)
from antibackdoor.app.methods import check_purifier, usual_purifier
from antibackdoor.app.networks import Factory, NetworkChoice, load_model
from antibackdoor.app.pipeline import Outcome
from antibackdoor.app.python_words import python_words
from antibackdoor.app.settings import applied, chosen_method
from antibackdoor.app.verdicts import verdict_of
from antibackdoor.data.reading import DataSet, read
from antibackdoor.data.samples import Samples
from antibackdoor.errors import ConfigError
from antibackdoor.protocols import Given
from antibackdoor.purifiers import PURIFIERS
from antibackdoor.runs.artifacts import read_metrics
from antibackdoor.training.recipe import Recipe


@dataclass(frozen=True, eq=False)
class Purification:
    """What a purification made.

    Attributes:
        model: The purified classifier, on the CPU, in eval mode.
        metrics: What stands in `metrics.json`.
        run: The run folder.
    """

    model: nn.Module
    metrics: dict[str, Any]
    run: Path

    def __repr__(self) -> str:
        return f"Purification({type(self.model).__name__} by {self.metrics.get('method')}, {str(self.run)!r})"


@python_words()
def purify(
    checkpoint: str | Path | Outcome,
    clean: Any = None,
    out: str | Path | None = None,
    *,
    method: Any = None,
    suspicious: Any = None,
    verdict: str | Path | None = None,
    teacher: str | Path | Outcome | None = None,
    teacher_backbone: str = "",
    teacher_model: str | Factory = "",
    test: Any = None,
    measure_trigger: str | Path | None = None,
    given: Given | None = None,
    recipe: Recipe | str | None = None,
    backbone: str = "",
    model: str | Factory = "",
    mean: float | Sequence[float] = (),
    std: float | Sequence[float] = (),
    classes: str | Path | Sequence[str] = (),
    image_size: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    schedule: str | None = None,
    momentum: float | None = None,
    weight_decay: float | None = None,
    augment: str | None = None,
    precision: str | None = None,
    device: str | None = None,
    seed: int | None = None,
    progress: bool | None = None,
    resume: bool = False,
) -> Purification:
    """Repair a trained model and write a run folder.

    Args:
        checkpoint: The model: a run folder, what `train` returned, or a `.safetensors`, `.pt`, `.pth` or `.tar` file
            of weights.
        clean: Samples that are known to be clean: a path, a pair `(X, y)`, a `DataSet` or `Samples`.
        out: The run folder; by default `purified`, or `purified-2`, ... where that exists.
        method: A key of `PURIFIERS`, or a purifier with its settings; by default `fine-tune`, or `self-clean` where
            `suspicious` data are given and no clean samples.
        suspicious: The data that the model was trained on, likewise, for methods that look at them.
        verdict: Run folder of a scan of `suspicious`.
        teacher: Another trained model, like `checkpoint`, for methods that distill.
        teacher_backbone: The network of a teacher that is a file of weights; by default that of the model.
        teacher_model: The teacher's network, if it is one of your own.
        test: Clean samples to measure on, likewise.
        measure_trigger: Folder of a saved trigger, to measure on `test` how often it works before and after.
        given: What else the method may know.
        recipe: How to train, or a name: `practical`, `nad`, `abl`, `e2abl`; the settings below win over its fields.
        backbone: The network of a file of weights, a key of `BACKBONES`; a run folder knows its own.
        model: The network if it is one of your own: a factory, or `package.module:factory`.
        mean: Mean of each channel that a file's model expects, images in [0, 1]; by default found on the data.
        std: Standard deviation of each channel, likewise.
        classes: Names of the classes in the order of a file's outputs, or a text file with one a line; by default
            matched on the data.
        image_size: Side of the images that a file's model takes, in pixels. Needed only without data.
        epochs: As in `train`; also the settings that follow.
        resume: Go on with the purification in `out`.

    Raises:
        AntibackdoorError: If settings, data or folder do not fit; the message names the argument.
    """
    settings = {
        "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "schedule": schedule,
        "momentum": momentum, "weight_decay": weight_decay, "augment": augment, "precision": precision,
        "device": device, "seed": seed, "progress": progress,
    }  # fmt: skip
    path, choice = path_of(checkpoint, "checkpoint"), NetworkChoice(backbone, model)
    parts = _parts(given, {"clean": clean, "suspicious": suspicious, "teacher": teacher, "verdict": verdict})
    usual = usual_purifier(has_clean="clean" in parts, has_suspicious="suspicious" in parts)
    named = chosen_method(usual if method is None else method, PURIFIERS, "method")
    purifier, recipe = applied(named, recipe, settings, "method")
    check_purifier(purifier, parts)
    hints = FileHints(_numbers(mean, "mean"), _numbers(std, "std"), class_names_in(classes), image_size)
    check_words(path, choice, hints)
    taught_by = None if teacher is None else path_of(teacher, "teacher")
    teacher_network = teacher_choice(taught_by, teacher_backbone, teacher_model)
    data = {"clean": parts.get("clean"), "suspicious": parts.get("suspicious"), "test": test}
    opened, samples = _opened(path, choice, data, recipe, hints)
    if given is None:
        known, judged = samples.get("clean"), samples.get("suspicious")
        given = Given(clean=known, suspicious=judged)
        if verdict is not None and judged is not None:
            given = replace(given, verdict=verdict_of(verdict, judged))
        if taught_by is not None:
            given = replace(given, teacher=open_teacher(taught_by, teacher_network, opened, choice, known).model)
    folder = free_folder(out, "purified", resume=resume)
    saved = None if measure_trigger is None else Path(measure_trigger)
    purifying.purify(
        opened, purifier, folder, given=given, recipe=recipe, test=samples.get("test"), measure_trigger=saved,
        resume=resume,
    )  # fmt: skip
    network, _ = load_model(folder, factory_of(model))
    return Purification(network, read_metrics(folder), folder)


def _parts(given: Given | None, said: dict[str, Any]) -> dict[str, Any]:
    """What there is beside the model, by the fields of `Given`."""
    said = {name: value for name, value in said.items() if value is not None}
    if given is not None:
        if said:
            raise ConfigError(f"given cannot be combined with {' or '.join(said)}; put them into given")
        return {part.name: value for part in fields(given) if (value := getattr(given, part.name)) is not None}
    if "verdict" in said and "suspicious" not in said:
        raise ConfigError("a verdict needs its data; give them with suspicious=...")
    return said


def _opened(
    path: Path, choice: NetworkChoice, data: dict[str, Any], recipe: Recipe, hints: FileHints
) -> tuple[Opened, dict[str, Samples]]:
    """The model, and the data as samples of its shape and its classes; a file's model learns these from the data."""
    data = {name: value for name, value in data.items() if value is not None}
    if path.is_dir():
        opened = open_model(path, choice, None, recipe, hints)
        samples = {name: samples_for(opened.spec, value, name) for name, value in data.items()}
        if "clean" in samples:
            refuse_near_chance(path, opened.model, samples["clean"])
        return opened, samples
    first = next(iter(data), "")
    known = _own_samples(data[first], first, hints.image_size) if first else None
    opened = open_model(path, choice, known, recipe, hints)
    return opened, {
        name: known if known is not None and name == first else samples_for(opened.spec, value, name)
        for name, value in data.items()
    }


def _own_samples(given: Any, name: str, image_size: int | None) -> Samples:
    """Labelled samples in their own shape and classes."""
    if isinstance(given, str | Path):
        return read(given, test_fraction=0, image_size=image_size).train
    if image_size is not None:
        raise ConfigError(f"image_size resizes what is read from a path: give {name} in that size, and leave it out")
    is_pair = isinstance(given, tuple) and len(given) == 2
    X, y = given if is_pair else (given, None)
    whole = as_data_set(X, y, test_fraction=None if isinstance(given, DataSet | Samples) else 0.0)
    return whole.test if name == "test" and whole.test is not None else whole.train


def _numbers(values: Any, name: str) -> tuple[float, ...]:
    """One number for each channel, or one for all of them."""
    try:
        return (float(values),) if isinstance(values, int | float) else tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} is {values!r:.60}; give one number per channel") from error
