"""Ways to unlearn isolated samples other than by gradient ascent: Table 3 of ABL (Li et al., arXiv 2110.11571).

Each starts from the network after the isolation, trained on everything, and so backdoored. The text only names them;
the readings here are ours, after those names. The tenth, an ImageNet model, needs weights from elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from antibackdoor.data.samples import BoolArray, IntArray
from antibackdoor.data.streams import Stream, stream
from antibackdoor.errors import ModelError
from antibackdoor.models.features import last_layer, maps, stages
from antibackdoor.models.hooks import evaluation_mode, hooked
from antibackdoor.models.normalization import channel_statistics
from antibackdoor.protocols import Build
from antibackdoor.training.loop import Objective, classify, cross_entropy
from antibackdoor.training.objectives import Forward, label_smoothing, with_hole
from antibackdoor.training.schedules import Schedule, constant
from antibackdoor.training.session import Batch
from antibackdoor.training.trainer import Phase, Trainer

NOISE = 0.1  # standard deviation, of pixels in [0, 1], of a series channel's own deviation, or of a gradient's size
SMOOTHING = 0.2  # of the labels of isolated samples


@dataclass(frozen=True, eq=False)
class Stage:
    """The network after the isolation, and how to go on.

    Attributes:
        trainer: Runs the phases.
        model: The network, trained with its loss held.
        build: Makes another one.
        isolated: `(N,)` bool.
        epochs: Passes of the tuning.
        learning_rate: Over the tuning.
        hole: Side of a hole that is cut into each sample of the tuning, in pixels or steps; 0 for none.
        tuned_on_all: Whether the isolated samples are tuned on as well.
        unlearning_epochs: Passes of the unlearning, at most.
        unlearning_learning_rate: Its learning rate.
    """

    trainer: Trainer
    model: nn.Module
    build: Build
    isolated: BoolArray
    epochs: int
    learning_rate: Schedule
    hole: int
    tuned_on_all: bool
    unlearning_epochs: int
    unlearning_learning_rate: float

    @property
    def rest(self) -> IntArray:
        """Rows that are not isolated."""
        return np.flatnonzero(~self.isolated)

    @property
    def tuned_on(self) -> IntArray | None:
        """Rows of the tuning; None for all."""
        return None if self.tuned_on_all else self.rest

    def mask(self) -> Tensor:
        """`isolated` on the device."""
        return torch.from_numpy(self.isolated).to(self.trainer.session.device)


Unlearning = Callable[[Stage], tuple[nn.Module, int]]
"""The network to deliver, and the epochs that unlearning took."""


def tune(stage: Stage) -> None:
    """Stage 2: plain training goes on."""
    objective = with_hole(classify(stage.model), stage.hole)
    phase = Phase("tuning", stage.epochs, objective, stage.learning_rate, rows=stage.tuned_on)
    stage.trainer.run(stage.model, phase)


def accuracy(trainer: Trainer, model: nn.Module, rows: BoolArray) -> float | None:
    """Share of the rows `(N,)` bool that a network gives their given label, without augmentation; None of none."""
    if not rows.any():
        return None
    model.eval()
    right = trainer.session.evaluate(
        trainer.feed, model, lambda logits, labels: (logits.argmax(1) == labels).float(), np.flatnonzero(rows)
    )
    return float(right.mean(dtype=np.float64))


# --------------------------------------------------------------------------- the alternatives


def _go_on(
    stage: Stage, objective: Objective | None = None, *, rows: IntArray | None = None, labels: IntArray | None = None
) -> tuple[nn.Module, int]:
    """The unlearning phase."""
    n, rate = stage.unlearning_epochs, constant(stage.unlearning_learning_rate)
    objective = with_hole(objective or classify(stage.model), stage.hole)
    phase = Phase("unlearning", n, objective, rate, rows=rows, labels=labels)
    stage.trainer.run(stage.model, phase)
    return stage.model, n


def _pixel_noise(stage: Stage) -> tuple[nn.Module, int]:
    """Train on; isolated samples get fresh Gaussian noise in each batch."""
    tune(stage)
    noise = _noise_scale(stage.trainer)
    return _go_on(stage, noisy(stage.model, stage.mask(), noise))


def _gradient_noise(stage: Stage) -> tuple[nn.Module, int]:
    """The same, with the noise where the loss depends on the inputs, as a trigger's pixels do."""
    tune(stage)
    noise = _noise_scale(stage.trainer)
    return _go_on(stage, noisy(stage.model, stage.mask(), noise, by_gradient(stage.model)))


