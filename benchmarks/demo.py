"""The demo over several seeds, and what the same network reaches on the digits before they are poisoned.

python benchmarks/demo.py --seeds 5
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cells


def demo(seed: int, epochs: int, folder: Path) -> dict[str, dict[str, Any]]:
    """`antibackdoor demo` as a user runs it: the metrics of its two runs."""
    out = folder / f"demo-{seed}"
    words = [sys.executable, "-m", "antibackdoor", "demo", "--out", str(out), "--seed", str(seed)]
    subprocess.run([*words, "--epochs", str(epochs)], check=True, stdout=subprocess.DEVNULL)
    names = {"poisoned, plain training": "undefended", "poisoned, E2ABL": "dual-head"}
    return {title: json.loads((out / name / "metrics.json").read_text()) for title, name in names.items()}


def clean(seed: int, epochs: int) -> dict[str, dict[str, Any]]:
    """The same training on the digits as they are; E2ABL should find nothing in them."""
    from antibackdoor.app.demo import BACKBONE, digits
    from antibackdoor.app.pipeline import Job, builder, describe_model
    from antibackdoor.defenses import DualHead, Undefended
    from antibackdoor.statistics.metrics import clean_accuracy
    from antibackdoor.training.loop import predict
    from antibackdoor.training.recipe import Recipe
    from antibackdoor.training.session import Session

    data = digits(seed)
    assert data.test is not None
    recipe = Recipe(epochs=epochs, seed=seed)
    measured = {}
    for title, defense in (("clean, plain training", Undefended()), ("clean, E2ABL", DualHead())):
        build = builder(describe_model(data.train, Job(defense, recipe, backbone=BACKBONE), None))
        started = time.perf_counter()
        trained = defense.train(data.train, build, recipe)
        seconds = time.perf_counter() - started
        session = Session(recipe, len(data.test), images=True)
        predicted = predict(session, session.prepare(trained.model), data.test).labels
        measured[title] = {
            "clean_accuracy": clean_accuracy(predicted, data.test.labels),
            "n_isolated": int(trained.isolated.sum()),
            "seconds": round(seconds, 2),
        }
    return measured


def table(runs: list[dict[str, dict[str, Any]]]) -> str:
    """One row a kind of training: means over seeds with 95% intervals."""
    rows = [
        "| training | seeds | clean accuracy % | attack success % | isolated | missed | s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for title in runs[0]:
        keys = ("clean_accuracy", "attack_success_rate", "n_isolated", "n_missed", "seconds")
        values = {key: cells.mean(run[title].get(key) for run in runs) for key in keys}
        missed = "-" if values["n_missed"].value != values["n_missed"].value else f"{values['n_missed'].value:.1f}"
        rows.append(
            f"| {title} | {len(runs)} | {values['clean_accuracy']} | {values['attack_success_rate']} "
            f"| {values['n_isolated'].value:.1f} | {missed} | {values['seconds'].value:.1f} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0 on")
    parser.add_argument("--epochs", type=int, default=0, help="passes over the data; 0 lets the package choose")
    parser.add_argument("--out", type=Path, default=cells.RESULTS / "demo.json")
    options = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            print(f"seed {seed}", file=sys.stderr, flush=True)
            runs.append(demo(seed, options.epochs, Path(folder)) | clean(seed, options.epochs))
    result = {"seeds": list(range(options.seeds)), "runs": runs, **cells.provenance(), "command": cells.command()}
    cells.write(options.out, result)
    print(table(runs))


if __name__ == "__main__":
    main()
