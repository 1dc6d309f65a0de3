"""TimeTrojan-FGSM: sparse changes at a few time steps push a series towards the target label."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from antibackdoor.attacks.plans import AllToOne
from antibackdoor.attacks.stamps import Float32Array, require_kind, require_shape
from antibackdoor.attacks.surrogate import (
    SmallNet,
    Surrogate,
    attacker_data,
    fit,
    in_chunks,
    poisoned_share,
    single_target,
    train_surrogate,
    weights_of,
)
from antibackdoor.data.samples import InputArray, IntArray, Samples
from antibackdoor.errors import ConfigError

if TYPE_CHECKING:
    from antibackdoor.protocols import Plan

LIMIT = 3.0  # largest change, in standard deviations of the variable


@dataclass(frozen=True, eq=False)
class SparseSteps:
    """Changes the `n_steps` most telling time steps of each series by sign steps on a frozen surrogate.

    Attributes:
        surrogate: The attacker's network.
        label: The target label.
        n_steps: Number of time steps that change, in all variables.
        eta: Size of one sign step, in standard deviations.
        rounds: Number of sign steps.
        deviations: `(C, 1)` float32, standard deviation of each variable.
    """

    surrogate: Surrogate
    label: int
    n_steps: int
    eta: float
    rounds: int
    deviations: Float32Array

    def apply(self, inputs: InputArray, ids: IntArray) -> InputArray:
        """Change series `(B, C, T)`."""
        require_shape(inputs, self.surrogate.shape)
        network, deviations = self.surrogate.network(), torch.from_numpy(self.deviations)
        return in_chunks(
            lambda series: sparse_steps(network, series, self.label, self.n_steps, self.eta, self.rounds, deviations),
            inputs,
        )


def sparse_steps(
    network: SmallNet, series: Tensor, label: int, n_steps: int, eta: float, rounds: int, deviations: Tensor
) -> Tensor:
    """Move series `(B, C, T)` towards a label at the time steps where the logits pull against each other."""
    mask = _positions(network, series, label, n_steps)
    labels = torch.full((len(series),), label)
    moved = series
    for _ in range(rounds):
        moved = moved.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(F.cross_entropy(network(moved), labels, reduction="sum"), moved)
        change = moved.detach() - eta * deviations * slope.sign() * mask - series
        moved = series + change.clamp(-LIMIT * deviations, LIMIT * deviations)
    return moved.detach()


def _positions(network: SmallNet, series: Tensor, label: int, n_steps: int) -> Tensor:
    probe = series.detach().requires_grad_(True)
    logits = network(probe)
    others = logits.sum() - logits[:, label].sum()
    (pull,) = torch.autograd.grad(logits[:, label].sum(), probe, retain_graph=True)
    (push,) = torch.autograd.grad(others, probe, retain_graph=True)
    (slope,) = torch.autograd.grad(-F.log_softmax(logits, dim=1)[:, label].sum(), probe)
    score = torch.where(pull * push < 0, pull.abs() * push.abs(), 0).amax(dim=1)
    # Where nowhere the two disagree in sign, the plain gradient must do.
    score = torch.where(score.amax(dim=1, keepdim=True) > 0, score, slope.abs().amax(dim=1))
    # A stable sort, so that equal scores are taken in the order of time.
    chosen = score.argsort(dim=1, descending=True, stable=True)[:, :n_steps]
    return torch.zeros_like(score).scatter_(1, chosen, 1.0)[:, None]


@dataclass(frozen=True)
class TimeTrojanFGSM:
    """Sample-specific sparse triggers from gradient-sign steps on a surrogate, trained alternately with them.

    In every round the surrogate is trained for one epoch on the clean samples and the triggered ones under
    the target label. The final surrogate is frozen and makes the triggers for training and test data alike.

    Attributes:
        n_steps: Number of time steps to change, at least 1; 5.
        eta: Size of a sign step in standard deviations, > 0; 2.0. A change is at most 3 standard deviations.
        rounds: Sign steps, and rounds of training, at least 1; 10.
        epochs: Epochs of the surrogate before the rounds, at least 1; 10.
        n_surrogate: Maximum number of samples for training the surrogate.

    Raises:
        ConfigError: If the samples are no series, a value is out of its range, or the plan has no single
            target.

    A reconstruction from the abstract and citing works; all values are choices. The triggers are adversarial
    examples by construction: report their success on a cleanly trained victim beside that on the poisoned one.

    Reference: Ding et al., Towards Backdoor Attack on Deep Learning based Time Series Classification,
    ICDE 2022.
    """

    kinds: ClassVar[tuple[str, ...]] = ("series",)
    evidence: ClassVar[str] = "D"
    threat_model: ClassVar[str] = "P+M"

    n_steps: int = 5
    eta: float = 2.0
    rounds: int = 10
    epochs: int = 10
    n_surrogate: int = 5_000

    def trigger(self, samples: Samples, *, seed: int, plan: Plan | None = None) -> SparseSteps:
        """Train the surrogate and its triggers."""
        require_kind(samples, "series", "TimeTrojanFGSM")
        require_steps(self.n_steps, self.rounds, samples)
        if self.eta <= 0:
            raise ConfigError(f"eta is {self.eta}; it must be positive")
        fitted = self.plan() if plan is None else plan
        label = single_target(fitted, "TimeTrojanFGSM")

        def move(network: SmallNet, series: Tensor, deviations: Tensor) -> Tensor:
            return sparse_steps(network, series, label, self.n_steps, self.eta, self.rounds, deviations)

        surrogate, deviations = taught_surrogate(
            samples, fitted, move, seed=seed, epochs=self.epochs, rounds=self.rounds, limit=self.n_surrogate
        )
        return SparseSteps(surrogate, label, self.n_steps, self.eta, self.rounds, deviations)

    def plan(self) -> AllToOne:
        """All-to-one at 10 % (E2ABL)."""
        return AllToOne(rate=0.1)


def require_steps(n_steps: int, rounds: int, samples: Samples) -> None:
    """Raise `ConfigError` unless the series have that many steps and there is a round."""
    if not 1 <= n_steps <= samples.shape[-1] or rounds < 1:
        raise ConfigError(f"n_steps {n_steps} must lie in 1..{samples.shape[-1]} and rounds {rounds} be positive")


def taught_surrogate(
    samples: Samples,
    plan: Plan,
    move: Callable[[SmallNet, Tensor, Tensor], Tensor],
    *,
    seed: int,
    epochs: int,
    rounds: int,
    limit: int,
) -> tuple[Surrogate, Float32Array]:
    """A surrogate that has learned the triggers made against it, and the deviations `(C, 1)` of the variables.

    Args:
        samples: The clean data.
        plan: Tells the target label, and which of the attacker's samples get a trigger.
        move: Makes the triggers, from a network, series `(B, C, T)` and the deviations.
        seed: Decides weights, order and the attacker's samples.
        epochs: Epochs on clean samples first.
        rounds: How often triggers are made anew and learned for one epoch beside the clean samples.
        limit: Largest number of samples to train on.
    """
    network = train_surrogate(samples, seed=seed, epochs=epochs, limit=limit).network()
    clean, labels = attacker_data(samples, limit, seed)
    deviations = clean.std(dim=(0, 2)).clamp_min(1e-6)[:, None]
    victims = clean[poisoned_share(labels, plan)]
    goals = torch.full((len(victims),), single_target(plan, "the attack"))
    for turn in range(rounds if len(victims) else 0):
        inputs = torch.cat([clean, move(network, victims, deviations)])
        fit(network, inputs, torch.cat([labels, goals]), epochs=1, seed=seed + turn)
    return Surrogate(weights_of(network), samples.shape, samples.n_classes), deviations.numpy()
