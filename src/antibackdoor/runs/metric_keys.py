"""The keys of `metrics.json`, each with its meaning, unit and range.

A method adds facts of its own, which the docstring of its dataclass of facts describes. `docs/metrics.md` lists both
(`python docs/write_metrics.py`).
"""

from __future__ import annotations


def _bounds(key: str) -> dict[str, str]:
    return {f"{key}_{end}": f"{side} end of the 95% interval of it (Wilson)." for end, side in _ENDS.items()}


_ENDS = {"low": "Lower", "high": "Upper"}
_MEASURED = ("clean_accuracy", "attack_success_rate", "robust_accuracy", "clean_accuracy_nontarget")


# By what writes them; no key is in two groups.
METRIC_GROUPS: dict[str, dict[str, str]] = {
    "Every run": {
        "schema_version": "Version of this file's keys; a newer one than the program knows is refused.",
        "method": "Name of the defense, detector or purifier.",
        "method_summary": "What the method does, and its reference.",
        "backbone": "The network: a name of `antibackdoor doctor`, or `package.module:factory`.",
        "seconds": "How long the run took, in seconds, time lost in a stopped process left out.",
        "seed": "The seed of everything random.",
    },
    "`train` and `scan`: the verdict": {
        "poisoned": "Whether the data are poisoned; null where the method does not judge.",
        "target_labels": "Names of the labels that a trigger seems to lead to; empty if none is known.",
        "p_value": "Of the strongest finding, in (0, 1]; null where the method has no calibrated one.",
        "n_samples": "Training samples.",
        "n_isolated": "Samples that are not kept as they are; after a scan, those that it suspects.",
        "n_relabeled": "Isolated samples that were used under another label.",
        "n_cleaned": "Isolated samples that were used under their label, without what looks like their trigger.",
        "n_unexamined_labels": "Labels that the method could not examine: fewer than 20 samples, copies left out.",
        "unexamined_labels": "Names of these labels: silence about them means nothing.",
        "n_unexamined_samples": "Samples under these labels.",
        "n_skipped": "Samples that could not be read and were left out (`--on-error skip`); `skipped.csv` lists them.",
        "n_unread": "Files of the data that were not looked at, each with its reason in `skipped.csv`.",
        "reading_notes": "What was assumed of the data, done to them, or left out of them, in sentences.",
        "n_conflicting_copies": "Samples whose input stands under another label as well, bit for bit; at least one of "
        "these labels is wrong.",
    },
    "`train`: the model": {
        "epochs": "Length of the training in passes over the data; 0 where the method's preset says it.",
        "estimated_residual_attack_success_rate": "How much of the backdoor is left in the model, estimated without "
        "the trigger, in [0, 1]; only where the data are called poisoned.",
        **_bounds("estimated_residual_attack_success_rate"),
    },
    "Measured on test data (`train`, `purify --test`, `evaluate --data`)": {
        "clean_accuracy": "Share of the test samples that get their label, in [0, 1]; those that do not count are left "
        "out, and null if none is left.",
        **_bounds("clean_accuracy"),
        "balanced_accuracy": "Mean over the classes of the share that gets its label, in [0, 1]: each class counts as "
        "much as any other, so that a constant answer gets 1 / K.",
        "n_test": "Test samples, with those that do not count.",
        "n_test_copies": "Test samples that are exact copies of training samples; they count for no accuracy.",
        "n_test_conflicting": "Other test samples that do not count: their input stands under two labels.",
        "clean_accuracy_with_copies": "Clean accuracy of all test samples; only where some do not count.",
        "test_split": "Which part of its data was tested: `test`, `held out`, `train` or `all`.",
        "test_fingerprint": "A short hash of the test data.",
    },
    "Measured with a known trigger (`evaluate --trigger`, `purify --measure-trigger`)": {
        "attack_success_rate": "Share of the triggered samples that get the attacker's label, in [0, 1]; samples of "
        "the target class do not count.",
        **_bounds("attack_success_rate"),
        "attack_success_rate_other_sources": "The same of samples of neither source nor target, for attacks on one "
        "class.",
        **_bounds("attack_success_rate_other_sources"),
        "robust_accuracy_other_sources": "Share of these samples, triggered, that get their true label, in [0, 1].",
        "n_triggered_other_sources": "How many these samples are.",
        "robust_accuracy": "Share of the triggered samples that get their true label, in [0, 1].",
        "clean_accuracy_nontarget": "Clean accuracy without the samples of the target class, as ABL and NAD report it; "
        "those that do not count for clean accuracy are left out.",
        "n_triggered": "Triggered samples.",
        "trigger_fingerprint": "A short hash of the trigger.",
    },
    "Measured by the truth (`evaluate --truth`)": {
        "n_poisoned": "Poisoned training samples.",
        "n_missed": "Those of them that are not isolated.",
        "isolation_precision": "Share of the isolated samples that are poisoned, in [0, 1]; null if none is isolated.",
        "isolation_recall": "Share of the poisoned samples that are isolated, in [0, 1]; null if none is poisoned.",
        "false_positive_rate": "Share of the other samples that are isolated, in [0, 1].",
        "recovered_label_precision": "Share of the relabeled poisoned samples that got their true label, in [0, 1]; of a "
        "composite of two classes, either one.",
        "suspicion_auroc": "Area under the ROC curve of the suspicion, in [0, 1]; 0.5 is chance.",
        "suspicion_tpr_at_1_fpr": "Share of the poisoned samples that are more suspicious than 99% of the others.",
        "precision_of_top_1_percent": "Share of the most suspicious 1% of the samples that are poisoned, in [0, 1].",
        "midway_top_precision": "Of the 1% most suspicious in the middle of the training, the share that is poisoned.",
        "midway_clean_precision": "Of those kept then, the share that is not poisoned.",
        "midway_recall": "Of the poisoned samples, the share isolated then.",
        "midway_true_label_precision": "Of the poisoned among these 1%, the share that got their true label.",
        "truth_fingerprint": "A short hash of the truth.",
    },
    "`purify`": {
        "purified_from": "Method that made the given model; `given` for a file of weights.",
        **{f"{key}_before": f"`{key}` of the given model, on the same data." for key in _MEASURED},
        "loaded_by": "How the tensors of a file were matched to the network.",
        "n_tensors": "Tensors that were loaded from a file.",
        "normalization": "Normalization of a file's model: `given`, or the one that fits the data best.",
        "classes_reordered": "Whether the outputs of a file's model were brought into the order of the data's classes.",
        "accuracy_as_given": "Share of the data that a file's model classifies correctly, in [0, 1].",
    },
}

_ON_TEST_DATA, _WITH_A_TRIGGER = [group for title, group in METRIC_GROUPS.items() if title.startswith("Measured")][:2]
MEASURED_ON_TEST_DATA, MEASURED_WITH_A_TRIGGER = tuple(_ON_TEST_DATA), tuple(_WITH_A_TRIGGER)

METRIC_KEYS: dict[str, str] = {key: text for group in METRIC_GROUPS.values() for key, text in group.items()}
