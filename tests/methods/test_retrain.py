"""Any detector as a defense: what is dropped, what a detector is given, and what a person decides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from noisy import RECIPE, builder, check_resume, noisy, outcome, poisoned

from antibackdoor.data.samples import Samples
from antibackdoor.defenses import Retrain, Undefended
from antibackdoor.detectors import DETECTORS, LossDrop
from antibackdoor.errors import ConfigError, DataError
from antibackdoor.protocols import DECISION, ISOLATED, KEPT, NO_CRITERION, SCORE, Given, Verdict


@pytest.mark.parametrize(("detector", "kind", "n_trainings"), [("spectral", "image", 2), ("loss-drop", "series", 2)])
def test_resume(detector: str, kind: str, n_trainings: int) -> None:
    samples = noisy(kind, 40, 3)
    result = check_resume(Retrain(detector=detector, drop_rate=0.2), samples)
    assert result.facts.n_dropped == result.verdict.isolated.sum() == 8
    assert result.facts.n_trainings == n_trainings and len(result.history) == 1 + 2 * RECIPE.epochs
    assert (result.verdict.suggested_label == samples.labels).all()
    assert set(result.verdict.criterion[result.verdict.isolated]) == {SCORE}


def test_the_most_suspicious_are_dropped_and_never_trained_on() -> None:
    samples = noisy("series", 40, 3)
    result = Retrain(detector="loss-drop", drop_rate=0.25).train(samples, builder(samples), RECIPE)
    isolated, suspicion = result.verdict.isolated, result.verdict.suspicion
    assert suspicion[isolated].min() >= suspicion[~isolated].max()
    plain = Undefended().train(samples, builder(samples), RECIPE)
    seen = LossDrop().detect(samples, Given(history=plain.history), RECIPE).verdict.suspicion
    first = result.history.losses[: 1 + RECIPE.epochs]
    assert first.tobytes() == plain.history.losses.tobytes() and seen.tobytes() == suspicion.tobytes()
    later = result.history.losses[1 + RECIPE.epochs :]
    assert (later[:, isolated] == first[-1, isolated]).all() and (later[:, ~isolated] != first[-1, ~isolated]).all()


def test_without_a_share_the_detector_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = noisy("series", 40, 3)
    method = Retrain(detector="loss-drop", drop_rate=0.0)
    assert method.train(samples, builder(samples), RECIPE).facts.n_dropped == 0  # it only ranks

    def detect(_self: Any, samples: Samples, *_others: Any, **_named: Any) -> Any:
        verdict = Verdict.isolating(np.arange(40.0), np.arange(40) % 5 == 0, samples, poisoned=True, target_labels=(1,))
        return type("Found", (), {"verdict": verdict})

    monkeypatch.setattr(LossDrop, "detect", detect)
    result = method.train(samples, builder(samples), RECIPE)
    assert np.flatnonzero(result.verdict.isolated).tolist() == list(range(0, 40, 5))
    assert result.verdict.poisoned is True and result.verdict.target_labels == (1,)


def decisions(rejected: list[int], trusted: list[int]) -> Verdict:
    status, criterion = np.full(40, KEPT, np.uint8), np.full(40, NO_CRITERION, np.uint8)
    status[rejected], criterion[[*rejected, *trusted]] = ISOLATED, DECISION
    return Verdict(np.zeros(40), status, np.zeros(40, np.int64), criterion)


def test_a_person_wins() -> None:
    samples = noisy("series", 40, 3)
    method = Retrain(detector="loss-drop", drop_rate=0.25)
    alone = method.train(samples, builder(samples), RECIPE).verdict
    spared, refused = np.flatnonzero(alone.isolated)[:3].tolist(), np.flatnonzero(~alone.isolated)[:2].tolist()
    given = Given(decisions=decisions(refused, spared))
    result = method.train(samples, builder(samples), RECIPE, given=given)
    assert result.verdict.isolated[refused].all() and not result.verdict.isolated[spared].any()
    assert result.facts.n_dropped == 10 - 3 + 2
    assert set(result.verdict.criterion[refused]) == {DECISION}


def test_a_detector_with_a_rule_as_a_defense() -> None:
    data = poisoned("series", 400, 4)
    result = Retrain(detector="activation-clustering", drop_rate=0.0).train(
        data.samples, builder(data.samples), replace(RECIPE, epochs=6, learning_rate=0.05)
    )
    made = outcome(result, data)
    assert made.recall > 0.5 and made.false_alarms < 0.1 and made.accuracy > 0.5


def test_refusals() -> None:
    samples = noisy("series", 40, 3)
    with pytest.raises(ConfigError, match="detector is 'nonsense'; choose one of activation-clustering"):
        Retrain(detector="nonsense").train(samples, builder(samples), RECIPE)
    with pytest.raises(ConfigError, match=r"drop_rate is 1\.0"):
        Retrain(drop_rate=1.0).train(samples, builder(samples), RECIPE)
    with pytest.raises(ConfigError, match="cannot use clean"):
        Retrain(detector="loss-drop").train(samples, builder(samples), RECIPE, given=Given(clean=samples))
    with pytest.raises(DataError, match="2 samples are left"):
        Retrain(detector="loss-drop", drop_rate=0.95).train(samples, builder(samples), RECIPE)
    with pytest.raises(DataError, match="40 samples, the data have 20"):
        few = noisy("series", 20, 3)
        Retrain().train(few, builder(few), RECIPE, given=Given(decisions=decisions([], [])))
    assert "clean" in DETECTORS["scan"].needs
    with pytest.raises(ConfigError, match="needs clean: give --clean"):
        Retrain(detector="scan").train(samples, builder(samples), RECIPE)
