"""Purification without a clean set: the model's own training data are searched, and serve as both sides."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import nn

from antibackdoor.data.samples import IntArray, Samples
from antibackdoor.data.streams import Stream, stream
from antibackdoor.detectors.confusion import ConfusionTraining
from antibackdoor.errors import DataError
from antibackdoor.models.hooks import evaluation_mode
from antibackdoor.protocols import NEARBY, Build, Given, Purified, Verdict, check_given
from antibackdoor.purifiers.clean import accuracy, working_copy
from antibackdoor.purifiers.unlearning import (
    ALL_OTHERS,
    ISOLATED_IN,
    batches_beside,
    isolated_samples,
    suspicious_samples,
    teach,
)
from antibackdoor.search.evidence import search_verdict
from antibackdoor.search.removal import find_removal
from antibackdoor.statistics.isolation import highest, label_rows
from antibackdoor.training.journal import Journal
from antibackdoor.training.ranges import check_ranges
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.schedules import cosine
from antibackdoor.training.trainer import Phase, Trainer

NOTHING = -2  # in place of a lesson
MOSTLY = (
    0.5  # of the isolated samples of a label: more of them lose it with their trigger, if that is what is taken off
)


@dataclass(frozen=True)
class SelfPurificationFacts:
    """What was found in the data, and what became of it.

    Attributes:
        n_isolated: Samples that the search (or the given verdict) isolates; 0 if the model is delivered unchanged.
        found_by: Suspect sources that found something, joined by `; `.
        n_relabeled: Isolated samples that were taught another label: the one that the model gives them without their
            trigger, or that the given verdict suggests.
        n_left_out: Isolated samples that keep their label without a trigger that others lose: nothing is taught them.
        n_trained: Kept samples that served as the clean set.
        n_epochs: Passes over these.
        isolated_accuracy_before: Share of the isolated samples that the given model gives their given label; None if
            there are none.
        isolated_accuracy_after: The same for the delivered model. Near 1/K or below, their trigger is forgotten.
    """

    n_isolated: int = 0
    found_by: str = ""
    n_relabeled: int = 0
    n_left_out: int = 0
    n_trained: int = 0
    n_epochs: int = 0
    isolated_accuracy_before: float | None = None
    isolated_accuracy_after: float | None = None


@dataclass(frozen=True)
class SelfPurification:
    """Removes a backdoor with nothing but the data that planted it.

    The default search (`detectors.confusion`) isolates poisoned samples in the data that the model was trained on. The
    least suspicious of the others serve as the clean set that other purifiers ask for. What the isolated have and their
    like have not is taken off them, and the model says what it then sees: that is their lesson. The model is trained
    for a short time on both: `mean over clean of -log p_y + weight * mean over isolated of -log p_lesson`. So the
    trigger loses its meaning. Where the search isolates nothing, the model is delivered unchanged.

    Where most isolated samples of a label get another one without their trigger, those that do not are left out: they
    may be false alarms. Where most do not, the trigger could not be taken off, and the lesson is all labels but the
    given one alike. Every sample counts alike, so that a false alarm costs little accuracy: its like in the clean set
    outvote it.

    Attributes:
        search: The search for poisoned samples, with its hyper-parameters.
        share_of_training: Length, as a share of the recipe's training (in samples seen), in (0, 1]. The search comes on
            top, unless a verdict is given.
        clean_share: Share of each label's kept samples, the least suspicious, used as the clean set, in (0, 1]. Poison
            that the search missed is mostly in the rest.
        isolated_weight: Weight of an isolated sample relative to a clean one, > 0; all isolated samples together weigh
            at most as much as the clean ones.
        learning_rate: Initial learning rate, in (0, 100); falls to zero with a cosine schedule.

    References: Li et al., "Anti-Backdoor Learning", NeurIPS 2021, arXiv 2110.11571 (unlearning of isolated samples);
    Jiang et al., arXiv 2401.03215 (relabeling of isolated samples); Qi et al., "Towards A Proactive ML Approach for
    Detecting Backdoor Poison Samples", USENIX Security 2023, arXiv 2205.13616 (confusion training, by which the search
    isolates).
    """

    needs: ClassVar[tuple[str, ...]] = ("suspicious",)
    takes: ClassVar[tuple[str, ...]] = ("verdict",)
    unused: ClassVar[tuple[str, ...]] = ("schedule",)

    search: ConfusionTraining = field(default_factory=lambda: ConfusionTraining(power=False))
    share_of_training: float = 0.08
    clean_share: float = 0.5
    isolated_weight: float = 1.0
    learning_rate: float = 0.01

    def purify(self, model: nn.Module, given: Given, recipe: Recipe, *, journal: Journal | None = None) -> Purified:
        """Search, and train a copy of the model on what the search tells apart.

        Args:
            model: The model, on the CPU; left as it is.
            given: `suspicious` data, which the model was trained on; a `verdict` on them replaces the search. `build`
                makes the network for the search; by default a copy of the model with fresh weights.
            recipe: That of the training: its length sets that of the purification. Batch size, momentum, weight decay,
                augmentation, device, seed.
            journal: Keeps checkpoints; nothing is kept by default.

        Raises:
            ConfigError: If something is missing, or a hyper-parameter is out of range.
            DataError: If almost everything is isolated, or the verdict is about other data.
            ModelError: If the model does not take such samples, or cannot be split.
        """
        given = check_given(self, given)
        check_ranges(
            self,
            share_of_training="(0, 1]",
            clean_share="(0, 1]",
            isolated_weight="(0, inf)",
            learning_rate="(0, 100)",
        )
        samples = suspicious_samples(model, given)
        trainer = Trainer(samples, recipe, journal)
        verdict, found_by = self._verdict(trainer, model, given)
        isolated = np.flatnonzero(verdict.isolated)
        if not len(isolated):
            return Purified(deepcopy(model).eval(), SelfPurificationFacts())
        if len(samples) - len(isolated) < samples.n_classes:
            raise DataError("almost every sample is isolated, so nothing is left to train on: check the data")
        trained = trainer.network(lambda: working_copy(model))

        def known() -> float:
            return accuracy(trainer.session, trainer.feed, trained, isolated)

        before = trainer.remember("isolated accuracy before", known)
        taught = trainer.remember("lessons", lambda: lessons(trainer, trained, verdict))
        work = self._work(trainer, verdict)
        trainer.run(trained, self._phase(trained, trainer, taught, work))
        facts = SelfPurificationFacts(
            n_isolated=len(isolated),
            found_by=found_by,
            n_relabeled=int((taught >= 0).sum()),
            n_left_out=int((taught[isolated] == NOTHING).sum()),
            n_trained=len(work.rows),
            n_epochs=work.epochs,
            isolated_accuracy_before=before,
            isolated_accuracy_after=known(),
        )
        return Purified(trainer.delivered(trained, lambda: deepcopy(model)), facts)

    def _verdict(self, trainer: Trainer, model: nn.Module, given: Given) -> tuple[Verdict, str]:
        """Who is poisoned, and how that was found."""
        if given.verdict is not None:
            isolated_samples(given, trainer.samples)
            return given.verdict, "given verdict"
        build: Build = given.build or (lambda: with_fresh_weights(model))
        caught, _, _ = self.search.find(trainer, build)
        return search_verdict(caught, trainer.samples.labels), "; ".join(caught.ways)

    def _work(self, trainer: Trainer, verdict: Verdict) -> Work:
        """The clean set, or as much of it as the time allows."""
        seed = trainer.recipe.seed
        clean = least_suspicious(trainer.samples, verdict, self.clean_share, seed=seed)
        visits = self.share_of_training * trainer.passes * len(trainer.samples) * (1 - 1 / ISOLATED_IN)
        n_rows, epochs = spread(visits, len(clean), least=trainer.samples.n_classes)
        rows = np.sort(stream(seed, Stream.SELF_CLEAN_ROWS).choice(clean, n_rows, replace=False))
        return Work(rows, epochs, len(clean))

    def _phase(self, model: nn.Module, trainer: Trainer, taught: IntArray, work: Work) -> Phase:
        size, seed, device = trainer.session.batch_size, trainer.recipe.seed, trainer.session.device
        pupils = np.flatnonzero(taught != NOTHING)
        weight = min(self.isolated_weight * len(pupils) / work.n_clean, 1.0)
        chosen, labels = torch.from_numpy(taught != NOTHING).to(device), torch.from_numpy(taught).to(device)
        return Phase(
            "purification",
            work.epochs,
            teach(model, chosen, labels, weight),
            cosine(self.learning_rate),
            plan=lambda epoch: batches_beside(work.rows, pupils, size, seed=seed, epoch=epoch),
            recorded=False,
        )


class Work(NamedTuple):
    """What is trained on, beside the isolated samples."""

    rows: IntArray
    epochs: int
    n_clean: int  # all that there are; how many of them are visited is only a question of time


def lessons(trainer: Trainer, model: nn.Module, verdict: Verdict) -> IntArray:
    """What each isolated sample is to be taught, `(N,)` int64: a label, `ALL_OTHERS`, or `NOTHING`.

    Args:
        trainer: Holds the data.
        model: Backdoored, one of the trainer's networks.
        verdict: On the data; it isolates some. Where it suggests another label, that is the lesson.
    """
    samples, isolated = trainer.samples, verdict.isolated
    taught = np.full(len(samples), NOTHING, dtype=np.int64)
    rows = np.flatnonzero(isolated)
    seen = samples.labels[rows]
    removal = find_removal(samples, isolated, isolated & (verdict.criterion != NEARBY))
    if removal is not None:
        with evaluation_mode(model):
            feed = trainer.feed._replace(change=removal)
            answers = trainer.session.evaluate(feed, model, lambda logits, _: logits.argmax(1), rows, title="labels")
        seen = answers.astype(np.int64)
    for label in np.unique(samples.labels[rows]):
        of_label = samples.labels[rows] == label
        other = seen[of_label] != label
        rest = NOTHING if other.mean() > MOSTLY else ALL_OTHERS
        taught[rows[of_label]] = np.where(other, seen[of_label], rest)
    return np.where(isolated & (verdict.suggested_label != samples.labels), verdict.suggested_label, taught)


def least_suspicious(samples: Samples, verdict: Verdict, share: float, *, seed: int) -> IntArray:
    """Rows of the least suspicious kept samples of each label, ascending; at least one of each that has any.

    Args:
        samples: The data.
        verdict: On them.
        share: Of the kept samples of a label, in (0, 1].
        seed: Breaks ties, since rows may be sorted.
    """
    order = stream(seed, Stream.SELF_CLEAN_TIES).permutation(len(samples))
    chosen = np.zeros(len(samples), dtype=bool)
    for rows in label_rows(samples.labels).values():
        kept = rows[~verdict.isolated[rows]]
        chosen[kept] = highest(-verdict.suspicion[kept], share, ties=(order[kept],), at_least=1)
    return np.flatnonzero(chosen)


def spread(visits: float, n: int, *, least: int) -> tuple[int, int]:
    """How many of n samples to visit, and how often, with so many visits in all: rather many than often.

    Args:
        visits: In all, > 0.
        n: Samples that there are, >= 1.
        least: Samples at least, if there are as many.

    >>> spread(1000, 300, least=32), spread(100, 300, least=32), spread(5, 300, least=32)
    ((300, 3), (100, 1), (32, 1))
    """
    epochs = max(int(visits / n), 1)
    return int(np.clip(round(visits / epochs), min(least, n), n)), epochs


def with_fresh_weights(model: nn.Module) -> nn.Module:
    """A copy whose layers start anew; parameters that belong to no layer of torch's stay as they are."""
    copy = deepcopy(model)
    for module in copy.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    return copy.requires_grad_(True)