def _parameter_gradient_noise(stage: Stage) -> tuple[nn.Module, int]:
    """Train on; the part of a step's gradient that isolated samples make gets noise."""
    tune(stage)
    return _go_on(stage, noisy_gradients(stage.model, stage.mask()))


def _label_shuffling(stage: Stage) -> tuple[nn.Module, int]:
    """Train on; the labels of the isolated are permuted among them, once."""
    tune(stage)
    labels, rows = stage.trainer.samples.labels.copy(), np.flatnonzero(stage.isolated)
    labels[rows] = stream(stage.trainer.recipe.seed, Stream.SHUFFLED_LABELS).permutation(labels[rows])
    return _go_on(stage, labels=labels)


def _label_uniform(stage: Stage) -> tuple[nn.Module, int]:
    """Train on; the isolated get labels drawn from all K, once."""
    tune(stage)
    samples, rows = stage.trainer.samples, np.flatnonzero(stage.isolated)
    labels = samples.labels.copy()
    drawn = stream(stage.trainer.recipe.seed, Stream.UNIFORM_LABELS)
    labels[rows] = drawn.integers(samples.n_classes, size=len(rows))
    return _go_on(stage, labels=labels)


def _softened(stage: Stage, smoothing: float) -> tuple[nn.Module, int]:
    """Train on; the labels of the isolated are smoothed, up to a uniform target."""
    tune(stage)
    return _go_on(stage, label_smoothing(stage.model, smoothing, stage.mask()))


def _self_learning(stage: Stage) -> tuple[nn.Module, int]:
    """Train on; the isolated get the labels that a network trained on the rest gives them."""
    tune(stage)
    trainer, rows = stage.trainer, np.flatnonzero(stage.isolated)
    teacher, _ = _retrain(stage)

    def relabeled() -> IntArray:
        labels = trainer.samples.labels.copy()
        if len(rows):
            teacher.eval()
            said = trainer.session.evaluate(trainer.feed, teacher, lambda logits, _: logits.argmax(1), rows)
            labels[rows] = said.astype(np.int64)
        return labels

    return _go_on(stage, labels=trainer.remember("self-learned labels", relabeled))


def _finetune_all(stage: Stage) -> tuple[nn.Module, int]:
    """The isolated are discarded; all layers train on the rest."""
    tune(stage)
    return _go_on(stage, rows=stage.rest)


def _finetune_last(stage: Stage) -> tuple[nn.Module, int]:
    """The isolated are discarded; the last stage and the classifier train on the rest, behind layers that stay."""
    tune(stage)
    model, device = stage.model, stage.trainer.session.device
    example = torch.zeros(2, *stage.trainer.samples.shape, device=device)
    for parameter in before_last_stage(model, example):
        parameter.requires_grad_(False)
    return _go_on(stage, classify(with_fixed_norms(model, frozen_norms(model, example))), rows=stage.rest)


def _retrain(stage: Stage) -> tuple[nn.Module, int]:
    """The isolated are discarded; a new network trains on the rest, as long as the tuning."""
    model = stage.trainer.network(stage.build, index=1)
    objective = with_hole(classify(model), stage.hole)
    phase = Phase("retraining", stage.epochs, objective, stage.learning_rate, rows=stage.rest)
    stage.trainer.run(model, phase)
    return model, stage.epochs


ALTERNATIVES: dict[str, Unlearning] = {
    "pixel-noise": _pixel_noise,
    "gradient-noise": _gradient_noise,
    "parameter-gradient-noise": _parameter_gradient_noise,
    "label-shuffling": _label_shuffling,
    "label-uniform": _label_uniform,
    "label-uniform-soft": partial(_softened, smoothing=1.0),
    "label-smoothing": partial(_softened, smoothing=SMOOTHING),
    "self-learning": _self_learning,
    "finetune-all": _finetune_all,
    "finetune-last": _finetune_last,
    "retrain": _retrain,
}


# --------------------------------------------------------------------------- noise


def noisy(
    model: nn.Module,
    isolated: Tensor,
    scale: Tensor,
    weights: Callable[[Batch], Tensor] | None = None,
) -> Objective:
    """Plain classification; the inputs of isolated samples get Gaussian noise.

    Args:
        model: The network.
        isolated: `(N,)` bool, by row.
        scale: Standard deviation of the noise, `(C,)`, by channel.
        weights: What the noise of a batch is multiplied by, of the shape of its inputs; nothing by default.
    """

    def objective(batch: Batch) -> tuple[Tensor, Tensor]:
        inputs, chosen = batch.inputs, isolated[batch.rows]
        generator = torch.Generator().manual_seed(batch.seed)
        noise = torch.randn(inputs.shape, generator=generator).to(inputs.device)
        noise = noise * scale.view(-1, *[1] * (inputs.ndim - 2))
        if weights is not None:
            noise = noise * weights(batch)
        changed = inputs + noise * chosen.view(-1, *[1] * (inputs.ndim - 1))
        if inputs.ndim == 4:
            changed = changed.clamp(0, 1)
        losses = cross_entropy(model(changed), batch.labels)
        return losses, losses

    return objective


