"""How well a defense did, by the truth it was not shown.

Arrays in, numbers out. Predictions are class indices `(N,)`; in a suspicion score higher means more
suspicious. Fractions lie in [0, 1]; a fraction of nothing is nan, never 0 or 1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from antibackdoor.data.samples import BoolArray, IntArray
from antibackdoor.errors import ConfigError, DataError


class ClassRow(NamedTuple):
    """One class of a per-class table."""

    label: int
    n_samples: int  # samples of the class that were counted
    value: float  # fraction of them; nan if there are none


def clean_accuracy(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Fraction of clean test samples that are classified correctly.

    >>> clean_accuracy([0, 1, 1, 2], [0, 1, 2, 2])
    0.75
    """
    predicted, true = _same_length(predictions=predictions, labels=labels)
    return _fraction(predicted == true)


def balanced_accuracy(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Mean over the classes that occur of the fraction of their samples that is classified correctly.

    A constant answer gets 1 / K, however large the largest class is.

    >>> balanced_accuracy([0, 0, 0, 0], [0, 0, 0, 1])
    0.5
    """
    predicted, true = _same_length(predictions=predictions, labels=labels)
    return _fraction(np.array([_fraction((predicted == true)[true == label]) for label in np.unique(true)]))


def clean_accuracy_nontarget(predictions: ArrayLike, labels: ArrayLike, target_label: int) -> float:
    """Clean accuracy over the samples of all classes but the target's.

    This is what the ABL and NAD code reports as clean accuracy. A model that never predicts the target
    label gains by it.
    """
    predicted, true = _same_length(predictions=predictions, labels=labels)
    return _fraction((predicted == true)[true != target_label])


def attack_success_rate(predictions: ArrayLike, eligible: ArrayLike, goal: ArrayLike) -> float:
    """Fraction of the eligible triggered test samples that are classified as the attacker wants.

    Args:
        predictions: `(N,)` for the triggered test samples.
        eligible: `(N,)` bool, `plan.eligible(labels)`: which samples count. Samples of the target class do
            not, for they would be free successes.
        goal: `(N,)` the wanted labels, `plan.goal(labels)`.

    >>> attack_success_rate([0, 0, 1, 0], [True, True, True, False], [0, 0, 0, 0])
    0.6666666666666666
    """
    predicted, counted, wanted = _same_length(predictions=predictions, eligible=eligible, goal=goal)
    return _fraction((predicted == wanted)[counted.astype(bool)])


def robust_accuracy(predictions: ArrayLike, eligible: ArrayLike, labels: ArrayLike) -> float:
    """Fraction of the eligible triggered test samples that are classified by their true labels.

    It tells whether a low attack success rate is recovery or collapse: a model that always gives one wrong
    label has neither success nor accuracy.
    """
    return attack_success_rate(predictions, eligible, labels)


def isolation_precision(isolated: ArrayLike, is_poisoned: ArrayLike) -> float:
    """Poisoned fraction of the isolated samples; nan if nothing was isolated."""
    flagged, poisoned = _masks(isolated=isolated, is_poisoned=is_poisoned)
    return _fraction(poisoned[flagged])


def isolation_recall(isolated: ArrayLike, is_poisoned: ArrayLike) -> float:
    """Isolated fraction of the poisoned samples; nan if nothing is poisoned."""
    flagged, poisoned = _masks(isolated=isolated, is_poisoned=is_poisoned)
    return _fraction(flagged[poisoned])


def isolation_f1(isolated: ArrayLike, is_poisoned: ArrayLike) -> float:
    """Harmonic mean of isolation precision and recall, `2 #(I & P) / (#I + #P)`; nan if both are empty."""
    flagged, poisoned = _masks(isolated=isolated, is_poisoned=is_poisoned)
    total = int(flagged.sum()) + int(poisoned.sum())
    return 2 * int((flagged & poisoned).sum()) / total if total else float("nan")


def false_positive_rate(isolated: ArrayLike, is_poisoned: ArrayLike) -> float:
    """Isolated fraction of the samples that are not poisoned; nan if all are poisoned."""
    flagged, poisoned = _masks(isolated=isolated, is_poisoned=is_poisoned)
    return _fraction(flagged[~poisoned])


def recovered_label_precision(
    suggested_labels: ArrayLike,
    true_labels: ArrayLike,
    recovered: ArrayLike,
    is_poisoned: ArrayLike,
    *,
    also_true: ArrayLike | None = None,
) -> float:
    """Fraction of the recovered poisoned samples whose suggested label is the true one.

    Only poisoned samples count, so that it is 0 by construction for clean-label attacks, whose given label
    was right.

    Args:
        suggested_labels: `(N,)` labels that the defense suggests.
        true_labels: `(N,)` labels before poisoning.
        recovered: `(N,)` bool, the samples that came back under another label.
        is_poisoned: `(N,)` bool.
        also_true: `(N,)` labels that count as right as well: the second class of composite samples.
    """
    suggested, true = _same_length(suggested_labels=suggested_labels, true_labels=true_labels)
    right = suggested == true
    if also_true is not None:
        right = right | (_same_length(suggested_labels=suggested, also_true=also_true)[1] == suggested)
    came_back, poisoned = _masks(recovered=recovered, is_poisoned=is_poisoned)
    _same_length(suggested_labels=suggested, recovered=came_back)
    return _fraction(right[came_back & poisoned])


def auroc(suspicion: ArrayLike, is_poisoned: ArrayLike) -> float:
    """Probability that a poisoned sample is more suspicious than another one, ties counted half.

    Nan if there is only one of the two kinds, or a score is nan.

    >>> auroc([0.9, 0.4, 0.4, 0.1], [True, True, False, False])
    0.875
    """
    from sklearn.metrics import roc_auc_score  # slow to import

    ranks, poisoned = _ranks(suspicion, is_poisoned)
    return float(roc_auc_score(poisoned, ranks)) if len(ranks) else float("nan")


def true_positive_rate_at(suspicion: ArrayLike, is_poisoned: ArrayLike, *, max_fpr: float = 0.01) -> float:
    """Largest fraction of poisoned samples that one threshold finds at a false positive rate <= `max_fpr`.

    Samples of equal suspicion are flagged together. Nan where `auroc` is.
    """
    from sklearn.metrics import roc_curve  # slow to import

    if not 0 <= max_fpr <= 1:
        raise ConfigError(f"max_fpr is {max_fpr}; it must lie in [0, 1]")
    ranks, poisoned = _ranks(suspicion, is_poisoned)
    if not len(ranks):
        return float("nan")
    # Without drop_intermediate the curve would lack thresholds on its straight parts.
    false_positives, true_positives, _ = roc_curve(poisoned, ranks, drop_intermediate=False)
    return float(true_positives[false_positives <= max_fpr].max())


def class_accuracy(predictions: ArrayLike, labels: ArrayLike, n_classes: int) -> list[ClassRow]:
    """Clean accuracy of each of the K classes."""
    predicted, true = _same_length(predictions=predictions, labels=labels)
    return _table(predicted == true, true, n_classes)


def class_attack_success(
    predictions: ArrayLike, labels: ArrayLike, eligible: ArrayLike, goal: ArrayLike, n_classes: int
) -> list[ClassRow]:
    """Attack success rate of each of the K true classes, over the eligible samples `(N,)` bool."""
    predicted, true, counted, wanted = _same_length(
        predictions=predictions, labels=labels, eligible=eligible, goal=goal
    )
    mask = counted.astype(bool)
    return _table((predicted == wanted)[mask], true[mask], n_classes)


def class_isolation(isolated: ArrayLike, labels: ArrayLike, n_classes: int) -> list[ClassRow]:
    """Isolated fraction of the samples under each of the K labels."""
    flagged, given = _same_length(isolated=isolated, labels=labels)
    return _table(flagged.astype(bool), given, n_classes)


def confusion(predictions: ArrayLike, labels: ArrayLike, n_classes: int) -> IntArray:
    """Counts `(K, K)` int64: row the true label, column the prediction."""
    predicted, true = _same_length(predictions=predictions, labels=labels)
    for name, values in (("predictions", predicted), ("labels", true)):
        if len(values) and (values.min() < 0 or values.max() >= n_classes):
            raise DataError(f"{name} run from {values.min()} to {values.max()}, outside 0..{n_classes - 1}")
    cells = np.bincount(true.astype(np.int64) * n_classes + predicted, minlength=n_classes**2)
    return cells.reshape(n_classes, n_classes).astype(np.int64)


def _table(hits: BoolArray, labels: NDArray[Any], n_classes: int) -> list[ClassRow]:
    rows = []
    for label in range(n_classes):
        of_class = hits[labels == label]
        rows.append(ClassRow(label, len(of_class), _fraction(of_class)))
    return rows


def _fraction(hits: NDArray[Any]) -> float:
    return float(hits.mean()) if len(hits) else float("nan")


def _same_length(**arrays: ArrayLike) -> tuple[NDArray[Any], ...]:
    checked = tuple(np.asarray(values) for values in arrays.values())
    if any(values.ndim != 1 or len(values) != len(checked[0]) for values in checked):
        shapes = ", ".join(f"{name} {values.shape}" for name, values in zip(arrays, checked, strict=True))
        raise DataError(f"the arrays must be (N,) and equally long, but are {shapes}")
    return checked


def _masks(**arrays: ArrayLike) -> tuple[BoolArray, ...]:
    return tuple(values.astype(np.bool_) for values in _same_length(**arrays))


def _ranks(suspicion: ArrayLike, is_poisoned: ArrayLike) -> tuple[IntArray, BoolArray]:
    """Dense ranks of the scores and the truth; both empty where no curve is defined.

    Ranks, for scores may be infinite, which scikit-learn refuses.
    """
    scores, truth = _same_length(suspicion=suspicion, is_poisoned=is_poisoned)
    poisoned = truth.astype(np.bool_)
    if poisoned.all() or not poisoned.any() or bool(np.isnan(scores.astype(np.float64)).any()):
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.bool_)
    return np.unique(scores, return_inverse=True)[1], poisoned
