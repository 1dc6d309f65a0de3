"""The attack success rate, estimated without the trigger, against the true one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import pictures, waves
from torch import Tensor, nn

from antibackdoor.app.residual import residual_attack_success
from antibackdoor.data.samples import Samples
from antibackdoor.protocols import CLEANED, KEPT, NEARBY, RELABELED, Trained, Verdict
from antibackdoor.statistics.difference import difference
from antibackdoor.training.history import LossHistory
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.session import Session

RECIPE = Recipe(device="cpu", precision="fp32")
NAME = "estimated_residual_attack_success_rate"


class Oracle(nn.Module):
    """Reads the class from where `pictures` and `waves` put it; obeys the trigger for a share of the samples."""

    def __init__(self, samples: Samples, obeys: float) -> None:
        super().__init__()
        mean = [samples.inputs[samples.labels == k].mean(axis=0) for k in range(samples.n_classes)]
        scale = 255 if samples.kind == "image" else 1
        self.templates = torch.tensor(np.array(mean) / scale, dtype=torch.float32)
        self.obeys = obeys

    def forward(self, inputs: Tensor) -> Tensor:
        logits = -((inputs[:, None] - self.templates) ** 2).flatten(2).sum(2)
        corner = inputs[..., -2:].flatten(1)
        turned = (corner.mean(1) > 0.9) & (inputs.flatten(1)[:, 0] % 0.01 < 0.01 * self.obeys)
        logits[turned, 0] = 1000.0
        return logits


def poisoned(kind: str, *, clean_label: bool) -> tuple[Samples, np.ndarray, Samples]:
    clean = pictures(900, 3, size=12, seed=1) if kind == "image" else waves(900, 3, length=24, seed=1)
    rows = np.flatnonzero((clean.labels == 0) if clean_label else (clean.labels != 0))[::5]
    inputs, labels = clean.inputs.copy(), clean.labels.copy()
    inputs[rows, ..., -2:] = 255 if kind == "image" else 3
    labels[rows] = 0
    core = np.zeros(900, dtype=bool)
    core[rows] = True
    return Samples(inputs, labels, clean.ids, clean.class_names), core, clean


def caught(samples: Samples, core: np.ndarray) -> Trained:
    """What a defense would say that isolated the samples of a core."""
    n = len(samples)
    history = LossHistory(np.zeros((1, n), np.float32), np.ones(1, np.int64))
    return Trained(nn.Identity(), history, Verdict.isolating(np.zeros(n), core, samples))


def came_back(trained: Trained, rows: np.ndarray, status: int) -> Trained:
    """The same, but some of the isolated came back: `CLEANED` or `RELABELED`."""
    codes = np.where(rows, status, trained.verdict.status).astype(np.uint8)
    return replace(trained, verdict=replace(trained.verdict, status=codes))


class Confused(nn.Module):
    """A clean model that the trigger blinds: it answers by the trigger's corner alone, never with the target."""

    def __init__(self, oracle: Oracle, knows: float) -> None:
        super().__init__()
        self.oracle, self.knows = oracle, knows

    def forward(self, inputs: Tensor) -> Tensor:
        logits = self.oracle(inputs)
        blinded = (inputs[..., -2:].flatten(1).mean(1) > 0.9) & (inputs.flatten(1)[:, 0] % 0.01 > 0.01 * self.knows)
        logits[blinded, 1] = 1000.0
        return logits


@pytest.mark.parametrize("kind", ["image", "series"])
@pytest.mark.parametrize("clean_label", [False, True])
@pytest.mark.parametrize("obeys", [0.0, 1.0])
def test_it_tells_a_backdoored_model_from_a_clean_one(kind: str, clean_label: bool, obeys: float) -> None:
    samples, core, clean = poisoned(kind, clean_label=clean_label)
    session = Session(RECIPE, len(samples), images=kind == "image")
    found = residual_attack_success(session, Oracle(clean, obeys), samples, caught(samples, core))
    assert found[f"{NAME}_low"] <= found[NAME] <= found[f"{NAME}_high"]
    assert abs(found[NAME] - obeys) < 0.1


@pytest.mark.parametrize("kind", ["image", "series"])
def test_true_labels_are_no_obedience_even_where_the_trigger_hides_the_class(kind: str) -> None:
    """The model knows a third of the carriers only; that they came back tells that their labels are true."""
    samples, core, clean = poisoned(kind, clean_label=True)
    session = Session(RECIPE, len(samples), images=kind == "image")
    model = Confused(Oracle(clean, 0.0), 1 / 3)
    without = residual_attack_success(session, model, samples, caught(samples, core))
    assert 0.15 < without[NAME] < 0.5
    back = came_back(caught(samples, core), core, CLEANED)
    assert residual_attack_success(session, model, samples, back)[NAME] < 0.05


