"""Unlearning: its batches and objectives with numbers, and a backdoored model."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from backdoored import RECIPE, Ledger, scene, weights
from torch import Tensor, nn

from antibackdoor.errors import ConfigError, DataError
from antibackdoor.protocols import Given, Verdict
from antibackdoor.purifiers import Unlearning
from antibackdoor.purifiers.unlearning import ALL_OTHERS, Ascent, batches_beside, teach
from antibackdoor.training.session import Batch


def test_each_isolated_sample_is_visited_once_beside_another() -> None:
    ascent = Ascent(np.arange(20), np.arange(100, 180), 2.0, "none")
    plan = ascent.plan(16, seed=0, epoch=0)
    assert [len(cut) for cut in plan] == [16, 16, 8]
    rows = np.concatenate(plan)
    assert sorted(rows[rows < 100].tolist()) == list(range(20))
    assert all((cut < 100).sum() == (cut >= 100).sum() for cut in plan)
    assert not np.array_equal(np.concatenate(ascent.plan(16, seed=0, epoch=1)), rows)


def test_a_plan_of_few_samples() -> None:
    alone = Ascent(np.array([3]), np.zeros(0, dtype=np.int64), 2.0, "none")
    assert [cut.tolist() for cut in alone.plan(32, seed=0, epoch=0)] == [[3, 3]]
    scarce = Ascent(np.arange(8), np.array([90]), 2.0, "none")
    (cut,) = scarce.plan(32, seed=0, epoch=0)
    assert (cut == 90).sum() == 8


def test_one_in_eight_is_an_isolated_one() -> None:
    plan = batches_beside(np.arange(100, 170), np.array([1, 2]), 16, seed=0, epoch=0)
    assert [len(cut) for cut in plan] == [16] * 5
    assert all((cut < 100).sum() == 2 for cut in plan)
    assert sorted(row for cut in plan for row in cut.tolist() if row >= 100) == list(range(100, 170))


def test_lessons_by_hand() -> None:
    probability = torch.tensor([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1], [0.2, 0.2, 0.6], [0.7, 0.1, 0.2]])
    batch = Batch(torch.zeros(4, 1, 4, 4), torch.tensor([0, 0, 1, 0]), torch.arange(4))
    isolated, lessons = torch.tensor([False, True, False, True]), torch.tensor([0, 2, 0, ALL_OTHERS])
    weighted, recorded = teach(Answers(probability.log()), isolated, lessons, 0.5)(batch)
    kept = (-np.log(0.5) - np.log(0.2)) / 2
    taught = (-np.log(0.1) - (np.log(0.1) + np.log(0.2)) / 2) / 2
    assert weighted.mean().item() == pytest.approx(kept + 0.5 * taught, rel=1e-5)
    assert recorded.tolist() == pytest.approx(-np.log([0.5, 0.8, 0.2, 0.7]), rel=1e-5)


def test_a_sure_model_is_pulled_hard() -> None:
    """Where p is 1 in float32 as well: there, the ascent of the cross-entropy has no gradient."""
    logits = torch.tensor([[40.0, 0.0, -1.0], [0.0, 1.0, 0.0]], requires_grad=True)
    batch = Batch(torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]), torch.arange(2))
    weighted, _ = teach(Answers(logits), torch.tensor([True, False]), torch.tensor([ALL_OTHERS, 0]), 1.0)(batch)
    weighted.mean().backward()
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([1.0, -0.5, -0.5], abs=1e-3)


class Answers(nn.Module):
    """A model that says what it was told to."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, _inputs: Tensor) -> Tensor:
        """The logits."""
        return self.logits


@pytest.mark.parametrize("kind", ["image", "series"])
def test_a_backdoor_is_forgotten(kind: str) -> None:
    here = scene(kind)
    accuracy, success = here.measured(here.model)
    assert accuracy > 0.95 and success > 0.95
    given = Given(suspicious=here.samples, isolated=here.is_poisoned)
    # So few samples make two steps a pass: the paper's rate takes longer.
    purified = Unlearning(learning_rate=5e-3).purify(here.model, given, RECIPE)
    accuracy, success = here.measured(purified.model)
    assert accuracy > 0.9 and success < 0.25
    facts = purified.facts
    assert facts.n_isolated == here.is_poisoned.sum() and facts.n_unlearning_epochs < 20
    assert facts.isolated_accuracy_before > 0.95 and facts.isolated_accuracy_after < 1 / 4


def test_it_ends_before_it_begins_where_nothing_is_known() -> None:
    here = scene("image")
    given = Given(suspicious=here.samples, isolated=here.is_poisoned)
    once = Unlearning(learning_rate=5e-3).purify(here.model, given, RECIPE)
    again = Unlearning(learning_rate=5e-3).purify(once.model, given, RECIPE)
    assert again.facts.n_unlearning_epochs == 0 and weights(again.model) == weights(once.model)


def test_nothing_isolated_nothing_changed() -> None:
    here = scene("image")
    given = Given(suspicious=here.samples, isolated=np.zeros(len(here.samples), dtype=bool))
    purified = Unlearning().purify(here.model, given, RECIPE)
    assert weights(purified.model) == weights(here.model) and purified.model is not here.model
    assert purified.facts.n_isolated == 0 and purified.facts.isolated_accuracy_after is None


def test_a_verdict_says_the_same_as_a_mask() -> None:
    here = scene("image")
    verdict = Verdict.isolating(np.zeros(len(here.samples)), here.is_poisoned, here.samples)
    short = Unlearning(epochs=1)
    by_verdict = short.purify(here.model, Given(suspicious=here.samples, verdict=verdict), RECIPE)
    by_mask = short.purify(here.model, Given(suspicious=here.samples, isolated=here.is_poisoned), RECIPE)
    assert weights(by_verdict.model) == weights(by_mask.model) and by_verdict.facts == by_mask.facts


def test_what_does_not_fit_is_refused() -> None:
    here, n = scene("image"), len(scene("image").samples)
    verdict = Verdict.isolating(np.zeros(n), here.is_poisoned, here.samples)
    for given, error, message in (
        (Given(suspicious=here.samples), ConfigError, "--isolated or --verdict"),
        (Given(suspicious=here.samples, isolated=here.is_poisoned, verdict=verdict), ConfigError, "either"),
        (Given(suspicious=here.samples, isolated=np.ones(n, dtype=bool)), DataError, "every sample"),
        (Given(suspicious=here.samples, isolated=here.is_poisoned[:9]), DataError, "about 9 samples"),
    ):
        with pytest.raises(error, match=message):
            Unlearning().purify(here.model, given, RECIPE)


def test_resumed_in_the_middle_it_ends_the_same() -> None:
    here, whole = scene("image"), Ledger()
    given = Given(suspicious=here.samples, isolated=here.is_poisoned)
    unbroken = Unlearning(epochs=4).purify(here.model, given, RECIPE, journal=whole)
    for stop in range(1, whole.n_saved + 1):
        broken = Ledger(stop_after=stop)
        with pytest.raises(KeyboardInterrupt):
            Unlearning(epochs=4).purify(here.model, given, RECIPE, journal=broken)
        resumed = Unlearning(epochs=4).purify(deepcopy(here.model), given, RECIPE, journal=Ledger(broken.kept))
        assert weights(resumed.model) == weights(unbroken.model) and resumed.facts == unbroken.facts, stop
