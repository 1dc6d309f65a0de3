"""How fast training is, side by side in one run; and how much memory it takes.

    python benchmarks/speed.py                           10,000 CIFAR-10 images
    python benchmarks/speed.py --synthetic               random images in their place
    python benchmarks/speed.py --memory 50000 500000     peak memory, on random images in a mapped file

The contestants take turns for several rounds, because a shared machine is never equally fast twice; the table
shows medians. `bare loop` is the floor: forward, backward, step on batches of a float tensor that is ready, in the
same precision and memory layout. The default's figure counts its whole run against the plain passes that it
replaces; its search takes a fixed number of steps, so that a short training makes it look slow. A fair figure needs
`--epochs 20 --rounds 3 --only bare,none,dual-head`.
skorch and ART (`pip install .[bench]`) are left out with a reason where they are not installed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folders
import numpy as np
import torch
from memory import measure_memory
from torch import Tensor, nn

from antibackdoor.benchmark import command, provenance
from antibackdoor.data.reading import read
from antibackdoor.data.samples import Samples
from antibackdoor.defenses import DualHead, Undefended
from antibackdoor.models.backbones import build_backbone
from antibackdoor.models.normalization import channel_statistics, normalized
from antibackdoor.runs.atomic import write_json
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.session import Session, seeded

Contestant = Callable[[Samples, Recipe, Callable[[], nn.Module]], None]


def bare_loop(samples: Samples, recipe: Recipe, build: Callable[[], nn.Module]) -> None:
    """What no training loop can do without."""
    session = Session(recipe, len(samples), images=True)
    inputs = torch.from_numpy(samples.inputs).float().div_(255).contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(samples.labels)
    model = session.prepare(seeded(build, recipe.seed)).train()
    optimizer = session.optimizer(model.parameters(), recipe.learning_rate)
    size = session.batch_size
    for _ in range(recipe.epochs):
        for start in range(0, len(labels), size):
            x, y = inputs[start : start + size].to(session.device), labels[start : start + size].to(session.device)
            with session.autocast():
                loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()


def undefended(samples: Samples, recipe: Recipe, build: Callable[[], nn.Module]) -> None:
    """Our loop: shuffling, row by row, per-sample losses kept."""
    Undefended().train(samples, build, recipe)


def dual_head(samples: Samples, recipe: Recipe, build: Callable[[], nn.Module]) -> None:
    """The whole defense."""
    DualHead().train(samples, build, recipe)


def skorch(samples: Samples, recipe: Recipe, build: Callable[[], nn.Module]) -> None:
    """skorch's NeuralNetClassifier with the same optimizer, in single precision."""
    from skorch import NeuralNetClassifier

    device = Session(recipe, len(samples), images=True).device
    net = NeuralNetClassifier(
        seeded(build, recipe.seed),
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.SGD,
        lr=recipe.learning_rate,
        optimizer__momentum=recipe.momentum,
        optimizer__weight_decay=recipe.weight_decay,
        optimizer__nesterov=True,
        max_epochs=recipe.epochs,
        batch_size=recipe.batch(len(samples)),
        iterator_train__shuffle=True,
        train_split=None,
        verbose=0,
        device=device,
    )
    net.fit(_floats(samples).numpy(), samples.labels)


def art(samples: Samples, recipe: Recipe, build: Callable[[], nn.Module]) -> None:
    """ART's PyTorchClassifier with the same optimizer, in single precision."""
    from art.estimators.classification import PyTorchClassifier

    model = seeded(build, recipe.seed)
    device = Session(recipe, len(samples), images=True).device
    classifier = PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(),
        input_shape=samples.shape,
        nb_classes=samples.n_classes,
        optimizer=torch.optim.SGD(
            model.parameters(), recipe.learning_rate, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True
        ),
        device_type="gpu" if device.type == "cuda" else "cpu",
    )
    size = recipe.batch(len(samples))
    classifier.fit(_floats(samples).numpy(), samples.labels, batch_size=size, nb_epochs=recipe.epochs)


def _floats(samples: Samples) -> Tensor:
    return torch.from_numpy(samples.inputs).float().div_(255)


CONTESTANTS: dict[str, Contestant] = {
    "bare": bare_loop,
    "none": undefended,
    "dual-head": dual_head,
    "skorch": skorch,
    "art": art,
}
TITLES = {
    "bare": "bare loop",
    "none": "antibackdoor, no defense",
    "dual-head": "antibackdoor, default (dual-head)",
    "art": "ART",
}
NEEDS = {"skorch": "skorch", "art": "art.estimators.classification"}


