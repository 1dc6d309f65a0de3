"""What the estimators of `antibackdoor.sklearn` are made of: inputs, a budget, a network that can be pickled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from antibackdoor.app.networks import Factory, builder
from antibackdoor.data.given_arrays import Arrays, as_numbers
from antibackdoor.data.samples import DigestArray, FloatArray, InputArray, IntArray, Samples
from antibackdoor.data.series import Gaps, resample
from antibackdoor.data.shapes import common_shape
from antibackdoor.data.source import Faults, Listed
from antibackdoor.detectors import ConfusionTraining
from antibackdoor.errors import DataError
from antibackdoor.models.backbones import MIN_SIZE
from antibackdoor.models.features import last_layer, maps, mean_pooled
from antibackdoor.runs.model_file import ModelSpec
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.session import Session

# A small data set gets fewer passes than `Recipe` would choose: one for each 20 samples, so that from about 1,400
# samples on both are the same. A fit of an estimator is often one of hundreds, in a search or a cross-validation.
SAMPLES_A_PASS, LEAST_PASSES = 20, 5
_BATCH = 256


def is_list_of_series(X: Any) -> bool:
    """Whether these are separate arrays, one a sample, as aeon keeps series of unequal length.

    >>> is_list_of_series([np.zeros((1, 5)), np.zeros((1, 7))]), is_list_of_series([[1.0, 2.0], [3.0, 4.0]])
    (True, False)
    """
    if not isinstance(X, list | tuple) or not len(X):
        return False
    if all(getattr(one, "ndim", 0) >= 1 for one in X):
        return True
    lengths = {len(one) if isinstance(one, list | tuple) else -1 for one in X}
    return len(lengths) > 1 and min(lengths) > 0


def to_inputs(X: Any, shape: tuple[int, ...] | None = None) -> InputArray:
    """Inputs of a network, `(N, *shape)`: float32 series, or images as uint8 or float32.

    Args:
        X: `(N, T)` series of one variable, `(N, C, T)` series, images of four axes, or a list of arrays `(T,)` or
            `(C, T)` of unequal lengths. Series of fewer than 8 steps are resampled to 8, which networks need.
        shape: What a network was trained on; None to choose it.

    Raises:
        DataError: If these are no finite numbers, or do not fit the shape.
    """
    if is_list_of_series(X):
        items = [as_numbers(one, f"X[{row}]") for row, one in enumerate(X)]
        return _series([one[None] if one.ndim == 1 else one for one in items], shape)
    if X.ndim <= 3:
        return _series(list(X[:, None] if X.ndim == 2 else X), shape)
    ids = tuple(f"X[{row}]" for row in range(len(X)))
    with Faults("raise") as faults:
        content, _ = Arrays("", Gaps("refuse"), faults).content(X, ids, "X")
        shape = shape or common_shape([Listed(ids, (), content)], None, None, {}, False)[0]  # type: ignore[arg-type]
        blocks = [block.inputs for block in content.blocks(shape, faults)]
    return np.concatenate(blocks)


def _series(series: Sequence[NDArray[Any]], shape: tuple[int, ...] | None) -> InputArray:
    n_channels = {one.shape[0] for one in series}
    if len(n_channels) > 1 or {one.ndim for one in series} != {2} or not all(one.shape[1] for one in series):
        raise DataError("X holds arrays of different kinds; give each sample as (T,) or (C, T), with the same channels")
    if shape is not None and (len(shape) != 2 or n_channels != {shape[0]}):
        raise DataError(f"X has {n_channels.pop()} channels, where samples of shape {shape} were fitted")
    length = shape[1] if shape is not None else max(MIN_SIZE, *(one.shape[1] for one in series))
    with np.errstate(over="ignore"):
        inputs = np.stack([resample(one.astype(np.float32), length) for one in series])
    bad = np.flatnonzero(~np.isfinite(inputs).all(axis=(1, 2)))
    if len(bad):
        raise DataError(f"X[{int(bad[0])}] holds NaN, infinity or a value too large for float32; fill it in")
    return inputs


@dataclass(frozen=True)
class Budget:
    """How much is spent on a fit.

    Attributes:
        epochs: Passes over the data.
        share: Of what the recipe would choose, in (0, 1].
    """

    epochs: int
    share: float

    @classmethod
    def of(cls, epochs: int, recipe: Recipe, n_samples: int) -> Budget:
        """As many passes as are asked for; if that is 0, what fits the size of the data."""
        usual = recipe.passes(n_samples)
        chosen = epochs or min(usual, max(LEAST_PASSES, n_samples // SAMPLES_A_PASS))
        return cls(chosen, min(1.0, chosen / usual))

    def of_search(self, method: Any) -> Any:
        """The method with a search that is cut to the same share; others are left as they are."""
        if isinstance(method, ConfusionTraining):
            steps = {name: max(1, round(self.share * getattr(method, name))) for name in _STEPS}
            return replace(method, power=False, **steps)  # an estimator does not tell what would have been found
        parts = {part.name: getattr(method, part.name) for part in fields(method)}
        searches = {name: self.of_search(one) for name, one in parts.items() if isinstance(one, ConfusionTraining)}
        return replace(method, **searches) if searches else method


_STEPS = ("warmup_steps", "confusion_steps")


@dataclass(frozen=True, eq=False)
class FittedNetwork:
    """A trained network as plain arrays, so that it can be pickled and copied.

    Attributes:
        spec: What the network is.
        weights: Names to values of all parameters and buffers.
        factory: Makes the user's own network.
        device: Where it computes.
    """

    spec: ModelSpec
    weights: dict[str, NDArray[Any]]
    factory: Factory | None
    device: str

    @classmethod
    def of(cls, model: nn.Module, spec: ModelSpec, factory: Factory | None, device: str) -> FittedNetwork:
        """The weights of a network."""
        weights = {name: value.detach().cpu().numpy().copy() for name, value in model.state_dict().items()}
        return cls(spec, weights, factory, device)

    def probabilities(self, inputs: InputArray) -> FloatArray:
        """Of each class, `(N, K)` float64."""
        network, kind = self._network()
        return self._run(inputs, kind, lambda x: network(x).double().softmax(1))

    def features(self, inputs: InputArray) -> FloatArray:
        """Of the last layer before the classes, averaged over all places, `(N, D)` float64."""
        network, kind = self._network()
        layer = last_layer(network, kind.new_zeros(2, *self.spec.input_shape))
        return self._run(inputs, kind, lambda x: mean_pooled(maps(network, x, [layer])[layer]).double())

    def _network(self) -> tuple[nn.Module, Tensor]:
        """The network in eval mode, and a tensor of its type on its device.

        On a CPU it computes in double precision, so that no answer depends on what else is asked.
        """
        network = builder(self.spec, self.factory)()
        network.load_state_dict({name: torch.from_numpy(value) for name, value in self.weights.items()})
        device = Session(Recipe(device=self.device, progress=False), 1, images=self.spec.kind == "image").device
        exact = device.type == "cpu" and self.factory is None
        kind = torch.zeros(0, dtype=torch.float64 if exact else torch.float32, device=device)
        return network.to(kind).eval(), kind

    @staticmethod
    @torch.no_grad()
    def _run(inputs: InputArray, kind: Tensor, forward: Callable[[Tensor], Tensor]) -> FloatArray:
        parts = []
        for start in range(0, len(inputs), _BATCH):
            batch = torch.from_numpy(np.array(inputs[start : start + _BATCH])).to(kind)
            parts.append(forward(batch / 255 if inputs.dtype == np.uint8 else batch).cpu().numpy())
        return np.concatenate(parts)


def duplicates(known: DigestArray, one: Samples, inputs: InputArray) -> IntArray:
    """For each input the row of an equal one among known samples, the first of several.

    Args:
        known: `(N,)` hashes of the known samples.
        one: One of these, for their shape and type.
        inputs: `(M, *shape)`.

    Returns:
        `(M,)` int64; -1 where there is none.
    """
    row_of = {digest.tobytes(): row for row, digest in reversed([*enumerate(known)])}
    nothing = np.zeros(len(inputs), dtype=np.int64)
    asked = replace(one, inputs=inputs, labels=nothing, ids=nothing.astype(np.str_)).contents
    return np.array([row_of.get(digest.tobytes(), -1) for digest in asked], dtype=np.int64)
