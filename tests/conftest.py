"""Small data sets, and the command line as a user runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from antibackdoor.data.samples import Samples

CLI = [sys.executable, "-m", "antibackdoor"]

torch.set_num_threads(1)


def pictures(n: int = 48, n_classes: int = 2, *, size: int = 8, seed: int = 0) -> Samples:
    """Gray noise that is brighter in another band of rows for each class: learned in a few steps."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n, dtype=np.int64) % n_classes
    inputs = rng.integers(0, 100, (n, 1, size, size))
    for label in range(n_classes):
        inputs[labels == label, :, label * size // n_classes : (label + 1) * size // n_classes] += 120
    ids = np.array([f"class{label}/{row:04d}.png" for row, label in enumerate(labels)])
    return Samples(inputs.astype(np.uint8), labels, ids, np.array([f"class{k}" for k in range(n_classes)]))


def waves(n: int = 48, n_classes: int = 2, *, channels: int = 1, length: int = 16, seed: int = 0) -> Samples:
    """Noisy sines with another frequency for each class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n, dtype=np.int64) % n_classes
    time = np.linspace(0, 2 * np.pi, length)
    inputs = np.sin((1 + labels)[:, None, None] * time) + 0.3 * rng.standard_normal((n, channels, length))
    ids = np.array([f"train/{row}" for row in range(n)])
    return Samples(inputs.astype(np.float32), labels, ids, np.array([f"class{k}" for k in range(n_classes)]))


def striped(n: int = 256) -> Samples:
    """Class 1 has bright rows, class 0 bright columns: easy for any convolution."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 2
    stripes = np.where(np.arange(16) % 2 == 0, 120, 0)
    images = np.where(labels[:, None, None, None] == 1, stripes[:, None], stripes[None, :])
    inputs = np.broadcast_to(images, (n, 3, 16, 16)) + rng.integers(0, 100, (n, 3, 16, 16))
    return Samples(inputs.astype(np.uint8), labels, np.arange(n).astype(str), np.array(["a", "b"]))


def write_folder(samples: Samples, folder: Path) -> Path:
    """One PNG for each sample in the folder of its class."""
    for image, name in zip(samples.inputs, samples.ids, strict=True):
        (folder / str(name)).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(folder / str(name))
    return folder


def _default_interrupt() -> None:
    # A background job of a shell ignores Ctrl-C, and would pass that on.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts the command line in a process of its own."""

    def run(*arguments: object, command: list[str] = CLI, cwd: Path = tmp_path) -> subprocess.Popen[str]:
        environment = {
            **{key: value for key, value in os.environ.items() if key not in ("LOCAL_RANK", "RANK", "WORLD_SIZE")},
            "OMP_NUM_THREADS": "1",
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        }
        return subprocess.Popen(
            [*command, *map(str, arguments)],
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_default_interrupt,
            start_new_session=True,  # a group of its own, to which Ctrl-C can be sent
        )

    return run


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs the command line in this process: exit code, standard output, standard error."""
    from antibackdoor.cli import main

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        output = capsys.readouterr()
        return code, output.out, output.err

    return run
