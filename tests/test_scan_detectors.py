"""`scan --detector ...` for detectors that need a trained model, with one of the user's and without."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import pictures, write_folder
from test_given_verdict import expect
from test_resume import finish, wait_for_lines

from antibackdoor.app.demo import digits
from antibackdoor.app.evaluation import evaluate
from antibackdoor.attacks import ATTACKS, poison, save_trigger, write_truth
from antibackdoor.data.reading import write
from antibackdoor.runs.run_folder import RunFolder, read_log

Call = Callable[..., tuple[int, str, str]]
Start = Callable[..., subprocess.Popen[str]]
ON: list[object] = ["--device", "cpu", "--precision", "fp32"]
NETWORK: list[object] = ["--backbone", "wrn-10-1"]
PLAIN: list[object] = ["--defense", "none", "--test-fraction", "0", "--epochs", "6"]
DETECTORS: dict[str, list[object]] = {
    "spectral": ["--detector", "spectral", "--expected-rate", "0.1"],
    "loss-drop": ["--detector", "loss-drop"],
}
CASES = [(name, given) for name in DETECTORS for given in (False, True)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_folder(pictures(120, 3), tmp_path / "data")


@pytest.fixture
def trained(call: Call, data: Path, tmp_path: Path) -> Path:
    """A model that was trained on all of the data without a defense."""
    assert call("train", data, "--out", tmp_path / "trained", *PLAIN, *NETWORK, *ON)[0] == 0
    return tmp_path / "trained"


def arguments(name: str, data: Path, run: Path, checkpoint: Path | None, epochs: int = 6) -> list[object]:
    model: list[object] = [*NETWORK, "--epochs", epochs] if checkpoint is None else ["--checkpoint", checkpoint]
    return ["scan", data, "--out", run, *DETECTORS[name], *model, *ON]


def table(run: Path) -> Any:
    return pq.read_table(run / "samples.parquet")


@pytest.mark.parametrize(("name", "is_given"), CASES)
def test_from_data_to_a_verdict(
    call: Call, data: Path, trained: Path, tmp_path: Path, name: str, is_given: bool
) -> None:
    run = tmp_path / "run"
    code, out, err = call(*arguments(name, data, run, trained if is_given else None))
    assert (code, err) == (0, "") and "Report:" in out
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["method"] == name and metrics["n_samples"] == 120 and metrics["backbone"] == "wrn-10-1"
    assert metrics["poisoned"] is None and metrics["target_labels"] == []
    columns = table(run).to_pydict()
    assert set(columns) == {"id", "given_label", "suspicion", "status", "criterion", "suggested_label", "content"}
    assert np.isfinite(columns["suspicion"]).all() and len(set(columns["suspicion"])) > 60
    # Spectral signatures isolate 1.5 times as many of each label as are expected in all; the other detector nobody.
    expected = 3 * 18 if name == "spectral" else 0
    assert columns["status"].count("isolated") == metrics["n_isolated"] == expected
    assert columns["criterion"].count("score") == expected
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "no verdict on the data set" in page
    assert not (run / "is a scan, which has no model").exists() and not (run / "checkpoint.pt").exists()
    phases = [line["phase"] for line in read_log(run)]
    assert phases == ([] if is_given else ["training"] * 6), "only where no model is given one is trained"
    if not is_given:  # the same recipe and seed make the same model
        other = tmp_path / "other"
        assert call(*arguments(name, data, other, trained))[0] == 0
        assert table(run).equals(table(other))
    # A scan that is finished stays as it is.
    before = (run / "samples.parquet").read_bytes()
    assert call(*arguments(name, data, run, trained if is_given else None), "--resume")[0] == 0
    assert (run / "samples.parquet").read_bytes() == before


@pytest.mark.parametrize(("name", "is_given"), CASES)
def test_stopped_at_each_checkpoint_it_ends_the_same(
    call: Call,
    data: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    is_given: bool,
) -> None:
    """Stopped once by each checkpoint that is written, and by the table of the samples, all in one run."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    checkpoint = trained if is_given else None
    assert call(*arguments(name, data, whole, checkpoint))[0] == 0
    save = RunFolder.save

    def interrupted(*_arguments: Any) -> None:
        raise KeyboardInterrupt

    def saved_and_interrupted(run: RunFolder, state: dict[str, Any]) -> None:
        save(run, state)
        interrupted()

    n_stops = 0
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", saved_and_interrupted)
        patch.setattr("antibackdoor.app.scanning.write_samples_table", interrupted)
        for _ in range(20):
            code, _, err = call(*arguments(name, data, broken, checkpoint), "--resume")
            assert code == 130 and "--resume" in err
            n_stops += 1
            if n_stops > (0 if is_given else 7):
                break
    assert call(*arguments(name, data, broken, checkpoint), "--resume")[0] == 0
    assert table(whole).equals(table(broken))
    assert (whole / "log.jsonl").exists() is (broken / "log.jsonl").exists() is not is_given
    if not is_given:
        assert (whole / "log.jsonl").read_bytes() == (broken / "log.jsonl").read_bytes()
    first, second = (json.loads((run / "metrics.json").read_text()) for run in (whole, broken))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_a_killed_scan_goes_on(call: Call, start: Start, data: Path, tmp_path: Path) -> None:
    def scan(name: str) -> list[object]:
        return arguments("loss-drop", data, tmp_path / name, None, epochs=40)

    assert call(*scan("whole"))[0] == 0
    process = start(*scan("broken"))
    wait_for_lines(process, tmp_path / "broken", 3)
    process.send_signal(signal.SIGKILL)
    assert finish(process)[0] == -signal.SIGKILL, "or nothing was killed"
    assert (tmp_path / "broken" / "checkpoint.pt").exists()
    assert call(*scan("broken"), "--resume")[0] == 0
    assert table(tmp_path / "whole").equals(table(tmp_path / "broken"))
    logs = [(tmp_path / name / "log.jsonl").read_bytes() for name in ("whole", "broken")]
    assert logs[0] == logs[1]


