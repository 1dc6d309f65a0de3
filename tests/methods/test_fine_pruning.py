"""Fine-pruning: which channels go, when it stops, and that the delivered weights are the masked network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import pictures, waves
from torch import Tensor, nn

from antibackdoor.data.samples import Samples
from antibackdoor.errors import ConfigError, ModelError
from antibackdoor.models.backbones import BACKBONES, build_backbone
from antibackdoor.protocols import Given
from antibackdoor.purifiers import FinePruning, FineTuning
from antibackdoor.purifiers.channels import masked, n_channels, prunable_layer, switch_off
from antibackdoor.training.recipe import Recipe

RECIPE = Recipe(device="cpu", precision="fp32", seed=1, progress=False)
STILL: dict[str, Any] = {"epochs": 0}


def drawn(network: nn.Module) -> nn.Module:
    """The network with all it has drawn at random, batch statistics too: nothing is 0 or 1 by accident."""
    generator = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) + (0.5 if name.endswith("var") else -0.5))
    return network.eval()


class Rows(nn.Module):
    """Four channels that are bands of an 8 x 8 image, and a last layer that reads them, flattened or pooled."""

    def __init__(self, flat: bool = False) -> None:
        super().__init__()
        self.bands = nn.Conv2d(1, 4, 1)
        with torch.no_grad():
            self.bands.weight.copy_(torch.tensor([1.0, 2.0, 0.5, -1.0])[:, None, None, None])
            self.bands.bias.zero_()
        self.block = nn.Sequential(self.bands, nn.ReLU())
        self.classifier = nn.Linear(4 * 64 if flat else 4, 2)
        self.flat = flat

    def forward(self, x: Tensor) -> Tensor:
        found = self.block(x)
        logits: Tensor = self.classifier(found.flatten(1) if self.flat else found.flatten(2).mean(2))
        return logits


class Shortcut(nn.Module):
    """The output of `block` also goes around the next convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU())
        self.further = nn.Conv2d(6, 6, 3, padding=1)
        self.classifier = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        found = self.block(x)
        logits: Tensor = self.classifier((found + self.further(found)).flatten(2).mean(2))
        return logits


def examples(kind: str, n: int = 6) -> Tensor:
    samples = pictures(n, size=16) if kind == "image" else waves(n, length=16)
    values = torch.from_numpy(samples.inputs).float()
    return values / 255 if kind == "image" else values


def agree(network: nn.Module, layer: str, example: Tensor) -> None:
    """Weights changed for good do what the mask does, also where channels are loud."""
    off = torch.arange(n_channels(network, layer, example)) % 3 == 1
    with torch.no_grad():
        loud = 3 * torch.randn(example.shape, generator=torch.Generator().manual_seed(2))
        wanted = [masked(network, layer, off)(x) for x in (example, loud)]
        before = network(loud)
        switch_off(network, layer, off, example)
        for x, logits in zip((example, loud), wanted, strict=True):
            torch.testing.assert_close(network(x), logits, rtol=1e-3, atol=1e-3 * float(logits.abs().max()))
        assert not torch.allclose(before, wanted[1])


@pytest.mark.parametrize("name", ["resnet18-thin", "wrn-16-1", "mobilenetv2", "fcn", "series-resnet"])
def test_channels_of_the_last_layer_can_be_switched_off(name: str) -> None:
    example = examples(BACKBONES[name].kind)
    network = drawn(build_backbone(name, tuple(example.shape[1:]), 3))
    layer = prunable_layer(network, example)
    assert layer == {"resnet18-thin": "stage4", "wrn-16-1": "relu", "mobilenetv2": "last"}.get(name, "stage3")
    agree(network, layer, example)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("wrn-10-1", "stage2"),  # read by a batch norm
        ("wrn-10-1", "stage3"),
        ("resnet18-thin", "stage2"),  # read by two convolutions
        ("resnet18-thin", "stage2.1.conv1"),
        ("resnet18-thin", "stage4.1.conv2.1"),  # a batch norm: its own weights
    ],
)
def test_named_layers(name: str, layer: str) -> None:
    example = examples("image")
    network = drawn(build_backbone(name, (1, 16, 16), 3))
    assert prunable_layer(network, example, layer) == layer
    agree(network, layer, example)


def test_readers_behind_flattening_and_in_groups() -> None:
    flat = drawn(Rows(flat=True))
    agree(flat, "block", torch.rand(2, 1, 8, 8))
    assert (flat.classifier.weight == 0).sum() % 128 == 0  # whole channels, 64 places for each of 2 logits
    for groups in (4, 8):
        grouped = nn.Conv2d(8, 8, 3, groups=groups)
        network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), grouped, nn.ReLU(), nn.Flatten(), nn.Linear(128, 2))
        agree(drawn(network), "1", torch.rand(3, 1, 8, 8))


