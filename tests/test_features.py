"""Outputs of layers: one pass for several, with gradients where they are wanted, on any network."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from conftest import pictures, waves
from torch import Tensor, nn

from antibackdoor.data.samples import Samples
from antibackdoor.errors import ModelError
from antibackdoor.models.backbones import BACKBONES, build_backbone
from antibackdoor.models.features import features, last_layer, maps, middle_layer, outputs_and_maps, stages
from antibackdoor.models.normalization import normalized
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.session import Session


class Own(nn.Module):
    """A network of a user's: parts under names of its own, functional activations, no batch norm."""

    def __init__(self, shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__()
        conv = nn.Conv2d if len(shape) == 3 else nn.Conv1d
        self.body = nn.Sequential(conv(shape[0], 6, 3, padding=1), nn.ReLU(), conv(6, 8, 3, padding=1, stride=2))
        self.tail = nn.Linear(8, 5)
        self.spare = nn.Linear(5, 5)
        self.classifier = nn.Linear(5, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.tail(self.body(x).relu().flatten(2).mean(2)).relu())
        return logits


def ours(samples: Samples) -> nn.Module:
    name = "wrn-10-1" if samples.kind == "image" else "fcn"
    torch.manual_seed(0)
    channels = samples.shape[0]
    return normalized(build_backbone(name, samples.shape, samples.n_classes), [0.3] * channels, [0.2] * channels)


def own(samples: Samples) -> nn.Module:
    torch.manual_seed(0)
    return Own(samples.shape, samples.n_classes)


def data(kind: str, n: int = 300) -> Samples:
    """More than two batches of an evaluation, and not a whole number of these."""
    return pictures(n, 3) if kind == "image" else waves(n, 3)


def inputs(samples: Samples) -> Tensor:
    return torch.from_numpy(samples.inputs / np.float32(255) if samples.kind == "image" else samples.inputs)


CASES = [(make, kind) for make in (ours, own) for kind in ("image", "series")]
LAYERS = {ours: ["network.stage3", "network.stage1"], own: ["tail", "body"]}


def looked(samples: Samples, model: nn.Module, layers: list[str], *given: Any, **settings: Any) -> dict[str, Any]:
    session = Session(Recipe(device="cpu", precision="fp32"), len(samples), images=samples.kind == "image")
    return features(session, session.feed(samples), session.prepare(model), layers, *given, **settings)


@pytest.mark.parametrize(("make", "kind"), CASES)
def test_features_are_the_means_of_the_maps(make: Any, kind: str) -> None:
    samples = data(kind)
    model, layers = make(samples).train(), LAYERS[make]
    found = looked(samples, model, layers)
    assert list(found) == layers, "in the order in which they were asked for"
    assert not model.training
    with torch.no_grad():
        there = maps(model, inputs(samples), layers)
    for layer in layers:
        means = there[layer].flatten(2).mean(2) if there[layer].ndim > 2 else there[layer]
        assert found[layer].shape == (300, means.shape[1]) and found[layer].dtype == np.float32
        np.testing.assert_allclose(found[layer], means, rtol=1e-3, atol=1e-5)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("make", [ours, own])
def test_features_of_some_rows_in_their_order(make: Any) -> None:
    samples = data("image")
    model, layers = make(samples), LAYERS[make]
    every, rows = looked(samples, model, layers), np.array([250, 3, 3, 140])
    some = looked(samples, model, layers, rows)
    for layer in layers:
        np.testing.assert_allclose(some[layer], every[layer][rows], rtol=1e-4, atol=1e-6)


def test_a_layer_named_twice_comes_once() -> None:
    samples = data("image", 20)
    assert list(looked(samples, own(samples), ["body", "tail", "body"])) == ["body", "tail"]


def test_features_may_be_pooled_in_another_way() -> None:
    samples = data("image", 40)
    model = own(samples)
    largest = looked(samples, model, ["body"], pool=lambda output: output.flatten(2).amax(2))["body"]
    with torch.no_grad():
        expected = maps(model, inputs(samples), ["body"])["body"].flatten(2).amax(2)
    np.testing.assert_allclose(largest, expected, rtol=1e-4, atol=1e-6)
    all_places = looked(samples, model, ["body"], pool=lambda output: output.flatten(1))["body"]
    assert all_places.shape == (40, 8 * 4 * 4)


@pytest.mark.parametrize(("make", "kind"), CASES)
def test_gradients_flow_through_maps(make: Any, kind: str) -> None:
    samples = data(kind, 8)
    model, layers = make(samples).eval(), LAYERS[make]
    x = inputs(samples).requires_grad_()
    there = maps(model, x, layers)
    sum((output**2).mean() for output in there.values()).backward()  # type: ignore[union-attr]
    assert x.grad is not None and x.grad.abs().max() > 0
    reached = [name for name, part in model.named_parameters() if part.grad is not None and part.grad.abs().max() > 0]
    deep = {ours: "network.stage3", own: "tail"}[make]
    assert any(name.startswith(deep) for name in reached) and not any("classifier" in name for name in reached)
    with torch.no_grad():
        assert not any(output.requires_grad for output in maps(model, x, layers).values())


def test_nothing_after_the_last_layer_is_computed() -> None:
    samples = data("image", 4)
    model, called = own(samples), list[str]()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _module, _inputs, _output, name=name: called.append(name))
    maps(model, inputs(samples), ["body"])
    assert "body.2" in called and "tail" not in called and "" not in called


