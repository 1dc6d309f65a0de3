"""The keys of `metrics.json`, each with its meaning, unit and range.

A method adds facts of its own, which the docstring of its dataclass of facts describes. `docs/metrics.md` lists both
(`python docs/write_metrics.py`).
"""

from __future__ import annotations


def _bounds(key: str) -> dict[str, str]:
    return {f"{key}_{end}": f"{side} end of its 95% interval (Wilson)." for end, side in _ENDS.items()}


_ENDS = {"low": "Lower", "high": "Upper"}
_MEASURED = ("clean_accuracy", "attack_success_rate", "robust_accuracy", "clean_accuracy_nontarget")


# By what writes them; no key is in two groups.
METRIC_GROUPS: dict[str, dict[str, str]] = {
    "Every run": {
        "schema_version": "Version of this file's keys; a version newer than the program's is refused.",
        "method": "Name of the defense, detector or purifier.",
        "method_summary": "What the method does, and its reference.",
        "backbone": "The network: a name that `antibackdoor doctor` lists, or `package.module:factory`.",
        "seconds": "Duration of the run in seconds, without the time lost when a process was stopped.",
        "seed": "Seed of all random numbers.",
    },
    "`train` and `scan`: the verdict": {
        "poisoned": "Whether the data are poisoned; null if the method gives no verdict.",
        "target_labels": "Names of the labels that a trigger seems to lead to; empty if none is known.",
        "p_value": "p-value of the strongest finding, in (0, 1]; null if the method has no calibrated one.",
        "n_samples": "Training samples.",
        "n_isolated": "Samples that are not kept as they are; after a scan, its suspects.",
        "n_relabeled": "Isolated samples that were trained on under another label.",
        "n_cleaned": "Isolated samples that were trained on under their own label, without the suspected trigger.",
        "n_unexamined_labels": "Labels that the method could not examine: fewer than 20 samples, without copies.",
        "unexamined_labels": "Names of these labels; they may still be poisoned.",
        "n_unexamined_samples": "Samples with these labels.",
        "n_skipped": "Samples that could not be read and were left out (`--on-error skip`); `skipped.csv` lists them.",
        "n_unread": "Files of the data that were not read; `skipped.csv` gives the reason for each.",
        "reading_notes": "Sentences on what was assumed about the data, done to them, or left out.",
        "n_conflicting_copies": "Samples that are bit-for-bit copies of samples with another label; at least one of "
        "these labels is wrong.",
    },
    "`train`: the model": {
        "epochs": "Length of the training in passes over the data; 0 if the method's preset decides.",
        "estimated_residual_attack_success_rate": "Attack success rate of the model, estimated without the "
        "trigger, in [0, 1]; only if the verdict is poisoned.",
        **_bounds("estimated_residual_attack_success_rate"),
    },
    "Measured on test data (`train`, `purify --test`, `evaluate --data`)": {
        "clean_accuracy": "Share of the test samples that are classified correctly, in [0, 1], without copies; null if "
        "none is left.",
        **_bounds("clean_accuracy"),
        "balanced_accuracy": "Mean accuracy over the K classes, in [0, 1]: all classes have the same weight, so a "
        "constant prediction gets 1 / K.",
        "n_test": "Test samples, including copies.",
        "n_test_copies": "Test samples that are exact copies of training samples; no accuracy counts them.",
        "n_test_conflicting": "Other test samples that no accuracy counts: exact copies with another label.",
        "clean_accuracy_with_copies": "Clean accuracy of all test samples; only if some are not counted.",
        "test_split": "Which part of its data was tested: `test`, `held out`, `train` or `all`.",
        "test_fingerprint": "A short hash of the test data.",
    },
    "Measured with a known trigger (`evaluate --trigger`, `purify --measure-trigger`)": {
        "attack_success_rate": "Share of the triggered samples that get the attacker's label, in [0, 1]; samples of "
        "the target class are not counted.",
        **_bounds("attack_success_rate"),
        "attack_success_rate_other_sources": "The same for samples of neither the source nor the target class, for "
        "attacks on one class.",
        **_bounds("attack_success_rate_other_sources"),
        "robust_accuracy_other_sources": "Share of them that get their true label with the trigger, in [0, 1].",
        "n_triggered_other_sources": "Number of these samples.",
        "robust_accuracy": "Share of the triggered samples that get their true label, in [0, 1].",
        "clean_accuracy_nontarget": "Clean accuracy without the samples of the target class, as in the papers of ABL "
        "and NAD; copies are left out as in clean accuracy.",
        "n_triggered": "Triggered samples.",
        "trigger_fingerprint": "A short hash of the trigger.",
    },
    "Measured with the truth file (`evaluate --truth`)": {
        "n_poisoned": "Poisoned training samples.",
        "n_missed": "Poisoned samples that are not isolated.",
        "isolation_precision": "Share of the isolated samples that are poisoned, in [0, 1]; null if none is isolated.",
        "isolation_recall": "Share of the poisoned samples that are isolated, in [0, 1]; null if none is poisoned.",
        "false_positive_rate": "Share of the samples without poison that are isolated, in [0, 1].",
        "recovered_label_precision": "Share of the relabeled poisoned samples that got their true label, in [0, 1]; "
        "for a composite of two classes, either label.",
        "suspicion_auroc": "Area under the ROC curve of the suspicion, in [0, 1]; 0.5 is chance.",
        "suspicion_tpr_at_1_fpr": "Share of the poisoned samples that are more suspicious than 99% of the others.",
        "precision_of_top_1_percent": "Share of the most suspicious 1% of the samples that are poisoned, in [0, 1].",
        "midway_top_precision": "Share of the most suspicious 1% in mid-training that are poisoned, in [0, 1].",
        "midway_clean_precision": "Share of the samples kept in mid-training that are not poisoned, in [0, 1].",
        "midway_recall": "Share of the poisoned samples that are isolated in mid-training, in [0, 1].",
        "midway_true_label_precision": "Share of the poisoned samples in that 1% that got their true label, in [0, 1].",
        "truth_fingerprint": "A short hash of the truth file.",
    },
    "`purify`": {
        "purified_from": "Method that made the given model; `given` for a weights file.",
        **{f"{key}_before": f"`{key}` of the given model, on the same data." for key in _MEASURED},
        "loaded_by": "How the tensors of a file were matched to the network.",
        "n_tensors": "Number of tensors that were loaded from the file.",
        "normalization": "Input normalization of the file's model: `given`, or the one that fits the data best.",
        "classes_reordered": "Whether the outputs of the file's model were put into the order of the data's classes.",
        "accuracy_as_given": "Share of the data that the file's model classifies correctly, in [0, 1].",
    },
}

_ON_TEST_DATA, _WITH_A_TRIGGER = [group for title, group in METRIC_GROUPS.items() if title.startswith("Measured")][:2]
MEASURED_ON_TEST_DATA, MEASURED_WITH_A_TRIGGER = tuple(_ON_TEST_DATA), tuple(_WITH_A_TRIGGER)

METRIC_KEYS: dict[str, str] = {key: text for group in METRIC_GROUPS.values() for key, text in group.items()}
