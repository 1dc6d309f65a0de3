"""Data for a trained model are read as those that it was trained on were, and refused where they are unlike them."""

from __future__ import annotations

from typing import Any

from antibackdoor.data.options import known_options
from antibackdoor.data.reading import DataSet
from antibackdoor.data.shapes import TrainedOn
from antibackdoor.runs.model_file import ModelSpec


def record_of(data: DataSet) -> dict[str, Any]:
    """How data were read, for the fields of `ModelSpec` that keep it."""
    return {
        "read_options": {name: value for name, value in data.options.chosen().items() if isinstance(value, str)},
        "original_sizes": data.sizes,
        "significant_bits": data.bits,
    }


def as_trained(spec: ModelSpec, *, accept_unlike: bool = False) -> dict[str, Any]:
    """Arguments of `read_samples` and `read_inputs` for a model.

    Args:
        spec: The model's description.
        accept_unlike: Whether data unlike those of the training are read all the same. The kind and, for series, the
            number of channels must fit in any case.
    """
    known = spec.original_sizes is not None  # older runs, and bare files of weights, do not say it
    trained_on = TrainedOn(
        spec.input_shape[0], spec.original_sizes, spec.mean if known else (), spec.std if known else ()
    )
    return {
        "recorded": known_options(spec.read_options),
        "bits": spec.significant_bits,
        "trained_on": None if accept_unlike else trained_on,
    }
