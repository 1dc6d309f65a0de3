"""What each idea of the search is worth: the isolation of E2ABL, then one idea of the search added to the other.

    python benchmarks/ablation.py                                   all cells; goes on where it was stopped
    python benchmarks/ablation.py --cells 'ecg5000/*'               some of them
    python benchmarks/ablation.py --table                           what is there

The data, attacks, rates and seeds are cells of `benchmarks/isolation.py` and `benchmarks/unseen.py`; each is searched
once with each variant. What a trained network is asked late adds to all of them, and has cells of its own, each trained
to the end without it and with it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import isolation

from antibackdoor.benchmark import Measured, data_hash
from antibackdoor.data.samples import BoolArray
from antibackdoor.defenses import E2ABL, DualHead
from antibackdoor.detectors import ConfusionTraining
from antibackdoor.training.recipe import Recipe

# Each variant adds to the one before it. Confusion training and its two-group test come first.
IDEAS = (
    *("by_features", "across_labels", "by_parts", "in_the_rest"),
    *("by_both", "by_place", "by_gaps", "made_pure"),
)
PUBLISHED = "as published"
NAMES = (PUBLISHED, "confusion of the suspicious losses", *(f"+ {idea.replace('_', ' ')}" for idea in IDEAS))
TRAINED = ("trained, no late look", "trained, with it")
PUBLISHED_EPOCHS = 3  # its warm-up of two, and one that isolates


@dataclass(frozen=True)
class Cell:
    """One search with one variant."""

    data: str
    attack: str  # empty for clean data
    rate: float
    seed: int
    variant: str

    @property
    def name(self) -> str:
        """For `--cells`: data/attack/rate/seed/variant."""
        return f"{self.data}/{self.attack or 'clean'}/{self.rate:g}/{self.seed}/{self.variant}"

    @property
    def form(self) -> str:
        """The name, which no two cells share."""
        return self.name


def all_cells(n_seeds: int) -> Iterable[Cell]:
    """Seed by seed, all variants of a cell one after the other."""
    searched = (
        ("digits", "badnets", 0.05),
        ("ecg5000", "static", 0.1),
        ("cifar10-2000", "badnets", 0.1),
        ("cifar10-2000", "blend", 0.1),
        ("gtsrb-4000", "blend", 0.05),
        ("digits", "", 0.0),
        ("ecg5000", "", 0.0),
        ("cifar10-2000", "", 0.0),
        ("gtsrb-4000", "", 0.0),
        ("cifar10-10000", "adaptive_patch", 0.05),
        ("cifar10-10000", "badnets", 0.01),
        ("cifar10-2000", "blend", 0.02),
        ("uwave", "static", 0.1),
        ("ecg5000", "powerline", 0.02),
        ("gunpoint-all", "static", 0.1),
        ("arabicdigits", "static", 0.1),
    )
    trained = (("characters", "wanet", 0.1), ("arabicdigits", "hum", 0.1), ("characters", "", 0.0))
    for seed in range(n_seeds):
        for cells, variants in ((searched, NAMES), (trained, TRAINED)):
            for data, attack, rate in cells:
                yield from (Cell(data, attack, rate, seed, variant) for variant in variants)


def measure(cell: Cell, folder: Path) -> Measured:
    """Search with a variant, compare with the truth."""
    searched = isolation.prepare(cell.data, cell.attack, cell.rate, cell.seed, folder)
    started = time.perf_counter()
    isolated = isolated_by(cell.variant, searched, Recipe(seed=cell.seed))
    metrics = {**isolation.found(searched, isolated), "seconds": round(time.perf_counter() - started, 1)}
    return Measured(metrics, data_hash(searched.samples))


def isolated_by(variant: str, searched: isolation.Searched, recipe: Recipe) -> BoolArray:
    """What a variant isolates, `(N,)`."""
    data = searched.samples, searched.build, recipe
    if variant == PUBLISHED:
        return E2ABL(epochs=PUBLISHED_EPOCHS).train(*data).verdict.isolated
    if variant in TRAINED:
        return DualHead(post_training_check=variant == TRAINED[1]).train(*data).verdict.isolated
    kept = NAMES.index(variant) - NAMES.index(NAMES[1])
    search = ConfusionTraining(power=False, **{idea: number < kept for number, idea in enumerate(IDEAS)})
    return search.search(*data)[0].isolated


def table(lines: list[dict[str, Any]]) -> str:
    """A row for each data set and attack, a column for each variant: `missed of poisoned / false` for each seed."""
    names = [name for name in (*NAMES, *TRAINED) if any(line["cell"]["variant"] == name for line in lines)]
    rows_of: dict[str, dict[str, list[str]]] = {}
    for line in lines:
        searched, variant = line["name"].rsplit("/", 2)[0], line["cell"]["variant"]
        rows_of.setdefault(searched, {}).setdefault(variant, []).append(isolation.brief(line["metrics"]))
    rows = ["| searched | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    for searched, found in rows_of.items():
        rows.append(f"| {searched} | " + " | ".join("; ".join(found.get(name, ["-"])) for name in names) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    isolation.run(__doc__ or "", "ablation", all_cells, measure, table, methods=("variant",))
