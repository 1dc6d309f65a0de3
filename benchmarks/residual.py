"""The attack success that a user is told is left, without knowing the trigger, beside the true one.

    python benchmarks/residual.py        every defended training in benchmarks/results that has both; measures nothing

The estimate comes from the isolated samples, as `estimated_residual_attack_success_rate` in `metrics.json` does. There
is none where nothing was isolated: a missed backdoor is not among these lines.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import folders

from antibackdoor.benchmark import read_lines

ESTIMATE, TRUE = "estimated_residual_attack_success_rate", "attack_success_rate"
CLOSE = 0.05  # the goal: estimated minus true within five points in 95% of runs


class Pair(NamedTuple):
    """One training."""

    name: str
    estimate: float
    low: float
    high: float
    true: float


def pairs(folder: Path) -> Iterator[Pair]:
    """All trainings that have both numbers."""
    for path in sorted(folder.glob("*.jsonl")):
        for line in read_lines(path):
            yield from _pair(line["name"], line["metrics"])
    demo = folder / "demo.json"
    if demo.exists():
        for seed, run in enumerate(json.loads(demo.read_text(encoding="utf-8"))["runs"]):
            for title, metrics in run.items():
                yield from _pair(f"demo/{title}/{seed}", metrics)


def _pair(name: str, metrics: dict[str, Any]) -> Iterator[Pair]:
    estimate, true = metrics.get(ESTIMATE), metrics.get(TRUE)
    if estimate is not None and true is not None:
        yield Pair(name, estimate, metrics[f"{ESTIMATE}_low"], metrics[f"{ESTIMATE}_high"], true)


def table(found: list[Pair]) -> str:
    """One row a training, in percent, and how many estimates are close."""
    rows = ["| training | estimated % | 95% interval | true % | difference |", "| --- | ---: | --- | ---: | ---: |"]
    for pair in found:
        estimate, low, high, true = (100 * value for value in pair[1:])
        rows.append(f"| {pair.name} | {estimate:.1f} | {low:.1f} to {high:.1f} | {true:.1f} | {estimate - true:+.1f} |")
    close = sum(abs(pair.estimate - pair.true) <= CLOSE for pair in found)
    inside = sum(pair.low <= pair.true <= pair.high for pair in found)
    rows.append("")
    rows.append(f"{close} of {len(found)} within {100 * CLOSE:.0f} points; {inside} inside the interval.")
    return "\n".join(rows)


def main() -> None:
    """Parse, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=folders.RESULTS, help="folder of the results")
    print(table(list(pairs(parser.parse_args().results))))


if __name__ == "__main__":
    main()
