"""Channel Lipschitzness-based pruning: a trigger makes a few channels far more sensitive than the others."""

from __future__ import annotations

from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from antibackdoor.errors import ConfigError, ModelError
from antibackdoor.models.hooks import evaluation_mode, hooked
from antibackdoor.protocols import Given, Purified, check_given
from antibackdoor.training.journal import Journal
from antibackdoor.training.ranges import check_ranges
from antibackdoor.training.recipe import Recipe

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Pair = tuple[Convolution, _BatchNorm]

SIZES = (32, 224, 64, 28, 128, 512)  # of samples, tried in this order where no shape is known


@dataclass(frozen=True)
class ChannelLipschitzPruningFacts:
    """What was pruned.

    Attributes:
        n_convolutions: Convolutions that the network uses.
        n_convolutions_skipped: Those of them that no batch norm follows directly, or that are used several times.
        n_channels: Output channels of the others.
        n_channels_pruned: Channels that now put out zero.
    """

    n_convolutions: int
    n_convolutions_skipped: int
    n_channels: int
    n_channels_pruned: int


@dataclass(frozen=True)
class ChannelLipschitzPruning:
    """Silences the channels whose Lipschitz bound is an outlier in their layer. It needs no data and no training.

    For channel c of a convolution with batch norm, `L_c = sigma_max(W_c) |gamma_c| / sqrt(var_c + eps)`, with `W_c` the
    kernel as a matrix of input channels by places. A channel with `L_c > mean + u * std` over its layer gets a batch
    norm of weight and bias zero.

    One forward pass of zeros tells which batch norm follows a convolution: the one that takes the same tensor. So a
    pre-activation network pairs a convolution with the first batch norm of the next block. A convolution whose output
    is summed with a shortcut first is left alone.

    Attributes:
        u: A channel is pruned if it is this many standard deviations above the mean of its layer, >= 0; 3 as in the
            paper. A smaller value prunes more. None of n values is further than `(n - 1) / sqrt(n)` from their mean, so
            with 3, a layer of 10 channels or fewer loses none.

    Differs from the published code, which pairs layers by the order of their names and leaves eps out: there, a dead
    channel hides the outliers.

    Reference: Zheng et al., "Data-free Backdoor Removal based on Channel Lipschitzness", ECCV 2022, arXiv 2208.03111.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[tuple[str, ...]] = ("clean",)
    unused: ClassVar[tuple[str, ...]] = (
        "epochs",
        "batch_size",
        "learning_rate",
        "schedule",
        "momentum",
        "weight_decay",
        "augment",
        "precision",
        "device",
        "devices",
        "seed",
    )

    u: float = 3.0

    def purify(self, model: nn.Module, given: Given, recipe: Recipe, *, journal: Journal | None = None) -> Purified:
        """Prune a copy of the model.

        Args:
            model: The model, on the CPU; left as it is.
            given: `input_shape`, or else `clean` samples, of which only the shape is used. With neither, common sizes
                are tried: which layer follows which does not depend on the size.
            recipe: Nothing of it is used.
            journal: Nothing is kept: it takes seconds.

        Raises:
            ConfigError: If u is out of range, or the shape of a sample is not known and no common one fits.
            ModelError: If the model does not take such samples, or no batch norm follows any convolution.
        """
        given = check_given(self, given)
        check_ranges(self, u="[0, inf)")
        pruned = deepcopy(model).eval()
        pairs, n_convolutions = _traced(pruned, _shapes(pruned, given))
        if not pairs:
            raise ModelError(
                f"none of the model's {n_convolutions} convolutions is followed by a batch norm: this method cannot "
                "prune it, choose another"
            )
        n_pruned = 0
        for convolution, norm in pairs:
            outliers = above(channel_bounds(convolution, norm), self.u)
            n_pruned += int(outliers.sum())
            with torch.no_grad():
                norm.weight[outliers] = 0.0
                norm.bias[outliers] = 0.0
        facts = ChannelLipschitzPruningFacts(
            n_convolutions=n_convolutions,
            n_convolutions_skipped=n_convolutions - len({id(convolution) for convolution, _ in pairs}),
            n_channels=sum(norm.num_features for _, norm in pairs),
            n_channels_pruned=n_pruned,
        )
        return Purified(pruned, facts)


def _shapes(model: nn.Module, given: Given) -> list[tuple[int, ...]]:
    """Of one sample: the one that is known, or else some that such a network may take."""
    if given.input_shape is not None:
        return [given.input_shape]
    if given.clean is not None:
        return [given.clean.shape]
    first = next((module for module in model.modules() if isinstance(module, Convolution)), None)
    return [] if first is None else [(first.in_channels, *[size] * len(first.kernel_size)) for size in SIZES]


def _traced(model: nn.Module, shapes: list[tuple[int, ...]]) -> tuple[list[Pair], int]:
    """What follows what, by the first of the shapes that the model takes: any will do, as long as it runs."""
    failure: ModelError | None = None
    for shape in shapes:
        try:
            return convolutions_with_norms(model, shape)
        except ModelError as error:
            failure = failure or error
    if failure is None:
        raise ModelError("the model has no convolution: this method cannot prune it, choose another")
    if len(shapes) > 1:
        raise ConfigError(
            "the model takes no sample of a common shape: give its input shape, from Python as Given(input_shape=...)"
        )
    raise failure


def channel_bounds(convolution: Convolution, norm: _BatchNorm) -> Tensor:
    """Upper bound of the Lipschitz constant of each channel of a convolution and its batch norm, `(C,)` float64."""
    weight = convolution.weight.detach().double()
    largest: Tensor = torch.linalg.matrix_norm(weight.flatten(2), ord=2)  # (C, C_in / groups, places)
    assert norm.running_var is not None
    return largest * norm.weight.detach().double().abs() / (norm.running_var.double() + norm.eps).sqrt()


def above(bounds: Tensor, u: float) -> Tensor:
    """Which of the bounds `(C,)` lie more than u standard deviations above their mean, `(C,)` bool.

    >>> above(torch.tensor([1.0] * 11 + [5.0]), 3.0).nonzero().flatten().tolist()
    [11]
    """
    if len(bounds) < 2:
        return torch.zeros(len(bounds), dtype=torch.bool)
    return bounds > bounds.mean() + u * bounds.std()


def convolutions_with_norms(network: nn.Module, shape: tuple[int, ...]) -> tuple[list[Pair], int]:
    """Which convolution puts out the very tensor that a batch norm takes.

    Args:
        network: Any network on the CPU; left as it was.
        shape: Of one sample.

    Returns:
        Pairs in the order in which the batch norms are called, and the number of convolutions that are called. Layers
        that are called more than once are in no pair, nor are transposed convolutions.

    Raises:
        ModelError: If the network fails on such samples.
    """
    calls: dict[int, int] = {}
    made: list[tuple[nn.Module, Tensor, int]] = []  # the tensors are held, so that no two get one identity
    taken: list[Pair] = []

    def convolved(module: nn.Module, _inputs: Any, output: Any) -> None:
        calls[id(module)] = calls.get(id(module), 0) + 1
        if isinstance(output, Tensor):
            made.append((module, output, output._version))

    def normalized(module: nn.Module, inputs: Any, _output: Any) -> None:
        calls[id(module)] = calls.get(id(module), 0) + 1
        for convolution, output, version in made:
            # Another version is another content: a sum in place, for one.
            if inputs and inputs[0] is output and output._version == version:
                taken.append((convolution, module))  # type: ignore[arg-type]

    kinds = (nn.modules.conv._ConvNd, _BatchNorm)
    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(network))
        for module in network.modules():
            if isinstance(module, kinds):
                stack.enter_context(hooked(module, normalized if isinstance(module, _BatchNorm) else convolved))
        try:
            with torch.no_grad():
                network(torch.zeros(2, *shape))
        except Exception as error:  # the user's network may raise anything
            cause = " ".join(str(error).split())
            raise ModelError(f"the model fails on samples of shape {shape}: {cause}") from error
    pairs = [
        (convolution, norm)
        for convolution, norm in taken
        if calls[id(convolution)] == calls[id(norm)] == 1
        and isinstance(convolution, Convolution)
        and norm.affine
        and norm.running_var is not None
    ]
    return pairs, len({id(module) for module, _, _ in made})
