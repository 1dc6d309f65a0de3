"""The scan: a verdict without a model, from the command line."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import pictures, write_folder
from test_resume import finish, wait_for_lines

import antibackdoor
from antibackdoor.app.demo import digits
from antibackdoor.attacks import ATTACKS, poison
from antibackdoor.data.reading import write
from antibackdoor.errors import ConfigError

Call = Callable[..., tuple[int, str, str]]
Start = Callable[..., subprocess.Popen[str]]
SETTINGS: list[object] = ["--backbone", "wrn-10-1", "--device", "cpu", "--precision", "fp32"]


def poisoned_digits(folder: Path) -> Path:
    data = digits(0)
    dirty = poison(data.train, ATTACKS["badnets"](), seed=0, rate=0.1, target_label=3)
    return write(folder / "digits.npz", dirty.samples, data.test, format="npz").path


def test_scan_names_the_target(call: Call, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, out, err = call("scan", poisoned_digits(tmp_path), "--out", run, *SETTINGS, "--confusion-steps", "30")
    assert code == 0 and "Report:" in out
    assert "about" in err and "on this machine" in err, "the time is told before it is spent"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["poisoned"] is True and metrics["target_labels"] == ["3"]
    assert metrics["estimated_poisoning_rate_low"] <= 0.1 <= metrics["estimated_poisoning_rate_high"]
    assert metrics["false_alarm_probability"] < 0.01
    assert metrics["smallest_visible_rate"] in (None, 0.05, 0.02, 0.01, 0.005)
    table = pq.read_table(run / "samples.parquet").to_pydict()
    assert {*table["status"]} == {"kept", "isolated"} and "prediction" not in table
    spoke = [kind for kind, status in zip(table["criterion"], table["status"], strict=True) if status == "isolated"]
    assert set(spoke) <= {"shortcut", "content", "nearby"} and len(spoke) == metrics["n_isolated"]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "very probably poisoned" in page and "This scan delivers no model" in page
    assert not (run / "model.json").exists() and not (run / "checkpoint.pt").exists()
    code, _, err = call("predict", run, tmp_path / "digits.npz", "--out", tmp_path / "p.csv")
    assert code == 2 and err.count("\n") == 1


def test_scan_of_clean_data_says_what_it_could_have_seen(tmp_path: Path) -> None:
    data = digits(1)
    recipe = antibackdoor.Recipe(device="cpu", precision="fp32", seed=1)
    detector = antibackdoor.ConfusionTraining(by_parts=False, across_labels=False)
    job = antibackdoor.Scan(detector, recipe, "wrn-10-1")
    found = antibackdoor.scan(replace(data, test=None), job, tmp_path / "run")
    facts = found.metrics
    assert found.poisoned is False and len(found.table) == len(data.train)
    assert facts["poisoned"] is False and facts["n_isolated"] == 0
    assert facts["false_alarm_probability"] is None and "smallest_visible_rate" in facts
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Nothing found" in page and "planted in a copy of these data" in page
    again = antibackdoor.scan(replace(data, test=None), job, tmp_path / "run", resume=True)
    assert again.metrics == facts and (again.table.suspicion == found.table.suspicion).all()
    for wrong in (antibackdoor.Scan(antibackdoor.Undefended()), antibackdoor.Job()):  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="is not a detector: give one of DETECTORS"):
            antibackdoor.scan(data, wrong, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("n_lines", "wait"), [(1, 0.0), (2, 0.3)])
def test_a_killed_scan_resumes_to_the_same_result(
    call: Call, start: Start, tmp_path: Path, n_lines: int, wait: float
) -> None:
    data = write_folder(pictures(120, 3), tmp_path / "data")
    arguments = ["--backbone", "wrn-10-1", "--device", "cpu", "--precision", "fp32"]
    arguments += ["--warmup-steps", "300", "--confusion-steps", "4"]
    assert call("scan", data, "--out", tmp_path / "whole", *arguments)[0] == 0
    run = tmp_path / "killed"
    process = start("scan", data, "--out", run, *arguments)
    wait_for_lines(process, run, n_lines)
    try:
        process.wait(wait)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    assert finish(process)[0] == -signal.SIGKILL, "or nothing was killed"
    assert call("scan", data, "--out", run, *arguments, "--resume")[0] == 0
    first, second = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "killed"))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
    tables = [pq.read_table(tmp_path / name / "samples.parquet") for name in ("whole", "killed")]
    assert tables[0].equals(tables[1])
    assert np.isfinite(tables[0].column("suspicion").to_numpy()).all()
