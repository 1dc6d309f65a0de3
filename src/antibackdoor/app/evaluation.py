"""Measure a run on labelled test data, and, where the truth is known, what was isolated and what the trigger does."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from antibackdoor.app.by_class import ClassColumns, measure_by_class
from antibackdoor.app.fingerprints import fingerprint, is_same
from antibackdoor.app.measuring import measure_partition, top_percent
from antibackdoor.app.networks import Factory, load_model
from antibackdoor.attacks import Truth, load_fitting_trigger, load_trigger, read_truth
from antibackdoor.data.copies import Uncounted, uncounted
from antibackdoor.data.regular_files import regular_file
from antibackdoor.data.samples import BoolArray, IntArray, Samples
from antibackdoor.errors import DataError, cannot
from antibackdoor.protocols import RELABELED
from antibackdoor.report import write_report
from antibackdoor.runs.artifacts import CLASSES, read_classes, read_metrics, write_classes, write_metrics
from antibackdoor.runs.lock import alone_in
from antibackdoor.runs.measurements import MEASUREMENTS, Measurement, keep_measurement
from antibackdoor.runs.metric_keys import MEASURED_ON_TEST_DATA, MEASURED_WITH_A_TRIGGER
from antibackdoor.runs.run_folder import read_config
from antibackdoor.runs.samples_table import (
    MIDWAY,
    SAMPLES,
    SamplesTable,
    read_sample_columns,
    read_samples_table,
    sample_column_names,
)
from antibackdoor.statistics.metrics import (
    auroc,
    false_positive_rate,
    isolation_precision,
    isolation_recall,
    recovered_label_precision,
    true_positive_rate_at,
)
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.session import Session

BEFORE = "_before"  # ends what `purify` measured of the model that it was given
CLEAN, ATTACKED = ("clean_accuracy",), ("attack_success_rate", "robust_accuracy", "clean_accuracy_nontarget")


def evaluate(
    run: str | Path,
    samples: Samples | None = None,
    *,
    truth: Path | None = None,
    trigger: Path | None = None,
    device: str = "auto",
    factory: Factory | None = None,
    split: Literal["test", "train", "all"] = "test",
) -> dict[str, Any]:
    """Measure a run; the numbers go into its `metrics.json`, those of each class into `classes.csv`.

    Samples that the model was trained on count for no accuracy. Where none is left of a train split, or of all data,
    the numbers go into `measurements.json` alone, which keeps all that was ever measured, and `classes.csv` stays.

    Args:
        run: The run folder, of a training or of a scan.
        samples: Clean labelled test samples, mapped to the run's classes; None measures the verdict alone.
        truth: `truth.parquet` of the poisoned training data, to measure the verdict.
        trigger: Folder of a saved trigger, to measure the attack success rate.
        device: Where to compute.
        factory: Of the user's own network, where it cannot be imported by its name.
        split: Which part of their data the samples are.

    Returns:
        The new metrics.

    Raises:
        ModelError: If there are samples and the run has no model, or it cannot be loaded.
        DataError: If data, trigger and truth do not fit each other, or nothing is to be measured.
    """
    run = Path(run)
    if samples is None and (truth is None or trigger is not None):
        raise DataError("nothing to measure: give --data for the model, or --truth for the verdict")
    if truth is not None and not (run / SAMPLES).exists():
        raise DataError(f"{run} has no verdict on samples (a purified model): leave --truth out")
    read_metrics(run)  # a folder without results is refused untouched
    with alone_in(run):
        return _evaluated(run, samples, truth, trigger, device, factory, split)


def _evaluated(
    run: Path,
    samples: Samples | None,
    truth: Path | None,
    trigger: Path | None,
    device: str,
    factory: Factory | None,
    split: str,
) -> dict[str, Any]:
    """`evaluate`, while no one else writes to the run."""
    known, about = read_metrics(run), fingerprints(samples, trigger, truth)
    measured: dict[str, Any] = {}
    if samples is not None:
        found = keep_measurement(run, _measurement(run, samples, trigger, device, factory, split, about))
        measured = {**found.numbers, "test_split": found.split}
        if found.n_counted or split == "test":
            known = {**_comparable(known, about), **measured}
            write_classes(run, samples.class_names, {**found.by_class, **_kept_columns(run, samples, known)})
            measured["by_class"] = CLASSES
        else:
            measured["by_class"] = MEASUREMENTS
            about = {"truth_fingerprint": about["truth_fingerprint"]} if truth is not None else {}
    if truth is not None:
        of_verdict = _truth_metrics(run, truth)
        known, measured = {**known, **of_verdict}, {**measured, **of_verdict}
    write_metrics(run, {**known, **about})
    write_report(run)
    return measured


def is_evaluated(run: Path, samples: Samples | None, trigger: Path | None, truth: Path | None) -> bool:
    """Whether `evaluate` has measured a run on just these samples, with this trigger and this truth."""
    known = read_metrics(run)
    return all(known.get(name) == digest for name, digest in fingerprints(samples, trigger, truth).items())


def fingerprints(samples: Samples | None, trigger: Path | None, truth: Path | None) -> dict[str, str]:
    """What a run is measured by, as short hashes, so that numbers are compared only where they belong together."""
    found: dict[str, str] = {}
    if samples is not None:
        found["test_fingerprint"] = fingerprint(samples)
    if trigger is not None:
        load_trigger(trigger)  # says what is missing or damaged
        found["trigger_fingerprint"] = _files_digest(trigger / "trigger.json", trigger / "trigger.safetensors")
    if truth is not None:
        read_truth(truth)
        found["truth_fingerprint"] = _files_digest(truth)
    return found


def _files_digest(*paths: Path) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for path in paths:
        try:
            with regular_file(path) as file:
                digest.update(file.read())
        except OSError as error:
            raise DataError(cannot("read", path, error)) from error
    return digest.hexdigest()


def _comparable(known: Mapping[str, Any], about: Mapping[str, str]) -> dict[str, Any]:
    """Old metrics, without what was measured on other data, or with another trigger."""
    moved = {name for name, digest in about.items() if known.get(name) != digest}
    gone = (*CLEAN, *ATTACKED) if "test_fingerprint" in moved else ATTACKED if "trigger_fingerprint" in moved else ()
    dropped = {f"{name}{BEFORE}" for name in gone}
    if "test_fingerprint" in moved:  # what the trigger does to these data is not known yet
        dropped |= {*MEASURED_ON_TEST_DATA, *MEASURED_WITH_A_TRIGGER}
    if "trigger_fingerprint" in moved:
        dropped |= {*MEASURED_WITH_A_TRIGGER}
    return {key: value for key, value in known.items() if key not in dropped}


def _kept_columns(run: Path, samples: Samples, known: Mapping[str, Any]) -> ClassColumns:
    """Columns of `classes.csv` about the model before a purification, where they are still comparable."""
    if not (run / CLASSES).exists():
        return {}
    names, columns = read_classes(run)
    kept: ClassColumns = {name: values for name, values in columns.items() if name.endswith(BEFORE) and name in known}
    if names != [str(name) for name in samples.class_names.tolist()]:
        return {}
    return kept


def _measurement(
    run: Path,
    samples: Samples,
    trigger: Path | None,
    device: str,
    factory: Factory | None,
    split: str,
    about: Mapping[str, str],
) -> Measurement:
    model, spec = load_model(run, factory)
    session = Session(Recipe(device=device), len(samples), images=spec.kind == "image")
    saved = None if trigger is None else load_fitting_trigger(trigger, samples)
    left_out = _trained_on(run, samples, split)
    numbers, classes = measure_by_class(session, session.prepare(model), samples, saved, uncounted=left_out)
    names = [str(name) for name in samples.class_names]
    return Measurement(split, about["test_fingerprint"], about.get("trigger_fingerprint"), numbers, names, classes)


def _trained_on(run: Path, samples: Samples, split: str) -> Uncounted:
    """Which samples the run was trained on; none where that is not known."""
    if not (run / SAMPLES).exists():  # a purified model
        return uncounted(samples, None)
    if "content" in sample_column_names(run):
        return uncounted(samples, read_sample_columns(run, ["content"])[0]["content"])
    rows = None if split == "test" else _rows_of(run, samples)  # an older version wrote no hashes
    return uncounted(samples, None if rows is None else samples.contents[rows])


def never_trained_on(run: str | Path, samples: Samples) -> Samples:
    """The samples that a run held out, if these are the data that it divided by itself; else all of them.

    Args:
        run: The run folder.
        samples: All labelled data, as `read_samples` gives them.

    Raises:
        DataError: If the run was trained (or purified) on every one of them.
    """
    run = Path(run)
    if not (run / SAMPLES).exists():
        if any(is_same(known, samples) for known in read_config(run)["settings"].get("given", {}).values()):
            raise DataError(f"{run} was purified with these very data; give others, or --split all to measure on them")
        return samples
    rows = _rows_of(run, samples)
    if rows is None:
        return samples
    if len(rows) == len(samples):
        raise DataError(f"{run} was trained on all of these data; give others, or --split all to measure on them")
    return samples.take(np.setdiff1d(np.arange(len(samples)), rows))


def _rows_of(run: Path, samples: Samples) -> IntArray | None:
    """Where the training samples of a run are among these; None if these are other data."""
    columns, _ = read_sample_columns(run, ["id"])
    place = {name: row for row, name in enumerate(samples.ids.tolist())}
    rows = np.array([place[name] for name in columns["id"] if name in place], dtype=np.int64)
    if not 0 < len(rows) == len(columns["id"]):
        return None
    known = read_config(run)["settings"].get("data", {}).get("fingerprint")
    if is_same(known, samples, rows):
        return rows
    _refuse_changed(run, samples, rows)
    return None


def _refuse_changed(run: Path, samples: Samples, rows: IntArray) -> None:
    """Of the data that a run was trained on, some of which have changed since, none can be told to be new to it."""
    if "content" not in sample_column_names(run):  # an older version wrote no hashes
        return
    kept = read_sample_columns(run, ["content"])[0]["content"] == samples.contents[rows]
    if kept.mean() > 0.5:  # otherwise these are other data, under the same ids
        raise DataError(
            f"{int((~kept).sum()):,} of the {len(rows):,} samples that {run} was trained on are not what they were: "
            "give the data as they were then, other data, or --split all to measure on all of these"
        )


def _truth_metrics(run: Path, path: Path) -> dict[str, Any]:
    """What a verdict is worth, by the truth; also that of the middle of the training, where the run has one."""
    table = read_samples_table(run)
    truth = _truth_of(table, path)
    known = truth.is_poisoned, truth.true_labels, truth.also_true
    measured = _verdict_metrics(table, *known)
    if (run / MIDWAY).exists():
        midway = read_samples_table(run, MIDWAY)
        partition = measure_partition(midway.verdict, *known)
        measured |= {f"midway_{name}": value for name, value in partition.items()}
    return measured


def _truth_of(table: SamplesTable, path: Path) -> Truth:
    """The truth of the samples of a table."""
    ids, whole = read_truth(path)
    place = {name: row for row, name in enumerate(ids.tolist())}
    missing = next((name for name in table.ids.tolist() if name not in place), None)
    if missing is not None:
        raise DataError(f"{path} says nothing about the sample {missing!r}; give the truth of the training data")
    rows = np.array([place[name] for name in table.ids.tolist()], dtype=np.int64)
    truth = whole.take(rows)
    if len(rows) and truth.true_labels.max() >= len(table.class_names):
        raise DataError(f"{path} is the truth of other data: it has more classes than the {len(table.class_names)}")
    other = np.flatnonzero(~truth.is_poisoned & (table.given_label != truth.true_labels))
    if len(other):
        name = table.ids[other[0]]
        raise DataError(f"{path} is the truth of other data: it says that {name!r} is clean, but gives another label")
    return truth


def _verdict_metrics(
    table: SamplesTable, is_poisoned: BoolArray, true_labels: IntArray, also_true: IntArray | None = None
) -> dict[str, Any]:
    verdict, isolated = table.verdict, table.isolated
    return {
        "isolation_precision": isolation_precision(isolated, is_poisoned),
        "isolation_recall": isolation_recall(isolated, is_poisoned),
        "false_positive_rate": false_positive_rate(isolated, is_poisoned),
        "recovered_label_precision": recovered_label_precision(
            verdict.suggested_label, true_labels, verdict.status == RELABELED, is_poisoned, also_true=also_true
        ),
        "suspicion_auroc": auroc(verdict.suspicion, is_poisoned),
        "suspicion_tpr_at_1_fpr": true_positive_rate_at(verdict.suspicion, is_poisoned),
        "precision_of_top_1_percent": isolation_precision(top_percent(verdict.suspicion), is_poisoned),
        "n_poisoned": int(is_poisoned.sum()),
        "n_missed": int((is_poisoned & ~isolated).sum()),
    }
