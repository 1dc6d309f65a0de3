"""The main job, end to end: a data set in, a run folder with model, verdicts and report out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from antibackdoor.app.residual import residual_attack_success
from antibackdoor.data.reading import DataSet
from antibackdoor.data.samples import InputArray, IntArray, Samples, StrArray
from antibackdoor.defenses import DEFENSES, DualHead
from antibackdoor.errors import ConfigError, ModelError
from antibackdoor.models.backbones import build_backbone, default_backbone
from antibackdoor.models.normalization import channel_statistics, normalized
from antibackdoor.models.own_network import adapt_factory, load_factory
from antibackdoor.protocols import Trained, TrainingDefense
from antibackdoor.report import save_gallery, write_report
from antibackdoor.runs.artifacts import SamplesTable, write_history, write_samples_table, write_skipped
from antibackdoor.runs.model_file import ModelSpec, load_model_spec, load_weights, save_model
from antibackdoor.runs.run_folder import RunFolder, read_checkpoint
from antibackdoor.statistics.metrics import clean_accuracy
from antibackdoor.training.loop import Predictions, predict
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.session import Session

Factory = Callable[..., nn.Module]


@dataclass(frozen=True)
class Job:
    """What to train, apart from the data.

    Attributes:
        defense: The defense with its hyper-parameters; E2ABL by default.
        recipe: How to train.
        backbone: A key of `BACKBONES`; empty chooses by data and machine.
        model: The user's own network in place of a backbone: `package.module:factory`, or the factory itself (it
            may take `input_shape` and `n_classes`). To load a run of one that cannot be imported, give it again.
    """

    defense: TrainingDefense = field(default_factory=DualHead)
    recipe: Recipe = field(default_factory=Recipe)
    backbone: str = ""
    model: str | Factory = ""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a finished run knows.

    Attributes:
        trained: What the defense returned.
        table: The verdict on every sample, as in `samples.parquet`.
        metrics: What stands in `metrics.json`.
    """

    trained: Trained
    table: SamplesTable
    metrics: dict[str, Any]

    @property
    def model(self) -> nn.Module:
        """The clean classifier, on the CPU, in eval mode; it takes images in [0, 1] or raw series."""
        return self.trained.model


class _Reader:
    """The journal of a process that helps another: it reads checkpoints and writes nothing."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def log(self, **fields: float | int | str | bool | None) -> None:
        """Leave it to the first process."""

    def save(self, state: dict[str, Any]) -> None:
        """Leave it to the first process."""

    def load(self) -> dict[str, Any] | None:
        """The last checkpoint."""
        return read_checkpoint(self.run)


def is_helper() -> bool:
    """Whether this process was started by another to share its batches."""
    return int(os.environ.get("LOCAL_RANK", "0")) > 0 or int(os.environ.get("RANK", "0")) > 0


def train(
    data: DataSet,
    job: Job | None = None,
    out: str | Path = "run",
    *,
    resume: bool = False,
    command: Sequence[str] = (),
) -> Outcome | None:
    """Train with a defense and write the run folder.

    Args:
        data: Training samples, and test samples if there are any.
        job: Defense, recipe, network; E2ABL with its defaults if not given.
        out: The run folder.
        resume: Go on with the run in `out` from its last checkpoint.
        command: The command line, for the report.

    Returns:
        The outcome; None in a helper process, or if the run was finished already.

    Raises:
        AntibackdoorError: If settings, data or folder do not fit.
    """
    job, out = job or Job(), Path(out)
    spec = describe_model(data.train, job, data.notes.get("image_size"))
    build = builder(spec, None if isinstance(job.model, str) else job.model)
    if is_helper():
        job.defense.train(data.train, build, job.recipe, journal=_Reader(out))
        return None
    settings = describe(data, job, spec)
    with RunFolder.create(out, settings, resume=resume, command=command) as run:
        if run.finished:
            write_report(out)
            return None
        try:
            trained = job.defense.train(data.train, build, job.recipe, journal=run)
        except RuntimeError as error:
            if "loading state_dict" not in str(error):
                raise
            raise ModelError(
                f"the checkpoint in {out} does not fit the network {spec.backbone}, which has changed since: "
                "change it back, or choose another folder"
            ) from error
        table, metrics = _write(out, data, job, spec, trained, run.seconds)
        run.finish(metrics)
    write_report(out)
    return Outcome(trained, table, metrics)


def describe_model(samples: Samples, job: Job, image_size: str | None) -> ModelSpec:
    """Which network is to be trained on these samples."""
    if job.backbone and job.model:
        raise ConfigError("--backbone and --model exclude each other: give one of them")
    own = job.model if isinstance(job.model, str) else _factory_name(job.model)
    if own and ":" not in own:
        raise ConfigError(f"--model {job.model} names no factory: write package.module:factory, without a path or .py")
    gpu = job.recipe.device in ("auto", "cuda") and torch.cuda.is_available()
    name = own or job.backbone or default_backbone(samples.kind, samples.shape, len(samples), gpu)
    mean, std = channel_statistics(samples)
    own_name = type(job.defense).__name__  # of a defense that is in no table
    defense = next((key for key, kind in DEFENSES.items() if type(job.defense) is kind), own_name)
    return ModelSpec(
        backbone=name,
        kind=samples.kind,
        input_shape=samples.shape,
        class_names=tuple(samples.class_names.tolist()),
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        image_size=image_size,
        defense=defense,
        package_version=version("antibackdoor"),
    )


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
    if ":" in spec.backbone and factory is None:
        raise ModelError(
            f"{run} was trained with an own network, {spec.backbone!r}: if you trust that code, name it "
            "with --model (from Python, give the factory)"
        )
    model = builder(spec, factory)()
    load_weights(run, model)
    return model.eval(), spec


def describe(data: DataSet, job: Job, spec: ModelSpec) -> dict[str, Any]:
    """All that decides the outcome of a run, in JSON's types; no paths, so that a run can be moved."""
    recipe = asdict(job.recipe)
    del recipe["progress"]
    return {
        "defense": spec.defense,
        "hyper_parameters": asdict(job.defense),  # type: ignore[call-overload]
        "recipe": recipe,
        "model": {"network": spec.backbone, "input_shape": list(spec.input_shape)},
        "data": {
            "n_train": len(data.train),
            "n_test": 0 if data.test is None else len(data.test),
            "n_skipped": len(data.skipped),
            "n_classes": data.train.n_classes,
            "format": data.format,
            "fingerprint": fingerprint(data.train),
            **{key: value for key, value in data.notes.items() if isinstance(value, str | int | float)},
        },
    }


