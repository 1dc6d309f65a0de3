"""The options of reading on the command line: one set for all commands, remembered by the run, told and refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import waves

from antibackdoor.cli.app import main
from antibackdoor.models.backbones import build_backbone
from antibackdoor.models.normalization import normalized
from antibackdoor.runs.model_file import ModelSpec, load_model_spec, save_model

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """The command line in this process, which has loaded torch already."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*arguments: object) -> tuple[int, str, str]:
        code = 0
        try:
            main(list(map(str, arguments)))
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


PLAIN = ["--defense", "none", "--epochs", "1", "--device", "cpu", "--precision", "fp32", "--backbone", "fcn"]


def write_table(path: Path) -> Path:
    """The class in the last column, ids in the first, and two gaps."""
    samples = waves(24)
    with path.open("w") as file:
        for row, (series, label) in enumerate(zip(samples.inputs[:, 0], samples.labels, strict=True)):
            cells = [f"{value:.4f}" for value in series]
            if row in (3, 8):
                cells[5] = ""
            file.write(f"{row + 100},{','.join(cells)},{label}\n")
    return path


def test_a_run_remembers_how_its_data_are_read(call: Call, tmp_path: Path) -> None:
    data, run = write_table(tmp_path / "data.csv"), tmp_path / "run"
    said = ["--label-column", "-1", "--id-column", "1", "--missing", "interpolate"]
    code, _, err = call("train", data, "--out", run, *PLAIN, *said[4:])
    assert code == 2 and "--label-column" in err and len(err.splitlines()) == 1
    code, _, err = call("train", data, "--out", run, *PLAIN, *said)
    assert code == 0 and "2 values in 2 series interpolated" in err
    settings = json.loads((run / "config.json").read_text())["settings"]
    assert settings["reading"] == {"label_column": "-1", "id_column": "1", "missing": "interpolate"}
    assert "interpolated" in settings["data"]["missing_values"] and "interpolated" in (run / "report.html").read_text()
    spec = load_model_spec(run)
    assert spec.read_options == settings["reading"] and spec.original_sizes == (16, 16)

    code, _, err = call("train", data, "--out", run, *PLAIN, *said[:4], "--missing", "refuse", "--resume")
    assert code == 2 and "missing value" in err
    assert call("evaluate", run, "--data", data, "--device", "cpu")[0] == 0
    assert json.loads((run / "metrics.json").read_text())["n_test"] < 24, "what it held out of these data"
    assert call("predict", run, data, "--out", tmp_path / "p.csv", "--device", "cpu")[0] == 0
    with (tmp_path / "p.csv").open(newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == [str(100 + row) for row in range(24)]


@pytest.mark.parametrize("command", ["train", "scan", "purify", "compare", "poison", "evaluate", "predict"])
def test_every_command_that_reads_data_takes_them(command: str, call: Call) -> None:
    shown = call(command, "--help")[1]
    for flag in ("--label-column", "--id-column", "--axes", "--missing", "--follow-links"):
        assert flag in shown


def saved_model(run: Path, shape: tuple[int, ...], sizes: tuple[int, int] | None) -> Path:
    """An untrained model in a run folder."""
    image = len(shape) == 3
    name = "wrn-10-1" if image else "fcn"
    mean, std = (0.5,) * shape[0], (0.25,) * shape[0]
    spec = ModelSpec(name, "image" if image else "series", shape, ("a", "b"), mean, std, None, "none", "0.1.0",
                     original_sizes=sizes)  # fmt: skip
    run.mkdir()
    with torch.random.fork_rng():
        save_model(run, normalized(build_backbone(name, shape, 2), mean, std), spec)
    return run


def test_predict_refuses_what_the_model_has_never_seen(call: Call, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "signs.npz", x=rng.integers(0, 256, (4, 32, 32, 3), np.uint8))
    np.savez(tmp_path / "large.npz", x=rng.integers(0, 256, (4, 32, 32), np.uint8))
    np.savez(tmp_path / "raw.npz", x=rng.normal(2000, 300, (4, 1, 16)))
    np.savez(tmp_path / "long.npz", x=rng.normal(size=(4, 1, 160)))
    grey = saved_model(tmp_path / "grey", (1, 8, 8), (8, 8))
    short = saved_model(tmp_path / "short", (1, 16), (16, 16))
    old = saved_model(tmp_path / "old", (1, 16), None)
    for run, data, words in (
        (grey, "signs", "holds color images, but the model was trained on grey"),
        (grey, "large", "32 pixels on the shorter side"),
        (grey, "raw", "holds series data, but the model takes image data"),
        (short, "raw", "values around"),
        (short, "long", "have 160 steps"),
    ):
        command = ["predict", run, tmp_path / f"{data}.npz", "--out", tmp_path / f"{run.name}-{data}.csv"]
        code, _, err = call(*command, "--device", "cpu")
        assert code == 2 and words in err and len(err.splitlines()) == 1, (data, err)
        if "takes" not in words:
            assert call(*command, "--device", "cpu", "--accept-unlike")[0] == 0
    # A run of before knows neither sizes nor range.
    assert call("predict", old, tmp_path / "raw.npz", "--out", tmp_path / "old.csv", "--device", "cpu")[0] == 0
