"""Labels that a caller has in memory, as the names of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from antibackdoor.errors import DataError


def class_texts(y: Any, class_names: Sequence[str] | None, name: str) -> tuple[str, ...]:
    """The class of each sample as text.

    Args:
        y: One label a sample: whole numbers, booleans or strings, in an array, tensor, list or series.
        class_names: The classes in label order. Numbers are then positions in it, and strings must stand in it.
        name: What the argument is called in messages.

    Raises:
        DataError: If it is nothing of that kind, a label is missing, or one is not among `class_names`.
    """
    labels = np.asarray(y.detach().cpu() if hasattr(y, "detach") else y)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2:
        raise DataError(
            f"{name} has shape {labels.shape}; give one class per sample ({name}.argmax(axis=1), if these are one-hot)"
        )
    if labels.ndim != 1:
        raise DataError(f"{name} is {type(y).__name__} of shape {labels.shape}; give one label per sample")
    texts = [_text(label, f"{name}[{row}]") for row, label in enumerate(labels.tolist())]
    if class_names is None:
        return tuple(texts)
    known = [str(text) for text in class_names]
    if len(set(known)) < len(known):
        raise DataError(f"class_names holds a name twice: {', '.join(known[:10])}")
    if labels.dtype.kind in "US" or (labels.dtype == object and any(isinstance(x, str) for x in labels.tolist())):
        unknown = next((row for row, text in enumerate(texts) if text not in known), None)
        if unknown is not None:
            raise DataError(f"{name}[{unknown}] is {texts[unknown]!r}, which is not among class_names")
        return tuple(texts)
    numbers = [int(text) for text in texts]
    wrong = next((row for row, number in enumerate(numbers) if not 0 <= number < len(known)), None)
    if wrong is not None:
        raise DataError(
            f"{name}[{wrong}] is {numbers[wrong]}, but class_names has {len(known)} names: labels must lie in "
            f"0..{len(known) - 1}"
        )
    return tuple(known[number] for number in numbers)


def _text(label: Any, where: str) -> str:
    if isinstance(label, bool):
        return str(int(label))
    if isinstance(label, bytes):
        return label.decode("utf-8", "replace")
    if isinstance(label, float):
        if label != label:
            raise DataError(f"{where} is missing (NaN); give each sample a label, or leave it out")
        if not label.is_integer():
            raise DataError(f"{where} is {label}; classes are whole numbers or names, not measurements")
        return str(int(label))
    if isinstance(label, int | str):
        return str(label)
    if label is None:
        raise DataError(f"{where} is None; give each sample a label, or leave it out")
    raise DataError(f"{where} is of type {type(label).__name__}; classes are whole numbers or names")