def test_what_goes_around_cannot_be_switched_off() -> None:
    network, example = drawn(Shortcut()), torch.rand(4, 1, 8, 8)
    with pytest.raises(ModelError, match="channels of 'block' cannot be switched off"):
        prunable_layer(network, example, "block")
    with pytest.raises(ModelError, match="no layer 'nowhere'"):
        prunable_layer(network, example, "nowhere")
    layer = prunable_layer(network, example)
    assert layer == "further"  # the last convolution: its own weights
    agree(network, layer, example)


def test_a_refusal_leaves_the_network_alone() -> None:
    network = drawn(Shortcut())
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(ModelError):
        prunable_layer(network, torch.rand(4, 1, 8, 8), "block")
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def constant_images(values: list[int]) -> Samples:
    images = np.repeat(np.array(values, dtype=np.uint8), 64).reshape(-1, 1, 8, 8)
    labels = (np.arange(len(values)) % 2).astype(np.int64)
    return Samples(images, labels, np.arange(len(values)).astype(str), np.array(["a", "b"]))


def zero_rows(model: nn.Module) -> list[int]:
    weight: Tensor = model.classifier.weight  # type: ignore[assignment, union-attr]
    return (weight == 0).all(0).nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("rate", "pruned"), [(0.0, []), (0.25, [3]), (0.5, [2, 3]), (0.75, [0, 2, 3]), (0.99, [0, 2, 3])]
)
def test_the_least_active_channels_go_first(rate: float, pruned: list[int]) -> None:
    """Channels are 1, 2, 1/2 and -1 times the image, of which a rectifier leaves nothing of the last."""
    result = FinePruning(layer="block", rate=rate, **STILL).purify(
        Rows(), Given(clean=constant_images([80] * 8)), RECIPE
    )
    assert zero_rows(result.model) == pruned
    assert result.facts.n_pruned == len(pruned) and result.facts.n_channels == 4


def test_pruning_nothing_changes_nothing() -> None:
    model = Rows().eval()
    result = FinePruning(layer="block", rate=0.0, **STILL).purify(model, Given(clean=constant_images([80] * 8)), RECIPE)
    for key, value in model.state_dict().items():
        assert torch.equal(result.model.state_dict()[key], value)


def reader(weights: list[float], bias: list[float]) -> nn.Module:
    """Logit 1 is the weighted sum of the pooled channels, logit 0 the bias: dark images are 0, bright ones 1."""
    model = Rows()
    with torch.no_grad():
        model.classifier.weight.copy_(torch.tensor([[0.0] * 4, weights]))
        model.classifier.bias.copy_(torch.tensor(bias))
    return model


def stopped(**rule: float) -> tuple[int, float]:
    """Channels 3 and 2 do nothing for the classes; without channel 0 dark and bright are still told apart, half of
    the brighter ones are lost."""
    clean = constant_images([20, 200] * 10 + [20, 90] * 10)
    method = FinePruning(layer="block", **rule, **STILL)
    result = method.purify(reader([3.0, 1.0, 0.0, 0.0], [1.0, 0.0]), Given(clean=clean), RECIPE)
    return result.facts.n_pruned, result.facts.accuracy_pruned


def test_the_rules_stop_where_they_say() -> None:
    # Bright images: 200/255 and 90/255 give 3.9 and 1.8 with channels 0 and 1, 1.6 and .7 with channel 1 alone.
    assert stopped(tolerance=0.04) == (2, 1.0)
    n_pruned, reached = stopped(tolerance=0.5)
    assert n_pruned == 3 and 0.6 < reached < 0.9
    assert stopped(accuracy=0.95) == (2, 1.0)
    assert stopped(accuracy=0.5)[0] == 3
    assert stopped(floor=0.95) == (3, reached)  # the step that falls below is kept
    assert stopped(accuracy=1.0, step=0.5) == (2, 1.0)


def test_masks_survive_fine_tuning() -> None:
    settings: dict[str, Any] = {"layer": "block", "rate": 0.5, "augment": "none", "learning_rate": 0.1}
    model = Rows()
    result = FinePruning(epochs=4, **settings).purify(model, Given(clean=pictures(40)), RECIPE)
    assert len(zero_rows(result.model)) == 2
    assert not torch.equal(result.model.bands.weight, model.bands.weight)  # type: ignore[union-attr, arg-type]


def test_one_rule_at_a_time() -> None:
    with pytest.raises(ConfigError, match="accuracy and rate are both rules to stop pruning: give one of them"):
        FinePruning(accuracy=0.5, rate=0.5).purify(Rows(), Given(clean=pictures()), RECIPE)


def test_it_keeps_what_is_learned() -> None:
    clean = pictures(64, size=8)
    torch.manual_seed(0)
    network = build_backbone("wrn-10-1", (1, 8, 8), 2)
    learned = FineTuning(epochs=8, batch_size=16, augment="none").purify(network, Given(clean=clean), RECIPE).model
    result = FinePruning(augment="none", epochs=1).purify(learned, Given(clean=clean), RECIPE)
    assert result.facts.accuracy_pruned >= result.facts.accuracy_before - 0.04
    with torch.no_grad():
        predicted = result.model(torch.from_numpy(clean.inputs).float() / 255).argmax(1).numpy()
    assert (predicted == clean.labels).mean() > 0.9
