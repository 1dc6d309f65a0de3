"""How far the ONNX file of each network is from the network: `python benchmarks/onnx_parity.py` (about a minute).

One line a network: the largest difference of any logit between torch and onnxruntime, as a share of the largest logit
where that exceeds 1. The networks are untrained, which makes no difference to the sums that are compared; statistics of
batch normalization are drawn, so that they matter. Above 1e-4 the command fails, as `export --onnx` does.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from antibackdoor.app.onnx_file import write_onnx
from antibackdoor.errors import ModelError
from antibackdoor.models.backbones import BACKBONES, build_backbone
from antibackdoor.models.normalization import normalized
from antibackdoor.runs.model_file import ModelSpec

SHAPES = {"image": (3, 32, 32), "series": (2, 64)}
N_CLASSES = 10


def main() -> int:
    """Print the table; 1 if a network differs."""
    failed = 0
    print(f"torch {torch.__version__}")
    for name, backbone in BACKBONES.items():
        shape = SHAPES[backbone.kind]
        torch.manual_seed(0)
        model = normalized(build_backbone(name, shape, N_CLASSES), (0.45,) * shape[0], (0.25,) * shape[0])
        draw_statistics(model)
        classes = tuple(str(label) for label in range(N_CLASSES))
        spec = ModelSpec(name, backbone.kind, shape, classes, (0.45,) * shape[0], (0.25,) * shape[0], None, "none", "0")
        start = time.perf_counter()
        try:
            with tempfile.TemporaryDirectory() as folder:
                difference = write_onnx(Path(folder) / "model.onnx", model, spec)
            print(f"{name:18} {difference:.1e}  {time.perf_counter() - start:.1f} s", flush=True)
        except ModelError as error:
            failed = 1
            print(f"{name:18} {error}", flush=True)
    return failed


def draw_statistics(model: nn.Module) -> None:
    """Running means and variances as a training might leave them, not 0 and 1."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is not None:
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)


if __name__ == "__main__":
    sys.exit(main())
