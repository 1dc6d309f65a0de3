"""From raw data to a clean model and a report, as a user gets there: by commands, and in a few lines of Python."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import pictures, waves, write_folder
from torch import nn

import antibackdoor
from antibackdoor.data.reading import write

Call = Callable[..., tuple[int, str, str]]
QUICK: list[object] = ["--backbone", "wrn-10-1", "--device", "cpu", "--precision", "fp32", "--epochs", "12"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_backdoor_is_found_and_not_learned(call: Call, tmp_path: Path) -> None:
    data = write_folder(pictures(480, 4), tmp_path / "data")
    clean = write_folder(pictures(120, 4, seed=1), tmp_path / "clean")
    dirty = tmp_path / "dirty"
    assert call("poison", data, "--out", dirty, "--rate", "0.15", "--target-label", "class2")[0] == 0
    measured = {}
    for defense in ("none", "dual-head"):
        run = tmp_path / defense
        assert call("train", dirty, "--out", run, *QUICK, "--defense", defense)[0] == 0
        code, _, err = call(
            "evaluate", run, "--data", clean, "--truth", dirty / "truth.parquet", "--trigger", dirty, "--device", "cpu"
        )
        assert (code, err) == (0, "")
        measured[defense] = json.loads((run / "metrics.json").read_text())

    plain, defended = measured["none"], measured["dual-head"]
    assert plain["attack_success_rate"] > 0.9, "the attack works, or the test shows nothing"
    assert defended["attack_success_rate"] < 0.1
    assert defended["clean_accuracy"] > 0.9
    assert defended["isolation_recall"] > 0.9 and defended["isolation_precision"] > 0.9
    assert defended["poisoned"] is True and defended["target_labels"] == ["class2"]
    page = (tmp_path / "dual-head" / "report.html").read_text()
    assert "class2" in page and re.search("poisoned", page)
    assert "<script" not in page
    for file in (tmp_path / "dual-head").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), f"{file.name} tells where the data lay"


def test_five_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(pictures(60, 3), tmp_path / "photos")
    snippet = (antibackdoor.__doc__ or "").split("\n\n    import antibackdoor\n")[1].split("\n\nWithout files")[0]
    lines = ["import antibackdoor", *(line.strip() for line in snippet.splitlines() if line.strip())]
    assert len(lines) == 5
    lines = [line.replace("(data, out=", "(data, JOB, out=") for line in lines]  # one epoch, not two hundred
    names: dict[str, Any] = {"JOB": antibackdoor.Job(recipe=antibackdoor.Recipe(epochs=1), backbone="wrn-10-1")}
    exec("\n".join(lines), names)
    assert isinstance(names["model"], nn.Module)
    assert set(names["suspects"]) <= set(names["data"].train.ids)
    assert (tmp_path / "run" / "report.html").exists()


def small(input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """A user's own network."""
    return nn.Sequential(
        nn.Conv1d(input_shape[0], 8, 3, padding=1), nn.ReLU(), nn.Conv1d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, n_classes),
    )  # fmt: skip


def test_own_network_and_own_arrays(tmp_path: Path) -> None:
    data = antibackdoor.read(write(tmp_path / "data.npz", waves(60, 3), format="npz").path)
    recipe = antibackdoor.Recipe(epochs=2, device="cpu")
    result = antibackdoor.train(data, antibackdoor.Job(recipe=recipe, model=small), out=tmp_path / "run")
    assert result is not None
    assert len(result.table.ids) == len(data.train) == result.metrics["n_samples"]
    loaded, spec = antibackdoor.load_model(tmp_path / "run", small)
    inputs = torch.from_numpy(waves(5).inputs)
    assert torch.equal(loaded(inputs), result.model(inputs))
    assert spec.backbone.endswith(":small")
    assert data.test is not None
    measured = antibackdoor.evaluate(tmp_path / "run", data.test, factory=small, device="cpu")
    assert measured["n_test"] == len(data.test)

    trained = antibackdoor.DualHead().train(data.train, lambda: small((1, 16), 3), recipe)
    assert trained.model(inputs).shape == (5, 3) and trained.verdict.suspicion.shape == (len(data.train),)
    with pytest.raises(antibackdoor.ModelError, match="lambda"):
        antibackdoor.train(data, antibackdoor.Job(recipe=recipe, model=lambda: nn.Flatten()), tmp_path / "wrong")


def test_attack_from_python() -> None:
    samples = pictures(60, 3)
    attack = antibackdoor.ATTACKS["badnets"]()
    poisoned = antibackdoor.poison(samples, attack, rate=0.1, target_label=0, seed=0)
    assert poisoned.truth.is_poisoned.sum() == 6
    shown = antibackdoor.trigger_test_set(samples, poisoned.trigger, poisoned.plan)
    assert len(shown) == 40 and (shown.labels != 0).all()


def test_public_names() -> None:
    for name in antibackdoor.__all__:
        assert getattr(antibackdoor, name) is not None
    assert dir(antibackdoor) == sorted(antibackdoor.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = antibackdoor.nothing
    homes = [name for names in antibackdoor._HOMES.values() for name in names]
    assert sorted(homes) == sorted(antibackdoor.__all__)


@pytest.mark.parametrize("seed", [0])
def test_clean_data_stay_whole(seed: int) -> None:
    """The other half of the claim: where there is no backdoor, nothing or next to nothing is isolated."""
    samples = pictures(300, 3, seed=seed)
    recipe = antibackdoor.Recipe(epochs=8, device="cpu", precision="fp32")
    trained = antibackdoor.DualHead().train(
        samples, lambda: antibackdoor.build_backbone("wrn-10-1", samples.shape, 3), recipe
    )
    assert trained.verdict.isolated.mean() < 0.02
    with torch.no_grad():
        answers = trained.model(torch.from_numpy(samples.inputs / np.float32(255))).argmax(1).numpy()
    assert (answers == samples.labels).mean() > 0.9


def test_demo(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    code, said, err = call("demo", "--out", out, "--epochs", "1", "--device", "cpu")
    assert (code, err) == (0, "")
    assert re.search(r"undefended: clean accuracy .*%, attack success rate .*%", said) and "dual-head:" in said
    for run in ("undefended", "dual-head"):
        assert json.loads((out / run / "metrics.json").read_text())["n_poisoned"] > 100
        assert (out / run / "report.html").exists()
    assert "With the default defense" in (out / "report.html").read_text()
    code, again, _ = call("demo", "--out", out, "--epochs", "1", "--device", "cpu")  # finished runs are kept
    assert code == 0 and again == said
