"""Phases of training: a defense says what they are, and resumes by itself."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import pictures
from ledger import Ledger
from phases import RECIPE, Seen, builder, weights
from torch import Tensor, nn

from antibackdoor.data.samples import Samples
from antibackdoor.errors import ConfigError
from antibackdoor.training.loop import classify, cross_entropy
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.schedules import constant, cosine, step, triangle
from antibackdoor.training.trainer import Phase, Trainer

# --------------------------------------------------------------------------- what an objective sees


def shown(samples: Samples, recipe: Recipe = RECIPE, name: str = "looking", epochs: int = 1, **settings: Any) -> Seen:
    """The batches of a phase, as its objective sees them."""
    trainer = Trainer(samples, recipe)
    model = trainer.network(builder(samples))
    seen = Seen(model)
    trainer.run(model, Phase(name, epochs, seen, constant(0.01), **settings))
    return seen


def test_each_step_has_a_seed_of_its_own_which_comes_again_in_the_next_run() -> None:
    samples = pictures(48, 3)
    seeds = [[batch.seed for batch in shown(samples, epochs=2).batches] for _ in range(2)]
    assert seeds[0] == seeds[1] and len(set(seeds[0])) == 6
    others = [batch.seed for batch in shown(samples, epochs=2, name="another phase").batches]
    assert not set(seeds[0]) & set(others)
    other_run = [batch.seed for batch in shown(samples, replace(RECIPE, seed=4), epochs=2).batches]
    assert not set(seeds[0]) & set(other_run)


def test_a_phase_visits_its_rows_once_in_an_epoch_in_an_order_of_its_own() -> None:
    samples, some = pictures(48, 3), np.arange(1, 48, 2)
    first, second = shown(samples, rows=some, epochs=2), shown(samples, rows=some, name="another phase")
    assert sorted(first.rows[:24]) == sorted(first.rows[24:]) == sorted(second.rows) == some.tolist()
    assert first.rows[:24] != first.rows[24:] != second.rows != first.rows[:24]
    assert [len(batch.rows) for batch in shown(samples, batch_size=24).batches] == [24, 24]


def test_a_plan_names_the_rows_of_each_batch() -> None:
    seen = shown(pictures(48, 3), epochs=2, plan=lambda epoch: [np.array([epoch, 7]), np.array([7, 9, 7])])
    assert [batch.rows.tolist() for batch in seen.batches] == [[0, 7], [7, 9, 7], [1, 7], [7, 9, 7]]


def test_labels_of_a_phase_take_the_place_of_the_given_ones() -> None:
    samples = pictures(48, 3)
    hard = (samples.labels + 1) % 3
    for batch in shown(samples, labels=hard).batches:
        assert batch.labels.tolist() == hard[batch.rows].tolist()
    soft = np.random.default_rng(0).dirichlet(np.ones(3), 48).astype(np.float32)
    for batch in shown(samples, labels=soft).batches:
        assert batch.labels.dtype == torch.float32
        np.testing.assert_array_equal(batch.labels.numpy(), soft[batch.rows])
    assert [batch.labels.dtype for batch in shown(samples).batches] == [torch.int64] * 3


def test_soft_labels_that_are_sure_teach_what_hard_ones_do() -> None:
    samples = pictures(48, 3)

    def trained(labels: Any) -> bytes:
        trainer = Trainer(samples, RECIPE)
        model = trainer.network(builder(samples))
        trainer.run(model, Phase("training", 1, classify(model), constant(0.1), labels=labels))
        return trainer.history.losses[-1]

    sure = np.eye(3, dtype=np.float32)[samples.labels]
    np.testing.assert_allclose(trained(sure), trained(None), rtol=1e-3)
    even = np.full((48, 3), 1 / 3, dtype=np.float32)
    assert (trained(even) >= math.log(3) - 1e-4).all(), "no guess has a lower loss against even labels"


def test_a_change_comes_before_the_augmentation() -> None:
    samples = pictures(48, 3)

    def lit(inputs: Tensor, rows: Tensor) -> Tensor:
        return torch.where((rows < 10)[:, None, None, None], torch.full_like(inputs, 255), inputs)

    for batch in shown(samples, change=lit).batches:
        raw = samples.inputs[batch.rows] / np.float32(255)
        is_lit = (batch.rows < 10).numpy()
        assert (batch.inputs[is_lit] == 1).all()
        np.testing.assert_allclose(batch.inputs[~is_lit], raw[~is_lit])
    holes = [batch.inputs[batch.rows < 10] for batch in shown(samples, change=lit, augment="cutout").batches]
    assert all((part == 0).flatten(1).any(1).all() for part in holes), "holes in what the change had made bright"


@pytest.mark.parametrize(("of_recipe", "of_phase", "is_raw"), [("flip", "none", True), ("none", "flip", False)])
def test_the_augmentation_of_a_phase_wins_over_the_recipes(of_recipe: str, of_phase: str, is_raw: bool) -> None:
    samples = pictures(48, 3)
    samples.inputs[:, :, :, 4:] //= 2  # so that its mirror image is another one
    recipe = replace(RECIPE, augment=of_recipe)
    same = [
        np.allclose(batch.inputs, samples.inputs[batch.rows] / np.float32(255))
        for batch in shown(samples, recipe, augment=of_phase).batches
    ]
    assert same == [is_raw] * 3
    assert (Trainer(samples, recipe).feed.augmentations == ()) == (of_recipe == "none")


# --------------------------------------------------------------------------- learning rates


def test_schedules_by_hand() -> None:
    assert [constant(0.3)(done) for done in (0.0, 0.9)] == [0.3, 0.3]
    drops = step(0.1, at=(0.5, 0.75), factor=0.2)
    assert [drops(done) for done in (0.0, 0.49, 0.5, 0.74, 0.75, 0.99)] == pytest.approx(
        [0.1, 0.1, 0.02, 0.02, 0.004, 0.004]
    )
    assert [triangle(1.0)(done) for done in (0.0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert [cosine(1.0)(done) for done in (0.0, 1 / 3, 0.5, 2 / 3, 1.0)] == pytest.approx([1, 0.75, 0.5, 0.25, 0])


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("triangle", [0, 0.5, 0.625, 0.3125, 0]),
        ("step", [1, 1, 0.1, 0.01, 0.01]),
        ("cosine", [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0]),
        ("constant", [1, 1, 1, 1, 1]),
    ],
)
def test_schedules_of_a_recipe(name: Any, rates: list[float]) -> None:
    rate = replace(RECIPE, learning_rate=1.0, schedule=name).rate()
    places = [0.0, 0.1 if name == "triangle" else 0.25, 0.5, 0.75, 1.0]
    assert [rate(done) for done in places] == pytest.approx(rates)
    with pytest.raises(ConfigError, match="schedule is 'nonsense'; give one of triangle, step, cosine, constant"):
        replace(RECIPE, schedule="nonsense")


def test_a_schedule_spans_the_phase_step_by_step() -> None:
    samples, met = pictures(48, 3), list[float]()
    trainer = Trainer(samples, RECIPE)
    model = trainer.network(builder(samples))

    def schedule(done: float) -> float:
        met.append(done)
        return 0.01

    trainer.run(model, Phase("training", 2, classify(model), schedule))
    assert met == pytest.approx([k / 6 for k in range(6)])


def test_without_a_schedule_the_optimizer_keeps_its_own_rates() -> None:
    samples = pictures(48, 3)
    trainer = Trainer(samples, RECIPE)
    model = trainer.network(builder(samples))
    optimizer = trainer.optimizer(
        [{"params": [p], "lr": 0.01 * (k + 1)} for k, p in enumerate(model.parameters())],
        momentum=0.5,
        weight_decay=0.0,
    )
    trainer.run(model, Phase("training", 1, classify(model), None), optimizer)
    assert [group["lr"] for group in optimizer.param_groups][:2] == [0.01, 0.02]
    settings = optimizer.param_groups[0]
    assert (settings["momentum"], settings["weight_decay"], settings["nesterov"]) == (0.5, 0.0, True)


# --------------------------------------------------------------------------- what is kept


def test_what_is_remembered_is_computed_once() -> None:
    samples, calls = pictures(32, 3), list[str]()

    def compute() -> dict[str, Any]:
        calls.append("computed")
        return {"rows": np.arange(4), "pair": (np.ones(2, dtype=bool), 3), "words": ("a", "b"), "nothing": None}

    def train(journal: Ledger) -> dict[str, Any]:
        trainer = Trainer(samples, RECIPE, journal)
        model = trainer.network(builder(samples))
        trainer.run(model, Phase("first", 1, classify(model), constant(0.1)))
        kept = trainer.remember("all", compute)
        trainer.run(model, Phase("second", 2, classify(model), constant(0.1)))
        return kept

    broken = Ledger(stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        train(broken)
    kept = train(Ledger(broken.kept))
    assert calls == ["computed"]
    assert kept["rows"].tolist() == [0, 1, 2, 3] and isinstance(kept["rows"], np.ndarray)
    assert kept["pair"][0].dtype == bool and kept["pair"][1] == 3 and kept["words"] == ("a", "b")
    assert kept["nothing"] is None


@pytest.mark.parametrize("stop", range(1, 5))
def test_a_fold_ends_early_and_resumes_where_it_was(stop: int) -> None:
    samples = pictures(32, 3)
    start = {"sum": 0, "met": np.zeros(0, dtype=np.int64), "tensor": torch.zeros(2), "deep": {"none": None}}

    def fold(journal: Ledger, steps: list[int]) -> dict[str, Any]:
        def add(place: int, state: dict[str, Any]) -> dict[str, Any]:
            steps.append(place)
            met = np.append(state["met"], place)
            return {**state, "sum": state["sum"] + place, "met": met, "tensor": state["tensor"] + place}

        return Trainer(samples, RECIPE, journal).fold("sums", 10, start, add, until=lambda state: state["sum"] >= 6)

    whole, steps = Ledger(), list[int]()
    state = fold(whole, steps)
    assert steps == [0, 1, 2, 3] and state["sum"] == 6 and whole.n_saved == 4
    broken, steps = Ledger(stop_after=stop), []
    with pytest.raises(KeyboardInterrupt):
        fold(broken, steps)
    again = fold(Ledger(broken.kept), steps)
    assert steps == [0, 1, 2, 3], "no step is taken twice"
    assert again["sum"] == 6 and again["met"].tolist() == [0, 1, 2, 3] and again["deep"] == {"none": None}
    assert isinstance(again["met"], np.ndarray) and torch.equal(again["tensor"], torch.full((2,), 6.0))


def test_a_fold_may_be_over_before_it_begins() -> None:
    trainer = Trainer(pictures(32, 3), RECIPE)
    never = lambda _place, _state: pytest.fail("a step was taken")  # noqa: E731
    assert trainer.fold("over", 5, 7, never, until=lambda state: state == 7) == 7
    assert trainer.fold("empty", 0, 7, never) == 7


def test_networks_and_optimizers_come_back_as_they_were() -> None:
    """Also those that outlive a phase, and a network that is made later on."""
    samples, whole = pictures(32, 3), Ledger()

    def train(journal: Ledger) -> tuple[bytes, bytes]:
        trainer = Trainer(samples, RECIPE, journal)
        first = trainer.network(builder(samples))
        optimizer = trainer.optimizer(first.parameters())
        trainer.run(first, Phase("first", 2, classify(first), constant(0.05)), optimizer)
        trainer.run(first, Phase("with the same momentum", 1, classify(first), constant(0.05)), optimizer)
        second = trainer.network(builder(samples), index=1)
        trainer.run(second, Phase("second", 2, classify(second), constant(0.05)))
        return weights(first), weights(second)

    unbroken = train(whole)
    assert whole.n_saved == 5
    for stop in range(1, 6):
        broken = Ledger(stop_after=stop)
        with pytest.raises(KeyboardInterrupt):
            train(broken)
        assert train(Ledger(broken.kept)) == unbroken


def test_first_weights_depend_on_seed_and_index_alone() -> None:
    samples = pictures(32, 3)

    def first(seed: int, index: int) -> bytes:
        torch.manual_seed(int(np.random.default_rng().integers(2**31)))
        return weights(Trainer(samples, replace(RECIPE, seed=seed)).network(builder(samples), index=index))

    assert first(3, 0) == first(3, 0)
    assert len({first(3, 0), first(3, 1), first(4, 0), first(4, 1)}) == 4


def test_the_history_keeps_the_last_loss_of_a_sample_that_was_not_seen() -> None:
    samples = pictures(32, 3)
    trainer = Trainer(samples, RECIPE)
    model = trainer.network(builder(samples))
    trainer.run(model, Phase("some", 1, classify(model), constant(0.05), rows=np.arange(10)))
    trainer.run(model, Phase("unrecorded", 1, classify(model), constant(0.05), recorded=False))
    assert trainer.history.losses.shape == (2, 32) and trainer.history.steps.tolist() == [0, 1]
    assert (trainer.history.losses[-1][10:] == np.float32(math.log(3))).all()
    assert (trainer.history.losses[-1][:10] != np.float32(math.log(3))).all()


def test_losses_are_measured_without_augmentation_and_leave_the_mode_alone() -> None:
    samples = pictures(32, 3)
    trainer = Trainer(samples, replace(RECIPE, augment="cutout"))
    model = trainer.network(builder(samples)).train()
    once, some = trainer.losses(model), trainer.losses(model, np.array([5, 2]))
    assert model.training
    np.testing.assert_allclose(some, once[[5, 2]], rtol=1e-5)
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(samples.inputs / np.float32(255)))
    np.testing.assert_allclose(once, cross_entropy(logits, torch.from_numpy(samples.labels)), rtol=1e-4)


def test_a_phase_that_cannot_be_run_says_why() -> None:
    samples = pictures(32, 3)
    trainer = Trainer(samples, RECIPE)
    model = trainer.network(builder(samples))
    with pytest.raises(ConfigError, match="'backwards' has -1 epochs; give 0 or more"):
        trainer.run(model, Phase("backwards", -1, classify(model), None))
    with pytest.raises(ConfigError, match="a loss of 'too fast 1/1' is not finite"):
        trainer.run(model, Phase("too fast", 1, classify(model), constant(1e20)))


def test_dropout_draws_by_the_seed_alone() -> None:
    """Torch's own random state decides nothing, and is left as it was."""
    samples = pictures(40, 3)

    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3))

    def weights() -> bytes:
        trainer = Trainer(samples, RECIPE)
        model = trainer.network(build)
        trainer.run(model, Phase("training", 2, classify(model), constant(0.1)))
        return b"".join(value.numpy().tobytes() for value in model.state_dict().values())

    before = torch.random.get_rng_state()
    first = weights()
    assert (torch.random.get_rng_state() == before).all()
    torch.rand(3)
    assert weights() == first
