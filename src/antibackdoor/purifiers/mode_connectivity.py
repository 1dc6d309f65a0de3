"""Mode connectivity repair: a model from the middle of a curve through weight space."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase

from antibackdoor.data.streams import Stream, stream
from antibackdoor.protocols import Given, Purified
from antibackdoor.purifiers.clean import PurifiedFacts, accuracy, clean_samples, working_copy
from antibackdoor.purifiers.tuning import NAD_PAPER, Tuning, tune
from antibackdoor.training.journal import Journal
from antibackdoor.training.loop import Objective, batches, classify, cross_entropy
from antibackdoor.training.ranges import check_choices, check_ranges
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.schedules import Schedule
from antibackdoor.training.session import Batch, Feed, Session
from antibackdoor.training.trainer import Phase, Trainer

Weights = dict[str, Tensor]

# The schedule of the authors' code: the full rate for half of the training, a hundredth from nine tenths on.
HIGH_UNTIL, LOW_FROM, LOW = 0.5, 0.9, 0.01


@dataclass(frozen=True)
class ModeConnectivity:
    """Trains a curve of low loss between two models on clean samples, and delivers a model from its inside.

    `phi(s) = (1 - s)^2 w1 + 2 s (1 - s) theta + s^2 w2`, a Bezier curve. For each batch s is drawn from (0, 1), and
    theta, which begins as the mean of the ends, descends the loss of `phi(s)`. Accuracy stays high along the curve,
    while a backdoor is high at its ends only. Batch statistics of the delivered model are measured again.

    Attributes:
        endpoints: `B-B`: the given model at both ends, as in NAD's comparison; `B-BF`: the given model and a copy
            fine-tuned with NAD's recipe. NAD finds `B-B` better against all its attacks (Table 5).
        t: Position of the delivered model on the curve, in [0, 1]: 0.3 in NAD. 0 and 1 are the ends.
        epochs: Passes over the clean samples, >= 1: 100 in NAD; the authors use 100 to 600.
        learning_rate: Learning rate of SGD for half of the training, in (0, 100); it then falls linearly to a hundredth
            at nine tenths of it. The authors use 0.01 to 0.03.
        momentum: Momentum of SGD, in [0, 1).
        weight_decay: L2 penalty on theta, in [0, 100).
        batch_size: Samples per step.
        augment: Augmentations, as in the recipe; None for NAD's (crop, flip and cutout; jitter, scale and shift for
            series).

    Differs from the authors' code, whose penalty is on the weights of the drawn point of the curve.

    References: Zhao et al., "Bridging Mode Connectivity in Loss Landscapes and Adversarial Robustness", ICLR 2020,
    arXiv 2005.00060; Garipov et al., "Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs", NeurIPS 2018,
    arXiv 1802.10026.
    """

    needs: ClassVar[tuple[str, ...]] = ("clean",)
    takes: ClassVar[tuple[str, ...]] = ()
    unused: ClassVar[tuple[str, ...]] = ("schedule",)

    endpoints: Literal["B-B", "B-BF"] = "B-B"
    t: float = 0.3
    epochs: int = 100
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    batch_size: int = 128
    augment: str | None = None

    def purify(self, model: nn.Module, given: Given, recipe: Recipe, *, journal: Journal | None = None) -> Purified:
        """Train the curve on `given.clean`.

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
        tuning = self._checked()
        trainer = Trainer(clean, tuning.recipe(recipe, clean), journal, mixes=True)
        session = trainer.session
        one = session.prepare(deepcopy(model))
        before = accuracy(session, trainer.feed, one)
        other = one
        if self.endpoints == "B-BF":
            other = trainer.network(lambda: working_copy(model))
            recipe_of_nad = replace(NAD_PAPER, augment=self.augment)
            tune(trainer, other, recipe_of_nad, classify(other), name="second end")
        first, last = weights_of(one), weights_of(other)
        halfway = {name: (first[name] + last[name]) / 2 for name in first}
        bend = trainer.network(lambda: with_weights(working_copy(model), halfway))
        optimizer = trainer.optimizer(bend.parameters(), nesterov=0)
        phase = Phase("curve", self.epochs, along(bend, first, last), falling(self.learning_rate))
        trainer.run(bend, phase, optimizer)
        point = with_weights(deepcopy(bend), curve_point(first, weights_of(bend), last, self.t))
        measure_statistics(session, trainer.feed, point)
        after = accuracy(session, trainer.feed, point)
        delivered = trainer.delivered(point, lambda: deepcopy(model))
        return Purified(delivered, PurifiedFacts(len(clean), before, after))

    def _checked(self) -> Tuning:
        """How to train, once all that was set makes sense."""
        check_choices(self)
        check_ranges(self, t="[0, 1]")
        tuning = Tuning().of(self)
        check_ranges(tuning, epochs="[1, inf)")
        return tuning


def weights_of(model: nn.Module) -> Weights:
    """The parameters of a model by name, without gradients; batch statistics are none of them."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def with_weights(model: nn.Module, weights: Weights) -> nn.Module:
    """The model itself, with other values in its parameters."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    return model


def curve_point(first: Weights, bend: Weights, last: Weights, s: float) -> Weights:
    """`(1 - s)^2 w1 + 2 s (1 - s) theta + s^2 w2` for each parameter.

    >>> w1, theta, w2 = ({"w": torch.tensor([value])} for value in (0.0, 1.0, 4.0))
    >>> curve_point(w1, theta, w2, 0.5)["w"].item()
    1.5
    """
    a, b, c = (1 - s) ** 2, 2 * s * (1 - s), s**2
    return {name: a * first[name] + b * bend[name] + c * last[name] for name in bend}


def along(bend: nn.Module, first: Weights, last: Weights) -> Objective:
    """Classification by a point of the curve that the seed of the batch draws; gradients reach theta, `bend`, alone."""

    def objective(batch: Batch) -> tuple[Tensor, Tensor]:
        s = float(stream(batch.seed, Stream.CURVE_POINT).random())
        point = curve_point(first, dict(bend.named_parameters()), last, s)
        logits = cast(Tensor, functional_call(bend, point, (batch.inputs,)))
        losses = cross_entropy(logits, batch.labels)
        return losses, losses

    return objective


def falling(rate: float) -> Schedule:
    """The rate for half of the training, then down to a hundredth of it on a straight line.

    >>> [round(falling(0.01)(done), 6) for done in (0.0, 0.5, 0.7, 0.9)]
    [0.01, 0.01, 0.00505, 0.0001]
    """

    def at(done: float) -> float:
        fallen = min(max((done - HIGH_UNTIL) / (LOW_FROM - HIGH_UNTIL), 0.0), 1.0)
        return rate * (1 - fallen * (1 - LOW))

    return at


@torch.no_grad()
def measure_statistics(session: Session, feed: Feed, model: nn.Module) -> None:
    """Measure the running statistics of normalization layers again: the mean over the batches of one pass.

    Args:
        session: Device and batch size.
        feed: Clean samples; they are not augmented.
        model: On the session's device; in eval mode afterwards, its weights unchanged.
    """
    model.eval()
    layers = [layer for layer in model.modules() if isinstance(layer, _NormBase) and layer.running_mean is not None]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.train()
        layer.momentum = None  # torch's word for a mean over all batches
    if layers:
        # Rows are often sorted by class, and the spread within a class is not that of the data.
        order = stream(session.recipe.seed, Stream.STATISTICS).permutation(len(feed.labels))
        for rows in batches(order, session.batch_size):
            model(session.batch(feed, rows).inputs)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    model.eval()
