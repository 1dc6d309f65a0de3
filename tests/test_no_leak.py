"""Nothing that a defense must not see changes it: test labels, test samples, and which samples are poisoned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import pictures, write_folder

import antibackdoor
from antibackdoor.attacks import ATTACKS
from antibackdoor.attacks.poisoning import write_truth
from antibackdoor.data.reading import DataSet
from antibackdoor.defenses import DEFENSES
from antibackdoor.training.recipe import Recipe

SHORT: dict[str, dict[str, Any]] = {
    "e2abl": {"epochs": 3},
    "abl": {"isolation_epochs": 1, "epochs": 2},
    "advrbd": {"rounds": 1, "short_epochs": 1},
    "none": {},
}


def weights(defense: str, data: DataSet, out: Path) -> dict[str, torch.Tensor]:
    """What a short training delivers."""
    job = antibackdoor.Job(DEFENSES[defense](**SHORT[defense]), Recipe(epochs=2, progress=False), backbone="wrn-10-1")
    return antibackdoor.train(data, job, out=out).model.state_dict()


@pytest.mark.parametrize("defense", SHORT)
def test_other_test_data_leave_the_weights_alone(defense: str, tmp_path: Path) -> None:
    poisoned = antibackdoor.poison(pictures(64), ATTACKS["badnets"](), rate=0.1, target_label=0, seed=0)
    test = pictures(24, seed=1)
    wrong = replace(test, labels=1 - test.labels, inputs=np.roll(test.inputs, 1, axis=0))
    found = [
        weights(defense, DataSet(poisoned.samples, seen, "folder", (), {}), tmp_path / str(number))
        for number, seen in enumerate((test, wrong))
    ]
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_a_truth_beside_the_data_leaves_the_weights_alone(tmp_path: Path) -> None:
    poisoned = antibackdoor.poison(pictures(64), ATTACKS["badnets"](), rate=0.1, target_label=0, seed=0)
    folder = write_folder(poisoned.samples, tmp_path / "data")
    data = antibackdoor.read(folder)
    before = weights("e2abl", data, tmp_path / "before")
    turned = replace(poisoned.truth, is_poisoned=~poisoned.truth.is_poisoned)
    for truth, name in ((poisoned.truth, "truth.parquet"), (turned, "wrong.parquet")):
        write_truth(tmp_path / name, poisoned.samples.ids, truth)
        antibackdoor.evaluate(tmp_path / "before", truth=tmp_path / name)
    after = weights("e2abl", data, tmp_path / "after")
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    kept = antibackdoor.load_model(tmp_path / "before")[0].state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in before.items())
