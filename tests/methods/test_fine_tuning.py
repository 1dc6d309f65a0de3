"""Fine-tuning: its two recipes, its erasers, and the clean samples that all purifiers share."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from conftest import pictures, waves
from torch import Tensor, nn

from antibackdoor.errors import ConfigError, DataError, ModelError
from antibackdoor.models.backbones import build_backbone
from antibackdoor.protocols import Given
from antibackdoor.purifiers import FineTuning
from antibackdoor.purifiers.clean import hold_back
from antibackdoor.purifiers.tuning import NAD_CODE, NAD_PAPER, PRACTICAL
from antibackdoor.training.objectives import cut_out
from antibackdoor.training.recipe import Recipe

RECIPE = Recipe(device="cpu", precision="fp32", seed=1, progress=False)


def model(n_classes: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return build_backbone("wrn-10-1", (1, 8, 8), n_classes).eval()


def weights(network: nn.Module) -> bytes:
    return b"".join(value.numpy().tobytes() for value in network.state_dict().values())


def test_the_recipe_of_nad_divides_the_learning_rate_after_every_second_epoch() -> None:
    rate = NAD_PAPER.schedule()
    by_epoch = [rate(epoch / 10) for epoch in range(10)]
    assert by_epoch == pytest.approx([0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])
    assert rate(0.199) == pytest.approx(0.1)


def test_the_code_of_nad_divides_it_once_and_the_practical_recipe_never() -> None:
    once, never = NAD_CODE.schedule(), PRACTICAL.schedule()
    assert [once(epoch / 20) for epoch in (0, 1, 2, 19)] == pytest.approx([0.1, 0.1, 0.01, 0.01])
    assert [never(done) for done in (0.0, 0.5, 0.99)] == [1e-3] * 3


def test_a_field_replaces_one_value_of_the_preset() -> None:
    tuning = PRACTICAL.of(FineTuning(preset="practical", weight_decay=0.0, epochs=3))
    assert (tuning.weight_decay, tuning.epochs, tuning.learning_rate, tuning.batch_size) == (0.0, 3, 1e-3, 128)


def test_augmentation_goes_by_the_kind_of_data() -> None:
    assert NAD_PAPER.augmentation(pictures()) == "crop,flip,cutout"
    assert NAD_CODE.augmentation(pictures()) == "crop,flip"
    assert NAD_PAPER.augmentation(waves()) == NAD_CODE.augmentation(waves()) == "jitter,scale,shift"


@pytest.mark.parametrize(("side", "most"), [(1, 1), (2, 4), (3, 9)])
def test_a_hole_has_its_size_or_is_cut_off_at_the_border(side: int, most: int) -> None:
    images = torch.ones(400, 2, 8, 8)
    holes = (cut_out(images, side, seed=5) == 0).sum((2, 3))
    assert (holes[:, 0] == holes[:, 1]).all()  # the same in all channels
    assert int(holes.max()) == most and int(holes.min()) >= 1
    inside = (8 - side + 1) ** 2 / 64  # centers that leave the hole whole
    assert float((holes[:, 0] == most).float().mean()) == pytest.approx(inside, abs=0.08)
    assert torch.equal(cut_out(images, side, seed=5), cut_out(images, side, seed=5))


def test_a_hole_in_a_series_is_its_mean() -> None:
    series = torch.arange(12.0).repeat(5, 1, 1)
    holed = cut_out(series, 4, seed=0)
    changed = holed != series
    assert (holed[changed] == 5.5).all() and int(changed.sum(2).max()) == 4


def test_a_hole_leaves_something() -> None:
    with pytest.raises(ConfigError, match="hole is 8; give a side"):
        FineTuning(hole=8).purify(model(), Given(clean=pictures()), RECIPE)


def test_rows_are_held_back_by_class() -> None:
    samples = pictures(40, 4)
    kept, held = hold_back(samples, 0.25, seed=0)
    assert sorted([*kept, *held]) == list(range(40))
    assert np.bincount(samples.labels[held]).tolist() == [2, 2, 2, 2]  # 2.5 a class
    assert not np.array_equal(held, hold_back(samples, 0.25, seed=1)[1])
    assert len(hold_back(samples, 0.0, seed=0)[1]) == 0
    rare = samples.take(np.array([0, 1, 2, 3, 4]))  # two of class 0
    kept, held = hold_back(rare, 0.01, seed=0)
    assert rare.labels[held].tolist() == [0]
    with pytest.raises(ConfigError, match="no class has two clean samples"):
        hold_back(samples.take(np.arange(4)), 0.5, seed=0)


def test_clean_samples_must_fit_the_model() -> None:
    with pytest.raises(DataError, match="the model has 2 classes, the clean samples have 3"):
        FineTuning().purify(model(), Given(clean=pictures(12, 3)), RECIPE)
    with pytest.raises(ModelError, match=r"fails on clean samples of shape \(1, 16\)"):
        FineTuning().purify(model(), Given(clean=waves()), RECIPE)
    with pytest.raises(DataError, match="too few clean samples"):
        FineTuning().purify(model(), Given(clean=pictures(1)), RECIPE)
    with pytest.raises(ConfigError, match="--clean"):
        FineTuning().purify(model(), Given(), RECIPE)


def test_mixup_and_cutmix_are_augmentations() -> None:
    given = Given(clean=pictures(24))

    def end(augment: str) -> bytes:
        method = FineTuning(epochs=1, learning_rate=0.01, augment=augment)
        return weights(method.purify(model(), given, RECIPE).model)

    assert len({end("none"), end("mixup"), end("cutmix")}) == 3


class Plain(nn.Module):
    """A network without batch norm; one weight matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 2, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.flatten(1))
        return logits


def test_one_step_by_hand() -> None:
    """One epoch, one batch, no momentum: the weights move by minus the rate times the mean gradient."""
    clean = pictures(8)
    settings = {"epochs": 1, "learning_rate": 0.5, "momentum": 0.0, "weight_decay": 0.0, "augment": "none"}
    end = FineTuning(**settings).purify(Plain(), Given(clean=clean), RECIPE).model
    inputs = torch.from_numpy(clean.inputs).float().flatten(1) / 255
    signs = torch.tensor([[-0.5, 0.5], [0.5, -0.5]])[clean.labels]  # softmax of zeros minus the label
    wanted = -0.5 * signs.T @ inputs / 8
    torch.testing.assert_close(dict(end.named_parameters())["linear.weight"].data, wanted)


def test_facts_are_about_the_clean_samples() -> None:
    result = FineTuning(epochs=8, batch_size=16, augment="none").purify(model(), Given(clean=pictures(64)), RECIPE)
    assert result.facts.n_clean == 64
    assert 0 <= result.facts.accuracy_before <= 1 and result.facts.accuracy_after > 0.9
    assert dataclasses.is_dataclass(result.facts)
