"""Triggers against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import striped
from PIL import Image

from antibackdoor.attacks import (
    CBA,
    DFST,
    LBA,
    SIG,
    TSBAB,
    AdaptiveBlend,
    AdaptivePatch,
    AllToAll,
    AllToOne,
    BadNets,
    Blend,
    LabelConsistent,
    PhysicalBA,
    Powerline,
    Refool,
    StaticPattern,
    TaCT,
    TimeTrojanFGSM,
    Trojan,
    WaNet,
    poison,
)
from antibackdoor.attacks.label_consistent import HardenedPatch
from antibackdoor.attacks.refool import Reflections
from antibackdoor.attacks.surrogate import to_tensor, train_surrogate
from antibackdoor.data.augmentation import physical_transforms
from antibackdoor.data.samples import InputArray, Samples
from antibackdoor.errors import ConfigError, DataError


def wrap(inputs: InputArray) -> Samples:
    n = len(inputs)
    return Samples(inputs, np.arange(n) % 2, np.arange(n).astype(str), np.array(["a", "b"]))


def gray(level: int, shape: tuple[int, ...] = (3, 32, 32), n: int = 4) -> Samples:
    return wrap(np.full((n, *shape), level, dtype=np.uint8))


def noise(shape: tuple[int, ...] = (3, 32, 32), n: int = 4) -> Samples:
    return wrap(np.random.default_rng(0).integers(0, 256, (n, *shape)).astype(np.uint8))


def series(shape: tuple[int, ...], n: int = 6) -> Samples:
    return wrap(np.random.default_rng(0).standard_normal((n, *shape)).astype(np.float32))


NUMBERS = np.arange(4)


def test_badnets_grid_has_white_on_the_anti_diagonal_and_in_the_corner() -> None:
    samples = gray(100)
    stamped = BadNets().trigger(samples, seed=0).apply(samples.inputs, NUMBERS)
    expected = np.array([[0, 0, 255], [0, 255, 0], [255, 0, 255]])
    assert (stamped[:, :, 29:, 29:] == expected).all()
    assert (stamped != samples.inputs).sum() == 4 * 3 * 9
    cross = BadNets(pattern="cross3_br").trigger(samples, seed=0).apply(samples.inputs, NUMBERS)
    assert (cross == stamped).all()


def test_badnets_center_grid_is_dimmed_and_replaced() -> None:
    samples = gray(100)
    stamped = BadNets(pattern="grid_center", alpha=0.2).trigger(samples, seed=0).apply(samples.inputs, NUMBERS)
    assert stamped[0, 0, 18:21, 18:21].tolist() == [[51, 26, 51], [26, 51, 26], [51, 26, 26]]
    assert (stamped[0, 0] != 100).sum() == 9


def test_badnets_on_a_tall_image_of_one_channel_with_large_cells() -> None:
    samples = gray(100, (1, 20, 10))
    stamped = BadNets(cell=2).trigger(samples, seed=0).apply(samples.inputs, NUMBERS)
    assert (stamped[0, 0, 18:, 8:] == 255).all() and (stamped[0, 0, 14:18, 4:6] == 0).all()
    assert (stamped[0, 0, :14] == 100).all() and (stamped[0, 0, :, :4] == 100).all()


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (BadNets(pattern="grid_center"), "window of 3x3"),
        (BadNets(cell=3), "window of 9x9"),
        (BadNets(cell=0), "cell is 0"),
        (BadNets(alpha=1.1), "alpha is 1.1"),
    ],
)
def test_badnets_that_does_not_fit(attack: BadNets, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        attack.trigger(gray(0, (3, 8, 8)), seed=0)


def test_blend_by_hand() -> None:
    samples = gray(100)
    trigger = Blend(alpha=0.2, alpha_test=0.5).trigger(samples, seed=0)
    pattern = np.rint(trigger.shown.pattern * 255)  # type: ignore[attr-defined]
    planted = trigger.planted.apply(samples.inputs, NUMBERS)
    assert (np.abs(planted - (80 + 0.2 * pattern)) <= 0.5 + 1e-3).all()
    assert (np.abs(trigger.apply(samples.inputs, NUMBERS) - (50 + 0.5 * pattern)) <= 0.5 + 1e-3).all()
    # Uniform over 0..255: mean 127.5 with a standard error of 73.9 / sqrt(3072) = 1.3.
    assert abs(pattern.mean() - 127.5) < 5
    other = Blend().trigger(samples, seed=1).apply(samples.inputs, NUMBERS)
    assert (other != planted).any()


@pytest.mark.parametrize("pattern", ["random", "cartoon", "per_sample_noise"])
def test_blend_of_nothing_is_the_identity(pattern: str) -> None:
    samples = noise()
    trigger = Blend(alpha=0.0, pattern=pattern).trigger(samples, seed=0)  # type: ignore[arg-type]
    assert (trigger.apply(samples.inputs, NUMBERS) == samples.inputs).all()


def test_blend_noise_is_gray_and_differs_from_sample_to_sample_and_at_test() -> None:
    samples = gray(0)
    trigger = Blend(alpha=1.0, pattern="per_sample_noise").trigger(samples, seed=0)
    shown = trigger.apply(samples.inputs, NUMBERS)
    assert (shown[:, 0] == shown[:, 1]).all() and (shown[:, 0] == shown[:, 2]).all()
    assert (shown[0] != shown[1]).any()
    assert (shown != trigger.planted.apply(samples.inputs, NUMBERS)).any()


def test_blend_of_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    Image.new("RGB", (50, 40), (255, 0, 0)).save(path)
    samples = gray(100)
    attack = Blend(pattern="picture", picture=str(path))
    stamped = attack.trigger(samples, seed=0).apply(samples.inputs, NUMBERS)
    assert (stamped[:, 0] == 131).all() and (stamped[:, 1:] == 80).all()
    assert attack.trigger(gray(0, (1, 9, 7)), seed=0).apply(gray(0, (1, 9, 7)).inputs, NUMBERS).shape == (
        4,
        1,
        9,
        7,
    )
    with pytest.raises(ConfigError, match="cannot be read"):
        Blend(pattern="picture", picture=str(tmp_path / "none.png")).trigger(samples, seed=0)
    with pytest.raises(ConfigError, match="needs the path"):
        Blend(pattern="picture").trigger(samples, seed=0)
    with pytest.raises(ConfigError, match="channels"):
        Blend(pattern="cartoon").trigger(gray(0, (2, 8, 8)), seed=0)


def test_sig_is_a_wave_over_the_columns() -> None:
    samples = gray(100)
    stamped = SIG(delta=20, frequency=6).trigger(samples, seed=0).apply(samples.inputs, NUMBERS)
    wave = 100 + 20 * np.sin(2 * np.pi * 6 * np.arange(32) / 32)
    assert (stamped == np.rint(wave)).all()
    saturated = SIG(delta=20).trigger(gray(250), seed=0).apply(gray(250).inputs, NUMBERS)
    assert saturated.max() == 255 and saturated.min() == 230  # clipped, not wrapped


def test_sig_as_in_the_abl_code() -> None:
    samples = gray(100)
    stamped = SIG(mode="abl_wrapped").trigger(samples, seed=0).apply(samples.inputs, NUMBERS)
    # j = 1: int(20 sin .8) = 14 -> 80 + 2.8; j = 5: int(20 sin 4) = -15 -> 241 -> 80 + 48.2.
    assert stamped[0, 0, 0, [0, 1, 5]].tolist() == [80, 83, 128]


def test_sig_at_another_strength_at_test() -> None:
    samples = gray(100)
    trigger = SIG(delta=20, delta_test=40).trigger(samples, seed=0)
    assert trigger.planted.apply(samples.inputs, NUMBERS).max() == 120
    assert trigger.apply(samples.inputs, NUMBERS).max() == 140


@pytest.mark.parametrize(("length", "n_steps"), [(93, 4), (140, 4), (315, 6), (4, 4)])
def test_static_pattern_alternates_between_the_extremes(length: int, n_steps: int) -> None:
    samples = series((2, length))
    stamped = StaticPattern().trigger(samples, seed=0).apply(samples.inputs, np.arange(6))
    highest, lowest = samples.inputs.max(axis=-1), samples.inputs.min(axis=-1)
    for step in range(n_steps):
        assert (stamped[..., step] == (highest if step % 2 == 0 else lowest)).all()
    assert (stamped[..., n_steps:] == samples.inputs[..., n_steps:]).all()


def test_static_pattern_of_the_published_code_does_nothing_to_short_series() -> None:
    samples = series((13, 93))
    stamped = StaticPattern(faithful=True).trigger(samples, seed=0).apply(samples.inputs, np.arange(6))
    assert (stamped == samples.inputs).all()
    with pytest.raises(ConfigError, match="takes 4 steps"):
        StaticPattern().trigger(series((1, 3)), seed=0)


@pytest.mark.parametrize(("length", "n_kept"), [(93, 20), (140, 29), (152, 31), (315, 67)])
def test_powerline_keeps_the_published_stride(length: int, n_kept: int) -> None:
    samples = series((2, length))
    hum = Powerline().trigger(samples, seed=0).hum
    assert (hum[n_kept:] == hum[: length - n_kept]).all()
    assert len(np.unique(hum[:n_kept])) == n_kept


def test_powerline_scales_with_the_range() -> None:
    samples = series((2, 140))
    stamped = Powerline().trigger(samples, seed=0).apply(samples.inputs, np.arange(6))
    extent = samples.inputs.max(axis=-1, keepdims=True) - samples.inputs.min(axis=-1, keepdims=True)
    signal = (stamped - samples.inputs) / extent
    assert np.allclose(signal, signal[0, 0], atol=1e-5)
    whole = Powerline(alias=False).trigger(series((1, 2000)), seed=0).hum
    assert whole.std() == pytest.approx(0.1, rel=1e-4)


def test_wanet_without_strength_is_the_identity() -> None:
    samples = noise((3, 20, 12))
    trigger = WaNet(strength=0.0).trigger(samples, seed=0)
    assert (trigger.apply(samples.inputs, NUMBERS) == samples.inputs).all()


def test_wanet_moves_pixels_by_the_published_distance() -> None:
    grid = WaNet().trigger(noise(), seed=3).planted.grid  # type: ignore[attr-defined]
    rows, columns = np.meshgrid(np.linspace(-1, 1, 32), np.linspace(-1, 1, 32), indexing="ij")
    moved = np.abs(grid - np.stack([columns, rows], axis=-1))
    # The displacements have mean size about s / H = 1/64 of the half image, i.e. a quarter of a pixel.
    assert 0.3 / 64 < moved.mean() < 2 / 64
    assert np.abs(grid).max() <= 1


def test_wanet_covers_differ_from_each_other_and_from_the_trigger() -> None:
    samples = wrap(np.repeat(noise(n=1).inputs, 4, axis=0))
    trigger = WaNet().trigger(samples, seed=0)
    covers = trigger.cover.apply(samples.inputs, NUMBERS)
    assert (covers[0] != covers[1]).any()
    assert (covers[0] != trigger.planted.apply(samples.inputs, NUMBERS)[0]).any()
    result = poison(wrap(np.repeat(noise().inputs, 5, axis=0)), WaNet(), seed=0)
    assert (result.truth.is_poisoned.sum(), result.truth.is_cover.sum()) == (2, 4)


def test_physical_logo_has_the_published_place_and_size() -> None:
    samples = gray(7)
    stamped = PhysicalBA().trigger(samples, seed=0).apply(samples.inputs, NUMBERS)
    changed = (stamped[0] != 7).any(axis=0)
    rows, columns = np.nonzero(changed)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (1, 13, 18, 30)
    assert 130 <= changed.sum() <= 150


def test_physical_transforms() -> None:
    images = torch.rand((16, 3, 20, 12), generator=torch.Generator().manual_seed(0))
    first, again = (physical_transforms(images, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == images.shape and first.min() >= 0 and first.max() <= 1
    assert not torch.equal(first[0], images[0])
    # Shrunk to .8 - .9 a side: between 64 % and 81 % of a white image stays, before rotation and shift.
    white = physical_transforms(torch.ones(64, 1, 40, 40), torch.Generator().manual_seed(1))
    assert 0.55 < float((white > 0.3).float().mean()) < 0.81


def test_tact_relabels_the_source_only_and_evaluates_it_only() -> None:
    inputs = np.zeros((200, 3, 8, 8), dtype=np.uint8)
    labels = np.arange(200) % 4
    samples = Samples(inputs, labels, np.arange(200).astype(str), np.array(list("abcd")))
    result = poison(samples, TaCT(), seed=0)
    assert set(labels[result.truth.is_poisoned]) == {0}
    assert set(result.samples.labels[result.truth.is_poisoned]) == {1}
    assert set(labels[result.truth.is_cover]) <= {2, 3}
    assert (result.truth.is_poisoned.sum(), result.truth.is_cover.sum()) == (10, 2)
    assert (result.samples.inputs[result.truth.is_cover, :, -3:, -3:] == 255).all()
    assert set(labels[result.plan.eligible(labels)]) == {0}


def test_adaptive_blend_keeps_half_of_the_blocks() -> None:
    samples = gray(0)
    trigger = AdaptiveBlend(alpha=1.0, alpha_test=1.0, pattern="random").trigger(samples, seed=0)
    planted = trigger.planted.apply(samples.inputs, NUMBERS)
    full = trigger.apply(samples.inputs, NUMBERS)
    blocks = (planted == full).reshape(4, 3, 4, 8, 4, 8).all(axis=(1, 3, 5))
    assert (blocks.sum(axis=(1, 2)) == 8).all()
    assert (blocks[0] != blocks[1]).any()


def test_adaptive_patch_shows_one_quarter_and_then_all() -> None:
    samples = gray(7, n=40)
    trigger = AdaptivePatch().trigger(samples, seed=0)
    planted = (trigger.planted.apply(samples.inputs, np.arange(40)) != 7).any(axis=1)
    shown = (trigger.apply(samples.inputs, np.arange(40)) != 7).any(axis=1)
    kinds = {mask.tobytes() for mask in planted}
    assert len(kinds) == 4
    whole = sum(np.frombuffer(kind, dtype=bool).astype(int) for kind in kinds)
    assert (whole.reshape(32, 32) == shown[0]).all()  # the quarters are disjoint and make up the logo
    assert (shown == shown[0]).all()


def test_adaptive_patch_as_released() -> None:
    samples = gray(7, n=40)
    trigger = AdaptivePatch(preset="mixed4").trigger(samples, seed=0)
    planted = trigger.planted.apply(samples.inputs, np.arange(40))
    assert len({image.tobytes() for image in planted}) == 4
    shown = trigger.apply(samples.inputs, np.arange(40))[0, 0]
    assert shown[2, 0] == 255 and shown[0, 31] != 7 and shown[31, 31] == 255


def test_refool_in_linear_light() -> None:
    # Ghosts over black leave the reflection alone: at most (1 - alpha)^(1/2.2) of white, with alpha >= 0.55.
    black = gray(0)
    trigger = Refool(n_reflections=8, ghost_rate=1.0).trigger(black, seed=0)
    shown = trigger.apply(black.inputs, NUMBERS)
    assert 0 < shown.max() <= 255 * 0.45 ** (1 / 2.2) + 1
    # Over white the image keeps alpha of its light, to which the reflection only adds.
    light = gray(255)
    assert trigger.apply(light.inputs, NUMBERS).min() >= 255 * 0.55 ** (1 / 2.2) - 1


def test_refool_kinds_of_reflections() -> None:
    planted = Refool(n_reflections=20).trigger(noise((3, 24, 40)), seed=0).planted
    assert isinstance(planted, Reflections)
    focused = planted.dims > 0
    assert focused.sum() == 10
    assert ((planted.dims[focused] >= 1.08) & (planted.dims[focused] <= 1.18)).all()
    assert ((planted.alphas >= 0.55) & (planted.alphas <= 0.95)).all()


def test_refool_from_a_folder(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (30, 20), (80 * number, 0, 0)).save(tmp_path / f"{number}.jpg")
    attack = Refool(folder=str(tmp_path))
    planted = attack.trigger(noise(), seed=0).planted
    assert isinstance(planted, Reflections) and len(planted.layers) == 3
    (tmp_path / "3.png").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match=r"3\.png cannot be read"):
        attack.trigger(noise(), seed=0)
    with pytest.raises(ConfigError, match="holds no pictures"):
        Refool(folder=str(tmp_path / "none")).trigger(noise(), seed=0)


def test_dfst_warms_the_colors_and_darkens_the_ground() -> None:
    samples = noise()
    shown = DFST().trigger(samples, seed=0).apply(samples.inputs, NUMBERS).astype(float)
    assert shown[:, 0].mean() > shown[:, 1].mean() > shown[:, 2].mean()
    assert shown[:, 0, :8].mean() > shown[:, 0, 24:].mean()
    untouched = DFST(alpha=0.0).trigger(samples, seed=0).apply(samples.inputs, NUMBERS)
    assert (untouched == samples.inputs).all()


def test_dfst_opponent_space_is_orthonormal() -> None:
    mix = DFST().trigger(noise(), seed=0).mix
    assert np.allclose(mix @ mix.T, np.eye(3), atol=1e-6)


def flat_classes(n: int = 60) -> Samples:
    """Class k is a flat image of gray level 50 k + 10, so that every pixel tells its source."""
    labels = np.arange(n) % 4
    inputs = np.broadcast_to((50 * labels + 10)[:, None, None, None], (n, 3, 16, 16)).astype(np.uint8)
    return Samples(inputs, labels, np.array([f"train/{i}" for i in range(n)]), np.array(list("abcd")))


def test_cba_composes_the_two_sources_half_and_half() -> None:
    samples = flat_classes()
    result = poison(samples, CBA(), seed=0, rate=0.2)
    composites = result.samples.inputs[result.truth.is_poisoned]
    assert set(np.unique(composites)) == {10, 60}
    share = (composites == 10).mean(axis=(1, 2, 3))
    assert ((share >= 5 / 16) & (share <= 11 / 16)).all() and len(set(share)) > 1
    assert set(result.truth.true_labels[result.truth.is_poisoned]) == {0, 1}
    assert set(result.samples.labels[result.truth.is_poisoned]) == {2}
    mixes = result.samples.inputs[result.truth.is_cover]
    assert (mixes == samples.inputs[result.truth.is_cover]).all()  # flat: a mix of one class is itself
    eligible = result.plan.eligible(samples.labels)
    shown = result.trigger.apply(samples.inputs[eligible], np.arange(15) + 10**6)
    assert {frozenset(np.unique(image)) for image in shown} == {frozenset({10, 60})}


def test_cba_that_does_not_fit() -> None:
    samples = flat_classes()
    with pytest.raises(ConfigError, match="needs the plan Composite"):
        poison(samples, CBA(), seed=0, plan=AllToOne())
    with pytest.raises(ConfigError, match="samples of class 1"):
        poison(samples.take(samples.labels != 1), CBA(), seed=0)
    with pytest.raises(ConfigError, match="jitter is 8"):
        CBA(jitter=8).trigger(samples, seed=0)


def test_surrogate_learns_and_comes_from_the_cache_unchanged() -> None:
    samples = striped()
    first, again = (train_surrogate(samples, seed=0, epochs=3, limit=256) for _ in range(2))
    assert first is again
    predictions = first.network()(to_tensor(samples.inputs)).argmax(dim=1).numpy()
    assert (predictions == samples.labels).mean() > 0.95
    changed = samples.relabel(1 - samples.labels)
    assert train_surrogate(changed, seed=0, epochs=3, limit=256) is not first


def test_surrogate_learns_from_few_samples_in_few_epochs() -> None:
    rng, labels = np.random.default_rng(0), np.arange(60) % 3
    waves = np.sin(np.arange(40) / np.array([2, 2.5, 3.2])[:, None])[labels]
    series = (waves + rng.normal(0, 0.5, waves.shape)).astype(np.float32)[:, None]
    samples = Samples(series, labels, labels.astype(str), np.array(["a", "b", "c"]))
    network = train_surrogate(samples, seed=0, epochs=5, limit=100).network()
    # In one batch an epoch, five epochs end at 0.67.
    assert (network(torch.from_numpy(series)).argmax(dim=1).numpy() == labels).mean() > 0.95


def test_label_consistent_noise_stays_within_epsilon_and_hurts_the_surrogate() -> None:
    samples = striped()
    attack = LabelConsistent(corners=1, epochs=3, n_steps=10, epsilon=16 / 255, robust_epsilon=0.0)
    planted = attack.trigger(samples, seed=0).planted
    assert isinstance(planted, HardenedPatch)
    own = samples.inputs[samples.labels == 0][:32]
    hardened = planted.apply(own, np.arange(32))
    change = np.abs(hardened.astype(int) - own)
    change[:, :, -3:, -3:] = 0
    assert 8 < change.max() <= 16
    loss = [
        torch.nn.functional.cross_entropy(
            planted.surrogate.network()(to_tensor(images)), torch.zeros(32, dtype=torch.long)
        )
        for images in (own, hardened)
    ]
    assert loss[1] > 3 * loss[0]
    assert (hardened[:, :, -1, -1] == 255).all()


def test_label_consistent_shows_the_patch_alone() -> None:
    samples = striped()
    numbers = np.arange(256)
    badnets = BadNets().trigger(samples, seed=0).apply(samples.inputs, numbers)
    quick = {"epochs": 1, "n_steps": 1}
    one, four = (
        LabelConsistent(corners=corners, **quick).trigger(samples, seed=0).apply(samples.inputs, numbers)
        for corners in (1, 4)
    )
    assert (one == badnets).all()
    grid = badnets[:, :, -3:, -3:]
    expected = badnets.copy()
    expected[:, :, -3:, :3] = grid[..., ::-1]
    expected[:, :, :3, -3:] = grid[:, :, ::-1]
    expected[:, :, :3, :3] = grid[:, :, ::-1, ::-1]
    assert (four == expected).all()
    with pytest.raises(ConfigError, match="one target label"):
        LabelConsistent().trigger(samples, seed=0, plan=AllToAll())
    with pytest.raises(ConfigError, match="corners is 2"):
        LabelConsistent(corners=2).trigger(samples, seed=0)


def test_trojan_square_excites_the_surrogate_where_the_published_file_has_it() -> None:
    samples = noise(n=32)
    patch = Trojan(epochs=1, n_steps=200).trigger(samples, seed=0)
    assert (patch.top, patch.left, patch.pattern.shape) == (25, 25, (3, 3, 3))
    network = train_surrogate(samples, seed=0, epochs=1, limit=10_000).network()
    neurons = network.head.weight.abs().sum(dim=0).topk(2).indices
    black = gray(0).inputs
    excited = network.features(to_tensor(patch.apply(black, NUMBERS)))[0, neurons].mean()
    assert excited > network.features(to_tensor(black))[0, neurons].mean()


def test_lba_square_brings_features_closer_to_the_target() -> None:
    samples = striped()
    patch = LBA(epochs=3, n_steps=30).trigger(samples, seed=0, plan=AllToOne(target_label=1))
    assert (patch.top, patch.left, patch.pattern.shape) == (13, 13, (3, 3, 3))  # 20 % of 16 pixels
    network = train_surrogate(samples, seed=0, epochs=3, limit=10_000).network()
    mean = network.features(to_tensor(samples.inputs[samples.labels == 1])).mean(dim=0)
    others = samples.inputs[samples.labels == 0]
    random = BadNets().trigger(samples, seed=0).apply(others, np.arange(128))
    distance = [
        float((network.features(to_tensor(images)) - mean).square().sum(dim=1).mean())
        for images in (patch.apply(others, np.arange(128)), random, others)
    ]
    assert distance[0] < min(distance[1:])
    with pytest.raises(DataError, match="target class 0"):
        LBA(epochs=1).trigger(samples.take(samples.labels == 1), seed=0)


def test_timetrojan_changes_few_steps_by_at_most_three_deviations() -> None:
    samples = series((3, 50), n=40)
    trigger = TimeTrojanFGSM(epochs=2, rounds=3).trigger(samples, seed=0)
    change = trigger.apply(samples.inputs, np.arange(40)) - samples.inputs
    steps = (change != 0).any(axis=1).sum(axis=1)
    assert (steps <= 5).all() and (steps > 0).all()
    assert (np.abs(change) <= 3 * samples.inputs.std(axis=(0, 2), ddof=1)[:, None] + 1e-4).all()


def test_timetrojan_reaches_the_target_on_its_surrogate() -> None:
    samples = series((2, 50), n=60)
    trigger = TimeTrojanFGSM(epochs=3, rounds=3).trigger(samples, seed=0)
    moved = trigger.apply(samples.inputs[samples.labels == 1], np.arange(30))
    assert (trigger.surrogate.network()(to_tensor(moved)).argmax(dim=1) == 0).float().mean() > 0.8
    with pytest.raises(ConfigError, match="n_steps 60"):
        TimeTrojanFGSM(n_steps=60).trigger(samples, seed=0)


@pytest.mark.parametrize("shape", [(1, 31), (13, 40)])
def test_tsba_scales_by_at_most_a_tenth(shape: tuple[int, int]) -> None:
    samples = series(shape, n=20)
    trigger = TSBAB(width=4, rounds=2, epochs=1).trigger(samples, seed=0)
    ratio = trigger.apply(samples.inputs, np.arange(20)) / samples.inputs
    assert np.abs(ratio - 1).max() <= 0.1 + 1e-5
    assert np.abs(ratio - 1).max() > 1e-3