def available(only: str) -> tuple[dict[str, Contestant], dict[str, str]]:
    """The chosen contestants that can run here, and why the others cannot; the bare loop always runs."""
    chosen = {"bare", *only.split(",")} if only else set(CONTESTANTS)
    if unknown := chosen - set(CONTESTANTS):
        sys.exit(f"--only names {', '.join(sorted(unknown))}; choose among {', '.join(CONTESTANTS)}")
    present = {name: contestant for name, contestant in CONTESTANTS.items() if name in chosen}
    absent: dict[str, str] = {}
    for name, module in NEEDS.items():
        if name not in present:
            continue
        try:
            __import__(module)
        except (ImportError, RuntimeError, OSError) as error:  # a broken binary wheel raises what it likes
            del present[name]
            absent[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
    return present, absent


def images(options: argparse.Namespace) -> Samples:
    """The images to train on."""
    n = options.images
    if not options.synthetic:
        train = read(options.data / "cifar10.zip").train
        return train.take(np.linspace(0, len(train) - 1, min(n, len(train))).astype(np.int64))
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
    names = np.array([str(k) for k in range(10)])
    return Samples(pixels, rng.integers(0, 10, n), np.arange(n).astype(np.str_), names)


def race(samples: Samples, options: argparse.Namespace, present: dict[str, Contestant]) -> dict[str, list[float]]:
    """Seconds of each contestant in each round; a small round goes first, unmeasured."""
    mean, std = channel_statistics(samples)

    def build() -> nn.Module:
        return normalized(build_backbone(options.network, samples.shape, samples.n_classes), mean, std)

    recipe = Recipe(epochs=options.epochs, augment=options.augment, precision=options.precision, batch_size=128)
    seconds: dict[str, list[float]] = {name: [] for name in present}
    few = samples.take(np.linspace(0, len(samples) - 1, min(len(samples), 512)).astype(np.int64))
    for name, contestant in present.items():
        contestant(few, Recipe(epochs=1, augment=options.augment, precision=options.precision), build)
        print(f"warmed up {name}", file=sys.stderr, flush=True)
    for turn in range(options.rounds):
        # Another order each time: what one leaves behind (heat, caches) must not always hit the same one.
        for place in np.random.default_rng(turn).permutation(len(present)).tolist():
            name = list(present)[place]
            started = time.perf_counter()
            present[name](samples, recipe, build)
            seconds[name].append(time.perf_counter() - started)
            print(f"round {turn + 1}: {name} {seconds[name][-1]:.1f} s", file=sys.stderr, flush=True)
    return seconds


def table(seconds: dict[str, list[float]], n_seen: int) -> tuple[str, dict[str, Any]]:
    """Images per second: median, range, and the median of the ratios to the bare loop of the same round."""
    rows = ["| training | images/s | min - max | of the bare loop |", "| --- | ---: | ---: | ---: |"]
    summary: dict[str, Any] = {}
    for name, times in seconds.items():
        rates = [n_seen / s for s in times]
        ratio = statistics.median(floor / s for floor, s in zip(seconds["bare"], times, strict=True))
        summary[name] = {"median": statistics.median(rates), "min": min(rates), "max": max(rates), "ratio": ratio}
        numbers = f"{statistics.median(rates):,.0f} | {min(rates):,.0f} - {max(rates):,.0f} | {ratio:.2f}"
        rows.append(f"| {TITLES.get(name, name)} | {numbers} |")
    return "\n".join(rows), summary


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--network", default="wrn-16-1")
    parser.add_argument(
        "--precision", default="auto", choices=("auto", "bf16", "fp32"), help="of ours and the bare loop"
    )
    parser.add_argument("--augment", default="none", help="in our training only; none makes the work equal")
    parser.add_argument("--only", default="", help=f"contestants, joined by commas: {', '.join(CONTESTANTS)}")
    parser.add_argument("--synthetic", action="store_true", help="random images; needs no data")
    parser.add_argument("--memory", type=int, nargs="+", default=[], help="measure peak memory at these sizes instead")
    parser.add_argument("--defense", default="dual-head", help="for --memory")
    parser.add_argument("--out", type=Path, help="default: speed.json or memory.json in benchmarks/results")
    parser.add_argument("--data", type=Path, default=folders.data(), help="folder of cifar10.zip")
    options = parser.parse_args()
    if options.memory:
        with tempfile.TemporaryDirectory() as folder:
            text, result = measure_memory(options.memory, options.defense, options.network, Path(folder))
    else:
        present, absent = available(options.only)
        for name, why in absent.items():
            print(f"without {name}: {why}", file=sys.stderr)
        samples = images(options)
        seconds = race(samples, options, present)
        text, summary = table(seconds, options.epochs * len(samples))
        session = Session(Recipe(precision=options.precision), len(samples), images=True)
        result = {
            "settings": {key: getattr(options, key) for key in ("images", "epochs", "rounds", "network", "augment")},
            "device": session.device.type, "bf16": session.bf16, "threads": torch.get_num_threads(),
            "images_per_second": summary, "seconds": seconds, "left_out": absent,
        }  # fmt: skip
    packages = ("antibackdoor", "torch", "numpy", "skorch", "adversarial-robustness-toolbox")
    result |= {"seed": 0, **provenance(packages), "command": command()}
    write_json(options.out or folders.RESULTS / ("memory.json" if options.memory else "speed.json"), result)
    print(text)


if __name__ == "__main__":
    main()
