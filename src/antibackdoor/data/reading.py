"""Read any supported data set into indexed samples, and write one back in the same format.

The formats are in `opening.py`; what they list is decoded in `decoding.py`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from antibackdoor.data.cache import cache_folder
from antibackdoor.data.decoding import (
    check_classes,
    class_names_of,
    decoded,
    decoded_samples,
    labels_of,
    refuse_new_classes,
)
from antibackdoor.data.groups import groups_of, refuse_straddling
from antibackdoor.data.held_out import hold_out
from antibackdoor.data.image_files import scaled_by
from antibackdoor.data.opening import FORMATS, open_data
from antibackdoor.data.options import Axes, Missing, ReadOptions, Request
from antibackdoor.data.samples import BoolArray, InputArray, IntArray, Samples, StrArray
from antibackdoor.data.shapes import TrainedOn, check_shape, check_sizes, check_values, common_shape
from antibackdoor.data.source import (
    Faults,
    Listed,
    OnError,
    Skipped,
    Source,
    Written,
    summary,
)
from antibackdoor.errors import ConfigError, DataError, cannot

__all__ = ["FORMATS", "DataSet", "Skipped", "Written", "prepared", "read", "read_inputs", "read_samples", "write"]


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set ready for training.

    Attributes:
        train: The samples to train on.
        test: Held out or given test samples; None only if there are none and `test_fraction` is 0.
        format: A key of `FORMATS`; for data in memory "arrays", "dataframe", "torch" or "huggingface".
        skipped: Samples that could not be read (only with `on_error="skip"`).
        notes: How sizes and splits were chosen: plain strings and numbers.
        options: What was said about the data to read them; `options.chosen()` is recorded in run folders.
        sizes: Shorter side in pixels, or length in steps, of the smallest and the largest sample before resizing.
        unread: Files and arrays that were not looked at, each with the reason: they are no samples, or in a split that
            is not used.
        rows: `(N,)` int64, which of the given samples each training sample is, where they were given in memory.
        n_given: How many samples were given in memory for training, those included that were held out.
    """

    train: Samples
    test: Samples | None
    format: str
    skipped: tuple[Skipped, ...]
    notes: dict[str, Any]
    options: ReadOptions = field(default_factory=ReadOptions)
    sizes: tuple[int, int] | None = None
    unread: tuple[Skipped, ...] = ()
    rows: IntArray | None = None
    n_given: int = 0

    def __repr__(self) -> str:
        test = "no test samples" if self.test is None else f"{len(self.test)} for testing"
        return f"DataSet({self.format}: {self.train!r} for training, {test})"

    def keep(self, isolated: BoolArray) -> BoolArray:
        """Which of the given samples to train on, `(n_given,)` bool, after what `isolated` `(N,)` says of `train`.

        Samples that were held out for testing are left out. Data from files, which are not given in an order, get
        `(N,)` in that of `train`.
        """
        if self.rows is None:
            return ~isolated
        kept = np.zeros(self.n_given, dtype=bool)
        kept[self.rows] = ~isolated
        return kept

    @property
    def bits(self) -> int | None:
        """What images of 16 bits a channel were scaled by; None if there were none."""
        return self.notes.get("significant_bits")

    @property
    def left_out(self) -> list[tuple[str, str]]:
        """What `skipped.csv` lists: id and reason of all that was not read."""
        return [(file.id, file.reason) for file in (*self.skipped, *self.unread)]

    def told(self) -> list[str]:
        """What must be known of how the data were read, in sentences for the terminal and the report."""
        usual = {"image_size", "original_sizes", "significant_bits", "test"}
        notes = [
            f"{name.replace('_', ' ').capitalize()}: {self.notes[name]}." for name in self.notes if name not in usual
        ]
        n = len(self.skipped)
        who = "1 sample" if n == 1 else f"{n:,} samples"
        skipped = f"{who} could not be read; skipped.csv lists {'it' if n == 1 else 'them'}." if n else ""
        return [told for told in (*notes, skipped, summary(self.unread)) if told]

    def reading_metrics(self) -> dict[str, Any]:
        """What `metrics.json` tells of the reading."""
        return {"n_skipped": len(self.skipped), "n_unread": len(self.unread), "reading_notes": self.told()}


