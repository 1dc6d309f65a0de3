"""The main job, end to end: a data set in, a run folder with model, verdicts and report out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.utils.data import Dataset, Subset

from antibackdoor.app.by_class import measure_by_class
from antibackdoor.app.fingerprints import fingerprint
from antibackdoor.app.kept import kept_subset
from antibackdoor.app.methods import hyper_parameters, method_name, method_summary
from antibackdoor.app.networks import Factory, NetworkChoice, builder, check_resumed_network, describe_model
from antibackdoor.app.read_as import record_of
from antibackdoor.app.residual import residual_attack_success
from antibackdoor.data.copies import uncounted, under_two_labels
from antibackdoor.data.reading import DataSet
from antibackdoor.data.samples import BoolArray, InputArray, Samples, StrArray
from antibackdoor.defenses import DualHead
from antibackdoor.errors import ModelError
from antibackdoor.protocols import CLEANED, ISOLATED, RELABELED, Given, Trained, TrainingDefense, Verdict
from antibackdoor.report import save_gallery, write_report
from antibackdoor.runs.artifacts import write_classes, write_history, write_skipped
from antibackdoor.runs.measurements import Measurement, keep_measurement
from antibackdoor.runs.model_file import ModelSpec, save_model
from antibackdoor.runs.run_folder import RunFolder, read_checkpoint
from antibackdoor.runs.samples_table import MIDWAY, SamplesTable, write_samples_table
from antibackdoor.training.loop import Predictions, predict
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.session import Session


@dataclass(frozen=True)
class Job:
    """What to train, apart from the data.

    Attributes:
        defense: The defense with its hyper-parameters; `DualHead` by default.
        recipe: How to train.
        backbone: A key of `BACKBONES`; empty chooses by data and machine.
        model: The user's own network in place of a backbone: `package.module:factory`, or the factory itself (it
            may take `input_shape` and `n_classes`). To load a run of one that cannot be imported, give it again.
    """

    defense: TrainingDefense = field(default_factory=DualHead)
    recipe: Recipe = field(default_factory=Recipe)
    backbone: str = ""
    model: str | Factory = ""

    @property
    def network(self) -> NetworkChoice:
        """Which network to train."""
        return NetworkChoice(self.backbone, self.model)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a finished run knows.

    Attributes:
        trained: What the defense returned.
        table: The verdict on every sample, as in `samples.parquet`.
        metrics: What stands in `metrics.json`.
        run: The run folder.
        data: What was trained on.
    """

    trained: Trained
    table: SamplesTable
    metrics: dict[str, Any]
    run: Path
    data: DataSet

    def __repr__(self) -> str:
        return f"Outcome({self.table!r}, {str(self.run)!r})"

    @property
    def keep(self) -> BoolArray:
        """Which of the given samples to train on; see `DataSet.keep`."""
        return self.data.keep(self.table.isolated)

    def subset(self, dataset: Dataset[Any]) -> Subset[Any]:
        """The kept part of the torch data set that was given."""
        return kept_subset(dataset, self.keep)

    @property
    def model(self) -> nn.Module:
        """The clean classifier, on the CPU, in eval mode; it takes images in [0, 1] or raw series."""
        return self.trained.model


