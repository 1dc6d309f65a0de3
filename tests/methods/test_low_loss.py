"""Losses that are held, ascended or smoothed, by hand; and the detectors that train with them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from backdoored import Tiny, make
from torch import Tensor

from antibackdoor.detectors import Flooding, LabelSmoothingConfidence, LowLoss
from antibackdoor.errors import ConfigError
from antibackdoor.protocols import Given
from antibackdoor.statistics.isolation import most_suspicious
from antibackdoor.training.loop import Objective
from antibackdoor.training.objectives import (
    LGA,
    ascend,
    descend_and_ascend,
    flooding,
    label_smoothing,
    lga_per_example,
)
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.session import Batch

RECIPE = Recipe(epochs=2, batch_size=16, device="cpu", precision="fp32", augment="none", seed=3)
LOSSES = (0.1, 0.3, 1.2)  # their mean is 0.5333


def batch(*losses: float, rows: tuple[int, ...] | None = None) -> Batch:
    """Samples of label 0 with these losses, if the inputs are taken for the logits of two classes."""
    logits = torch.tensor([[0.0, math.log(math.expm1(loss))] for loss in losses], dtype=torch.float64)
    places = range(len(losses)) if rows is None else rows
    return Batch(logits.requires_grad_(), torch.zeros(len(losses), dtype=torch.int64), torch.tensor(list(places)))


def identity(inputs: Tensor) -> Tensor:
    return inputs


def gradient(objective: Objective, of: Batch) -> Tensor:
    """What a step descends along: the gradient of the mean of the weighted losses."""
    weighted, _ = objective(of)
    (found,) = torch.autograd.grad(weighted.mean(), of.inputs)
    return found


def test_each_records_the_plain_loss() -> None:
    nobody = torch.zeros(3, dtype=torch.bool)
    for objective in (
        flooding(identity, 0.5),
        lga_per_example(identity, 0.5),
        ascend(identity, 1.0),
        descend_and_ascend(identity, nobody, 1.0),
        label_smoothing(identity, 0.1),
    ):
        assert objective(batch(*LOSSES))[1].tolist() == pytest.approx(LOSSES, rel=1e-5)


@pytest.mark.parametrize(("level", "sign"), [(0.5, 1), (0.6, -1), (0.0, 1)])
def test_flooding_has_one_sign_for_a_batch(level: float, sign: int) -> None:
    weighted, _ = flooding(identity, level)(batch(*LOSSES))
    assert weighted.tolist() == pytest.approx([sign * loss for loss in LOSSES], rel=1e-5)


@pytest.mark.parametrize("level", [0.2, 0.5, 0.6, 2.0])
def test_its_gradient_is_that_of_the_flooded_loss(level: float) -> None:
    of = batch(*LOSSES)
    losses = torch.nn.functional.cross_entropy(of.inputs, of.labels, reduction="none")
    (flooded,) = torch.autograd.grad((losses.mean() - level).abs() + level, of.inputs)
    assert torch.allclose(gradient(flooding(identity, level), of), flooded)


def test_lga_as_printed_has_a_sign_for_each_sample() -> None:
    weighted, _ = lga_per_example(identity, 0.2)(batch(*LOSSES))
    assert weighted.tolist() == pytest.approx([-0.1, 0.3, 1.2], rel=1e-5)
    assert set(LGA) == {"batch_mean", "per_example"}


def test_ascent_ends_at_the_bound() -> None:
    of = batch(*LOSSES)
    weighted, _ = ascend(identity, 1.0)(of)
    assert weighted.tolist() == pytest.approx([-0.1, -0.3, -1.0], rel=1e-5)
    plain = gradient(lambda b: (torch.nn.functional.cross_entropy(b.inputs, b.labels, reduction="none"),) * 2, of)
    ascent = gradient(ascend(identity, 1.0), of)
    assert torch.allclose(ascent[:2], -plain[:2]) and (ascent[2] == 0).all()


def test_descent_and_ascent_are_means_of_equal_weight() -> None:
    up = torch.tensor([False, True, False, False, True])  # by row: rows 0, 1, 4 are in the batch
    objective = descend_and_ascend(identity, up, 1.0)
    weighted, _ = objective(batch(*LOSSES, rows=(0, 1, 4)))
    # Mean of row 0 less the mean of 0.3 and of 1.2, bounded by 1.
    assert weighted.mean().item() == pytest.approx(0.1 - (0.3 + 1.0) / 2, rel=1e-5)
    weighted, _ = objective(batch(*LOSSES, rows=(0, 2, 3)))  # a batch without any
    assert weighted.mean().item() == pytest.approx(np.mean(LOSSES), rel=1e-5)


def test_smoothed_labels() -> None:
    of = batch(*LOSSES, rows=(2, 1, 0))
    right = -torch.tensor(LOSSES, dtype=torch.float64)
    wrong = torch.log1p(-right.exp())
    smooth = [-(0.9 * float(p) + 0.1 * float(p + q) / 2) for p, q in zip(right, wrong, strict=True)]
    assert label_smoothing(identity, 0.1)(of)[0].tolist() == pytest.approx(smooth, rel=1e-5)
    chosen = torch.tensor([True, False, False])  # row 0 comes last
    mixed, recorded = label_smoothing(identity, 0.1, chosen)(of)
    assert mixed.tolist() == pytest.approx([*LOSSES[:2], smooth[2]], rel=1e-5)
    assert recorded.tolist() == pytest.approx(LOSSES, rel=1e-5)
    uniform = label_smoothing(identity, 1.0)(of)[0]
    assert uniform.tolist() == pytest.approx((-(right + wrong) / 2).tolist(), rel=1e-5)


def test_the_isolated_are_a_rounded_count_and_ties_are_drawn() -> None:
    rising = np.arange(60.0)
    assert np.flatnonzero(most_suspicious(rising, 0.045, seed=0)).tolist() == [57, 58, 59]  # 2.7 of 60
    assert most_suspicious(rising, 0.0, seed=0).sum() == 0
    flat = np.zeros(60)
    first, again, other = (most_suspicious(flat, 0.25, seed) for seed in (1, 1, 2))
    assert first.sum() == 15 and (first == again).all() and (first != other).any()
    assert np.flatnonzero(first).tolist() != list(range(15))  # rows are sorted by class; their order tells nothing


@pytest.mark.parametrize("detector", [LowLoss(epochs=2), Flooding(), LabelSmoothingConfidence()])
@pytest.mark.parametrize("kind", ["image", "series"])
def test_nobody_is_isolated_unless_a_rate_is_given(kind: str, detector: LowLoss) -> None:
    samples = make(kind, 40, seed=0)
    given = Given(build=lambda: Tiny(samples.shape, samples.n_classes))
    verdict = detector.detect(samples, given, RECIPE).verdict
    assert not verdict.isolated.any()
    cut = type(detector)(**{**vars(detector), "isolation_rate": 0.1}).detect(samples, given, RECIPE).verdict
    assert cut.suspicion.tobytes() == verdict.suspicion.tobytes()
    assert cut.isolated.sum() == 4 and cut.suspicion[cut.isolated].min() >= cut.suspicion[~cut.isolated].max()


def test_what_is_scored() -> None:
    samples = make("series", 40, seed=0)
    given = Given(build=lambda: Tiny(samples.shape, samples.n_classes))
    low = LowLoss(epochs=2).detect(samples, given, RECIPE)
    assert (low.verdict.suspicion <= 0).all() and low.history is not None and len(low.history) == 3
    sure = LabelSmoothingConfidence().detect(samples, given, RECIPE).verdict.suspicion
    assert (sure >= 1 / samples.n_classes).all() and (sure <= 1).all()


def test_without_a_level_low_loss_is_plain_training() -> None:
    """And the two forms of LGA are then the same."""
    samples = make("series", 40, seed=0)
    given = Given(build=lambda: Tiny(samples.shape, samples.n_classes))
    one, other = (LowLoss(gamma=0.0, epochs=2, lga=form).detect(samples, given, RECIPE) for form in LGA)
    assert one.verdict.suspicion.tobytes() == other.verdict.suspicion.tobytes()


@pytest.mark.parametrize(
    "wrong",
    [LowLoss(gamma=-0.1), LowLoss(isolation_rate=1.0), LowLoss(lga="each"), Flooding(level=math.nan)],  # type: ignore[arg-type]
)
def test_wrong_settings_are_refused(wrong: LowLoss) -> None:
    samples = make("series", 40, seed=0)
    with pytest.raises(ConfigError, match=r"gamma|isolation_rate|lga|level"):
        wrong.detect(samples, Given(build=lambda: Tiny(samples.shape, 4)), RECIPE)
