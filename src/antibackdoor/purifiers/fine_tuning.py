"""Fine-tuning on clean samples."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from antibackdoor.data.samples import Samples
from antibackdoor.errors import ConfigError
from antibackdoor.protocols import Given, Purified
from antibackdoor.purifiers.clean import PurifiedFacts, accuracy, clean_samples, working_copy
from antibackdoor.purifiers.tuning import NAD_PAPER, PRACTICAL, Tuning, tune
from antibackdoor.training.journal import Journal
from antibackdoor.training.loop import classify
from antibackdoor.training.objectives import with_hole
from antibackdoor.training.ranges import check_choices, check_ranges
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.trainer import Trainer

PRESETS = {"nad": NAD_PAPER, "practical": PRACTICAL}


@dataclass(frozen=True)
class FineTuning:
    """Trains all layers of a copy of the model on clean samples.

    Two recipes are in use, and they end far apart: with the large learning rate of NAD, BadNets falls from 100% to
    17% attack success, with the small one of BackdoorBox it stays (97% in AdvrBD). The large one costs accuracy.

    Attributes:
        preset: `nad`: 10 epochs, learning rate 0.1, a tenth of it after every second epoch, momentum 0.9, weight decay
            1e-4, batches of 64, crop, flip and cutout (jitter, scale and shift for series, our choice). `practical`: 10
            epochs, constant learning rate 1e-3, weight decay 5e-4, batches of 128, the recipe's automatic augmentation.
            The fields below override single values.
        epochs: Passes over the clean samples, >= 1; None for the preset's value.
        learning_rate: Initial learning rate, in (0, 100); None for the preset's value.
        momentum: Momentum of SGD, in [0, 1); None for the preset's value.
        weight_decay: L2 penalty, in [0, 100); None for the preset's value.
        batch_size: Samples per step; None for the preset's value.
        augment: Augmentations, as in the recipe, including `mixup` and `cutmix`; None for the preset's value. NAD's
            Table 4 compares with `mixup` alone, AdvrBD with `cutmix`.
        hole: Side, in pixels or time steps, of an extra hole cut into each sample; 0 for none. NAD's Table 4 compares
            with `augment` `none` and a hole of 3.

    NAD fine-tunes "until convergence" with its own recipe; after 10 epochs of it the learning rate is 1e-5.

    References: Li et al., "Neural Attention Distillation", ICLR 2021, arXiv 2101.05930, section 4.1, Table 1 and
    appendix B; Li et al., "BackdoorBox", 2023, arXiv 2302.01762.

    >>> FineTuning(preset="practical", epochs=20).learning_rate is None
    True
    """

    needs: ClassVar[tuple[str, ...]] = ("clean",)
    takes: ClassVar[tuple[str, ...]] = ()
    unused: ClassVar[tuple[str, ...]] = ("schedule",)

    preset: Literal["nad", "practical"] = "nad"
    epochs: int | None = None
    learning_rate: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    batch_size: int | None = None
    augment: str | None = None
    hole: int = 0

    def purify(self, model: nn.Module, given: Given, recipe: Recipe, *, journal: Journal | None = None) -> Purified:
        """Fine-tune a copy of the model on `given.clean`.

        Args:
            model: The model, on the CPU; left as it is.
            given: `clean` is needed.
            recipe: Device, precision, seed.
            journal: Keeps checkpoints; nothing is kept by default.

        Raises:
            ConfigError: If there are no clean samples, or a hyper-parameter is out of range.
            DataError: If the clean samples do not fit the model.
        """
        clean = clean_samples(self, model, given)
        check_choices(self)
        check_hole(self.hole, clean)
        tuning: Tuning = PRESETS[self.preset].of(self)
        check_ranges(tuning, epochs="[1, inf)")
        trainer = Trainer(clean, tuning.recipe(recipe, clean), journal, mixes=True)
        tuned = trainer.network(lambda: working_copy(model))
        before = trainer.remember("accuracy before", lambda: accuracy(trainer.session, trainer.feed, tuned))
        tune(trainer, tuned, tuning, with_hole(classify(tuned), self.hole), name="fine-tuning")
        after = accuracy(trainer.session, trainer.feed, tuned)
        delivered = trainer.delivered(tuned, lambda: deepcopy(model))
        return Purified(delivered, PurifiedFacts(len(clean), before, after))


def check_hole(side: int, samples: Samples) -> None:
    """Raise `ConfigError` unless a hole of this side leaves something of such samples."""
    most = min(samples.shape[1:]) - 1
    if not 0 <= side <= most:
        raise ConfigError(f"hole is {side}; give a side in 0..{most} for samples of shape {samples.shape}, 0 for none")