def read(
    path: str | Path,
    *,
    test: str | Path | None = None,
    test_fraction: float = 0.2,
    image_size: int | tuple[int, int] | None = None,
    on_error: OnError = "raise",
    cache: Path | None = None,
    label_column: str = "",
    id_column: str = "",
    axes: Axes = "",
    missing: Missing = "refuse",
    follow_links: bool = False,
    group_by: str = "",
    seed: int = 0,
    progress: bool = False,
) -> DataSet:
    """Read a labelled data set.

    Images are decoded once into a memory-mapped cache, so they may be larger than memory; series are read
    into memory. Ids are paths inside the data set (images in files) or `split/row` (arrays and tables).

    Args:
        path: A folder or zip of class folders, an `.npz`, `.ts`, `.csv` or `.tsv` file (for `NAME_TRAIN.ts`
            the test split is `NAME_TEST.ts` beside it), or a folder that holds one such file.
        test: Another path with the test samples (same classes); it replaces a test split of `path`.
        test_fraction: Part of each class that is held out if there is no test split, in [0, 1).
        image_size: Side, or `(height, width)`, in pixels, 8..1024. By default the size that all images share
            (up to 256), else a square of the median shorter side (16..224, a multiple of 8).
        on_error: Whether a sample that cannot be read is an error or is left out and listed in `skipped`.
        cache: Folder for decoded images; by default `antibackdoor` in the user's cache directory.
        label_column: Column of a .csv or .tsv that holds the class: its title, or its number from 1 (-1 is the
            last). By default it is found by its title, or it is the first.
        id_column: Column of a .csv or .tsv that names the samples, likewise; it is no value of the series.
        axes: Order of the axes of arrays in an `.npz`, such as `"NTC"` for samples, steps, channels.
        missing: Whether missing values inside of a series are refused, or interpolated between their neighbors.
        follow_links: Whether links that lead out of a folder of images are followed.
        group_by: What samples belong together: the title of a column of a .csv or .tsv, or a regular expression on
            ids. Groups are held out whole, and a given test split that shares some is refused.
        seed: Chooses the held-out samples.
        progress: Show bars on standard error.

    Raises:
        DataError: If the data cannot be used; one line that says where and what to do.
        ConfigError: If `test_fraction` or `image_size` is out of range.
    """
    if not 0 <= test_fraction < 1:
        raise ConfigError(f"test_fraction is {test_fraction}; it must lie in [0, 1)")
    options = ReadOptions(label_column, id_column, axes, missing, follow_links, group_by)
    kept_in = cache_folder(cache, path)
    with Faults(on_error, kept_in) as faults:
        name, source = open_data(path, faults, Request(options))
        if "train" not in source.splits:
            raise DataError(f"{path} has a test split but no train split; name the training folder 'train'")
        if test is not None:
            if "test" in source.splits:
                _pass_over(source.splits["test"], faults, "lies in the test split, which --test replaces")
            other = open_data(test, faults, Request(recorded=options))[1].splits
            if "test" in other and "train" in other:
                _pass_over(other["train"], faults, "lies in the train split of the test data")
            given = other["test"] if "test" in other else other["train"]
            source = replace(source, splits={**source.splits, "test": given})
        data = prepared(
            source, faults, name, str(path), where_test=str(test or path), test_fraction=test_fraction,
            image_size=image_size, cache=cache, group_by=group_by, seed=seed, progress=progress,
        )  # fmt: skip
    # The list goes into run folders, which are passed on: it tells names, not where they lay on this machine.
    places = [str(Path(place).parent) + os.sep for place in (path, test) if place is not None]
    skipped = [Skipped(fault.id, _without(places, fault.reason)) for fault in data.skipped]
    return replace(data, skipped=tuple(skipped), options=options)


