"""CutMix as a defense: its schedule and its refusals; the mixtures themselves are in test_augmentations.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
from backdoored import weights
from noisy import RECIPE, builder, check_resume, noisy, outcome, poisoned

from antibackdoor.defenses import CutMix, Undefended
from antibackdoor.defenses.cutmix import DROPS
from antibackdoor.errors import ConfigError
from antibackdoor.training.schedules import step


@pytest.mark.parametrize("kind", ["image", "series"])
def test_resume(kind: str) -> None:
    result = check_resume(CutMix(epochs=3), noisy(kind, 40, 3))
    assert not result.verdict.isolated.any() and len(result.history) == 4


def test_rates_of_the_reference() -> None:
    rate = step(CutMix().learning_rate, at=DROPS)
    assert [rate(epoch / 200) for epoch in (0, 149, 150, 180)] == pytest.approx([0.1, 0.1, 0.01, 0.001])


def test_it_weakens_a_small_trigger_without_losing_the_classes() -> None:
    data = poisoned("image", 400, 4, rate=0.05)
    recipe = replace(RECIPE, epochs=10, learning_rate=0.05)
    plain = outcome(Undefended().train(data.samples, builder(data.samples), recipe), data)
    mixed = outcome(CutMix(epochs=10, learning_rate=0.05).train(data.samples, builder(data.samples), recipe), data)
    assert plain.attack_success > 0.8
    assert mixed.attack_success < plain.attack_success and mixed.accuracy > 0.8


def test_every_field_counts() -> None:
    samples = noisy("series", 40, 3)
    changes = {
        "epochs": 8,
        "learning_rate": 0.05,
        "beta": 5.0,
        "probability": 0.5,
        "least_share": 0.6,
        "most_share": 0.4,
    }

    def weight(**settings: float) -> bytes:
        return weights(CutMix(**{"epochs": 9, **settings}).train(samples, builder(samples), RECIPE).model)  # type: ignore[arg-type]

    assert len({weight(), *(weight(**{name: value}) for name, value in changes.items())}) == 1 + len(changes)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"beta": 0.0}, "beta is 0.0"),
        ({"probability": 1.5}, "probability is 1.5"),
        ({"least_share": 0.8}, "from least_share, 0.8, to 1"),
    ],
)
def test_refusals(wrong: dict[str, float], said: str) -> None:
    samples = noisy("series", 40, 3)
    with pytest.raises(ConfigError, match=said):
        CutMix(**wrong).train(samples, builder(samples), RECIPE)  # type: ignore[arg-type]
