"""TimeTrojan-DE: genomes decoded by hand, and what the search reaches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from antibackdoor.attacks import AllToAll, TimeTrojanDE
from antibackdoor.attacks.surrogate import to_tensor, train_surrogate
from antibackdoor.attacks.timetrojan_de import EvolvedSteps, Search, decoded
from antibackdoor.data.samples import Samples
from antibackdoor.errors import ConfigError


def series(shape: tuple[int, ...], n: int = 30) -> Samples:
    """Class 1 oscillates, class 0 drifts: easy for any convolution."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 2
    wave = np.where(labels[:, None] == 1, np.sin(np.arange(shape[1])), np.linspace(-1, 1, shape[1]))
    inputs = wave[:, None] + 0.5 * rng.standard_normal((n, *shape))
    return Samples(inputs.astype(np.float32), labels, np.arange(n).astype(str), np.array(["a", "b"]))


def test_a_genome_is_triples_of_step_variable_and_change() -> None:
    # Step 3 of variable 1 by 2.5; step 0 of all variables by -1; step 3 again, variable 0, which wins.
    genomes = np.array([[3, 1, 2.5, 0, 2, -1.0, 3, 0, 0.5], [3, 1, 2.5, 0, 2, -1.0, 1, 0, 0.5]])
    changes = decoded(genomes, (2, 4), 3)
    assert changes[0].tolist() == [[-1, 0, 0, 0.5], [-1, 0, 0, 0]]
    assert changes[1].tolist() == [[-1, 0.5, 0, 0], [-1, 0, 0, 2.5]]


def test_few_steps_change_by_at_most_three_deviations() -> None:
    samples = series((3, 50))
    attack = TimeTrojanDE(n_steps=4, epochs=2, rounds=1, population=8, generations=3)
    change = attack.trigger(samples, seed=0).apply(samples.inputs, np.arange(30)) - samples.inputs
    steps = (change != 0).any(axis=1).sum(axis=1)
    assert (steps <= 4).all() and (steps > 0).all()
    assert (np.abs(change) <= 3 * samples.inputs.std(axis=(0, 2), ddof=1)[:, None] + 1e-4).all()


def test_more_generations_come_closer_to_the_target() -> None:
    samples = series((2, 40), n=60)
    surrogate = train_surrogate(samples, seed=0, epochs=4, limit=60)
    deviations = samples.inputs.std(axis=(0, 2))[:, None]
    others = samples.inputs[samples.labels == 1][:10]
    labels = torch.zeros(10, dtype=torch.long)

    def loss(inputs: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        logits = surrogate.network()(to_tensor(inputs))
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none").detach().numpy()

    losses = [loss(others)]
    for generations in (1, 5, 20):
        search = Search(n_steps=4, penalty=0.0, population=12, generations=generations)
        losses.append(loss(EvolvedSteps(surrogate, 0, search, deviations, 0).apply(others, np.arange(10))))
    # One and the same search carried on, so that no series may get worse.
    assert (np.diff(losses, axis=0)[1:] <= 1e-5).all()
    assert losses[0].mean() > losses[1].mean() > losses[2].mean() > losses[3].mean()


def test_a_high_penalty_keeps_the_changes_small() -> None:
    samples = series((2, 40))
    surrogate = train_surrogate(samples, seed=0, epochs=2, limit=60)
    size = []
    for penalty in (0.0, 100.0):
        search = Search(n_steps=4, penalty=penalty, population=12, generations=10)
        trigger = EvolvedSteps(surrogate, 0, search, np.ones((2, 1), dtype=np.float32), 0)
        size.append(np.abs(trigger.apply(samples.inputs, np.arange(30)) - samples.inputs).sum())
    assert size[1] < size[0] / 2


def test_triggers_depend_on_the_sample_number_and_the_seed() -> None:
    samples = series((1, 30), n=4)
    same = np.repeat(samples.inputs[:1], 2, axis=0)
    surrogate = train_surrogate(samples, seed=0, epochs=1, limit=60)
    search = Search(n_steps=2, penalty=0.05, population=5, generations=1)
    first, other = (EvolvedSteps(surrogate, 0, search, np.ones((1, 1), dtype=np.float32), seed) for seed in (0, 1))
    moved = first.apply(same, np.arange(2))
    assert (moved[0] != moved[1]).any() and (moved != other.apply(same, np.arange(2))).any()
    assert (moved[1] == first.apply(same[1:], np.array([1]))[0]).all()


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (TimeTrojanDE(n_steps=31), "n_steps 31 must lie in 1..30"),
        (TimeTrojanDE(population=4), "population 4 must be at least 5"),
        (TimeTrojanDE(penalty=-0.1), "penalty is -0.1"),
    ],
)
def test_values_out_of_range(attack: TimeTrojanDE, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        attack.trigger(series((1, 30), n=4), seed=0)


def test_the_plan_has_one_target() -> None:
    with pytest.raises(ConfigError, match="TimeTrojanDE needs one target label"):
        TimeTrojanDE().trigger(series((1, 30), n=4), seed=0, plan=AllToAll())
