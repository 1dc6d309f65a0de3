"""TimeTrojan-DE: evolved changes at a few time steps push a series towards the target label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import differential_evolution
from torch import Tensor

from antibackdoor.attacks.plans import AllToOne
from antibackdoor.attacks.stamps import Float32Array, require_kind, require_shape, sample_generator
from antibackdoor.attacks.surrogate import SmallNet, Surrogate, single_target, weights_of
from antibackdoor.attacks.timetrojan import LIMIT, require_steps, taught_surrogate
from antibackdoor.data.samples import InputArray, IntArray, Samples
from antibackdoor.errors import ConfigError

if TYPE_CHECKING:
    from antibackdoor.protocols import Plan

_DIFFERENTIAL_WEIGHT, _CROSSOVER = 0.5, 0.7
_SMALLEST_POPULATION = 5  # below, scipy has too few members to combine


@dataclass(frozen=True)
class Search:
    """How the changes of one series are looked for.

    Attributes:
        n_steps: Largest number of time steps that change.
        penalty: Weight of the mean size of the changes, in standard deviations.
        population: Candidates in a generation.
        generations: Generations after the first.
    """

    n_steps: int
    penalty: float
    population: int
    generations: int


@dataclass(frozen=True, eq=False)
class EvolvedSteps:
    """Changes a few time steps of each series as differential evolution finds best on a frozen surrogate.

    Attributes:
        surrogate: The attacker's network.
        label: The target label.
        search: How the changes are looked for.
        deviations: `(C, 1)` float32, standard deviation of each variable.
        seed: Together with the number of a sample it decides the search.
    """

    surrogate: Surrogate
    label: int
    search: Search
    deviations: Float32Array
    seed: int

    def apply(self, inputs: InputArray, ids: IntArray) -> InputArray:
        """Change series `(B, C, T)`."""
        require_shape(inputs, self.surrogate.shape)
        network, moved = self.surrogate.network(), np.array(inputs, dtype=np.float32, order="C")
        for row, number in enumerate(ids):
            rng = sample_generator(self.seed, int(number))
            moved[row] = evolved(network, moved[row], self.label, self.deviations, self.search, rng)
        return moved


def evolved(
    network: SmallNet,
    series: Float32Array,
    label: int,
    deviations: Float32Array,
    search: Search,
    rng: np.random.Generator,
) -> Float32Array:
    """A series `(C, T)` with the changes that bring it closest to a label, by DE/rand/1/bin."""
    shape, n_steps = series.shape, search.n_steps

    def fitness(genomes: NDArray[np.float64]) -> NDArray[np.float64]:
        changes = decoded(genomes.T, shape, n_steps)
        with torch.no_grad():
            logits = network(torch.from_numpy(series + changes * deviations))
        cost = -F.log_softmax(logits, dim=1)[:, label].numpy().astype(np.float64)
        size: NDArray[np.float64] = np.abs(genomes.reshape(n_steps, 3, -1)[:, 2]).mean(axis=0)
        return cost + search.penalty * size

    # The last variable after all of them stands for "all at once".
    bounds = [(0, shape[1] - 1), (0, shape[0]), (-LIMIT, LIMIT)] * n_steps
    result = differential_evolution(
        fitness,
        bounds,
        strategy="rand1bin",
        mutation=_DIFFERENTIAL_WEIGHT,
        recombination=_CROSSOVER,
        init=_first_generation(search, shape, rng),
        maxiter=search.generations,
        integrality=[True, True, False] * n_steps,
        vectorized=True,
        updating="deferred",
        polish=False,
        tol=0,
        seed=rng,
    )
    change = decoded(result.x[None], shape, n_steps)[0]
    return np.asarray(series + change * deviations, dtype=np.float32)


def decoded(genomes: NDArray[np.float64], shape: tuple[int, ...], n_steps: int) -> Float32Array:
    """The changes `(P, C, T)`, in standard deviations, that genomes `(P, 3 n_steps)` stand for.

    A genome is a row of triples: time step, variable (their number stands for all of them), change. Where two
    name the same time step, the later one holds.
    """
    changes = np.zeros((len(genomes), *shape), dtype=np.float32)
    members, variables = np.arange(len(genomes)), np.arange(shape[0])
    for step, variable, size in np.moveaxis(genomes.reshape(len(genomes), n_steps, 3), 0, 2):
        chosen = (variable[:, None] == variables) | (variable[:, None] == shape[0])
        changes[members, :, step.astype(np.int64)] = np.where(chosen, size[:, None], 0)
    return changes


def _first_generation(search: Search, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float64]:
    size = (search.population, search.n_steps)
    steps, variables = rng.integers(0, shape[1], size), rng.integers(0, shape[0] + 1, size)
    changes = rng.standard_normal(size).clip(-LIMIT, LIMIT)
    genomes: NDArray[Any] = np.stack([steps, variables, changes], axis=2).reshape(search.population, -1)
    return genomes.astype(np.float64)


@dataclass(frozen=True)
class TimeTrojanDE:
    """Sample-specific sparse triggers from differential evolution on a surrogate, trained alternately with them.

    For every series, K triples of time step, variable (or all of them) and change are evolved to minimize
    `-log softmax(f(x + g))_t + penalty mean|g_k|` with changes in standard deviations: DE/rand/1/bin with
    weight 0.5 and crossover 0.7. Only the surrogate's outputs are used, not its gradients. After each round
    the surrogate is trained for one epoch on the clean samples and the triggered ones under the target label;
    the final one is frozen and makes the triggers for training and test data alike.

    Attributes:
        n_steps: Maximum number K of time steps to change, at least 1; 5. A change is at most 3 standard deviations.
        penalty: Weight of the mean size of the changes, >= 0; 0.05.
        population: Candidates per generation, at least 5; 30.
        generations: Generations after the first, at least 1; 20.
        rounds: Rounds of trigger search and training, at least 1; 3.
        epochs: Epochs of the surrogate before the rounds, at least 1; 10.
        n_surrogate: Maximum number of samples for training the surrogate.

    Raises:
        ConfigError: If the samples are no series, a value is out of its range, or the plan has no single
            target.

    A reconstruction from the abstract and citing works; all values are choices. The triggers come close to
    adversarial examples: report their success on a cleanly trained victim beside that on the poisoned one.

    The search is scipy's, one series at a time with the whole population as one batch (`vectorized`). It cannot
    evolve several series at once, but the network takes most of the time, and a series on its own gets the same
    trigger in whatever batch it comes. All generations are run; none is left out for series that already answer
    with the target, for a trigger that barely crosses the border is hard to learn.

    Reference: Ding et al., Towards Backdoor Attack on Deep Learning based Time Series Classification,
    ICDE 2022; Storn and Price, Differential Evolution, Journal of Global Optimization 11, 1997.
    """

    kinds: ClassVar[tuple[str, ...]] = ("series",)
    evidence: ClassVar[str] = "D"
    threat_model: ClassVar[str] = "P+M"

    n_steps: int = 5
    penalty: float = 0.05
    population: int = 30
    generations: int = 20
    rounds: int = 3
    epochs: int = 10
    n_surrogate: int = 2_000

    def trigger(self, samples: Samples, *, seed: int, plan: Plan | None = None) -> EvolvedSteps:
        """Train the surrogate and its triggers."""
        require_kind(samples, "series", "TimeTrojanDE")
        require_steps(self.n_steps, self.rounds, samples)
        if self.penalty < 0:
            raise ConfigError(f"penalty is {self.penalty}; it must not be negative")
        if self.population < _SMALLEST_POPULATION or self.generations < 1:
            raise ConfigError(
                f"population {self.population} must be at least {_SMALLEST_POPULATION} "
                f"and generations {self.generations} be positive"
            )
        fitted = self.plan() if plan is None else plan
        label = single_target(fitted, "TimeTrojanDE")
        search = Search(self.n_steps, self.penalty, self.population, self.generations)

        def move(network: SmallNet, series: Tensor, deviations: Tensor) -> Tensor:
            final = Surrogate(weights_of(network), samples.shape, samples.n_classes)
            found = EvolvedSteps(final, label, search, deviations.numpy(), seed)
            return torch.from_numpy(found.apply(series.numpy(), np.arange(len(series))))

        surrogate, deviations = taught_surrogate(
            samples, fitted, move, seed=seed, epochs=self.epochs, rounds=self.rounds, limit=self.n_surrogate
        )
        return EvolvedSteps(surrogate, label, search, deviations, seed)

    def plan(self) -> AllToOne:
        """All-to-one at 10 % (E2ABL)."""
        return AllToOne(rate=0.1)
