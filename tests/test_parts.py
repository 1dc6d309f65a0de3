"""Parts of samples, and how they contradict a label."""

import numpy as np
import pytest
import torch

from antibackdoor.models.features import n_parts, pooled_parts
from antibackdoor.statistics.parts import MISPLACED, MOST_ODD, Resemblance, agreement, atypical, contradiction, mixing


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
    found = contradiction(parts, labels, seed=0)
    assert ((found >= 0) & (found <= 1)).all()
    # The trigger itself agrees with its label; three parts of four are among class 1, of which a tenth is poison.
    assert found[poisoned].min() > 0.4
    assert found[~poisoned].max() < 0.4


def test_a_sample_is_no_neighbor_of_itself() -> None:
    parts = np.array([[[0.0]], [[0.1]], [[5.0]]], dtype=np.float32)
    assert contradiction(parts, np.array([0, 1, 1]), seed=0).tolist() == [1.0, 0.5, 0.5]


def test_a_single_sample_contradicts_nothing() -> None:
    assert contradiction(np.zeros((1, 4, 2), dtype=np.float32), np.array([0]), seed=0).tolist() == [0.0]


def test_many_samples_are_compared_with_some() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 6000)
    parts = (rng.normal(size=(6000, 1, 2)) + 20.0 * labels[:, None, None]).astype(np.float32)
    wrong = labels.copy()
    wrong[:5] = 1 - wrong[:5]
    found = contradiction(parts, wrong, seed=3)
    assert (found[:5] > 0.9).all()
    assert found[5:].mean() < 0.01
    assert (contradiction(parts, wrong, seed=3) == found).all()


def classes_in_eight_places(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Forty samples of each of eight classes, `(320, 6)` values, and their classes."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(8), 40)
    return (rng.normal(size=(320, 6)) + 6.0 * rng.normal(size=(8, 6))[truth]).astype(np.float32), truth


def test_poison_from_many_labels_mixes_with_them_whatever_covers_it() -> None:
    values, truth = classes_in_eight_places(0)
    poisoned = (truth > 1) & (np.arange(320) % 5 == 0)
    values[poisoned] = 0.6 * values[poisoned] + np.array([9, -7, 8, 5, -9, 4])
    assert mixing(values, poisoned, (truth > 1) & ~poisoned, seed=0) > 0.9


def test_a_class_within_a_label_does_not_mix_with_others() -> None:
    values, truth = classes_in_eight_places(0)
    for part in (0, 1):
        assert mixing(values, truth == part, truth > 1, seed=0) < 0.3


def test_groups_alike_mix_fully_and_many_samples_are_compared_with_some() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=(9000, 3)).astype(np.float32)
    group = np.arange(9000) < 4500
    assert mixing(values, group, ~group, seed=1) == pytest.approx(1.0, abs=0.05)
    assert mixing(values, group, ~group, seed=1) == mixing(values, group, ~group, seed=1)


@pytest.mark.parametrize(("n_group", "n_others"), [(0, 5), (1, 5), (5, 0), (5, 1)])
def test_too_few_to_compare_do_not_mix(n_group: int, n_others: int) -> None:
    values = np.random.default_rng(0).normal(size=(n_group + n_others, 2)).astype(np.float32)
    group = np.arange(n_group + n_others) < n_group
    assert mixing(values, group, ~group, seed=0) == 0.0


def test_copies_of_one_sample_do_not_break_the_comparison() -> None:
    values = np.zeros((12, 2), dtype=np.float32)
    group = np.arange(12) < 6
    assert 0.0 <= mixing(values, group, ~group, seed=0) <= 2.0