def by_gradient(model: nn.Module) -> Callable[[Batch], Tensor]:
    """Weights of noise: the size of the loss's gradient at each value, over its root mean square in the sample.

    In eval mode: one step may update the statistics of batch norm but once, and a sample's gradient is its own.
    """

    def weights(batch: Batch) -> Tensor:
        inputs = batch.inputs.detach().requires_grad_()
        with evaluation_mode(model):
            losses = cross_entropy(model(inputs), batch.labels)
        (gradient,) = torch.autograd.grad(losses.sum(), inputs)
        size = gradient.float().square().flatten(1).mean(1).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
        return gradient.abs() / size.view(-1, *[1] * (inputs.ndim - 1))

    return weights


def noisy_gradients(model: nn.Module, isolated: Tensor) -> Objective:
    """Plain classification; Gaussian noise is added to the gradient that isolated samples make.

    For each parameter its standard deviation is `NOISE` times the root mean square of that gradient. A term that is
    linear in the parameters adds it: the noise is its gradient.
    """

    def objective(batch: Batch) -> tuple[Tensor, Tensor]:
        losses = cross_entropy(model(batch.inputs), batch.labels)
        chosen = isolated[batch.rows]
        if not chosen.any():
            return losses, losses
        parameters = [p for p in model.parameters() if p.requires_grad]
        part = (losses * chosen).mean()
        gradients = torch.autograd.grad(part, parameters, retain_graph=True, allow_unused=True)
        generator = torch.Generator().manual_seed(batch.seed)
        term = losses.new_zeros(())
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
                term = term + (parameter * noise * (NOISE * gradient.square().mean().sqrt())).sum()
        return losses + term - term.detach(), losses

    return objective


def _noise_scale(trainer: Trainer) -> Tensor:
    """Standard deviation of the noise, `(C,)`: pixels have a range of their own, series only their spread."""
    samples = trainer.samples
    if samples.kind == "image":
        scale = np.full(samples.shape[0], NOISE)
    else:
        scale = NOISE * np.asarray(channel_statistics(samples)[1])
    return torch.as_tensor(scale, dtype=torch.float32, device=trainer.session.device)


def before_last_stage(model: nn.Module, example: Tensor) -> list[nn.Parameter]:
    """Parameters that the output of the last stage but one depends on; of the only stage, where there is one.

    Args:
        model: The network.
        example: `(B, *shape)`, on its device.
    """
    layer = _last_but_one(model, example)
    parameters = [p for p in model.parameters() if p.requires_grad]
    was_training = model.training
    with torch.enable_grad():
        output = maps(model.eval(), example, [layer])[layer]
        gradients = torch.autograd.grad(output.sum(), parameters, allow_unused=True)
    model.train(was_training)
    return [p for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None]


def frozen_norms(model: nn.Module, example: Tensor) -> list[nn.Module]:
    """Batch norms that run before the end of the last stage but one and have no weight in training."""
    met: list[nn.Module] = []
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    with ExitStack() as stack, evaluation_mode(model), torch.no_grad():
        layer = _last_but_one(model, example)
        for norm in norms:
            stack.enter_context(hooked(norm, lambda module, _inputs, _output: met.append(module)))
        maps(model, example, [layer])
    return [norm for norm in dict.fromkeys(met) if not any(p.requires_grad for p in norm.parameters())]


def with_fixed_norms(model: nn.Module, norms: list[nn.Module]) -> Forward:
    """The network, whatever its mode, with the running statistics of these batch norms, which stay as they are."""

    def forward(inputs: Tensor) -> Tensor:
        for norm in norms:
            norm.eval()
        logits: Tensor = model(inputs)
        return logits

    return forward


def _last_but_one(model: nn.Module, example: Tensor) -> str:
    """The layer that ends the last stage but one; the only stage, where there is one."""
    try:
        ends = stages(model, example)
    except ModelError:  # a network without convolutions
        ends = (last_layer(model, example),)
    return ends[-2] if len(ends) > 1 else ends[-1]
