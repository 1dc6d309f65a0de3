"""Activation clustering: numbers, and a backdoored model."""

from __future__ import annotations

import numpy as np
import pytest
from backdoored import RECIPE, TARGET, scene

from antibackdoor.detectors import ActivationClustering
from antibackdoor.errors import ConfigError
from antibackdoor.protocols import Given
from antibackdoor.statistics.activation_clusters import COMPARED, two_clusters


def test_the_score_is_the_silhouette_times_the_difference_of_distances() -> None:
    # Three points around 0 and one at 10: centers 0 and 10.
    clusters = two_clusters(np.array([[-1.0], [0.0], [1.0], [10.0]]), n_components=1, seed=0)
    assert clusters.is_smaller.tolist() == [False, False, False, True]
    assert clusters.share == 0.25
    # Silhouette of the points in the larger one: 1 - (mean distance within) / (distance to 10); 0 for one alone.
    silhouette = np.mean([1 - 1.5 / 11, 1 - 1.0 / 10, 1 - 1.5 / 9, 0.0])
    assert clusters.silhouette == pytest.approx(silhouette)
    assert clusters.scores == pytest.approx(silhouette * np.array([1 - 11, 0 - 10, 1 - 9, 10 - 0]))


def test_alike_samples_have_no_clusters() -> None:
    clusters = two_clusters(np.ones((30, 4), dtype=np.float32), n_components=10, seed=0)
    assert not clusters.is_smaller.any() and not clusters.scores.any() and clusters.share == 0


def test_only_the_leading_components_count() -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((200, 40))
    features[:40, 7] += 12
    assert two_clusters(features, n_components=1, seed=0).is_smaller.nonzero()[0].tolist() == list(range(40))


def test_a_tiny_cluster_among_many_samples_is_compared_too() -> None:
    features = np.random.default_rng(0).standard_normal((COMPARED + 500, 3))
    features[17] = 1e3
    clusters = two_clusters(features, n_components=3, seed=0)
    assert clusters.is_smaller.sum() == 1 and clusters.silhouette > 0.9


@pytest.mark.parametrize("kind", ["image", "series"])
def test_poison_is_the_smaller_cluster_of_its_label(kind: str) -> None:
    here = scene(kind)
    detection = ActivationClustering(largest_share=0.5).detect(here.samples, Given(model=here.model), RECIPE)
    verdict, poisoned = detection.verdict, here.is_poisoned
    assert verdict.poisoned and TARGET in verdict.target_labels
    of_target = here.samples.labels == TARGET
    assert (verdict.isolated == poisoned)[of_target].mean() > 0.8
    ranked = verdict.suspicion[of_target]
    assert ranked[poisoned[of_target]].min() > np.median(ranked[~poisoned[of_target]])
    assert detection.facts.n_labels == 4 and detection.verdict.unexamined == ()


def test_the_rule_asks_for_a_small_cluster_and_a_gap() -> None:
    here = scene("image")
    given = Given(model=here.model)
    for strict in (ActivationClustering(largest_share=0.01), ActivationClustering(least_silhouette=1.0)):
        verdict = strict.detect(here.samples, given, RECIPE).verdict
        assert not verdict.isolated.any() and verdict.poisoned is False and verdict.target_labels == ()
        assert verdict.suspicion.any()


def test_small_labels_are_skipped_and_counted() -> None:
    here = scene("image")
    rows = np.flatnonzero((here.samples.labels != 2) | (np.arange(len(here.samples)) < 40))
    few = here.samples.take(rows)
    detection = ActivationClustering().detect(few, Given(model=here.model), RECIPE)
    skipped = few.labels == 2
    assert detection.verdict.unexamined == (2,)
    suspicion = detection.verdict.suspicion
    assert suspicion[~skipped].min() < 0 and (suspicion[skipped] == suspicion[~skipped].min()).all(), "they rank last"
    tiny = here.samples.take(np.arange(12))
    assert ActivationClustering().detect(tiny, Given(model=here.model), RECIPE).verdict.poisoned is None


@pytest.mark.parametrize("wrong", [{"n_components": 0}, {"largest_share": 0.6}, {"least_silhouette": 1.5}])
def test_out_of_range(wrong: dict[str, float]) -> None:
    here = scene("image")
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ActivationClustering(**wrong).detect(here.samples, Given(model=here.model), RECIPE)  # type: ignore[arg-type]
