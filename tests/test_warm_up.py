"""The warm-up lasts as long as the data ask for."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import waves
from watched_runs import find_nothing

from antibackdoor.data.samples import IntArray
from antibackdoor.detectors import ConfusionTraining
from antibackdoor.models.backbones import build_backbone
from antibackdoor.search import warm_up
from antibackdoor.search.warm_up import learned_enough, snapshot_steps
from antibackdoor.training.history import Losses, LossHistory
from antibackdoor.training.recipe import Recipe


@pytest.mark.parametrize(("mislabelled", "steps"), [(0.0, 450), (0.7, 600)])
@pytest.mark.parametrize("epochs", [1, 50])
def test_the_warm_up_is_as_long_as_the_data_ask_for(
    monkeypatch: pytest.MonkeyPatch, mislabelled: float, steps: int, epochs: int
) -> None:
    """And not as the training: a rare trigger takes as many steps in a short one."""
    monkeypatch.setattr("antibackdoor.detectors.confusion.spring", find_nothing)
    samples = waves(3000, 3)
    drawn = np.random.default_rng(0)
    labels = np.where(drawn.random(3000) < mislabelled, drawn.integers(0, 3, 3000), samples.labels)
    samples = replace(samples, labels=labels)
    build = lambda: build_backbone("fcn", samples.shape, 3)  # noqa: E731
    _, history = ConfusionTraining(power=False, warmup_steps=501).search(samples, build, Recipe(epochs=epochs, seed=0))
    assert history.steps[-1] == steps


@pytest.mark.parametrize(
    ("means", "enough"),
    [
        ([1.0, 0.4], False),
        ([1.0, 0.4, 0.3], False),
        ([1.0, 0.4, 0.3, 0.2], True),
        ([1.0, 0.9, 0.8, 0.7, 0.6, 0.51, 0.5, 0.4], False),
        ([1.0, 0.9, 0.8, 0.7, 0.6, 0.51, 0.5, 0.4, 0.3], True),
        ([1.0, 0.4, 0.6, 0.7], True),
        ([1.0, 0.9, 0.8, 0.7, 0.6, 0.6, 0.6, 0.6], False),
    ],
)
def test_a_warm_up_goes_on_for_two_snapshots_after_half_has_been_learned(means: list[float], enough: bool) -> None:
    each = np.array([0.5, 1.5], dtype=np.float32)
    losses = np.array(means, dtype=np.float32)[:, None] * each * 2
    history = LossHistory(losses, np.arange(len(means)) * 150)
    assert learned_enough(history, chance=2.0) == enough


@pytest.mark.parametrize("learnable", [True, False])
def test_hard_samples_come_oftener_only_once_something_is_learned(
    monkeypatch: pytest.MonkeyPatch, learnable: bool
) -> None:
    """Before, they are those that the last steps spoke against, and a network that is shown these learns nothing."""
    monkeypatch.setattr("antibackdoor.detectors.confusion.spring", find_nothing)
    shares: list[float] = []
    plan = warm_up._plan

    def watched(losses: Losses, step: int, size: int, hard_share: float, seed: int) -> list[IntArray]:
        shares.append(hard_share)
        return plan(losses, step, size, hard_share, seed)

    monkeypatch.setattr(warm_up, "_plan", watched)
    samples = waves(3000, 3)
    if not learnable:
        noise = np.random.default_rng(0).normal(size=samples.inputs.shape[2:]).astype(np.float32)
        samples = replace(samples, inputs=np.broadcast_to(noise, samples.inputs.shape).copy())
    build = lambda: build_backbone("fcn", samples.shape, 3)  # noqa: E731
    ConfusionTraining(power=False, warmup_steps=300, hard_share=0.3).search(samples, build, Recipe(seed=0))
    assert shares[0] == 1.0, "nothing has been seen yet"
    assert set(shares[1:]) == ({0.3} if learnable else {1.0})


@pytest.mark.parametrize(("most", "snapshot"), [(1, 150), (1800, 150), (1801, 200), (15_625, 1350)])
def test_long_warm_ups_keep_a_few_snapshots_all_the_same(most: int, snapshot: int) -> None:
    """They are as large as the labels, and stay in memory and in every checkpoint."""
    assert snapshot_steps(most) == snapshot
