"""Anti-backdoor learning: its schedules, its ascent, the alternatives, and all of it on poisoned digits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from backdoored import Tiny, make, weights
from ledger import Ledger
from torch import Tensor, nn

from antibackdoor.app.demo import digits
from antibackdoor.attacks import BadNets, poison, trigger_test_set
from antibackdoor.data.samples import Samples
from antibackdoor.defenses import ABL, Undefended, abl_unlearning
from antibackdoor.defenses.abl import PRESETS
from antibackdoor.defenses.abl_ascent import part
from antibackdoor.defenses.abl_unlearning import (
    ALTERNATIVES,
    Stage,
    before_last_stage,
    by_gradient,
    frozen_norms,
    noisy,
    noisy_gradients,
)
from antibackdoor.detectors import LabelSmoothingConfidence
from antibackdoor.errors import ConfigError
from antibackdoor.models.backbones import build_backbone
from antibackdoor.protocols import Given, Trained
from antibackdoor.statistics.isolation import loss_drop
from antibackdoor.training.history import LossHistory
from antibackdoor.training.loop import predict
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.schedules import step
from antibackdoor.training.session import Batch, Session
from antibackdoor.training.trainer import Trainer

RECIPE = Recipe(batch_size=16, device="cpu", precision="fp32", seed=3)
SHORT: dict[str, Any] = {"isolation_rate": 0.1, "isolation_epochs": 2, "epochs": 2, "unlearning_epochs": 2}


def builder(samples: Samples) -> Callable[[], nn.Module]:
    return lambda: Tiny(samples.shape, samples.n_classes)


def trained(samples: Samples, recipe: Recipe = RECIPE, journal: Ledger | None = None, **settings: Any) -> Trained:
    return ABL(**{**SHORT, **settings}).train(samples, builder(samples), recipe, journal=journal)


# --------------------------------------------------------------------------- schedules


def some(kind: str, n: int) -> Samples:
    """So many samples, for schedules: their contents do not matter."""
    shape = (1, 2, 2) if kind == "image" else (1, 2)
    inputs = np.zeros((n, *shape), dtype=np.uint8 if kind == "image" else np.float32)
    return Samples(inputs, np.arange(n) % 2, np.arange(n).astype(str), np.array(["a", "b"]))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_the_published_schedules(preset: str) -> None:
    cifar, authors = some("image", 50_000), Recipe(batch_size=64)
    assert ABL(preset=preset).schedule(cifar, authors) == PRESETS[preset]  # type: ignore[arg-type]
    own = ABL(preset=preset, epochs=7, learning_rate=0.3, augment="flip", gga="last").schedule(cifar, authors)  # type: ignore[arg-type]
    assert own == PRESETS[preset]._replace(epochs=7, learning_rate=0.3, augment="flip", hole=0, gga="last")
    series = ABL(preset=preset).schedule(some("series", 50_000), authors)  # type: ignore[arg-type]
    assert series == PRESETS[preset]._replace(isolation_augment="none", augment="none", hole=0)


def test_few_isolated_samples_are_ascended_for_as_many_steps() -> None:
    few = some("image", 1400)  # 14 isolated: one batch of 32 where CIFAR-10 has eight
    assert ABL().schedule(few, Recipe()).unlearning_epochs == 32
    assert ABL(isolation_rate=0.03).schedule(few, Recipe()).unlearning_epochs == 16  # two batches
    assert ABL(unlearning_epochs=3).schedule(few, Recipe()).unlearning_epochs == 3
    assert ABL(preset="paper").schedule(few, Recipe()).unlearning_epochs == 5  # passes over the rest, not the isolated
    assert ABL(unlearning="retrain").schedule(few, Recipe()).unlearning_epochs == 40


def test_a_part_of_a_schedule() -> None:
    rate = step(0.1, at=(2 / 3,))
    first, last = part(rate, 0, 0.9), part(rate, 0.9, 1)
    assert [round(first(done), 3) for done in (0.0, 0.7, 0.8)] == [0.1, 0.1, 0.01]
    assert round(last(0.0), 3) == 0.01


# --------------------------------------------------------------------------- on poisoned digits


class Digits(NamedTuple):
    samples: Samples
    is_poisoned: Any
    clean: Samples
    shown: Samples


@pytest.fixture(scope="module")
def poisoned_digits() -> Digits:
    whole = digits(0)
    assert whole.test is not None
    made = poison(whole.train.take(np.arange(600)), BadNets(), seed=0, rate=0.1, target_label=4)
    shown = trigger_test_set(whole.test, made.trigger, made.plan)
    return Digits(made.samples, made.truth.is_poisoned, whole.test, shown)


def network(samples: Samples) -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()),
        nn.Sequential(nn.Conv2d(12, 24, 3, padding=1, stride=2), nn.BatchNorm2d(24), nn.ReLU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        nn.Linear(96, samples.n_classes),
    )


def measured(data: Digits, model: nn.Module) -> tuple[float, float]:
    """Clean accuracy and attack success."""
    session = Session(RECIPE, len(data.clean), images=True)
    right = predict(session, model, data.clean).labels == data.clean.labels
    return float(right.mean()), float((predict(session, model, data.shown).labels == 4).mean())


def test_digits_lose_their_backdoor(poisoned_digits: Digits) -> None:
    data = poisoned_digits
    recipe = dataclasses.replace(RECIPE, epochs=10, batch_size=32, augment="none")
    build = lambda: network(data.samples)  # noqa: E731
    accuracy, success = measured(data, Undefended().train(data.samples, build, recipe).model)
    assert accuracy > 0.9 and success > 0.9

    # After a few hundred steps, where the paper takes tens of thousands, the ascent needs a larger rate.
    method = ABL(isolation_rate=0.03, epochs=12, augment="none", unlearning_learning_rate=0.005)
    result = method.train(data.samples, build, recipe)
    isolated = result.verdict.isolated
    assert isolated.sum() == 18 and data.is_poisoned[isolated].mean() >= 0.9
    accuracy, success = measured(data, result.model)
    assert accuracy > 0.85 and success < 0.25
    assert result.facts.isolated_accuracy < 0.1  # below chance, where the ascent stops
    assert 0 < result.facts.unlearning_epochs < 16


# --------------------------------------------------------------------------- the ascent


@pytest.fixture(scope="module")
def waves40() -> Samples:
    return make("series", 40, seed=0)


def test_the_ascent_stops_when_the_isolated_are_forgotten(waves40: Samples) -> None:
    fast: dict[str, Any] = {"unlearning_epochs": 8, "unlearning_learning_rate": 0.5, "bound": float("inf")}
    stopped, never = (trained(waves40, stop=stop, **fast) for stop in ("forgotten", "never"))
    assert stopped.facts.unlearning_epochs < 8 and stopped.facts.isolated_accuracy < 1 / 4
    assert never.facts.unlearning_epochs == 8
    assert stopped.verdict.suspicion.tobytes() == never.verdict.suspicion.tobytes()
    # History: the start, 2 epochs of isolation, 2 of tuning, and those of the ascent.
    assert len(stopped.history) == 5 + stopped.facts.unlearning_epochs and len(never.history) == 13


def test_the_bound_holds_the_loss(waves40: Samples) -> None:
    settings: dict[str, Any] = {"unlearning_epochs": 30, "unlearning_learning_rate": 0.05, "stop": "never"}
    losses = {}
    for bound in (1.0, float("inf")):
        result = trained(waves40, bound=bound, **settings)
        losses[bound] = result.history.losses[-1][result.verdict.isolated].mean()
    assert losses[1.0] < losses[float("inf")]


@pytest.mark.parametrize("rate", [0.001, 0.024])  # of 40: nobody, one sample
@pytest.mark.parametrize("gga", ["last", "joint"])
def test_next_to_nobody_isolated(gga: str, rate: float, waves40: Samples) -> None:
    result = trained(waves40, isolation_rate=rate, gga=gga)
    count = round(rate * 40)
    assert result.verdict.isolated.sum() == count
    assert (result.facts.isolated_accuracy is None) == (count == 0)
    assert (result.facts.unlearning_epochs == 0) == (count == 0)
    if not count:  # then the tuning is whole
        assert len(result.history) == 5


@pytest.mark.parametrize("setting", [{"ascent_statistics": "running"}, {"gga": "joint"}, {"preset": "e2abl"}])
def test_variants_train_another_model(setting: dict[str, Any], waves40: Samples) -> None:
    assert weights(trained(waves40).model) != weights(trained(waves40, **setting).model)


# --------------------------------------------------------------------------- isolation by others


@pytest.mark.parametrize("name", ["activation-clustering", "spectral", "flooding", "label-smoothing-confidence"])
def test_other_detectors_isolate(name: str) -> None:
    result = trained(make("series", 96, seed=0), isolation=name)
    assert result.verdict.isolated.sum() == round(0.1 * 96)
    cut = result.verdict.suspicion[result.verdict.isolated].min()
    assert cut >= result.verdict.suspicion[~result.verdict.isolated].max()


def test_they_get_what_the_isolation_epochs_left(waves40: Samples) -> None:
    result = trained(waves40, isolation="loss-drop")
    early = LossHistory(result.history.losses[:3], result.history.steps[:3])
    assert result.verdict.suspicion.tobytes() == loss_drop(early).tobytes()
    own = dataclasses.replace(RECIPE, epochs=2, momentum=0.9, weight_decay=1e-4, learning_rate=0.1, augment="none")
    given = Given(build=builder(waves40))
    alone = LabelSmoothingConfidence().detect(waves40, given, own).verdict.suspicion
    assert trained(waves40, isolation="label-smoothing-confidence").verdict.suspicion.tobytes() == alone.tobytes()


def test_detectors_that_need_more_are_refused(waves40: Samples) -> None:
    with pytest.raises(ConfigError, match=r"not a detector; choose one of .*low-loss"):
        trained(waves40, isolation="nonsense")
    with pytest.raises(ConfigError, match=r"scan needs clean, which ABL lacks; choose .*spectral"):
        trained(waves40, isolation="scan")


# --------------------------------------------------------------------------- the alternatives


@pytest.mark.parametrize("name", ALTERNATIVES)
@pytest.mark.parametrize("kind", ["image", "series"])
def test_alternatives_deliver_a_model_of_their_own(name: str, kind: str) -> None:
    samples = make(kind, 40, seed=0)
    result = trained(samples, unlearning=name, augment="none")
    epochs = 2 if name == "retrain" else 4
    assert len(result.history) == 3 + epochs + (2 if name == "self-learning" else 0)
    assert weights(result.model) != weights(trained(samples, augment="none").model)
    assert weights(result.model) == weights(trained(samples, unlearning=name, augment="none").model)


def stage(samples: Samples, isolated: Any) -> Stage:
    trainer = Trainer(samples, dataclasses.replace(RECIPE, augment="none"))
    model = trainer.network(builder(samples))
    return Stage(trainer, model, builder(samples), isolated, 1, step(0.1, at=()), 0, True, 1, 0.01)


@pytest.mark.parametrize("name", ["label-shuffling", "label-uniform", "self-learning"])
def test_labels_change_among_the_isolated_alone(name: str, waves40: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    isolated = np.arange(40) < 20
    seen: dict[str, Any] = {}
    monkeypatch.setattr(abl_unlearning, "_go_on", lambda _stage, **kept: (seen.update(kept), 0))
    ALTERNATIVES[name](stage(waves40, isolated))
    labels, given = seen["labels"], waves40.labels
    assert labels.dtype == np.int64 and (labels[~isolated] == given[~isolated]).all()
    assert (labels[isolated] != given[isolated]).any() and labels.max() < 4
    if name == "label-shuffling":
        assert sorted(labels[isolated]) == sorted(given[isolated])


def test_the_last_stage_alone_is_fine_tuned(waves40: Samples) -> None:
    kept = stage(waves40, np.arange(40) < 4)
    before = {name: value.clone() for name, value in kept.model.named_parameters()}
    tuned, _ = ALTERNATIVES["finetune-all"](dataclasses.replace(kept, epochs=0))
    assert all(not before[name].equal(value) for name, value in tuned.named_parameters())
    kept = stage(waves40, np.arange(40) < 4)
    before = {name: value.clone() for name, value in kept.model.state_dict().items()}
    tuned, _ = ALTERNATIVES["finetune-last"](dataclasses.replace(kept, epochs=0))
    changed = {name.split(".")[0] for name, value in tuned.state_dict().items() if not before[name].equal(value)}
    assert changed == {"second", "classifier"}, "the statistics of frozen layers stay as well"


def test_norms_without_weights_are_frozen_with_their_stage() -> None:
    model = Tiny((1, 24), 4)
    model.first[1], model.second[1] = nn.BatchNorm1d(8, affine=False), nn.BatchNorm1d(16, affine=False)
    example = torch.zeros(2, 1, 24)
    assert frozen_norms(model, example) == [model.first[1]]
    with_weights = Tiny((1, 24), 4)
    assert frozen_norms(with_weights, example) == []  # nothing is frozen


def test_what_lies_before_the_last_stage() -> None:
    wide = build_backbone("wrn-10-1", (3, 16, 16), 4)
    early = {id(p) for p in before_last_stage(wide, torch.zeros(2, 3, 16, 16))}
    late = {name.split(".")[0] for name, p in wide.named_parameters() if id(p) not in early}
    whole = {name.split(".")[0] for name, p in wide.named_parameters() if id(p) in early}
    assert early and late and not late & whole


# --------------------------------------------------------------------------- noise


def shown(inputs: Tensor, seed: int = 5) -> tuple[Batch, list[Tensor], Callable[[Tensor], Tensor]]:
    """A batch, and a linear network that keeps what it is shown."""
    seen: list[Tensor] = []
    layer = nn.Linear(inputs[0].numel(), 3)

    def model(x: Tensor) -> Tensor:
        seen.append(x.detach())
        logits: Tensor = layer(x.flatten(1))
        return logits

    n = len(inputs)
    return Batch(inputs, torch.zeros(n, dtype=torch.int64), torch.arange(n), seed), seen, model


def test_noise_falls_on_the_isolated_alone() -> None:
    inputs = torch.full((4, 2, 8, 8), 0.5)
    isolated = torch.tensor([True, False, False, True])
    batch, seen, model = shown(inputs)
    objective = noisy(model, isolated, torch.tensor([0.1, 0.2]))  # type: ignore[arg-type]
    objective(batch)
    objective(batch)
    objective(batch._replace(seed=6))
    assert seen[0].equal(seen[1]) and not seen[0].equal(seen[2])  # a function of the step
    assert seen[0][1:3].equal(inputs[1:3])
    spread = (seen[0] - inputs)[isolated].std(dim=(0, 2, 3))
    assert spread.tolist() == pytest.approx([0.1, 0.2], rel=0.3)
    loud, seen, model = shown(torch.ones(4, 2, 8, 8))
    noisy(model, isolated, torch.tensor([1.0, 1.0]))(loud)  # type: ignore[arg-type]
    assert seen[0].min() >= 0 and seen[0].max() <= 1  # images stay images


def test_noise_by_gradient_is_where_the_loss_depends_on_the_inputs() -> None:
    batch, _, _ = shown(torch.randn(5, 1, 12, generator=torch.Generator().manual_seed(0)))

    class Beginning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.layer = nn.BatchNorm1d(1), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.layer((self.norm(x) * (torch.arange(12) < 3)).flatten(1))
            return logits

    model = Beginning().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights_ = by_gradient(model)(batch)
    assert model.training and model.norm.training
    assert all(value.equal(before[name]) for name, value in model.state_dict().items()), "statistics are left alone"
    assert (weights_[..., 3:] == 0).all()
    assert weights_.square().flatten(1).mean(1).tolist() == pytest.approx([1.0] * 5, rel=1e-5)


def test_noise_on_gradients_is_a_tenth_of_their_size() -> None:
    layer = nn.Linear(400, 3)
    inputs = torch.randn(6, 400, generator=torch.Generator().manual_seed(0))
    batch = Batch(inputs, torch.tensor([0, 1, 2, 0, 1, 2]), torch.arange(6), 5)

    def gradient(rows: list[int]) -> Tensor:
        isolated = torch.isin(torch.arange(6), torch.tensor(rows))
        weighted, recorded = noisy_gradients(layer, isolated)(batch)
        assert weighted.tolist() == pytest.approx(recorded.tolist(), rel=1e-5)  # it changes the gradient alone
        (found,) = torch.autograd.grad(weighted.mean(), layer.weight)
        return found

    plain = gradient([])
    everybody = gradient(list(range(6)))
    assert float((everybody - plain).std() / plain.square().mean().sqrt()) == pytest.approx(0.1, rel=0.2)
    assert 0 < float((gradient([1]) - plain).std()) < float((everybody - plain).std())


# --------------------------------------------------------------------------- resuming


@pytest.mark.parametrize(
    "setting",
    [
        {"unlearning_epochs": 3, "unlearning_learning_rate": 0.01},
        {"gga": "joint"},
        {"isolation": "spectral"},
        {"unlearning": "self-learning"},
        {"unlearning": "finetune-last"},
        {"unlearning": "parameter-gradient-noise"},
        {"unlearning": "retrain"},
    ],
    ids=str,
)
def test_resumed_at_every_checkpoint_it_ends_the_same(setting: dict[str, Any], waves40: Samples) -> None:
    whole = Ledger()
    unbroken = trained(waves40, journal=whole, **setting)
    assert whole.n_saved >= 5
    for stop in range(1, whole.n_saved + 1):
        broken = Ledger(stop_after=stop)
        with pytest.raises(KeyboardInterrupt):
            trained(waves40, journal=broken, **setting)
        resumed = trained(waves40, journal=Ledger(broken.kept), **setting)
        assert weights(resumed.model) == weights(unbroken.model), f"stopped after checkpoint {stop}"
        assert resumed.verdict.suspicion.tobytes() == unbroken.verdict.suspicion.tobytes()
        assert resumed.history.losses.tobytes() == unbroken.history.losses.tobytes()
        assert resumed.facts == unbroken.facts
