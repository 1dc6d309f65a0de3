"""Every key of `metrics.json` is documented: those of real runs, and those that any method can tell."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from conftest import write_folder
from test_given_verdict import SETTINGS, poisoned_pictures

from antibackdoor.app.methods import TABLES, facts_of
from antibackdoor.cli.flags import descriptions
from antibackdoor.defenses import DEFENSES
from antibackdoor.detectors import DETECTORS
from antibackdoor.purifiers import PURIFIERS
from antibackdoor.runs.metric_keys import METRIC_GROUPS, METRIC_KEYS

Call = Callable[..., tuple[int, str, str]]
DOCS = Path(__file__).parents[1] / "docs"
SHORT: list[object] = ["--warmup-steps", "150", "--confusion-steps", "20", "--no-power"]


def undocumented(run: Path) -> set[str]:
    """Keys of a run that neither the common ones nor the facts of its method explain."""
    metrics: dict[str, Any] = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    kind = next(table[metrics["method"]] for table in TABLES if metrics["method"] in table)
    return metrics.keys() - METRIC_KEYS.keys() - {part.name for facts in facts_of(kind) for part in fields(facts)}


def test_the_page_is_up_to_date() -> None:
    words = [sys.executable, str(DOCS / "write_metrics.py"), "--check"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_key_is_described_once() -> None:
    assert len(METRIC_KEYS) == sum(map(len, METRIC_GROUPS.values())), "a key is in two groups"
    for text in METRIC_KEYS.values():
        assert text.endswith(".") and not text.endswith("..")


@pytest.mark.parametrize("kind", [kind for table in TABLES for kind in table.values()])
def test_facts_are_flat_and_described(kind: type[Any]) -> None:
    for facts in facts_of(kind):
        about = descriptions(facts)
        for part in fields(facts):
            assert about.get(part.name), f"{facts.__name__} does not describe {part.name}"
    # What `train` and `scan` say of any method, `evaluate` may say later: a fact of that name would be overwritten.
    if kind in {*DEFENSES.values(), *DETECTORS.values()}:
        told = {part.name for facts in facts_of(kind) for part in fields(facts)}
        assert not told & METRIC_KEYS.keys()


def test_keys_of_real_runs(call: Call, tmp_path: Path) -> None:
    data = write_folder(poisoned_pictures(), tmp_path / "clean_data")
    dirty, run, scan = tmp_path / "dirty", tmp_path / "run", tmp_path / "scan"
    assert call("poison", data, "--out", dirty, "--rate", "0.1", "--target-label", "class1")[0] == 0
    known: list[object] = ["--data", dirty, "--truth", dirty / "truth.parquet", "--trigger", dirty, "--device", "cpu"]

    assert call("scan", dirty, "--out", scan, *SETTINGS, *SHORT)[0] == 0
    assert undocumented(scan) == set()
    assert call("evaluate", scan, "--truth", dirty / "truth.parquet")[0] == 0
    assert undocumented(scan) == set()

    assert call("train", dirty, "--out", run, *SETTINGS, "--epochs", "2", "--verdict", scan)[0] == 0
    assert undocumented(run) == set()
    assert call("evaluate", run, *known)[0] == 0
    assert undocumented(run) == set()
    measured = json.loads((run / "metrics.json").read_text())
    for key in ("clean_accuracy_low", "attack_success_rate", "clean_accuracy_nontarget", "suspicion_auroc", "poisoned"):
        assert key in measured, "or little was tested"

    # The verdict in the middle of a training, ten epochs after the warm-up.
    midway = tmp_path / "midway"
    published: list[object] = ["--defense", "e2abl", "--epochs", "13", "--head-width", "8"]
    assert call("train", dirty, "--out", midway, *SETTINGS, *published)[0] == 0
    assert call("evaluate", midway, *known)[0] == 0
    assert undocumented(midway) == set() and "midway_recall" in json.loads((midway / "metrics.json").read_text())


@pytest.mark.parametrize("is_file", [False, True])
def test_keys_of_a_purification(call: Call, tmp_path: Path, is_file: bool) -> None:
    data = write_folder(poisoned_pictures(), tmp_path / "data")
    run, out = tmp_path / "run", tmp_path / "out"
    plain: list[object] = [*SETTINGS, "--defense", "none", "--epochs", "4"]
    assert call("poison", data, "--out", tmp_path / "dirty")[0] == 0
    assert call("train", tmp_path / "dirty", "--out", run, *plain)[0] == 0
    network: list[object] = [run / "model.safetensors", "--backbone", "wrn-10-1"] if is_file else [run]
    arguments: list[object] = ["--out", out, "--clean", data, "--test", data, "--measure-trigger", tmp_path / "dirty"]
    code, _, err = call("purify", *network, *arguments, "--epochs", "1", "--device", "cpu")
    assert code == 0, err
    assert undocumented(out) == set()
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["method"] in PURIFIERS and {"purified_from", "attack_success_rate_before"} <= metrics.keys()
    assert ("loaded_by" in metrics) is is_file
