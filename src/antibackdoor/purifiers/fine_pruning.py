"""Fine-pruning: channels that clean samples leave silent are switched off."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from antibackdoor.data.samples import BoolArray
from antibackdoor.errors import ConfigError
from antibackdoor.models.features import features
from antibackdoor.protocols import Given, Purified
from antibackdoor.purifiers.channels import masked, n_channels, prunable_layer, switch_off
from antibackdoor.purifiers.clean import accuracy, clean_samples, hold_back, working_copy
from antibackdoor.purifiers.tuning import NAD_PAPER, Tuning, tune
from antibackdoor.training.journal import Journal
from antibackdoor.training.loop import classify
from antibackdoor.training.ranges import check_ranges
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.trainer import Trainer

N_EXAMPLES = 64  # clean samples on which it is checked that channels are off


@dataclass(frozen=True)
class PruningFacts:
    """What was pruned.

    Attributes:
        n_clean: Clean samples that were given.
        n_held_out: Those of them on which the accuracy was measured while channels were pruned.
        layer: The pruned layer.
        n_channels: Its channels.
        n_pruned: Pruned channels of the delivered model.
        accuracy_before: Share of the held-out samples that the given model classifies correctly, in [0, 1].
        accuracy_pruned: The same after pruning, before the fine-tuning.
    """

    n_clean: int
    n_held_out: int
    layer: str
    n_channels: int
    n_pruned: int
    accuracy_before: float
    accuracy_pruned: float


@dataclass(frozen=True)
class FinePruning:
    """Switches off the channels that are least active on clean samples, then fine-tunes the rest.

    Channels of one layer are ordered by `a_c = mean over samples and places of max(F_c, 0)` and pruned from the lowest
    on, a step at a time, until a rule stops it. They stay off while the rest is fine-tuned on all clean samples. The
    delivered model is an ordinary one: the weights that read a pruned channel are zero (see Differs).

    Attributes:
        layer: Name of the layer; empty for the last one before the classifier with spatial or time positions. AdvrBD
            prunes the second stage, such as `stage2`.
        step: Share of the channels to prune at a time, in (0, 1]; at least one channel per step, and one always
            remains.
        tolerance: Stop before the held-out accuracy falls by more than this below the given model's, in [0, 1): the
            original's 4 points. Used if none of the next three is given.
        accuracy: Stop before the held-out accuracy falls below this, in [0, 1]; NAD uses the accuracy of its own
            method.
        floor: Stop once the held-out accuracy is below this, in [0, 1]; E2ABL uses the smallest accuracy of an
            undefended model in its table, without fine-tuning (`epochs` 0).
        rate: Prune this share of the channels, in [0, 1), regardless of accuracy; AdvrBD (0.2 in the BackdoorBox code),
            without fine-tuning.
        held_out: Share of the clean samples of each class for measuring accuracy, in (0, 1); activations are measured
            on the rest.
        epochs: Passes of fine-tuning, >= 0; the sources use 0 to 100.
        learning_rate: Learning rate of SGD, divided by 10 after every second epoch as in NAD, in (0, 100).
        momentum: Momentum of SGD, in [0, 1).
        weight_decay: L2 penalty, in [0, 100).
        batch_size: Samples per step.
        augment: Augmentations, as in the recipe; None for NAD's (crop, flip and cutout; jitter, scale and shift for
            series).

    Differs from the sources: outputs of a block are pruned, not of its last convolution, which a shortcut would bypass.
    Where the readers of a channel cannot all be found, the channels of the last convolution or batch normalization are
    pruned instead, or a named layer is refused. Public code prunes one step more than its rule allows, since it keeps
    no copy of the model before; and measures on test data.

    Reference: Liu, Dolan-Gavitt and Garg, "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural
    Networks", RAID 2018, arXiv 1805.12185.
    """

    needs: ClassVar[tuple[str, ...]] = ("clean",)
    takes: ClassVar[tuple[str, ...]] = ()
    unused: ClassVar[tuple[str, ...]] = ("schedule",)

    layer: str = ""
    step: float = 0.01
    tolerance: float = 0.04
    accuracy: float | None = None
    floor: float | None = None
    rate: float | None = None
    held_out: float = 0.5
    epochs: int = 10
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    batch_size: int = 64
    augment: str | None = None

    def purify(self, model: nn.Module, given: Given, recipe: Recipe, *, journal: Journal | None = None) -> Purified:
        """Prune and fine-tune a copy of the model on `given.clean`.

        Args:
            model: The model, on the CPU; left as it is.
            given: `clean` is needed.
            recipe: Device, precision, seed.
            journal: Keeps checkpoints; nothing is kept by default.

        Raises:
            ConfigError: If there are no clean samples, or a hyper-parameter is out of range.
            DataError: If the clean samples do not fit the model.
            ModelError: If the layer does not exist, or its channels cannot be switched off in the weights.
        """
        clean = clean_samples(self, model, given)
        tuning = self._checked()
        trainer = Trainer(clean, tuning.recipe(recipe, clean), journal, mixes=True)
        session = trainer.session
        example = session.batch(trainer.feed, np.arange(min(N_EXAMPLES, len(clean)))).inputs.cpu()
        layer = prunable_layer(model, example, self.layer)
        pruned = trainer.network(lambda: working_copy(model))
        chosen = trainer.remember("pruned channels", lambda: self._chosen(trainer, pruned, layer))
        off = torch.from_numpy(np.asarray(chosen["off"], dtype=bool))
        forward = masked(pruned, layer, off.to(session.device))
        if self.epochs:
            tune(trainer, pruned, tuning, classify(forward), name="fine-tuning")
        delivered = trainer.delivered(pruned, lambda: deepcopy(model))
        if off.any():
            switch_off(delivered, layer, off, example)
        facts = PruningFacts(
            n_clean=len(clean),
            n_held_out=int(chosen["n_held_out"]),
            layer=layer,
            n_channels=n_channels(model, layer, example),
            n_pruned=int(off.sum()),
            accuracy_before=float(chosen["before"]),
            accuracy_pruned=float(chosen["after"]),
        )
        return Purified(delivered, facts)

    def _checked(self) -> Tuning:
        """How to fine-tune, once all that was set makes sense."""
        check_ranges(self, step="(0, 1]", tolerance="[0, 1)", held_out="(0, 1)")
        rules = [name for name in ("accuracy", "floor", "rate") if getattr(self, name) is not None]
        for name in rules:
            check_ranges(self, **{name: "[0, 1)" if name == "rate" else "[0, 1]"})
        if len(rules) > 1:
            raise ConfigError(f"{' and '.join(rules)} are both rules to stop pruning: give one of them")
        return NAD_PAPER.of(self)

    def _chosen(self, trainer: Trainer, model: nn.Module, layer: str) -> dict[str, BoolArray | float]:
        """Which channels to switch off, and the held-out accuracy without and with that."""
        session, feed = trainer.session, trainer.feed._replace(augmentations=())
        kept, held = hold_back(trainer.samples, self.held_out, seed=trainer.recipe.seed)
        rectified = features(session, feed, model, [layer], kept, pool=_rectified)[layer]
        active = rectified.astype(np.float64).mean(axis=0)
        order, n = np.argsort(active, kind="stable"), len(active)
        before = accuracy(session, feed, model, held)

        def off(n_off: int) -> BoolArray:
            return np.isin(np.arange(n), order[:n_off])

        def measured(n_off: int) -> float:
            mask = torch.from_numpy(off(n_off)).to(session.device)
            return accuracy(session, feed, model, held, forward=masked(model, layer, mask))

        if self.rate is not None:
            n_off = min(round(self.rate * n), n - 1)
            return {"off": off(n_off), "before": before, "after": measured(n_off), "n_held_out": len(held)}
        least = next(x for x in (self.floor, self.accuracy, before - self.tolerance) if x is not None)
        n_off, after = 0, before
        while n_off < n - 1 and after >= least:
            further = min(n_off + max(1, round(self.step * n)), n - 1)
            reached = measured(further)
            if reached < least and self.floor is None:
                break
            n_off, after = further, reached
        return {"off": off(n_off), "before": before, "after": after, "n_held_out": len(held)}


def _rectified(output: Tensor) -> Tensor:
    """`(B, C)` mean over places of what a rectifier lets through."""
    return output.clamp_min(0).flatten(2).mean(2) if output.ndim > 2 else output.clamp_min(0)
