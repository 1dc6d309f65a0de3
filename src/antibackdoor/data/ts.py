"""The `.ts` text format of the UEA and UCR archives of time series.

Header lines start with `@`; after `@data` each line is a sample: dimensions separated by `:`, values by `,`,
the class last. Series of unequal length are resampled to the longest (linear interpolation). Time stamps are
refused; missing values (`?` or NaN) at the end mean a shorter series, others are refused or interpolated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from antibackdoor.data.options import Request
from antibackdoor.data.output import complete_or_absent
from antibackdoor.data.pairs import test_beside, written_pair
from antibackdoor.data.samples import Samples, StrArray
from antibackdoor.data.series import Gaps, SeriesArray, SeriesList, parse_values, read_lines, resample
from antibackdoor.data.source import Faults, Listed, Source, Written, in_natural_order, one_line
from antibackdoor.errors import DataError

SUFFIXES = (".ts",)


@dataclass(frozen=True)
class _Header:
    classes: frozenset[str] | None  # as declared; None if the header does not list them
    labelled: bool


def open_source(path: Path, faults: Faults, request: Request) -> Source:
    """Read a file, and `NAME_TEST.ts` if the file is `NAME_TRAIN.ts`; ids are `train/row` and `test/row`.

    Raises:
        DataError: If the header or a line is malformed; the message names the line.
    """
    gaps = Gaps(request.all_options.missing)
    train, names = _read(path, "train", faults, request.labelled, gaps)
    test_path = test_beside(path) if request.labelled else None
    if test_path is None:
        return Source({"train": train}, names, gaps.notes())
    test, _ = _read(test_path, "test", faults, request.labelled, gaps)
    return Source({"train": train, "test": test}, names, gaps.notes())


def _read(path: Path, split: str, faults: Faults, labelled: bool, gaps: Gaps) -> tuple[Listed, tuple[str, ...] | None]:
    lines = enumerate(read_lines(path), 1)
    header = _header(lines, path)
    if labelled and not header.labelled:
        raise DataError(f"{path} declares no class labels (@classLabel true a b ...); classes are needed here")
    ids: list[str] = []
    classes: list[str] = []
    values: list[SeriesArray] = []
    row = 0
    for number, line in lines:
        text = line.strip()
        if not text or text.startswith(("#", "%")):
            continue
        sample_id = f"{split}/{row}"
        row += 1
        try:
            series, label = _sample(text, header, f"{path}, line {number},", gaps)
            if values and len(series) != len(values[0]):
                raise ValueError(
                    f"{path}, line {number}, has {len(series)} dimensions where others have {len(values[0])}"
                )
        except ValueError as error:
            faults.report(sample_id, str(error))
            continue
        ids.append(sample_id)
        classes.append(label)
        values.append(series)
    if not values:
        raise DataError(f"{path} holds no series after @data; is it the right file?")
    names = None if header.classes is None else in_natural_order(set(header.classes))
    return Listed(tuple(ids), tuple(classes) if labelled else (), SeriesList(values)), names


def _header(lines: Iterator[tuple[int, str]], path: Path) -> _Header:
    """What the lines say up to `@data`, which are taken from `lines`."""
    classes: frozenset[str] | None = None
    labelled = True
    for number, line in lines:
        words = line.split()
        if not words or not words[0].startswith("@"):
            if words and not words[0].startswith(("#", "%")):
                raise DataError(f"{path}, line {number}, is before @data but is not an @ line; is it a .ts file?")
            continue
        tag, value = words[0].lower(), [word.lower() for word in words[1:2]]
        if tag == "@data":
            return _Header(classes, labelled)
        if tag == "@timestamps" and value == ["true"]:
            raise DataError(f"{path} has time stamps (@timeStamps true); resample it to equal steps and drop them")
        if tag == "@targetlabel" and value == ["true"]:
            raise DataError(f"{path} is a regression data set (@targetLabel); classes are needed")
        if tag == "@classlabel":
            labelled = value == ["true"]
            classes = frozenset(words[2:]) if labelled and len(words) > 2 else None
    raise DataError(f"{path} has no @data line; is it a .ts file?")


def _sample(text: str, header: _Header, where: str, gaps: Gaps) -> tuple[SeriesArray, str]:
    parts = text.split(":")
    label = parts.pop().strip() if header.labelled else ""
    if header.labelled and (not parts or not label):
        raise ValueError(f"{where} has no class after the last ':'")
    if header.classes is not None and label not in header.classes:
        raise ValueError(f"{where} has the class {one_line(label)!r}, which @classLabel does not list")
    channels = [parse_values(part.split(","), where) for part in parts]
    # The dimensions of one sample cover the same time, so shorter ones are stretched.
    longest = max(len(channel) for channel in channels)
    if any(len(channel) < longest for channel in channels):
        whole = [gaps.whole(channel[None], where) for channel in channels]
        return np.concatenate([resample(channel, longest) for channel in whole]), label
    return gaps.whole(np.stack(channels), where), label


def write(path: Path, train: Samples, test: Samples | None) -> Written:
    """Write `NAME_TRAIN.ts` and `NAME_TEST.ts`, or one file if there is no test split.

    Values are written with as many digits as float32 needs to be read back exactly.

    Raises:
        DataError: If a file exists, the samples are images, or a class name cannot be written.
    """
    for name in train.class_names.tolist():
        if not name or set(name) & set(":,#") or name.split() != [name]:
            raise DataError(f"class name {one_line(name)!r} cannot be written to .ts; rename it, or use .npz")
    train_path, test_path = written_pair(path, with_test=test is not None)
    train_ids = _write_split(train_path, train, "train")
    test_ids = _write_split(test_path, test, "test") if test is not None and test_path is not None else None
    return Written(train_path, train_ids, test_ids)


def _write_split(path: Path, samples: Samples, split: str) -> StrArray:
    if samples.kind != "series":
        raise DataError("images cannot be written to .ts; use a folder, .zip or .npz")
    with complete_or_absent(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(_lines(samples, path.stem))
    return np.array([f"{split}/{row}" for row in range(len(samples))], dtype=np.str_)


def _lines(samples: Samples, name: str) -> Iterator[str]:
    channels, length = samples.shape
    yield f"@problemName {name.replace(' ', '_')}\n@timeStamps false\n@missing false\n"
    yield f"@univariate {str(channels == 1).lower()}\n@dimensions {channels}\n"
    yield f"@equalLength true\n@seriesLength {length}\n"
    yield f"@classLabel true {' '.join(samples.class_names.tolist())}\n@data\n"
    for series, label in zip(samples.inputs, samples.labels.tolist(), strict=True):
        dimensions = (",".join(channel.astype(np.str_).tolist()) for channel in series)
        yield f"{':'.join(dimensions)}:{samples.class_names[label]}\n"
