"""What a suspect looks like: an image, or a curve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from antibackdoor.data.samples import InputArray, IntArray, Samples
from antibackdoor.report.gallery import (
    data_uri,
    difference_picture,
    is_pixelated,
    load_gallery,
    short_series,
    small_images,
)
from antibackdoor.report.svg import sparkline


@dataclass(frozen=True)
class Picture:
    """One input, to be shown.

    Attributes:
        source: Markup of a drawn series, or the data URI of an image.
        is_image: Which of the two.
        pixelated: Whether the browser must not smooth it.
    """

    source: str
    is_image: bool
    pixelated: bool = False


Pictures = Callable[[int], Picture | None]
"""The picture of a row of a run's table; None if there is none."""


def picture_of(values: InputArray) -> Picture:
    """One sample `(C, H, W)` or `(C, T)`."""
    if values.ndim == 3:
        image = small_images(values[None])[0]
        return Picture(data_uri(image), True, is_pixelated(image))
    return Picture(sparkline(short_series(values[None])[0]), False)


def from_samples(samples: Samples, rows: IntArray) -> Pictures:
    """Pictures of all samples of a run; `rows` `(N,)` says where those of its table stand in the data."""
    return lambda row: picture_of(samples.inputs[rows[row]])


def from_run(run: Path) -> Pictures:
    """Pictures of the most suspicious samples, which a run folder holds."""
    gallery = load_gallery(run)
    if gallery is None:
        return lambda _row: None
    place = {row: position for position, row in enumerate(gallery.rows.tolist())}
    return lambda row: picture_of(gallery.inputs[place[row]]) if row in place else None


def trigger_picture(run: Path) -> Picture | None:
    """What the isolated samples of a run have in common; None if it does not tell."""
    gallery = load_gallery(run)
    if gallery is None or gallery.difference is None:
        return None
    if gallery.difference.ndim == 3:
        return Picture(difference_picture(gallery.difference), True, True)
    return Picture(sparkline(gallery.difference), False)
