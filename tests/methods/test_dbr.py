"""D-BR: feature shaping and transformations with numbers, the order of its batches, a backdoor removed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from noisy import RECIPE, Quick, builder, check_resume, noisy, outcome, poisoned
from sklearn.metrics import roc_auc_score

from antibackdoor.defenses import DBR, Undefended
from antibackdoor.defenses.dbr import center_similarity, distinguished, in_turn, shape_features, transformed
from antibackdoor.errors import ConfigError, ModelError
from antibackdoor.training.session import Batch, Feed, Session


def test_similarity_of_centers_by_hand() -> None:
    features = torch.tensor([[2.0, 0.0], [0.0, 0.0], [3.0, 3.0], [0.0, 1.0]])
    labels = torch.tensor([0, 0, 2, 1])  # centers (1, 0), (0, 1), (3, 3); label 3 has none
    root = 0.5**0.5
    assert center_similarity(features, labels, 4).item() == pytest.approx((0 + root + root) / 3)
    assert center_similarity(features, torch.zeros(4, dtype=torch.int64), 4).item() == 0.0


def test_shaping_parts_the_labels() -> None:
    samples = noisy("series", 32, 4)
    torch.manual_seed(0)
    model = Quick(samples.shape, 4)
    batch = Batch(torch.from_numpy(samples.inputs), torch.from_numpy(samples.labels), torch.arange(32))
    objective = shape_features(model, "second", 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    met = []
    for _ in range(15):
        weighted, recorded = objective(batch)
        assert weighted.shape == recorded.shape == (32,) and (weighted == weighted[0]).all()
        met.append(weighted[0].item())
        optimizer.zero_grad()
        weighted.mean().backward()
        optimizer.step()
    assert met[-1] < met[0] - 0.05


def test_the_seed_decides_between_equal_changes_not_the_row() -> None:
    poisoned, clean = distinguished(np.zeros(100), 0.1, 0.2, seed=0)
    assert poisoned.sum() == 10 and clean.sum() == 20 and not (poisoned & clean).any()
    assert np.flatnonzero(poisoned).max() >= 50 and np.flatnonzero(clean).max() >= 50
    assert not np.array_equal(poisoned, distinguished(np.zeros(100), 0.1, 0.2, seed=1)[0])
    rising = distinguished(np.arange(100.0), 0.1, 0.2, seed=0)
    assert [np.flatnonzero(part).tolist() for part in rising] == [list(range(90, 100)), list(range(20))]


def test_changes_are_measured_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounded to bfloat16, small changes are equal to each other."""
    met: list[bool] = []

    def score_rows(session: Session, feed: Feed, *_others: Any, **_named: Any) -> np.ndarray:
        met.append(session.bf16)
        return np.arange(len(feed.labels), dtype=np.float32)

    monkeypatch.setattr("antibackdoor.defenses.dbr.score_rows", score_rows)
    monkeypatch.setattr("antibackdoor.training.session.has_fast_bf16", lambda _device: True)
    samples = noisy("series", 32, 4)
    method = DBR(short_epochs=1, shaping_epochs=0, removal_epochs=1)
    method.train(samples, builder(samples), replace(RECIPE, precision="auto"))
    assert met == [False]


