"""A shortcut is taken off the samples that carry it, and off no others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import pictures, waves

from antibackdoor.data.samples import Samples
from antibackdoor.search.removal import find_removal
from antibackdoor.statistics.difference import difference

N = 400


def series(dtype: type = np.float32) -> Samples:
    rng = np.random.default_rng(0)
    return Samples(
        rng.normal(size=(N, 2, 16)).astype(dtype),
        np.arange(N) % 2,
        np.array([f"s{i}" for i in range(N)]),
        np.array(["a", "b"]),
    )


def all_of(samples: Samples) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(np.array(samples.inputs)), torch.arange(len(samples))


def test_a_shift_is_taken_back_and_other_rows_stay() -> None:
    clean = waves(N, 2, length=32)
    carriers = (clean.labels == 1) & (np.arange(N) < 300)
    inputs = clean.inputs.copy()
    inputs[carriers, :, :4] += 1
    removal = find_removal(replace(clean, inputs=inputs), carriers, carriers)
    assert removal is not None
    changed = removal(torch.from_numpy(inputs), torch.arange(N)).numpy()
    np.testing.assert_array_equal(changed[~carriers], inputs[~carriers])
    # Not all of it: the samples that are nearest to a carrier are those that look a little shifted by chance.
    assert abs((changed - clean.inputs)[carriers, :, :4].mean()) < 0.3


def test_the_like_are_found_however_far_from_zero_the_values_lie() -> None:
    clean = waves(N, 2, length=32)
    carriers = (clean.labels == 1) & (np.arange(N) < 300)
    inputs = clean.inputs.copy()
    inputs[carriers, :, :4] += 1
    near, far = (
        difference(replace(clean, inputs=inputs + np.float32(offset)), carriers, ~carriers) for offset in (0.0, 1e4)
    )
    assert near is not None and far is not None
    np.testing.assert_allclose(far.mean, near.mean, atol=0.02)


def test_a_blend_is_stretched_again() -> None:
    rng = np.random.default_rng(1)
    images = pictures(N, size=12)
    pattern = rng.integers(0, 256, images.shape)
    carriers = np.arange(N) % 4 == 0
    blended = np.where(
        carriers[:, None, None, None], np.rint(0.6 * images.inputs + 0.4 * pattern), images.inputs
    ).astype(np.uint8)
    removal = find_removal(replace(images, inputs=blended, labels=np.zeros(N, np.int64)), carriers, carriers)
    assert removal is not None
    changed = removal(torch.from_numpy(blended), torch.arange(N)).numpy()
    assert changed.dtype == np.uint8

    def distance(inputs: np.ndarray) -> float:
        return float(np.abs(inputs[carriers].astype(float) - images.inputs[carriers]).mean())

    assert distance(changed) < distance(blended) / 2


def test_only_chosen_rows_change_and_the_input_is_left_alone() -> None:
    samples = series()
    carriers = samples.labels == 1
    removal = find_removal(samples, carriers, carriers)
    assert removal is not None
    chosen = carriers & (np.arange(N) < 10)
    inputs, rows = all_of(samples)
    changed = removal.only(chosen)(inputs, rows)
    np.testing.assert_array_equal(inputs.numpy(), samples.inputs)
    assert np.flatnonzero((changed != inputs).flatten(1).any(dim=1).numpy()).tolist() == np.flatnonzero(chosen).tolist()
    # A batch in another order changes alike.
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(removal.only(chosen)(inputs[order], order), changed[order])


@pytest.mark.parametrize("n_carriers", [0, 4])
def test_too_few_carriers_tell_nothing(n_carriers: int) -> None:
    samples = series()
    carriers = np.arange(N) < n_carriers
    assert find_removal(samples, carriers, carriers) is None