@pytest.mark.parametrize("rate", [8, 80])
def test_poison_of_several_labels_does_not_look_like_them_and_a_style_does(rate: int) -> None:
    values, truth = classes_in_eight_places(0)
    group = np.arange(320) % (320 // rate) == 0
    values[group] += np.array([9, -7, 8, 5, -9, 4])
    assert agreement(values, truth, group, seed=0) > 0.8
    assert agreement(values, np.where(group, (truth + 1) % 8, truth), group, seed=0) < 0.1
    two_targets = np.where(group & (truth > 1), np.arange(320) // 40 % 2, truth)
    assert agreement(values, two_targets, group & (truth > 1), seed=0) < 0.1


def test_without_neighbors_that_tell_labels_nothing_disagrees() -> None:
    rng = np.random.default_rng(1)
    values, labels = rng.normal(size=(6, 2)).astype(np.float32), np.arange(6) % 2
    for n_group in (0, 1, 5, 6):
        assert agreement(values, labels, np.arange(6) < n_group, seed=0) == 1.0
    assert agreement(values, np.zeros(6, dtype=np.int64), np.arange(6) < 3, seed=0) == 1.0


def between_two_labels(seed: int, n_moved: int) -> tuple[Resemblance, np.ndarray]:
    """Two hundred samples of each of two classes of other shapes, and so many of label 0 that the other class lent.

    The first two of four parts are covered by a trigger.
    """
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(2), 200)
    spreads = np.array([np.repeat([1.0, 0.2], 8), np.repeat([0.2, 1.0], 8)])
    values = (rng.normal(size=(400, 16)) * spreads[truth] + 3.0 * truth[:, None]).astype(np.float32)
    moved = np.flatnonzero(truth == 1)[:n_moved]
    labels, group = truth.copy(), np.zeros(400, dtype=bool)
    labels[moved], group[moved] = 0, True
    values[moved, :4] += 5.0
    return Resemblance(values.reshape(400, 4, 4), labels, seed), group


@pytest.mark.parametrize("n_moved", [12, 60])
def test_carriers_lie_like_the_label_that_they_were_taken_from(n_moved: int) -> None:
    looks, group = between_two_labels(0, n_moved)
    assert looks.misplacement(group, 0) > MISPLACED


def test_a_style_of_a_label_lies_like_its_like() -> None:
    looks, _ = between_two_labels(0, 0)
    at = np.flatnonzero(looks.labels == 0)[:40]
    style = np.isin(np.arange(400), at)
    parts = looks.parts.copy()
    parts[at] += 4.0
    changed = Resemblance(parts, looks.labels, 0)
    assert changed.contradiction[style].mean() > changed.contradiction[~style].mean(), "it is asked at all"
    assert changed.misplacement(style, 0) < MISPLACED


def test_odd_ones_among_samples_that_are_all_alike_keep_to_themselves() -> None:
    """Among samples of more variety they are no odder than these, but hardly any of these is near them."""
    rng = np.random.default_rng(0)
    alike, odd, others = (rng.normal(0, spread, (n, 12)) for spread, n in ((0.1, 150), (0.2, 60), (1.0, 300)))
    values = np.concatenate([alike, odd + 1.0, others]).astype(np.float32)
    labels, group = np.repeat([0, 1, 2, 3], [210, 100, 100, 100]), np.isin(np.arange(510), np.arange(150, 210))
    elsewhere, here = (atypical(values, group, place, seed=0) for place in (labels > 0, (labels == 0) & ~group))
    assert np.median(elsewhere) < MOST_ODD and (here - elsewhere).mean() > MISPLACED
    looks = Resemblance(values.reshape(510, 2, 6), labels, 0)
    looks.__dict__["contradiction"] = group.astype(np.float64)
    assert looks.misplacement(group, 0) == 0.0


@pytest.mark.parametrize("is_home", [True, False])
def test_where_a_label_lies_among_others_as_well_as_by_itself_place_tells_nothing(is_home: bool) -> None:
    """Photographs do: a style of few in a label is less odd among the others, which have all styles, and so is it."""
    rng = np.random.default_rng(0)
    styles = np.array([[1.0, 0.2, 0.2], [0.2, 1.0, 0.2], [0.2, 0.2, 1.0]]).repeat(4, axis=1)
    style = np.repeat([2 if is_home else 0, 1, 0, 1], [200, 60, 150, 150])
    values = (rng.normal(size=(560, 12)) * styles[style]).astype(np.float32)
    labels, group = np.repeat([0, 1, 2, 3], [260, 100, 100, 100]), np.isin(np.arange(560), np.arange(200, 260))
    elsewhere, here = (atypical(values, group, place, seed=0) for place in (labels > 0, (labels == 0) & ~group))
    assert np.median(elsewhere) < MOST_ODD and (here - elsewhere).mean() > MISPLACED
    looks = Resemblance(values.reshape(560, 2, 6), labels, 0)
    looks.__dict__["contradiction"] = group.astype(np.float64)
    assert (looks.misplacement(group, 0) > MISPLACED) == is_home


def test_place_is_asked_of_groups_of_ten_that_are_no_more_than_half_of_a_label() -> None:
    looks, group = between_two_labels(0, 12)
    few = group & (np.cumsum(group) <= 9)
    assert looks.misplacement(few, 0) == 0.0
    most = (looks.labels == 0) & (np.arange(400) >= 90)
    assert most.sum() > 106 and looks.misplacement(most, 0) == 0.0


def test_members_of_a_place_are_no_odder_there_than_others() -> None:
    values = np.random.default_rng(4).normal(size=(3000, 3)).astype(np.float32)
    group = np.arange(3000) < 1500
    odd = atypical(values, group, ~group, seed=0)
    assert odd.shape == (1000,) and ((odd >= 0) & (odd <= 1)).all()
    assert odd.mean() == pytest.approx(0.5, abs=0.05)
    assert atypical(values, group, np.zeros(3000, dtype=bool), seed=0).size == 0
