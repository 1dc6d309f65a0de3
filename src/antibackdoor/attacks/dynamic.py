"""Dynamic (input-aware): a generator gives every image a trigger of its own, which fits no other image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from antibackdoor.attacks.adaptive import OneOf
from antibackdoor.attacks.plans import AllToOne
from antibackdoor.attacks.stamps import (
    Float32Array,
    Patch,
    Staged,
    require_fraction,
    require_kind,
    require_shape,
    to_pixels,
    white,
)
from antibackdoor.attacks.surrogate import (
    SmallNet,
    attacker_data,
    in_chunks,
    load_weights,
    single_target,
    train_surrogate,
    weights_of,
)
from antibackdoor.data.samples import InputArray, IntArray, Samples
from antibackdoor.data.streams import Stream, stream
from antibackdoor.errors import ConfigError

if TYPE_CHECKING:
    from antibackdoor.protocols import Plan

Schedule = torch.optim.lr_scheduler.MultiStepLR
_SMALLEST_SIDE = 8  # three halvings
_DENSITY_WEIGHT = 100.0
_LEARNING_RATE, _BETAS = 0.01, (0.5, 0.9)
_N_PARTNERS = 32  # foreign triggers to choose from for covers


class Painter(nn.Module):
    """Encoder and decoder of three steps each, from images `(B, C, H, W)` to `(B, n_out, H, W)` in [0, 1]."""

    def __init__(self, channels: int, n_out: int, width: int) -> None:
        super().__init__()
        w1, w2, w3 = width, 2 * width, 4 * width
        self.down = nn.ModuleList([_blocks(channels, w1, w1), _blocks(w1, w2, w2), _blocks(w2, w3, w3)])
        self.middle = _blocks(w3, w3)
        self.up = nn.ModuleList([_blocks(w3, w3, w2), _blocks(w2, w2, w1), _blocks(w1, w1, n_out)[:-1]])

    def forward(self, images: Tensor) -> Tensor:
        """What is painted for each image."""
        hidden, sizes = images, []
        for blocks in self.down:
            sizes.append(hidden.shape[2:])
            hidden = F.max_pool2d(blocks(hidden), 2)
        hidden = self.middle(hidden)
        for blocks in self.up:
            # Back to the size before the halving, which is twice the present one unless that was odd.
            hidden = blocks(F.interpolate(hidden, sizes.pop(), mode="bilinear", align_corners=False))
        painted: Tensor = hidden.tanh() / 2 + 0.5
        return painted


def _blocks(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size_in, size_out in pairwise(widths):
        layers += [nn.Conv2d(size_in, size_out, 3, padding=1), nn.BatchNorm2d(size_out, momentum=0.05), nn.ReLU()]
    return nn.Sequential(*layers)


@dataclass(frozen=True, eq=False)
class GeneratedPatch:
    """Blends a generated pattern where a generated mask says: `A(x) = (1 - m(x)) x + m(x) G(x)`.

    Attributes:
        mask_weights, pattern_weights: Parameters and buffers of the two networks.
        width: Channels of their first layers.
        shape: `(C, H, W)` of the images.
    """

    mask_weights: tuple[Float32Array, ...]
    pattern_weights: tuple[Float32Array, ...]
    width: int
    shape: tuple[int, ...]

    def networks(self) -> tuple[Painter, Painter]:
        """The networks of mask and pattern, in evaluation mode."""
        mask, pattern = _painters(self.shape[0], self.width, 0)
        load_weights(mask, self.mask_weights)
        load_weights(pattern, self.pattern_weights)
        return mask, pattern

    def apply(self, inputs: InputArray, ids: IntArray) -> InputArray:
        """Stamp images `(B, C, H, W)`."""
        require_shape(inputs, self.shape)
        mask, pattern = self.networks()
        stamped = in_chunks(lambda images: blended(images, threshold(mask(images)), pattern(images)), inputs)
        return to_pixels(stamped * white(inputs), inputs.dtype)

    def of(self, inputs: InputArray) -> tuple[Patch, ...]:
        """The triggers of images `(B, C, H, W)`, as patches that can be stamped on any others."""
        mask, pattern = self.networks()
        masks, patterns = in_chunks(lambda images: threshold(mask(images)), inputs), in_chunks(pattern, inputs)
        return tuple(Patch(p, m, 0, 0, self.shape) for p, m in zip(patterns, masks, strict=True))


def threshold(painted: Tensor) -> Tensor:
    """A mask in [0, 1] that is nearly binary."""
    return (20 * painted - 10).tanh() / 2 + 0.5


def blended(images: Tensor, masks: Tensor, patterns: Tensor) -> Tensor:
    """Images with a trigger each."""
    return (1 - masks) * images + masks * patterns


def diversity(images: Tensor, others: Tensor, painted: Tensor, painted_others: Tensor) -> Tensor:
    """How much more pairs of images `(B, C, H, W)` differ than what was painted for them: mean of `d(x) / d(u)`."""
    return (_distance(images, others) / (_distance(painted, painted_others) + 1e-7)).mean()


def _distance(first: Tensor, second: Tensor) -> Tensor:
    # The floor keeps the root of two equal ones from an infinite slope.
    return (first - second).square().mean(dim=(1, 2, 3)).clamp_min(1e-12).sqrt()


@dataclass(frozen=True)
class Dynamic:
    """A different trigger for every image, generated by trained networks (input-aware; static here).

    `A(x) = (1 - m(x)) x + m(x) G(x)`. First the mask network m is trained alone, for `density` and for masks
    that differ from image to image. Then m is frozen, and G is trained together with a surrogate: a tenth of
    each batch gets its own trigger and the target label, another tenth the trigger of another image and keeps
    its label ("cross trigger"), which ties a trigger to its image; patterns must differ too.

    Attributes:
        width: Channels of the first layer of both networks, at least 1; 32 in the paper.
        density: Mean of a mask above which it is penalized, in [0, 1]; 0.032.
        diversity: Weight of the diversity of masks and patterns, >= 0; 1.
        cross_rate: Share of the data set that carries another image's trigger under its own label, in [0, 1];
            0 in the ABL code, 0.1 in the paper's training.
        mask_epochs: Epochs for the mask, at least 1; 25.
        joint_epochs: Epochs for pattern and surrogate, at least 1; 600 in the paper.
        epochs: Epochs of the surrogate beforehand, at least 1.
        n_surrogate: Maximum number of samples to train on; all in the paper.

    Raises:
        ConfigError: If the samples are no images or smaller than 8x8, a value is out of its range, or the plan
            has no single target.

    Differs from the paper, whose attacker controls the training (T) and hands over a model: here, as in the
    ABL code, the networks are trained once, frozen, and a fixed share of the data set is stamped, which is
    weaker. They are narrower, see fewer images for fewer epochs, and take the pairs from one batch. Gradients
    of the generator are cleared after each step, which the published code leaves out. Report it as "Dynamic
    (static)".

    Reference: Nguyen and Tran, Input-Aware Dynamic Backdoor Attack, NeurIPS 2020, arXiv 2010.08138.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    evidence: ClassVar[str] = "C"
    threat_model: ClassVar[str] = "P+M"

    width: int = 16
    density: float = 0.032
    diversity: float = 1.0
    cross_rate: float = 0.0
    mask_epochs: int = 25
    joint_epochs: int = 25
    epochs: int = 10
    n_surrogate: int = 2_000

    def trigger(self, samples: Samples, *, seed: int, plan: Plan | None = None) -> Staged:
        """Train the networks; covers get the trigger of one of a few other images."""
        require_kind(samples, "image", "Dynamic")
        self._check(samples.shape)
        label = single_target(self.plan() if plan is None else plan, "Dynamic")
        network = train_surrogate(samples, seed=seed, epochs=self.epochs, limit=self.n_surrogate).network()
        images, labels = attacker_data(samples, self.n_surrogate, seed)
        mask, pattern = _painters(samples.shape[0], self.width, seed)
        self._train_mask(mask, images, seed)
        self._train_pattern(pattern, mask, network, images, labels, label, seed)
        own = GeneratedPatch(weights_of(mask), weights_of(pattern), self.width, samples.shape)
        partners = stream(seed, Stream.MASK_PARTNERS).permutation(len(samples))[:_N_PARTNERS]
        return Staged(own, OneOf(own.of(samples.inputs[np.sort(partners)]), seed), own)

    def _check(self, shape: tuple[int, ...]) -> None:
        if min(shape[1:]) < _SMALLEST_SIDE:
            raise ConfigError(
                f"Dynamic needs images of at least {_SMALLEST_SIDE}x{_SMALLEST_SIDE} pixels, not {shape[1]}x{shape[2]}"
            )
        require_fraction("density", self.density)
        require_fraction("cross_rate", self.cross_rate)
        if self.diversity < 0:
            raise ConfigError(f"diversity is {self.diversity}; it must not be negative")
        for name in ("width", "mask_epochs", "joint_epochs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")

    def _train_mask(self, mask: Painter, images: Tensor, seed: int) -> None:
        scale = _deviations(images)
        optimizer = torch.optim.Adam(mask.parameters(), lr=_LEARNING_RATE, betas=_BETAS)
        schedule = _decay(optimizer, self.mask_epochs, (0.4, 0.8))
        for rows in _batches(len(images), self.mask_epochs, seed, schedule):
            batch = images[rows] / scale
            masks = threshold(mask(images[rows]))
            apart = diversity(batch, batch.roll(1, 0), masks, masks.roll(1, 0))
            dense = (masks - self.density).relu().mean()
            optimizer.zero_grad()
            (_DENSITY_WEIGHT * dense + self.diversity * apart).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        mask.eval().requires_grad_(False)

    def _train_pattern(
        self, pattern: Painter, mask: Painter, network: SmallNet, images: Tensor, labels: Tensor, label: int, seed: int
    ) -> None:
        scale = _deviations(images)
        network.train().requires_grad_(True)
        victim = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        painter = torch.optim.Adam(pattern.parameters(), lr=_LEARNING_RATE, betas=_BETAS)
        schedules = [_decay(optimizer, self.joint_epochs, (1 / 3, 1 / 2, 2 / 3)) for optimizer in (victim, painter)]
        for rows in _batches(len(images), self.joint_epochs, seed, *schedules):
            batch, goals = images[rows], labels[rows].clone()
            n = max(1, len(batch) // 10)
            # The first n get their own trigger, the next n that of the n after them.
            givers = torch.cat([batch[:n], batch[2 * n : 3 * n]])
            patterns = pattern(givers)
            triggered = blended(batch[: 2 * n], threshold(mask(givers)), patterns)
            goals[:n] = label
            answer = F.cross_entropy(network(torch.cat([triggered, batch[2 * n :]])), goals)
            own, others = givers.div(scale).chunk(2)
            apart = diversity(own, others, *patterns.div(scale).chunk(2))
            victim.zero_grad()
            painter.zero_grad()
            (answer + self.diversity * apart).backward()  # type: ignore[no-untyped-call]
            victim.step()
            painter.step()
        pattern.eval().requires_grad_(False)

    def plan(self) -> AllToOne:
        """All-to-one at 10 % (ABL, E2ABL), with `cross_rate` as the share of covers."""
        return AllToOne(rate=0.1, cover_rate=self.cross_rate)


def _painters(channels: int, width: int, seed: int) -> tuple[Painter, Painter]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Painter(channels, 1, width), Painter(channels, channels, width)


def _deviations(images: Tensor) -> Tensor:
    return images.std(dim=(0, 2, 3)).clamp_min(1e-3)[:, None, None]


def _decay(optimizer: torch.optim.Optimizer, epochs: int, shares: tuple[float, ...]) -> Schedule:
    milestones = [max(1, round(share * epochs)) for share in shares]
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)


def _batches(n: int, epochs: int, seed: int, *schedules: Schedule) -> Iterator[Tensor]:
    """Rows of batches of 128, epoch after epoch; a rest too small for pairs is left out."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(n, generator=generator), 128):
            if len(rows) >= 3:
                yield rows
        for schedule in schedules:
            schedule.step()
