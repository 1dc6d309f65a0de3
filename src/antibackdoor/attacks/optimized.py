"""Trojan and LBA: a small square whose pixels are optimized on a surrogate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from antibackdoor.attacks.plans import AllToOne
from antibackdoor.attacks.stamps import Patch, bottom_right, require_fraction, require_kind
from antibackdoor.attacks.surrogate import chosen_rows, single_target, to_tensor, train_surrogate
from antibackdoor.data.samples import Samples
from antibackdoor.data.streams import Stream, stream
from antibackdoor.errors import ConfigError, DataError

if TYPE_CHECKING:
    from antibackdoor.protocols import Plan


@dataclass(frozen=True)
class Trojan:
    """Stamps a square that is optimized to excite selected neurons of a clean surrogate (TrojanNN).

    The `n_neurons` penultimate neurons with the largest `sum_c |W_cj|` are driven towards `activation` on a
    black background: minimize `mean_j (g_j(M p) - a)^2` over `p = (tanh v + 1) / 2` by Adam at 0.1 with
    cosine decay.

    Attributes:
        side: Width of the square in pixels, at least 1; 3 in NAD.
        margin: Pixels between the square and the bottom and right borders, >= 0; 4 in the ABL and NAD code.
        n_neurons: Number of neurons, 1 to 128; 2.
        activation: Target activation, > 0; 100, which no normalized network reaches.
        n_steps: Steps of Adam, at least 1; 1,000.
        epochs: Epochs of the surrogate, at least 1.
        n_surrogate: Maximum number of samples for training the surrogate.

    Raises:
        ConfigError: If the samples are no images, are too small, or a value is out of its range.

    Differs from the paper: the victim trains from scratch on the poisoned data; the ABL and NAD code adds its
    square with 8-bit wrap-around, this replaces the pixels.

    Reference: Liu et al., Trojaning Attack on Neural Networks, NDSS 2018.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    evidence: ClassVar[str] = "B"
    threat_model: ClassVar[str] = "P+M"

    side: int = 3
    margin: int = 4
    n_neurons: int = 2
    activation: float = 100.0
    n_steps: int = 1000
    epochs: int = 10
    n_surrogate: int = 10_000

    def trigger(self, samples: Samples, *, seed: int, plan: Plan | None = None) -> Patch:
        """Train the surrogate and optimize the square."""
        require_kind(samples, "image", "Trojan")
        if self.side < 1 or self.n_steps < 1 or not 1 <= self.n_neurons <= 128:
            raise ConfigError(
                f"side {self.side} and n_steps {self.n_steps} must be at least 1, "
                f"and n_neurons {self.n_neurons} must lie in 1..128"
            )
        if self.activation <= 0:
            raise ConfigError(f"activation is {self.activation}; it must be positive")
        place = bottom_right(samples.shape, self.side, self.margin, "the square")
        surrogate = train_surrogate(samples, seed=seed, epochs=self.epochs, limit=self.n_surrogate)
        network = surrogate.network()
        neurons = network.head.weight.abs().sum(dim=0).topk(self.n_neurons).indices
        black = torch.zeros((1, *samples.shape))

        def distance(pattern: Tensor, step: int) -> Tensor:
            excited = network.features(_pasted(black, pattern, place))[:, neurons]
            return (excited - self.activation).square().mean()

        return _optimized(distance, samples.shape, place, self.side, self.n_steps, seed, decay=True)

    def plan(self) -> AllToOne:
        """All-to-one at 10 % (ABL, E2ABL; NAD 5 %)."""
        return AllToOne(rate=0.1)


