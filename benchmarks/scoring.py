"""Seconds to score samples one by one, as the code of ABL and AdvrBD does, and in batches; and the ratio.

    python benchmarks/scoring.py                  2,000 images of CIFAR-10's size, WRN-16-1
    python benchmarks/scoring.py --samples 500 --backbone resnet18-thin

Both score the loss of the given label in eval mode, without augmentation; the largest difference of two scores is
printed beside the times. Times are those of one process on this machine, medians of three rounds in turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import folders
import numpy as np
import torch

from antibackdoor.app.networks import NetworkChoice, builder, describe_model
from antibackdoor.benchmark import command, provenance
from antibackdoor.data.samples import Samples
from antibackdoor.runs.atomic import write_json
from antibackdoor.training.loop import cross_entropy
from antibackdoor.training.recipe import PRESETS
from antibackdoor.training.session import Session, seeded

ROUNDS = 3
RESULT = folders.RESULTS / "scoring.json"


def drawn(n: int) -> Samples:
    """Random images of CIFAR-10's size: the time does not depend on what they show."""
    draw = np.random.default_rng(0)
    inputs = draw.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
    labels = np.arange(n, dtype=np.int64) % 10
    return Samples(inputs, labels, np.arange(n).astype(str), np.arange(10).astype(str))


def measure(samples: Samples, backbone: str) -> dict[str, float]:
    """Both ways in turns."""
    recipe = replace(PRESETS["nad"], precision="fp32", progress=False)
    session = Session(recipe, len(samples), images=True)
    build = builder(describe_model(samples, NetworkChoice(backbone), recipe, "none"))
    model = session.prepare(seeded(build, 0)).eval()
    feed = session.feed(samples)

    def batched() -> torch.Tensor:
        return session.evaluate(feed, model, cross_entropy, title="batched")

    @torch.no_grad()
    def one_by_one() -> torch.Tensor:
        scores = []
        for row in range(len(samples)):
            batch = session.batch(feed, np.array([row]))
            scores.append(cross_entropy(model(batch.inputs), batch.labels))
        return torch.cat(scores).cpu()

    ways: dict[str, Callable[[], torch.Tensor]] = {"batched": batched, "one by one": one_by_one}
    times: dict[str, list[float]] = {name: [] for name in ways}
    scores = {}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            started = time.perf_counter()
            scores[name] = np.asarray(way())
            times[name].append(time.perf_counter() - started)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    difference = float(np.abs(scores["batched"] - scores["one by one"]).max())
    return {
        "seconds_one_by_one": round(seconds["one by one"], 3),
        "seconds_batched": round(seconds["batched"], 3),
        "ratio": round(seconds["one by one"] / seconds["batched"], 1),
        "largest_difference": difference,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--backbone", default="wrn-16-1")
    options = parser.parse_args()
    measured = measure(drawn(options.samples), options.backbone)
    print(
        f"{options.samples} samples, {options.backbone}: {measured['seconds_one_by_one']:.2f} s one by one, "
        f"{measured['seconds_batched']:.2f} s batched, {measured['ratio']:.1f} times as fast; "
        f"largest difference of a loss {measured['largest_difference']:.1e}"
    )
    write_json(RESULT, {**vars(options), **measured, **provenance(), "command": command()})


if __name__ == "__main__":
    main()
