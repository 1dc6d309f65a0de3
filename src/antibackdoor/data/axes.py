"""Which axis of an array is what: as said, or where its type and shape leave only one reading."""

from __future__ import annotations

from typing import get_args

import numpy as np

from antibackdoor.data.npy_stream import StoredArray
from antibackdoor.data.options import Axes
from antibackdoor.errors import DataError

CHANNELS = (1, 3)  # of images
_SMALLEST = 8  # pixels; smaller arrays of numbers are no images
_LONGEST = 4  # ratio of the sides of an image; longer ones may be series, such as sound


def axes_of(array: StoredArray, said: Axes, recorded: Axes = "") -> tuple[Axes, str]:
    """How to read an array, and a note for the user where it is not the plain way.

    Args:
        array: Its type and shape decide; of floats also whether the first values lie in [0, 1].
        said: By the user, or in the file; empty if nothing is said.
        recorded: For the data that a model was trained on; counts where it fits.

    Raises:
        DataError: If two readings are possible, or none.
    """
    shape, kind = array.shape, array.dtype.kind
    if kind not in "uif" or not 2 <= len(shape) <= 4:
        raise _unknown(array)
    if 0 in shape[1:]:
        raise DataError(f"{array.where} has shape {shape}: a sample without values; save the file again")
    if not said and len(recorded) == len(shape):
        said = recorded
    if said:
        return said, _checked(array, said)
    if len(shape) == 4:
        return _image_axes(array), ""
    if len(shape) == 2:
        if array.dtype == np.uint8:
            raise _ambiguous(array, "NT if each row is a series (images need their height and width)")
        return "NT", ""
    return _three_axes(array)


def declared(array: StoredArray) -> Axes:
    """The order of axes that a file says itself in an array `axes`, as `write` puts it there.

    Raises:
        DataError: If it is none of the known ones.
    """
    text = str(array.read().reshape(-1)[0]) if array.shape in ((), (1,)) and array.dtype.kind == "U" else ""
    for axes in get_args(Axes):
        if axes and axes == text:
            return axes  # type: ignore[no-any-return]
    raise DataError(f"{array.where} must be one of {', '.join(get_args(Axes)[1:])}; correct it or leave it out")


def _image_axes(array: StoredArray) -> Axes:
    if array.shape[3] in CHANNELS:
        return "NHWC"
    if array.shape[1] in CHANNELS:
        return "NCHW"
    raise _unknown(array)


def _three_axes(array: StoredArray) -> tuple[Axes, str]:
    _, first, last = array.shape
    if array.dtype == np.uint8:
        if max(first, last) > _LONGEST * min(first, last):
            raise _ambiguous(array, "NHW if these are images, NCT or NTC if they are series of bytes, such as sound")
        return "NHW", ""
    if first == 1:
        return "NCT", ""
    if last == 1:
        return "NTC", f"{array.name} of shape {array.shape} read as one channel of {first} steps"
    if first >= last:
        raise _ambiguous(array, "NTC if the channels are last, NCT if first, NHW if these are grey images")
    if first >= _SMALLEST and last <= _LONGEST * first and _may_be_pixels(array):
        raise _ambiguous(array, "NHW if these are grey images, NCT if series with the channels first, NTC if last")
    return "NCT", ""


def _may_be_pixels(array: StoredArray) -> bool:
    values = next(array.read_blocks(), np.empty(0))
    return bool(((values >= 0) & (values <= (1 if array.dtype.kind == "f" else 255))).all())


def _checked(array: StoredArray, said: Axes) -> str:
    shape = array.shape
    if len(said) != len(shape):
        raise DataError(f"{array.where} has {len(shape)} axes (shape {shape}), but --axes {said} names {len(said)}")
    sizes = dict(zip(said, shape, strict=True))
    if "H" in said:
        if sizes.get("C", 1) not in CHANNELS:
            raise DataError(
                f"{array.where} has shape {shape}, so {sizes['C']} channels by --axes {said}; images have 1 or 3"
            )
        return f"{array.name} of shape {shape} read as images of {sizes['H']} x {sizes['W']}"
    return f"{array.name} of shape {shape} read as {sizes.get('C', 1)} channels of {sizes['T']} steps"


def _ambiguous(array: StoredArray, choices: str) -> DataError:
    return DataError(
        f"{array.where} is {array.dtype} of shape {array.shape}, which can be read in several ways: "
        f"say --axes {choices}"
    )


def _unknown(array: StoredArray) -> DataError:
    return DataError(
        f"{array.where} is {array.dtype} of shape {array.shape}; expected images [N,H,W], [N,H,W,1] or [N,H,W,3] "
        f"(uint8, or floats in 0..1), or series [N,C,T] or [N,T]"
    )