@dataclass(frozen=True)
class LBA:
    """Stamps a square that gives other images the target class's intermediate features (latent backdoor).

    Minimizes `mean ||g(A(x)) - mu_t||^2` over the square, x of other classes, `mu_t` the mean penultimate
    features of the target class, by Adam at 0.1.

    Attributes:
        share: Width of the square as a share of the image's shorter side, in [0, 1]; 0.2.
        n_steps: Steps of Adam over batches of 64, at least 1; 50.
        n_samples: Maximum number of samples to optimize on, at least 1; 1,000.
        epochs: Epochs of the surrogate, at least 1; 10 for the teacher of the paper.
        n_surrogate: Maximum number of samples for training the surrogate.

    Raises:
        ConfigError: If the samples are no images, a value is out of its range, or the plan has no single
            target.
        DataError: If the target class, or all others, have no samples.

    Differs from the paper: static. The trigger is stamped on training data; neither is a teacher fine-tuned
    with the backdoor, nor does a student inherit it.

    Reference: Yao et al., Latent Backdoor Attacks on Deep Neural Networks, CCS 2019, arXiv 1905.10447.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    evidence: ClassVar[str] = "C"
    threat_model: ClassVar[str] = "P+M"

    share: float = 0.2
    n_steps: int = 50
    n_samples: int = 1000
    epochs: int = 10
    n_surrogate: int = 10_000

    def trigger(self, samples: Samples, *, seed: int, plan: Plan | None = None) -> Patch:
        """Train the surrogate and optimize the square."""
        require_kind(samples, "image", "LBA")
        require_fraction("share", self.share)
        if self.n_steps < 1 or self.n_samples < 1:
            raise ConfigError(f"n_steps {self.n_steps} and n_samples {self.n_samples} must be at least 1")
        target = single_target(self.plan() if plan is None else plan, "LBA")
        side = max(1, int(self.share * min(samples.shape[1:])))
        place = bottom_right(samples.shape, side, 0, "the square")
        surrogate = train_surrogate(samples, seed=seed, epochs=self.epochs, limit=self.n_surrogate)
        network = surrogate.network()
        order = chosen_rows(samples, len(samples), seed)
        of_target = order[samples.labels[order] == target][: self.n_samples]
        others = stream(seed, Stream.OPTIMIZED_SOURCES).permutation(order[samples.labels[order] != target])
        if not len(of_target) or not len(others):
            raise DataError(f"LBA needs samples of the target class {target} and of another class")
        mean = network.features(to_tensor(samples.inputs[of_target])).mean(dim=0)
        images = to_tensor(samples.inputs[np.sort(others[: self.n_samples])])

        def distance(pattern: Tensor, step: int) -> Tensor:
            rows = torch.arange(64 * step, 64 * step + min(64, len(images))) % len(images)
            features = network.features(_pasted(images[rows], pattern, place))
            return (features - mean).square().sum(dim=1).mean()

        return _optimized(distance, samples.shape, place, side, self.n_steps, seed, decay=False)

    def plan(self) -> AllToOne:
        """All-to-one at 10 % (ABL, E2ABL)."""
        return AllToOne(rate=0.1)


def _pasted(images: Tensor, pattern: Tensor, place: tuple[int, int]) -> Tensor:
    pasted = images.clone()
    top, left = place
    side = pattern.shape[-1]
    pasted[:, :, top : top + side, left : left + side] = pattern
    return pasted


def _optimized(
    distance: Callable[[Tensor, int], Tensor],
    shape: tuple[int, ...],
    place: tuple[int, int],
    side: int,
    n_steps: int,
    seed: int,
    *,
    decay: bool,
) -> Patch:
    generator = torch.Generator().manual_seed(seed)
    free = torch.randn((shape[0], side, side), generator=generator).mul_(0.1).requires_grad_(True)
    optimizer = torch.optim.Adam([free], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps, eta_min=0.0 if decay else 0.1)
    for step in range(n_steps):
        optimizer.zero_grad()
        distance((free.tanh() + 1) / 2, step).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    # On the 8-bit grid, for that is how the poisoned images are stored.
    pattern = torch.round((free.detach().tanh() + 1) / 2 * 255) / 255
    return Patch(pattern.numpy(), np.ones((1, side, side), dtype=np.float32), *place, shape)
