"""The training loop: losses land on the right rows, and all randomness is a function of seeds."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from conftest import pictures, waves
from torch import Tensor, nn

from antibackdoor.data.augmentation import AUGMENTATIONS, augment
from antibackdoor.data.samples import Samples
from antibackdoor.data.streams import Stream
from antibackdoor.errors import ConfigError
from antibackdoor.training.loop import batches, classify, cross_entropy, predict, shuffled, train_epoch
from antibackdoor.training.recipe import Recipe, augmentation_names
from antibackdoor.training.schedules import triangle
from antibackdoor.training.session import Batch, Session, has_fast_bf16, seeded

CPU = {"device": "cpu", "precision": "fp32"}


def numbers(values: list[float], labels: list[int]) -> Samples:
    """Series of one value each."""
    inputs = np.array(values, dtype=np.float32)[:, None, None]
    ids = np.array([str(row) for row in range(len(values))])
    return Samples(inputs, np.array(labels, dtype=np.int64), ids, np.array(["a", "b"]))


class Slope(nn.Module):
    """Logits (0, w x) of the single value x."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        value = self.weight * x.flatten(1)
        return torch.cat([torch.zeros_like(value), value], dim=1)


def small_session(samples: Samples, **settings: Any) -> Session:
    return Session(Recipe(**{**CPU, **settings}), len(samples), images=samples.kind == "image")


def test_batches() -> None:
    rows = np.arange(10)
    assert [len(cut) for cut in batches(rows, 4)] == [4, 4, 2]
    assert [len(cut) for cut in batches(rows[:9], 4)] == [4, 5]  # one row has no batch statistics
    assert [len(cut) for cut in batches(np.arange(33), 16)] == [16, 17]
    assert [len(cut) for cut in batches(np.arange(36), 16)] == [16, 16, 4]
    assert [len(cut) for cut in batches(rows[:3], 8)] == [3]
    assert batches(rows[:0], 8) == []
    assert np.concatenate(batches(np.arange(33)[::-1], 16)).tolist() == list(range(33))[::-1]


def test_shuffled_is_a_permutation_of_its_stream() -> None:
    assert sorted(shuffled(100, 1, Stream.ORDER, 2).tolist()) == list(range(100))
    assert (shuffled(100, 1, Stream.ORDER, 2) == shuffled(100, 1, Stream.ORDER, 2)).all()
    assert (shuffled(100, 1, Stream.ORDER, 2) != shuffled(100, 2, Stream.ORDER, 1)).any()
    assert (shuffled(100, 1, Stream.ORDER, 2) != shuffled(100, 1, Stream.MAIN_ORDER, 2)).any()
    assert shuffled(100, 0, Stream.ORDER).dtype == np.int64


def test_triangle() -> None:
    rate = triangle(0.1)
    assert rate(0.0) == 0
    assert rate(0.1) == pytest.approx(0.05)
    assert rate(0.2) == pytest.approx(0.1)  # the peak after a fifth
    assert rate(0.6) == pytest.approx(0.05)
    assert rate(0.95) == pytest.approx(0.1 * 0.05 / 0.8)
    assert rate(1.0) == 0


def test_recorded_losses_by_hand() -> None:
    samples = numbers([1.0, -2.0, 0.5, 3.0], [1, 0, 1, 0])
    session = small_session(samples, momentum=0.0, weight_decay=0.0)
    feed, net = session.feed(samples), Slope()
    optimizer = session.optimizer(net.parameters(), 1.0)
    plan = [np.array([2, 0]), np.array([1])]
    losses = train_epoch(session, feed, plan, net, classify(net), optimizer, seed=(0, Stream.STEP))

    # At w = 0 both losses are log 2 and the gradient of each is -x/2 for label 1: w = (0.5 + 1.0) / 2 / 2.
    w = 0.375
    assert losses[[2, 0]] == pytest.approx([math.log(2)] * 2)
    # Row 1 has label 0: loss log(1 + exp(w x)), gradient x times the sigmoid.
    assert losses[1] == pytest.approx(math.log1p(math.exp(-2 * w)))
    assert math.isnan(losses[3])
    assert net.weight.item() == pytest.approx(w + 2 / (1 + math.exp(2 * w)))


def test_weighted_and_recorded_losses_are_apart() -> None:
    samples = numbers([1.0, 1.0], [1, 1])
    session = small_session(samples, momentum=0.0, weight_decay=0.0)
    net = Slope()

    def objective(batch: Batch) -> tuple[Tensor, Tensor]:
        losses = cross_entropy(net(batch.inputs), batch.labels)
        return losses * (batch.rows == 0), batch.rows.float()

    optimizer = session.optimizer(net.parameters(), 1.0)
    recorded = train_epoch(
        session, session.feed(samples), [np.array([1, 0])], net, objective, optimizer, seed=(0, Stream.STEP)
    )
    assert recorded.tolist() == [0.0, 1.0]
    assert net.weight.item() == pytest.approx(0.25)  # row 0 alone: 1/2, over the two rows of the batch


