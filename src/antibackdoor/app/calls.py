"""The package as it is called from Python: data in any form, a method by name, settings as keyword arguments."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset, Subset

from antibackdoor.app import evaluation, pipeline, scanning
from antibackdoor.app.call_parts import factory_of, free_folder, path_of, samples_like, tell
from antibackdoor.app.given_data import as_data_set
from antibackdoor.app.given_models import open_model
from antibackdoor.app.kept import kept_subset
from antibackdoor.app.networks import Factory, NetworkChoice, load_model
from antibackdoor.app.pipeline import Job, Outcome
from antibackdoor.app.python_words import python_words
from antibackdoor.app.scanning import Scan
from antibackdoor.app.settings import applied, chosen_method
from antibackdoor.app.verdicts import verdict_of
from antibackdoor.data.reading import DataSet
from antibackdoor.data.samples import BoolArray, Samples, StrArray
from antibackdoor.defenses import DEFENSES
from antibackdoor.detectors import DETECTORS
from antibackdoor.errors import ConfigError
from antibackdoor.protocols import Given, Trained
from antibackdoor.runs.artifacts import read_history, read_metrics
from antibackdoor.runs.samples_table import SamplesTable
from antibackdoor.training.recipe import Recipe

evaluate = python_words()(evaluation.evaluate)


@dataclass(frozen=True, eq=False)
class Scanned:
    """What a scan found.

    Attributes:
        table: The verdict on every sample, as in `samples.parquet`.
        metrics: What stands in `metrics.json`.
        run: The run folder.
        data: What was scanned.
    """

    table: SamplesTable
    metrics: dict[str, Any]
    run: Path
    data: DataSet

    def __repr__(self) -> str:
        return f"Scanned({self.table!r}, {str(self.run)!r})"

    @property
    def poisoned(self) -> bool | None:
        """Whether the data are poisoned; None where the detector does not judge."""
        return self.table.verdict.poisoned

    @property
    def suspects(self) -> StrArray:
        """Ids of what was isolated, `(M,)` str."""
        return self.table.ids[self.table.isolated]

    @property
    def keep(self) -> BoolArray:
        """Which of the given samples to train on; see `DataSet.keep`."""
        return self.data.keep(self.table.isolated)

    def subset(self, dataset: Dataset[Any]) -> Subset[Any]:
        """The kept part of the torch data set that was given."""
        return kept_subset(dataset, self.keep)


@python_words()
def train(
    data: Any,
    y: Any = None,
    out: str | Path | None = None,
    *,
    defense: Any = "dual-head",
    test_fraction: float | None = None,
    verdict: str | Path | None = None,
    clean: Any = None,
    given: Given | None = None,
    recipe: Recipe | str | None = None,
    backbone: str = "",
    model: str | Factory = "",
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    schedule: str | None = None,
    momentum: float | None = None,
    weight_decay: float | None = None,
    augment: str | None = None,
    precision: str | None = None,
    device: str | None = None,
    devices: int | None = None,
    seed: int | None = None,
    progress: bool | None = None,
    job: Job | None = None,
    resume: bool = False,
) -> Outcome | None:
    """Train with a defense and write a run folder.

    Args:
        data: A path, arrays with their labels in `y`, a `pandas.DataFrame`, a torch `Dataset`, a `datasets.Dataset`,
            or what `read` and the functions `from_...` return.
        y: The labels, one a sample, where `data` are arrays. A `Job` may stand in this place.
        out: The run folder; by default `run`, or `run-2`, `run-3`, ... where that exists.
        defense: A key of `DEFENSES`, or a defense with its settings.
        test_fraction: Part of each class that is held out where `data` have no test split; 0.2 by default.
        verdict: Run folder of a scan of the same data, in place of a new search.
        clean: Samples that are known to be clean, as in `scan`, for `retrain` with a detector that needs some.
        given: What else the defense may know beside the data.
        recipe: How to train, or a name: `practical`, `nad`, `abl`, `e2abl`; the settings below win over its fields.
        backbone: A key of `BACKBONES`; empty chooses by data and machine.
        model: A network of your own in place of a backbone: a factory, or `package.module:factory`.
        epochs: Passes over the data, a field of the defense where it has one; 0 chooses.
        batch_size: As in `Recipe`, or of the defense; also the settings that follow.
        job: Defense, recipe and network in one, in place of all these.
        resume: Go on with the run in `out` from its last checkpoint.

    Returns:
        Model, table and metrics; None in a helper process of several devices.

    Raises:
        AntibackdoorError: If settings, data or folder do not fit; the message names the argument.
    """
    settings = {
        "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "schedule": schedule,
        "momentum": momentum, "weight_decay": weight_decay, "augment": augment, "precision": precision,
        "device": device, "devices": devices, "seed": seed, "progress": progress,
    }  # fmt: skip
    job, y = _job(y, job, [settings, {"recipe": recipe, "backbone": backbone, "model": model}])
    if isinstance(job, Scan):
        raise ConfigError("a Scan holds a detector, which trains nothing: give a Job, or defense=...")
    if job is None:
        method, recipe = applied(chosen_method(defense, DEFENSES, "defense"), recipe, settings, "defense")
        job = Job(method, recipe, backbone, model)
    whole = as_data_set(data, y, test_fraction=test_fraction)
    if verdict is not None or clean is not None:
        if given is not None:
            raise ConfigError("given cannot be combined with verdict or clean; put them into given")
        given = _known(whole, None, clean, job.network, job.recipe)
        given = given if verdict is None else replace(given, verdict=verdict_of(verdict, whole.train))
    folder = free_folder(out, "run", resume=resume)
    outcome = pipeline.train(whole, job, folder, given=given, resume=resume)
    if outcome is None and not pipeline.is_helper():
        return _finished(folder, whole, job)
    return outcome


@python_words()
def scan(
    data: Any,
    y: Any = None,
    out: str | Path | None = None,
    *,
    detector: Any = "confusion",
    checkpoint: str | Path | None = None,
    clean: Any = None,
    given: Given | None = None,
    recipe: Recipe | str | None = None,
    backbone: str = "",
    model: str | Factory = "",
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
    job: Scan | None = None,
    resume: bool = False,
) -> Scanned:
    """Judge the training samples and write a run folder; no classifier is delivered.

    Args:
        data: As in `train`; nothing is held out of it. Of a `DataSet` only the training samples are looked at.
        y: The labels, where `data` are arrays. A `Scan` may stand in this place.
        out: The run folder; by default `scan`, or `scan-2`, `scan-3`, ... where that exists.
        detector: A key of `DETECTORS`, or a detector with its settings.
        checkpoint: Run folder of a trained model, for detectors that look at one; else one is trained.
        clean: Samples that are known to be clean, for detectors that need some: `DataSet`, `Samples` or `(X, y)`.
        given: What else the detector may know beside the data.
        recipe: How to train what the detector needs, as in `train`; the settings below win over its fields.
        backbone: As in `train`; also `model` and the settings that follow.
        job: Detector, recipe and network in one, in place of all these.
        resume: Go on with the scan in `out`.

    Returns:
        Table, metrics, and what to keep.

    Raises:
        AntibackdoorError: If settings, data or folder do not fit; the message names the argument.
    """
    settings = {
        "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "schedule": schedule,
        "momentum": momentum, "weight_decay": weight_decay, "augment": augment, "precision": precision,
        "device": device, "seed": seed, "progress": progress,
    }  # fmt: skip
    job, y = _job(y, job, [settings, {"recipe": recipe, "backbone": backbone, "model": model}])
    if job is None:
        method, recipe = applied(chosen_method(detector, DETECTORS, "detector"), recipe, settings, "detector")
        job = Scan(method, recipe, backbone, model)
    recipe = job.recipe
    whole = as_data_set(data, y, test_fraction=None if isinstance(data, DataSet | Samples) else 0.0)
    if checkpoint is not None or clean is not None:
        if given is not None:
            raise ConfigError("given cannot be combined with checkpoint or clean; put them into given")
        given = _known(whole, checkpoint, clean, job.network, recipe)
    folder = free_folder(out, "scan", resume=resume)
    scanning.scan(whole, job, folder, given=given, resume=resume, tell=tell if recipe.progress else lambda _: None)
    return Scanned(SamplesTable.load(folder), read_metrics(folder), folder, whole)


def _job(y: Any, job: Any, others: list[dict[str, Any]]) -> tuple[Any, Any]:
    """The job, which may stand in the place of the labels, once nothing is said beside it; and the labels."""
    if isinstance(y, Job | Scan) and job is None:
        y, job = None, y
    if job is None:
        return None, y
    if not isinstance(job, Job | Scan):
        raise ConfigError(f"job is of type {type(job).__name__}; give an antibackdoor.Job, or for a scan a Scan")
    said = [name for part in others for name, value in part.items() if value not in (None, "")]
    if said:
        raise ConfigError(f"{said[0]} is given together with a {type(job).__name__}; put it into that")
    return job, y


def _finished(run: Path, data: DataSet, job: Job) -> Outcome:
    """The outcome of a run that was finished already."""
    model, _ = load_model(run, factory_of(job.model))
    table = SamplesTable.load(run)
    return Outcome(Trained(model, read_history(run), table.verdict), table, read_metrics(run), run, data)


def _known(data: DataSet, checkpoint: Any, clean: Any, choice: NetworkChoice, recipe: Recipe) -> Given:
    """What a detector is given beside the data."""
    known = None if clean is None else samples_like(data, clean, "clean")
    if checkpoint is None:
        return Given(clean=known)
    opened = open_model(path_of(checkpoint, "checkpoint"), choice, known or data.train, recipe)
    return Given(clean=known, model=opened.model, history=opened.history)
