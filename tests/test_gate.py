"""What pipelines get from a scan: exit code, JSON, SARIF, JUnit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import pictures, write_folder

from antibackdoor.cli.gate import FOUND, Gate
from antibackdoor.protocols import ISOLATED, Verdict
from antibackdoor.report.pipelines import junit, sarif
from antibackdoor.runs.samples_table import SamplesTable

POISONED = {"poisoned": True, "target_labels": ["<cat>"], "unexamined_labels": ["few"], "n_isolated": 2}


def table() -> SamplesTable:
    """Six samples; rows 1 and 3 are isolated, row 3 is the more suspicious one and looks like label 1."""
    status = np.zeros(6, np.int64)
    status[[1, 3]] = ISOLATED
    suspicion = np.array([0.1, 0.8, 0.0, 0.9, 0.2, 0.0])
    verdict = Verdict(suspicion, status, np.array([0, 0, 0, 1, 1, 2]), np.where(status == ISOLATED, 1, 0))
    ids = np.array(["<cat>/a.png", "<cat>/b &.png", "<cat>/c.png", "<cat>/d.png", "dog/e.png", "few/f.png"])
    return SamplesTable(ids, np.array([0, 0, 0, 0, 1, 2]), np.array(["<cat>", "dog", "few"]), verdict)


def test_sarif_lists_the_data_set_and_every_suspect_the_worst_first() -> None:
    log = json.loads(json.dumps(sarif(table(), POISONED, "photos")))
    results = log["runs"][0]["results"]
    assert [result["ruleId"] for result in results] == ["poisoned-data", "suspicious-sample", "suspicious-sample"]
    paths = [result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for result in results]
    assert paths == ["photos", "photos/%3Ccat%3E/d.png", "photos/%3Ccat%3E/b%20%26.png"]
    assert "looks like 'dog'" in results[1]["message"]["text"]
    assert log["version"] == "2.1.0"


def test_junit_fails_the_suspected_label_and_skips_the_small_one() -> None:
    suite = ElementTree.fromstring(junit(table(), POISONED))
    assert [case.get("name") for case in suite] == ["<cat>", "dog", "few"]
    assert [[child.tag for child in case] for case in suite] == [["failure"], [], ["skipped"]]
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
    assert "2 samples" in str(suite[0][0].get("message"))


@pytest.mark.parametrize(
    ("fail_on", "metrics", "code"),
    [
        ("nothing", POISONED, 0),
        ("poisoned", POISONED, FOUND),
        ("poisoned", {"poisoned": False, "n_unexamined_labels": 1}, 0),
        ("poisoned", {"poisoned": None}, 0),
        ("unsure", {"poisoned": False, "n_unexamined_labels": 1}, FOUND),
        ("unsure", {"poisoned": None}, FOUND),
        ("unsure", {"poisoned": False, "n_unexamined_labels": 0}, 0),
    ],
)
def test_the_exit_code(fail_on: Any, metrics: dict[str, Any], code: int) -> None:
    try:
        Gate(fail_on=fail_on).finish(metrics)
        found = 0
    except SystemExit as stop:
        found = int(stop.code or 0)
    assert found == code


def test_a_scan_writes_all_and_prints_json_alone(tmp_path: Path, call: Callable[..., Any]) -> None:
    data = write_folder(pictures(48), tmp_path / "data")
    words = ["scan", data, "--out", tmp_path / "scan", "--detector", "loss-drop", "--epochs", 1]
    files = ["--sarif", tmp_path / "a.sarif", "--junit", tmp_path / "a.xml"]
    code, output, _ = call(*words, *files, "--json", "--fail-on", "unsure")
    assert code == FOUND  # a ranking gives no verdict
    assert json.loads(output)["n_samples"] == 48
    assert json.loads((tmp_path / "a.sarif").read_text())["runs"][0]["results"] == []
    assert len(ElementTree.parse(tmp_path / "a.xml").getroot()) == 2
    code, output, _ = call(*words, "--resume", "--json")  # of a finished run
    assert code == 0
    assert json.loads(output)["n_samples"] == 48


def test_the_terminal_says_the_verdict_first(tmp_path: Path, call: Callable[..., Any]) -> None:
    data = write_folder(pictures(48), tmp_path / "data")
    _, output, _ = call("scan", data, "--out", tmp_path / "scan", "--detector", "loss-drop", "--epochs", 1)
    assert output.splitlines()[0].startswith("This run gives no verdict on the data set.")
