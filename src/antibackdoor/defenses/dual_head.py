"""The default defense: a second head holds the shortcut, and the main head learns from the rest."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from antibackdoor.data.samples import BoolArray, Samples
from antibackdoor.defenses.dual_head_training import Later, MainTraining
from antibackdoor.defenses.recovery import untaught
from antibackdoor.errors import DataError
from antibackdoor.models.two_head import HeadWidth, TwoHead, split_network
from antibackdoor.protocols import Build, Trained
from antibackdoor.search.attempts import MOST_ROUNDS, left, spring, spring_again, spring_believed
from antibackdoor.search.caught import Caught, with_more, without
from antibackdoor.search.evidence import evidence, judge, suspicion
from antibackdoor.search.post_training import look_again, more_carriers, with_strangers
from antibackdoor.search.removal import find_removal
from antibackdoor.search.search import TrapSettings, n_searched
from antibackdoor.search.warm_up import warm_up
from antibackdoor.statistics.isolation import DEPTH_OF_FEW, FEW_LABELS
from antibackdoor.training.history import LossHistory
from antibackdoor.training.loop import Journal, NoJournal, classify, shuffled, train_epoch
from antibackdoor.training.ranges import check_ranges
from antibackdoor.training.recipe import LEAST_STEPS, Recipe
from antibackdoor.training.session import Feed, Session, seeded

WARM_UP_PASSES = 2  # that a warm-up may last however many steps they are: before, few losses have been recorded at all
LEAST_PASSES = 0.8  # of the main training, however much the search costs; all of them where the training is short
LEAST_MORE = 0.05  # of what is isolated, for which the main training begins anew
OUTPUTS_OF_FEW = 10  # of the second head: between two labels there is no place for neither
TIMED_STEPS = 5  # to estimate how long a search takes
# What the search costs, in passes of the whole network's training over the same samples, as measured with a ResNet-18
# on CIFAR-10 (.69, .18, .35) and rounded up, so that the whole costs no more than plain training; these numbers only
# set how much of its training the main head gives up.
TRAINED, LOOKED_AT, COMPARED = 0.8, 0.2, 0.4


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
        attach: Layer after which the second head sits; empty for about the middle of the convolutions.
        head_width: Channels of the second head; 0 for as many as the layer has, at least 64.
        warmup_steps: Optimizer steps, or two passes over the data if these are more, after which the first look comes
            even if less than half of what the labels tell has been learned.
        warmup_learning_rate: Learning rate of the second head's warm-up.
        hard_share: Share of the samples, those with the largest loss, that fill half of each warm-up batch.
        confusion_steps: Optimizer steps in each round of confusion.
        confusion_learning_rate: Learning rate of confusion.
        confusion_weight: Weight of the undecided samples against the suspects.
        least_depth: Depth of a valley between two groups of a label from which the label is suspected (5/3 of it with
            two or three labels); two thirds are enough if their parts look foreign (not with two or three labels).
            Once the found samples are trained on, it must be reached again, or two thirds of the depth that they were
            found with.
        by_features: Whether the content of other labels in shallow features counts as evidence.
        by_parts: Whether samples whose parts look like other labels are suspected after those with suspicious losses.
        by_both: Whether samples count as found that were believed, with no valley below them, if they carry the content
            of other labels.
        by_place: Whether they count as found, too, if they lie where the samples of other labels do; and whether that
            tells a class from the poison in its label.
        by_gaps: Whether a gap counts as a deep valley with two or three labels.
        made_pure: Whether what lies above a shallow valley is searched again, from the half that looks most foreign.
        across_labels: Whether a short-cut is looked for that leads to several labels.
        in_the_rest: Whether the search begins anew with what is left, once it has caught something.
        late_look: Whether the main head is looked at, late in its training.
        recovery_confidence: Probability, in (0, 1], from which an isolated sample gets the main head's label.
    """

    attach: str = ""
    head_width: int = 0
    warmup_steps: int = 1800
    warmup_learning_rate: float = 0.04
    hard_share: float = 0.2
    confusion_steps: int = 80
    confusion_learning_rate: float = 0.02
    confusion_weight: float = 3.0
    least_depth: float = 3.0
    by_features: bool = True
    by_parts: bool = True
    by_both: bool = True
    by_place: bool = True
    by_gaps: bool = True
    made_pure: bool = True
    across_labels: bool = True
    in_the_rest: bool = True
    late_look: bool = True
    recovery_confidence: float = 0.9

    def train(self, samples: Samples, build: Build, recipe: Recipe, *, journal: Journal | None = None) -> Trained:
        """Isolate what the second head finds to be a short-cut, and train the main head on the rest.

        Args:
            samples: The training set.
            build: Makes the untrained network.
            recipe: Epochs, batch size, learning rate, device, seed. The warm-up counts as part of the epochs.
            journal: Keeps checkpoints; nothing is kept by default.

        Returns:
            The clean model and a verdict for every sample; `margins` are the log-odds that the second head gives to
            a sample's own label, `suspicion` the probability of being poisoned that follows.

        Raises:
            ConfigError: If a hyper-parameter is out of range or the recipe does not fit.
            ModelError: If the network cannot be split.
        """
        self._check()
        journal = journal or NoJournal()
        session = Session(recipe, len(samples), images=samples.kind == "image")
        feed = session.feed(samples)
        net = self.two_heads(session, samples, build)
        state = journal.load() or {}
        caught, history = self._find(session, samples, feed, net, journal, state)
        if len(samples) - int(caught.isolated.sum()) < samples.n_classes:
            raise DataError("almost every sample stands out, so nothing is left to train on: look at the data")
        late = np.asarray(state.get("late", np.zeros(len(samples), dtype=bool)))
        budget = int(state.get("budget", self._main_visits(session, caught, samples.n_classes, history)))
        n_begun = int(state.get("n_begun", 1))

        def look(model: nn.Module, caught: Caught) -> Later | None:
            return self._look_again(session, samples, feed, net, model, caught)

        def kept() -> dict[str, Any]:
            ours = {"late": late, "looked": n_begun > 1, "budget": budget, "n_begun": n_begun}
            return {**_found(net, caught, history), **ours}

        main = MainTraining(session, feed, journal, budget, self.recovery_confidence, look)
        while True:
            # Not from the trap's trunk, which was trained on the hardest samples and may know a trigger by now.
            model = session.prepare(seeded(build, recipe.seed))
            removal = find_removal(samples, caught.isolated, caught.core & ~late)
            back, later = main.run(model, caught, late, removal, kept(), state)
            if later is None:
                break
            searched, n_begun = caught.steps, n_begun + 1
            caught, late = later
            history = _with_margins(history, caught, caught.steps - searched)
            journal.log(phase="late look", n_isolated=int(caught.isolated.sum()))
            state = {"phase": "found", **kept()}
            journal.save(state)
        labels, returned = back.labels, back.unchanged
        kept_out = untaught(caught.core, samples.labels, recipe.seed)
        caught = without(caught, back.cleared, samples.labels)
        recovered = caught.isolated & (labels != samples.labels)
        return Trained(
            model=session.finished(model, build),
            history=history,
            suspicion=suspicion(caught, samples.labels),
            margins=caught.margins,
            isolated=caught.isolated,
            recovered=recovered,
            returned=returned,
            untaught=kept_out & caught.isolated,
            labels=labels,
            backdoor_labels=caught.labels,
            poisoned=bool(caught.isolated.any()),
            evidence=evidence(caught),
            notes={
                **judge(caught),
                "n_returned": int(returned.sum()),
                "found_by": "; ".join(caught.ways),
                "n_found_late": int((late & caught.isolated).sum()),
                "n_copies": samples.n_copies,
                "search_steps": caught.steps,
                "n_main_trainings": n_begun,
            },
        )

    def isolate(
        self, samples: Samples, build: Build, recipe: Recipe, *, journal: Journal | None = None
    ) -> tuple[Caught, LossHistory]:
        """The search alone, without training a main head; the same as `train` does first.

        Args:
            samples: The training set.
            build: Makes the untrained network.
            recipe: As for `train`; its epochs do not matter.
            journal: Keeps checkpoints; nothing is kept by default.

        Returns:
            What was caught, and the losses that it went by.

        Raises:
            ConfigError: If a hyper-parameter is out of range or the recipe does not fit.
            ModelError: If the network cannot be split.
        """
        self._check()
        journal = journal or NoJournal()
        session = Session(recipe, len(samples), images=samples.kind == "image")
        net = self.two_heads(session, samples, build)
        return self._find(session, samples, session.feed(samples), net, journal, journal.load() or {})

    def search_seconds(self, samples: Samples, build: Build, recipe: Recipe) -> float:
        """About how long `isolate` takes here at most, unless it finds several triggers one by one.

        A few of its steps are timed on a network that is thrown away.
        """
        self._check()
        session = Session(recipe, len(samples), images=samples.kind == "image")
        feed, net = session.feed(samples), self.two_heads(session, samples, build)
        n = len(samples)
        rows = [shuffled(n, recipe.seed)[: session.batch_size]] * TIMED_STEPS
        optimizer = session.optimizer(net.parameters(), self.warmup_learning_rate)
        objective = classify(net.second_logits)
        # The first steps are slow: memory is laid out, kernels are chosen.
        with session.full_precision(_is_delicate(samples)):
            train_epoch(session, feed, rows[:2], net, objective, optimizer, seed=(0,), augmented=False, title="timing")
            started = time.perf_counter()
            train_epoch(session, feed, rows, net, objective, optimizer, seed=(0,), augmented=False, title="timing")
        a_step = (time.perf_counter() - started) / TIMED_STEPS
        # All rounds until something is found, and once more until nothing is.
        steps = self.most_steps(session, n) + 2 * MOST_ROUNDS * self.confusion_steps
        spent = _passes(session, n, samples.n_classes, steps, 2 * MOST_ROUNDS)
        return a_step * spent / TRAINED * n / session.batch_size

    def _find(
        self,
        session: Session,
        samples: Samples,
        feed: Feed,
        net: TwoHead,
        journal: Journal,
        state: dict[str, Any],
    ) -> tuple[Caught, LossHistory]:
        """What the second head finds, and the losses that it went by."""
        if "caught" in state:
            net.load_state_dict(state["trap"])
            return _caught_from(state), LossHistory.from_state(state["history"])
        with session.full_precision(_is_delicate(samples)):
            history = warm_up(
                session,
                feed,
                net,
                journal,
                state,
                most_steps=self.most_steps(session, len(samples)),
                learning_rate=self.warmup_learning_rate,
                hard_share=self.hard_share,
            )
            caught = spring(session, samples, feed, net, self.trap_settings(samples.n_classes), history)
        history = _with_margins(history, caught, caught.steps)
        journal.log(phase="isolation", n_isolated=int(caught.isolated.sum()), steps=caught.steps)
        journal.save({"phase": "found", **_found(net, caught, history)})
        return caught, history

    def _look_again(
        self, session: Session, samples: Samples, feed: Feed, net: TwoHead, model: nn.Module, caught: Caught
    ) -> Later | None:
        """What a well trained main head shows of what was not isolated.

        Strangers; or else those whom the search believed and let go; or else whom to suspect once more.
        """
        if not self.late_look:
            return None
        found, middle, apart = look_again(session, feed, model, net.attach, left(samples, caught.isolated))
        late = found.flagged[samples.firsts]
        if found.labels:
            caught = with_strangers(caught, found._replace(flagged=late))
        more = self._missed(session, samples, feed, model, caught)
        if late.any() or more.sum() > LEAST_MORE * caught.isolated.sum():
            return with_more(caught, more), late
        settings = self.trap_settings(samples.n_classes)
        with session.full_precision(_is_delicate(samples)):
            again = spring_believed(session, samples, feed, net, settings, middle, caught)
            if again is None and apart.any():
                again = spring_believed(session, samples, feed, net, settings, middle, caught, apart=apart)
            if again is None and apart.any():
                again = spring_again(session, samples, feed, net, settings, apart, caught)
        return None if again is None else (with_more(again, self._missed(session, samples, feed, model, again)), late)

    def _missed(self, session: Session, samples: Samples, feed: Feed, model: nn.Module, caught: Caught) -> BoolArray:
        """More of what was found, `(N,)` bool.

        A trigger across labels was looked for in all of them already. Between few labels, the style of the honest who
        were found with it is told as well as the trigger: there, nobody is added.
        """
        found = caught.isolated & ~caught.across & (samples.n_classes > FEW_LABELS)
        more = more_carriers(session, feed, model, samples.originals, found)[samples.firsts]
        return more & ~caught.isolated

    def _check(self) -> None:
        check_ranges(
            self,
            head_width="[0, inf)",
            warmup_steps="[1, inf)",
            warmup_learning_rate="(0, inf)",
            hard_share="(0, 1]",
            confusion_steps="[1, inf)",
            confusion_learning_rate="(0, inf)",
            confusion_weight="(0, inf)",
            least_depth="(0, inf)",
            recovery_confidence="(0, 1]",
        )

    def two_heads(self, session: Session, samples: Samples, build: Build) -> TwoHead:
        """The untrained network with its second head, on the session's device."""

        def both() -> TwoHead:
            example = torch.zeros(2, *samples.shape)
            width: HeadWidth = self.head_width or "light"
            n_outputs = samples.n_classes if samples.n_classes > FEW_LABELS else OUTPUTS_OF_FEW
            return split_network(build(), example, n_outputs, attach=self.attach or None, head_width=width)

        net = seeded(both, session.recipe.seed)
        session.prepare(net)
        return net

    def most_steps(self, session: Session, n: int) -> int:
        """Optimizer steps that the warm-up lasts at most with n samples."""
        return max(self.warmup_steps, WARM_UP_PASSES * n // session.batch_size)

    def trap_settings(self, n_classes: int) -> TrapSettings:
        """What the search goes by, given the number of labels."""
        are_few = n_classes <= FEW_LABELS
        return TrapSettings(
            confusion_steps=self.confusion_steps,
            confusion_learning_rate=self.confusion_learning_rate,
            confusion_weight=self.confusion_weight,
            least_depth=self.least_depth * (DEPTH_OF_FEW if are_few else 1.0),
            are_labels_few=are_few,
            by_features=self.by_features,
            by_parts=self.by_parts,
            by_both=self.by_both,
            by_place=self.by_place,
            by_gaps=self.by_gaps,
            made_pure=self.made_pure,
            across_labels=self.across_labels,
            in_the_rest=self.in_the_rest,
        )

    def _main_visits(self, session: Session, caught: Caught, n_classes: int, history: LossHistory) -> int:
        """Visits to a sample, one by one, that cost what plain training would, less the search.

        A short training gives nothing up: it would lose more accuracy than time.
        """
        n = len(caught.isolated)
        total = session.recipe.passes(n)
        # A second search mostly ends with its first round.
        rounds = caught.steps // self.confusion_steps + 1
        spent = _passes(session, n, n_classes, int(history.steps[-1]) + self.confusion_steps, rounds)
        if self.late_look:
            spent += 2 * (LOOKED_AT + COMPARED) * n_searched(n, n_classes) / n  # at two layers
        short = min(total, LEAST_STEPS * session.batch_size / n)
        return round(max(total - spent, LEAST_PASSES * total, short) * n)


def _passes(session: Session, n_samples: int, n_classes: int, steps: int, rounds: int) -> float:
    """The cost of a search in passes of the whole network's training: steps in all, and rounds with a look each."""
    searched = n_searched(n_samples, n_classes) / n_samples
    looks = 1 + (1 + rounds) * searched
    return TRAINED * steps * session.batch_size / n_samples + LOOKED_AT * looks + COMPARED * searched


def _is_delicate(samples: Samples) -> bool:
    """Whether the search needs full precision: bf16 rounds away what few steps add to the mean of a long series."""
    return samples.kind == "series"


def _with_margins(history: LossHistory, caught: Caught, steps: int) -> LossHistory:
    """The losses that the margins of a search stand for come last, so many steps after the last ones."""
    losses = np.logaddexp(0, -caught.margins).astype(np.float32)
    return history.append(losses, int(history.steps[-1]) + steps) if steps else history


def _found(net: TwoHead, caught: Caught, history: LossHistory) -> dict[str, Any]:
    """What a checkpoint keeps of a search: also the trap, for a second one."""
    return {"history": history.state(), "caught": vars(caught), "trap": net.state_dict()}


def _caught_from(state: dict[str, Any]) -> Caught:
    """What a checkpoint holds of `Caught`; arrays come back as tensors."""
    kept: dict[str, Any] = {
        key: value.numpy() if isinstance(value, Tensor) else value for key, value in state["caught"].items()
    }
    return Caught(**{**kept, "labels": tuple(kept["labels"]), "ways": tuple(kept["ways"])})
