"""The one shape that all samples of a data set are brought to, and whether other data are like them at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from antibackdoor.data.cache import surveyed
from antibackdoor.data.depth import pixel_note, significant_bits
from antibackdoor.data.images import image_shape, merge
from antibackdoor.data.samples import InputArray
from antibackdoor.data.source import Listed, Survey
from antibackdoor.errors import DataError

# The longest series of the UEA and UCR archives have about ten times the median length of their set.
MOST_STRETCHED = 32
UNLIKE_SIZE = 4.0  # factor between sizes from which resized samples show little of what a model was trained on
UNLIKE_DEVIATIONS = 10.0  # by Chebyshev's inequality at most 1% of the values trained on lie so far from their mean
_MOST_MEASURED = 4096  # samples whose values are measured
_REMEDY = "give data like the training data, or --accept-unlike if you know that they fit"


@dataclass(frozen=True)
class TrainedOn:
    """What the inputs of a trained model looked like.

    Attributes:
        channels: 1 or 3 for images, any number for series.
        sizes: Shorter side in pixels, or length in steps, of the smallest and the largest sample before resizing;
            None if it is not known.
        mean: Mean of each channel, `(C,)`.
        std: Standard deviation of each channel, `(C,)`.
    """

    channels: int
    sizes: tuple[int, int] | None
    mean: Sequence[float]
    std: Sequence[float]


def sizes_of(survey: Survey) -> tuple[int, int]:
    """The shorter side, or the length, of the smallest and of the largest sample."""
    sides = [min(size) for size in survey.sizes]
    return min(sides, default=0), max(sides, default=0)


def common_shape(
    splits: list[Listed],
    image_size: int | tuple[int, int] | None,
    cache: Path,
    notes: dict[str, Any],
    progress: bool,
) -> tuple[tuple[int, ...], tuple[int, int]]:
    """The shape `(C, H, W)` or `(C, T)` of all splits, and the sizes that they had.

    Raises:
        DataError: If the splits do not fit each other, or one series would make all others as long as it is.
    """
    kinds = {listed.content.kind for listed in splits}
    if len(kinds) > 1:
        raise DataError("the training and test data mix images and series; give data of one kind")
    if kinds == {"image"}:
        survey = merge([surveyed(listed.content, cache, progress=progress) for listed in splits])
        shape, rule = image_shape(survey, image_size)
        notes["image_size"] = f"{shape[1]} x {shape[2]}, {rule}"
        if len(survey.sizes) > 1:
            notes["original_sizes"] = len(survey.sizes)
        if (bits := significant_bits(survey.deep_bits)) is not None:
            notes["significant_bits"] = bits
            notes["pixels"] = pixel_note(survey)
        return shape, sizes_of(survey)
    surveys = [listed.content.survey(progress) for listed in splits]
    if len({survey.channels for survey in surveys}) > 1:
        raise DataError(
            f"the train series have {surveys[0].channels} channels, the test series {surveys[1].channels}; "
            f"give both the same channels"
        )
    survey = merge(surveys)
    return (survey.channels, _longest(survey, splits, notes)), sizes_of(survey)


def _longest(survey: Survey, splits: list[Listed], notes: dict[str, Any]) -> int:
    lengths = sorted(size[0] for size in survey.sizes)
    counts = [survey.sizes[(length,)] for length in lengths]
    half = int(lengths[int(np.searchsorted(np.cumsum(counts), sum(counts) / 2))])
    if lengths[-1] > MOST_STRETCHED * half:
        name = next((name for listed in splits if (name := _id_of_length(listed, lengths[-1]))), "one series")
        raise DataError(
            f"{name} has {lengths[-1]} steps where half of the series have at most {half}: all would be stretched to "
            f"its length; shorten it, cut it into several, or leave it out"
        )
    if len(lengths) > 1:
        notes["series_length"] = f"lengths {lengths[0]} to {lengths[-1]} resampled to {lengths[-1]} (linear)"
    return lengths[-1]


def _id_of_length(listed: Listed, length: int) -> str | None:
    for row, name in enumerate(listed.ids):
        content = listed.content.select(np.array([row]))
        if content.survey(False).sizes.get((length,)):
            return name
    return None


def check_shape(splits: list[Listed], shape: tuple[int, ...], path: str | Path) -> None:
    """Raises DataError if the samples cannot be brought to the `shape` of a model."""
    for listed in splits:
        wanted = "image" if len(shape) == 3 else "series"
        if listed.content.kind != wanted:
            raise DataError(f"{path} holds {listed.content.kind} data, but the model takes {wanted} data")
        if wanted == "series":
            channels = listed.content.survey(False).channels
            if channels != shape[0]:
                raise DataError(f"the series in {path} have {channels} channels, but the model takes {shape[0]}")


def check_sizes(splits: list[Listed], known: TrainedOn, cache: Path, path: str | Path) -> None:
    """Refuse data whose channels or sizes are unlike those that a model was trained on.

    Raises:
        DataError: If color meets grey, or no sample is within a factor of four of the sizes trained on.
    """
    image = splits[0].content.kind == "image"
    survey = merge(
        [
            surveyed(listed.content, cache, progress=False) if image else listed.content.survey(False)
            for listed in splits
        ]
    )
    if image and survey.channels != known.channels:
        had, has = ("color", "grey") if known.channels == 3 else ("grey", "color")
        raise DataError(f"{path} holds {has} images, but the model was trained on {had} ones: {_REMEDY}")
    if known.sizes is None or not survey.sizes:
        return
    low, high = sizes_of(survey)
    unit = "pixels on the shorter side" if image else "steps"
    if low >= UNLIKE_SIZE * known.sizes[1] or high * UNLIKE_SIZE <= known.sizes[0]:
        raise DataError(
            f"the samples in {path} have {_span(low, high)} {unit}, but those that the model was trained on have "
            f"{_span(*known.sizes)}: {_REMEDY}"
        )


def check_values(inputs: InputArray, known: TrainedOn, path: str | Path) -> None:
    """Refuse series whose values are on another scale than those that a model was trained on.

    Raises:
        DataError: If half of a channel's values lie more than ten standard deviations from the mean trained on, or
            if nearly all lie within a hundredth of one.
    """
    if inputs.ndim != 3:  # images are read into one range
        return
    some = inputs[:: max(1, len(inputs) // _MOST_MEASURED)]
    for channel, (mean, std) in enumerate(zip(known.mean, known.std, strict=True)):
        values = some[:, channel].astype(np.float64)
        unit = max(std, float(np.finfo(np.float32).tiny))
        away = np.abs(values - mean) / unit
        spread = float(values.std()) / unit
        flat = 0 < spread < 0.01 and float(np.quantile(away, 0.99)) < 0.01
        if float(np.median(away)) > UNLIKE_DEVIATIONS or flat:
            raise DataError(
                f"channel {channel} of {path} has values around {values.mean():.4g} (standard deviation "
                f"{values.std():.2g}), the model was trained on values around {mean:.4g} ({std:.2g}): {_REMEDY}"
            )


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"
