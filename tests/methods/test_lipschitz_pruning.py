"""Channel Lipschitzness-based pruning: the bound by hand, what follows what, and what is pruned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import pictures
from torch import Tensor, nn

from antibackdoor.errors import ConfigError, ModelError
from antibackdoor.models.backbones import build_backbone
from antibackdoor.models.normalization import normalized
from antibackdoor.protocols import Given
from antibackdoor.purifiers import ChannelLipschitzPruning
from antibackdoor.purifiers.lipschitz_pruning import above, channel_bounds, convolutions_with_norms
from antibackdoor.training.recipe import Recipe


def names(network: nn.Module, shape: tuple[int, ...]) -> list[tuple[str, str]]:
    """The pairs by the names of their layers."""
    known = {id(module): name for name, module in network.named_modules()}
    return [(known[id(a)], known[id(b)]) for a, b in convolutions_with_norms(network, shape)[0]]


@pytest.mark.parametrize(("groups", "conv", "norm"), [(1, nn.Conv2d, nn.BatchNorm2d), (6, nn.Conv1d, nn.BatchNorm1d)])
def test_the_bound_by_its_definition(groups: int, conv: Any, norm: Any) -> None:
    torch.manual_seed(0)
    layer, after = conv(6, 12, 3, groups=groups), norm(12)
    after.running_var.uniform_(0.5, 2)
    nn.init.normal_(after.weight)
    bounds = channel_bounds(layer, after)
    for channel in range(12):
        kernel = layer.weight[channel].detach().flatten(1).double().numpy()
        expected = np.linalg.svd(kernel, compute_uv=False)[0] * abs(float(after.weight.detach()[channel]))
        expected /= np.sqrt(float(after.running_var[channel]) + after.eps)
        assert float(bounds[channel]) == pytest.approx(expected, rel=1e-5)
    if groups == 6:  # depthwise: the norm of the kernel
        assert np.linalg.svd(kernel, compute_uv=False)[0] == pytest.approx(np.linalg.norm(kernel))


def test_outliers_by_hand() -> None:
    # Mean 2, deviations -1 (nine times) and 9: variance (9 + 81) / 9 = 10, so the outlier lies 2.85 away.
    bounds = torch.tensor([1.0] * 9 + [11.0])
    assert above(bounds, 2.8).tolist() == [False] * 9 + [True]
    assert not above(bounds, 2.9).any() and not above(torch.tensor([5.0]), 0.0).any()


@pytest.mark.parametrize(
    ("backbone", "shape", "unpaired"),
    [
        ("resnet18-thin", (3, 32, 32), 0),
        ("mobilenetv2", (3, 32, 32), 0),
        ("series-resnet", (2, 64), 0),
        ("fcn", (1, 40), 0),
        # Of three blocks: the second convolutions, and the shortcuts of those that change the width.
        ("wrn-10-1", (3, 32, 32), 3 + 2),
    ],
)
def test_pairs_of_the_backbones(backbone: str, shape: tuple[int, ...], unpaired: int) -> None:
    pairs, n_convolutions = convolutions_with_norms(build_backbone(backbone, shape, 5), shape)
    assert n_convolutions - len(pairs) == unpaired
    assert all(convolution.out_channels == norm.num_features for convolution, norm in pairs)


def test_a_pre_activation_network_pairs_with_the_norm_behind() -> None:
    network = build_backbone("wrn-10-1", (3, 16, 16), 5)
    stages = [(f"stage{k}.0.conv1", f"stage{k}.0.norm2") for k in (1, 2, 3)]
    assert names(network, (3, 16, 16)) == [("stem", "stage1.0.norm1"), *stages]


class Mixed(nn.Module):
    """Layers in an order other than that of the data; a sum in place; a layer used twice; a norm without weights."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_b, self.norm_a, self.norm_sum, self.norm_twice = (nn.BatchNorm2d(4) for _ in range(4))
        self.plain = nn.BatchNorm2d(4, affine=False)
        self.a, self.b, self.c, self.d, self.twice = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(5))
        self.never = nn.Conv2d(4, 4, 1)
        self.classifier = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        first = self.norm_a(self.a(x)).relu()
        second = self.norm_b(self.b(first))
        summed = self.c(second)
        summed += first
        out = self.plain(self.d(self.norm_sum(summed)))
        out = self.norm_twice(self.twice(self.twice(out)))
        logits: Tensor = self.classifier(F.relu(out).mean((2, 3)))
        return logits


def test_tensors_decide_not_names() -> None:
    assert names(Mixed(), (4, 8, 8)) == [("a", "norm_a"), ("b", "norm_b")]
    facts = ChannelLipschitzPruning().purify(Mixed(), Given(input_shape=(4, 8, 8)), Recipe()).facts
    assert (facts.n_convolutions, facts.n_convolutions_skipped, facts.n_channels) == (5, 3, 8)


def test_a_planted_channel_is_silenced_and_nothing_else() -> None:
    torch.manual_seed(0)
    model = normalized(build_backbone("resnet18-thin", (3, 32, 32), 5), [0.5] * 3, [0.2] * 3).eval()
    conv, norm = model.network.stage2[1].conv1  # type: ignore[union-attr,index]
    with torch.no_grad():
        conv.weight[7] *= 20
    before = {name: value.clone() for name, value in model.state_dict().items()}
    purified = ChannelLipschitzPruning(u=4.5).purify(model, Given(input_shape=(3, 32, 32)), Recipe())
    assert purified.facts.n_channels_pruned == 1
    after = purified.model.state_dict()
    changed = [name for name, value in after.items() if not value.equal(before[name])]
    assert changed == ["network.stage2.1.conv1.1.weight"]  # its bias was zero
    assert after[changed[0]][7] == 0 and (after[changed[0]] != 0).sum() == norm.num_features - 1
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert not purified.model.training


def test_a_smaller_u_prunes_more() -> None:
    torch.manual_seed(0)
    model, given = build_backbone("resnet18-thin", (3, 32, 32), 5), Given(input_shape=(3, 32, 32))
    pruned = [ChannelLipschitzPruning(u).purify(model, given, Recipe()).facts.n_channels_pruned for u in (1, 2, 3, 9)]
    assert pruned == sorted(pruned, reverse=True) and pruned[0] > pruned[-1] == 0


def test_the_shape_comes_from_where_it_is_known() -> None:
    torch.manual_seed(0)
    model = build_backbone("wrn-10-1", (1, 8, 8), 2)
    known = Given(input_shape=(1, 8, 8)), Given(clean=pictures(8)), Given()
    facts = {ChannelLipschitzPruning().purify(model, given, Recipe()).facts for given in known}
    assert len(facts) == 1
    with pytest.raises(ModelError, match="fails on samples"):
        ChannelLipschitzPruning().purify(model, Given(input_shape=(2, 8, 8)), Recipe())
    fixed = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 25, 2))
    with pytest.raises(ConfigError, match="input_shape"):
        ChannelLipschitzPruning().purify(fixed, Given(), Recipe())
    ChannelLipschitzPruning().purify(fixed, Given(input_shape=(1, 7, 7)), Recipe())


def test_a_network_that_cannot_be_pruned_is_refused() -> None:
    bare = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    with pytest.raises(ModelError, match="followed by a batch norm"):
        ChannelLipschitzPruning().purify(bare, Given(input_shape=(1, 8, 8)), Recipe())
    with pytest.raises(ModelError, match="no convolution"):
        ChannelLipschitzPruning().purify(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), Given(), Recipe())
