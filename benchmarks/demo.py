"""The demo over several seeds, and what the same network reaches on the digits before they are poisoned.

python benchmarks/demo.py --seeds 5
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import folders

from antibackdoor.app.demo import BACKBONE, digits
from antibackdoor.app.networks import NetworkChoice, builder, describe_model
from antibackdoor.benchmark import command, grid, mean, measure_model, measure_verdict, provenance
from antibackdoor.defenses import DualHead, Undefended
from antibackdoor.runs.atomic import write_json
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.session import Session

TITLES = {"undefended": "plain training", "dual-head": "default (dual-head)"}


def demo(seed: int, epochs: int, folder: Path) -> dict[str, dict[str, Any]]:
    """`antibackdoor demo` as a user runs it: the metrics of its two runs."""
    out = folder / f"demo-{seed}"
    words = [sys.executable, "-m", "antibackdoor", "demo", "--out", str(out), "--seed", str(seed)]
    subprocess.run([*words, "--epochs", str(epochs)], check=True, stdout=subprocess.DEVNULL)
    runs = {name: json.loads((out / name / "metrics.json").read_text(encoding="utf-8")) for name in TITLES}
    return {f"poisoned, {TITLES[name]}": metrics for name, metrics in runs.items()}


def clean(seed: int, epochs: int) -> dict[str, dict[str, Any]]:
    """The same training on the digits as they are; the default should find nothing in them."""
    data = digits(seed)
    assert data.test is not None
    recipe = Recipe(epochs=epochs, seed=seed)
    measured = {}
    for name, defense in (("undefended", Undefended()), ("dual-head", DualHead())):
        build = builder(describe_model(data.train, NetworkChoice(BACKBONE), recipe, name))
        started = time.perf_counter()
        trained = defense.train(data.train, build, recipe)
        seconds = time.perf_counter() - started
        session = Session(recipe, len(data.test), images=True)
        measured[f"clean, {TITLES[name]}"] = {
            **measure_model(session, session.prepare(trained.model), data.test),
            **measure_verdict(trained.verdict),
            "seconds": round(seconds, 2),
        }
    return measured


def table(runs: list[dict[str, dict[str, Any]]]) -> str:
    """One row a kind of training: means over seeds with 95% intervals."""
    rows = []
    for title in runs[0]:
        shares, counts = (
            [mean(run[title].get(key) for run in runs) for key in keys]
            for keys in (("clean_accuracy", "attack_success_rate"), ("n_isolated", "n_missed", "seconds"))
        )
        numbers = ["-" if math.isnan(count.value) else f"{count.value:.1f}" for count in counts]
        rows.append([title, str(len(runs)), *map(str, shares), *numbers])
    return grid(("training", "seeds", "clean accuracy %", "attack success %", "isolated", "missed", "s"), rows)


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0 on")
    parser.add_argument("--epochs", type=int, default=0, help="passes over the data; 0 lets the package choose")
    parser.add_argument("--out", type=Path, default=folders.RESULTS / "demo.json")
    options = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            print(f"seed {seed}", file=sys.stderr, flush=True)
            runs.append(demo(seed, options.epochs, Path(folder)) | clean(seed, options.epochs))
    result = {"seeds": list(range(options.seeds)), "runs": runs, **provenance(), "command": command()}
    write_json(options.out, result)
    print(table(runs))


if __name__ == "__main__":
    main()
