"""A delivered model on disk: its weights, and what is needed to rebuild the network around them. Nothing is pickled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from antibackdoor.data.regular_files import regular_name
from antibackdoor.errors import ModelError, RunError
from antibackdoor.models.checkpoint import largest_file
from antibackdoor.runs.atomic import cannot, one_line, read_json, replacing, write_json
from antibackdoor.runs.checksums import check

MODEL, SPEC = "model.safetensors", "model.json"
MOST_VALUES = 2**26  # of one sample: a picture of 4,000 pixels a side, or a series of a week of audio
MOST_CLASSES = 200_000  # some times those of the largest labelled collections


@dataclass(frozen=True)
class ModelSpec:
    """What is needed to rebuild a network around its saved weights.

    Attributes:
        backbone: A name of the `BACKBONES` table, or `"package.module:factory"`.
        kind: `"image"` or `"series"`.
        input_shape: Shape of one sample, `(C, H, W)` or `(C, T)`.
        class_names: The K classes in label order.
        mean: Mean of each channel, `(C,)`; images in [0, 1]. Normalization lives inside the model.
        std: Standard deviation of each channel, `(C,)`.
        image_size: How pictures of another size were brought to `input_shape`, e.g. `"resize"`; None for
            series and for data that had one size.
        method: Name of the method that made the model.
        package_version: Version of `antibackdoor` that wrote the file.
        read_options: How the training data were read, where the user said so: fields of `ReadOptions`.
        original_sizes: Shorter side in pixels, or length in steps, of the smallest and the largest sample before
            resizing; None if it is not known.
        significant_bits: What images of 16 bits were scaled by; None if there were none.
    """

    backbone: str
    kind: Literal["image", "series"]
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: str | None
    method: str
    package_version: str
    read_options: Mapping[str, str] = field(default_factory=dict)
    original_sizes: tuple[int, int] | None = None
    significant_bits: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelSpec:
        """The inverse of `to_json`.

        Raises:
            ModelError: A field is missing or has the wrong type.
        """
        try:
            kind = values["kind"]
            if kind not in ("image", "series"):
                raise ValueError(f"kind is {kind!r}, not 'image' or 'series'")
            spec = cls(
                backbone=_text(values["backbone"]),
                kind=kind,
                input_shape=tuple(_list_of(values["input_shape"], int)),
                class_names=tuple(_list_of(values["class_names"], str)),
                mean=tuple(float(mean) for mean in _list_of(values["mean"], int, float)),
                std=tuple(float(std) for std in _list_of(values["std"], int, float)),
                image_size=None if values["image_size"] is None else _text(values["image_size"]),
                method=_text(_method(values)),
                package_version=_text(values["package_version"]),
                read_options=_texts(values.get("read_options", {})),
                original_sizes=_sizes(values.get("original_sizes")),
                significant_bits=_bits(values.get("significant_bits")),
            )
            wrong = _wrong(spec)
            if wrong:
                raise ValueError(wrong)
            return spec
        except KeyError as error:
            raise ModelError(f"the model description lacks {error}; it was not written by save_model") from error
        except (TypeError, ValueError) as error:
            raise ModelError(f"the model description is damaged: {one_line(error)}") from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{one_line(repr(value), 40)} instead of text")
    return value


def _texts(values: object) -> dict[str, str]:
    if not isinstance(values, dict):
        raise TypeError(f"{one_line(repr(values), 40)} instead of options")
    return {_text(name): _text(value) for name, value in values.items()}


def _sizes(values: object) -> tuple[int, int] | None:
    if values is None:
        return None
    sizes = _list_of(values, int)
    if len(sizes) != 2 or not 0 <= sizes[0] <= sizes[1]:
        raise ValueError(f"original_sizes is {one_line(repr(values), 40)}, not the smallest and the largest size")
    return sizes[0], sizes[1]


def _bits(value: object) -> int | None:
    if value is not None and not (type(value) is int and 8 <= value <= 16):
        raise ValueError(f"significant_bits is {one_line(repr(value), 40)}, not a number from 8 to 16")
    return value if isinstance(value, int) else None


def _list_of(values: object, *kinds: type[Any]) -> list[Any]:
    if not isinstance(values, list | tuple):
        raise TypeError(f"{one_line(repr(values), 40)} instead of a list")
    if odd := [value for value in values if type(value) not in kinds]:
        raise TypeError(f"{one_line(repr(odd[0]), 40)} in a list of {kinds[-1].__name__}")
    return list(values)


def _wrong(spec: ModelSpec) -> str:
    """What cannot be true of any network, in words; empty if all can."""
    n_axes = 3 if spec.kind == "image" else 2
    if len(spec.input_shape) != n_axes or min(spec.input_shape) < 1 or math.prod(spec.input_shape) > MOST_VALUES:
        return (
            f"input_shape is {one_line(spec.input_shape, 60)}, not {n_axes} lengths of at most {MOST_VALUES:,} values"
        )
    if not 2 <= len(spec.class_names) <= MOST_CLASSES or len(set(spec.class_names)) < len(spec.class_names):
        return f"there are {len(spec.class_names)} class names, not 2 to {MOST_CLASSES:,} different ones"
    for name, values in (("mean", spec.mean), ("std", spec.std)):
        if len(values) != spec.input_shape[0] or not all(math.isfinite(value) for value in values):
            return f"{name} has not one number for each of the {spec.input_shape[0]} channels"
    return "" if min(spec.std) >= 0 else "a standard deviation is negative"  # 0: a constant channel


def _method(values: Mapping[str, Any]) -> str:
    """The method's name; older files called it `defense`, and had other names for two of them."""
    if "method" in values or "defense" not in values:
        return str(values["method"])
    return {"e2abl": "dual-head", "e2abl-published": "e2abl"}.get(str(values["defense"]), str(values["defense"]))


