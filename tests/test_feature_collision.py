"""Feature collision: single steps by hand, and what poisons share with their goals and with their images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import striped
from PIL import Image
from torch import Tensor

from antibackdoor.attacks import CleanLabel, FeatureCollision, SourceSpecific, load_trigger, poison, save_trigger
from antibackdoor.attacks.feature_collision import Collision, Descent, collided
from antibackdoor.attacks.stamps import Patch, Staged
from antibackdoor.attacks.surrogate import to_tensor
from antibackdoor.errors import ConfigError, DataError

NUMBERS = np.arange(128)


@pytest.fixture(scope="module")
def trained() -> Staged:
    # Two steps of training: 16 gray levels move less of what a better network makes of broad stripes.
    attack = FeatureCollision(epochs=2, n_surrogate=16, n_steps=30, n_sources=20, n_candidates=4)
    return attack.trigger(striped(128), seed=0, plan=CleanLabel(target_label=1))


class Identity:
    """Features that are the pixels."""

    def features(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(1)


@pytest.mark.parametrize(
    ("descent", "expected"),
    [
        # The slope at 0.5 is 2 (0.5 - 0.7) = -0.4, so that the first step has the rate 0.1 / 0.4.
        (Descent(1.0, 0.0, 0.1, 1), 0.6),
        (Descent(1.0, 0.0, 0.1, 2), 0.65),  # again, with the slope -0.2
        (Descent(0.03, 0.0, 0.1, 1), 0.53),
        (Descent(1.0, 1.0, 0.1, 1), 0.58),  # (0.6 + 0.25 * 0.5) / 1.25
        (Descent(1.0, 0.0, 0.5, 1), 0.5),  # 1.0 is farther off: taken back
        (Descent(1.0, 0.0, 0.5, 2), 0.75),  # and halved
    ],
)
def test_steps_by_hand(descent: Descent, expected: float) -> None:
    image, goals = torch.full((1, 1, 1, 1), 0.5), torch.tensor([[[0.7], [0.1]]])  # the nearer goal counts
    network: Any = Identity()
    assert collided(network, image, goals, descent).item() == pytest.approx(expected, abs=1e-6)


def test_poisons_come_closer_to_their_goals_and_stay_near_their_images(trained: Staged) -> None:
    collision = trained.planted
    assert isinstance(collision, Collision)
    samples = striped(128)
    result = poison(samples, FeatureCollision(), plan=CleanLabel(rate=0.2, target_label=1), seed=0, trigger=trained)
    rows = result.truth.is_poisoned
    assert rows.sum() == 26 and (samples.labels[rows] == 1).all()
    assert (result.samples.labels == samples.labels).all()  # clean label
    images, poisons = samples.inputs[rows], collision.apply(samples.inputs[rows], np.arange(26))
    assert np.abs(poisons.astype(int) - images).max() <= 16
    goals = collision.candidates(np.arange(26))
    distance = [
        (collision.surrogate.network().features(to_tensor(part))[:, None] - goals).square().sum(dim=2).amin(dim=1)
        for part in (images, poisons)
    ]
    assert (distance[1] < 0.6 * distance[0]).all()


def test_the_patch_alone_is_shown(trained: Staged) -> None:
    samples = striped(128)
    shown = trained.apply(samples.inputs, NUMBERS)
    changed = (shown != samples.inputs).any(axis=(0, 1))
    assert changed[6:11, 6:11].all() and changed.sum() == 25  # 5 pixels from the corner of 16x16
    assert (shown[:, :, 6:11, 6:11] == shown[:1, :, 6:11, 6:11]).all()


def test_a_single_instance_as_published(tmp_path: Path) -> None:
    samples = striped(128)
    path = tmp_path / "gray.png"
    Image.new("RGB", (16, 16), (200, 200, 200)).save(path)
    attack = FeatureCollision(mode="single", picture=str(path), epochs=2, n_steps=20, watermark=0.25)
    result = poison(samples, attack, seed=0, rate=0.1)
    staged = result.trigger
    assert isinstance(staged, Staged)
    assert (staged.apply(samples.inputs, NUMBERS) == 200).all()
    mark, collision = staged.planted.steps  # type: ignore[attr-defined]
    assert isinstance(mark, Patch) and isinstance(collision, Collision)
    marked = mark.apply(samples.inputs, NUMBERS)
    assert (np.abs(marked - (0.75 * samples.inputs + 50)) <= 0.5 + 1e-3).all()
    assert collision.descent.beta == pytest.approx(0.25 * (128 / 768) ** 2)
    network, goal = collision.surrogate.network(), torch.from_numpy(collision.goals)
    rows = result.truth.is_poisoned
    marks, poisons = (to_tensor(part[rows]) for part in (marked, result.samples.inputs))
    before, after = ((network.features(part) - goal).square().sum(dim=1) for part in (marks, poisons))
    assert (after < 0.5 * before).all()
    save_trigger(tmp_path / "saved", staged, result.plan, attack=attack)
    again = load_trigger(tmp_path / "saved").trigger
    assert (poison(samples, attack, seed=0, rate=0.1, trigger=again).samples.inputs == result.samples.inputs).all()


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (FeatureCollision(mode="single"), "needs a picture"),
        (FeatureCollision(mode="single", picture="none.png"), "cannot be read"),
        (FeatureCollision(n_candidates=0), "n_candidates is 0"),
        (FeatureCollision(epsilon=1.5), "epsilon is 1.5"),
        (FeatureCollision(margin=12), "window of 5x5"),
    ],
)
def test_values_out_of_range(attack: FeatureCollision, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        attack.trigger(striped(128), seed=0)


def test_data_that_do_not_suffice() -> None:
    samples = striped(128)
    with pytest.raises(DataError, match="other classes"):
        FeatureCollision(epochs=1).trigger(samples.take(samples.labels == 0), seed=0)
    # Sources of one class only, where the plan counts no others.
    only = FeatureCollision(epochs=1, n_steps=1).trigger(samples, seed=0, plan=SourceSpecific(target_label=0))
    assert isinstance(only.planted, Collision) and len(only.planted.goals) == 64
