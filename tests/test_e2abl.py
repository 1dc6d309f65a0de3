"""E2ABL as its paper has it: partitions, the three terms, verdicts."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import pictures
from watched_runs import assert_same_verdict, builder

from antibackdoor.data.samples import Samples
from antibackdoor.defenses import DEFENSES, E2ABL, e2abl
from antibackdoor.models.two_head import TwoHead, split_network
from antibackdoor.protocols import ISOLATED, RELABELED, Trained
from antibackdoor.training import trainer
from antibackdoor.training.loop import train_epoch
from antibackdoor.training.recipe import Recipe

SMALL = Recipe(batch_size=30, device="cpu", precision="fp32")


def published(samples: Samples, recipe: Recipe = SMALL, **settings: Any) -> Trained:
    return E2ABL(**settings).train(samples, builder(samples), recipe)


def test_the_published_form_is_at_hand() -> None:
    method = DEFENSES["e2abl"]()
    assert isinstance(method, E2ABL)
    assert (method.isolation_rate, method.recovery_rate) == (0.2, 0.01)
    assert (method.warmup_epochs, method.epochs) == (2, 60)


def test_equation_4_has_relabelled_samples_in_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The three expectations of the published objective, each over a third of a batch at least."""
    epochs: list[Any] = []

    def watched(*args: Any, **settings: Any) -> Any:
        epochs.append(args[2])
        return train_epoch(*args, **settings)

    monkeypatch.setattr(trainer, "train_epoch", watched)
    settings = {"weighting": "eq4", "epochs": 3, "warmup_epochs": 1, "recovery_rate": 0.05}
    history = published(pictures(300, 3), **settings).history
    assert [len(cuts) for cuts in epochs] == [10, 15, 15]
    assert {len(cut) for cut in epochs[1]} == {30}
    seen, counts = np.unique(np.concatenate(epochs[1]), return_counts=True)
    assert len(seen) == 300 and (counts > 1).sum() == 15, "the relabelled ones come again"
    assert all(np.isin(cut[-10:], seen[counts > 1]).all() for cut in epochs[1])
    assert history.steps.tolist() == [0, 10, 25, 40]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_first_partition_takes_no_class_whole(seed: int) -> None:
    """Before anything is learned all losses are alike, and rows are often sorted by class."""
    whole = pictures(120, 3)
    first = np.flatnonzero(whole.labels == 0)
    samples = whole.take(np.concatenate([first[:12], *(np.flatnonzero(whole.labels == k) for k in (1, 2))]))
    # Steps too small to change a weight: the last partition is as blind as the first one.
    blind = {"epochs": 1, "warmup_epochs": 0, "learning_rate": 1e-30, "second_learning_rate": 1e-30}
    isolated, again, other = (
        published(samples, replace(SMALL, seed=chosen), **blind).verdict.isolated for chosen in (seed, seed, seed + 2)
    )
    assert isolated.sum() == 18, "more than the twelve of the first class"
    np.testing.assert_array_equal(isolated, again)
    assert (isolated != other).any(), "another seed, another draw"
    of_class = np.bincount(samples.labels[isolated], minlength=3)
    assert of_class.min() >= 1 and of_class[0] <= 8


@pytest.mark.parametrize("control", ["recover", "unlearn", "none"])
def test_only_what_is_trained_on_under_another_label_is_called_relabeled(control: str) -> None:
    samples = pictures(90, 3)
    verdict = published(samples, epochs=3, warmup_epochs=1, recovery_rate=0.1, control=control).verdict
    assert verdict.isolated.sum() == 18
    other = verdict.suggested_label != samples.labels
    assert other.sum() <= 9 and not (other & ~verdict.isolated).any()
    np.testing.assert_array_equal(verdict.status == RELABELED, other & (control == "recover"))
    assert set(verdict.status[verdict.isolated].tolist()) <= {ISOLATED, RELABELED}


@pytest.mark.parametrize(("epochs", "there"), [(10, False), (11, True), (13, True)])
def test_the_verdict_ten_epochs_after_the_warm_up_is_kept(epochs: int, there: bool) -> None:
    """Table II measures the partition there; it is what a training of so many epochs would have ended with."""
    samples = pictures(60, 3)
    trained = published(samples, epochs=epochs, warmup_epochs=1)
    assert (trained.midway is not None) == there
    if trained.midway is not None:
        ended = published(samples, epochs=11, warmup_epochs=1).verdict
        assert_same_verdict(trained.midway, ended)
        assert epochs == 11 or (trained.midway.suspicion != trained.verdict.suspicion).any()


@pytest.mark.parametrize("warmup_epochs", [2, 5])
def test_a_training_that_ends_with_its_warm_up_has_a_verdict_all_the_same(warmup_epochs: int) -> None:
    trained = published(pictures(60, 3), epochs=2, warmup_epochs=warmup_epochs)
    assert trained.verdict.isolated.sum() == 12 and trained.midway is None


def test_the_second_head_of_the_published_form_makes_the_network_a_fifth_larger(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[TwoHead] = []

    def watched(*given: Any, **settings: Any) -> TwoHead:
        made.append(split_network(*given, **settings))
        return made[-1]

    monkeypatch.setattr(e2abl, "split_network", watched)
    samples = pictures(60, 3)
    published(samples, epochs=1)
    sizes = [sum(part.numel() for part in net.parameters()) for net in (made[0], made[0].network)]
    assert sizes[0] / sizes[1] == pytest.approx(1.2, abs=0.05)
