"""How strong the evidence in clean data gets: the fit behind the probability of a false alarm, its test on other data.

    python benchmarks/isolation.py --seeds 25 --cells '*/clean/*'   the searches
    python benchmarks/calibration.py                                fit and test, from what is there

Needs nothing but the results.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import cells
import numpy as np

from antibackdoor.search.evidence import chance_of_depth

FITTED = ("digits", "cifar10-2000")  # the others test, but for other labels of these data, or a part of them
LEVELS = (0.05, 0.1, 0.2, 0.5)

Lines = Sequence[dict[str, Any]]


def clean_lines() -> Lines:
    """Searches of clean data that tell the deepest valley of each label."""
    lines = cells.read_lines(cells.RESULTS / "isolation.jsonl")
    return [line for line in lines if not line["cell"]["attack"] and "deepest" in line["metrics"]]


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
    """Fit, test, print."""
    lines = clean_lines()
    for measure in ("deepest", "carried"):
        others = (line for line in lines if source(line["cell"]["data"]) not in FITTED)
        print(f"{measure}, fitted:", fit((line for line in lines if line["cell"]["data"] in FITTED), measure))
        print(f"{measure}, others:", fit(others, measure))
    print(table(lines))


if __name__ == "__main__":
    main()
