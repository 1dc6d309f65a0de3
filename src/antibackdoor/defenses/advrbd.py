"""AdvrBD: a network that keeps the backdoor and forgets the classes tells which samples to train without."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from antibackdoor.data.samples import BoolArray, FloatArray, IntArray, Samples
from antibackdoor.data.streams import Stream, stream
from antibackdoor.detectors.perturbation import PatchPerturbation, widths
from antibackdoor.errors import ConfigError
from antibackdoor.protocols import (
    ISOLATED,
    KEPT,
    NO_CRITERION,
    RELABELED,
    SCORE,
    Build,
    Given,
    Trained,
    Verdict,
    check_given,
)
from antibackdoor.statistics.isolation import most_suspicious
from antibackdoor.training.journal import Journal
from antibackdoor.training.loop import Objective, batches, classify, cross_entropy, shuffled
from antibackdoor.training.ranges import check_ranges
from antibackdoor.training.recipe import Recipe, enough_passes
from antibackdoor.training.schedules import constant
from antibackdoor.training.session import Batch
from antibackdoor.training.trainer import Phase, Trainer

# Of the short training, if nothing else is asked for. On some 1,500 noisy samples, 500 steps were too few to learn a
# small trigger, and 2,500 so many that the samples were learned by heart.
SHORT_EPOCHS, SHORT_STEPS = 5, 1000


@dataclass(frozen=True)
class AdvrBDFacts:
    """What AdvrBD says of its own training.

    Attributes:
        n_rounds: Rounds of enhancement that were run.
        n_unlearned: Samples that were picked as clean and unlearned.
        flagged_share: Share of the samples whose given label the enhanced network predicts, in [0, 1].
        fell_back: Whether that was too large a share to be right, so that those with the lowest loss were isolated.
    """

    n_rounds: int
    n_unlearned: int
    flagged_share: float
    fell_back: bool


@dataclass(frozen=True)
class AdvrBD:
    """Trains from scratch on the samples that a backdoor-enhanced network misclassifies.

    A network is trained briefly on everything. Then, round by round, the samples whose prediction an adversarial patch
    moves most are taken for clean and unlearned, while the rest is learned on: accuracy falls, the backdoor stays.
    What that network still gets right is isolated, and a new network is trained on what it gets wrong. One
    configuration serves all attacks.

    The published text lacks all numbers; these defaults are choices. Where nothing was forgotten, as it may be after a
    training that was too short, almost every sample would be isolated: then the `fallback_rate` of the samples with the
    lowest loss is isolated in their place, and `facts.fell_back` says so.

    Attributes:
        perturbation: The score by which clean samples are picked.
        short_epochs: Passes of the short training; 0 for 5, or more on small data to reach 1,000 steps, at most 200. A
            trigger not learned by then is treated as clean and unlearned.
        short_learning_rate: Learning rate of the short training.
        rounds: Maximum rounds of enhancement, >= 1.
        partition_rate: Share of all samples that a round picks as clean, in (0, 1); the paper finds that it matters
            little. `rounds` times it must be below 1.
        scored_share: Share of all samples, drawn at random, from which a round picks, in [partition_rate, 1].
        round_epochs: Passes of learning and unlearning in each round, >= 1.
        round_learning_rate: Learning rate of the rounds.
        ascent_weight: Weight of unlearning relative to learning, > 0.
        ascent_bound: Loss at which a sample's ascent ends, in units of log K, > 0.
        least_change: The rounds end once the share of correctly predicted samples changes by less than this, in [0, 1].
        most_flagged: Largest plausible share of flagged samples, in (0, 1]; 1 / K if that is more, the accuracy of a
            network that knows nothing.
        fallback_rate: Share isolated if `most_flagged` is exceeded, in (0, 1).
        relearn: Passes of fine-tuning on all samples, with the isolated ones under the label that the clean network
            gives them; 0 skips it, as in the paper's main tables.
        relearn_learning_rate: Learning rate of that fine-tuning.

    Reference: Pu et al., "How to Train a Backdoor-Robust Model on a Poisoned Dataset without Auxiliary Data?", 2024,
    arXiv 2405.12719, Algorithms 1 and 2, Equations 3 to 5. Differs: a round scores some samples, not all of them.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[tuple[str, ...]] = ()
    unused: ClassVar[tuple[str, ...]] = ()

    perturbation: PatchPerturbation = field(default_factory=PatchPerturbation)
    short_epochs: int = 0
    short_learning_rate: float = 0.01
    rounds: int = 10
    partition_rate: float = 0.05
    scored_share: float = 0.2
    round_epochs: int = 2
    round_learning_rate: float = 0.001
    ascent_weight: float = 1.0
    ascent_bound: float = 2.0
    least_change: float = 0.001
    most_flagged: float = 0.3
    fallback_rate: float = 0.2
    relearn: int = 0
    relearn_learning_rate: float = 0.01

    def train(
        self,
        samples: Samples,
        build: Build,
        recipe: Recipe,
        *,
        given: Given | None = None,
        journal: Journal | None = None,
    ) -> Trained:
        """Train `build()` on the samples that the enhanced network misclassifies.

        Args:
            samples: The training set.
            build: Makes the untrained network.
            recipe: Epochs, learning rate and augmentation of the last training; batch size, momentum, weight decay,
                device and seed of all.
            given: Nothing is used.
            journal: Keeps checkpoints; nothing is kept by default.

        Raises:
            ConfigError: If a hyper-parameter is out of range or the recipe does not fit.
        """
        check_given(self, given)
        self.check()
        return _Run(self, Trainer(samples, recipe, journal, mixes=True), build).run()

    def check(self) -> None:
        """Check the hyper-parameters.

        Raises:
            ConfigError: If one is out of range.
        """
        self.perturbation.check()
        check_ranges(
            self,
            short_epochs="[0, inf)",
            short_learning_rate="(0, 100)",
            rounds="[1, inf)",
            partition_rate="(0, 1)",
            scored_share=f"[{self.partition_rate}, 1]",
            round_epochs="[1, inf)",
            round_learning_rate="(0, 100)",
            ascent_weight="(0, inf)",
            ascent_bound="(0, inf)",
            least_change="[0, 1]",
            most_flagged="(0, 1]",
            fallback_rate="(0, 1)",
            relearn="[0, inf)",
            relearn_learning_rate="(0, 100)",
        )
        if self.rounds * self.partition_rate >= 1:
            raise ConfigError(
                f"{self.rounds} rounds of partition_rate {self.partition_rate} would unlearn everything: lower one, so "
                "that their product is below 1"
            )