class _Reader:
    """The journal of a process that helps another: it reads checkpoints and writes nothing."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.folder: Path | None = None

    def log(self, **fields: float | int | str | bool | None) -> None:
        """Leave it to the first process."""

    def tell(self, message: str) -> None:
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
    given: Given | None = None,
    resume: bool = False,
    command: Sequence[str] = (),
    tell: Callable[[str], None] = lambda _message: None,
) -> Outcome | None:
    """Train with a defense and write the run folder.

    Args:
        data: Training samples, and test samples if there are any.
        job: Defense, recipe, network; `DualHead` with its defaults if not given.
        out: The run folder.
        given: What the defense may know beside the data, such as the verdict of a scan on the same samples.
        resume: Go on with the run in `out` from its last checkpoint.
        command: The command line, for the report.
        tell: Is told how long it will take.

    Returns:
        The outcome; None in a helper process, or if the run was finished already.

    Raises:
        AntibackdoorError: If settings, data or folder do not fit.
    """
    job, out, given = job or Job(), Path(out), given or Given()
    spec = describe_model(data.train, job.network, job.recipe, method_name(job.defense), data.notes.get("image_size"))
    spec = replace(spec, **record_of(data))
    check_resumed_network(out, spec)
    build = builder(spec, job.network.factory)
    if is_helper():
        job.defense.train(data.train, build, job.recipe, given=given, journal=_Reader(out))
        return None
    settings = describe(data, job.defense, job.recipe, spec, given)
    notes = {} if data.test is None else {"test_fingerprint": fingerprint(data.test)}
    with RunFolder.create(out, settings, resume=resume, command=command, notes=notes) as run:
        if run.finished:
            write_report(out)
            return None
        run.tell = tell
        if run.notes and run.notes != notes:
            tell(f"The test data have changed since {out} was started: its accuracy will be for the current test data.")
        try:
            trained = job.defense.train(data.train, build, job.recipe, given=given, journal=run)
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
    return Outcome(trained, table, metrics, out, data)


def describe(data: DataSet, method: Any, recipe: Recipe, spec: ModelSpec, given: Given) -> dict[str, Any]:
    """All that decides the outcome of a run, in JSON's types; no paths, so that a run can be moved."""
    settings = asdict(recipe)
    del settings["progress"]
    return {
        "method": spec.method,
        "hyper_parameters": hyper_parameters(method),
        "recipe": settings,
        "model": {"network": spec.backbone, "input_shape": list(spec.input_shape)},
        "given": describe_given(given),
        **({"reading": data.options.chosen()} if data.options.chosen() else {}),
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


def describe_given(given: Given) -> dict[str, str]:
    """What a method was given beside its data, as short hashes: given something else, no run is resumed."""
    samples = {"clean": given.clean, "suspicious": given.suspicious}
    verdicts = {"verdict": given.verdict, "decisions": given.decisions}
    networks = {"model": given.model, "teacher": given.teacher}
    return {
        **{name: fingerprint(known) for name, known in samples.items() if known is not None},
        **{name: verdict_digest(known) for name, known in verdicts.items() if known is not None},
        **{name: weights_digest(known) for name, known in networks.items() if known is not None},
    }


def weights_digest(model: nn.Module) -> str:
    """A short hash of names and values of all parameters and buffers."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def verdict_digest(verdict: Verdict) -> str:
    """A short hash of what a verdict says of each sample."""
    digest = hashlib.blake2b(digest_size=8)
    for part in (verdict.status, verdict.criterion, verdict.suggested_label):
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def _write(
    out: Path, data: DataSet, job: Job, spec: ModelSpec, trained: Trained, seconds: float
) -> tuple[SamplesTable, dict[str, Any]]:
    """Everything of the run folder except `metrics.json` and the report."""
    samples, verdict = data.train, trained.verdict.ordered(data.train.labels)
    session = Session(replace(job.recipe, devices=1), len(samples), images=samples.kind == "image")
    model = session.prepare(trained.model)
    predictions = predict(session, model, samples)
    metrics = {
        **verdict_metrics(samples, verdict),
        **data.reading_metrics(),
        "method": spec.method,
        "method_summary": method_summary(job.defense),
        "backbone": spec.backbone,
        "epochs": getattr(job.defense, "epochs", job.recipe.passes(len(samples))),
        "seconds": round(seconds, 2),
        "seed": job.recipe.seed,
        **asdict(trained.facts),
    }
    if verdict.poisoned:
        metrics |= residual_attack_success(session, model, samples, trained)
    if data.test is not None and len(data.test):
        metrics |= _tested(out, session, model, data, data.test)
    save_model(out, model.cpu(), spec)
    write_history(out, trained.history)
    table = verdict_table(samples, verdict, predictions)
    write_samples_table(out, table)
    if trained.midway is not None:
        write_samples_table(out, verdict_table(samples, trained.midway.ordered(samples.labels)), MIDWAY)
    write_skipped(out, data.left_out)
    save_gallery(out, samples, np.argsort(-verdict.suspicion, kind="stable"), verdict.isolated)
    return table, metrics


def _tested(out: Path, session: Session, model: nn.Module, data: DataSet, test: Samples) -> dict[str, Any]:
    """What the test samples say of the model; those that it was trained on do not count. Writes `classes.csv`."""
    numbers, classes = measure_by_class(session, model, test, uncounted=uncounted(test, data.train.contents))
    write_classes(out, test.class_names, classes)
    split = "held out" if str(data.notes.get("test", "")).startswith("held out") else "test"
    names = [str(name) for name in test.class_names]
    found = keep_measurement(out, Measurement(split, fingerprint(test), None, numbers, names, classes))
    return {**numbers, "test_split": found.split, "test_fingerprint": found.test_fingerprint}


def verdict_table(samples: Samples, verdict: Verdict, predictions: Predictions | None = None) -> SamplesTable:
    """One row for every sample: what was given, what is suspected, what the model says if there is one.

    An isolated sample without a suggestion gets the model's.
    """
    if predictions is not None:
        unknown = (verdict.status == ISOLATED) & (verdict.suggested_label == samples.labels)
        suggested = np.where(unknown, predictions.labels, verdict.suggested_label)
        verdict = replace(verdict, suggested_label=suggested)
    return SamplesTable(
        ids=samples.ids,
        given_label=samples.labels,
        class_names=samples.class_names,
        verdict=verdict,
        prediction=None if predictions is None else predictions.labels,
        confidence=None if predictions is None else predictions.confidence.astype(np.float64),
        contents=samples.contents,
    )


def verdict_metrics(samples: Samples, verdict: Verdict) -> dict[str, Any]:
    """What a verdict says, as flat metrics."""
    return {
        "poisoned": verdict.poisoned,
        "target_labels": [str(samples.class_names[label]) for label in verdict.target_labels],
        "p_value": verdict.p_value,
        "n_samples": len(samples),
        "n_isolated": int(verdict.isolated.sum()),
        "n_relabeled": int((verdict.status == RELABELED).sum()),
        "n_cleaned": int((verdict.status == CLEANED).sum()),
        "n_unexamined_labels": len(verdict.unexamined),
        "unexamined_labels": [str(samples.class_names[label]) for label in verdict.unexamined],
        "n_unexamined_samples": int(np.isin(samples.labels, verdict.unexamined).sum()),
        "n_conflicting_copies": int(under_two_labels(samples.contents, samples.labels).sum()),
    }


def classify_inputs(
    model: nn.Module, spec: ModelSpec, inputs: InputArray, ids: StrArray, *, device: str = "auto"
) -> Predictions:
    """Predictions for inputs without labels, `(N, *shape)`."""
    nothing = np.zeros(len(inputs), dtype=np.int64)
    samples = Samples(inputs, nothing, ids, np.array(spec.class_names))
    session = Session(Recipe(device=device), len(samples), images=spec.kind == "image")
    return predict(session, session.prepare(model), samples)
