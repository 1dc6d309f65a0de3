"""AdvrBD: what is picked, learned and unlearned, when it falls back, and a backdoor that is not learned."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from noisy import RECIPE, builder, check_resume, noisy, outcome, poisoned
from torch import Tensor

from antibackdoor.defenses import AdvrBD
from antibackdoor.defenses.advrbd import _Run, log_odds, margin
from antibackdoor.detectors import PatchPerturbation
from antibackdoor.errors import ConfigError
from antibackdoor.protocols import ISOLATED, RELABELED
from antibackdoor.training.journal import NoJournal
from antibackdoor.training.session import Batch
from antibackdoor.training.trainer import Trainer

QUICK: dict[str, Any] = {"short_epochs": 1, "rounds": 2, "partition_rate": 0.1, "round_epochs": 1}


def run_of(method: AdvrBD, n: int = 40, kind: str = "series") -> _Run:
    samples = noisy(kind, n, 3)
    return _Run(method, Trainer(samples, RECIPE), builder(samples))


def test_margins_by_hand() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 1.0, -2.0]])
    assert margin(logits, torch.tensor([2, 0])).tolist() == [-1.0, 4.0]


def test_log_odds_rank_as_losses_do_where_those_are_rounded_to_zero() -> None:
    logits, labels = torch.tensor([[1.0, 3.0, 2.0], [40.0, 0.0, 0.0], [50.0, 0.0, 0.0]]), torch.tensor([2, 0, 0])
    losses = F.cross_entropy(logits, labels, reduction="none")
    odds = log_odds(logits, labels).tolist()
    assert odds[0] == pytest.approx(-math.log(math.exp(losses[0].item()) - 1), abs=1e-5)
    assert losses.tolist()[1:] == [0, 0] and odds[1] < odds[2]


def test_learning_and_unlearning_by_hand() -> None:
    run = run_of(AdvrBD(ascent_weight=0.5, ascent_bound=1.0))
    probability = torch.tensor([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1], [0.2, 0.2, 0.6], [0.9, 0.05, 0.05]])
    logits = probability.log().requires_grad_()
    run.enhanced = lambda _inputs: logits  # type: ignore[assignment]
    pool = np.zeros(40, dtype=bool)
    pool[[11, 13]] = True
    batch = Batch(torch.zeros(4, 1, 8), torch.tensor([0, 0, 1, 2]), torch.tensor([10, 11, 12, 13]))
    weighted, recorded = run._forgetting(pool)(batch)
    losses = [-math.log(value) for value in (0.5, 0.8, 0.2, 0.05)]
    assert recorded.tolist() == pytest.approx(losses)
    descent, ascent = (losses[0] + losses[2]) / 2, (losses[1] + math.log(3)) / 2  # the last one is at its bound
    assert weighted.mean().item() == pytest.approx(descent - 0.5 * ascent)
    weighted.mean().backward()
    assert isinstance(logits.grad, Tensor) and (logits.grad[3] == 0).all() and (logits.grad[1] != 0).any()


def test_batches_pair_what_is_learned_with_what_is_unlearned() -> None:
    run, pool = run_of(AdvrBD(), n=100), np.zeros(100, dtype=bool)
    assert sorted(np.concatenate(run._batches(pool, 0)).tolist()) == list(range(100))
    pool[:7] = True
    cuts = run._batches(pool, 0)
    assert all(pool[cut].sum() * 2 == len(cut) for cut in cuts)
    seen = np.concatenate(cuts)
    assert sorted(seen[~pool[seen]].tolist()) == list(range(7, 100))
    visits = np.bincount(seen[pool[seen]])
    assert visits.sum() == 93 and visits.max() - visits.min() <= 1
    assert np.concatenate(run._batches(pool, 1)).tolist() != seen.tolist()


def test_the_pool_grows_by_those_that_move_most(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(AdvrBD(partition_rate=0.075, rounds=10, scored_share=0.25), n=100)
    run.widths = torch.ones(1)
    met: list[np.ndarray] = []

    def divergences(_self: Any, *others: Any, seed: tuple[int, ...]) -> np.ndarray:
        met.append(others[-1])
        return np.asarray(others[-1], dtype=np.float32)  # higher rows move more

    monkeypatch.setattr(PatchPerturbation, "divergences", divergences)
    pool, sizes = np.zeros(100, dtype=bool), []
    for place in range(10):
        before, pool = pool, run._picked(place, pool)
        added = np.flatnonzero(pool & ~before)
        assert (pool | ~before).all() and len(met[-1]) == 25 and not before[met[-1]].any()
        assert sorted(added.tolist()) == sorted(met[-1].tolist())[-len(added) :]
        sizes.append(int(pool.sum()))
    assert sizes == [round(7.5 * place) for place in range(1, 11)]


@pytest.mark.parametrize("kind", ["image", "series"])
def test_resume(kind: str) -> None:
    result = check_resume(AdvrBD(**QUICK, relearn=1), noisy(kind, 40, 3))
    verdict = result.verdict
    assert set(np.unique(verdict.status)) <= {0, RELABELED}
    assert verdict.isolated.any() and result.facts.n_unlearned == 8
    assert ((verdict.suggested_label == noisy(kind, 40, 3).labels) | verdict.isolated).all()


def test_few_samples_and_two_classes() -> None:
    few = noisy("series", 9, 2)
    result = AdvrBD(**{**QUICK, "short_epochs": 2}).train(few, builder(few), RECIPE)
    assert np.isfinite(result.verdict.suspicion).all() and (~result.verdict.isolated).sum() >= 4


def test_it_falls_back_where_nothing_was_forgotten() -> None:
    samples = noisy("image", 60, 3)
    result = AdvrBD(short_epochs=30, short_learning_rate=0.05, rounds=1).train(samples, builder(samples), RECIPE)
    assert result.facts.fell_back and result.facts.flagged_share > 0.9
    assert result.verdict.isolated.sum() == 12 and (result.verdict.status[result.verdict.isolated] == ISOLATED).all()
    assert (
        result.verdict.suspicion[result.verdict.isolated].min()
        >= result.verdict.suspicion[~result.verdict.isolated].max()
    )


def test_the_fallback_takes_the_lowest_losses_and_draws_among_equal_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three classes, the loss is lowest where no other label is likely, though the margin may be smaller."""
    samples = noisy("series", 60, 3)
    method = AdvrBD(**QUICK, fallback_rate=0.2)
    run = _Run(method, Trainer(samples, RECIPE), builder(samples))
    lowest = np.arange(60) % 10 == 0

    def told(_run: _Run, value: Any) -> np.ndarray:
        return np.ones(60) if value is margin else np.where(lowest, 2.0, 1.0)

    monkeypatch.setattr(_Run, "_told", told)
    result = run.run()
    isolated = result.verdict.isolated
    assert result.facts.fell_back and isolated.sum() == 12 and isolated[lowest].all()
    drawn = np.flatnonzero(isolated & ~lowest)
    assert drawn.max() > 12  # not the first rows


