"""Mode connectivity repair: the curve by hand, its gradients, and batch statistics that are measured again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import pictures, waves
from torch import nn
from torch.func import functional_call

from antibackdoor.data.streams import Stream, stream
from antibackdoor.errors import ConfigError
from antibackdoor.models.backbones import build_backbone
from antibackdoor.protocols import Given
from antibackdoor.purifiers import ModeConnectivity
from antibackdoor.purifiers.mode_connectivity import (
    along,
    curve_point,
    falling,
    measure_statistics,
    weights_of,
    with_weights,
)
from antibackdoor.training.loop import cross_entropy
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.session import Batch, Session

RECIPE = Recipe(device="cpu", precision="fp32", seed=1, progress=False)
SHORT: dict[str, Any] = {"epochs": 2, "augment": "none"}


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_backbone("wrn-10-1", (1, 8, 8), 2).eval()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_the_curve_begins_and_ends_where_it_should() -> None:
    first, bend, last = (weights_of(model(seed)) for seed in range(3))
    assert same(curve_point(first, bend, last, 0.0), first)
    assert same(curve_point(first, bend, last, 1.0), last)
    at = curve_point(first, bend, last, 0.3)
    name = next(iter(first))
    torch.testing.assert_close(at[name], 0.49 * first[name] + 0.42 * bend[name] + 0.09 * last[name])
    at = curve_point(first, bend, first, 0.3)  # equal ends
    torch.testing.assert_close(at[name], 0.58 * first[name] + 0.42 * bend[name])


@pytest.mark.parametrize("s", [0.0, 0.25, 1.0])
def test_the_gradient_of_the_bend_has_the_factor_of_the_curve(s: float) -> None:
    first, bend, last = model(0), model(1), model(2)
    x, labels = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 0, 1])
    point = curve_point(weights_of(first), dict(bend.named_parameters()), weights_of(last), s)
    loss = cross_entropy(functional_call(bend, point, (x,)), labels).mean()
    gradients = torch.autograd.grad(loss, list(bend.parameters()))
    there = with_weights(model(1), {key: value.detach() for key, value in point.items()})
    direct = torch.autograd.grad(cross_entropy(there(x), labels).mean(), list(there.parameters()))
    for ours, theirs in zip(gradients, direct, strict=True):
        torch.testing.assert_close(ours, 2 * s * (1 - s) * theirs, rtol=1e-4, atol=1e-6)


def test_the_objective_draws_its_place_from_the_batch() -> None:
    bend, ends = model(1), weights_of(model(0))
    batch = Batch(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 0, 1]), torch.arange(4), seed=7)
    losses, _ = along(bend, ends, ends)(batch)
    s = float(stream(7, Stream.CURVE_POINT).random())
    there = with_weights(model(1), curve_point(ends, weights_of(bend), ends, s))
    torch.testing.assert_close(losses, cross_entropy(there(batch.inputs), batch.labels))
    assert not torch.equal(losses, along(bend, ends, ends)(batch._replace(seed=8))[0])


def test_the_learning_rate_falls_to_a_hundredth() -> None:
    rate = falling(0.1)
    assert [rate(done) for done in (0.0, 0.49, 0.7, 0.9, 0.99)] == pytest.approx([0.1, 0.1, 0.0505, 0.001, 0.001])


def test_statistics_are_the_means_over_the_batches_and_nothing_else_changes() -> None:
    drawn = pictures(64)
    samples = drawn.take(np.argsort(drawn.labels, kind="stable"))  # as in a folder of classes
    session = Session(Recipe(device="cpu", precision="fp32", batch_size=16, progress=False), 64, images=True)
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 2))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    measure_statistics(session, session.feed(samples), network)
    order = stream(0, Stream.STATISTICS).permutation(64)
    inputs = samples.inputs[order].astype(np.float64).reshape(4, -1) / 255
    after = network.state_dict()
    assert float(after["0.running_mean"]) == pytest.approx(inputs.mean(), rel=1e-5)
    assert float(after["0.running_var"]) == pytest.approx(inputs.var(axis=1, ddof=1).mean(), rel=1e-5)
    assert {key for key in after if not torch.equal(after[key], before[key])} == {
        "0.running_mean",
        "0.running_var",
        "0.num_batches_tracked",
    }
    assert network[0].momentum == 0.1 and not any(module.training for module in network.modules())


def test_at_the_ends_the_weights_are_the_given_ones() -> None:
    given, clean = model(), Given(clean=pictures(32))
    end = ModeConnectivity(t=0.0, **SHORT).purify(given, clean, RECIPE).model
    assert same(weights_of(end), weights_of(given))
    inside = ModeConnectivity(t=0.3, **SHORT).purify(given, clean, RECIPE).model
    assert not same(weights_of(inside), weights_of(given))


def test_the_second_end_is_fine_tuned() -> None:
    given, clean = model(), Given(clean=pictures(32))
    one = ModeConnectivity(t=1.0, **SHORT).purify(given, clean, RECIPE).model
    other = ModeConnectivity(t=1.0, endpoints="B-BF", **SHORT).purify(given, clean, RECIPE).model
    assert same(weights_of(one), weights_of(given)) and not same(weights_of(other), weights_of(given))
    begun = ModeConnectivity(t=0.0, endpoints="B-BF", **SHORT).purify(given, clean, RECIPE).model
    assert same(weights_of(begun), weights_of(given))


def test_it_learns_along_the_curve() -> None:
    clean = Given(clean=waves(64, length=32))
    torch.manual_seed(0)
    given = build_backbone("fcn", (1, 32), 2)
    method = ModeConnectivity(epochs=6, batch_size=16, learning_rate=0.1, t=0.5, augment="none")
    assert method.purify(given, clean, RECIPE).facts.accuracy_after > 0.9


def test_t_lies_on_the_curve() -> None:
    with pytest.raises(ConfigError, match=r"t is 1.5; give a number in \[0, 1\]"):
        ModeConnectivity(t=1.5).purify(model(), Given(clean=pictures()), RECIPE)
