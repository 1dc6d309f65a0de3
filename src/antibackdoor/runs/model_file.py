"""A delivered model on disk: its weights, and what is needed to rebuild the network around them. Nothing is pickled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from antibackdoor.errors import ModelError, RunError
from antibackdoor.runs.atomic import cannot, one_line, read_json, replacing, write_json

MODEL, SPEC = "model.safetensors", "model.json"


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
            return cls(
                backbone=str(values["backbone"]),
                kind=kind,
                input_shape=tuple(int(size) for size in values["input_shape"]),
                class_names=tuple(str(name) for name in values["class_names"]),
                mean=tuple(float(mean) for mean in values["mean"]),
                std=tuple(float(std) for std in values["std"]),
                image_size=None if values["image_size"] is None else str(values["image_size"]),
                method=_method(values),
                package_version=str(values["package_version"]),
            )
        except KeyError as error:
            raise ModelError(f"the model description lacks {error}; it was not written by save_model") from error
        except (TypeError, ValueError) as error:
            raise ModelError(f"the model description is damaged: {one_line(error)}") from error


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
    try:
        safetensors.torch.load_model(model, str(path))
    except SafetensorError as error:
        raise ModelError(f"{path} is corrupt: {one_line(error)}") from error
    except RuntimeError as error:
        raise ModelError(f"{path} does not fit this network: {one_line(error)}") from error
    except OSError as error:
        raise ModelError(cannot("read", path, error)) from error
