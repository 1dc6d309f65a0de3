"""Spectral signatures: scores by hand, and a rule that does not follow the order of the rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from noisy import RECIPE, noisy
from torch import Tensor, nn

from antibackdoor.detectors import SpectralSignatures
from antibackdoor.protocols import Given
from antibackdoor.statistics.spectral import spectral_scores


class Constant(nn.Module):
    """A network that says the same of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 4)
        nn.init.zeros_(self.layer.weight)
        self.classifier = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.classifier(self.layer(x.flatten(1)))
        return logits


@pytest.mark.parametrize(("n", "width"), [(40, 6), (6, 40), (20, 20), (1, 3)])
def test_scores_are_those_of_the_singular_vectors(n: int, width: int) -> None:
    features = np.random.default_rng(0).standard_normal((n, width))
    centered = features - features.mean(axis=0)
    projections = (centered @ np.linalg.svd(centered)[2][0]) ** 2
    expected = projections / projections.mean() if n > 1 else np.zeros(1)
    np.testing.assert_allclose(spectral_scores(features), expected, rtol=1e-6, atol=1e-9)
    assert not spectral_scores(np.ones((n, width))).any(), "all are alike"


def test_wide_features_of_few_samples_need_no_matrix_of_their_width(monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[int] = []
    eigh = np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda matrix: (met.append(len(matrix)), eigh(matrix))[1])
    spectral_scores(np.random.default_rng(0).standard_normal((20, 3000)))
    spectral_scores(np.random.default_rng(0).standard_normal((3000, 20)))
    assert met == [20, 20]


def test_the_seed_decides_between_equal_scores_not_the_row() -> None:
    samples = noisy("series", 200, 2)
    detection = SpectralSignatures(expected_rate=0.1, layer="layer").detect(samples, Given(model=Constant()), RECIPE)
    isolated = detection.verdict.isolated
    assert (detection.verdict.suspicion == 0).all()
    for label in (0, 1):
        rows = np.flatnonzero(isolated[samples.labels == label])
        assert len(rows) == 30 and rows.max() >= 50


def test_a_model_is_left_as_it_is() -> None:
    model = Constant().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    SpectralSignatures(layer="layer").detect(noisy("series", 40, 2), Given(model=model), RECIPE)
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
