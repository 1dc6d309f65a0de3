"""Augmentations that came later: camera-like transformations, and mixtures of two samples with their labels."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from conftest import pictures, waves
from torch import Tensor, nn

from antibackdoor.data.augmentation import AUGMENTATIONS, augment
from antibackdoor.data.samples import Samples
from antibackdoor.defenses import Undefended
from antibackdoor.defenses.e2abl import E2ABL
from antibackdoor.errors import ConfigError
from antibackdoor.training.loop import classify, cross_entropy
from antibackdoor.training.mixing import MIXES, blended, cutmix, mixed, mixup, pasted
from antibackdoor.training.recipe import MIXING, Recipe, augmentation_names, mixing_names
from antibackdoor.training.session import Batch, Session

RECIPE = Recipe(epochs=2, device="cpu", precision="fp32", augment="none", seed=3, progress=False)


def linear(samples: Samples) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(samples.shape)), samples.n_classes))


def weights(samples: Samples, **settings: object) -> bytes:
    recipe = dataclasses.replace(RECIPE, **settings)  # type: ignore[arg-type]
    model = Undefended().train(samples, lambda: linear(samples), recipe).model
    return b"".join(value.numpy().tobytes() for value in model.state_dict().values())


# --------------------------------------------------------------------------- physical


def test_physical_is_the_same_for_bytes_and_floats() -> None:
    images = torch.from_numpy(pictures(12, size=16).inputs)
    moved, again, other = (augment(images, ("physical",), seed) for seed in (3, 3, 4))
    assert moved.dtype == torch.uint8 and moved.shape == images.shape
    assert torch.equal(moved, again) and not torch.equal(moved, other) and not torch.equal(moved, images)
    floats = augment(images.float() / 255, ("physical",), 3)
    assert floats.dtype == torch.float32 and floats.min() >= 0 and floats.max() <= 1
    assert (floats * 255 - moved).abs().max() <= 0.5 + 1e-3  # rounded, not cut off


def test_physical_shrinks_and_fills_with_black() -> None:
    white = torch.full((40, 1, 32, 32), 255, dtype=torch.uint8)
    moved = augment(white, ("physical",), 0).float()
    covered = (moved > 0).float().mean((1, 2, 3))
    assert covered.min() > 0.4 and covered.max() < 0.9  # 0.64 to 0.81 of the area, less what leaves the image
    assert moved.amax((1, 2, 3)).min() > 0.75 * 255  # at most a fifth darker


def test_physical_is_for_images() -> None:
    assert augmentation_names("physical, flip", pictures(4, size=16)) == ("physical", "flip")
    with pytest.raises(ConfigError, match="'physical' does not exist for series data"):
        augmentation_names("physical", waves(4))
    assert weights(pictures(16), augment="physical") != weights(pictures(16))


# --------------------------------------------------------------------------- mixtures


def batch_of(samples: Samples, seed: int = 5) -> Batch:
    session = Session(RECIPE, len(samples), images=samples.kind == "image")
    return session.batch(session.feed(samples), np.arange(len(samples)))._replace(seed=seed)


class Seen:
    """An objective that keeps what it is shown."""

    batch: Batch

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        self.batch = batch
        return batch.labels.sum(1), batch.labels.sum(1)


@pytest.mark.parametrize("kind", ["image", "series"])
def test_mixup_by_hand(kind: str) -> None:
    batch = batch_of(pictures(12, 3) if kind == "image" else waves(12, 3))
    before, seen = batch.inputs.clone(), Seen()
    mixed(seen, [blended(1.0)], 3)(batch)
    rng = np.random.default_rng(batch.seed)
    drawn, partners = rng.beta(1.0, 1.0), rng.permutation(12)
    share = max(drawn, 1 - drawn)
    assert torch.allclose(seen.batch.inputs, share * before + (1 - share) * before[partners])
    expected = share * torch.eye(3)[batch.labels] + (1 - share) * torch.eye(3)[batch.labels[partners]]
    assert torch.allclose(seen.batch.labels, expected)
    assert torch.equal(batch.inputs, before) and torch.equal(seen.batch.rows, batch.rows)


@pytest.mark.parametrize("kind", ["image", "series"])
def test_cutmix_counts_the_box_that_was_cut(kind: str) -> None:
    rng = np.random.default_rng(0)
    shape = (1, 9, 13) if kind == "image" else (2, 23)
    shares, widths = [], []
    for _ in range(200):
        inputs = torch.arange(8.0).view(8, *[1] * len(shape)).expand(8, *shape).contiguous()  # a sample is its number
        result, partners, share = pasted(1.0)(inputs, rng)
        moved = [float((result[i] != i).float().mean()) for i in range(8) if partners[i] != i]
        assert moved == pytest.approx([1 - share] * len(moved), abs=1e-6)
        changed = result != inputs
        assert torch.equal(result[changed], inputs[partners][changed])
        shares.append(share)
        row = changed.any(0)[0]
        inside = row.any(0) if kind == "image" else row
        places = inside.nonzero()[:, 0]
        widths.append(len(places))
        assert not len(places) or len(places) == places[-1] - places[0] + 1  # one piece
    assert 0 < np.mean(shares) < 1 and len(set(widths)) > 8
    assert np.mean(shares) == pytest.approx(0.6, abs=0.12)  # about 1/2 is drawn; the border cuts some of the box off


def test_cutmix_keeps_within_its_shares_and_probability() -> None:
    inputs, rng = torch.rand(12, 1, 40), np.random.default_rng(1)
    drawn = [pasted(1.0, shares=(0.3, 0.7))(inputs, rng).share for _ in range(200)]
    assert min(drawn) >= 0.3 - 0.5 / 40  # at most the largest interval is cut, rounded
    mixes = [pasted(1.0, probability=0.25, shares=(0.3, 0.7))(inputs, rng) for _ in range(400)]
    untouched = [torch.equal(mix.inputs, inputs) for mix in mixes]
    assert 0.65 < np.mean(untouched) < 0.85
    assert all(mix.share == 1.0 for mix, same in zip(mixes, untouched, strict=True) if same)


def test_a_mixed_loss_is_the_mean_of_both() -> None:
    samples = waves(10, 3)
    net, batch = linear(samples), batch_of(samples)
    seen = Seen()
    mixed(seen, [blended(1.0)], 3)(batch)
    losses, recorded = mixup(net, 1.0, 3)(batch)
    rng = np.random.default_rng(batch.seed)
    drawn, partners = rng.beta(1.0, 1.0), rng.permutation(10)
    share, logits = max(drawn, 1 - drawn), net(seen.batch.inputs)
    both = share * cross_entropy(logits, batch.labels) + (1 - share) * cross_entropy(logits, batch.labels[partners])
    assert torch.allclose(losses, both) and torch.equal(losses, recorded)
    again, _ = cutmix(net, 1.0, 3, probability=0.0)(batch)
    assert torch.allclose(again, classify(net)(batch)[0])


def test_mixing_once_more_and_soft_labels() -> None:
    batch, seen = batch_of(waves(10, 3)), Seen()
    mixed(seen, [MIXES["mixup"], MIXES["cutmix"]], 3)(batch)
    assert torch.allclose(seen.batch.labels.sum(1), torch.ones(10))
    assert (seen.batch.labels > 0).sum(1).max() == 3
    soft = batch._replace(labels=torch.full((10, 3), 1 / 3))
    mixed(seen, [MIXES["mixup"]], 3)(soft)
    assert torch.allclose(seen.batch.labels, torch.full((10, 3), 1 / 3))


@pytest.mark.parametrize("kind", ["image", "series"])
def test_a_recipe_can_mix(kind: str) -> None:
    samples = pictures(24) if kind == "image" else waves(24)
    own = "flip" if kind == "image" else "scale"
    made = [weights(samples, augment=names) for names in ("none", own, "mixup", "cutmix", f"{own},mixup")]
    assert len(set(made)) == 5
    assert weights(samples, augment="mixup") == made[2]
    assert weights(samples, augment="mixup", seed=4) != made[2]


def test_a_method_that_needs_single_samples_refuses_to_mix() -> None:
    samples = pictures(24)
    with pytest.raises(ConfigError, match="'mixup' mixes labels") as error:
        E2ABL(augment="flip,mixup").train(samples, lambda: linear(samples), RECIPE)
    assert "\n" not in str(error.value)


def test_names() -> None:
    assert set(MIXES) == set(MIXING) and not set(MIXES) & set(AUGMENTATIONS)
    assert mixing_names("crop, mixup,cutmix") == ("mixup", "cutmix") and mixing_names("auto") == ()
    assert augmentation_names("crop,mixup", pictures(4, size=16)) == ("crop",)
    assert augmentation_names("mixup", waves(4)) == ()
