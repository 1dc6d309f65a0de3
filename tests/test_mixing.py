"""Mixtures of two samples and their labels, as objectives of a phase."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import pictures, waves
from ledger import Ledger
from phases import RECIPE, Seen, builder, weights
from torch import Tensor, nn

from antibackdoor.errors import ConfigError
from antibackdoor.training.loop import Objective
from antibackdoor.training.mixing import cutmix, mixup
from antibackdoor.training.schedules import constant, triangle
from antibackdoor.training.trainer import Phase, Trainer


@pytest.mark.parametrize("kind", ["image", "series"])
@pytest.mark.parametrize("mixing", [cutmix, mixup])
def test_a_mixture_is_a_function_of_the_seed_of_the_batch(kind: str, mixing: Callable[..., Objective]) -> None:
    samples = pictures(16, 3) if kind == "image" else waves(16, 3)
    trainer = Trainer(samples, RECIPE)
    model = trainer.network(builder(samples)).eval()
    objective, batch = mixing(model, 1.0, 3), trainer.session.batch(trainer.feed, np.arange(16))
    with torch.no_grad():
        once, again, other = (objective(batch._replace(seed=seed))[0] for seed in (1, 1, 2))
    assert torch.equal(once, again) and not torch.equal(once, other)


def test_labels_of_a_mixture_count_by_what_is_left_of_each_sample() -> None:
    """Each pixel of an image says which class it is of, so the share of a class can be counted."""
    samples = pictures(16, 2)
    samples.inputs[:] = 255 * samples.labels[:, None, None, None]
    trainer, met = Trainer(samples, RECIPE), list[Tensor]()

    class SureOfOne(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            met.append(inputs.mean((1, 2, 3)))
            return torch.tensor([0.0, 100.0]).expand(len(inputs), 2)

    batch = trainer.session.batch(trainer.feed, np.arange(16))
    losses, _ = cutmix(SureOfOne(), 1.0, 2)(batch._replace(seed=5))
    # The network is sure of class 1, so each loss is 100 times the share of class 0.
    assert losses.numpy() / 100 == pytest.approx(1 - met[0].numpy(), abs=1e-4)
    assert len(set(np.round(losses.tolist(), 3))) > 2, "some are mixed with the other class"


def test_a_training_on_mixtures_of_soft_labels_resumes() -> None:
    samples, whole = pictures(32, 3), Ledger()
    soft = np.random.default_rng(0).dirichlet(np.ones(3), 32).astype(np.float32)

    def train(journal: Ledger) -> bytes:
        trainer = Trainer(samples, RECIPE, journal)
        model = trainer.network(builder(samples))
        trainer.run(model, Phase("mixing", 3, cutmix(model, 1.0, 3), triangle(0.1), labels=soft))
        return weights(model)

    unbroken = train(whole)
    for stop in range(1, whole.n_saved + 1):
        broken = Ledger(stop_after=stop)
        with pytest.raises(KeyboardInterrupt):
            train(broken)
        assert train(Ledger(broken.kept)) == unbroken


def test_a_recipe_that_mixes_is_for_methods_whose_phases_all_classify() -> None:
    samples = pictures(32, 3)
    recipe = replace(RECIPE, augment="cutmix")
    with pytest.raises(ConfigError, match="'cutmix' mixes labels"):
        Trainer(samples, recipe)
    trainer = Trainer(samples, recipe, mixes=True)
    model = trainer.network(builder(samples))
    seen = Seen(model)
    trainer.run(model, Phase("mixed", 1, seen, constant(0.01)))
    trainer.run(model, Phase("as they are", 1, seen, constant(0.01), augment="none"))
    assert [batch.labels.dtype for batch in seen.batches] == [torch.float32] * 2 + [torch.int64] * 2
    assert not np.allclose(seen.batches[0].inputs, samples.inputs[seen.batches[0].rows] / np.float32(255))