class _Run:
    """One training: the networks, and what does not change while they train."""

    def __init__(self, method: AdvrBD, trainer: Trainer, build: Build) -> None:
        self.method, self.trainer, self.build = method, trainer, build
        self.samples, self.session, self.seed = trainer.samples, trainer.session, trainer.recipe.seed
        self.n, self.n_classes = len(trainer.samples), trainer.samples.n_classes
        self.most = max(method.most_flagged, 1 / self.n_classes)
        self.enhanced = trainer.network(build)

    def run(self) -> Trained:
        """Short training, enhancement, identification, training from scratch, relearning."""
        method, trainer = self.method, self.trainer
        enough = enough_passes(self.n, self.session.batch_size, passes=SHORT_EPOCHS, steps=SHORT_STEPS)
        rate, epochs = constant(method.short_learning_rate), method.short_epochs or enough
        trainer.run(self.enhanced, Phase("short training", epochs, classify(self.enhanced), rate, augment="none"))
        end = self._enhance()
        suspicion, isolated, fell_back, flagged_share = self._identified()
        trainer.journal.log(phase="identification", n_isolated=int(isolated.sum()), fell_back=fell_back)
        model, labels = self._clean(isolated)
        relabeled = isolated & (method.relearn > 0)
        status = np.where(relabeled, RELABELED, np.where(isolated, ISOLATED, KEPT)).astype(np.uint8)
        criterion = np.where(isolated, SCORE, NO_CRITERION).astype(np.uint8)
        facts = AdvrBDFacts(
            n_rounds=end["rounds"],
            n_unlearned=int(end["pool"].sum()),
            flagged_share=flagged_share,
            fell_back=fell_back,
        )
        verdict = Verdict(suspicion, status, labels, criterion).ordered(self.samples.labels)
        return Trained(trainer.delivered(model, self.build), trainer.history, verdict, facts)

    def _enhance(self) -> dict[str, Any]:
        """Algorithm 2: the pool of unlearned samples grows from round to round."""
        self.widths = widths(self.samples)
        self.optimizer = self.trainer.optimizer(self.enhanced.parameters())
        start: dict[str, Any] = {"pool": np.zeros(self.n, dtype=bool), "n_right": -1, "stable": False, "rounds": 0}
        return self.trainer.fold(
            "enhancement", self.method.rounds, start, self._round, until=lambda state: bool(state["stable"])
        )

    def _round(self, place: int, state: dict[str, Any]) -> dict[str, Any]:
        """Pick some more clean samples; unlearn all that were picked, learn the rest."""
        method, pool = self.method, self._picked(place, state["pool"])
        phase = Phase(
            "enhancement",
            epochs=method.rounds * method.round_epochs,
            objective=self._forgetting(pool),
            learning_rate=constant(method.round_learning_rate),
            augment="none",
            plan=lambda epoch: self._batches(pool, epoch),
            recorded=False,
        )
        for epoch in range(place * method.round_epochs, (place + 1) * method.round_epochs):
            self.trainer.epoch(self.enhanced, phase, epoch, self.optimizer)
        n_right = int((self._told(margin) > 0).sum())
        # Before anything is forgotten, nothing changes either.
        stable = n_right <= self.most * self.n and abs(n_right - state["n_right"]) < method.least_change * self.n
        return {"pool": pool, "n_right": n_right, "stable": stable, "rounds": place + 1}

    def _picked(self, place: int, pool: BoolArray) -> BoolArray:
        """Algorithm 1 on a part of the rest: the samples with the largest divergence join the pool."""
        method = self.method
        # Shares of the whole, so that rounding adds up to no more than was asked for.
        n_more = min(round((place + 1) * method.partition_rate * self.n), self.n - 1) - int(pool.sum())
        some = stream(self.seed, Stream.SCORED_ROWS, place).permutation(np.flatnonzero(~pool))
        some = some[: max(math.ceil(method.scored_share * self.n), n_more)]
        position = (self.seed, Stream.PATCH, place)
        feed, model = self.trainer.feed, self.enhanced
        scores = method.perturbation.divergences(self.session, feed, model, self.widths, some, seed=position)
        grown = pool.copy()
        grown[some[np.argsort(-scores, kind="stable")[:n_more]]] = True
        return grown

    def _batches(self, pool: BoolArray, epoch: int) -> list[IntArray]:
        """The rest once; half of each batch is drawn from the pool, again and again, if there is one."""
        rest, unlearned = np.flatnonzero(~pool), np.flatnonzero(pool)
        rest = rest[shuffled(len(rest), self.seed, Stream.LEARNED_ORDER, epoch)]
        size = self.session.batch_size
        if not len(unlearned):
            return batches(rest, size)
        unlearned = unlearned[shuffled(len(unlearned), self.seed, Stream.FORGOTTEN_ORDER, epoch)]
        places = batches(np.arange(len(rest)), max(1, size // 2))
        again = np.resize(unlearned, len(rest))
        return [np.concatenate([rest[cut], again[cut]]) for cut in places]

    def _forgetting(self, pool: BoolArray) -> Objective:
        """Equation 4: descent on the rest, ascent on the pool up to a bound, each by its mean."""
        ascends, weight = torch.from_numpy(pool).to(self.session.device), self.method.ascent_weight
        bound = self.method.ascent_bound * math.log(self.n_classes)

        def objective(batch: Batch) -> tuple[Tensor, Tensor]:
            losses = cross_entropy(self.enhanced(batch.inputs), batch.labels)
            up = ascends[batch.rows].float()
            down, n = 1 - up, len(losses)
            descent = losses * down * (n / down.sum().clamp_min(1))
            ascent = losses.clamp_max(bound) * up * (n / up.sum().clamp_min(1))
            return descent - weight * ascent, losses

        return objective

    def _identified(self) -> tuple[FloatArray, BoolArray, bool, float]:
        """Suspicion `(N,)`, who is isolated `(N,)`, whether that is the fallback, and the share that was flagged."""
        with self.session.full_precision():  # rounding would make ties
            suspicion: FloatArray = self.trainer.remember("identification", lambda: self._told(margin))
            flagged = suspicion > 0
            fell_back = bool(flagged.mean() > self.most)
            if not fell_back:
                return suspicion, flagged, False, float(flagged.mean())
            suspicion = self.trainer.remember("fallback", lambda: self._told(log_odds))
        return suspicion, most_suspicious(suspicion, self.method.fallback_rate, self.seed), True, float(flagged.mean())

    def _told(self, value: Callable[[Tensor, Tensor], Tensor]) -> FloatArray:
        """What `value(logits, labels)` says of each sample by the enhanced network, `(N,)`."""
        self.enhanced.eval()
        values = self.session.evaluate(self.trainer.feed, self.enhanced, value, title="identifying")
        self.enhanced.train()
        return values.astype(np.float64)

    def _clean(self, isolated: BoolArray) -> tuple[nn.Module, IntArray]:
        """Train from scratch on what is not isolated; with relearning, then on everything."""
        method, trainer, samples = self.method, self.trainer, self.samples
        model = trainer.network(self.build, index=1)
        rate = trainer.recipe.rate()
        trainer.run(model, Phase("training", trainer.passes, classify(model), rate, rows=np.flatnonzero(~isolated)))
        if not method.relearn:
            return model, samples.labels
        labels: IntArray = trainer.remember("labels", lambda: self._labels(model, isolated))
        rate = constant(method.relearn_learning_rate)
        trainer.run(model, Phase("relearning", method.relearn, classify(model), rate, labels=labels))
        return model, labels

    def _labels(self, model: nn.Module, isolated: BoolArray) -> IntArray:
        """Equation 5: the given labels, and of isolated samples those that the clean network predicts."""
        model.eval()
        rows = np.flatnonzero(isolated)
        said = self.session.evaluate(
            self.trainer.feed, model, lambda logits, _labels: logits.argmax(1), rows, title="relabeling"
        )
        model.train()
        labels = self.samples.labels.copy()
        labels[rows] = said.astype(np.int64)
        return labels


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Logit of each label minus the largest other one, `(B,)`: above 0, the label is predicted.

    >>> margin(torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([2])).tolist()
    [-1.0]
    """
    own = logits.gather(1, labels[:, None])
    return (own - logits.scatter(1, labels[:, None], -torch.inf).amax(1, keepdim=True))[:, 0]


def log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-odds of each label, `(B,)`: they fall as the loss rises, and differ where small losses are rounded to 0.

    >>> log_odds(torch.tensor([[3.0, 3.0, 3.0]]), torch.tensor([2])).exp().tolist()
    [0.5]
    """
    own = logits.gather(1, labels[:, None])
    return (own - logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1, keepdim=True))[:, 0]
