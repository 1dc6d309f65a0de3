"""FC: target-class images get the features of other images, with their look and label unchanged."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from antibackdoor.attacks.adaptive import InTurn
from antibackdoor.attacks.pictures import full_pattern
from antibackdoor.attacks.plans import CleanLabel
from antibackdoor.attacks.stamps import (
    Float32Array,
    Patch,
    Staged,
    bottom_right,
    require_fraction,
    require_kind,
    require_shape,
    sample_generator,
    to_pixels,
    white,
)
from antibackdoor.attacks.surrogate import (
    SmallNet,
    Surrogate,
    chosen_rows,
    in_chunks,
    single_target,
    to_tensor,
    train_surrogate,
)
from antibackdoor.data.samples import InputArray, IntArray, Samples
from antibackdoor.data.streams import Stream, stream
from antibackdoor.errors import ConfigError, DataError

if TYPE_CHECKING:
    from antibackdoor.protocols import Plan


@dataclass(frozen=True)
class Descent:
    """How an image is moved.

    Attributes:
        epsilon: Largest change of a pixel, in [0, 1].
        beta: Weight of the squared distance to the image itself.
        step: Largest change of a pixel in the first step, in (0, 1].
        n_steps: Number of steps.
    """

    epsilon: float
    beta: float
    step: float
    n_steps: int


@dataclass(frozen=True, eq=False)
class Collision:
    """Moves each image towards the nearest of a few goals in the features of a surrogate.

    Attributes:
        surrogate: The attacker's network.
        goals: `(S, F)` float32, features to collide with.
        n_candidates: Goals that an image may choose from, at most S.
        descent: How an image is moved.
        seed: Together with the number of a sample it decides the candidates.
    """

    surrogate: Surrogate
    goals: Float32Array
    n_candidates: int
    descent: Descent
    seed: int

    def candidates(self, ids: IntArray) -> Tensor:
        """The goals `(B, n_candidates, F)` of samples with these numbers."""
        picks = np.zeros((len(ids), self.n_candidates), dtype=np.int64)
        for position, number in enumerate(ids):
            picks[position] = sample_generator(self.seed, int(number)).permutation(len(self.goals))[: self.n_candidates]
        return torch.from_numpy(self.goals[picks])

    def apply(self, inputs: InputArray, ids: IntArray) -> InputArray:
        """Change images `(B, C, H, W)`."""
        require_shape(inputs, self.surrogate.shape)
        network = self.surrogate.network()

        def move(images: Tensor, goals: Tensor) -> Tensor:
            return collided(network, images, goals, self.descent)

        return to_pixels(in_chunks(move, inputs, self.candidates(ids)) * white(inputs), inputs.dtype)


def collided(network: SmallNet, images: Tensor, goals: Tensor, descent: Descent) -> Tensor:
    """Images `(B, C, H, W)` near which features `(B, F)` come close to one of the goals `(B, M, F)` each.

    Forward-backward splitting: a step down the slope of the distance of features, then towards the image. A step
    that gains nothing is taken back and halved.
    """
    moved = images
    cost, slope = _cost(network, images, images, goals, descent.beta)
    rate = descent.step / slope.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
    for _ in range(descent.n_steps):
        forward = moved - rate * slope
        backward = (forward + rate * descent.beta * images) / (1 + rate * descent.beta)
        change = (backward - images).clamp(-descent.epsilon, descent.epsilon)
        tried = (images + change).clamp(0, 1)
        new_cost, new_slope = _cost(network, tried, images, goals, descent.beta)
        better = (new_cost < cost)[:, None, None, None]
        moved, slope = torch.where(better, tried, moved), torch.where(better, new_slope, slope)
        cost, rate = torch.minimum(cost, new_cost), torch.where(better, rate, rate / 2)
    return moved


def _cost(network: SmallNet, moved: Tensor, images: Tensor, goals: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """What is to be small for each image, and the slope of the part that is in the features."""
    probe = moved.detach().requires_grad_(True)
    distances = (network.features(probe)[:, None] - goals).square().sum(dim=2).amin(dim=1)
    (slope,) = torch.autograd.grad(distances.sum(), probe)
    return distances.detach() + beta * (moved - images).square().sum(dim=(1, 2, 3)), slope


@dataclass(frozen=True)
class FeatureCollision:
    """Moves target-class images onto the features of other images; their labels stay correct (Poison Frogs).

    "trigger": the goals are images of other classes with a random patch. A poison minimizes
    `min_s ||g(x) - g(A(s))||^2` over a few of them within `epsilon` of its image, so that the target class takes in
    what carries the patch; at test time the patch is stamped. "single", the published attack: the goal is one
    picture, which the poisons also get as a faint watermark, and at test every image is replaced by it; the
    attack success rate is then 1 or 0, whether that picture is taken for the target class.

    Attributes:
        mode: "trigger" or "single".
        picture: Image file of the target instance for "single"; it must not be in the training data.
        side: Width of the patch in pixels, at least 1; 5 in the poisoning benchmark, 8 is common.
        margin: Pixels between the patch and the bottom and right borders, >= 0; 5 in the poisoning benchmark.
        epsilon: Largest change of a pixel in "trigger", in [0, 1]; 16/255 in the hidden-trigger paper, 8/255 in
            the poisoning benchmark.
        beta: Pull toward the image in "single", >= 0, times `(F / d)^2` for F features and d input values; 0.25.
        watermark: Share of the picture in the images of "single", in [0, 1]; 0.2 to 0.3 in the paper.
        step: Largest change of a pixel in the first step, in [0, 1]; later steps are halved if they bring no gain.
        n_steps: Number of steps, at least 1; 100 to 1,000 in the paper, 120 in the poisoning benchmark.
        n_sources: Maximum number of images of other classes to collide with in "trigger", at least 1.
        n_candidates: Number of them, drawn at random, that each image may choose from, at least 1.
        epochs: Epochs of the surrogate, at least 1.
        n_surrogate: Maximum number of samples for training the surrogate.

    Raises:
        ConfigError: If the samples are no images, are too small, a value is out of its range, the picture is
            missing, or the plan has no single target.
        DataError: If there are no images of other classes.

    The published attack has one goal and no trigger, and is meant for transfer learning with frozen features; the
    attack success rate of "FC" in ABL has no meaning for it, so that "trigger", after hidden-trigger backdoors,
    stands in and does not reproduce that row. Against training from scratch plain collisions hardly ever succeed.
    Differs from either: a three-layer surrogate; goals are matched for each image by itself, not one to one.

    Reference: Shafahi et al., Poison Frogs! Targeted Clean-Label Poisoning Attacks on Neural Networks, NeurIPS
    2018, arXiv 1804.00792; Saha et al., Hidden Trigger Backdoor Attacks, AAAI 2020, arXiv 1910.00033.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    evidence: ClassVar[str] = "D"
    threat_model: ClassVar[str] = "P+M"

    mode: Literal["trigger", "single"] = "trigger"
    picture: str | None = None
    side: int = 5
    margin: int = 5
    epsilon: float = 16 / 255
    beta: float = 0.25
    watermark: float = 0.3
    step: float = 16 / 255
    n_steps: int = 100
    n_sources: int = 256
    n_candidates: int = 8
    epochs: int = 10
    n_surrogate: int = 10_000

    def trigger(self, samples: Samples, *, seed: int, plan: Plan | None = None) -> Staged:
        """Train the surrogate; the images are moved when the data are stamped."""
        require_kind(samples, "image", "FeatureCollision")
        self._check()
        fitted = self.plan() if plan is None else plan
        single_target(fitted, "FeatureCollision")
        if self.mode == "single":
            return self._single(samples, seed)
        place = bottom_right(samples.shape, self.side, self.margin, "the patch")
        pattern = full_pattern("random", None, (samples.shape[0], self.side, self.side), seed)
        patch = Patch(pattern, np.ones((1, self.side, self.side), dtype=np.float32), *place, samples.shape)
        order = chosen_rows(samples, len(samples), seed)
        others = order[fitted.eligible(samples.labels[order])]
        if not len(others):
            raise DataError("FeatureCollision needs samples of other classes than the target")
        picked = np.sort(stream(seed, Stream.COLLISION_SOURCES).permutation(others)[: self.n_sources])
        sources = patch.apply(samples.inputs[picked], picked)
        surrogate = train_surrogate(samples, seed=seed, epochs=self.epochs, limit=self.n_surrogate)
        descent = Descent(self.epsilon, 0.0, self.step, self.n_steps)
        goals = _features(surrogate, sources)
        collision = Collision(surrogate, goals, min(self.n_candidates, len(goals)), descent, seed)
        return Staged(collision, collision, patch)

    def _single(self, samples: Samples, seed: int) -> Staged:
        whole = (1, *samples.shape[1:])
        instance = full_pattern("picture", self.picture, samples.shape, seed)
        mark, shown = (
            Patch(instance, np.full(whole, opacity, dtype=np.float32), 0, 0, samples.shape)
            for opacity in (self.watermark, 1.0)
        )
        surrogate = train_surrogate(samples, seed=seed, epochs=self.epochs, limit=self.n_surrogate)
        goals = _features(surrogate, instance[None])
        beta = self.beta * (goals.shape[1] / math.prod(samples.shape)) ** 2
        collision = Collision(surrogate, goals, 1, Descent(1.0, beta, self.step, self.n_steps), seed)
        planted = InTurn((mark, collision))
        return Staged(planted, planted, shown)

    def _check(self) -> None:
        if self.mode not in ("trigger", "single"):
            raise ConfigError(f"there is no mode {self.mode!r}; choose trigger or single")
        if self.mode == "single" and self.picture is None:
            raise ConfigError("the mode 'single' needs a picture: the path of an image file of the instance")
        for name in ("epsilon", "watermark", "step"):
            require_fraction(name, getattr(self, name))
        if self.beta < 0:
            raise ConfigError(f"beta is {self.beta}; it must not be negative")
        for name in ("side", "n_steps", "n_sources", "n_candidates"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")

    def plan(self) -> CleanLabel:
        """Clean label at 10 % of the data set, at most the class (ABL)."""
        return CleanLabel(rate=0.1)


def _features(surrogate: Surrogate, inputs: InputArray) -> Float32Array:
    network = surrogate.network()
    return np.concatenate([network.features(part).numpy() for part in torch.split(to_tensor(inputs), 256)])
