"""Neural Cleanse: the anomaly index by hand, a trigger that is found again, and the repairs."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import pictures, waves
from torch import Tensor, nn

from antibackdoor.attacks import sample_numbers
from antibackdoor.errors import ConfigError
from antibackdoor.protocols import Given
from antibackdoor.purifiers import NeuralCleanseUnlearning, TriggerRetraining
from antibackdoor.purifiers.neural_cleanse import (
    RecoveredTrigger,
    Reversal,
    anomaly_index,
    recover_trigger,
    value_range,
)
from antibackdoor.purifiers.trigger_retraining import stamped, stamped_rows
from antibackdoor.purifiers.trigger_unlearning import unlearning
from antibackdoor.training.loop import cross_entropy
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.session import Batch, Session

RECIPE = Recipe(device="cpu", precision="fp32", seed=1, progress=False)


class Watched(nn.Module):
    """Knows its classes by the brightest band of an image, and believes label 0 where the last pixel is white."""

    def __init__(self, n_classes: int = 5) -> None:
        super().__init__()
        self.n_classes = n_classes
        self.weights = nn.Parameter(torch.tensor([8.0, 6.0]))

    def forward(self, x: Tensor) -> Tensor:
        bands = x.flatten(1).view(len(x), self.n_classes, -1).mean(2) * self.weights[0]
        white = F.softplus((x[:, 0, -1, -1] - 0.75) * 20) / 2 * self.weights[1]
        target = F.one_hot(torch.tensor(0), self.n_classes)
        return bands + target * white[:, None]


def banded(n: int, n_classes: int = 5, seed: int = 0) -> Any:
    """Dark images of 10 x 10 pixels, of which two rows for each class are brighter."""
    samples = pictures(n, n_classes, size=10, seed=seed)
    inputs = np.random.default_rng(seed).integers(0, 60, (n, 1, 10, 10)).astype(np.uint8)
    for label in range(n_classes):
        inputs[samples.labels == label, :, 2 * label : 2 * label + 2] += 120
    return dataclasses.replace(samples, inputs=inputs)


def test_the_anomaly_index_by_hand() -> None:
    # median 11, deviations 9 1 0 1 2: their median is 1
    assert anomaly_index(np.array([2.0, 10.0, 11.0, 12.0, 13.0])) == pytest.approx(
        [9 / 1.4826, 1 / 1.4826, 0, -1 / 1.4826, -2 / 1.4826]
    )
    assert anomaly_index(np.array([3.0, 5.0])) == pytest.approx([0.6745, -0.6745], abs=1e-4)  # two never stand out
    assert anomaly_index(np.array([1.0, 5.0, 5.0, 5.0])).tolist() == [np.inf, 0, 0, 0]
    assert anomaly_index(np.array([5.0, 5.0])).tolist() == [0, 0]


def test_a_trigger_is_stamped_by_hand() -> None:
    mask, pattern = np.array([[[1.0, 0.5]]], dtype=np.float32), np.array([[[1.0, 0.0]]], dtype=np.float32)
    trigger = RecoveredTrigger(mask, pattern)
    images = np.array([[[[100, 100]]]], dtype=np.uint8)
    assert trigger.apply(images, np.zeros(1, dtype=np.int64)).tolist() == [[[[255, 50]]]]
    assert trigger.stamped(torch.tensor([[[[0.4, 0.4]]]])).tolist() == [[[[1.0, pytest.approx(0.2)]]]]
    series = RecoveredTrigger(mask[0], 3 * pattern[0])
    stamped_series = series.apply(np.array([[[4.0, 4.0]]], dtype=np.float32), np.zeros(1, dtype=np.int64))
    assert stamped_series.tolist() == [[[3.0, 2.0]]] and stamped_series.dtype == np.float32
    with pytest.raises(ConfigError, match="the trigger is for samples of shape"):
        trigger.apply(np.zeros((1, 1, 2, 2), dtype=np.uint8), np.zeros(1, dtype=np.int64))


def test_patterns_stay_within_the_values_of_the_data() -> None:
    session = Session(RECIPE, 20, images=False)
    low, high = value_range(session.feed(waves(20, channels=2)))
    assert low.shape == high.shape == (2, 1)
    np.testing.assert_allclose(low[:, 0].numpy(), waves(20, channels=2).inputs.min((0, 2)))
    low, high = value_range(session.feed(pictures(4)))
    assert (low.unique().tolist(), high.unique().tolist()) == ([0.0], [1.0])


@cache
def found() -> Any:
    clean = banded(60)
    session = Session(RECIPE, len(clean), images=True)
    model = Watched().eval()
    return recover_trigger(session, session.feed(clean), model, Reversal(steps=150, batch_size=32))


def test_the_trigger_of_the_backdoor_is_the_smallest_and_stands_out() -> None:
    recovered = found()
    assert recovered.target_label == 0 and recovered.anomaly[0] > 2
    assert recovered.success[0] > 0.9
    mask = recovered.masks[0, 0]
    assert mask.argmax() == 99 and mask[9, 9] * recovered.patterns[0, 0, 9, 9] > 0.5  # the watched corner
    assert recovered.sizes[0] == pytest.approx(mask.sum(), rel=1e-5)
    assert recovered.masks.shape == (5, 1, 10, 10) and recovered.patterns.shape == (5, 1, 10, 10)


def test_the_search_leaves_the_model_alone_and_repeats_itself() -> None:
    clean = banded(30)
    session, model = Session(RECIPE, 30, images=True), Watched().train()
    ends = [recover_trigger(session, session.feed(clean), model, Reversal(steps=5, batch_size=8)) for _ in range(2)]
    assert ends[0].masks.tobytes() == ends[1].masks.tobytes()
    assert model.training and model.weights.requires_grad and model.weights.grad is None
    other = recover_trigger(session, session.feed(clean), model, Reversal(steps=5, batch_size=8, seed=1))
    assert other.masks.tobytes() != ends[0].masks.tobytes()


def test_where_no_label_stands_out_the_model_is_unchanged() -> None:
    clean, model = banded(30), Watched().eval()
    method = NeuralCleanseUnlearning(steps=3, anomaly=100.0)
    result = method.purify(model, Given(clean=clean), RECIPE)
    assert not result.facts.repaired and result.facts.accuracy_before == result.facts.accuracy_after
    assert torch.equal(result.model.weights, model.weights)  # type: ignore[arg-type]


@pytest.mark.parametrize("repair", ["unlearn", "retrain"])
def test_the_backdoor_is_forgotten(repair: Any) -> None:
    clean, model = banded(60), Watched().eval()
    method = NeuralCleanseUnlearning(repair=repair, steps=150, learning_rate=0.3, epochs=12, weight_decay=0.0)
    result = method.purify(model, Given(clean=clean), RECIPE)
    facts = result.facts
    assert facts.repaired and facts.target_label == 0 and facts.trigger_success > 0.9
    assert facts.trigger_success_after < 0.3 and facts.accuracy_after > 0.9


def test_the_ascent_by_hand() -> None:
    model = Watched()
    mask = np.zeros((1, 10, 10), dtype=np.float32)
    mask[0, 9, 9] = 1
    trigger = RecoveredTrigger(mask, mask)
    clean = banded(6)  # labels 0 1 2 3 4 0
    inputs = torch.from_numpy(clean.inputs).float() / 255
    batch = Batch(inputs, torch.from_numpy(clean.labels), torch.arange(6))
    rows = np.array([0, 1, 3])  # row 0 carries the target label: not stamped
    weighted, recorded = unlearning(model, trigger, 0, rows, 6, bound=1e9)(batch)
    losses = cross_entropy(model(inputs), batch.labels)
    with_trigger = cross_entropy(model(trigger.stamped(inputs[[1, 3]])), torch.tensor([0, 0]))
    wanted = losses.clone()
    wanted[[1, 3]] -= with_trigger * 3  # two of six: their mean has the weight of the mean over all
    torch.testing.assert_close(weighted, wanted)
    torch.testing.assert_close(recorded, losses)
    assert weighted.mean().item() == pytest.approx((losses.mean() - with_trigger.mean()).item(), rel=1e-5)
    bounded, _ = unlearning(model, trigger, 0, rows, 6, bound=0.0)(batch)
    torch.testing.assert_close(bounded, losses)


def test_stamped_samples_keep_their_labels() -> None:
    clean = banded(20)
    mask = np.ones((1, 10, 10), dtype=np.float32)
    trigger = RecoveredTrigger(mask, 0 * mask)
    before = clean.inputs.tobytes()
    taught = stamped(clean, trigger, 0.25, seed=0)
    changed = np.flatnonzero((taught.inputs == 0).all((1, 2, 3)))
    assert changed.tolist() == stamped_rows(20, 0.25, seed=0).tolist() and len(changed) == 5
    assert (taught.labels == clean.labels).all() and clean.inputs.tobytes() == before
    assert len(stamped_rows(20, 0.001, seed=0)) == 1 and len(stamped_rows(20, 1.0, seed=0)) == 20


def test_retraining_with_the_known_trigger() -> None:
    clean, model = banded(60), Watched().eval()
    mask = np.zeros((1, 10, 10), dtype=np.float32)
    mask[0, 9, 9] = 1
    trigger, inputs = RecoveredTrigger(mask, mask), torch.from_numpy(clean.inputs).float() / 255
    stamped_inputs = torch.from_numpy(trigger.apply(clean.inputs, sample_numbers(clean.ids))).float() / 255

    def accuracies(network: nn.Module) -> list[float]:
        with torch.no_grad():
            return [float((network(x).argmax(1).numpy() == clean.labels).mean()) for x in (inputs, stamped_inputs)]

    assert accuracies(model) == [1.0, 0.2]
    method = TriggerRetraining(share=0.5, preset="practical", learning_rate=0.3, augment="none", weight_decay=0.0)
    end = method.purify(model, Given(clean=clean, trigger=trigger), RECIPE).model
    clean_accuracy, with_trigger = accuracies(end)
    assert clean_accuracy == 1.0 and with_trigger >= 0.8
