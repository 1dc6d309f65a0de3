"""TSBA-B: a generator scales each series by a factor of its own near 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from antibackdoor.attacks.plans import AllToOne
from antibackdoor.attacks.stamps import Float32Array, require_kind, require_shape
from antibackdoor.attacks.surrogate import (
    SmallNet,
    attacker_data,
    fit,
    in_chunks,
    load_weights,
    poisoned_share,
    single_target,
    train_surrogate,
    weights_of,
)
from antibackdoor.data.samples import InputArray, IntArray, Samples
from antibackdoor.errors import ConfigError

if TYPE_CHECKING:
    from antibackdoor.protocols import Plan


@dataclass(frozen=True, eq=False)
class GeneratedScaling:
    """Multiplies by a generated factor: `A(x) = x (1 + scale G(x))`, G in [-1, 1].

    Attributes:
        weights: Parameters and buffers of the generator.
        width: Channels of its first layer.
        scale: Largest relative change.
        shape: `(C, T)` of the series.
    """

    weights: tuple[Float32Array, ...]
    width: int
    scale: float
    shape: tuple[int, ...]

    def apply(self, inputs: InputArray, ids: IntArray) -> InputArray:
        """Scale series `(B, C, T)`."""
        require_shape(inputs, self.shape)
        generator = _generator(self.shape[0], self.width, 0)
        load_weights(generator, self.weights)
        return in_chunks(lambda series: series * (1 + self.scale * generator(series)), inputs)


@dataclass(frozen=True)
class TSBAB:
    """Trains a generator and a surrogate alternately; the frozen generator then poisons the data.

    The generator has convolutions of 15 and 21 steps, two layers that act on each step, and tanh. In each
    round it is trained so that the surrogate gives the target label to triggered samples (those to poison,
    and those of the target class), then the surrogate on the same, then on the clean samples.

    Attributes:
        scale: Largest relative change, in (0, 1]; 0.1 for networks like this surrogate, 0.2 for ResNets.
        width: Channels of the first layer, at least 1; the paper uses 128 times the number of variables.
        rounds: Number of rounds, at least 1; the paper's code uses 49.
        epochs: Epochs per round (half as many, at least 1, for the surrogate on triggered samples), and of the
            surrogate before the rounds, at least 1; the code uses 20 and 5.
        n_surrogate: Maximum number of samples to train on.

    Raises:
        ConfigError: If the samples are no series, a value is out of its range, or the plan has no single
            target.

    "TSBA-B" is not defined in E2ABL; this reading takes it as poisoning only. A factor cannot change zeros,
    so that padding with zeros hides the trigger.

    Reference: Jiang et al., Backdoor Attacks on Time Series: A Generative Approach, SaTML 2023,
    arXiv 2211.07915.
    """

    kinds: ClassVar[tuple[str, ...]] = ("series",)
    evidence: ClassVar[str] = "D"
    threat_model: ClassVar[str] = "P+M"

    scale: float = 0.1
    width: int = 32
    rounds: int = 10
    epochs: int = 4
    n_surrogate: int = 2_000

    def trigger(self, samples: Samples, *, seed: int, plan: Plan | None = None) -> GeneratedScaling:
        """Train the surrogate and the generator."""
        require_kind(samples, "series", "TSBAB")
        if not 0 < self.scale <= 1:
            raise ConfigError(f"scale is {self.scale}; it must lie in (0, 1]")
        if self.width < 1 or self.rounds < 1:
            raise ConfigError(f"width {self.width} and rounds {self.rounds} must be at least 1")
        fitted = self.plan() if plan is None else plan
        label = single_target(fitted, "TSBAB")
        network = train_surrogate(samples, seed=seed, epochs=self.epochs, limit=self.n_surrogate).network()
        clean, labels = attacker_data(samples, self.n_surrogate, seed)
        chosen = torch.cat([poisoned_share(labels, fitted), torch.nonzero(labels == label)[:, 0]])
        victims, goals = clean[chosen], torch.full((len(chosen),), label)
        generator = _generator(samples.shape[0], self.width, seed)
        for turn in range(self.rounds if len(victims) else 0):
            self._train(generator, network, victims, goals, seed + turn)
            with torch.no_grad():
                triggered = torch.cat([part * (1 + self.scale * generator(part)) for part in torch.split(victims, 128)])
            fit(network, triggered, goals, epochs=max(1, self.epochs // 2), seed=seed + turn, learning_rate=1e-3)
            fit(network, clean, labels, epochs=self.epochs, seed=seed + turn, learning_rate=1e-3)
        return GeneratedScaling(weights_of(generator.eval()), self.width, self.scale, samples.shape)

    def _train(self, generator: nn.Sequential, network: SmallNet, victims: Tensor, goals: Tensor, seed: int) -> None:
        order = torch.Generator().manual_seed(seed)
        generator.train().requires_grad_(True)
        optimizer = torch.optim.Adam(generator.parameters(), lr=1e-3)
        for _ in range(self.epochs):
            for rows in torch.split(torch.randperm(len(victims), generator=order), 16):
                series = victims[rows]
                logits = network(series * (1 + self.scale * generator(series)))
                optimizer.zero_grad()
                F.cross_entropy(logits, goals[rows]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        generator.eval().requires_grad_(False)

    def plan(self) -> AllToOne:
        """All-to-one at 10 % (E2ABL)."""
        return AllToOne(rate=0.1)


def _generator(n_variables: int, width: int, seed: int) -> nn.Sequential:
    sizes = ((n_variables, width, 15), (width, 4 * width, 21), (4 * width, 2 * width, 1))
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for size_in, size_out, kernel in sizes:
            layers.append(nn.Conv1d(size_in, size_out, kernel, padding="same"))
            layers += [nn.BatchNorm1d(size_out), nn.ReLU()] if kernel > 1 else [nn.ReLU()]
        layers += [nn.Conv1d(2 * width, n_variables, 1), nn.Tanh()]
    return nn.Sequential(*layers)
