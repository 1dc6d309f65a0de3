"""Ranks samples by how little an adversarial patch changes what the network says of them."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from antibackdoor.data.samples import IntArray, Samples
from antibackdoor.data.streams import Stream
from antibackdoor.models.hooks import evaluation_mode
from antibackdoor.protocols import Detection, Given, Verdict, check_given
from antibackdoor.training.journal import Journal
from antibackdoor.training.ranges import check_ranges
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.scoring import score_rows
from antibackdoor.training.session import Feed, Session

BLOCK = 4096  # samples at a time whose spread is measured


@dataclass(frozen=True)
class PatchPerturbation:
    """Ranks samples by how far an adversarial perturbation of a random patch moves their prediction; least is worst.

    `s(x) = KL(f(x) || f(clamp(x + m * delta)))` with a random square `m`, and `delta` of at most `eps` that projected
    gradient ascent on `s` finds from a random start. A trigger holds its label against such a perturbation; what makes
    the class of a clean sample is more delicate. The suspicion is `-s`. It isolates nobody, and needs a model that was
    trained on the data, if only briefly: a long training makes clean samples robust as well.

    In a series, the patch is an interval of time, and `eps` and `step_size` are shares of the scale of each channel:
    `sqrt(12)` of its standard deviations, the range of a uniform distribution, as 1 is the range of a pixel. Series
    are not clamped.

    Attributes:
        eps: Largest change of a value, > 0; the paper's value is unknown, 8/255 is common.
        steps: Gradient steps, >= 1: 3 to 5 are enough to rank.
        step_size: Size of a gradient step, > 0.
        patch: Side of the patch as a share of the image's shorter side, or of the series' length, in (0, 1].

    Reference: Pu et al., "How to Train a Backdoor-Robust Model on a Poisoned Dataset without Auxiliary Data?", 2024,
    arXiv 2405.12719 (AdvrBD), Equation 3 and Algorithm 1.
    """

    needs: ClassVar[tuple[str, ...]] = ("model",)
    takes: ClassVar[tuple[str, ...]] = ("history",)
    unused: ClassVar[tuple[str, ...]] = (
        "epochs",
        "batch_size",
        "learning_rate",
        "schedule",
        "momentum",
        "weight_decay",
        "augment",
    )

    eps: float = 8 / 255
    steps: int = 5
    step_size: float = 2 / 255
    patch: float = 0.5

    def detect(
        self, samples: Samples, given: Given | None, recipe: Recipe, *, journal: Journal | None = None
    ) -> Detection:
        """Rank the samples by `given.model`.

        Raises:
            ConfigError: If there is no model, or a hyper-parameter is out of range.
        """
        given = check_given(self, given)
        self.check()
        assert given.model is not None
        session = Session(recipe, len(samples), images=samples.kind == "image")
        model, feed = session.prepare(deepcopy(given.model)), session.feed(samples)
        scores = self.divergences(session, feed, model, widths(samples), seed=(recipe.seed, Stream.PATCH))
        return Detection(Verdict.ranking(-scores.astype(np.float64), samples), history=given.history)

    def check(self) -> None:
        """Check the hyper-parameters.

        Raises:
            ConfigError: If one is out of range.
        """
        check_ranges(self, eps="(0, inf)", steps="[1, inf)", step_size="(0, inf)", patch="(0, 1]")

    def divergences(
        self,
        session: Session,
        feed: Feed,
        model: nn.Module,
        widths: Tensor,
        rows: IntArray | None = None,
        *,
        seed: tuple[int, Stream, *tuple[int, ...]],
    ) -> NDArray[np.float32]:
        """How far an adversarial patch moves the prediction of each row, as a part of something larger.

        Args:
            session: Device, precision, processes.
            feed: The data.
            model: On the session's device; its mode and its gradients are left as they are.
            widths: `(C,)` scale of each channel, as `widths` gives it.
            rows: `(M,)`; all by default.
            seed: Seed, stream and position.

        Returns:
            `(M,)` float32, a Kullback-Leibler divergence in nats, >= 0.
        """
        is_image = feed.inputs.ndim == 4
        scale = widths.to(session.device).view(1, -1, *[1] * (feed.inputs.ndim - 2))

        def score(inputs: Tensor, generator: torch.Generator) -> Tensor:
            mask = patches(inputs.shape, self.patch, generator).to(inputs.device) * scale
            delta = (2 * torch.rand(inputs.shape, generator=generator) - 1).to(inputs.device) * self.eps
            with session.autocast():
                before = F.log_softmax(model(inputs).float(), dim=1)
            for _ in range(self.steps):
                delta = delta.detach().requires_grad_()
                with torch.enable_grad(), session.autocast():
                    moved = divergence(before, model(perturbed(inputs, mask * delta, is_image))).sum()
                (slope,) = torch.autograd.grad(moved, delta)
                delta = (delta + self.step_size * slope.sign()).clamp(-self.eps, self.eps)
            with session.autocast():
                return divergence(before, model(perturbed(inputs, mask * delta, is_image)))

        # The divergences of robust samples are far below the rounding of bfloat16.
        with session.full_precision(), evaluation_mode(model):
            return score_rows(session, feed, score, rows, seed=seed, title="perturbing")


def divergence(before: Tensor, logits: Tensor) -> Tensor:
    """`KL(p || q)` of each row, `(B,)`, p given by its logarithm `(B, K)` and q by its logits `(B, K)`."""
    after = F.log_softmax(logits.float(), dim=1)
    return F.kl_div(after, before, reduction="none", log_target=True).sum(1)


def perturbed(inputs: Tensor, change: Tensor, is_image: bool) -> Tensor:
    """Inputs plus a change; images stay in [0, 1]."""
    return (inputs + change).clamp(0, 1) if is_image else inputs + change


def patches(shape: tuple[int, ...], share: float, generator: torch.Generator) -> Tensor:
    """A random square within each image, or an interval of each series: `(B, 1, *spatial)` float, 1 inside."""
    n, sides = shape[0], shape[2:]
    width = max(1, round(share * min(sides)))
    inside = torch.ones(n, 1, *sides)
    for place, side in enumerate(sides):
        start = torch.randint(side - width + 1, (n, 1), generator=generator)
        at = torch.arange(side)
        along = ((at >= start) & (at < start + width)).float()
        inside *= along.view(n, 1, *[side if other == place else 1 for other in range(len(sides))])
    return inside


def widths(samples: Samples) -> Tensor:
    """Scale of each channel, `(C,)` float32: 1 for images, `sqrt(12)` standard deviations for series."""
    if samples.kind == "image":
        return torch.ones(samples.shape[0])
    blocks = [samples.inputs[start : start + BLOCK] for start in range(0, len(samples), BLOCK)]
    n = len(samples) * samples.shape[1]
    mean = sum(block.sum(axis=(0, 2), dtype=np.float64) for block in blocks) / n
    square = sum(((block - mean[:, None]) ** 2).sum(axis=(0, 2)) for block in blocks) / n
    return torch.from_numpy(np.sqrt(12 * np.asarray(square)).astype(np.float32))