def test_learning_rate_follows_the_plan() -> None:
    samples = numbers([1.0] * 4, [1] * 4)
    session = small_session(samples)
    net, met = Slope(), []
    optimizer = session.optimizer(net.parameters(), 1.0)

    def rate(done: float) -> float:
        met.append(done)
        return 0.0

    plan = [np.array([row]) for row in range(4)]
    train_epoch(
        session, session.feed(samples), plan, net, classify(net), optimizer, seed=(0, Stream.STEP), learning_rate=rate
    )
    assert met == [0, 0.25, 0.5, 0.75]
    assert net.weight.item() == 0.0


def test_bar_is_shown_on_a_terminal_only(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    samples = numbers([1.0] * 4, [1] * 4)

    def run(progress: bool) -> tuple[str, str]:
        session = small_session(samples, progress=progress)
        session.evaluate(session.feed(samples), Slope(), lambda logits, _: logits[:, 0], title="weighing")
        return capsys.readouterr()

    assert run(True) == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run(False) == ("", "")
    out, err = run(True)
    assert out == "" and "weighing" in err


def test_evaluate_keeps_the_order_of_the_rows() -> None:
    n = 1031  # some whole batches and a part of one
    samples = numbers([float(i) for i in range(n)], [i % 2 for i in range(n)])
    session = small_session(samples)
    assert n > session.evaluation_batch and n % session.evaluation_batch
    feed = session.feed(samples)

    def forward(x: Tensor) -> Tensor:
        return torch.cat([x[:, 0], -x[:, 0]], dim=1)

    both = session.evaluate(feed, forward, lambda logits, labels: torch.stack([logits[:, 0], labels.float()], 1))
    assert both[:, 0].tolist() == list(range(n))
    assert both[:, 1].tolist() == [i % 2 for i in range(n)]
    some = session.evaluate(feed, forward, lambda logits, _: logits[:, 1], np.array([5, 2, 2]))
    assert some.tolist() == [-5, -2, -2]
    none = session.evaluate(feed, forward, lambda logits, _: logits[:, 1], np.zeros(0, dtype=np.int64))
    assert len(none) == 0


def test_predict() -> None:
    samples = numbers([2.0, -1.0], [0, 0])
    net = Slope()
    net.weight.data.fill_(1.0)
    net.train()
    said = predict(small_session(samples), net, samples)
    assert net.training
    assert said.labels.tolist() == [1, 0]
    assert said.confidence == pytest.approx([1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1))])
    assert said.losses == pytest.approx([math.log1p(math.exp(2)), math.log1p(math.exp(-1))], rel=1e-6)


def test_batch_scales_images_and_leaves_the_data_alone() -> None:
    samples = pictures(8)
    session = small_session(samples)
    batch = session.batch(session.feed(samples), np.array([3, 1]))
    assert batch.inputs.dtype == torch.float32
    assert batch.rows.tolist() == [3, 1] and batch.labels.tolist() == [1, 1]
    assert np.array_equal(batch.inputs.numpy(), samples.inputs[[3, 1]] / np.float32(255))


