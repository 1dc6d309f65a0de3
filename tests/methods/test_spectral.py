"""Spectral signatures: scores by hand, and a rule that does not follow the order of the rows."""

from __future__ import annotations

import numpy as np
import torch
from noisy import RECIPE, noisy
from torch import Tensor, nn

from antibackdoor.detectors import SpectralSignatures
from antibackdoor.protocols import Given


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
