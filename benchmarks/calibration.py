"""How strong the evidence in clean data gets: the fit behind the probability of a false alarm, its test on other data.

    python benchmarks/calibration.py                               fit and test, from what is there
    python benchmarks/calibration.py --seeds 25 --cells 'digits/*'  search clean data before; goes on where it stopped

Searches of clean data that `benchmarks/isolation.py` wrote with the same numbers count as measured.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import folders
import isolation
import numpy as np

from antibackdoor.benchmark import Matrix, Measured, arguments, choose, data_hash, identity, measure_cells, read_lines
from antibackdoor.detectors import ConfusionTraining
from antibackdoor.errors import AntibackdoorError
from antibackdoor.search.evidence import chance_of_depth
from antibackdoor.training.recipe import Recipe

FITTED = ("digits", "cifar10-2000")  # the others test, but for other labels of these data, or a part of them
LEVELS = (0.05, 0.1, 0.2, 0.5)
OWN = folders.RESULTS / "calibration.jsonl"

Lines = Sequence[dict[str, Any]]


def clean_lines(own: Path = OWN) -> Lines:
    """Searches of clean data that have the deepest valley of each label; those of this benchmark win."""
    lines = [*read_lines(folders.RESULTS / "isolation.jsonl"), *read_lines(own)]
    kept = [line for line in lines if not line["cell"]["attack"] and "deepest" in line["metrics"]]
    return list({identity(line["cell"]): line for line in kept}.values())


def measure(cell: isolation.Cell, folder: Path) -> Measured:
    """Search clean data, and keep of each label the strongest evidence that any round saw."""
    searched = isolation.prepare(cell.data, "", 0.0, cell.seed, folder)
    started = time.perf_counter()
    found, _ = ConfusionTraining(power=False).search(searched.samples, searched.build, Recipe(seed=cell.seed))
    metrics = {
        **isolation.found(searched, found.isolated),
        "labels": list(found.labels),
        "deepest": [round(depth, 2) for depth in found.depths.tolist()],
        "carried": [round(nats, 2) for nats in found.carried.tolist()],
        "seconds": round(time.perf_counter() - started, 1),
    }
    return Measured(metrics, data_hash(searched.samples))


def fit(lines: Iterable[dict[str, Any]], measure: str) -> str:
    """Share of labels that a measure puts above 1, and the power with which larger values become rare."""
    values = np.array([v for line in lines for v in line["metrics"].get(measure, ()) if v is not None])
    larger = values[values > 1]
    if not len(larger):
        return f"{len(values)} labels: none above 1"
    share, power = len(larger) / len(values), len(larger) / np.log(larger).sum()
    of_share, of_power = np.sqrt(share * (1 - share) / len(values)), power / np.sqrt(len(larger))
    return f"{len(values)} labels: share {share:.3f} ± {of_share:.3f}, power {power:.2f} ± {of_power:.2f}"


def table(lines: Lines) -> str:
    """For each data set: runs, false alarms, and how often the probability of one was at most so much."""
    rows = [
        "| clean data | runs | false alarms | samples isolated | " + " | ".join(f"p ≤ {p:g}" for p in LEVELS) + " |",
        "| --- |" + " ---: |" * (3 + len(LEVELS)),
    ]
    groups: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault(line["cell"]["data"], []).append(line["metrics"])
    tested = [run for data, runs in groups.items() if source(data) not in FITTED for run in runs]
    told = {data: "fitted" if data in FITTED else "of the same samples" for data in groups if source(data) in FITTED}
    names = {data: f"{data} ({told[data]})" if data in told else data for data in sorted(groups, key=told.__contains__)}
    for name, runs in (*((names[data], groups[data]) for data in names), ("all but the fitted", tested)):
        alarms, flagged = sum(bool(run["n_false"]) for run in runs), sum(run["n_false"] for run in runs)
        chances = np.array([probability(run) for run in runs])
        shares = [f"{(chances <= level).mean():.2f}" for level in LEVELS]
        rows.append(f"| {name} | {len(runs)} | {alarms} | {flagged} | " + " | ".join(shares) + " |")
    return "\n".join(rows)


def source(data: str) -> str:
    """The data set that these samples are of, whatever their labels and however many of them."""
    return re.sub(r"-(by|only|x)\d+$", "", data)


def probability(run: dict[str, Any]) -> float:
    """That of a false alarm, by the valleys alone: no clean data had content that was accepted as evidence."""
    depths = np.array([np.nan if depth is None else depth for depth in run["deepest"]])
    return chance_of_depth(depths, tuple(run["labels"])) or 1.0


def main() -> None:
    """Search what is asked for and not there yet; fit, test, print."""
    parser = arguments(__doc__ or "", out=OWN, data=folders.data(), seeds=0)
    options = parser.parse_args()
    cells = [cell for cell in isolation.all_cells(options.seeds) if not cell.attack]
    matrix = Matrix(cells, measure, table, isolation.brief, lambda cell: isolation.file_of(cell.data))
    failed = []
    if cells and not options.table:
        there = set() if options.again else {identity(line["cell"]) for line in clean_lines(options.out)}
        try:
            todo = [cell for cell in choose(cells, options.cells) if identity(asdict(cell)) not in there]
            failed = measure_cells(matrix, todo, options.out, options.data, again=options.again)
        except AntibackdoorError as error:
            sys.exit(str(error))
    lines = clean_lines(options.out)
    for name in ("deepest", "carried"):
        others = (line for line in lines if source(line["cell"]["data"]) not in FITTED)
        print(f"{name}, fitted:", fit((line for line in lines if line["cell"]["data"] in FITTED), name))
        print(f"{name}, others:", fit(others, name))
    print(table(lines))
    if failed:
        sys.exit(f"{len(failed)} cells failed; run the same command again for them alone")


if __name__ == "__main__":
    main()
