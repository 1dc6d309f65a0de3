"""Unlearning: the loss of isolated samples is ascended, so that the model forgets what their trigger means."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from antibackdoor.data.samples import BoolArray, IntArray, Samples
from antibackdoor.data.streams import Stream, stream
from antibackdoor.errors import ConfigError, DataError
from antibackdoor.models.own_network import check_network
from antibackdoor.protocols import Given, Purified, check_given
from antibackdoor.purifiers.clean import accuracy, working_copy
from antibackdoor.training.journal import Journal
from antibackdoor.training.loop import Objective, batches, shuffled
from antibackdoor.training.objectives import descend_and_ascend
from antibackdoor.training.ranges import check_ranges
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.schedules import constant
from antibackdoor.training.session import Batch
from antibackdoor.training.trainer import Phase, Trainer

ISOLATED_IN = 8  # one of so many samples of a batch: both means count with weights of their own, so any share would do
ALL_OTHERS = -1  # in place of a label: every label but the given one, all alike


@dataclass(frozen=True)
class UnlearningFacts:
    """What was unlearned.

    Attributes:
        n_isolated: Samples that were unlearned; 0 if the model is delivered unchanged.
        n_unlearning_epochs: Passes over them; fewer than allowed where they were forgotten earlier.
        isolated_accuracy_before: Share of them that the given model gives their given label; None if there are none.
        isolated_accuracy_after: The same for the delivered model. Near 1/K or below, their trigger is forgotten.
    """

    n_isolated: int = 0
    n_unlearning_epochs: int = 0
    isolated_accuracy_before: float | None = None
    isolated_accuracy_after: float | None = None


@dataclass(frozen=True)
class Unlearning:
    """Ascends the loss of isolated samples under their given labels, and descends that of the others.

    Each step takes half a batch of isolated samples and as many others: `mean over others of L - mean over isolated of
    min(L, bound)`. It ends early, once the model gives fewer than 1/K of the isolated samples their given label.
    Samples that were isolated by mistake are unlearned as well, so a precise verdict matters more than a complete one.

    Attributes:
        epochs: Maximum passes over the isolated samples, >= 1. ABL's published code uses 4, other code for ABL 5 to 20,
            all fixed; here it stops once they are forgotten.
        learning_rate: Constant learning rate, in (0, 100); 5e-4 as in ABL's published code.
        ascent_bound: Loss at which a sample's ascent ends, in units of log K, > 0; inf for no bound, as in ABL.
        augment: Augmentations, as in the recipe; none in ABL's last stage.

    Differs from ABL, which in its text ascends and descends for 80 epochs without a bound, and in its code ascends on
    the isolated samples alone.

    Reference: Li et al., "Anti-Backdoor Learning: Training Clean Models on Poisoned Data", NeurIPS 2021, arXiv
    2110.11571, Equation 3.
    """

    needs: ClassVar[tuple[str, ...]] = ("suspicious",)
    takes: ClassVar[tuple[str, ...]] = ("isolated", "verdict")
    unused: ClassVar[tuple[str, ...]] = ("schedule",)

    epochs: int = 20
    learning_rate: float = 5e-4
    ascent_bound: float = 2.0
    augment: str = "none"

    def purify(self, model: nn.Module, given: Given, recipe: Recipe, *, journal: Journal | None = None) -> Purified:
        """Unlearn the isolated samples in a copy of the model.

        Args:
            model: The model, on the CPU; left as it is.
            given: `suspicious` data, and either `isolated` or a `verdict` on them. Where nothing is isolated, the model
                is delivered unchanged.
            recipe: Batch size, momentum, weight decay, device, seed.
            journal: Keeps checkpoints; nothing is kept by default.

        Raises:
            ConfigError: If something is missing, or a hyper-parameter is out of range.
            DataError: If everything is isolated, or the verdict is about other data.
            ModelError: If the model does not take such samples.
        """
        given = check_given(self, given)
        check_ranges(self, epochs="[1, inf)", learning_rate="(0, 100)", ascent_bound="(0, inf]")
        samples = suspicious_samples(model, given)
        isolated = isolated_samples(given, samples)
        if not isolated.any():
            return Purified(deepcopy(model).eval(), UnlearningFacts())
        trainer = Trainer(samples, recipe, journal)
        trained = trainer.network(lambda: working_copy(model))
        ascent = Ascent(np.flatnonzero(isolated), np.flatnonzero(~isolated), self.ascent_bound, self.augment)
        forgotten = unlearn(trainer, trained, ascent, epochs=self.epochs, learning_rate=self.learning_rate)
        facts = UnlearningFacts(int(isolated.sum()), forgotten.n_epochs, forgotten.before, forgotten.after)
        return Purified(trainer.delivered(trained, lambda: deepcopy(model)), facts)


@dataclass(frozen=True, eq=False)
class Ascent:
    """Whose loss is ascended, and whose is descended beside it.

    Attributes:
        isolated: `(M,)` rows to unlearn, M >= 1.
        rest: `(R,)` rows of which each step takes as many as of the isolated; none for ascent alone.
        bound: Loss up to which a sample is unlearned, in units of log K.
        augment: Names of augmentations, as in the recipe.
    """

    isolated: IntArray
    rest: IntArray
    bound: float
    augment: str

    def plan(self, size: int, seed: int, epoch: int) -> list[IntArray]:
        """Rows of each batch of a pass over the isolated samples."""
        order = self.isolated[shuffled(len(self.isolated), seed, Stream.UNLEARNING_ORDER, epoch)]
        if not len(self.rest):
            # Batch statistics need two samples.
            return [np.repeat(cut, 2) if len(cut) == 1 else cut for cut in batches(order, size)]
        rng = stream(seed, Stream.UNLEARNING_REST, epoch)
        return [
            np.concatenate([cut, rng.choice(self.rest, len(cut), replace=len(cut) > len(self.rest))])
            for cut in batches(order, max(size // 2, 1))
        ]


class Forgotten(NamedTuple):
    """How the isolated samples were unlearned."""

    before: float  # share of them that had their given label
    after: float
    n_epochs: int


def unlearn(
    trainer: Trainer,
    model: nn.Module,
    ascent: Ascent,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int | None = None,
) -> Forgotten:
    """Ascend until fewer than 1/K of the isolated samples get their given label, or the epochs are over.

    Args:
        trainer: Holds the data.
        model: One of its networks.
        ascent: On which samples.
        epochs: Passes over the isolated samples at most.
        learning_rate: Constant.
        batch_size: Samples a step; the recipe's by default.
    """
    session, n_classes = trainer.session, trainer.samples.n_classes
    size = batch_size or session.batch_size
    mask = torch.zeros(len(trainer.samples), dtype=torch.bool)
    mask[ascent.isolated] = True
    phase = Phase(
        "unlearning",
        epochs,
        descend_and_ascend(model, mask.to(session.device), ascent.bound * float(np.log(n_classes))),
        constant(learning_rate),
        augment=ascent.augment,
        plan=lambda epoch: ascent.plan(size, trainer.recipe.seed, epoch),
        recorded=False,
    )

    def known() -> float:
        return accuracy(session, trainer.feed, model, ascent.isolated)

    # A new optimizer: momentum of the descent would go on for a while.
    optimizer = session.optimizer(model.parameters(), learning_rate)

    def step(epoch: int, state: dict[str, Any]) -> dict[str, Any]:
        trainer.epoch(model, phase, epoch, optimizer)
        return {"accuracy": known(), "n_epochs": epoch + 1}

    before = trainer.remember("isolated accuracy before", known)
    start: dict[str, Any] = {"accuracy": before, "n_epochs": 0}
    end = trainer.fold(
        phase.name, epochs, start, step, until=lambda state: state["accuracy"] < 1 / n_classes, optimizer=optimizer
    )
    return Forgotten(before, end["accuracy"], end["n_epochs"])


def batches_beside(rest: IntArray, isolated: IntArray, size: int, *, seed: int, epoch: int) -> list[IntArray]:
    """Batches of a pass over other samples, each with some isolated ones drawn at random.

    Fine-tuning without these brings a backdoor back, since the weights have hardly moved away from it.

    Args:
        rest: `(R,)` rows to visit, R >= 1.
        isolated: `(M,)` rows to draw from, M >= 1.
        size: Samples a step, the isolated ones included.
        seed: Of the recipe.
        epoch: Number of the pass.
    """
    drawn = max(size // ISOLATED_IN, 1)
    rng = stream(seed, Stream.HELD_DOWN, epoch)
    order = rest[shuffled(len(rest), seed, Stream.HELD_DOWN_ORDER, epoch)]
    return [np.concatenate([cut, rng.choice(isolated, drawn)]) for cut in batches(order, max(size - drawn, 1))]


def teach(model: nn.Module, isolated: Tensor, lessons: Tensor, weight: float) -> Objective:
    """`mean over others of -log p_y + weight * mean over isolated of their lesson`, with y the given label.

    The lesson of an isolated sample is another label z, `-log p_z`, or all labels but y alike, `-mean over k != y of
    log p_k`. Unlike the ascent of ABL it pulls hardest where the model is surest of y, where `-log p_y` has hardly any
    gradient; and it says where to go, so that the trigger does not simply get another meaning.

    Args:
        model: Inputs to logits.
        isolated: `(N,)` bool, by row of the data.
        lessons: `(N,)` int64, a label or `ALL_OTHERS`; read for isolated samples only.
        weight: Of the second mean.
    """

    def objective(batch: Batch) -> tuple[Tensor, Tensor]:
        logs = model(batch.inputs).float().log_softmax(1)
        losses = -logs.gather(1, batch.labels[:, None])[:, 0]
        lesson = lessons[batch.rows]
        told = -logs.gather(1, lesson.clamp_min(0)[:, None])[:, 0]
        spread = (-logs.sum(1) - losses) / max(logs.shape[1] - 1, 1)
        chosen = isolated[batch.rows]
        n_chosen = chosen.sum()
        n_others = len(chosen) - n_chosen
        learned = torch.where(lesson == ALL_OTHERS, spread, told)
        terms = torch.where(chosen, weight * learned / n_chosen.clamp_min(1), losses / n_others.clamp_min(1))
        return terms * len(chosen), losses

    return objective


def suspicious_samples(model: nn.Module, given: Given) -> Samples:
    """The data that the model was trained on, once they are known to fit it.

    Raises:
        ModelError: If the model does not take such samples, or has other classes.
    """
    assert given.suspicious is not None
    samples = given.suspicious
    check_network(model, samples.shape, samples.n_classes, name="the given model and the suspicious data")
    return samples


def isolated_samples(given: Given, samples: Samples) -> BoolArray:
    """Who is to be unlearned, `(N,)` bool.

    Raises:
        ConfigError: If nobody says who, or two do.
        DataError: If it is said of other data, or of all of them.
    """
    if (given.isolated is None) == (given.verdict is None):
        raise ConfigError("give either isolated samples or a verdict on the suspicious data: --isolated or --verdict")
    isolated = given.verdict.isolated if given.verdict is not None else given.isolated
    assert isolated is not None
    if isolated.shape != (len(samples),):
        raise DataError(
            f"the verdict is about {len(isolated)} samples, the suspicious data have {len(samples)}: give the one for "
            "these data"
        )
    if len(isolated) and isolated.all():
        raise DataError("every sample is isolated, so nothing is left to keep: check the verdict")
    return np.asarray(isolated, dtype=bool)
