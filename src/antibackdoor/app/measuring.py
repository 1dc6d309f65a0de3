"""What is measured, by the truth: of a trained model on clean and triggered test samples, and of a verdict."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from torch import nn

from antibackdoor.attacks import AllToOne, Truth, trigger_test_set
from antibackdoor.data.copies import Uncounted
from antibackdoor.data.samples import BoolArray, FloatArray, IntArray, Samples
from antibackdoor.errors import ConfigError, DataError
from antibackdoor.protocols import CLEANED, RELABELED, Plan, Trigger, Verdict
from antibackdoor.statistics import metrics
from antibackdoor.statistics.intervals import wilson_interval
from antibackdoor.statistics.isolation import most_suspicious
from antibackdoor.training.loop import predict
from antibackdoor.training.session import Session

OTHERS = "_other_sources"  # what is measured on classes that the attack leaves alone
TOP = 0.01  # share of the samples that the papers isolate or relabel
BLOCK = 4096  # samples that are hashed at a time: a mapped file may be larger than memory


def data_hash(samples: Samples) -> str:
    """Hash of inputs and given labels, 32 hex digits (blake2b); ids and names of classes do not count.

    Methods with the same hash were trained on the same bytes, so with the same attack, rate and poisoned rows.
    """
    digest = hashlib.blake2b(digest_size=16)
    for array in (samples.inputs, samples.labels):
        digest.update(f"{array.dtype.str} {array.shape};".encode("ascii"))
        for start in range(0, len(array), BLOCK):
            digest.update(np.ascontiguousarray(array[start : start + BLOCK]).data)
    return digest.hexdigest()


def measure_model(
    session: Session, model: nn.Module, test: Samples, *, trigger: Trigger | None = None, plan: Plan | None = None
) -> dict[str, float | int]:
    """Measure one trained model.

    Args:
        session: Device and precision.
        model: The model, prepared by the session.
        test: Clean labelled test samples.
        trigger: The trigger as shown at test time; None for a model that nobody attacked.
        plan: The fitted plan of the attack, given together with the trigger.

    Returns:
        Fractions in [0, 1]: `clean_accuracy` with `_low` and `_high` (Wilson's 95% interval), `balanced_accuracy`,
        and `n_test`. With a trigger those of `attack_success` as well, and `clean_accuracy_nontarget`, without the
        samples of the target class, if the plan has a single one (the clean accuracy that the code of ABL and NAD
        reports).

    Raises:
        ConfigError: If only one of trigger and plan is given.
        DataError: If no test sample counts for the attack.
    """
    if (trigger is None) != (plan is None):
        raise ConfigError("a trigger needs its plan to be measured: give both, or neither")
    answers = predict(session, model, test).labels
    measured = accuracy_metrics(answers, test.labels)
    target = getattr(plan, "target_label", None)
    if isinstance(target, int):
        measured["clean_accuracy_nontarget"] = metrics.clean_accuracy_nontarget(answers, test.labels, target)
    if trigger is not None and plan is not None:
        measured |= attack_success(session, model, test, trigger, plan)
        measured |= other_sources(session, model, test, trigger, plan)
    return measured


def attack_success(
    session: Session, model: nn.Module, test: Samples, trigger: Trigger, plan: Plan
) -> dict[str, float | int]:
    """How often a trigger works on the test samples that the plan counts (those of the target class are none of them).

    Returns:
        `attack_success_rate` with `_low` and `_high` (Wilson's 95% interval), `robust_accuracy` (the share of the same
        samples that are classified by their true labels), and `n_triggered`, the number of these samples.

    Raises:
        DataError: If no test sample counts.
    """
    triggered = trigger_test_set(test, trigger, plan)
    if not len(triggered):
        raise DataError("the attack targets none of the test samples; give test data of all classes")
    answers = predict(session, model, triggered).labels
    return success_metrics(answers, triggered.labels, plan)


def accuracy_metrics(answers: IntArray, labels: IntArray, uncounted: Uncounted | None = None) -> dict[str, float | int]:
    """`clean_accuracy` of answers `(N,)` with Wilson's 95% interval, `balanced_accuracy`, and `n_test`.

    Args:
        answers: What the model says.
        labels: The true labels.
        uncounted: Samples that are left out. Then `n_test_copies` and `n_test_conflicting` say how many, and
            `clean_accuracy_with_copies` is the share of all samples, where there are any.
    """
    right = answers == labels
    counted = np.ones(len(labels), dtype=bool) if uncounted is None else ~uncounted.any_of_them
    low, high = wilson_interval(int(right[counted].sum()), int(counted.sum()))
    measured = {
        "clean_accuracy": metrics.clean_accuracy(answers[counted], labels[counted]),
        "clean_accuracy_low": low,
        "clean_accuracy_high": high,
        "balanced_accuracy": metrics.balanced_accuracy(answers[counted], labels[counted]),
        "n_test": len(labels),
    }
    if uncounted is not None:
        measured["n_test_copies"] = int(uncounted.trained_on.sum())
        measured["n_test_conflicting"] = int(uncounted.conflicting.sum())
        if not counted.all():
            measured["clean_accuracy_with_copies"] = metrics.clean_accuracy(answers, labels)
    return measured


def success_metrics(answers: IntArray, labels: IntArray, plan: Plan) -> dict[str, float | int]:
    """`attack_success` of answers `(N,)` to triggered samples of true `labels`."""
    goal, everyone = plan.goal(labels), np.ones(len(labels), dtype=bool)
    low, high = wilson_interval(int((answers == goal).sum()), len(labels))
    return {
        "attack_success_rate": metrics.attack_success_rate(answers, everyone, goal),
        "attack_success_rate_low": low,
        "attack_success_rate_high": high,
        "robust_accuracy": metrics.robust_accuracy(answers, everyone, _true_labels(answers, labels, plan)),
        "n_triggered": len(labels),
    }


def _true_labels(answers: IntArray, labels: IntArray, plan: Plan) -> IntArray:
    """The labels that are right; a composite of two classes is both, so that either answer is."""
    both = getattr(plan, "source_labels", ())
    return np.where(np.isin(answers, both), answers, labels) if both else labels


def other_sources(
    session: Session, model: nn.Module, test: Samples, trigger: Trigger, plan: Plan
) -> dict[str, float | int]:
    """How often the trigger of an attack on one class works on samples of the others, where it should not.

    Returns:
        What `attack_success` measures, over the samples of neither source nor target:
        `attack_success_rate_other_sources` with `_low` and `_high` (Wilson's 95% interval),
        `robust_accuracy_other_sources` and `n_triggered_other_sources`. Empty for other attacks.
    """
    source, target = getattr(plan, "source_label", None), getattr(plan, "target_label", None)
    if not isinstance(source, int) or not isinstance(target, int):
        return {}
    others = test.take(np.flatnonzero((test.labels != source) & (test.labels != target)))
    if not len(others):
        return {}
    wanted = AllToOne(target_label=target)
    triggered = trigger_test_set(others, trigger, wanted)
    answers = predict(session, model, triggered).labels
    found = success_metrics(answers, triggered.labels, wanted)
    rate = "attack_success_rate"
    return {key.replace(rate, f"{rate}{OTHERS}") if rate in key else f"{key}{OTHERS}": found[key] for key in found}


def top_percent(suspicion: FloatArray) -> BoolArray:
    """The most suspicious 1%, `(N,)` bool; equal ones are drawn by a fixed seed, since rows are often sorted by class.

    >>> top_percent(np.arange(200.0)).nonzero()[0].tolist()
    [198, 199]
    """
    return most_suspicious(suspicion, TOP, seed=0)


def measure_partition(
    verdict: Verdict, is_poisoned: BoolArray, true_labels: IntArray, also_true: IntArray | None = None
) -> dict[str, float]:
    """What Table II of E2ABL measures, by the truth: `top_precision` and `true_label_precision` are of the top 1%.

    Args:
        verdict: About N samples, in the middle of the training.
        is_poisoned: `(N,)`.
        true_labels: `(N,)` labels before poisoning.
        also_true: `(N,)` labels that are right as well, as in `Truth`.

    Returns:
        Fractions: poisoned of the top 1%, not poisoned of the kept, isolated of the poisoned, and of the poisoned in
        the top those whose suggested label is the true one. nan where there is nothing to count.
    """
    top = top_percent(verdict.suspicion)
    return {
        "top_precision": metrics.isolation_precision(top, is_poisoned),
        "clean_precision": metrics.isolation_precision(~verdict.isolated, ~is_poisoned),
        "recall": metrics.isolation_recall(verdict.isolated, is_poisoned),
        "true_label_precision": metrics.recovered_label_precision(
            verdict.suggested_label, true_labels, top, is_poisoned, also_true=also_true
        ),
    }


def measure_verdict(verdict: Verdict, truth: Truth | None = None) -> dict[str, Any]:
    """Compare a verdict with the truth.

    Args:
        verdict: About N samples.
        truth: Of the same samples; None if none of them is poisoned.

    Returns:
        Counts of samples: `n_poisoned`, `n_isolated`, `n_missed` (poisoned, not isolated), `n_false` (isolated, not
        poisoned), `n_relabeled`, `n_cleaned`. Fractions, nan where there is nothing to count: `isolation_precision`,
        `isolation_recall`, `false_positive_rate`, `suspicion_auroc`, and with a truth `recovered_label_precision`. Of
        the verdict itself: `poisoned`, `target_labels`, `p_value`.
    """
    isolated = verdict.isolated
    is_poisoned = np.zeros(len(isolated), dtype=bool) if truth is None else truth.is_poisoned
    relabeled = verdict.status == RELABELED
    measured: dict[str, Any] = {
        "n_poisoned": int(is_poisoned.sum()),
        "n_isolated": int(isolated.sum()),
        "n_missed": int((is_poisoned & ~isolated).sum()),
        "n_false": int((isolated & ~is_poisoned).sum()),
        "n_relabeled": int(relabeled.sum()),
        "n_cleaned": int((verdict.status == CLEANED).sum()),
        "isolation_precision": metrics.isolation_precision(isolated, is_poisoned),
        "isolation_recall": metrics.isolation_recall(isolated, is_poisoned),
        "false_positive_rate": metrics.false_positive_rate(isolated, is_poisoned),
        "suspicion_auroc": metrics.auroc(verdict.suspicion, is_poisoned),
        "poisoned": verdict.poisoned,
        "target_labels": list(verdict.target_labels),
        "p_value": verdict.p_value,
    }
    if truth is not None:
        measured["recovered_label_precision"] = metrics.recovered_label_precision(
            verdict.suggested_label, truth.true_labels, relabeled, is_poisoned, also_true=truth.also_true
        )
    return measured