def test_images_turn_and_move() -> None:
    images = torch.zeros(200, 1, 15, 21)
    images[:, :, 7, 10] = 1.0  # the middle stays where it is, but for the shift
    moved = transformed(images, 0.2, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape and moved.min() >= 0 and moved.max() <= 1
    mass = moved.sum((1, 2, 3))
    assert mass.mean().item() == pytest.approx(1, abs=0.1)
    row = (moved.sum((1, 3)) * torch.arange(15)).sum(1) / mass
    column = (moved.sum((1, 2)) * torch.arange(21)).sum(1) / mass
    # Rotation comes first, so that shifts go along the sides of the turned image: a box of any direction.
    distance = ((row - 7) ** 2 + (column - 10) ** 2).sqrt()
    assert 2 < distance.max() < (3**2 + 4.2**2) ** 0.5 * 1.5
    still = transformed(images, 0.0, torch.Generator().manual_seed(0))
    assert (still[:, 0, 7, 10] > 0.99).all()


def test_a_turn_keeps_lengths() -> None:
    """A bar of 9 pixels stays as long, also where images are not square."""
    images = torch.zeros(100, 1, 21, 31)
    images[:, :, 10, 11:20] = 1.0
    moved = transformed(images, 0.0, torch.Generator().manual_seed(1))[:, 0]
    ys, xs = torch.meshgrid(torch.arange(21.0) - 10, torch.arange(31.0) - 15, indexing="ij")
    mass = moved.sum((1, 2))
    spread = ((moved * (ys**2 + xs**2)).sum((1, 2)) / mass).sqrt()
    assert spread.tolist() == pytest.approx([spread.mean().item()] * 100, rel=0.05)
    upright = ((moved * ys**2).sum((1, 2)) / (moved * (ys**2 + xs**2)).sum((1, 2))).tolist()
    assert min(upright) < 0.1 and max(upright) > 0.9  # all directions


def test_series_move_in_time() -> None:
    series = torch.arange(100.0).view(1, 1, 100).repeat(300, 2, 1)
    moved = transformed(series, 0.2, torch.Generator().manual_seed(0))
    assert moved.shape == series.shape and not torch.equal(moved, series)
    middle = moved[:, :, 40:60].mean((1, 2)) - 49.5
    assert 15 < middle.abs().max() < 40  # up to 20 steps, times a factor about 1
    assert (moved[0] != moved[1]).any()


def test_batches_in_turn() -> None:
    poison, clean = [np.array([k]) for k in (1, 2)], [np.array([k]) for k in range(10, 16)]
    assert [int(batch[0]) for batch in in_turn([poison, clean])] == [10, 1, 11, 12, 13, 2, 14, 15]
    assert in_turn([[], clean]) == clean


@pytest.mark.parametrize("kind", ["image", "series"])
def test_resume(kind: str) -> None:
    method = DBR(short_epochs=1, shaping_epochs=2, removal_epochs=2)
    result = check_resume(method, noisy(kind, 60, 3))
    assert result.verdict.isolated.sum() == 3 == result.facts.n_unlearned and result.facts.n_clean == 12
    assert result.facts.clean_threshold < result.facts.poisoned_threshold
    assert result.verdict.suspicion[result.verdict.isolated].min() == pytest.approx(result.facts.poisoned_threshold)


def test_few_samples_and_two_classes() -> None:
    few = noisy("series", 9, 2)
    result = DBR(short_epochs=1, shaping_epochs=1, removal_epochs=1).train(few, builder(few), RECIPE)
    assert result.facts.n_unlearned == 2 and result.facts.n_clean == 2


def test_a_backdoor_is_removed() -> None:
    data = poisoned("series", 600, 4)
    recipe = replace(RECIPE, epochs=6, learning_rate=0.05)
    plain = outcome(Undefended().train(data.samples, builder(data.samples), recipe), data)
    # So few batches need larger steps.
    result = DBR(removal_learning_rate=1e-3).train(data.samples, builder(data.samples), recipe)
    cleaned = outcome(result, data)
    assert plain.attack_success > 0.9 and plain.accuracy > 0.6
    assert roc_auc_score(data.truth.is_poisoned, result.verdict.suspicion) > 0.75
    assert cleaned.false_alarms < 0.03
    assert cleaned.attack_success < 0.5 * plain.attack_success and cleaned.accuracy > plain.accuracy - 0.1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"shift": 1.5}, "shift is 1.5"),
        ({"poisoned_rate": 0.9}, "at most 1"),
        ({"removal_epochs": 0}, "removal_epochs is 0"),
    ],
)
def test_refusals(wrong: dict[str, float], said: str) -> None:
    samples = noisy("series", 40, 3)
    with pytest.raises(ConfigError, match=said):
        DBR(**wrong).train(samples, builder(samples), RECIPE)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="nowhere"):
        DBR(layer="nowhere").train(samples, builder(samples), RECIPE)
