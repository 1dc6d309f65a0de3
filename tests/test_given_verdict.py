"""Training on what a scan kept: `train --verdict`, without a second search."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import pictures, write_folder

from antibackdoor.data.samples import Samples
from antibackdoor.runs.run_folder import read_config, read_log
from antibackdoor.runs.samples_table import SamplesTable, read_samples_table

Call = Callable[..., tuple[int, str, str]]
SETTINGS: list[object] = ["--backbone", "wrn-10-1", "--device", "cpu", "--precision", "fp32"]
QUICK: list[object] = ["--warmup-steps", "150", "--confusion-steps", "20", "--no-power"]


def poisoned_pictures() -> Samples:
    """Every tenth picture has a bright corner and the label 0, whatever it shows."""
    samples = pictures(320, 4)
    dirty = (np.arange(320) % 10 == 3) & (samples.labels != 0)
    inputs, labels = samples.inputs.copy(), samples.labels.copy()
    inputs[dirty, :, 5:, 5:] = np.array([[0, 255, 0], [255, 0, 255], [0, 255, 255]], dtype=np.uint8)
    labels[dirty] = 0
    ids = np.array([f"class{label}/{row:04d}.png" for row, label in enumerate(labels)])
    return Samples(inputs, labels, ids, samples.class_names)


@pytest.fixture
def scanned(call: Call, tmp_path: Path) -> Path:
    """A scan that found the poison in `data`."""
    data = write_folder(poisoned_pictures(), tmp_path / "data")
    code, _, _ = call("scan", data, "--out", tmp_path / "scan", *SETTINGS, *QUICK)
    assert code == 0
    assert read_samples_table(tmp_path / "scan").isolated.sum() > 15, "or the tests show nothing"
    return tmp_path / "scan"


def isolated_ids(table: SamplesTable) -> set[str]:
    return set(table.ids[table.isolated].tolist())


def expect(result: tuple[int, str, str], *words: str) -> None:
    code, _, err = result
    assert code == 2, err
    assert err.startswith("antibackdoor: ") and err.count("\n") == 1 and "Traceback" not in err
    for word in words:
        assert word in err, err


def test_a_scan_is_trained_on_without_a_second_search(call: Call, tmp_path: Path, scanned: Path) -> None:
    run = tmp_path / "run"
    arguments = ["train", tmp_path / "data", "--out", run, *SETTINGS, "--verdict", scanned, "--epochs", "4"]
    code, out, err = call(*arguments)
    assert (code, err) == (0, "") and "Report:" in out
    assert {line["phase"] for line in read_log(run)} == {"training"}, "no warm-up, no search"
    found, used = read_samples_table(scanned), read_samples_table(run)
    # The scan saw all samples, the training four fifths of them.
    assert len(used.ids) == 256 and set(used.ids) < set(found.ids)
    assert isolated_ids(used) == isolated_ids(found) & set(used.ids)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["poisoned"] is True and metrics["target_labels"] == ["class0"] and metrics["search_steps"] == 0
    place = {name: row for row, name in enumerate(found.ids.tolist())}
    rows = [place[name] for name in used.ids.tolist()]
    assert (used.suspicion == found.suspicion[rows]).all()
    kept = used.isolated
    assert (used.verdict.criterion[kept] == found.verdict.criterion[rows][kept]).all()

    # The verdict decides the outcome, so it is part of the settings; where it lies is not.
    moved = scanned.rename(tmp_path / "elsewhere")
    assert "verdict" in read_config(run)["settings"]["given"]
    assert call(*(moved if part == scanned else part for part in arguments), "--resume")[0] == 0
    expect(call(*arguments[:-4], *arguments[-2:], "--resume"), "cannot resume", "given.verdict")


def test_a_verdict_of_other_data_is_refused(call: Call, tmp_path: Path, scanned: Path) -> None:
    def train(name: str, samples: Samples, verdict: Path = scanned) -> tuple[int, str, str]:
        data = write_folder(samples, tmp_path / name)
        return call("train", data, "--out", tmp_path / "run", *SETTINGS, "--verdict", verdict, "--epochs", "1")

    samples = poisoned_pictures()
    expect(train("more", pictures(340, 4)), "says nothing about the sample", "give the scan of these data")
    names = np.array([re.sub("class3", "other", name) for name in samples.ids.tolist()])
    expect(train("classes", Samples(samples.inputs, samples.labels, names, samples.class_names)), "give the scan")
    expect(train("unscanned", samples, tmp_path / "nothing"), "samples.parquet")
    assert not (tmp_path / "run").exists()


def test_a_verdict_on_other_labels_is_refused(call: Call, tmp_path: Path) -> None:
    """Arrays carry no labels in their ids, so that the labels themselves are compared."""
    samples = pictures(80, 2)
    arguments: list[object] = [*SETTINGS, "--detector", "loss-drop", "--epochs", "1"]
    for name, labels in (("first", samples.labels), ("second", 1 - samples.labels)):
        np.savez(tmp_path / f"{name}.npz", x_train=samples.inputs, y_train=labels)
    assert call("scan", tmp_path / "first.npz", "--out", tmp_path / "scan", *arguments)[0] == 0
    train: list[object] = ["train", tmp_path / "second.npz", "--out", tmp_path / "run", *SETTINGS, "--epochs", "1"]
    expect(call(*train, "--verdict", tmp_path / "scan"), "other labels than the data have now", "scan them again")


def test_a_defense_that_cannot_use_a_verdict_says_so(call: Call, tmp_path: Path, scanned: Path) -> None:
    arguments: list[object] = ["train", tmp_path / "data", "--out", tmp_path / "run", *SETTINGS, "--epochs", "1"]
    expect(call(*arguments, "--verdict", scanned, "--defense", "none"), "verdict", "--verdict")
    assert not (tmp_path / "run").exists()
