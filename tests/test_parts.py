"""Parts of samples, and how they contradict a label."""

import numpy as np
import pytest
import torch

from antibackdoor.parts import contradiction, foreignness, n_parts, neighbor_labels, pooled_parts


def test_the_parts_of_an_image_are_its_quarters() -> None:
    image = torch.zeros(1, 3, 16, 16)
    image[:, :, :8, :8], image[:, :, :8, 8:], image[:, :, 8:, :8], image[:, :, 8:, 8:] = 1, 2, 3, 4
    parts = pooled_parts(image).reshape(1, n_parts((16, 16, 3)), -1)
    assert parts.shape == (1, 4, 3 * 4 * 4)
    for part, value in enumerate((1, 2, 3, 4)):
        assert (parts[0, part] == value).all()


def test_the_parts_of_a_series_are_its_eighths() -> None:
    series = torch.arange(128.0).reshape(1, 1, 128).repeat(1, 2, 1)
    parts = pooled_parts(series).reshape(1, n_parts((2, 128)), -1)
    assert parts.shape == (1, 8, 2 * 8)
    # 64 spans of two steps each: 0.5, 2.5, ...; an eighth is 16 steps.
    np.testing.assert_allclose(parts[0, 1, :8], np.arange(16.5, 32, 2))
    np.testing.assert_allclose(parts[0, 1, :8], parts[0, 1, 8:])


@pytest.mark.parametrize("shape", [(3, 5), (1, 7, 5), (3, 8, 96)])
def test_samples_smaller_than_the_grid_are_stretched(shape: tuple[int, ...]) -> None:
    parts = pooled_parts(torch.rand(2, *shape))
    n = n_parts(shape)
    assert parts.shape[1] % n == 0
    assert torch.isfinite(parts).all()


def local_poison(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two classes in four parts of five values; ten samples of class 1 have an equal first part and label 0."""
    rng = np.random.default_rng(seed)
    truth = np.repeat([0, 1], 100)
    parts = rng.normal(size=(200, 4, 5)) + 4.0 * truth[:, None, None]
    poisoned = np.zeros(200, dtype=bool)
    poisoned[rng.choice(np.arange(100, 200), 10, replace=False)] = True
    parts[poisoned, 0] = 40.0
    return parts.astype(np.float32), np.where(poisoned, 0, truth), poisoned


def test_a_trigger_in_one_part_leaves_the_others_to_tell() -> None:
    parts, labels, poisoned = local_poison(1)
    found = contradiction(neighbor_labels(parts, labels, seed=0), labels)
    assert ((found >= 0) & (found <= 1)).all()
    # The trigger itself agrees with its label; three parts of four are among class 1, of which a tenth is poison.
    assert found[poisoned].min() > 0.4
    assert found[~poisoned].max() < 0.4


def test_a_sample_is_no_neighbor_of_itself() -> None:
    parts = np.array([[[0.0]], [[0.1]], [[5.0]]], dtype=np.float32)
    labels = np.array([0, 1, 1])
    assert contradiction(neighbor_labels(parts, labels, seed=0), labels).tolist() == [1.0, 0.5, 0.5]


def test_a_single_sample_contradicts_nothing() -> None:
    labels = np.array([0])
    nearby = neighbor_labels(np.zeros((1, 4, 2), dtype=np.float32), labels, seed=0)
    assert contradiction(nearby, labels).tolist() == [0.0]
    assert foreignness(nearby, labels, labels == 0, 0) == 0.0


def test_many_samples_are_compared_with_some() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 6000)
    parts = (rng.normal(size=(6000, 1, 2)) + 20.0 * labels[:, None, None]).astype(np.float32)
    wrong = labels.copy()
    wrong[:5] = 1 - wrong[:5]
    nearby = neighbor_labels(parts, wrong, seed=3)
    found = contradiction(nearby, wrong)
    assert (found[:5] > 0.9).all()
    assert found[5:].mean() < 0.01
    assert (neighbor_labels(parts, wrong, seed=3) == nearby).all()


def test_how_foreign_a_group_is_shows_in_the_part_where_it_is_most_so() -> None:
    """Two parts with two neighbors each; label 0 holds a group that the first part leaves among the others."""
    labels = np.array([0, 0, 0, 1, 1])
    group = np.array([True, True, False, False, False])
    nearby = np.array(
        [
            [[1, 1], [0, 1], [0, 0], [1, 1], [1, 0]],  # 3/4 around the group, 3/4 around label 1
            [[0, 0], [0, 1], [0, 0], [1, 1], [1, 1]],  # 1/4, 1
        ]
    )
    assert foreignness(nearby, labels, group, 0) == pytest.approx(1.0)
    assert foreignness(nearby[1:], labels, group, 0) == pytest.approx(0.25)
    assert foreignness(nearby, labels, group & False, 0) == 0.0
    assert foreignness(nearby, labels * 0, group, 0) == 0.0, "there is no other label"


def test_mislabelled_samples_are_more_foreign_than_a_class_within_a_label() -> None:
    parts, labels, poisoned = local_poison(1)
    assert foreignness(neighbor_labels(parts, labels, seed=0), labels, poisoned, 0) > 0.8
    # The same ten samples, but a class of its own, near class 1 in one part of four.
    rng = np.random.default_rng(0)
    parts[poisoned] = rng.normal(size=(10, 4, 5)) + np.array([-9.0, -9.0, -9.0, 3.0])[:, None]
    assert foreignness(neighbor_labels(parts, labels, seed=0), labels, poisoned, 0) < 0.7
