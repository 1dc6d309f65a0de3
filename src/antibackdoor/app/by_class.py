"""A model on labelled test data: over all of them, class by class, and with a known trigger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from antibackdoor.app.measuring import accuracy_metrics, other_sources, success_metrics
from antibackdoor.attacks import SavedTrigger, trigger_test_set
from antibackdoor.data.copies import Uncounted
from antibackdoor.data.samples import Samples
from antibackdoor.errors import DataError
from antibackdoor.statistics.intervals import wilson_interval
from antibackdoor.statistics.metrics import (
    ClassRow,
    class_accuracy,
    class_attack_success,
    clean_accuracy_nontarget,
)
from antibackdoor.training.loop import predict
from antibackdoor.training.session import Session

ClassColumns = dict[str, Sequence[float | int | None]]


def measure_by_class(
    session: Session,
    model: nn.Module,
    samples: Samples,
    saved: SavedTrigger | None = None,
    triggered: Samples | None = None,
    uncounted: Uncounted | None = None,
) -> tuple[dict[str, Any], ClassColumns]:
    """Metrics of a model on clean and, if a trigger is known, triggered samples, and the same for each class.

    Args:
        session: Device and precision.
        model: Prepared by the session.
        samples: Clean labelled test samples.
        saved: Trigger and fitted plan.
        triggered: The samples that count, with this trigger, if they are made already: some triggers are searched for
            in each sample.
        uncounted: Samples that count for no accuracy.

    Raises:
        DataError: If the attack aims at none of the samples.
    """
    predicted = predict(session, model, samples).labels
    measured: dict[str, Any] = accuracy_metrics(predicted, samples.labels, uncounted)
    counted = np.ones(len(samples), dtype=bool) if uncounted is None else ~uncounted.any_of_them
    rows = class_accuracy(predicted[counted], samples.labels[counted], samples.n_classes)
    classes = _columns("clean_accuracy", rows)
    if saved is None:
        return measured, classes
    target = getattr(saved.plan, "target_label", None)
    if isinstance(target, int):
        accuracy = clean_accuracy_nontarget(predicted[counted], samples.labels[counted], target)
        measured["clean_accuracy_nontarget"] = accuracy
    attacked, by_class = _attack_metrics(session, model, samples, saved, triggered)
    return {**measured, **attacked}, {**classes, **by_class}


def _attack_metrics(
    session: Session,
    model: nn.Module,
    samples: Samples,
    saved: SavedTrigger,
    triggered: Samples | None,
) -> tuple[dict[str, Any], ClassColumns]:
    if triggered is None:
        triggered = trigger_test_set(samples, saved.trigger, saved.plan)
    if not len(triggered):
        raise DataError("the data hold no sample that the attack targets; give test data of all classes")
    answers = predict(session, model, triggered).labels
    measured: dict[str, Any] = success_metrics(answers, triggered.labels, saved.plan)
    measured |= other_sources(session, model, samples, saved.trigger, saved.plan)
    goal, everyone = saved.plan.goal(triggered.labels), np.ones(len(triggered), dtype=bool)
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