class Lines(NoJournal):
    """Keeps the names of the phases, one a pass."""

    def __init__(self) -> None:
        self.phases: list[str] = []

    def log(self, **fields: float | int | str | bool | None) -> None:
        self.phases.append(str(fields["phase"]))


def test_small_data_are_trained_on_for_longer() -> None:
    samples, lines = noisy("series", 320, 3), Lines()
    AdvrBD(rounds=1, round_epochs=1).train(samples, builder(samples), RECIPE, journal=lines)
    assert lines.phases.count("short training") == 100  # 10 steps of 32 each


def test_a_backdoor_is_not_learned() -> None:
    data = poisoned("image", 1200, 10)
    recipe = replace(RECIPE, epochs=3, learning_rate=0.05)
    method = AdvrBD(
        short_epochs=6,
        short_learning_rate=0.02,
        rounds=6,
        partition_rate=0.1,
        round_epochs=1,
        ascent_weight=2.0,
    )
    result = method.train(data.samples, builder(data.samples), recipe)
    made = outcome(result, data)
    assert not result.facts.fell_back and made.recall > 0.95 and made.false_alarms < 0.25
    assert made.attack_success < 0.2 and made.accuracy > 0.45  # without a defense 0.98 and 0.7


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rounds": 20}, "20 rounds of partition_rate 0.05 would unlearn everything"),
        ({"scored_share": 0.01}, "scored_share is 0.01"),
        ({"relearn": -1}, "relearn is -1"),
        ({"perturbation": PatchPerturbation(steps=0)}, "steps is 0"),
    ],
)
def test_refusals(wrong: dict[str, Any], said: str) -> None:
    samples = noisy("series", 40, 3)
    with pytest.raises(ConfigError, match=said):
        AdvrBD(**wrong).train(samples, builder(samples), RECIPE)
