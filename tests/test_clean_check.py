"""What clean data say about a stranger's network: its normalization, its order of classes, whether it works."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from antibackdoor.data.samples import Samples
from antibackdoor.errors import DataError, ModelError
from antibackdoor.models.clean_check import (
    best_normalization,
    has_learned_nothing,
    is_near_chance,
    match_classes,
    predictions,
    reorder_classes,
)
from antibackdoor.models.normalization import normalized


class MeanColor(nn.Module):
    """Logits of three classes from the mean of each channel after an offset that only one normalization meets."""

    def __init__(self, order=(0, 1, 2)):
        super().__init__()
        self.fc = nn.Linear(3, 3)
        with torch.no_grad():
            self.fc.weight.copy_(torch.eye(3)[list(order)])
            self.fc.bias.zero_()

    def forward(self, x):
        return self.fc(x.mean((2, 3)))


def colors(n=90, *, noise=0.0, seed=0):
    """The class is the channel that is a little brighter."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n, dtype=np.int64) % 3
    inputs = np.full((n, 3, 4, 4), 100) + rng.integers(0, 8, (n, 3, 4, 4))
    inputs[np.arange(n), labels] += 20
    wrong = rng.random(n) < noise
    labels[wrong] = rng.integers(0, 3, int(wrong.sum()))
    return Samples(inputs.astype(np.uint8), labels, np.arange(n).astype(str), np.array(["red", "green", "blue"]))


def test_best_normalization_is_the_one_that_the_network_was_trained_with():
    class Picky(nn.Module):
        """Undoes one normalization; where that gives no whole pixel values, it names one class for all."""

        def __init__(self, mean, std, order):
            super().__init__()
            self.inner = MeanColor(order)
            self.mean, self.std = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)

        def forward(self, x):
            pixels = x * self.std + self.mean
            off = ((pixels * 255 - (pixels * 255).round()).abs() + (pixels < -0.1)).amax((1, 2, 3)) > 1e-2
            return self.inner(pixels) * (~off)[:, None]

    samples = colors()
    for name, (mean, std) in {
        "none": ((0.0,) * 3, (1.0,) * 3),
        "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "half": ((0.5,) * 3, (0.5,) * 3),
    }.items():
        network = Picky(mean, std, (1, 2, 0))  # another order of classes must not hide it
        fit = best_normalization(normalized(network, [0.1] * 3, [3.0] * 3), samples)
        assert fit.name == name and fit.accuracy == 1.0
        assert len(fit.accuracies) == 5 and sum(value == 1.0 for value in fit.accuracies.values()) == 1
        assert predictions(normalized(network, fit.mean, fit.std), samples).shape == (90,)
    with pytest.raises(ModelError, match="3 channels"):
        best_normalization(network, samples, {"gray": ((0.5, 0.5), (0.5, 0.5))})


def test_classes_are_matched_and_put_in_order():
    samples, example = colors(), torch.rand(2, 3, 4, 4)
    for order in ((0, 1, 2), (2, 0, 1), (1, 0, 2)):
        network = MeanColor(order)  # output j is class order[j]
        before = network(example)
        found = match_classes(network, samples)
        assert found.tolist() == np.argsort(order).tolist()
        reorder_classes(network, found, example)
        torch.testing.assert_close(network(example), before[:, found.tolist()])
        assert (predictions(network, samples) == samples.labels).all()


def test_the_order_of_the_data_is_kept_unless_another_is_clearly_better():
    assert match_classes(MeanColor(), colors(30, noise=0.5, seed=3)).tolist() == [0, 1, 2]


def test_near_chance_and_ambiguous_orders_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ModelError, match="near chance"):
        match_classes(MeanColor(), colors(90).relabel(rng.integers(0, 3, 90)))
    with pytest.raises(ModelError, match="green and blue"):
        few = colors(90)
        match_classes(MeanColor((1, 0, 2)), few.take(np.arange(12)))  # 4 of each: 8 of 8 right has p = 0.004
    with pytest.raises(DataError, match="no clean samples"):
        match_classes(MeanColor(), colors().take(np.array([], dtype=np.int64)))
    with pytest.raises(ModelError, match="other data"):
        match_classes(nn.Sequential(MeanColor(), nn.Linear(3, 5)), colors())


def test_chance():
    assert is_near_chance(0.1, 1000, 10) and not is_near_chance(0.2, 1000, 10)
    assert is_near_chance(0.9, 1000, 10, largest_class=0.9)  # always naming the largest class gets as far
    assert is_near_chance(1.0, 0, 10) and is_near_chance(1.0, 2, 10)  # two samples: p = 0.01
    assert has_learned_nothing(0.1, 100, 10) and not has_learned_nothing(0.3, 100, 10)
    assert not has_learned_nothing(0.5, 10, 2) and not has_learned_nothing(0.0, 0, 2)  # too few to tell
    assert has_learned_nothing(0.5, 100, 2) and not has_learned_nothing(0.9, 100, 2, largest_class=0.9)


def test_logits_behind_the_last_layer_cannot_be_reordered():
    with pytest.raises(ModelError, match="another order"):
        reorder_classes(nn.Sequential(MeanColor(), nn.Softmax(1)), np.array([1, 0, 2]), torch.rand(2, 3, 4, 4))
