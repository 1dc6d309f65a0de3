"""The patch perturbation: its parts with numbers, the ranking, and what it leaves as it was."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from backdoored import weights
from noisy import RECIPE, Quick, builder, noisy, poisoned
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from antibackdoor.data.samples import Samples
from antibackdoor.data.streams import Stream
from antibackdoor.defenses import Undefended
from antibackdoor.detectors import PatchPerturbation
from antibackdoor.detectors.perturbation import divergence, patches, perturbed, widths
from antibackdoor.errors import ConfigError
from antibackdoor.protocols import Given
from antibackdoor.training.session import Session


def test_the_divergence_by_hand() -> None:
    before = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    logits = torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log() + 3.0  # logits are free up to a constant
    expected = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert divergence(before, logits).tolist() == pytest.approx([expected, 0.0], abs=1e-6)


@pytest.mark.parametrize(
    ("shape", "share", "area"), [((300, 3, 8, 12), 0.5, 16), ((300, 2, 20), 0.3, 6), ((5, 1, 9, 9), 1.0, 81)]
)
def test_patches_are_whole_and_of_one_size(shape: tuple[int, ...], share: float, area: int) -> None:
    made = patches(shape, share, torch.Generator().manual_seed(0))
    assert made.shape == (shape[0], 1, *shape[2:])
    assert made.flatten(1).sum(1).tolist() == [area] * shape[0]
    assert set(made.unique().tolist()) <= {0.0, 1.0}
    if share < 1:
        assert len({tuple(row.flatten().tolist()) for row in made}) > 5
        assert (made.amax(0) == 1).all()  # anywhere, the corners included


def test_scales() -> None:
    uniform = np.random.default_rng(0).uniform(-3, 5, (4100, 2, 6)).astype(np.float32)
    uniform[:, 1] = uniform[:, 1] * 10 + 1000
    samples = Samples(uniform, np.zeros(4100, np.int64), np.arange(4100).astype(str), np.array(["a", "b"]))
    assert widths(samples).tolist() == pytest.approx([8, 80], rel=0.01)  # the range of a uniform distribution
    assert widths(noisy("image", 4, 2)).tolist() == [1.0]


def test_only_images_are_clamped() -> None:
    inputs = torch.tensor([[[0.9, 0.1]]])
    assert perturbed(inputs, torch.tensor([[[0.2, -0.2]]]), True).flatten().tolist() == [1.0, 0.0]
    assert perturbed(inputs, torch.tensor([[[0.2, -0.2]]]), False).flatten().tolist() == pytest.approx([1.1, -0.1])


class Level(nn.Module):
    """Logits (0, 40 times the mean)."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        mean = 40 * x.flatten(1).mean(1, keepdim=True)
        return torch.cat([torch.zeros_like(mean), mean], dim=1)


def test_ascent_goes_as_far_as_it_may_and_no_further() -> None:
    n = 12
    values = np.zeros((n, 1, 10), np.float32)
    values[:, :, ::2] = np.linspace(-1, 1, n, dtype=np.float32)[:, None, None]
    samples = Samples(values, np.zeros(n, np.int64), np.arange(n).astype(str), np.array(["a", "b"]))
    session, model = Session(RECIPE, n, images=False), Level()
    method = PatchPerturbation(eps=0.1, steps=20, step_size=0.02, patch=0.5)
    scale = widths(samples)
    found = method.divergences(session, session.feed(samples), model, scale, seed=(0, Stream.PATCH))
    moved = model.seen[-1] - torch.from_numpy(values)
    assert (moved != 0).sum((1, 2)).tolist() == [5] * n  # the interval, half of 10 steps
    assert moved.abs().max().item() == pytest.approx(0.1 * scale.item(), rel=1e-4)
    # All five values at one end: the mean moves by half of eps, up or down, whichever tells more.
    mean, by = values.mean((1, 2)), 0.05 * scale.item()

    def gain(now: np.ndarray, then: np.ndarray) -> np.ndarray:
        p, q = 1 / (1 + np.exp(-40 * now.astype(float))), 1 / (1 + np.exp(-40 * then.astype(float)))
        return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))

    up, down = gain(mean, mean + by), gain(mean, mean - by)
    assert (np.isclose(found, up, rtol=0.01, atol=1e-6) | np.isclose(found, down, rtol=0.01, atol=1e-6)).all()


@pytest.mark.parametrize("kind", ["image", "series"])
def test_poison_moves_least(kind: str) -> None:
    data = poisoned(kind, 400, 4)
    recipe = dataclasses.replace(RECIPE, epochs=6, learning_rate=0.05)
    model = Undefended().train(data.samples, builder(data.samples), recipe).model
    before = weights(model)
    data.samples.inputs.flags.writeable = False
    found = PatchPerturbation().detect(data.samples, Given(model=model), recipe).verdict
    assert not found.isolated.any() and (found.suspicion <= 1e-6).all() and np.isfinite(found.suspicion).all()
    assert roc_auc_score(data.truth.is_poisoned, found.suspicion) > 0.7
    again = PatchPerturbation().detect(data.samples, Given(model=model), recipe).verdict
    other = PatchPerturbation().detect(data.samples, Given(model=model), dataclasses.replace(recipe, seed=5)).verdict
    assert found.suspicion.tobytes() == again.suspicion.tobytes() != other.suspicion.tobytes()
    assert weights(model) == before and all(parameter.grad is None for parameter in model.parameters())


def test_bytes_and_floats_alike() -> None:
    images = noisy("image", 24, 3)
    floats = dataclasses.replace(images, inputs=(images.inputs / np.float32(255)).astype(np.float32))
    torch.manual_seed(0)
    given = Given(model=Quick(images.shape, 3))
    first, second = (PatchPerturbation().detect(samples, given, RECIPE).verdict for samples in (images, floats))
    assert first.suspicion == pytest.approx(second.suspicion)


@pytest.mark.parametrize(
    "wrong", [{"eps": 0.0}, {"steps": 0}, {"step_size": -1.0}, {"patch": 1.5}, {"patch": float("nan")}]
)
def test_refusals(wrong: dict[str, float]) -> None:
    samples = noisy("image", 8, 2)
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        PatchPerturbation(**wrong).detect(samples, Given(model=Quick(samples.shape, 2)), RECIPE)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs model"):
        PatchPerturbation().detect(samples, None, RECIPE)