class LearnedByHeart(nn.Module):
    """Obeys the trigger but for the samples that it was taught under their true labels."""

    def __init__(self, oracle: Oracle, taught: Samples) -> None:
        super().__init__()
        self.oracle, self.taught = oracle, torch.tensor(taught.inputs / 255, dtype=torch.float32).flatten(1)

    def forward(self, inputs: Tensor) -> Tensor:
        logits = self.oracle(inputs)
        known = torch.cdist(inputs.flatten(1), self.taught).min(1).values < 0.05
        logits[known, 0] = -1000.0
        return logits


class Unlike:
    """A trigger that the difference of means does not carry over."""

    def carry_over(self, inputs: np.ndarray) -> np.ndarray:
        return inputs


def test_samples_that_were_taught_to_be_something_else_tell_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("antibackdoor.app.residual.difference", lambda *_: Unlike())
    samples, core, clean = poisoned("image", clean_label=False)
    session = Session(RECIPE, len(samples), images=True)
    kept = core & (np.cumsum(core) % 2 == 0)
    model = LearnedByHeart(Oracle(clean, 1.0), samples.take(np.flatnonzero(core & ~kept)))
    trained = came_back(caught(samples, core), core & ~kept, RELABELED)
    assert residual_attack_success(session, model, samples, trained)[NAME] == pytest.approx(0.5, abs=0.1)
    assert residual_attack_success(session, model, samples, replace(trained, probe=kept))[NAME] > 0.9


def test_labels_are_not_true_where_carriers_came_back_under_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sharper edges, say: the model obeys, and the difference of the means does not carry the trigger over."""
    monkeypatch.setattr("antibackdoor.app.residual.difference", lambda *_: Unlike())
    samples, core, clean = poisoned("image", clean_label=False)
    session, model = Session(RECIPE, len(samples), images=True), Oracle(clean, 1.0)
    trained = caught(samples, core)
    assert residual_attack_success(session, model, samples, trained)[NAME] < 0.05
    some = came_back(trained, core & (np.cumsum(core) < 5), RELABELED)
    assert residual_attack_success(session, model, samples, some)[NAME] > 0.9


def test_triggers_are_carried_over() -> None:
    """Overwriting, shifting and blending, each as the trigger itself would do it."""
    rng = np.random.default_rng(0)
    kinds = rng.uniform(0.1, 0.5, (5, 1, 24, 9))
    inputs = (kinds[rng.integers(5, size=2050)] + rng.uniform(0, 0.1, (2050, 1, 24, 9))).astype(np.float32)
    fresh, inputs = inputs[:50], inputs[50:]
    found = np.arange(2000) < 300
    expected = fresh.copy()
    for part in (inputs[:300], expected):
        part[..., :3] = 0.9
        part[..., 3:6] += 0.3
        part[..., 6:] = 0.7 * part[..., 6:] + 0.3
    samples = Samples(inputs, np.zeros(2000, np.int64), np.arange(2000).astype(str), np.array(["a"]))
    change = difference(samples, found, ~found)
    assert change is not None
    assert np.abs(change.carry_over(fresh) - expected).mean() < 0.03
    stored = change.carry_over(np.rint(255 * fresh).astype(np.uint8))
    assert stored.dtype == np.uint8 and np.abs(stored / 255 - expected).mean() < 0.03


def test_near_copies_are_not_asked() -> None:
    """What was isolated as a near copy carries no shortcut, so that a model that knows it obeys nobody."""
    samples, core, clean = poisoned("image", clean_label=False)
    session, model = Session(RECIPE, len(samples), images=True), Oracle(clean, 0.0)
    near = ~core & (samples.labels == 0)
    trained = caught(samples, core | near)
    told = replace(trained.verdict, criterion=np.where(near, NEARBY, trained.verdict.criterion).astype(np.uint8))
    assert residual_attack_success(session, model, samples, trained)[NAME] > 0.5, "were they asked, it would seem so"
    assert residual_attack_success(session, model, samples, replace(trained, verdict=told))[NAME] < 0.1
    alone = replace(told, status=np.where(core, KEPT, told.status).astype(np.uint8))
    assert residual_attack_success(session, model, samples, replace(trained, verdict=alone)) == {}


def test_nothing_to_ask() -> None:
    samples, core, clean = poisoned("image", clean_label=False)
    session = Session(RECIPE, len(samples), images=True)
    few = core & (core.cumsum() < 5)
    assert residual_attack_success(session, Oracle(clean, 1.0), samples, caught(samples, few)) == {}
