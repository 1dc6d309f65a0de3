"""Nothing that a method must not see changes what it delivers: test labels, the truth, and a trigger to measure."""

from __future__ import annotations

import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import pictures, write_folder
from torch import Tensor, nn

import antibackdoor
from antibackdoor.app.red_team import Aim, poison_data_set
from antibackdoor.attacks import BadNets, read_truth, write_truth
from antibackdoor.data.reading import DataSet
from antibackdoor.defenses import DEFENSES
from antibackdoor.detectors import PatchPerturbation
from antibackdoor.protocols import Given, Verdict
from antibackdoor.purifiers import PURIFIERS
from antibackdoor.training.recipe import Recipe

N_CLASSES = 3
RECIPE = Recipe(epochs=2, batch_size=16, device="cpu", precision="fp32", augment="none", progress=False)
SEARCH = antibackdoor.ConfusionTraining(power=False, warmup_steps=30, confusion_steps=3)
OWN: dict[str, dict[str, Any]] = {
    "abl": {"isolation_rate": 0.1},
    "advrbd": {"perturbation": PatchPerturbation(steps=1)},
    "dual-head": {"search": SEARCH},
    "e2abl": {"epochs": 3},
    "neural-cleanse-unlearn": {"anomaly": 0.0},
}


class Tiny(nn.Module):
    """Two stages with batch norm and a linear layer."""

    def __init__(self, input_shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(input_shape[0], 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.classifier = nn.Linear(16, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.classifier(self.second(self.first(x)).flatten(2).mean(2))
        return logits


def short(name: str, table: dict[str, Any]) -> Any:
    """A method of a moment."""
    usual = {part.name: 1 for part in fields(table[name]) if part.name.endswith(("epochs", "rounds"))}
    usual |= {part.name: 3 for part in fields(table[name]) if part.name == "steps"}
    return table[name](**{**usual, **OWN.get(name, {})})


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Poisoned data with their truth, their trigger and clean test samples, as `poison` writes them."""
    folder = tmp_path_factory.mktemp("told")
    for split, n, seed in (("train", 72, 0), ("test", 24, 1)):
        write_folder(pictures(n, N_CLASSES, seed=seed), folder / "clean" / split)
    poison_data_set(antibackdoor.read(folder / "clean"), BadNets(), Aim(0.15, "class0"), folder / "poisoned", seed=0)
    return folder / "poisoned"


@pytest.fixture(scope="module")
def turned(told: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training samples; another truth, another trigger, and test samples of the wrong classes."""
    folder = tmp_path_factory.mktemp("turned") / "poisoned"
    shutil.copytree(told, folder)
    (folder / "test" / "class0").rename(folder / "test" / "other")
    (folder / "test" / "class1").rename(folder / "test" / "class0")
    (folder / "test" / "other").rename(folder / "test" / "class1")
    ids, truth = read_truth(folder / "truth.parquet")
    labels = np.where(truth.is_poisoned, truth.true_labels, (truth.true_labels + 1) % N_CLASSES)
    write_truth(folder / "truth.parquet", ids, replace(truth, is_poisoned=~truth.is_poisoned, true_labels=labels))
    other = folder.parent / "other"
    poison_data_set(antibackdoor.read(told.parent / "clean"), BadNets(cell=2), Aim(0.1, "class2"), other, seed=5)
    for name in ("trigger.json", "trigger.safetensors"):
        shutil.copy(other / name, folder / name)
    return folder


def read(folder: Path) -> DataSet:
    data: DataSet = antibackdoor.read(folder)
    assert len(data.train) == 72 and data.test is not None and len(data.test) == 24
    return data


def weights(model: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


def test_the_two_folders_differ_where_methods_may_not_look(told: Path, turned: Path) -> None:
    one, other = read(told), read(turned)
    assert one.train.inputs.tobytes() == other.train.inputs.tobytes() and (one.train.labels == other.train.labels).all()
    assert one.test is not None and other.test is not None and (one.test.contents != other.test.contents).any()
    for name in ("truth.parquet", "trigger.json", "trigger.safetensors"):
        assert (told / name).read_bytes() != (turned / name).read_bytes()


@pytest.mark.parametrize("name", DEFENSES)
def test_a_defense_sees_training_samples_alone(name: str, told: Path, turned: Path, tmp_path: Path) -> None:
    found = []
    for folder in (told, turned):
        run = tmp_path / folder.parent.name
        job = antibackdoor.Job(short(name, DEFENSES), RECIPE, model=Tiny)
        outcome = antibackdoor.train(read(folder), job, out=run)
        assert outcome is not None
        verdict = outcome.trained.verdict
        found.append((weights(outcome.model), verdict.suspicion.tobytes(), verdict.status.tobytes()))
    assert found[0] == found[1]


@pytest.fixture(scope="module")
def run(told: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was trained without a defense."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    job = antibackdoor.Job(DEFENSES["none"](), replace(RECIPE, epochs=8), model=Tiny)
    assert antibackdoor.train(read(told), job, out=folder) is not None
    return folder


@pytest.mark.parametrize("name", PURIFIERS)
def test_a_purifier_sees_no_test_samples(name: str, run: Path, told: Path, turned: Path, tmp_path: Path) -> None:
    found = []
    for folder in (told, turned):
        data, given = read(folder), tmp_path / folder.parent.name
        shutil.copytree(run, given)
        antibackdoor.evaluate(given, data.test, truth=told / "truth.parquet", trigger=folder, factory=Tiny)
        purified = antibackdoor.purify(
            given,
            out=tmp_path / f"{folder.parent.name} purified",
            method=short(name, PURIFIERS),
            given=known(name, data),
            test=data.test,
            measure_trigger=folder,
            recipe=RECIPE,
            model=Tiny,
        )
        assert "attack_success_rate" in purified.metrics
        found.append(weights(purified.model))
    assert found[0] == found[1]


def known(name: str, data: DataSet) -> Given:
    """What a purifier is given; the verdict is none of the truth's."""
    rows = np.arange(len(data.train)) % 6 == 0
    verdict = Verdict.isolating(rows.astype(np.float64), rows, data.train)
    trigger = antibackdoor.poison(data.train, BadNets(), seed=0, rate=0.1, target_label=0).trigger
    values = {
        "clean": pictures(36, N_CLASSES, seed=2),
        "suspicious": data.train,
        "verdict": verdict,
        "trigger": trigger,
    }
    kind = PURIFIERS[name]
    wanted = {*kind.needs, *({"verdict"} & {*kind.takes})}
    return Given(**{part: values[part] for part in wanted})


def test_a_truth_beside_a_run_leaves_its_weights_alone(told: Path, turned: Path, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    before = weights(antibackdoor.load_model(tmp_path / "run", Tiny)[0])
    antibackdoor.evaluate(tmp_path / "run", truth=told / "truth.parquet")
    write_truth(tmp_path / "wrong.parquet", *opposite(told))
    antibackdoor.evaluate(tmp_path / "run", truth=tmp_path / "wrong.parquet")
    assert weights(antibackdoor.load_model(tmp_path / "run", Tiny)[0]) == before


def opposite(folder: Path) -> tuple[Any, Any]:
    """Ids, and a truth in which all samples but the poisoned are poisoned under their own label."""
    ids, truth = read_truth(folder / "truth.parquet")
    return ids, replace(truth, is_poisoned=np.ones(len(ids), dtype=bool))
