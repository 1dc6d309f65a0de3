"""From listed splits to indexed samples: labels by class name, inputs of one shape."""

from __future__ import annotations

import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np

from antibackdoor.data.cache import stored
from antibackdoor.data.samples import InputArray, IntArray, Samples, StrArray
from antibackdoor.data.source import Content, Faults, Listed, Source, in_natural_order, one_line
from antibackdoor.errors import DataError


def class_names_of(train: Listed, source: Source, path: str | Path) -> StrArray:
    """The classes in label order; raises DataError if there is only one."""
    names = source.class_names or in_natural_order(set(train.classes))
    if len(set(train.classes)) < 2:
        raise DataError(f"{path} has only one class ({one_line(train.classes[0])!r}); a classifier needs two or more")
    return np.array(names, dtype=np.str_)


def labels_of(listed: Listed, class_names: StrArray, path: str | Path) -> IntArray:
    """The class of each sample as its place in `class_names`, `(N,)`; raises DataError if one is unknown."""
    index = {unicodedata.normalize("NFC", name): i for i, name in enumerate(class_names.tolist())}
    unknown = next((row for row, name in enumerate(listed.classes) if name not in index), None)
    if unknown is not None:
        known = ", ".join(list(index)[:5]) + (", ..." if len(index) > 5 else "")
        raise DataError(
            f"{path}: {listed.ids[unknown]} has the class {one_line(listed.classes[unknown])!r}, which is "
            f"not among the {len(index)} classes trained on ({known}); remove it or rename it"
        )
    return np.array([index[name] for name in listed.classes], dtype=np.int64)


def decoded_samples(
    splits: list[Listed],
    class_names: StrArray,
    shape: tuple[int, ...],
    faults: Faults,
    cache: Path,
    path: str | Path,
    progress: bool,
) -> Samples:
    """The samples of these splits, one after the other, without those that cannot be read."""
    labels = np.concatenate([labels_of(listed, class_names, path) for listed in splits])
    ids = [sample_id for listed in splits for sample_id in listed.ids]
    if len(set(ids)) < len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise DataError(f"{path} has two samples with the id {one_line(twice)!r}; ids must be unique")
    inputs, rows = decoded([listed.content for listed in splits], shape, faults, cache, progress)
    return Samples(inputs, labels[rows], np.array(ids, dtype=np.str_)[rows], class_names)


def decoded(
    contents: list[Content], shape: tuple[int, ...], faults: Faults, cache: Path, progress: bool
) -> tuple[InputArray, IntArray]:
    """Decoded inputs `(N, *shape)` and the rows that they belong to; images in files come from the cache."""
    if not all(content.in_memory for content in contents):
        return stored(contents, shape, faults, cache, progress=progress)
    inputs = np.empty((sum(map(len, contents)), *shape), contents[0].dtype)
    rows: list[IntArray] = []
    start, offset = 0, 0
    for content in contents:
        for block in content.blocks(shape, faults):
            inputs[start : start + len(block.rows)] = block.inputs
            rows.append(block.rows + offset)
            start += len(block.rows)
        offset += len(content)
    if not start:
        raise DataError(f"none of the {offset} samples can be used; the first: {faults.skipped[0].reason}")
    return inputs[:start], np.concatenate(rows)


def check_classes(train: Samples, listed: Listed, path: str | Path) -> None:
    """Raises DataError if all samples of a class were unreadable."""
    gone = sorted(set(listed.classes) - set(train.class_names[np.unique(train.labels)].tolist()))
    if gone:
        raise DataError(f"{path}: no sample of the class {one_line(gone[0])!r} can be read; fix or remove it")


def refuse_new_classes(test: Listed, train: Listed, path: str | Path) -> None:
    """Raises DataError if the test data have a class that the training data lack."""
    new = sorted(set(test.classes) - set(train.classes))
    if new:
        raise DataError(
            f"{path}: the test data have the class {one_line(new[0])!r}, which has no training sample; "
            f"remove it from the test data or add training samples"
        )