def save_model(run: Path, model: nn.Module, spec: ModelSpec) -> None:
    """Write `model.safetensors` and `model.json`. Tied weights are stored once; the layout of all becomes contiguous.

    Raises:
        RunError: The folder cannot be written.
    """
    # The description comes first: weights without one could not be used.
    write_json(run / SPEC, spec.to_json())
    # In another memory layout tied weights cannot be told.
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    with replacing(run / MODEL) as temporary:
        try:
            safetensors.torch.save_model(model, str(temporary))
        except SafetensorError as error:  # it wraps a full disk in its own error
            raise RunError(cannot("write", run / MODEL, error)) from error


def load_model_spec(run: Path) -> ModelSpec:
    """Read `model.json`.

    Raises:
        ModelError: It is missing or damaged.
    """
    if not (run / SPEC).exists() and (run / "samples.parquet").exists():
        raise ModelError(
            f"{run} is a scan, which has no model: train on its data (antibackdoor train DATA --verdict {run})"
        )
    values = read_json(run / SPEC, ModelError)
    try:
        return ModelSpec.from_json(values)
    except ModelError as error:
        raise ModelError(f"{run / SPEC}: {error}") from error


def load_weights(run: Path, model: nn.Module) -> None:
    """Fill `model` with the weights of `model.safetensors`; on an error it is unchanged or partly filled.

    Raises:
        ModelError: The file is missing or corrupt, or its tensors do not match the model's.
    """
    path = run / MODEL
    check(run, MODEL, ModelError)
    try:
        with regular_name(path, most=largest_file(model)) as name:
            safetensors.torch.load_model(model, name)
        odd = [name for name, value in model.state_dict().items() if not value.isfinite().all()]
        if odd:
            raise ModelError(f"{path} holds values that are not numbers, in {one_line(odd[0], 80)}; train again")
    except SafetensorError as error:
        raise ModelError(f"{path} is corrupt: {one_line(error)}") from error
    except RuntimeError as error:
        raise ModelError(f"{path} does not fit this network: {one_line(error)}") from error
    except OSError as error:
        raise ModelError(cannot("read", path, error)) from error