def test_seeded_leaves_the_global_state_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, second, other = (seeded(lambda: nn.Linear(3, 2), seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.weight, second.weight) and not torch.equal(first.weight, other.weight)


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_augmentations_are_functions_of_their_seed(name: str) -> None:
    samples = pictures(12, size=16) if name in ("crop", "flip", "cutout", "physical") else waves(12, channels=2)
    inputs = torch.from_numpy(samples.inputs)
    before = inputs.clone()
    once, again, other = (augment(inputs, (name,), seed) for seed in (3, 3, 4))
    assert torch.equal(inputs, before)
    assert once.shape == inputs.shape and once.dtype == inputs.dtype
    assert torch.equal(once, again)
    assert not torch.equal(once, other) and not torch.equal(once, inputs)


def test_flip_mirrors_some() -> None:
    images = torch.from_numpy(pictures(40, size=16).inputs)
    flipped = augment(images, ("flip",), 0)
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(flipped, images, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(flipped, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 5 < sum(mirrored) < 35


def test_crop_shifts_and_fills_with_zeros() -> None:
    images = torch.from_numpy(pictures(30, size=16).inputs) + 1  # no pixel is zero by itself
    moved = set()
    for before, after in zip(images[:, 0], augment(images, ("crop",), 1)[:, 0], strict=True):
        ys, xs = after.nonzero(as_tuple=True)
        height, width = int(ys.max() - ys.min()) + 1, int(xs.max() - xs.min()) + 1
        assert height >= 14 and width >= 14  # at most an eighth of 16 pixels
        kept = after[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
        corners = [(y, x) for y in (0, 16 - height) for x in (0, 16 - width)]
        assert any(torch.equal(kept, before[y : y + height, x : x + width]) for y, x in corners)
        moved.add((height, width))
    assert len(moved) > 3


def test_cutout_blackens_a_square() -> None:
    images = torch.full((20, 3, 16, 16), 200, dtype=torch.uint8)
    holes = (augment(images, ("cutout",), 0) == 0).sum((1, 2, 3)).tolist()
    assert max(holes) == 3 * 16 and min(holes) > 0, "a quarter of each side, where the border cuts nothing off"


def test_series_augmentations() -> None:
    series = torch.from_numpy(waves(200, channels=2, length=40).inputs)
    factors = (augment(series, ("scale",), 0) / series).mean((1, 2))
    assert factors.mean().item() == pytest.approx(1, abs=0.03) and factors.std().item() == pytest.approx(0.1, abs=0.02)
    noise = augment(series, ("jitter",), 0) - series
    assert (noise.std((0, 2)) / series.std((0, 2))).tolist() == pytest.approx([0.03] * 2, rel=0.1)
    shifted = augment(series, ("shift",), 0)
    for before, after in zip(series[:10], shifted[:10], strict=True):
        by = [s for s in (-2, -1, 0, 1, 2) if torch.equal(after[:, 2:-2], before[:, 2 + s : 38 + s])]
        assert len(by) == 1


def test_augmentation_names() -> None:
    small, large, series = pictures(4, size=8), pictures(4, size=16), waves(4)
    assert augmentation_names("auto", small) == () and augmentation_names("auto", large) == ("crop",)
    assert augmentation_names("auto", series) == () and augmentation_names("none", large) == ()
    assert augmentation_names("flip, cutout", small) == ("flip", "cutout")
    with pytest.raises(ConfigError, match="'flip' does not exist for series data"):
        augmentation_names("flip", series)
    with pytest.raises(ConfigError, match="'rotate' does not exist"):
        augmentation_names("rotate", large)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": -1},
        {"batch_size": -2},
        {"devices": 0},
        {"seed": -1},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"momentum": 1.0},
        {"weight_decay": -0.1},
        {"weight_decay": float("nan")},
        {"precision": "fp8"},
    ],
)
def test_recipe_refuses(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as error:
        Recipe(**wrong)
    assert next(iter(wrong)) in str(error.value) and "\n" not in str(error.value)


def test_recipe_chooses_by_size() -> None:
    assert Recipe().batch(4999) == 32 and Recipe().batch(5000) == 128
    assert Recipe(batch_size=64).batch(10) == 10
    assert Recipe().passes(50_000) == 20
    assert Recipe().passes(1000) == 96  # 3,000 steps of 32
    assert Recipe().passes(40) == 200
    assert Recipe(epochs=3).passes(40) == 3


def test_session_refuses() -> None:
    with pytest.raises(ConfigError, match="multiple of 3"):
        Session(Recipe(devices=3, batch_size=32, device="cpu"), 100, images=True)
    with pytest.raises(ConfigError, match="'tpu' is unknown"):
        Session(Recipe(device="tpu"), 100, images=True)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="'cuda' is not available"):
            Session(Recipe(device="cuda"), 100, images=True)


def test_precision() -> None:
    fast = has_fast_bf16(torch.device("cpu"))
    chosen = {
        (precision, images): Session(Recipe(device="cpu", precision=precision), 10, images=images).bf16
        for precision in ("auto", "bf16", "fp32")
        for images in (True, False)
    }
    assert chosen[("auto", True)] == chosen[("auto", False)] == fast
    assert chosen[("bf16", True)] and chosen[("bf16", False)]
    assert not chosen[("fp32", True)] and not chosen[("fp32", False)]


def test_bf16_computes_in_bf16_and_keeps_float32_weights() -> None:
    samples = pictures(16)
    session = small_session(samples, precision="bf16")
    met = []
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    net[0].register_forward_hook(lambda _module, _inputs, output: met.append(output.dtype))
    losses = train_epoch(
        session, session.feed(samples), [np.arange(16)], net, classify(net), session.optimizer(net.parameters(), 0.1),
        seed=(0, Stream.STEP),
    )  # fmt: skip
    assert met == [torch.bfloat16]
    assert losses.dtype == np.float32 and np.isfinite(losses).all()
    assert net[0].weight.dtype == torch.float32
    assert predict(session, net, samples).confidence.dtype == np.float32


def test_finished_model_is_of_the_builders_making() -> None:
    samples = pictures(8)
    session = small_session(samples)
    built = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), 5)
    delivered = session.finished(built, lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 2)))
    assert delivered is not built and not delivered.training
    assert torch.equal(delivered[1].weight, built[1].weight)
