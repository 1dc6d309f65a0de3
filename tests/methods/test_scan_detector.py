"""SCAn: its model with numbers, and a backdoored model."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from backdoored import RECIPE, TARGET, scene

from antibackdoor.detectors import SCAn
from antibackdoor.errors import DataError
from antibackdoor.protocols import Given
from antibackdoor.statistics.scan_model import (
    SharedVariation,
    anomalies,
    fit_shared_variation,
    posterior_means,
    split_label,
)


def drawn(
    n: int, n_labels: int, d: int, *, between: float, seed: int = 0
) -> tuple[np.ndarray[tuple[int, int], np.dtype[np.float64]], np.ndarray[tuple[int], np.dtype[np.int64]]]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n, dtype=np.int64) % n_labels
    centers = between * rng.standard_normal((n_labels, d))
    return centers[labels] + rng.standard_normal((n, d)), labels


def standard(d: int, between: float = 100.0) -> SharedVariation:
    """Of unit variation within classes."""
    return SharedVariation(np.zeros(d), np.eye(d), between * np.eye(d), np.eye(d))


def test_the_posterior_mean_by_hand() -> None:
    # n S_u + S_e = 3 * 2 + 3 = 9, and S_u / 9 * 12 = 8 / 3; with n = 1: 2 / 5 * 5 = 2.
    means = posterior_means(np.array([[12.0], [5.0]]), np.array([3, 1]), np.array([[2.0]]), np.array([[3.0]]))
    assert means.ravel() == pytest.approx([8 / 3, 2.0])
    # The same as S_e (n S_u + S_e)^-1 S_u F sum x, as the paper has it.
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 4, 4))
    between, within, total = a @ a.T, b @ b.T, rng.standard_normal(4)
    paper = within @ np.linalg.inv(7 * between + within) @ between @ np.linalg.inv(within) @ total
    assert posterior_means(total[None], np.array([7]), between, within)[0] == pytest.approx(paper)


def test_a_large_class_has_its_own_mean() -> None:
    x = np.full((5000, 2), [3.0, -1.0])
    means = posterior_means(x.sum(0)[None], np.array([5000]), np.eye(2), 4 * np.eye(2))
    assert means[0] == pytest.approx([3.0, -1.0], abs=0.01)


def test_em_finds_both_covariances() -> None:
    features, labels = drawn(6000, 60, 4, between=3.0)
    shared = fit_shared_variation(features, labels, most_dimensions=4)
    assert shared.n_dimensions == 4
    scale = 1 / np.linalg.norm(shared.axes[0])  # one for all axes
    assert np.diag(shared.within) * scale**2 == pytest.approx(np.ones(4), rel=0.1)
    # Four variances of 60 class means each.
    assert np.diag(shared.between).mean() * scale**2 == pytest.approx(9.0, rel=0.4)


def test_few_clean_samples_allow_few_dimensions() -> None:
    features, labels = drawn(50, 4, 30, between=2.0)
    assert fit_shared_variation(features, labels, most_dimensions=64).n_dimensions == (50 - 4) // 5
    assert fit_shared_variation(features[:7], labels[:7], most_dimensions=64).n_dimensions == 1
    with pytest.raises(DataError, match="at least 6"):
        fit_shared_variation(features[:5], labels[:5], most_dimensions=64)
    with pytest.raises(DataError, match="same features"):
        fit_shared_variation(np.ones((40, 3)), labels[:40], most_dimensions=2)


def test_dead_features_do_no_harm() -> None:
    features, labels = drawn(300, 3, 4, between=2.0)
    padded = np.hstack([features, np.zeros((300, 5)), np.full((300, 2), 7.0)]).astype(np.float32)
    shared = fit_shared_variation(padded, labels, most_dimensions=64)
    assert shared.n_dimensions == 4
    split = split_label(shared.reduced(padded[labels == 0]), shared, seed=0)
    assert math.isfinite(split.gain) and np.isfinite(split.ratios).all()


def test_a_split_by_hand() -> None:
    # Ten at -2 and ten at 2 in one dimension: two means explain 4 of a variance of 4.
    x = np.repeat([[-2.0], [2.0]], 10, axis=0)
    split = split_label(x, standard(1), seed=0)
    assert len(set(split.in_second[:10])) == len(set(split.in_second[10:])) == 1
    assert split.in_second[0] != split.in_second[-1]
    by_chance = 2 / math.pi * (1 + math.sqrt(1 / 20)) ** 2
    assert split.gain == pytest.approx(4 / by_chance)
    assert np.abs(split.ratios) == pytest.approx(np.full(20, 16.0))  # (2 + 2)^2 - 0
    assert (np.sign(split.ratios) == np.where(split.in_second, 1, -1)).all()


@pytest.mark.parametrize("n", [25, 100, 1000])
def test_one_normal_group_gains_about_one_whatever_its_size(n: int) -> None:
    rng = np.random.default_rng(n)
    gains = [split_label(rng.standard_normal((n, 64)), standard(64), seed=0).gain for _ in range(3)]
    assert np.mean(gains) == pytest.approx(1.0, abs=0.15)


def test_anomalies_lie_above_only() -> None:
    found = anomalies(np.array([1.0, 2.0, 3.0, 4.0, 20.0, np.nan, -20.0]))
    # The median of the known is 2.5, their absolute deviations 1.5 0.5 0.5 1.5 17.5 22.5: the median of these is 1.5.
    assert found[4] == pytest.approx(17.5 / (1.4826 * 1.5), rel=1e-3)
    assert found[6] < 0 and np.isnan(found[5])
    assert np.isnan(anomalies(np.array([1.0, 9.0]))).all()
    assert np.isnan(anomalies(np.array([1.0, 1.0, 1.0, 9.0]))).all()


@pytest.mark.parametrize("kind", ["image", "series"])
def test_poison_is_isolated_and_ranks_first(kind: str) -> None:
    here = scene(kind)
    detection = SCAn().detect(here.samples, Given(model=here.model, clean=here.clean), RECIPE)
    verdict, poisoned = detection.verdict, here.is_poisoned
    assert verdict.poisoned and verdict.target_labels == (TARGET,)
    assert (verdict.isolated == poisoned).mean() > 0.98
    assert np.quantile(verdict.suspicion[poisoned], 0.1) > verdict.suspicion[~poisoned].max()
    assert detection.facts.largest_anomaly > math.exp(2) and detection.facts.n_labels_flagged == 1


def test_clean_data_pass() -> None:
    here = scene("image", rate=0.0)
    detection = SCAn().detect(here.samples, Given(model=here.model, clean=here.clean), RECIPE)
    assert detection.verdict.poisoned is False and not detection.verdict.isolated.any()


def test_two_labels_cannot_be_judged() -> None:
    here = scene("image")
    rows, clean = here.samples.labels < 2, here.clean.labels < 2
    given = Given(model=here.model, clean=here.clean.take(clean))
    detection = SCAn().detect(here.samples.take(rows), given, RECIPE)
    assert detection.verdict.poisoned is None and detection.facts.largest_anomaly is None
    assert not detection.verdict.isolated.any() and detection.verdict.suspicion.any()


def test_samples_of_small_labels_rank_last() -> None:
    here = scene("image")
    small = here.samples.labels == 2
    rows = np.flatnonzero(~small | (np.cumsum(small) <= 4))
    given = Given(model=here.model, clean=here.clean.take(np.flatnonzero(here.clean.labels != 2)))
    samples = here.samples.take(rows)
    verdict = SCAn().detect(samples, given, RECIPE).verdict
    skipped = samples.labels == 2
    assert verdict.unexamined == (2,) and skipped.sum() == 4 and verdict.suspicion[~skipped].min() < 0
    assert (verdict.suspicion[skipped] == verdict.suspicion[~skipped].min()).all()


def test_the_group_with_fewer_clean_samples_is_the_suspected_one() -> None:
    """Even where it is the larger one: three quarters of the label are poisoned."""
    here = scene("image")
    keep = here.is_poisoned | (here.samples.labels != TARGET) | (np.cumsum(here.samples.labels == TARGET) <= 22)
    heavy = here.samples.take(keep)
    detection = SCAn().detect(heavy, Given(model=here.model, clean=here.clean), RECIPE)
    poisoned = here.is_poisoned[keep]
    assert poisoned[heavy.labels == TARGET].mean() > 0.6
    assert detection.verdict.isolated[poisoned].mean() > 0.9 and detection.verdict.isolated[~poisoned].mean() < 0.05


def test_clean_samples_of_another_kind_are_refused() -> None:
    here = scene("image")
    other = dataclasses.replace(here.clean, inputs=here.clean.inputs[:, :, :6])
    with pytest.raises(DataError, match="shape"):
        SCAn().detect(here.samples, Given(model=here.model, clean=other), RECIPE)
    renamed = dataclasses.replace(here.clean, class_names=np.array(["a", "b", "c", "d"]))
    with pytest.raises(DataError, match="classes"):
        SCAn().detect(here.samples, Given(model=here.model, clean=renamed), RECIPE)