@pytest.mark.parametrize(("make", "kind"), CASES)
def test_outputs_come_with_the_maps_of_the_same_pass(make: Any, kind: str) -> None:
    samples = data(kind, 8)
    model, x = make(samples).eval(), inputs(samples)
    logits, there = outputs_and_maps(model, x, LAYERS[make])
    torch.testing.assert_close(logits, model(x))
    alone = maps(model, x, LAYERS[make])
    for layer, output in there.items():
        torch.testing.assert_close(output, alone[layer])
    (logits.sum() + there[LAYERS[make][0]].sum()).backward()
    assert next(model.parameters()).grad is not None
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("look", [maps, outputs_and_maps])
def test_layers_that_are_not_there_or_not_used_are_refused(look: Any) -> None:
    samples = data("image", 4)
    model, x = own(samples), inputs(samples)
    with pytest.raises(ModelError, match="no layer 'tial'; near matches: tail"):
        look(model, x, ["tial"])
    with pytest.raises(ModelError, match="never calls its layer 'spare'"):
        look(model, x, ["body", "spare"])
    assert not any(module._forward_hooks for module in model.modules()), "an error leaves no hook either"


# --------------------------------------------------------------------------- which layers there are


# One of each family: every layer is tried, which takes seconds where there are many.
@pytest.mark.parametrize(
    "name", ["resnet18-thin", "wrn-10-1", "mobilenetv2", "series-resnet", "series-resnet18", "fcn"]
)
def test_stages_of_a_backbone_are_its_groups(name: str) -> None:
    shape = (3, 8, 8) if BACKBONES[name].kind == "image" else (3, 8)
    network = build_backbone(name, shape, 4)
    example = torch.zeros(2, *shape)
    found = stages(network, example)
    expected = [part for part, _ in network.named_children() if part.startswith("stage")]
    # Two stages of one shape are one: the second and third of this network both have 128 channels.
    expected = [part for part in expected if (name, part) != ("series-resnet", "stage2")]
    assert list(found) == expected
    assert middle_layer(network, example) in found


def test_stages_within_a_part_have_its_name_before_theirs() -> None:
    wrapped = normalized(build_backbone("wrn-10-1", (3, 8, 8), 2), [0.0] * 3, [1.0] * 3)
    assert stages(wrapped, torch.zeros(2, 3, 8, 8)) == ("network.stage1", "network.stage2", "network.stage3")


@pytest.mark.parametrize("kind", ["image", "series"])
def test_layers_of_a_users_own_network(kind: str) -> None:
    samples = data(kind, 4)
    model, example = own(samples), torch.zeros(2, *samples.shape)
    before = copy.deepcopy(model.state_dict())
    assert stages(model, example) == ("body.0", "body.2"), "all convolutions are in one part, which is taken apart"
    assert middle_layer(model, example) == "body.1"
    assert last_layer(model, example) == "body", "the last one that has places to average over"
    assert model.training and all(value.equal(before[key]) for key, value in model.state_dict().items())


def test_a_network_without_convolutions_has_a_middle_but_no_stages() -> None:
    layers = (nn.Linear(40, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    model, example = nn.Sequential(nn.Flatten(), *layers), torch.zeros(2, 4, 10)
    assert middle_layer(model, example) == "2"
    with pytest.raises(ModelError, match="no stages"):
        stages(model, example)
