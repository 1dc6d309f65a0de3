"""Measure a run on labelled test data, and, where the truth is known, what was isolated and what the trigger does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from antibackdoor.app.pipeline import Factory, fingerprint, load_model
from antibackdoor.attacks import load_trigger, read_truth, trigger_test_set
from antibackdoor.data.samples import IntArray, Samples
from antibackdoor.errors import DataError
from antibackdoor.report import write_report
from antibackdoor.runs.artifacts import CLASSES, read_metrics, read_sample_columns, write_classes, write_metrics
from antibackdoor.runs.run_folder import read_config
from antibackdoor.statistics.intervals import wilson_interval
from antibackdoor.statistics.metrics import (
    ClassRow,
    attack_success_rate,
    auroc,
    class_accuracy,
    class_attack_success,
    clean_accuracy,
    clean_accuracy_nontarget,
    isolation_precision,
    isolation_recall,
    recovered_label_precision,
)
from antibackdoor.training.loop import predict
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.session import Session

ClassColumns = dict[str, list[float | int | None]]


def evaluate(
    run: str | Path,
    samples: Samples,
    *,
    truth: Path | None = None,
    trigger: Path | None = None,
    device: str = "auto",
    factory: Factory | None = None,
) -> dict[str, Any]:
    """Measure the model of a run; the numbers go into its `metrics.json`, those of each class into `classes.csv`.

    Args:
        run: The run folder.
        samples: Clean labelled test samples, mapped to the run's classes.
        truth: `truth.parquet` of the poisoned training data, to measure the isolation.
        trigger: Folder of a saved trigger, to measure the attack success rate.
        device: Where to compute.
        factory: Of the user's own network, where it cannot be imported by its name.

    Returns:
        The new metrics.

    Raises:
        ModelError: If the run has no model, or it cannot be loaded.
        DataError: If data, trigger and truth do not fit each other.
    """
    run = Path(run)
    model, spec = load_model(run, factory)
    session = Session(Recipe(device=device), len(samples), images=spec.kind == "image")
    model = session.prepare(model)
    predicted = predict(session, model, samples).labels
    low, high = wilson_interval(int((predicted == samples.labels).sum()), len(samples))
    measured: dict[str, Any] = {
        "clean_accuracy": clean_accuracy(predicted, samples.labels),
        "n_test": len(samples),
        "clean_accuracy_low": low,
        "clean_accuracy_high": high,
    }
    classes = _columns("clean_accuracy", class_accuracy(predicted, samples.labels, samples.n_classes))
    if trigger is not None:
        attacked, by_class = _attack_metrics(session, model, samples, predicted, trigger)
        measured, classes = {**measured, **attacked}, {**classes, **by_class}
    if truth is not None:
        measured |= _truth_metrics(run, truth)
    write_classes(run, samples.class_names, classes)
    write_metrics(run, {**read_metrics(run), **measured})
    write_report(run)
    return {**measured, "by_class": CLASSES}


def never_trained_on(run: str | Path, samples: Samples) -> Samples:
    """The samples that a run held out, if these are the data that it divided by itself; else all of them.

    Args:
        run: The run folder.
        samples: All labelled data, as `read_samples` gives them.

    Raises:
        DataError: If the run was trained on every one of them.
    """
    run = Path(run)
    columns, _ = read_sample_columns(run, ["id"])
    place = {name: row for row, name in enumerate(samples.ids.tolist())}
    rows = np.array([place[name] for name in columns["id"] if name in place], dtype=np.int64)
    known = read_config(run)["settings"].get("data", {}).get("fingerprint")
    if not len(rows) or len(rows) < len(columns["id"]) or fingerprint(samples, rows) != known:
        return samples
    if len(rows) == len(samples):
        raise DataError(f"{run} was trained on all of these data; give others, or --split all to measure on them")
    return samples.take(np.setdiff1d(np.arange(len(samples)), rows))


def _attack_metrics(
    session: Session, model: nn.Module, samples: Samples, predicted: IntArray, folder: Path
) -> tuple[dict[str, Any], ClassColumns]:
    saved = load_trigger(folder)
    triggered = trigger_test_set(samples, saved.trigger, saved.plan)
    if not len(triggered):
        raise DataError("the data hold no sample that the attack aims at; give test data of all classes")
    answers = predict(session, model, triggered).labels
    goal, everyone = saved.plan.goal(triggered.labels), np.ones(len(triggered), dtype=bool)
    low, high = wilson_interval(int((answers == goal).sum()), len(triggered))
    measured: dict[str, Any] = {
        "attack_success_rate": attack_success_rate(answers, everyone, goal),
        "attack_success_rate_low": low,
        "attack_success_rate_high": high,
        "n_triggered": len(triggered),
    }
    target = getattr(saved.plan, "target_label", None)
    if isinstance(target, int):
        measured["clean_accuracy_nontarget"] = clean_accuracy_nontarget(predicted, samples.labels, target)
    rows = class_attack_success(answers, triggered.labels, everyone, goal, samples.n_classes)
    return measured, _columns("attack_success_rate", rows)


def _columns(name: str, rows: list[ClassRow]) -> ClassColumns:
    """Count, fraction and Wilson's 95% interval of each class; None where a class has no samples."""
    bounds = [wilson_interval(round(row.value * row.n_samples) if row.n_samples else 0, row.n_samples) for row in rows]
    known = [row.n_samples > 0 for row in rows]
    return {
        f"{name}_n": [row.n_samples for row in rows],
        name: [row.value if k else None for row, k in zip(rows, known, strict=True)],
        f"{name}_low": [bound.low if k else None for bound, k in zip(bounds, known, strict=True)],
        f"{name}_high": [bound.high if k else None for bound, k in zip(bounds, known, strict=True)],
    }


def _truth_metrics(run: Path, path: Path) -> dict[str, Any]:
    columns, _ = read_sample_columns(
        run, ["id", "isolated", "recovered", "suggested_label", "suspicion", "given_label"]
    )
    ids, truth = read_truth(path)
    place = {name: row for row, name in enumerate(ids.tolist())}
    missing = next((name for name in columns["id"] if name not in place), None)
    if missing is not None:
        raise DataError(f"{path} says nothing of the sample {missing!r}; give the truth of the data trained on")
    rows = np.array([place[name] for name in columns["id"]], dtype=np.int64)
    is_poisoned, true_labels = truth.is_poisoned[rows], truth.true_labels[rows]
    other = np.flatnonzero(~is_poisoned & (columns["given_label"] != true_labels))
    if len(other):
        name = columns["id"][other[0]]
        raise DataError(f"{path} is the truth of other data: it says that {name!r} is clean, but of another label")
    return {
        "isolation_precision": isolation_precision(columns["isolated"], is_poisoned),
        "isolation_recall": isolation_recall(columns["isolated"], is_poisoned),
        "recovered_label_precision": recovered_label_precision(
            columns["suggested_label"], true_labels, columns["recovered"], is_poisoned
        ),
        "suspicion_auroc": auroc(columns["suspicion"], is_poisoned),
        "n_poisoned": int(is_poisoned.sum()),
        "n_missed": int((is_poisoned & ~columns["isolated"]).sum()),
    }
