"""`--recipe NAME`: a training as a paper has it, of which single flags win; and what retraining is given."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import pictures, write_folder
from test_python_calls import QUICK, small

import antibackdoor
from antibackdoor.data.samples import Samples
from antibackdoor.defenses import Retrain
from antibackdoor.errors import ConfigError
from antibackdoor.runs.run_folder import read_config
from antibackdoor.training.recipe import PRESETS, Recipe

Call = Callable[..., tuple[int, str, str]]
RUN: list[object] = ["--backbone", "wrn-10-1", "--epochs", "1", "--device", "cpu", "--no-progress"]


def used(run: Path) -> Any:
    return read_config(run)["settings"]["recipe"]


def expected(name: str, **own: Any) -> dict[str, Any]:
    settings = asdict(replace(PRESETS[name], epochs=1, device="cpu", **own))
    return {key: value for key, value in settings.items() if key != "progress"}


def data_of(samples: Samples) -> antibackdoor.DataSet:
    return antibackdoor.DataSet(samples, None, "arrays", (), {})


def test_a_recipe_by_name_on_the_command_line(call: Call, tmp_path: Path) -> None:
    data = write_folder(pictures(24), tmp_path / "data")
    plain = ["--defense", "none", *RUN]
    assert call("train", data, "--out", tmp_path / "a", *plain, "--recipe", "nad")[::2] == (0, "")
    assert used(tmp_path / "a") == expected("nad")
    flags = ["--recipe=e2abl", "--learning-rate", "0.01", "--schedule", "constant"]
    assert call("train", data, "--out", tmp_path / "b", *flags, *plain)[0] == 0
    assert used(tmp_path / "b") == expected("e2abl", learning_rate=0.01, schedule="constant"), "single flags win"
    assert call("train", data, "--out", tmp_path / "c", "--config", tmp_path / "b" / "run.toml")[0] == 0
    assert used(tmp_path / "c") == used(tmp_path / "b")
    scan = ["--detector", "loss-drop", "--recipe", "nad", *RUN]
    assert call("scan", data, "--out", tmp_path / "d", *scan)[0] == 0 and used(tmp_path / "d") == expected("nad")
    tune = ["--method", "fine-tune", "--recipe", "nad", "--epochs", "1", "--device", "cpu", "--no-progress"]
    assert call("purify", tmp_path / "a", "--clean", data, "--out", tmp_path / "e", *tune)[0] == 0
    assert used(tmp_path / "e")["batch_size"] == 64
    study = ["--methods", "loss-drop", "--recipe", "nad", *RUN]
    assert call("compare", data, "--out", tmp_path / "f", *study)[0] == 0
    assert used(tmp_path / "f" / "none-0")["batch_size"] == 64


@pytest.mark.parametrize("command", ["train", "scan", "purify", "compare"])
def test_an_unknown_recipe_ends_in_one_line(call: Call, tmp_path: Path, command: str) -> None:
    code, _, err = call(command, tmp_path, "--out", tmp_path / "run", "--methods", "none", "--recipe", "nonsense")
    assert code == 2 and err.count("\n") == 1 and "give one of practical, nad, abl, e2abl" in err


def test_help_shows_the_values_of_the_recipe(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    shown = " ".join(call("train", "--defense", "none", "--recipe", "nad", "--help")[1].split())
    assert "--recipe" in shown and "default: 64" in shown and "default: step" in shown
    assert "default: 64" not in " ".join(call("train", "--defense", "none", "--help")[1].split())


def test_a_recipe_by_name_in_python(tmp_path: Path) -> None:
    data = data_of(pictures(24))
    given: dict[str, Any] = {"model": small, **QUICK}
    antibackdoor.train(data, out=tmp_path / "a", defense="none", recipe="nad", learning_rate=0.05, **given)
    assert used(tmp_path / "a") == expected("nad", learning_rate=0.05)
    antibackdoor.scan(data, out=tmp_path / "b", detector="loss-drop", recipe="e2abl", **given)
    assert used(tmp_path / "b") == expected("e2abl")
    with pytest.raises(ConfigError, match="recipe is 'nonsense'; give one of practical, nad, abl, e2abl"):
        antibackdoor.train(data, out=tmp_path / "c", defense="none", recipe="nonsense")
    with pytest.raises(ConfigError, match=r"recipe is of type int; give a name or an antibackdoor.Recipe"):
        antibackdoor.train(data, out=tmp_path / "c", defense="none", recipe=3)  # type: ignore[arg-type]
    assert PRESETS["practical"] == Recipe()


def test_retraining_with_a_detector_that_needs_clean_samples(call: Call, tmp_path: Path) -> None:
    data, clean = (
        write_folder(pictures(72, 3), tmp_path / "data"),
        write_folder(pictures(60, 3, seed=1), tmp_path / "c"),
    )
    retrain = ["train", data, "--defense", "retrain", "--detector", "scan", *RUN]
    code, _, err = call(*retrain, "--out", tmp_path / "run")
    assert code == 2 and "SCAn needs clean: give --clean" in err
    code, _, err = call(*retrain, "--out", tmp_path / "run", "--clean", clean)
    assert (code, err) == (0, "")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["n_trainings"] == 2
    assert read_config(tmp_path / "run")["settings"]["given"].keys() == {"clean"}
    code, _, err = call("train", data, "--out", tmp_path / "x", "--defense", "none", "--clean", clean, *RUN)
    assert code == 2 and "cannot use clean: leave --clean out" in err and err.count("\n") == 1
    assert "--clean" in call("train", "--defense", "retrain", "--help")[1]
    assert "--clean" not in call("train", "--defense", "none", "--help")[1]


def test_retraining_with_clean_samples_in_python(tmp_path: Path) -> None:
    data, clean = data_of(pictures(72, 3)), pictures(60, 3, seed=1)
    method = Retrain(detector="scan")
    given: dict[str, Any] = {"defense": method, "model": small, **QUICK}
    result = antibackdoor.train(data, out=tmp_path / "run", clean=clean, **given)
    assert result is not None and result.metrics["n_trainings"] == 2
    with pytest.raises(ConfigError, match="given cannot be combined with verdict or clean"):
        antibackdoor.train(data, out=tmp_path / "x", clean=clean, given=antibackdoor.Given(clean=clean), **given)
