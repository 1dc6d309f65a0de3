"""What tests of phases share: a recipe, networks, and an objective that is watched."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from antibackdoor.data.samples import Samples
from antibackdoor.models.backbones import build_backbone
from antibackdoor.protocols import Build
from antibackdoor.training.loop import cross_entropy
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.session import Batch

RECIPE = Recipe(epochs=2, batch_size=16, device="cpu", precision="fp32", augment="none", seed=3)


def builder(samples: Samples) -> Build:
    name = "wrn-10-1" if samples.kind == "image" else "fcn"
    return lambda: build_backbone(name, samples.shape, samples.n_classes)


def weights(model: nn.Module) -> bytes:
    return b"".join(value.numpy().tobytes() for value in model.state_dict().values())


class Seen:
    """An objective that learns nothing, and keeps the batches that it is shown."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.batches = model, list[Batch]()

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        self.batches.append(batch)
        losses = cross_entropy(self.model(batch.inputs), batch.labels)
        return losses, losses

    @property
    def rows(self) -> list[int]:
        return torch.cat([batch.rows for batch in self.batches]).tolist()