def test_a_scan_of_another_model_is_another_scan(call: Call, data: Path, trained: Path, tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other_model"
    assert call("train", data, "--out", other, *PLAIN, *NETWORK, *ON, "--seed", "1")[0] == 0
    assert call(*arguments("spectral", data, run, trained))[0] == 0
    expect(call(*arguments("spectral", data, run, other), "--resume"), "cannot resume", "have changed since", "(model)")
    expect(
        call(*arguments("spectral", data, run, None, epochs=0), "--resume"),
        "cannot resume",
        "setting 'given.model' is missing",
    )
    # The same model somewhere else is the same.
    assert call(*arguments("spectral", data, run, trained.rename(tmp_path / "moved")), "--resume")[0] == 0


def test_what_a_detector_cannot_use_is_refused(call: Call, data: Path, trained: Path, tmp_path: Path) -> None:
    run, clean = tmp_path / "run", write_folder(pictures(30, 3, seed=1), tmp_path / "clean")
    expect(call(*arguments("spectral", data, run, trained), "--clean", clean), "--clean")
    assert not (run / "metrics.json").exists() and not (run / "config.json").exists()
    expect(call(*arguments("loss-drop", data, run, None), "--clean", clean), "--clean")
    confusion: list[object] = ["scan", data, "--out", run, *ON, "--warmup-steps", "50", "--no-power"]
    expect(call(*confusion, "--checkpoint", trained), "--checkpoint")
    assert not (run / "metrics.json").exists()


def test_what_does_not_fit_is_refused(call: Call, data: Path, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    expect(call("scan", data, "--out", run, "--detector", "prayer"), "--detector prayer", "spectral", "confusion")
    expect(call("scan", data, "--out", run, "--detector", "none"), "--detector none", "choose one of")
    expect(call(*arguments("spectral", data, run, tmp_path / "nothing")), "nothing")
    expect(call(*arguments("spectral", data, run, trained), *NETWORK), "leave --backbone out")
    expect(call(*arguments("spectral", data, run, trained), "--layer", "nowhere"), "nowhere")
    rate: list[object] = ["--checkpoint", trained, "--expected-rate", "2"]
    expect(call("scan", data, "--out", run, "--detector", "spectral", *rate), "expected_rate is 2")
    weights: list[object] = ["--checkpoint", trained / "model.safetensors", *NETWORK, *ON]
    expect(call("scan", data, "--out", run, "--detector", "loss-drop", *weights), "losses", "run folder")
    fewer = write_folder(pictures(90, 3), tmp_path / "fewer")
    expect(call(*arguments("loss-drop", fewer, run, trained)), "about 120 samples, the data have 90")
    other = write_folder(pictures(80, 4), tmp_path / "classes")
    expect(call(*arguments("spectral", other, run, trained)), "classes")
    assert not run.exists() or not (run / "config.json").exists()


@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_a_scan_is_measured_by_the_truth(call: Call, tmp_path: Path, name: str) -> None:
    """`evaluate` works on a folder without a model; what a detector is worth, its contract says."""
    clean = digits(0)
    dirty = poison(clean.train.take(np.arange(600)), ATTACKS["badnets"](), seed=0, rate=0.04, target_label=3)
    write(tmp_path / "digits.npz", dirty.samples, None, format="npz")
    run = tmp_path / "run"
    arguments: list[object] = ["scan", tmp_path / "digits.npz", "--out", run, *DETECTORS[name], *NETWORK, *ON]
    assert call(*arguments, "--epochs", "2")[0] == 0
    ids = np.array(table(run).column("id").to_pylist())
    write_truth(tmp_path / "truth.parquet", ids, dirty.truth)
    code, out, err = call("evaluate", run, "--truth", tmp_path / "truth.parquet")
    assert (code, err) == (0, "") and "suspicion_auroc" in out
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["n_poisoned"] == 24 and metrics["method"] == name
    assert 0 <= metrics["suspicion_auroc"] <= 1
    assert metrics["n_missed"] == 24 or metrics["isolation_recall"] > 0

    expect(call("evaluate", run), "nothing to measure", "--data", "--truth")
    expect(call("evaluate", run, "--data", tmp_path / "digits.npz"), "is a scan, which has no model")
    save_trigger(tmp_path / "trigger", dirty.trigger, dirty.plan, attack=dirty.attack)
    both: list[object] = ["--truth", tmp_path / "truth.parquet", "--trigger", tmp_path / "trigger"]
    expect(call("evaluate", run, *both), "--data")
    assert evaluate(run, truth=tmp_path / "truth.parquet")["n_poisoned"] == 24
