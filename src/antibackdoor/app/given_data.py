"""Data in whatever form a caller in Python has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from antibackdoor.app.read_as import as_trained
from antibackdoor.data.from_huggingface import from_huggingface, is_huggingface
from antibackdoor.data.from_python import from_arrays, from_dataframe, from_torch
from antibackdoor.data.reading import DataSet, read, read_samples
from antibackdoor.data.samples import Samples
from antibackdoor.errors import ConfigError, DataError
from antibackdoor.runs.model_file import ModelSpec

_FORMS = (
    "a path, arrays with their labels, a pandas.DataFrame, a torch Dataset, a datasets.Dataset, or what "
    "antibackdoor.read returns"
)


def as_data_set(data: Any, y: Any = None, *, test_fraction: float | None = None) -> DataSet:
    """A data set from a path, from arrays and their labels, from a table or another library's data set.

    Args:
        data: The data.
        y: The labels, where `data` are arrays; else None.
        test_fraction: Part of each class that is held out where `data` have no test split; 0.2 if None.

    Raises:
        DataError: If the data cannot be used, or are of no such type.
        ConfigError: If a `DataSet` is given, and a fraction to hold out of it.
    """
    if isinstance(y, str | Path):
        raise DataError(f"y is {str(y)!r:.60}; give one label per sample (a folder to write to goes into out=...)")
    fraction = 0.2 if test_fraction is None else test_fraction
    if isinstance(data, DataSet | Samples):
        if y is not None:
            raise DataError(f"data is a {type(data).__name__}, which has its own labels; leave y out")
        if test_fraction is not None:
            raise ConfigError("data has already been read; give test_fraction when you read it")
        return data if isinstance(data, DataSet) else DataSet(data, None, "arrays", (), {"test": "none"})
    if y is not None:
        if isinstance(data, str | Path):
            raise DataError(f"data is the path {str(data)!r:.60}, and y is given as well; leave y out")
        return from_arrays(data, y, test_fraction=fraction)
    if isinstance(data, str | Path):
        return read(data, test_fraction=fraction)
    if hasattr(data, "columns") and hasattr(data, "iloc"):
        return from_dataframe(data, test_fraction=fraction)
    if is_huggingface(data):
        return from_huggingface(data, test_fraction=fraction)
    if isinstance(data, Dataset):
        return from_torch(data, test_fraction=fraction)
    if hasattr(data, "__array__") or isinstance(data, list | tuple):
        raise DataError("y is missing; give the labels with the arrays, one per sample")
    raise DataError(f"data is of type {type(data).__name__}; give {_FORMS}")


def samples_for(spec: ModelSpec, given: Any, name: str) -> Samples:
    """Labelled samples for a trained model.

    Args:
        spec: What the model is.
        given: A path, a pair `(X, y)`, a `DataSet` (its training samples, or for the argument `test` its test samples
            if it has any), or `Samples`.
        name: What the argument is called.

    Raises:
        DataError: If they cannot be used, or do not fit the model.
    """
    is_test = name == "test"
    if isinstance(given, str | Path):
        split: Any = "test" if is_test else "train"
        return read_samples(
            given, class_names=spec.class_names, shape=spec.input_shape, split=split, **as_trained(spec)
        )
    if isinstance(given, tuple) and len(given) == 2:
        given = from_arrays(*given, class_names=spec.class_names, test_fraction=0).train
    if isinstance(given, DataSet):
        given = given.test if is_test and given.test is not None else given.train
    if not isinstance(given, Samples):
        raise DataError(f"{name} is of type {type(given).__name__}; give a path, a pair (X, y), a DataSet or Samples")
    if given.shape != spec.input_shape or tuple(given.class_names.tolist()) != spec.class_names:
        raise DataError(
            f"{name} has samples of shape {given.shape} in {given.n_classes} classes, the model takes "
            f"{spec.input_shape} in {len(spec.class_names)}: {', '.join(spec.class_names[:5])}"
        )
    return given
