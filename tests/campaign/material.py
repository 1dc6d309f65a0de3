"""Valid inputs of every kind, a few kilobytes each, made once with the package itself."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from .case import PLAIN, TRAIN, UNFINISHED


def pictures(folder: Path, n: int = 24, classes: int = 2, channels: int = 1, size: int = 8, seed: int = 0) -> None:
    """Noise that is brighter in another band of rows for each class."""
    rng = np.random.default_rng(seed)
    for row in range(n):
        label = row % classes
        image = rng.integers(0, 100, (size, size, channels))
        image[label * size // classes : (label + 1) * size // classes] += 120
        place = folder / f"class{label}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.astype(np.uint8).squeeze()).save(place / f"{row:03d}.png")


def waves(n: int = 24, classes: int = 2, channels: int = 1, length: int = 16, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Noisy sines with another frequency for each class, `(N, C, T)`, and labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    steps = np.linspace(0, 2 * np.pi, length)
    x = np.sin((1 + labels)[:, None, None] * steps) + 0.3 * rng.standard_normal((n, channels, length))
    return x.astype(np.float32), labels


def command(*words: object) -> None:
    """Run the command line; it must succeed."""
    from antibackdoor.cli import main

    try:
        main([str(word) for word in words])
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"{words} ended with {end.code}") from end


def build(folder: Path) -> None:
    """Make all of it in a new folder."""
    from antibackdoor.data.reading import read, write

    folder.mkdir(parents=True)
    os.environ["XDG_CACHE_HOME"] = str(folder.parent / "material-cache")
    os.chdir(folder)
    pictures(Path("pics"))
    pictures(Path("split/train"), seed=1)
    pictures(Path("split/test"), n=8, seed=2)
    pictures(Path("colors"), channels=3, seed=3)
    x, y = waves()
    np.savez("waves.npz", x_train=x, y_train=y)
    np.savez("images.npz", x_train=np.random.default_rng(0).integers(0, 255, (24, 8, 8), dtype=np.uint8), y_train=y)
    series = read("waves.npz", test_fraction=0).train
    for suffix in ("ts", "csv"):
        write(f"waves.{suffix}", series, format=suffix)
    Path("waves.tsv").write_text(Path("waves.csv").read_text().replace(",", "\t"))
    write("pics.zip", read("pics", test_fraction=0).train, format="zip")
    _runs()
    _unfinished()


def _runs() -> None:
    network = ("--backbone", "wrn-10-1")
    command("poison", "pics", "--out", "poisoned", "--rate", "0.25")
    command("poison", "waves.npz", "--out", "poisoned-waves", "--rate", "0.25", "--attack", "powerline")
    command("train", "pics", "--out", "run", *PLAIN, *network)
    command("train", "poisoned", "--out", "run-poisoned", *PLAIN, *network)
    command("train", "waves.npz", "--out", "run-waves", *PLAIN, "--backbone", "fcn")
    searched = ("--epochs", "1", "--device", "cpu", "--precision", "fp32", "--warmup-steps", "40")
    command("train", "pics", "--out", "run-dual", *searched, "--confusion-steps", "2", *network)
    command("scan", "pics", "--out", "scan", "--detector", "spectral", *TRAIN, *network)
    command("purify", "run", "--clean", "pics", "--test", "pics", "--out", "purified", "--method", "fine-tune", *TRAIN)
    command("evaluate", "run", "--data", "pics", "--split", "all", "--device", "cpu")
    command("compare", "pics", "--methods", "none,spectral", "--out", "compared", *TRAIN, *network)
    command("predict", "run", "pics", "--out", "said.csv")
    Path("said.csv").unlink()
    _bare()


def _bare() -> None:
    """Bare files of weights, as third parties pass them on."""
    import safetensors.torch
    import torch

    state = safetensors.torch.load_file("run/model.safetensors")
    torch.save(state, "weights.pt")
    torch.save({"state_dict": state, "epoch": 3, "acc": 0.9}, "weights.pth")
    safetensors.torch.save_file(state, "weights.safetensors")


def _unfinished() -> None:
    """A training that was killed after two epochs."""
    words = (
        "train",
        "pics",
        "--out",
        "unfinished",
        *PLAIN[:2],
        "--epochs",
        UNFINISHED,
        *PLAIN[4:],
        "--backbone",
        "wrn-10-1",
    )
    pid = os.fork()
    if not pid:
        command(*words)
        os._exit(0)
    until = time.monotonic() + 60
    while time.monotonic() < until and not Path("unfinished/checkpoint.pt").exists():
        time.sleep(0.01)
    time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    if not Path("unfinished/checkpoint.pt").exists():
        raise RuntimeError("the training left no checkpoint")
    for leftover in Path("unfinished").glob(".*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def modules() -> list[str]:
    """What the commands have imported by now."""
    return [name for name, module in sys.modules.items() if module is not None and not name.startswith("__")]
