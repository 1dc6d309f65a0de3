"""Where networks look: attention maps of a few samples before and after a purification, stored in the run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antibackdoor.data.samples import BoolArray, FloatArray, InputArray, IntArray
from antibackdoor.data.small_arrays import read_arrays
from antibackdoor.errors import RunError
from antibackdoor.report.gallery import (
    PICTURE_BYTES,
    are_drawable,
    data_uri,
    is_pixelated,
    short_series,
    small_images,
)
from antibackdoor.report.svg import sparkline
from antibackdoor.report.words import printable
from antibackdoor.runs.atomic import cannot, one_line, replacing
from antibackdoor.runs.checksums import check

ATTENTION = "attention.npz"
MOST = 16  # rows of pictures

# The color scale `cubehelix`: a helix around the grey diagonal, so that lightness alone orders the values.
# D. A. Green, "A colour scheme for the display of astronomical intensity images", Bull. Astr. Soc. India 39, 2011.
HELIX = ((-0.14861, 1.78277), (-0.29227, -0.90649), (1.97294, 0.0))  # rows: red, green, blue
START, ROTATIONS = 0.5, -0.6  # from dark blue over red to pale yellow; the paper's default turns 1.5 times


@dataclass(frozen=True, eq=False)
class Attention:
    """Attention maps of n samples under m networks: the given one, perhaps a teacher, and the purified one.

    Attributes:
        inputs: `(n, C, H, W)` uint8 or `(n, C, T)` float32; small, as in the gallery.
        maps: `(n, m, H, W)` or `(n, m, T)` uint8, each brought to the size of its input and to a maximum of 255.
        answers: `(n, m)` int64, the class that each network says.
        labels: `(n,)` int64, the true classes.
        triggered: `(n,)` bool, whether the sample carries the trigger.
    """

    inputs: InputArray
    maps: NDArray[np.uint8]
    answers: IntArray
    labels: IntArray
    triggered: BoolArray


@dataclass(frozen=True)
class AttentionCell:
    """One network's view of one sample.

    Attributes:
        picture: Data URI of a map, or markup of a drawn series.
        strip: Data URI of a series' attention, to be stretched beneath it; empty for images.
        answer: The class that the network says; empty for the sample itself.
        right: Whether that is the true one.
    """

    picture: str
    strip: str
    answer: str
    right: bool


@dataclass(frozen=True)
class AttentionRow:
    """One sample: its true class, whether it carries the trigger, and the cells of its columns."""

    label: str
    triggered: bool
    cells: tuple[AttentionCell, ...]


@dataclass(frozen=True)
class AttentionGrid:
    """The pictures of the report's section.

    Attributes:
        is_image: Maps beside pictures, or strips beneath series.
        pixelated: Whether the browser must not smooth the samples themselves.
        columns: Titles.
        rows: Samples.
    """

    is_image: bool
    pixelated: bool
    columns: tuple[str, ...]
    rows: tuple[AttentionRow, ...]


def save_attention(run: Path, attention: Attention) -> None:
    """Write `attention.npz`.

    Raises:
        RunError: The folder cannot be written.
    """
    arrays: dict[str, Any] = {field.name: getattr(attention, field.name) for field in fields(attention)}
    with replacing(run / ATTENTION) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load_attention(run: Path) -> Attention | None:
    """Read `attention.npz`; None if there is none.

    Raises:
        RunError: The file is damaged.
    """
    path = run / ATTENTION
    if not path.exists() and not path.is_symlink():
        return None
    check(run, ATTENTION)
    names = [field.name for field in fields(Attention)]
    try:
        arrays = read_arrays(path, names, most=PICTURE_BYTES)
        found = Attention(**{name: arrays[name] for name in names})
    except OSError as error:
        raise RunError(cannot("read", path, error)) from error
    except (ValueError, KeyError) as error:
        raise RunError(f"{path} is damaged: {one_line(error)}") from error
    n, m = found.answers.shape if found.answers.ndim == 2 else (0, 0)
    fits = (
        0 < n <= MOST
        and m in (2, 3)
        and are_drawable(found.inputs)
        and len(found.inputs) == n
        and found.maps.shape == (n, m, *found.inputs.shape[2:])
        and found.maps.dtype == np.uint8
        and found.labels.shape == found.triggered.shape == (n,)
        and found.labels.dtype.kind == found.answers.dtype.kind == "i"
        and found.triggered.dtype == np.bool_
    )
    if not fits:
        raise RunError(f"{path} is damaged: inputs {found.inputs.shape}, maps {found.maps.shape}")
    return found


def small_inputs(inputs: InputArray) -> InputArray:
    """Inputs as they are kept for pictures: at most 128 pixels a side, 256 points of 4 channels."""
    return small_images(inputs) if inputs.ndim == 4 else short_series(inputs)


def attention_grid(attention: Attention, class_names: Sequence[str]) -> AttentionGrid:
    """The pictures, in the order of the samples."""
    networks = (
        ("Given model", "Teacher", "Purified model")
        if attention.maps.shape[1] == 3
        else ("Given model", "Purified model")
    )
    is_image = attention.inputs.ndim == 4
    rows = tuple(_row(attention, place, class_names, is_image) for place in range(len(attention.inputs)))
    columns = ("Input", *networks) if is_image else networks
    return AttentionGrid(is_image, is_image and is_pixelated(attention.inputs[0]), columns, rows)


def _row(attention: Attention, place: int, class_names: Sequence[str], is_image: bool) -> AttentionRow:
    values, label = attention.inputs[place], int(attention.labels[place])
    first = [AttentionCell(data_uri(values), "", "", True)] if is_image else []
    cells = []
    for seen, answer in zip(attention.maps[place], attention.answers[place].tolist(), strict=True):
        colors = data_uri(cubehelix(seen if is_image else seen[None]))
        picture, strip = (colors, "") if is_image else (sparkline(values), colors)
        cells.append(AttentionCell(picture, strip, _named(class_names, answer), answer == label))
    return AttentionRow(_named(class_names, label), bool(attention.triggered[place]), (*first, *cells))


def _named(names: Sequence[str], label: int) -> str:
    return printable(names[label], 40) if 0 <= label < len(names) else f"class {label}"


def cubehelix(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Values `(H, W)` as colors `(3, H, W)`, dark for 0 and light for 255.

    >>> cubehelix(np.array([[0, 255]], dtype=np.uint8))[:, 0].tolist()
    [[0, 255], [0, 255], [0, 255]]
    """
    light: FloatArray = values / 255
    angle = 2 * np.pi * (START / 3 + 1 + ROTATIONS * light)
    turned = [light + light * (1 - light) / 2 * (a * np.cos(angle) + b * np.sin(angle)) for a, b in HELIX]
    return np.rint(255 * np.clip(turned, 0, 1)).astype(np.uint8)
