"""Where a layer keeps its channels, and what that makes of the features of transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import waves
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from antibackdoor.data.samples import Samples
from antibackdoor.detectors import SpectralSignatures
from antibackdoor.errors import ModelError
from antibackdoor.models.features import features, last_layer, maps, mean_pooled, outputs_and_maps
from antibackdoor.models.tokens import channels_are_last
from antibackdoor.protocols import Given
from antibackdoor.purifiers.channels import n_channels
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.session import Session

RECIPE = Recipe(device="cpu", precision="fp32", progress=False)
WIDTH, LENGTH, PATCH = 16, 24, 4


class Transformer(nn.Module):
    """Patches, two blocks and a layer norm: the mean of its output over the width is 0."""

    def __init__(self, n_channels: int, n_classes: int) -> None:
        super().__init__()
        self.embed = nn.Conv1d(n_channels, WIDTH, PATCH, stride=PATCH)
        block = nn.TransformerEncoderLayer(WIDTH, 2, 24, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.norm, self.dropout = nn.LayerNorm(WIDTH), nn.Dropout()
        self.head = nn.Linear(WIDTH, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        tokens = self.encoder(self.embed(x).movedim(1, 2))
        logits: Tensor = self.head(self.dropout(self.norm(tokens)).mean(1))
        return logits


class Excited(nn.Module):
    """A convolution with squeeze and excitation, whose linear layer is as wide as the output is long."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.squeeze = nn.Conv1d(1, 8, 3, padding=1), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(B, 8, T)`."""
        found = self.conv(x)
        gate: Tensor = self.squeeze(found.mean(2)).sigmoid()
        return found * gate[:, :, None]


def model_of(samples: Samples) -> nn.Module:
    torch.manual_seed(0)
    return Transformer(samples.shape[0], samples.n_classes).eval()


def test_features_of_tokens_are_their_means_over_the_sequence() -> None:
    samples = waves(40, 3, length=LENGTH)
    model, x = model_of(samples), torch.from_numpy(samples.inputs)
    layer = last_layer(model, x[:2])
    assert layer == "dropout", "a layer without weights goes by those before it"
    with torch.no_grad():
        tokens = model.norm(model.encoder(model.embed(x).movedim(1, 2)))
        assert maps(model, x, ["embed", "encoder", layer])[layer].shape == (40, WIDTH, LENGTH // PATCH)
        assert outputs_and_maps(model, x, [layer])[1][layer].shape == (40, WIDTH, LENGTH // PATCH)
    session = Session(RECIPE, len(samples), images=False)
    found = features(session, session.feed(samples), model, [layer])[layer]
    np.testing.assert_allclose(found, tokens.mean(1), rtol=1e-4, atol=1e-5)
    assert tokens.mean(2).abs().max() < 1e-6 < np.abs(found).mean(), "over the width there is but rounding"


def test_spectral_signatures_see_poison_in_a_transformer() -> None:
    samples = waves(120, 2, length=LENGTH)
    inputs, poisoned = samples.inputs.copy(), np.arange(120) % 12 < 2
    inputs[poisoned, :, :4] = 8.0
    changed = Samples(inputs, samples.labels, samples.ids, samples.class_names)
    verdict = SpectralSignatures().detect(changed, Given(model=model_of(changed)), RECIPE).verdict
    for label in (0, 1):
        of_label = changed.labels == label
        assert roc_auc_score(poisoned[of_label], verdict.suspicion[of_label]) > 0.95


def test_convolutions_stay_as_they_are() -> None:
    network = nn.Sequential(Excited(), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 2))
    x = torch.rand(5, 1, 8)
    for layer in ("0", "0.conv", "1"):
        found = maps(network, x, [layer])[layer]
        expected = network[0](x) if layer == "0" else network[0].conv(x) if layer == "0.conv" else network[:2](x)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(mean_pooled(found), expected.mean(2))


def test_a_part_with_its_own_patches_keeps_tokens_last() -> None:
    body = nn.Sequential(nn.Conv1d(1, WIDTH, 4), nn.LayerNorm(WIDTH))
    network = nn.Sequential(body, nn.Linear(WIDTH, 2))
    assert channels_are_last(network, "0", (5, WIDTH)) and not channels_are_last(network, "0", (WIDTH, 5))
    assert channels_are_last(network, "0", (7, 7, WIDTH)) and not channels_are_last(network, "0", (WIDTH,))
    recurrent = nn.Sequential(nn.GRU(3, 5, bidirectional=True), nn.Linear(10, 2))
    assert channels_are_last(recurrent, "0", (12, 10))


def test_tokens_are_no_channels_to_switch_off() -> None:
    samples = waves(4, 2, length=LENGTH)
    model, x = model_of(samples), torch.from_numpy(samples.inputs)
    assert n_channels(model, "embed", x) == WIDTH
    with pytest.raises(ModelError, match=r"layer 'encoder' has its channels last: name one"):
        n_channels(model, "encoder", x)
