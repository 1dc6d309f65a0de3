"""Run folders of earlier versions are read as what they meant; those of later ones are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from conftest import pictures
from torch import nn

from antibackdoor.app.evaluation import evaluate
from antibackdoor.app.networks import load_model
from antibackdoor.app.verdicts import verdict_of
from antibackdoor.attacks import Truth, write_truth
from antibackdoor.data.samples import Samples
from antibackdoor.errors import DataError, ModelError, RunError
from antibackdoor.models.backbones import build_backbone
from antibackdoor.models.normalization import normalized
from antibackdoor.protocols import CRITERIA, STATUSES
from antibackdoor.report import write_report
from antibackdoor.runs.artifacts import METRICS, read_metrics
from antibackdoor.runs.model_file import MODEL, SPEC, load_model_spec
from antibackdoor.runs.run_folder import CONFIG, read_config
from antibackdoor.runs.samples_table import SAMPLES, read_sample_columns, read_samples_table

VERDICTS = ["clean", "isolated", "recovered", "isolated", "isolated", "clean"]
EVIDENCE = ["", "shortcut", "content", "near", "shortcut", ""]
SUGGESTED = [0, 0, 1, 1, 0, 1]
CONFIG_1 = {
    "format": "antibackdoor run 1",
    "settings": {"defense": "e2abl", "hyper_parameters": {"attach": ""}, "recipe": {"epochs": 3}},
    "command": ["antibackdoor", "train", "data", "--defense", "e2abl"],
    "versions": {"antibackdoor": "0.0.9"},
}
METRICS_1: dict[str, Any] = {
    "poisoned": True,
    "backdoor_label": "class1",
    "backdoor_labels": ["class1"],
    "target_labels": ["class1"],
    "n_samples": 6,
    "n_isolated": 4,
    "n_recovered": 1,
    "n_returned": 0,
    "defense": "e2abl",
    "backbone": "wrn-10-1",
    "epochs": 3,
    "seconds": 1.5,
    "seed": 0,
    "false_alarm_probability": 0.01,
}


def samples() -> Samples:
    return pictures(6, 2)


def old_table(run: Path, **columns: list[Any] | None) -> None:
    """`samples.parquet` as version 1 wrote it; a column that is None is left out."""
    rows = range(6)
    known = {
        "id": samples().ids.tolist(),
        "given_label": samples().labels.tolist(),
        "suspicion": [0.1 * row for row in rows],
        "isolated": [verdict != "clean" for verdict in VERDICTS],
        "recovered": [verdict == "recovered" for verdict in VERDICTS],
        "suggested_label": SUGGESTED,
        "prediction": [0] * 6,
        "confidence": [0.9] * 6,
        "margin": [float(row) for row in rows],
        "verdict": VERDICTS,
        "evidence": EVIDENCE,
        **columns,
    }
    table = pa.table({name: values for name, values in known.items() if values is not None})
    pq.write_table(table.replace_schema_metadata({"class_names": json.dumps(["class0", "class1"])}), run / SAMPLES)


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    """A finished training of version 1."""
    run = tmp_path / "run"
    run.mkdir()
    (run / CONFIG).write_text(json.dumps(CONFIG_1))
    (run / METRICS).write_text(json.dumps(METRICS_1))
    spec = {
        "backbone": "wrn-10-1", "kind": "image", "input_shape": [1, 8, 8], "class_names": ["class0", "class1"],
        "mean": [0.5], "std": [0.2], "image_size": None, "defense": "e2abl", "package_version": "0.0.9",
    }  # fmt: skip
    (run / SPEC).write_text(json.dumps(spec))
    torch.manual_seed(0)
    safetensors.torch.save_model(normalized(build_backbone("wrn-10-1", (1, 8, 8), 2), [0.5], [0.2]), str(run / MODEL))
    old_table(run)
    return run


def test_an_old_table_has_its_old_meaning(old_run: Path) -> None:
    table = read_samples_table(old_run)
    assert table.status.tolist() == ["kept", "isolated", "relabeled", "isolated", "isolated", "kept"]
    assert [CRITERIA[code] for code in table.verdict.criterion] == [
        "none", "shortcut", "content", "nearby", "shortcut", "none",
    ]  # fmt: skip
    assert table.verdict.status.dtype == table.verdict.criterion.dtype == np.uint8
    assert table.isolated.tolist() == [False, True, True, True, True, False]
    assert table.suspicion == pytest.approx(0.1 * np.arange(6))
    assert table.verdict.suggested_label.tolist() == SUGGESTED and table.given_label.tolist() == [0, 1] * 3
    assert table.ids.tolist() == samples().ids.tolist() and table.class_names.tolist() == ["class0", "class1"]
    assert table.prediction is not None and table.confidence is not None and table.verdict.margin is not None
    columns, _ = read_sample_columns(old_run, ["status", "criterion"], np.array([2, 0]))
    assert [STATUSES[code] for code in columns["status"]] == ["relabeled", "kept"]
    assert [CRITERIA[code] for code in columns["criterion"]] == ["content", "none"]


def test_an_old_table_says_of_the_data_what_its_metrics_say(old_run: Path) -> None:
    """Version 1 had no metadata about the data; its table tells what was isolated, its metrics the rest."""
    verdict = read_samples_table(old_run).verdict
    assert verdict.poisoned is None and verdict.target_labels == ()
    given = verdict_of(old_run, samples())
    assert given.poisoned is True and given.target_labels == (1,)
    assert given.isolated.tolist() == read_samples_table(old_run).isolated.tolist()


def test_old_tables_without_some_columns(old_run: Path) -> None:
    """A method that named no evidence decided by its score; a scan had no predictions."""
    old_table(old_run, evidence=None, margin=None)
    table = read_samples_table(old_run)
    assert [CRITERIA[code] for code in table.verdict.criterion] == ["none", *["score"] * 4, "none"]
    assert table.verdict.margin is None
    old_table(old_run, prediction=None, confidence=None)
    table = read_samples_table(old_run)
    assert table.prediction is None and table.confidence is None and table.isolated.sum() == 4
    old_table(old_run, evidence=["", "witchcraft", "", "", "", ""])
    with pytest.raises(RunError, match=r"samples\.parquet is damaged") as error:
        read_samples_table(old_run)
    assert "\n" not in str(error.value)
    old_table(old_run, isolated=None)
    with pytest.raises(RunError, match=r"samples\.parquet is damaged"):
        read_samples_table(old_run)


def test_old_metrics_come_under_their_names_of_today(old_run: Path) -> None:
    metrics = read_metrics(old_run)
    assert metrics["target_labels"] == ["class1"] and metrics["poisoned"] is True
    assert (metrics["n_relabeled"], metrics["n_cleaned"], metrics["method"]) == (1, 0, "dual-head")
    assert metrics["schema_version"] == 2
    assert not {"backdoor_label", "backdoor_labels", "n_recovered", "n_returned", "defense"} & metrics.keys()
    assert (metrics["n_isolated"], metrics["epochs"], metrics["false_alarm_probability"]) == (4, 3, 0.01)


@pytest.mark.parametrize(
    ("old", "now"),
    [
        ({"defense": "e2abl-published"}, {"method": "e2abl"}),
        ({"defense": "scan"}, {"method": "confusion"}),
        ({"defense": "none"}, {"method": "none"}),
        ({"backdoor_label": "a"}, {"target_labels": ["a"], "poisoned": True}),
        ({"backdoor_label": None}, {"target_labels": [], "poisoned": False}),
        ({"backdoor_label": None, "poisoned": None}, {"target_labels": [], "poisoned": None}),
        ({"backdoor_labels": ["a", "b"]}, {"target_labels": ["a", "b"], "poisoned": True}),
        ({}, {"target_labels": [], "poisoned": None}),
        ({"smallest_visible_rate": 0.01}, {"n_planted_rates": 1, "smallest_visible_rate": 0.01}),
    ],
)
def test_each_old_metric(tmp_path: Path, old: dict[str, Any], now: dict[str, Any]) -> None:
    (tmp_path / METRICS).write_text(json.dumps({"n_samples": 6, **old}))
    metrics = read_metrics(tmp_path)
    assert {key: metrics[key] for key in now} == now


def test_an_old_model_is_loaded_and_its_method_named(old_run: Path) -> None:
    assert load_model_spec(old_run).method == "dual-head", "which was called e2abl"
    model, spec = load_model(old_run)
    assert isinstance(model, nn.Module) and spec.backbone == "wrn-10-1"
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 2)
    values = json.loads((old_run / SPEC).read_text())
    (old_run / SPEC).write_text(json.dumps({**values, "defense": "e2abl-published"}))
    assert load_model_spec(old_run).method == "e2abl"
    (old_run / SPEC).write_text(json.dumps({key: value for key, value in values.items() if key != "defense"}))
    with pytest.raises(ModelError, match="lacks 'method'"):
        load_model_spec(old_run)


def test_an_old_run_is_reported_and_evaluated(old_run: Path) -> None:
    text = write_report(old_run).read_text(encoding="utf-8")
    assert "very probably poisoned" in text and "class1" in text and "dual-head" in text
    is_poisoned = np.array([False, True, True, True, False, False])
    true_labels = np.where(is_poisoned, 1 - samples().labels, samples().labels)
    truth = old_run.parent / "truth.parquet"
    write_truth(truth, samples().ids, Truth(is_poisoned, true_labels, np.zeros(6, dtype=bool)))
    measured = evaluate(old_run, samples(), truth=truth, device="cpu")
    assert measured["isolation_recall"] == 1 and measured["isolation_precision"] == 3 / 4
    assert measured["recovered_label_precision"] == 1 and measured["n_test"] == 6
    turned = Truth(is_poisoned, samples().labels, np.zeros(6, dtype=bool))
    for also_true, right in ((None, 0), (true_labels, 1)):  # a composite of two classes is both
        write_truth(truth, samples().ids, replace(turned, also_true=also_true))
        assert evaluate(old_run, truth=truth)["recovered_label_precision"] == right
    # What is written now is of this version, and nothing that the old one said is lost.
    written = json.loads((old_run / METRICS).read_text())
    assert written["schema_version"] == 2 and written["n_relabeled"] == 1 and written["isolation_recall"] == 1
    assert read_config(old_run)["versions"] == {"antibackdoor": "0.0.9"}


@pytest.mark.parametrize("version", [3, 99, "2", 2.5, None])
def test_newer_metrics_are_refused_in_one_line(old_run: Path, version: Any) -> None:
    (old_run / METRICS).write_text(json.dumps({"schema_version": version, "n_samples": 6}))
    for read in (read_metrics, write_report):
        with pytest.raises(RunError, match=rf"schema version {version!r}, this program knows 2: update it") as error:
            read(old_run)
        assert "\n" not in str(error.value)


def test_an_old_verdict_of_other_data_is_refused(old_run: Path) -> None:
    others = pictures(8, 2)
    with pytest.raises(DataError, match="says nothing about the sample") as error:
        verdict_of(old_run, others)
    assert "\n" not in str(error.value)
