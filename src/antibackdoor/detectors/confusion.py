"""The default detector: confusion training of a shallow second head, and two-group tests of each label."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from antibackdoor.data.samples import InputArray, Samples
from antibackdoor.data.streams import Stream
from antibackdoor.errors import ConfigError
from antibackdoor.models.two_head import HeadWidth, TwoHead, split_network
from antibackdoor.protocols import Build, Detection, Given, check_given
from antibackdoor.search.attempts import MOST_ROUNDS, spring
from antibackdoor.search.caught import Caught
from antibackdoor.search.evidence import judge, search_verdict, unexamined_labels
from antibackdoor.search.planting import plant, smallest_visible_rate
from antibackdoor.search.search import TrapSettings, n_searched
from antibackdoor.search.warm_up import warm_up
from antibackdoor.statistics.isolation import DEPTH_OF_FEW, FEW_LABELS
from antibackdoor.training.history import LossHistory
from antibackdoor.training.journal import Journal, spoken
from antibackdoor.training.loop import classify, shuffled, train_epoch
from antibackdoor.training.ranges import RESEARCH, check_ranges
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.session import Feed, Session, seeded
from antibackdoor.training.trainer import Trainer

WARM_UP_PASSES = 2  # that a warm-up may last however many steps they are: before, few losses have been recorded at all
OUTPUTS_OF_FEW = 10  # of the second head: between two labels there is no place for neither
TIMED_STEPS = 5  # to estimate how long a search takes
# What the search costs, in passes of the whole network's training over the same samples, as measured with a ResNet-18
# on CIFAR-10 (.69, .18, .35) and rounded up, so that the whole costs no more than plain training; these numbers only
# set how much of its training the main head gives up.
TRAINED, LOOKED_AT, COMPARED = 0.8, 0.2, 0.4


@dataclass(frozen=True)
class SearchFacts:
    """What the search says of the data.

    Attributes:
        estimated_poisoning_rate: Share of the samples in second groups, in [0, 1]; None where no label was searched.
        estimated_poisoning_rate_low: Lower end of its 95% interval; None where nothing was found. It is conditional on
            what was found: poison that left no trace is not counted.
        estimated_poisoning_rate_high: Upper end; it counts all isolated samples.
        false_alarm_probability: How probable such evidence is in clean data; None where nothing was found, or too few
            labels compare.
        found_by: Suspect sources that found something, joined by `; `.
        n_copies: Samples that repeat an earlier one.
        search_steps: Optimizer steps of the search.
        n_planted_rates: Rates at which triggers were planted to measure the search's power; 0 if it was not measured.
        smallest_visible_rate: The smallest of them that was found; None if none was.
    """

    estimated_poisoning_rate: float | None
    estimated_poisoning_rate_low: float | None
    estimated_poisoning_rate_high: float | None
    false_alarm_probability: float | None
    found_by: str
    n_copies: int
    search_steps: int
    n_planted_rates: int = 0
    smallest_visible_rate: float | None = None


@dataclass(frozen=True)
class ConfusionTraining:
    """Looks for labels that hold two kinds of samples, and isolates the poisoned kind.

    A second head on the shallow layers learns everything for a while. Then it is trained to forget the classes
    (confusion training): it is to be undecided about samples that seem clean and sure of those that are suspected.
    What it stays sure of is a shortcut. A label whose log-odds fall into two groups is reported; so is one whose
    features show the content of other labels. Suspects come from losses, from patches that look like other labels, and
    from features. Nothing is isolated without evidence.

    References: Qi et al., "Towards A Proactive ML Approach for Detecting Backdoor Poison Samples", USENIX Security
    2023, arXiv 2205.13616 (confusion training); Tang et al., "Demon in the Variant", USENIX Security 2021, arXiv
    1908.00686 (the two-group test of each label); Jiang et al., arXiv 2401.03215 (the second head).

    Attributes:
        power: Also plant known triggers in a copy of the data and search again, to measure the lowest poisoning rate
            that would have been detected. This doubles the time.
        epochs: Maximum passes over the data in the warm-up, for a quick look; 0 for no limit.
        attach: Layer after which the second head is attached; empty for about the middle of the convolutions.
        head_width: Channels of the second head; 0 for as many as the layer has, at least 64.
        warmup_steps: Maximum optimizer steps of the warm-up, >= 1, or two passes over the data if that is more.
        warmup_learning_rate: Learning rate of the warm-up, > 0.
        hard_share: Share of samples with the largest loss that fill half of each warm-up batch, in (0, 1].
        confusion_steps: Optimizer steps in each round of confusion training, >= 1.
        confusion_learning_rate: Learning rate of confusion training, > 0.
        confusion_weight: Weight of the reference samples relative to the suspects, > 0.
        least_depth: How deep the gap between two groups of a label must be for a report, > 0: the smaller peak over
            the floor between them. 5/3 of it with two or three labels, two thirds if patches look foreign as well.
        by_features: Use the content of other labels in shallow features as evidence.
        by_parts: Suspect samples whose patches look like other labels.
        by_both: Report confident samples that carry the content of other labels, even without two groups.
        by_place: Report confident samples that lie among the samples of other labels.
        by_gaps: Count an empty gap as a deep one with two or three labels.
        made_pure: Search again from the half of a shallow group that looks most foreign.
        across_labels: Look for a shortcut that leads to several labels.
        in_the_rest: Search again in what is left, once something is found.
    """

    needs: ClassVar[tuple[str, ...]] = ("build",)
    takes: ClassVar[tuple[str, ...]] = ()
    unused: ClassVar[tuple[str, ...]] = ("learning_rate", "schedule", "augment", "devices")

    power: bool = True
    epochs: int = 0
    attach: str = ""
    head_width: int = 0
    warmup_steps: int = 1800
    warmup_learning_rate: float = 0.04
    hard_share: float = 0.2
    confusion_steps: int = 80
    confusion_learning_rate: float = 0.02
    confusion_weight: float = 3.0
    least_depth: float = field(default=3.0, metadata=RESEARCH)
    by_features: bool = field(default=True, metadata=RESEARCH)
    by_parts: bool = field(default=True, metadata=RESEARCH)
    by_both: bool = field(default=True, metadata=RESEARCH)
    by_place: bool = field(default=True, metadata=RESEARCH)
    by_gaps: bool = field(default=True, metadata=RESEARCH)
    made_pure: bool = field(default=True, metadata=RESEARCH)
    across_labels: bool = field(default=True, metadata=RESEARCH)
    in_the_rest: bool = field(default=True, metadata=RESEARCH)

    def detect(
        self, samples: Samples, given: Given | None, recipe: Recipe, *, journal: Journal | None = None
    ) -> Detection:
        """Search the samples.

        Args:
            samples: The data.
            given: `build` makes the network whose shallow layers are used.
            recipe: Batch size, device, seed, momentum, weight decay.
            journal: Keeps checkpoints; nothing is kept by default.

        Returns:
            The verdict, the facts, and the losses of the warm-up. `suspicion` is the probability that a sample is
            poisoned, if the poison is of a kind that the search can see.

        Raises:
            ConfigError: If a hyper-parameter is out of range, or the recipe does not fit.
            ModelError: If the network cannot be split.
        """
        given = check_given(self, given)
        if recipe.devices > 1:
            raise ConfigError(f"this detector runs on one device; --devices {recipe.devices} is for train")
        assert given.build is not None
        trainer = Trainer(samples, recipe, journal)
        if not trainer.resumed:
            seconds = self.seconds(samples, given.build, recipe) * (1 + self.power)
            trainer.journal.tell(f"{spoken(seconds)} on this machine")
        caught, history, _ = self.find(trainer, given.build)
        visible = trainer.remember("power", lambda: self._visible(trainer, caught, given.build)) if self.power else {}
        facts = SearchFacts(
            **judge(caught),
            found_by="; ".join(caught.ways),
            n_copies=samples.n_copies,
            search_steps=caught.steps,
            **visible,
        )
        verdict = search_verdict(caught, samples.labels, unexamined_labels(samples, recipe.seed))
        return Detection(verdict, facts, history)

    def search(
        self, samples: Samples, build: Build, recipe: Recipe, *, journal: Journal | None = None
    ) -> tuple[Caught, LossHistory]:
        """What `detect` does, with all that the search leaves: for those who study it."""
        caught, history, _ = self.find(Trainer(samples, recipe, journal), build)
        return caught, history

    def find(self, trainer: Trainer, build: Build) -> tuple[Caught, LossHistory, TwoHead]:
        """Search with a trainer, as a part of something larger.

        Returns:
            What was found, the losses that it went by, and the network after its warm-up.
        """
        self.check()
        samples, session = trainer.samples, trainer.session
        feed = trainer.feed._replace(augmentations=())
        net = trainer.network(lambda: self.two_heads(samples, build))
        with session.full_precision(is_delicate(samples)):
            history = warm_up(
                trainer,
                feed,
                net,
                most_steps=self.most_steps(session, len(samples)),
                learning_rate=self.warmup_learning_rate,
                hard_share=self.hard_share,
            )
            settings = self.settings(samples.n_classes)
            kept = trainer.remember("search", lambda: vars(spring(session, samples, feed, net, settings, history)))
        caught = Caught(**kept)
        history = with_margins(history, caught, caught.steps)
        trainer.journal.log(phase="isolation", n_isolated=int(caught.isolated.sum()), steps=caught.steps)
        return caught, history, net

    def seconds(self, samples: Samples, build: Build, recipe: Recipe) -> float:
        """About how long a search takes here, unless it finds several triggers one by one.

        A few of its steps are timed on a network that is thrown away.
        """
        self.check()
        session = Session(recipe, len(samples), images=samples.kind == "image")
        net = seeded(lambda: self.two_heads(samples, build), 0)
        session.prepare(net)
        feed = session.feed(samples)._replace(augmentations=())
        n = len(samples)
        rows = [shuffled(n, recipe.seed, Stream.TIMING)[: session.batch_size]] * TIMED_STEPS
        # The first steps are slow: memory is laid out, kernels are chosen.
        with session.full_precision(is_delicate(samples)):
            self._timed(session, feed, net, rows[:2])
            started = time.perf_counter()
            self._timed(session, feed, net, rows)
        a_step = (time.perf_counter() - started) / TIMED_STEPS
        # All rounds until something is found, and once more until nothing is.
        steps = self.most_steps(session, n) + 2 * MOST_ROUNDS * self.confusion_steps
        spent = passes_of(session, n, samples.n_classes, steps, 2 * MOST_ROUNDS)
        return a_step * spent / TRAINED * n / session.batch_size

    def _timed(self, session: Session, feed: Feed, net: TwoHead, rows: list[Any]) -> None:
        optimizer = session.optimizer(net.parameters(), 0.0)  # the time of a step does not depend on it
        position = (session.recipe.seed, Stream.TIMING)
        train_epoch(session, feed, rows, net, classify(net.second_logits), optimizer, seed=position, title="timing")

    def _visible(self, trainer: Trainer, caught: Caught, build: Build | None) -> dict[str, Any]:
        """The smallest planted rate that the same search finds in what it did not isolate."""
        assert build is not None
        samples, recipe, usable = trainer.samples, trainer.recipe, ~caught.isolated
        with room(samples, int(usable.sum()), trainer.journal.folder) as place:
            planted = plant(samples, usable, seed=recipe.seed, out=place)
            if not planted.rates:
                return {}
            other = replace(recipe, seed=(recipe.seed + 1) % 2**32)
            found, _, _ = self.find(Trainer(planted.samples, other), build)
            return {
                "n_planted_rates": len(planted.rates),
                "smallest_visible_rate": smallest_visible_rate(planted, found.isolated),
            }

    def check(self) -> None:
        """Check the hyper-parameters.

        Raises:
            ConfigError: If one is out of range.
        """
        check_ranges(
            self,
            epochs="[0, inf)",
            head_width="[0, inf)",
            warmup_steps="[1, inf)",
            warmup_learning_rate="(0, inf)",
            hard_share="(0, 1]",
            confusion_steps="[1, inf)",
            confusion_learning_rate="(0, inf)",
            confusion_weight="(0, inf)",
            least_depth="(0, inf)",
        )

    def two_heads(self, samples: Samples, build: Build) -> TwoHead:
        """The untrained network with its second head."""
        example = torch.zeros(2, *samples.shape)
        width: HeadWidth = self.head_width or "light"
        n_outputs = samples.n_classes if samples.n_classes > FEW_LABELS else OUTPUTS_OF_FEW
        return split_network(build(), example, n_outputs, attach=self.attach or None, head_width=width)

    def most_steps(self, session: Session, n: int) -> int:
        """Optimizer steps that the warm-up lasts at most with n samples."""
        steps = max(self.warmup_steps, WARM_UP_PASSES * n // session.batch_size)
        return min(steps, self.epochs * math.ceil(n / session.batch_size)) if self.epochs else steps

    def settings(self, n_classes: int) -> TrapSettings:
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


def passes_of(session: Session, n_samples: int, n_classes: int, steps: int, rounds: int) -> float:
    """The cost of a search in passes of the whole network's training: steps in all, and rounds with a look each."""
    searched = n_searched(n_samples, n_classes) / n_samples
    looks = 1 + (1 + rounds) * searched
    return TRAINED * steps * session.batch_size / n_samples + LOOKED_AT * looks + COMPARED * searched


def is_delicate(samples: Samples) -> bool:
    """Whether the search needs full precision: bf16 rounds away what few steps add to the mean of a long series."""
    return samples.kind == "series"


def with_margins(history: LossHistory, caught: Caught, steps: int) -> LossHistory:
    """The losses that the margins of a search stand for come last, so many steps after the last ones."""
    losses = np.logaddexp(0, -caught.margins).astype(np.float32)
    return history.append(losses, int(history.steps[-1]) + steps) if steps else history


@contextmanager
def room(samples: Samples, n: int, folder: Path | None) -> Iterator[InputArray | None]:
    """A file for a copy of n of the data, if they are in a file themselves; None for data in memory."""
    if not isinstance(samples.inputs, np.memmap):
        yield None
        return
    # What a kill leaves of a name like this is removed when the run folder is next opened.
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".writing-", suffix=".npy") as file:
        yield np.lib.format.open_memmap(file.name, "w+", samples.inputs.dtype, (n, *samples.shape))
