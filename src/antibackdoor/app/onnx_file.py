"""The model of a run as an ONNX file, checked against the network that it was made from."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from antibackdoor.app.exporting import refuse_existing
from antibackdoor.data.streams import Stream, stream
from antibackdoor.errors import ConfigError, ModelError
from antibackdoor.runs.atomic import one_line, write_bytes
from antibackdoor.runs.model_file import ModelSpec

LARGEST_DIFFERENCE = 1e-4  # of logits, between torch and onnxruntime: float32 sums in another order

_BATCHES = (1, 5)  # sizes that the check tries: the file must not be bound to that of its example


def write_onnx(path: Path, model: nn.Module, spec: ModelSpec) -> float:
    """Write a new ONNX file: `input` `(B, *shape)` float32 to `logits` `(B, K)`, normalization inside.

    Images are expected in [0, 1], series as they are. Class names, kind and shape stand in the file's metadata.

    Returns:
        The largest difference of any logit between torch and onnxruntime on random inputs, as a share of the largest
        logit where that exceeds 1.

    Raises:
        ConfigError: If onnx or onnxruntime is not installed, or the file exists.
        ModelError: If the network cannot be exported, or the file computes something else.
        RunError: If the file cannot be written.
    """
    refuse_existing(path)
    onnx, runtime = _libraries()
    data = _described(onnx, _exported(model, spec), spec)
    difference = _difference(runtime, data, model, spec)
    if not difference < LARGEST_DIFFERENCE:
        raise ModelError(
            f"the ONNX file differs from the network by {difference:.2g} of the logits, more than "
            f"{LARGEST_DIFFERENCE:g}: it was not written; report the network"
        )
    write_bytes(path, data)
    return difference


def _libraries() -> tuple[Any, Any]:
    try:
        import onnx  # type: ignore[import-not-found, unused-ignore]
        import onnxruntime  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:
        raise ConfigError(f"--onnx needs {error.name}: pip install 'antibackdoor[onnx]'") from error
    return onnx, onnxruntime


def _exported(model: nn.Module, spec: ModelSpec) -> bytes:
    """By the exporter that traces: it needs no other package, and every version of torch from 2.6 on has it."""
    example = torch.zeros(2, *spec.input_shape)
    free = {"input": {0: "batch"}, "logits": {0: "batch"}}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad(), TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        warnings.simplefilter("ignore")  # of traces that would be wrong for other shapes; the check below looks
        try:
            torch.onnx.export(
                model.eval(),
                (example,),
                str(file),
                dynamo=False,
                input_names=["input"],
                output_names=["logits"],
                dynamic_axes=free,
            )
        except Exception as error:  # the exporter raises a dozen kinds
            raise ModelError(f"this network cannot be written as ONNX: {one_line(error)}") from error
        return file.read_bytes()


def _described(onnx: Any, data: bytes, spec: ModelSpec) -> bytes:
    made = onnx.load_model_from_string(data)
    about = {
        "class_names": json.dumps(list(spec.class_names)),
        "kind": spec.kind,
        "input_shape": json.dumps(list(spec.input_shape)),
        "producer": f"antibackdoor {spec.package_version}, {spec.method}, {spec.backbone}",
    }
    onnx.helper.set_model_props(made, about)
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString())


def _difference(runtime: Any, data: bytes, model: nn.Module, spec: ModelSpec) -> float:
    """The largest one on inputs like those of the training, in several batch sizes."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    draws, worst = stream(0, Stream.ONNX_CHECK), 0.0
    for size in _BATCHES:
        inputs = _inputs(draws, size, spec)
        with torch.no_grad():
            expected = model(torch.from_numpy(inputs)).numpy()
        found = session.run(None, {"input": inputs})[0]
        if found.shape != expected.shape or not np.isfinite(found).all():
            return float("inf")
        worst = max(worst, float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max())))
    return worst


def _inputs(draws: np.random.Generator, size: int, spec: ModelSpec) -> NDArray[np.float32]:
    shape = (size, *spec.input_shape)
    if spec.kind == "image":
        return draws.random(shape, dtype=np.float32)
    channels = np.array([spec.mean, spec.std], np.float32)[..., None]
    return np.asarray(channels[0] + channels[1] * draws.standard_normal(shape), np.float32)
