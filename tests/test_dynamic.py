"""Dynamic: the formulas by hand, and what the two stages of training reach on easy images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from antibackdoor.attacks import Dynamic, poison
from antibackdoor.attacks.dynamic import GeneratedPatch, blended, diversity, threshold
from antibackdoor.attacks.stamps import Staged
from antibackdoor.attacks.surrogate import to_tensor
from antibackdoor.data.samples import Samples
from antibackdoor.errors import ConfigError

NUMBERS = np.arange(256)


def striped(side: int = 16, n: int = 256) -> Samples:
    """Class 1 has bright rows, class 0 bright columns; the brightness differs from image to image."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 2
    stripes = np.where(np.arange(side) % 2 == 0, 1, 0)
    images = np.where(labels[:, None, None, None] == 1, stripes[:, None], stripes[None, :])
    inputs = images * rng.integers(60, 180, (n, 3, 1, 1)) + rng.integers(0, 60, (n, 3, side, side))
    return Samples(inputs.astype(np.uint8), labels, np.arange(n).astype(str), np.array(["a", "b"]))


@pytest.fixture(scope="module")
def trained() -> Staged:
    return Dynamic(width=4, diversity=0.1, mask_epochs=60, joint_epochs=30, epochs=2).trigger(striped(), seed=0)


def test_masks_are_nearly_binary_and_mix_image_and_pattern() -> None:
    mask = threshold(torch.tensor([0.0, 0.45, 0.5, 0.55, 1.0]))
    # (tanh(±1) + 1) / 2 = 0.1192 and 0.8808.
    assert torch.allclose(mask, torch.tensor([0.0, 0.1192, 0.5, 0.8808, 1.0]), atol=1e-4)
    mixed = blended(torch.tensor([0.2]), torch.tensor([0.25]), torch.tensor([1.0]))
    assert mixed.item() == pytest.approx(0.4)  # 0.75 * 0.2 + 0.25 * 1


def test_diversity_compares_distances_of_images_and_of_what_was_painted() -> None:
    images = torch.zeros(2, 3, 4, 4)
    others = torch.stack([torch.full((3, 4, 4), 0.4), torch.full((3, 4, 4), 0.6)])
    painted = torch.zeros(2, 1, 4, 4)
    # 0.4 / 0.2 = 2 and 0.6 / 0.2 = 3.
    assert diversity(images, others, painted, painted + 0.2).item() == pytest.approx(2.5, rel=1e-5)
    same = painted.clone().requires_grad_(True)
    diversity(images, others, same, same * 1.0).backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(same.grad).all()  # type: ignore[arg-type]


def test_masks_are_sparse_and_triggers_differ_from_image_to_image(trained: Staged) -> None:
    samples = striped()
    assert isinstance(trained.planted, GeneratedPatch)
    mask, pattern = trained.planted.networks()
    images = to_tensor(samples.inputs)
    masks, patterns = threshold(mask(images)), pattern(images)
    assert 0.001 < masks.mean() <= 0.05
    assert (masks[1:] - masks[:-1]).abs().amax(dim=(1, 2, 3)).min() > 1e-3
    assert (patterns[1:] - patterns[:-1]).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_pixels_outside_the_mask_stay(trained: Staged) -> None:
    samples = striped()
    assert isinstance(trained.planted, GeneratedPatch)
    mask, _ = trained.planted.networks()
    outside = (threshold(mask(to_tensor(samples.inputs))) < 1e-3).expand(-1, 3, -1, -1).numpy()
    change = trained.apply(samples.inputs, NUMBERS) != samples.inputs
    assert outside.any() and not change[outside].any() and change.any()


def test_covers_get_the_trigger_of_another_image(trained: Staged) -> None:
    samples = striped()
    assert isinstance(trained.planted, GeneratedPatch)
    own = trained.apply(samples.inputs, NUMBERS)
    # An image's trigger as a patch does to it what the network does.
    patches = trained.planted.of(samples.inputs[:4])
    for row, patch in enumerate(patches):
        assert np.abs(patch.apply(samples.inputs[row : row + 1], NUMBERS[:1])[0].astype(int) - own[row]).max() <= 1
    crossed = trained.cover.apply(samples.inputs, NUMBERS)
    assert ((crossed != own).reshape(256, -1).any(axis=1)).mean() > 0.9
    covered = poison(samples, Dynamic(cross_rate=0.2), seed=0, trigger=trained)
    assert covered.truth.is_cover.sum() == 51 and covered.truth.is_poisoned.sum() == 26
    assert (covered.samples.labels[covered.truth.is_cover] == 1).all()


def test_sizes_that_are_no_multiple_of_eight() -> None:
    samples = striped(side=13, n=20)
    attack = Dynamic(width=2, mask_epochs=1, joint_epochs=1, epochs=1)
    assert attack.trigger(samples, seed=0).apply(samples.inputs, NUMBERS[:20]).shape == (20, 3, 13, 13)
    with pytest.raises(ConfigError, match="at least 8x8 pixels, not 7x7"):
        attack.trigger(striped(side=7, n=20), seed=0)
    with pytest.raises(ConfigError, match="joint_epochs is 0"):
        Dynamic(joint_epochs=0).trigger(samples, seed=0)
