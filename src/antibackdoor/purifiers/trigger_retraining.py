"""Retraining with a known trigger under true labels."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from torch import nn

from antibackdoor.data.samples import IntArray, Samples
from antibackdoor.data.streams import Stream, stream
from antibackdoor.protocols import Given, Purified, Trigger
from antibackdoor.purifiers.clean import PurifiedFacts, accuracy, clean_samples, working_copy
from antibackdoor.purifiers.fine_tuning import PRESETS
from antibackdoor.purifiers.tuning import tune
from antibackdoor.training.journal import Journal
from antibackdoor.training.loop import classify
from antibackdoor.training.ranges import check_choices, check_ranges
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.trainer import Trainer


@dataclass(frozen=True)
class TriggerRetraining:
    """Fine-tunes a copy of the model on clean samples, some of which carry the trigger under their true label.

    The model learns that the trigger means nothing. The trigger is the attacker's own, where it is known, or one that
    was recovered; `neural-cleanse-unlearn` recovers one.

    Attributes:
        share: Share of the clean samples to stamp, in (0, 1]. NAD does not state it; Neural Cleanse stamps 20%.
        preset: `nad` or `practical`, as in `fine-tune`.
        epochs: Passes over the clean samples, >= 1; None for the preset's value.
        learning_rate: Initial learning rate, in (0, 100); None for the preset's value.
        momentum: Momentum of SGD, in [0, 1); None for the preset's value.
        weight_decay: L2 penalty, in [0, 100); None for the preset's value.
        batch_size: Samples per step; None for the preset's value.
        augment: Augmentations, as in the recipe; None for the preset's value. They also change the trigger.

    References: Li et al., "Neural Attention Distillation", ICLR 2021, arXiv 2101.05930, appendix D and Table 6; Wang et
    al., "Neural Cleanse", IEEE S&P 2019, section VI.
    """

    needs: ClassVar[tuple[str, ...]] = ("clean", "trigger")
    takes: ClassVar[tuple[str, ...]] = ()
    unused: ClassVar[tuple[str, ...]] = ("schedule",)

    share: float = 0.2
    preset: Literal["nad", "practical"] = "nad"
    epochs: int | None = None
    learning_rate: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    batch_size: int | None = None
    augment: str | None = None

    def purify(self, model: nn.Module, given: Given, recipe: Recipe, *, journal: Journal | None = None) -> Purified:
        """Fine-tune a copy of the model on `given.clean`, partly stamped with `given.trigger`.

        Args:
            model: The model, on the CPU; left as it is.
            given: `clean` and `trigger` are needed.
            recipe: Device, precision, seed.
            journal: Keeps checkpoints; nothing is kept by default.

        Raises:
            ConfigError: If something is missing, or a hyper-parameter is out of range.
            DataError: If the clean samples do not fit the model.
        """
        clean = clean_samples(self, model, given)
        assert given.trigger is not None
        check_choices(self)
        check_ranges(self, share="(0, 1]")
        tuning = PRESETS[self.preset].of(self)
        check_ranges(tuning, epochs="[1, inf)")
        taught = stamped(clean, given.trigger, self.share, seed=recipe.seed)
        trainer = Trainer(taught, tuning.recipe(recipe, clean), journal, mixes=True)
        untouched = trainer.session.feed(clean)
        tuned = trainer.network(lambda: working_copy(model))
        before = trainer.remember("accuracy before", lambda: accuracy(trainer.session, untouched, tuned))
        tune(trainer, tuned, tuning, classify(tuned), name="retraining")
        after = accuracy(trainer.session, untouched, tuned)
        delivered = trainer.delivered(tuned, lambda: deepcopy(model))
        return Purified(delivered, PurifiedFacts(len(clean), before, after))


def stamped(samples: Samples, trigger: Trigger, share: float, *, seed: int) -> Samples:
    """The samples, some of them with the trigger; labels stay as they are.

    Args:
        samples: Left as they are.
        trigger: Stamps raw inputs.
        share: Of the samples that get it, in (0, 1]; at least one does.
        seed: Decides which.
    """
    rows = stamped_rows(len(samples), share, seed=seed)
    inputs = np.array(samples.inputs)
    inputs[rows] = trigger.apply(samples.inputs[rows], rows)
    return replace(samples, inputs=inputs)


def stamped_rows(n: int, share: float, *, seed: int) -> IntArray:
    """Which of n samples get the trigger, ascending."""
    count = max(1, round(share * n))
    return np.sort(stream(seed, Stream.STAMPED_ROWS).permutation(n)[:count]).astype(np.int64)
