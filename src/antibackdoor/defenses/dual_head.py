"""The default defense: a second head holds the shortcut, and the main head learns from the rest."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from antibackdoor.data.samples import BoolArray, Samples
from antibackdoor.defenses.decisions import decided, rejected, trusted
from antibackdoor.defenses.dual_head_training import Later, MainTraining, Outcome
from antibackdoor.defenses.recovery import untaught
from antibackdoor.detectors.confusion import ConfusionTraining, is_delicate, passes_of, with_margins
from antibackdoor.errors import DataError
from antibackdoor.models.features import middle_layer
from antibackdoor.models.two_head import TwoHead
from antibackdoor.protocols import CLEANED, DECISION, RELABELED, Build, Given, Trained, Verdict, check_given
from antibackdoor.search.attempts import left, spring_again, spring_believed
from antibackdoor.search.caught import Caught, with_more, without
from antibackdoor.search.evidence import from_verdict, judge, search_verdict, unexamined_labels
from antibackdoor.search.post_training import look_again, more_carriers, with_strangers
from antibackdoor.search.removal import find_removal
from antibackdoor.search.search import n_searched
from antibackdoor.statistics.isolation import FEW_LABELS
from antibackdoor.training.history import LossHistory
from antibackdoor.training.journal import Journal, spoken
from antibackdoor.training.ranges import RESEARCH, check_ranges
from antibackdoor.training.recipe import LEAST_STEPS, Recipe
from antibackdoor.training.trainer import WORTH_TELLING, Trainer

LEAST_PASSES = 0.8  # of the main training, however much the search costs; all of them where the training is short
LEAST_MORE = 0.05  # of what is isolated, for which the main training starts over
# What the check of the trained network costs in passes of a training, as for the search.
LOOKED_AT, COMPARED = 0.2, 0.4


@dataclass(frozen=True)
class DualHeadFacts:
    """What the default defense says of the data and of its own training.

    Attributes:
        estimated_poisoning_rate: Share of the samples in second groups, in [0, 1]; None where no label was searched.
        estimated_poisoning_rate_low: Lower end of its 95% interval; None where nothing was found. It is conditional on
            what was found: poison that left no trace is not counted.
        estimated_poisoning_rate_high: Upper end; it counts all isolated samples.
        false_alarm_probability: How probable such evidence is in clean data; None where nothing was found, or too few
            labels compare.
        found_by: Suspect sources that found something, joined by `; `.
        n_found_late: Isolated samples that only the check of the trained network found.
        n_copies: Samples that repeat an earlier one.
        search_steps: Optimizer steps of the search.
        n_main_trainings: 2 if the check found something and the training was restarted, else 1.
    """

    estimated_poisoning_rate: float | None
    estimated_poisoning_rate_low: float | None
    estimated_poisoning_rate_high: float | None
    false_alarm_probability: float | None
    found_by: str
    n_found_late: int
    n_copies: int
    search_steps: int
    n_main_trainings: int


@dataclass(frozen=True)
class DualHead:
    """Trains a classifier on data that may be poisoned, and tells which samples to distrust.

    A second head on the shallow layers learns everything for a while and records how the loss of each sample falls.
    Two kinds of evidence then show labels with two kinds of samples: the features, for content that belongs to other
    labels (`antibackdoor.statistics.populations`), and the second head itself, made to forget the classes so that only
    shortcuts are left (`antibackdoor.search.attempts`; confusion training after Qi et al.). The samples found are kept
    from the main head, which starts from fresh weights; those that it later knows to be something else come back under
    that label. Late in the training the main head is checked as well: samples of the other labels that it holds in one
    label are isolated, and its training starts over; so are those that share the trigger of the found and little of
    their class (`antibackdoor.statistics.carriers`). Nothing is isolated without evidence.

    It keeps the second head and the one training run of E2ABL (Jiang et al., "End-to-End Anti-Backdoor Learning on
    Images and Time Series", arXiv 2401.03215), which `antibackdoor.E2ABL` follows to the letter. Its verdict does not
    come from there: it comes from confusion training (Qi et al., "Towards A Proactive ML Approach for Detecting
    Backdoor Poison Samples", USENIX Security 2023, arXiv 2205.13616) and from a two-group test of each label akin to
    SCAn (Tang et al., "Demon in the Variant", USENIX Security 2021, arXiv 1908.00686).

    Attributes:
        search: The search for poisoned samples, with its hyper-parameters.
        recovery_confidence: Minimum probability, in (0, 1], for giving an isolated sample the main head's label.
        post_training_check: Whether the main head is checked, late in its training.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[tuple[str, ...]] = ("verdict", "decisions")
    unused: ClassVar[tuple[str, ...]] = ()

    search: ConfusionTraining = field(default_factory=lambda: ConfusionTraining(power=False))
    recovery_confidence: float = 0.9
    post_training_check: bool = field(default=True, metadata=RESEARCH)

    def train(
        self,
        samples: Samples,
        build: Build,
        recipe: Recipe,
        *,
        given: Given | None = None,
        journal: Journal | None = None,
    ) -> Trained:
        """Isolate what the second head finds to be a shortcut, and train the main head on the rest.

        Args:
            samples: The training set.
            build: Makes the untrained network.
            recipe: Epochs, batch size, learning rate, device, seed. The warm-up counts as part of the epochs.
            given: A `verdict` on these samples replaces the search; `decisions` of a person win over both.
            journal: Keeps checkpoints; nothing is kept by default.

        Returns:
            The clean model and a verdict for every sample; `margin` is the log-odds that the second head gives to
            a sample's own label, `suspicion` the probability of being poisoned that follows.

        Raises:
            ConfigError: If a hyper-parameter is out of range or the recipe does not fit.
            DataError: If almost everything is isolated, or the verdict is about other data.
            ModelError: If the network cannot be split.
        """
        given = check_given(self, given)
        check_ranges(self, recovery_confidence="(0, 1]")
        trainer = Trainer(samples, recipe, journal)
        return _Run(self, trainer, build, given).run()


class _Run:
    """One training: what does not change while it lasts."""

    def __init__(self, method: DualHead, trainer: Trainer, build: Build, given: Given) -> None:
        self.method, self.trainer, self.build, self.given = method, trainer, build, given
        self.samples, self.session = trainer.samples, trainer.session
        self.trusted, self.rejected = trusted(given.decisions, self.samples), rejected(given.decisions, self.samples)
        self.net: TwoHead | None = None  # the second head, where there was a search

    def run(self) -> Trained:
        """Search, train, check, and train again if the check finds something."""
        samples, trainer = self.samples, self.trainer
        caught, history = self._found()
        if len(samples) - int(caught.isolated.sum()) < samples.n_classes:
            raise DataError("almost every sample stands out, so nothing is left to train on: check the data")
        budget = self._visits(caught, history)
        late = np.zeros(len(samples), dtype=bool)
        for number in (1, 2):
            # Not from the second head's trunk, which was trained on the hardest samples and may know a trigger by now.
            model = trainer.network(self.build)
            main = MainTraining(
                trainer=trainer,
                name=f"training {number}" if number > 1 else "training",
                budget=budget,
                confidence=self.method.recovery_confidence,
                rejected=self.rejected,
                recorded=self.net is None,  # else the history is that of the search
                look=self._look if number == 1 and self.method.post_training_check else None,
            )
            outcome = main.run(model, caught, late, find_removal(samples, caught.isolated, caught.core & ~late))
            if outcome.later is None:
                break
            searched = caught.steps
            caught, late = outcome.later
            history = with_margins(history, caught, caught.steps - searched)
            trainer.journal.log(phase="post-training check", n_isolated=int(caught.isolated.sum()))
        return self._result(model, caught, late, outcome, history, number)

    def _found(self) -> tuple[Caught, LossHistory]:
        """What is isolated before the training, and the losses that it goes by."""
        samples = self.samples
        if self.given.verdict is not None:
            caught = from_verdict(decided(self.given.verdict, samples, "verdict"), samples.n_classes)
            history = LossHistory.start(len(samples), samples.n_classes)
        else:
            if not self.trainer.resumed:
                seconds = self.method.search.seconds(samples, self.build, self.trainer.recipe)
                if seconds >= WORTH_TELLING:
                    told = f"the search takes {spoken(seconds)} on this machine; then the training begins"
                    self.trainer.journal.tell(told)
            caught, history, self.net = self.method.search.find(self.trainer, self.build)
        caught = without(caught, self.trusted, samples.labels)
        return replace(caught, isolated=caught.isolated | self.rejected, core=caught.core | self.rejected), history

    def _result(
        self, model: nn.Module, caught: Caught, late: BoolArray, outcome: Outcome, history: LossHistory, number: int
    ) -> Trained:
        samples, back = self.samples, outcome.back
        probe = untaught(caught.core, samples.labels, self.trainer.recipe.seed)
        caught = without(caught, back.cleared, samples.labels)
        verdict = search_verdict(caught, samples.labels, self._unexamined())
        status = verdict.status.copy()
        status[caught.isolated & (back.labels != samples.labels)] = RELABELED
        status[caught.isolated & back.unchanged] = CLEANED
        criterion = np.where(self.rejected & caught.isolated, DECISION, verdict.criterion).astype(np.uint8)
        verdict = replace(verdict, status=status, suggested_label=back.labels, criterion=criterion)
        if self.given.verdict is not None:
            verdict = replace(verdict, suspicion=_at_least(self.given.verdict, late)).ordered(samples.labels)
        facts = DualHeadFacts(
            **judge(caught),
            found_by="; ".join(caught.ways),
            n_found_late=int((late & caught.isolated).sum()),
            n_copies=samples.n_copies,
            search_steps=caught.steps,
            n_main_trainings=number,
        )
        history = history if self.net is not None else self.trainer.history
        delivered = self.trainer.delivered(model, self.build)
        return Trained(delivered, history, verdict, facts, probe=probe & caught.isolated)

    def _unexamined(self) -> tuple[int, ...]:
        """Labels that the search, or the one whose verdict was given, could not examine."""
        if self.given.verdict is not None:
            return self.given.verdict.unexamined
        return unexamined_labels(self.samples, self.trainer.recipe.seed)

    def _look(self, model: nn.Module, caught: Caught) -> Later | None:
        """What a well trained main head shows of what was not isolated.

        Samples of other labels; or else those whom the search was sure of and let go; or else whom to suspect again.
        """
        samples, session, feed, net = self.samples, self.session, self.trainer.feed, self.net
        example = torch.zeros(2, *samples.shape, device=session.device)
        middle = middle_layer(model, example) if net is None else net.attach
        found, features, apart = look_again(session, feed, model, middle, left(samples, caught.isolated))
        late = found.flagged[samples.firsts] & ~self.trusted
        if late.any():
            caught = with_strangers(caught, found._replace(flagged=late))
        more = self._missed(model, caught)
        if late.any() or more.sum() > LEAST_MORE * caught.isolated.sum():
            return with_more(caught, more), late
        if net is None:
            return None
        settings = self.method.search.settings(samples.n_classes)
        with session.full_precision(is_delicate(samples)):
            again = spring_believed(session, samples, feed, net, settings, features, caught)
            if again is None and apart.any():
                again = spring_believed(session, samples, feed, net, settings, features, caught, apart=apart)
            if again is None and apart.any():
                again = spring_again(session, samples, feed, net, settings, apart, caught)
        if again is None:
            return None
        again = without(again, self.trusted, samples.labels)
        if not (again.isolated & ~caught.isolated).any():
            return None  # a person trusts all of them
        return with_more(again, self._missed(model, again)), late

    def _missed(self, model: nn.Module, caught: Caught) -> BoolArray:
        """More of what was found, `(N,)` bool.

        A trigger across labels was looked for in all of them already. Between few labels, the style of the honest who
        were found with it is told as well as the trigger: there, nobody is added.
        """
        samples = self.samples
        found = caught.isolated & ~caught.across & (samples.n_classes > FEW_LABELS)
        more = more_carriers(self.session, self.trainer.feed, model, samples.originals, found)[samples.firsts]
        return more & ~caught.isolated & ~self.trusted

    def _visits(self, caught: Caught, history: LossHistory) -> int:
        """Visits to a sample, one by one, that cost what plain training would, less the search.

        A short training gives nothing up: it would lose more accuracy than time.
        """
        n, n_classes, search = len(self.samples), self.samples.n_classes, self.method.search
        total = self.trainer.passes
        spent = 0.0
        if self.net is not None:
            # A second search mostly ends with its first round.
            rounds = caught.steps // search.confusion_steps + 1
            warmed = int(history.steps[-1]) + search.confusion_steps
            spent += passes_of(self.session, n, n_classes, warmed, rounds)
        if self.method.post_training_check:
            spent += 2 * (LOOKED_AT + COMPARED) * n_searched(n, n_classes) / n  # at two layers
        short = min(total, LEAST_STEPS * self.session.batch_size / n)
        return round(max(total - spent, LEAST_PASSES * total, short) * n)


def _at_least(verdict: Verdict, late: BoolArray) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """The suspicion of a given verdict; what the check found is as suspicious as the most suspicious of all."""
    return np.where(late, verdict.suspicion.max(initial=0.0), verdict.suspicion)