def prepared(
    source: Source,
    faults: Faults,
    format: str,
    where: str,
    *,
    where_test: str = "",
    test_fraction: float = 0.2,
    image_size: int | tuple[int, int] | None = None,
    cache: Path | None = None,
    group_by: str = "",
    seed: int = 0,
    progress: bool = False,
) -> DataSet:
    """A data set from what a format, or a caller's own objects, hold: one shape, a test split, indexed samples.

    Args:
        source: It has the split "train"; without "test" a part is held out.
        faults: Decides about samples that cannot be read, and lists them: one error names all of them at the end.
        format: For `DataSet.format`.
        where: What to call the data in messages.
        where_test: What to call the test data.
        test_fraction: As in `read`; also `image_size`, `cache`, `group_by`, `seed` and `progress`.

    Raises:
        DataError: If the data cannot be used.
        ConfigError: If `test_fraction` or `image_size` is out of range.
    """
    if not 0 <= test_fraction < 1:
        raise ConfigError(f"test_fraction is {test_fraction}; it must lie in [0, 1)")
    with faults:
        train, given = source.splits["train"], source.splits.get("test")
        names = class_names_of(train, source, where)
        notes = dict(source.notes)
        kept_in = cache_folder(cache)
        splits = [train] if given is None else [train, given]
        shape, sizes = common_shape(splits, image_size, kept_in, notes, progress)
        train = scaled_by(train, notes.get("significant_bits"))
        given = None if given is None else scaled_by(given, notes.get("significant_bits"))
        notes["test"] = "given" if given is not None else "none"
        if given is None and test_fraction > 0:
            groups = groups_of(train, group_by, where) if group_by else None
            labels = labels_of(train, names, where)
            try:
                kept, held = hold_out(labels, names, test_fraction, seed=seed, groups=groups)
            except DataError as error:
                raise DataError(f"{where}: {error}") from error
            train, given = train.select(kept), train.select(held)
            notes["test"] = f"held out {test_fraction:.0%}"
            if groups is not None:
                held_groups = {groups[row] for row in held.tolist()}
                notes["groups"] = f"{len(held_groups):,} of {len({*groups}):,} are held out whole, with "
                notes["groups"] += f"{len(held) / len(groups):.0%} of the samples"
        elif group_by:
            _check_groups(train, given, group_by, where)
        train_samples = decoded_samples([train], names, shape, faults, kept_in, where, progress)
        check_classes(train_samples, train, where)
        test_samples = None
        if given is not None:
            refuse_new_classes(given, train, where_test or where)
            test_samples = decoded_samples([given], names, shape, faults, kept_in, where_test or where, progress)
    return DataSet(
        train_samples, test_samples, format, tuple(faults.skipped), notes, sizes=sizes, unread=tuple(faults.unread)
    )


def read_samples(
    path: str | Path,
    *,
    class_names: Sequence[str] | StrArray,
    shape: tuple[int, ...],
    split: Literal["train", "test", "all"] = "test",
    on_error: OnError = "raise",
    cache: Path | None = None,
    label_column: str = "",
    id_column: str = "",
    axes: Axes = "",
    missing: Missing = "refuse",
    follow_links: bool = False,
    group_by: str = "",
    bits: int | None = None,
    recorded: ReadOptions | None = None,
    trained_on: TrainedOn | None = None,
    progress: bool = False,
) -> Samples:
    """Read labelled samples for a model that is trained already.

    Args:
        path: As in `read`.
        class_names: The model's classes in label order.
        shape: The model's `(C, H, W)` or `(C, T)`; images are resized, series resampled to it.
        split: Which split of `path`; data without such splits are taken as a whole.
        on_error: With "skip", unreadable samples are left out with a warning.
        cache: As in `read`.
        label_column: As in `read`; also `id_column`, `axes`, `missing`, `follow_links`, and `group_by` of a table.
        bits: What images of 16 bits a channel were scaled by in the training (`DataSet.bits`); None if there were none.
        recorded: Options that stand in for those not given, such as those of the training.
        trained_on: What the model was trained on; data unlike that are refused.
        progress: As in `read`.

    Raises:
        DataError: If the data cannot be used, has a class unknown to the model, or does not fit `shape`.
    """
    options = ReadOptions(label_column, id_column, axes, missing, follow_links, group_by)
    request = Request(options, recorded or ReadOptions(), shape=shape)
    with Faults(on_error, cache_folder(cache, path)) as faults:
        source = open_data(path, faults, request)[1]
        splits = source.splits
        if split not in ("train", "test", "all"):
            raise ConfigError(f"split is {split!r}; choose 'train', 'test' or 'all'")
        if split == "train" and "train" not in splits:
            raise DataError(f"{path} has no train split; choose the split 'test' or 'all'")
        listed = list(splits.values()) if split == "all" else [splits.get(split) or splits["train"]]
        listed = [scaled_by(part, bits) for part in listed]
        check_shape(listed, shape, path)
        if trained_on is not None:
            check_sizes(listed, trained_on, cache_folder(cache), path)
        names = np.array(list(class_names), dtype=np.str_)
        samples = decoded_samples(listed, names, shape, faults, cache_folder(cache), path, progress)
        if trained_on is not None:
            check_values(samples.inputs, trained_on, path)
        _tell(faults, source, path)
    return samples


