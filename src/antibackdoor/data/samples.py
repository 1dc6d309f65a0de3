"""The indexed training set. It holds no ground truth, so no defense can peek at it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from antibackdoor.errors import DataError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
StrArray = NDArray[np.str_]
DigestArray = NDArray[np.void]  # hashes of inputs, 16 bytes each
DIGEST = np.dtype("V16")
InputArray = NDArray[Any]  # uint8 for images, float32 for series (or for images that are floats in [0, 1])


@dataclass(frozen=True, eq=False)
class Samples:
    """A labelled data set whose rows keep their identity through training.

    Attributes:
        inputs: Images `(N, C, H, W)` as uint8 (or float32 in [0, 1]) or series `(N, C, T)` as float32.
            May be a read-only `numpy.memmap` that is larger than memory.
        labels: Class indices in `0..K-1` as given by the data's author, `(N,)` int64.
        ids: A unique name for each sample, `(N,)` str: the path inside the data set, or the row number.
        class_names: The K classes in label order, `(K,)` str.

    Raises:
        DataError: If shapes, types or ranges do not agree.
    """

    inputs: InputArray
    labels: IntArray
    ids: StrArray
    class_names: StrArray

    def __post_init__(self) -> None:
        n = len(self.inputs)
        if self.inputs.ndim not in (3, 4):
            raise DataError(
                f"inputs have shape {self.inputs.shape}; expected (N, C, H, W) for images or (N, C, T) for series"
            )
        if self.inputs.dtype not in (np.uint8, np.float32):
            raise DataError(f"inputs are {self.inputs.dtype}; convert them to uint8 or float32")
        if self.labels.shape != (n,) or self.ids.shape != (n,):
            raise DataError(
                f"{n} inputs, {self.labels.shape} labels and {self.ids.shape} ids: give one label and one id per sample"
            )
        if self.labels.dtype != np.int64:
            raise DataError(f"labels are {self.labels.dtype}; convert them to int64")
        if n and (self.labels.min() < 0 or self.labels.max() >= self.n_classes):
            raise DataError(
                f"labels run from {self.labels.min()} to {self.labels.max()}, "
                f"but there are {self.n_classes} class names: labels must lie in 0..{self.n_classes - 1}"
            )

    def __repr__(self) -> str:
        return f"Samples({len(self)} {self.kind} samples of {self.n_classes} classes, {self.shape})"

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def n_classes(self) -> int:
        """Number of classes K."""
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample: `(C, H, W)` or `(C, T)`."""
        return tuple(self.inputs.shape[1:])

    @property
    def kind(self) -> Literal["image", "series"]:
        """Whether the samples are images or time series."""
        return "image" if self.inputs.ndim == 4 else "series"

    @cached_property
    def contents(self) -> DigestArray:
        """`(N,)` a hash (blake2b, 16 bytes) of each decoded input: equal inputs have equal ones, whatever the label."""
        digests = b"".join(hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in self.inputs)
        return np.frombuffer(digests, dtype=DIGEST)

    @cached_property
    def firsts(self) -> IntArray:
        """`(N,)` for each row the first one that has the same input and the same label: itself, if it is no copy."""
        contents = self.contents.view(np.int64).reshape(-1, 2)
        _, first, which = np.unique(
            np.column_stack([contents, self.labels]), axis=0, return_index=True, return_inverse=True
        )
        return np.asarray(first[which.reshape(-1)], dtype=np.int64)

    @property
    def originals(self) -> IntArray:
        """The rows that are no copies of an earlier one, sorted."""
        return np.unique(self.firsts)

    @property
    def n_copies(self) -> int:
        """How many samples repeat an earlier one."""
        return len(self) - len(self.originals)

    def take(self, rows: NDArray[Any]) -> Samples:
        """A copy of the chosen rows (a boolean mask or positions), in that order."""
        return replace(self, inputs=self.inputs[rows], labels=self.labels[rows], ids=self.ids[rows])

    def relabel(self, labels: IntArray) -> Samples:
        """The same inputs under other labels, `(N,)` int64."""
        return replace(self, labels=labels)