def fingerprint(samples: Samples, rows: IntArray | None = None) -> str:
    """A short hash of labels, ids and a few hundred inputs (of the given rows): another data set resumes no run."""
    rows = np.arange(len(samples)) if rows is None else rows
    digest = hashlib.blake2b(samples.labels[rows].tobytes(), digest_size=8)
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), 256)).astype(np.int64))]
    digest.update("\n".join(samples.ids[rows].tolist()).encode("utf-8", "surrogateescape"))
    digest.update(np.ascontiguousarray(samples.inputs[rows]).tobytes())
    return digest.hexdigest()


def _write(
    out: Path, data: DataSet, job: Job, spec: ModelSpec, trained: Trained, seconds: float
) -> tuple[SamplesTable, dict[str, Any]]:
    """Everything of the run folder except `metrics.json` and the report."""
    samples = data.train
    session = Session(replace(job.recipe, devices=1), len(samples), images=samples.kind == "image")
    model = session.prepare(trained.model)
    verdicts = predict(session, model, samples)
    metrics = facts(samples, trained, job, spec, seconds)
    if trained.poisoned:
        metrics |= residual_attack_success(session, model, samples, trained)
    if data.test is not None and len(data.test):
        tested = predict(session, model, data.test)
        metrics["clean_accuracy"] = clean_accuracy(tested.labels, data.test.labels)
        metrics["n_test"] = len(data.test)
    save_model(out, model.cpu(), spec)
    write_history(out, trained.history)
    table = verdict_table(samples, trained, verdicts)
    write_samples_table(out, table)
    write_skipped(out, [(skipped.id, skipped.reason) for skipped in data.skipped])
    save_gallery(out, samples, np.argsort(-trained.suspicion, kind="stable"), trained.isolated)
    return table, metrics


def verdict_table(samples: Samples, trained: Trained, verdicts: Predictions) -> SamplesTable:
    """One row for every sample: what was given, what is suspected, what the clean model says."""
    unknown = trained.isolated & ~trained.recovered
    if trained.returned is not None:
        unknown &= ~trained.returned
    return SamplesTable(
        ids=samples.ids,
        given_label=samples.labels,
        suspicion=trained.suspicion,
        isolated=trained.isolated,
        recovered=trained.recovered,
        suggested_label=np.where(unknown, verdicts.labels, trained.labels),
        prediction=verdicts.labels,
        confidence=verdicts.confidence.astype(np.float64),
        margin=trained.margins,
        evidence=trained.evidence,
        class_names=samples.class_names,
    )


def facts(samples: Samples, trained: Trained, job: Job, spec: ModelSpec, seconds: float) -> dict[str, Any]:
    """What the training itself knows, as flat metrics."""
    names = [str(samples.class_names[label]) for label in trained.backdoor_labels]
    return {
        "poisoned": trained.poisoned,
        "backdoor_label": names[0] if names else None,
        "backdoor_labels": names,
        "target_labels": names,
        "n_samples": len(samples),
        "n_isolated": int(trained.isolated.sum()),
        "n_recovered": int(trained.recovered.sum()),
        "defense": spec.defense,
        "backbone": spec.backbone,
        "epochs": job.recipe.passes(len(samples)),
        "seconds": round(seconds, 2),
        "seed": job.recipe.seed,
        **(trained.notes or {}),
    }


def classify_inputs(
    model: nn.Module, spec: ModelSpec, inputs: InputArray, ids: StrArray, *, device: str = "auto"
) -> Predictions:
    """Predictions for inputs without labels, `(N, *shape)`."""
    nothing = np.zeros(len(inputs), dtype=np.int64)
    samples = Samples(inputs, nothing, ids, np.array(spec.class_names))
    session = Session(Recipe(device=device), len(samples), images=spec.kind == "image")
    return predict(session, session.prepare(model), samples)