def read_inputs(
    path: str | Path,
    *,
    shape: tuple[int, ...],
    on_error: OnError = "raise",
    cache: Path | None = None,
    label_column: str = "",
    id_column: str = "",
    axes: Axes = "",
    missing: Missing = "refuse",
    follow_links: bool = False,
    group_by: str = "",
    bits: int | None = None,
    recorded: ReadOptions | None = None,
    trained_on: TrainedOn | None = None,
    progress: bool = False,
) -> tuple[InputArray, StrArray]:
    """Read inputs without labels for a model that is trained already: `(N, *shape)` and ids `(N,)`.

    Every image below a folder or in a zip is read, whatever its folder; a single image file will do too. In
    an `.npz` it is `x_test`, else `x_train`, else `x`. The class of `.ts` is passed over, and so
    is that of `.csv` where there is one: a column called so, or the first if there is one more than `shape` has steps.

    Args:
        path: What to read.
        shape: The model's `(C, H, W)` or `(C, T)`.
        on_error: As in `read_samples`.
        cache: As in `read`.
        label_column: As in `read`; also `id_column`, `axes`, `missing`, `follow_links`, and `group_by` of a table.
        bits: What images of 16 bits a channel were scaled by in the training (`DataSet.bits`); None if there were none.
        recorded: Options that stand in for those not given, such as those of the training.
        trained_on: What the model was trained on; data unlike that are refused.
        progress: As in `read`.

    Raises:
        DataError: If nothing can be read or it does not fit `shape`.
    """
    options = ReadOptions(label_column, id_column, axes, missing, follow_links, group_by)
    with Faults(on_error, cache_folder(cache, path)) as faults:
        source = open_data(path, faults, Request(options, recorded or ReadOptions(), labelled=False, shape=shape))[1]
        listed = scaled_by(source.splits["train"], bits)
        if not len(listed.content):
            raise DataError(f"{path} holds no images")
        check_shape([listed], shape, path)
        if trained_on is not None:
            check_sizes([listed], trained_on, cache_folder(cache), path)
        inputs, rows = decoded([listed.content], shape, faults, cache_folder(cache), progress)
        if trained_on is not None:
            check_values(inputs, trained_on, path)
        _tell(faults, source, path)
    return inputs, np.array(listed.ids, dtype=np.str_)[rows]


def write(path: str | Path, train: Samples, test: Samples | None = None, *, format: str) -> Written:
    """Write a data set so that `read` gives back the same values, labels and classes.

    Images in a `folder` or `zip` become lossless PNG files in the folder of their given label; the rest of
    the path in their id is kept where that name is free. The ids under which `read` will list the samples are
    returned, in the order of `train` and `test` (images in files are read class by class, so that order may
    differ). `ts` and `csv` put `_TRAIN` and `_TEST` into the file names. Nothing is overwritten.

    Raises:
        DataError: If the format cannot hold these samples, or the path exists.
        ConfigError: If there is no such format.
    """
    if format not in FORMATS:
        raise ConfigError(f"there is no format {format!r}; choose one of {', '.join(FORMATS)}")
    suffixes = FORMATS[format].SUFFIXES
    if suffixes and Path(path).suffix.lower() not in suffixes:
        raise ConfigError(f"{path} is to be written as {format}; give it a name that ends in {suffixes[0]}")
    try:
        return FORMATS[format].write(Path(path), train, test)
    except OSError as error:
        raise DataError(cannot("write", path, error)) from error


def _check_groups(train: Listed, test: Listed | None, group_by: str, where: str) -> None:
    """Refuse test data that share groups with the training data, and groups where nothing is tested.

    Raises:
        ConfigError: If there are no test data, and no column to leave out.
        DataError: If groups straddle both.
    """
    if test is not None:
        refuse_straddling(groups_of(train, group_by, where), groups_of(test, group_by, where), where)
    elif not train.groups:
        raise ConfigError("--group-by splits data into training and test, and nothing is held out: leave it out")


def _without(places: list[str], reason: str) -> str:
    for place in places:
        if len(place) > 2:  # neither "./" nor "/"
            reason = reason.replace(place, "")
    return reason


def _tell(faults: Faults, source: Source, path: str | Path) -> None:
    """Say what was left out and what was assumed where the caller gets no notes."""
    faults.warn()
    for name, note in source.notes.items():
        warnings.warn(f"{path}: {name.replace('_', ' ')}: {note}", stacklevel=3)


def _pass_over(listed: Listed, faults: Faults, reason: str) -> None:
    for sample_id in listed.ids:
        faults.pass_over(sample_id, reason)
