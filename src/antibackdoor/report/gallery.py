"""The pictures of the report: the inputs of the most suspicious samples, stored in the run folder."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from antibackdoor.data.samples import BoolArray, InputArray, IntArray, Samples
from antibackdoor.data.small_arrays import read_arrays
from antibackdoor.errors import RunError
from antibackdoor.report.svg import sparkline
from antibackdoor.report.words import printable, quoted
from antibackdoor.runs.atomic import cannot, one_line, replacing
from antibackdoor.runs.checksums import check
from antibackdoor.runs.samples_table import read_sample_columns
from antibackdoor.statistics.difference import Float32Array, difference

GALLERY = "gallery.npz"

_LIMIT = 48  # samples
_SIDE = 128  # pixels; larger pictures are shrunk
_LENGTH = 256  # points of a series
_CHANNELS = 4  # channels of a series that are drawn
PICTURE_BYTES = 64 * 2**20  # some times what the largest gallery of a run needs
_PIXELATED = 64  # pictures up to this side keep their pixels: a trigger of few pixels must stay visible


@dataclass(frozen=True, eq=False)
class Gallery:
    """Some samples to be shown.

    Attributes:
        inputs: `(n, C, H, W)` uint8 or `(n, C, T)` float32.
        rows: `(n,)` int64, their position in the data set; most suspicious first.
        difference: Mean difference between isolated samples and their nearest others, of the shape of a sample; None
            where there are too few to tell.
    """

    inputs: InputArray
    rows: IntArray
    difference: Float32Array | None = None


@dataclass(frozen=True)
class Card:
    """One sample in the gallery.

    Attributes:
        picture: Markup of a drawn series, or the data URI of an image.
        is_image: Which of the two.
        pixelated: Whether the browser must not smooth it.
        name: The sample's id, shortened; `title` has more of it.
        title: The sample's id.
        given: The label that came with the data.
        suggested: The label that the run suggests.
        changed: Whether these two differ.
        suspicion: As text.
    """

    picture: str
    is_image: bool
    pixelated: bool
    name: str
    title: str
    given: str
    suggested: str
    changed: bool
    suspicion: str


def save_gallery(run: Path, samples: Samples, rows: IntArray, isolated: BoolArray) -> None:
    """Write `gallery.npz` with the first 48 of the given rows, which should be the most suspicious ones.

    Large pictures are shrunk to 128 pixels a side; of long series 256 points of 4 channels are kept. With them goes
    what the isolated samples `(N,)` bool have in common (`antibackdoor.statistics.difference`).

    Raises:
        RunError: The folder cannot be written.
    """
    chosen = np.asarray(rows[:_LIMIT], dtype=np.int64)
    inputs = np.asarray(samples.inputs[chosen])
    arrays = {"rows": chosen, "inputs": small_images(inputs) if samples.kind == "image" else short_series(inputs)}
    change = difference(samples, isolated, ~isolated)
    if change is not None:
        arrays["difference"] = change.mean if samples.kind == "image" else short_series(change.mean[None])[0]
    with replacing(run / GALLERY) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def load_gallery(run: Path) -> Gallery | None:
    """Read `gallery.npz`; None if there is none.

    Raises:
        RunError: The file is damaged.
    """
    path = run / GALLERY
    if not path.exists() and not path.is_symlink():
        return None
    check(run, GALLERY)
    try:
        arrays = read_arrays(path, ("inputs", "rows", "difference"), most=PICTURE_BYTES)
        inputs, rows, common = arrays["inputs"], arrays["rows"], arrays.get("difference")
    except OSError as error:
        raise RunError(cannot("read", path, error)) from error
    except (ValueError, KeyError) as error:
        raise RunError(f"{path} is damaged: {one_line(error)}") from error
    in_range = rows.dtype == np.int64 and rows.shape == inputs.shape[:1] and (rows >= 0).all()
    if not are_drawable(inputs) or not in_range or len(rows) > _LIMIT:
        raise RunError(f"{path} is damaged: inputs {inputs.dtype} {inputs.shape}, rows {rows.dtype} {rows.shape}")
    if common is not None and (common.ndim != inputs.ndim - 1 or common.dtype != np.float32 or not common.size):
        raise RunError(f"{path} is damaged: difference {common.dtype} {common.shape}")
    return Gallery(inputs, rows, common)


def are_drawable(inputs: InputArray) -> bool:
    """Whether these are inputs as a run folder keeps them for pictures: see `small_images` and `short_series`."""
    if not 3 <= inputs.ndim <= 4 or 0 in inputs.shape[1:]:
        return False
    if inputs.ndim == 4:
        return inputs.dtype == np.uint8 and inputs.shape[1] in (1, 3) and max(inputs.shape[2:]) <= _SIDE
    return inputs.dtype == np.float32 and inputs.shape[1] <= _CHANNELS and inputs.shape[2] <= _LENGTH


def difference_picture(change: Float32Array) -> str:
    """The data URI of a `(C, H, W)` difference: grey is none, the largest is black or white."""
    reach = max(float(np.abs(np.nan_to_num(change)).max(initial=0)), 1e-9)
    stretched = 0.5 + 0.5 * np.nan_to_num(change) / reach
    return data_uri(small_images(stretched[None].astype(np.float32))[0])


def cards(run: Path, gallery: Gallery) -> list[Card]:
    """The gallery with what `samples.parquet` says about its rows.

    Raises:
        RunError: The table is missing, damaged, or has no such rows.
    """
    names = ["id", "given_label", "suggested_label", "suspicion"]
    columns, class_names = read_sample_columns(run, names, gallery.rows)
    found = []
    for position, (sample_id, given, suggested, suspicion) in enumerate(
        zip(*(columns[name] for name in names), strict=True)
    ):
        values = gallery.inputs[position]
        is_image = values.ndim == 3
        found.append(
            Card(
                picture=data_uri(values) if is_image else sparkline(values),
                is_image=is_image,
                pixelated=is_image and is_pixelated(values),
                name=printable(sample_id, 40),
                title=quoted(sample_id, 300),
                given=_class_name(class_names, given),
                suggested=_class_name(class_names, suggested),
                changed=bool(given != suggested),
                suspicion=f"{suspicion:.4g}",
            )
        )
    return found


def _class_name(names: tuple[str, ...], label: int) -> str:
    return printable(names[label], 40) if 0 <= label < len(names) else f"class {label}"


def small_images(inputs: InputArray) -> InputArray:
    """`(n, C, H, W)` uint8 with C of 1 or 3 and no side above the limit."""
    if inputs.dtype != np.uint8:
        inputs = np.rint(np.clip(np.nan_to_num(inputs), 0, 1) * 255).astype(np.uint8)
    inputs = inputs[:, :3] if inputs.shape[1] >= 3 else inputs[:, :1]
    height, width = inputs.shape[2:]
    if max(height, width) <= _SIDE:
        return inputs
    scale = _SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    shrunk = [np.asarray(_picture(image).resize(size, Image.Resampling.BOX)) for image in inputs]
    return np.stack([image[None] if image.ndim == 2 else image.transpose(2, 0, 1) for image in shrunk])


def is_pixelated(image: InputArray) -> bool:
    """Whether a browser must show the pixels of a `(C, H, W)` image as they are."""
    return max(image.shape[1:], default=0) <= _PIXELATED


def short_series(inputs: InputArray) -> InputArray:
    """`(n, C, T)` with few channels and points; each point is a real one, so peaks may fall between."""
    inputs = inputs[:, :_CHANNELS].astype(np.float32)
    length = inputs.shape[2]
    if length <= _LENGTH:
        return inputs
    return inputs[:, :, np.linspace(0, length - 1, _LENGTH).round().astype(np.int64)]


def _picture(image: InputArray) -> Image.Image:
    """A `(C, H, W)` uint8 image as Pillow's."""
    return Image.fromarray(np.ascontiguousarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)))


def data_uri(image: InputArray) -> str:
    """A `(C, H, W)` uint8 image as a PNG that a page can hold."""
    file = io.BytesIO()
    _picture(image).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
