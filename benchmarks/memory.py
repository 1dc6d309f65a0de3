"""Peak memory of a training on images in a mapped file; `benchmarks/speed.py --memory` calls it.

Two figures, because the file's own pages count as resident although the system may drop them at any time: the
peak of all resident memory, and the peak of what is not backed by a file.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from antibackdoor.app.networks import NetworkChoice, builder, describe_model
from antibackdoor.data.samples import Samples
from antibackdoor.defenses import DEFENSES
from antibackdoor.training.recipe import Recipe

CHUNK = 10_000
EVERY = 0.05  # seconds between two looks at the memory


def measure_memory(sizes: Sequence[int], defense: str, network: str, folder: Path) -> tuple[str, dict[str, Any]]:
    """Train one pass at each size, each in a fresh process.

    Args:
        sizes: Numbers of images (3 x 32 x 32 bytes each).
        defense: A key of `DEFENSES`.
        network: A key of `BACKBONES`.
        folder: Takes the images while they are needed.

    Returns:
        A table, and all numbers.
    """
    rows = ["| images | file MiB | peak MiB | of it not file | s |", "| ---: | ---: | ---: | ---: | ---: |"]
    runs = []
    for n in sizes:
        path = folder / "images.npy"
        _write_images(path, n)
        task = json.dumps({"path": str(path), "defense": defense, "network": network})
        done = subprocess.run([sys.executable, __file__], input=task, stdout=subprocess.PIPE, text=True, check=True)
        run = {"images": n, "file_mib": path.stat().st_size / 2**20, **json.loads(done.stdout.splitlines()[-1])}
        path.unlink()
        runs.append(run)
        parts = [run["file_mib"], run["peak_mib"], run["peak_without_files_mib"], run["seconds"]]
        rows.append(f"| {n:,} | {' | '.join(f'{part:,.0f}' for part in parts)} |")
        print(rows[-1], file=sys.stderr, flush=True)
    return "\n".join(rows), {"defense": defense, "network": network, "runs": runs}


def _write_images(path: Path, n: int) -> None:
    rng = np.random.default_rng(0)
    images = np.lib.format.open_memmap(path, "w+", np.uint8, (n, 3, 32, 32))
    for start in range(0, n, CHUNK):
        size = min(CHUNK, n - start)
        images[start : start + size] = rng.integers(0, 256, (size, 3, 32, 32), dtype=np.uint8)
    images.flush()


def _train(path: Path, defense: str, network: str) -> dict[str, float]:
    """Train one pass here, and watch."""
    inputs = np.load(path, mmap_mode="r")
    n = len(inputs)
    names = np.array([str(k) for k in range(10)])
    samples = Samples(inputs, np.arange(n, dtype=np.int64) % 10, np.arange(n).astype(np.str_), names)
    method, recipe = DEFENSES[defense](), Recipe(epochs=1)
    build = builder(describe_model(samples, NetworkChoice(network), recipe, defense))
    peaks = {"peak_mib": 0.0, "peak_without_files_mib": 0.0}
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(peaks, over), daemon=True)
    watcher.start()
    started = time.perf_counter()
    method.train(samples, build, recipe)
    seconds = time.perf_counter() - started
    over.set()
    watcher.join()
    return {**peaks, "seconds": seconds}


def _watch(peaks: dict[str, float], over: threading.Event) -> None:
    """Keep the highest values that Linux tells of this process."""
    while not over.wait(EVERY):
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
        for key, field in (("peak_mib", "VmHWM"), ("peak_without_files_mib", "RssAnon")):
            peaks[key] = max(peaks[key], int(fields[field].split()[0]) / 1024)


if __name__ == "__main__":
    given = json.load(sys.stdin)
    print(json.dumps(_train(Path(given["path"]), given["defense"], given["network"])))
