"""Second populations in synthetic features, whose truth is known."""

import numpy as np
import pytest

from antibackdoor.statistics.populations import (
    LEAST_GAIN,
    Constellations,
    smaller_groups,
    strangers,
    two_populations,
    with_strange,
)

K, PER_LABEL, AXES = 6, 120, 16


def classes(
    seed: int, n_classes: int = K, distance: float = 8.0, size: int = PER_LABEL
) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian classes of unit spread around means `distance` from the origin."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(n_classes, AXES))
    means *= distance / np.linalg.norm(means, axis=1, keepdims=True)
    labels = np.repeat(np.arange(n_classes), size)
    return (means[labels] + rng.normal(size=(len(labels), AXES))).astype(np.float32), labels.astype(np.int64)


def mislabel(
    features: np.ndarray, labels: np.ndarray, *, target: int, count: int, shift: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples of other classes under the target's label, all moved by one vector: features, labels, rows."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(np.flatnonzero(labels != target), count, replace=False)
    direction = rng.normal(size=AXES)
    moved = features.copy()
    moved[rows] += (shift * direction / np.linalg.norm(direction)).astype(np.float32)
    given = labels.copy()
    given[rows] = target
    return moved, given, rows


@pytest.mark.parametrize("count", [15, 60, 120, 240])
@pytest.mark.parametrize("target", [0, 4])
def test_poison_is_found_whatever_its_share(count: int, target: int) -> None:
    features, labels = classes(1)
    moved, given, rows = mislabel(features, labels, target=target, count=count, shift=8.0, seed=2)
    found = two_populations(moved, given, seed=0)
    assert found.labels == (target,)
    truth = np.zeros(len(labels), dtype=bool)
    truth[rows] = True
    assert (truth & ~found.flagged).sum() <= 1
    assert (found.flagged & ~truth).sum() <= 1


@pytest.mark.parametrize("seed", range(5))
def test_clean_data_are_left_alone(seed: int) -> None:
    features, labels = classes(seed)
    found = two_populations(features, labels, seed=seed)
    assert found.labels == ()
    assert not found.flagged.any()


def test_a_genuine_subclass_is_left_alone() -> None:
    features, labels = classes(3)
    rng = np.random.default_rng(4)
    half = np.flatnonzero(labels == 2)[: PER_LABEL // 2]
    features[half] += (8 * rng.normal(size=AXES) / np.sqrt(AXES)).astype(np.float32)
    found = two_populations(features, labels, seed=0)
    assert not found.flagged.any()


@pytest.mark.parametrize("seed", range(3))
def test_in_a_small_label_fewer_nats_are_enough_if_no_other_label_has_half_as_many(seed: int) -> None:
    """Each of few samples says as much as each of many."""
    features, labels = classes(seed, distance=5.0, size=24)
    moved, given, rows = mislabel(features, labels, target=0, count=8, shift=8.0, seed=2)
    found = two_populations(moved, given, seed=0)
    assert found.labels == (0,) and found.gains[0] < LEAST_GAIN
    assert found.flagged.sum() == found.flagged[rows].sum() == 8
    moved, given, _ = mislabel(moved, given, target=1, count=8, shift=8.0, seed=3)
    beside = two_populations(moved, given, seed=0)
    assert beside.gains[0] < LEAST_GAIN and beside.gains[1] > beside.gains[0] / 2
    assert 0 not in beside.labels


@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize("count", [12, 20, 60, 120])
def test_wrong_labels_of_one_class_alone_are_found_without_a_shift(count: int, shift: float) -> None:
    """Neighbors are the second witness: they call the same samples strange, and hardly any elsewhere."""
    features, labels = classes(5)
    moved, given, rows = mislabel(features, labels, target=1, count=count, shift=shift, seed=6)
    found = two_populations(moved, given, seed=0)
    assert found.labels == (1,)
    assert found.flagged[rows].mean() > 0.9 and found.flagged.sum() <= found.flagged[rows].sum() + 2


@pytest.mark.parametrize("count", [20, 60, 240])
def test_a_small_shift_is_enough_where_the_content_is_loud_and_a_cut_divides_the_label(count: int) -> None:
    features, labels = classes(1)
    moved, given, rows = mislabel(features, labels, target=0, count=count, shift=2.5, seed=2)
    found = two_populations(moved, given, seed=0)
    assert found.labels == (0,)
    assert found.flagged.sum() == found.flagged[rows].sum() == count


@pytest.mark.parametrize("sizes", [(120,) * K, (300, 200, 150, 60, 40, 30)])
@pytest.mark.parametrize("share", [0.05, 0.1, 0.2])
def test_wrong_labels_in_all_classes_are_no_backdoor(share: float, sizes: tuple[int, ...]) -> None:
    """In a small class they may be many of the label, though no more than in any other."""
    drawn = np.random.default_rng(3)
    labels = np.repeat(np.arange(K), sizes).astype(np.int64)
    features = (8 * np.eye(K, AXES)[labels] + drawn.normal(size=(len(labels), AXES))).astype(np.float32)
    given = np.where(drawn.random(len(labels)) < share, drawn.integers(0, K, len(labels)), labels)
    assert two_populations(features, given, seed=0).labels == ()


@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize("count", [60, 240])
def test_who_is_foreign_is_told_though_nothing_divides_a_label(shift: float, count: int) -> None:
    """As suspects: the classes lie so close to each other that features cannot tell them for sure."""
    features, labels = classes(1, distance=3.0)
    moved, given, rows = mislabel(features, labels, target=0, count=count, shift=shift, seed=2)
    found = two_populations(moved, given, seed=0)
    assert found.labels == () and not found.flagged.any()
    assert found.blurred[rows].mean() > 0.95 and found.blurred.sum() < 1.05 * count


def test_too_few_other_labels_give_no_verdict() -> None:
    features, labels = classes(7, n_classes=3)
    moved, given, _ = mislabel(features, labels, target=0, count=40, shift=8.0, seed=8)
    found = two_populations(moved, given, seed=0)
    assert found.labels == () and found.gains == {}


def test_the_order_of_the_rows_does_not_matter() -> None:
    features, labels = classes(9)
    moved, given, _ = mislabel(features, labels, target=3, count=60, shift=8.0, seed=10)
    order = np.random.default_rng(11).permutation(len(labels))
    found, shuffled = two_populations(moved, given, seed=0), two_populations(moved[order], given[order], seed=0)
    assert found.labels == shuffled.labels == (3,)
    np.testing.assert_array_equal(found.flagged[order], shuffled.flagged)


def test_features_none_of_which_varies_tell_nothing() -> None:
    labels = np.arange(60) % 2
    assert two_populations(np.ones((60, 4), dtype=np.float32), labels, seed=0).labels == ()


def test_features_that_never_vary_do_no_harm() -> None:
    features, labels = classes(12)
    moved, given, rows = mislabel(features, labels, target=5, count=60, shift=8.0, seed=13)
    constant = np.concatenate([moved, np.ones((len(moved), 3), dtype=np.float32)], axis=1)
    found = two_populations(constant, given, seed=0)
    assert found.labels == (5,)
    assert found.flagged[rows].mean() > 0.98


@pytest.mark.parametrize("shift", [0.0, 3.0])
@pytest.mark.parametrize("count", [15, 60, 120])
def test_strangers_are_found_with_or_without_a_common_shift(count: int, shift: float) -> None:
    features, labels = classes(14)
    moved, given, rows = mislabel(features, labels, target=2, count=count, shift=shift, seed=15)
    found = strangers(moved, given, seed=0)
    assert found.labels == (2,)
    truth = np.zeros(len(labels), dtype=bool)
    truth[rows] = True
    assert (truth & ~found.flagged).sum() <= 1 and (found.flagged & ~truth).sum() <= 1


def test_rare_strangers_are_told_by_their_neighbors() -> None:
    """Twelve in a label of 600 explain too little of it; nor does a label that holds two kinds of its own hide them."""
    drawn = np.random.default_rng(4)
    labels = np.repeat(np.arange(K), 600).astype(np.int64)
    features = 8 * np.eye(K, AXES)[labels] + drawn.normal(size=(len(labels), AXES))
    features[:300, -1] += 6
    given = labels.copy()
    rows = drawn.choice(np.flatnonzero(labels != 0), 12, replace=False)
    given[rows] = 0
    features = features.astype(np.float32)
    by_mixtures = strangers(features, given, seed=0)
    assert by_mixtures.labels == ()
    found = with_strange(by_mixtures, features, given, seed=0)
    assert found.labels == (0,) and np.flatnonzero(found.flagged).tolist() == sorted(rows.tolist())
    assert with_strange(by_mixtures, features, labels, seed=0).labels == ()


def test_faint_strangers_are_found_if_another_witness_names_them_and_hardly_any_others() -> None:
    features, labels = classes(14, distance=4.0)
    moved, given, rows = mislabel(features, labels, target=2, count=15, shift=0.0, seed=15)
    named = np.isin(np.arange(len(labels)), rows)
    one_in_two = named | ((given == 2) & (np.arange(len(labels)) % 2 == 0))
    found = strangers(moved, given, seed=0, apart=named)
    np.testing.assert_array_equal(found.flagged, named)
    for nothing_new in (None, one_in_two, np.zeros_like(named)):
        assert strangers(moved, given, seed=0, apart=nothing_new).labels == ()


def test_where_another_witness_is_asked_loud_strangers_alone_are_no_evidence() -> None:
    features, labels = classes(14)
    moved, given, rows = mislabel(features, labels, target=2, count=60, shift=0.0, seed=15)
    named = np.isin(np.arange(len(labels)), rows)
    for apart, known in ((None, ()), (named, ()), (~named, (2,))):
        assert strangers(moved, given, seed=0, apart=apart, known=known).labels == (2,)
    assert strangers(moved, given, seed=0, apart=~named).labels == ()
    assert strangers(moved, given, seed=0, apart=~named, known=(3,)).labels == ()


@pytest.mark.parametrize("seed", range(4))
def test_another_witness_alone_is_no_evidence(seed: int) -> None:
    """Half of a clean label is set apart, as genuine subclasses are."""
    features, labels = classes(seed, distance=4.0)
    assert strangers(features, labels, seed=seed, apart=np.arange(len(labels)) % 2 == 0).labels == ()
    nearer = features[:, 0] > np.median(features[:, 0])
    assert strangers(features, labels, seed=seed, apart=nearer).labels == ()


@pytest.mark.parametrize("distance", [2.0, 4.0, 8.0])
@pytest.mark.parametrize("seed", range(4))
def test_clean_labels_hold_no_strangers_however_well_they_are_told_apart(seed: int, distance: float) -> None:
    features, labels = classes(seed, distance=distance)
    assert strangers(features, labels, seed=seed).labels == ()


def test_mistakes_in_most_labels_are_no_attack() -> None:
    features, labels = classes(16)
    given, rng = labels.copy(), np.random.default_rng(17)
    rows = rng.choice(len(labels), len(labels) // 5, replace=False)
    given[rows] = rng.integers(0, K, len(rows))
    found = strangers(features, given, seed=0)
    assert max(found.gains.values()) > 20, "the mistakes are seen, or the test shows nothing"
    assert found.labels == () and not found.flagged.any()


def test_samples_of_one_class_under_another_label_are_not_told_from_a_subclass() -> None:
    features, labels = classes(18)
    given = labels.copy()
    given[np.flatnonzero(labels == 0)[:40]] = 1
    assert strangers(features, given, seed=0).labels == ()


def test_wide_features_are_looked_at_along_their_strongest_directions() -> None:
    features, labels = classes(19)
    moved, given, rows = mislabel(features, labels, target=2, count=40, shift=0.0, seed=20)
    noise = np.random.default_rng(21).normal(size=(len(labels), 300)).astype(np.float32)
    wide = np.concatenate([moved, 0.1 * noise], axis=1)
    found = strangers(wide, given, seed=0)
    assert found.labels == (2,) and found.flagged[rows].mean() > 0.95


def test_the_smaller_group_of_a_label_is_set_apart_wherever_it_comes_from() -> None:
    features, labels = classes(6)
    moved, given = features.copy(), labels.copy()
    rows = np.flatnonzero(labels == 3)[:40]
    given[rows] = 0
    moved[rows] += np.full(AXES, 8 / np.sqrt(AXES), dtype=np.float32)
    suspicion = smaller_groups(moved, given, seed=0)
    of_label = given == 0
    poisoned = np.isin(np.arange(len(given)), rows)
    assert suspicion[poisoned].min() > 0 > suspicion[of_label & ~poisoned].max()
    for label in range(K):
        assert (suspicion[given == label] > 0).mean() <= 0.5


def test_no_group_is_set_apart_where_there_is_nothing_to_measure_it_by() -> None:
    features, labels = classes(7, n_classes=3)
    assert not smaller_groups(features, labels, seed=0).any()
    features, labels = classes(7)
    rare = np.concatenate([np.flatnonzero(labels != 2), np.flatnonzero(labels == 2)[:10]])
    suspicion = smaller_groups(features[rare], labels[rare], seed=0)
    assert not suspicion[labels[rare] == 2].any() and suspicion[labels[rare] == 1].any()


def test_a_gain_that_a_label_without_a_second_population_has_as_well_is_no_evidence() -> None:
    """As among near copies; here, large labels hold so few samples of each other that they are no evidence."""
    drawn = np.random.default_rng(1)
    labels = np.repeat(np.arange(K), [120] + [1200] * (K - 1)).astype(np.int64)
    features = (8 * np.eye(K, AXES)[labels] + drawn.normal(size=(len(labels), AXES))).astype(np.float32)
    moved, given, rows = mislabel(features, labels, target=0, count=20, shift=8.0, seed=2)
    assert two_populations(moved, given, seed=0).labels == (0,)
    free = np.setdiff1d(np.flatnonzero(given != 0), rows)
    mistaken = drawn.choice(free, 40 * (K - 1), replace=False)
    given[mistaken] = 1 + (given[mistaken] + drawn.integers(0, K - 2, len(mistaken))) % (K - 1)
    beside = two_populations(moved, given, seed=0)
    assert max(beside.gains[label] for label in range(1, K)) > beside.gains[0] > LEAST_GAIN
    assert beside.labels == () and not beside.flagged.any() and not beside.blurred.any()


def faint(seed: int, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Classes that hardly differ, each along an axis of its own, 200 samples of them under label 0, moved by a trigger.

    The trigger is stronger in some than in others, by `spread`, along an axis that tells no classes.
    """
    rng = np.random.default_rng(seed)
    true = np.repeat(np.arange(K), 300)
    features = rng.normal(size=(len(true), AXES))
    features[np.arange(len(true)), true] += 3.0
    rows = rng.choice(np.flatnonzero(true > 0), 200, replace=False)
    features[rows, AXES - 1] += rng.normal(3.0, spread, len(rows))
    given = true.copy()
    given[rows] = 0
    return features.astype(np.float32), given, np.isin(np.arange(len(true)), rows)


@pytest.mark.parametrize(("sizes", "is_told"), [((300,) * 5, True), ((1500, 60, 40, 30, 20), False)])
def test_nothing_is_carried_where_nearly_all_others_are_of_one_label(sizes: tuple[int, ...], is_told: bool) -> None:
    """Their mixture is that one label and a few outliers, as many an honest group is."""
    rng = np.random.default_rng(2)
    true = np.repeat(np.arange(K), [600, *sizes])
    features = (6 * np.eye(K, AXES)[true] + rng.normal(size=(len(true), AXES))).astype(np.float32)
    moved = np.isin(np.arange(len(true)), rng.choice(np.flatnonzero(true > 0), 150, replace=False))
    given = np.where(moved, 0, true)
    carried = Constellations(features, given, seed=0).carried(0, moved)
    assert (carried.strength == 1) == is_told
    assert is_told or carried.gain == 0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spread", [0.0, 3.0])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_a_known_group_tells_whose_content_it_carries_where_classes_hardly_differ(
    seed: int, spread: float, share: float
) -> None:
    features, given, moved = faint(seed, spread)
    group = moved & (np.random.default_rng(9).random(len(given)) < share)
    carried = Constellations(features, given, seed=0).carried(0, group)
    assert carried.strength == 1 and 0.7 < carried.content < 1.3


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("label", [0, 3])
def test_a_style_of_the_label_carries_no_content_of_others(seed: int, label: int) -> None:
    """Neither a random part of it, nor all that is moved along some direction, nor what is narrower or wider."""
    features, given, moved = faint(seed)
    of_label = (given == label) & ~moved
    half = of_label & (np.arange(len(given)) % 2 == 0)
    features[half] = 1.5 * features[half] + np.linspace(0, 2, AXES, dtype=np.float32)
    constellations = Constellations(features, given, seed=0)
    low = of_label & (features[:, AXES - 2] < 0)
    assert all(constellations.carried(label, group).strength < 0.3 for group in (half, low))


def test_too_small_a_group_or_too_few_other_labels_carry_nothing() -> None:
    features, given, moved = faint(0)
    few = moved & (np.cumsum(moved) <= 3)
    assert Constellations(features, given, seed=0).carried(0, few) == (0.0, 0.0)
    three = given < 3
    assert Constellations(features[three], given[three], seed=0).carried(0, moved[three]) == (0.0, 0.0)
    everyone = given == 0
    assert Constellations(features, given, seed=0).carried(0, everyone) == (0.0, 0.0)
