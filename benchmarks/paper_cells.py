"""The cells of the papers' tables: an attack under a method at a scale, and about what each costs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import abl_tables
import advrbd_tables
import e2abl_tables
import nad_tables
from paper_tables import Method, Row, Table

from antibackdoor.errors import ConfigError

TABLES: dict[str, Table] = {**nad_tables.TABLES, **abl_tables.TABLES, **advrbd_tables.TABLES, **e2abl_tables.TABLES}


@dataclass(frozen=True)
class Scale:
    """How much is trained.

    Attributes:
        limit: Most training samples; 0 takes all.
        epochs: Of the attack model, and of defenses that go by the recipe.
        method_epochs: Epochs of methods with a number of their own, where it is not the paper's.
    """

    limit: int
    epochs: int
    method_epochs: dict[str, dict[str, int]]


SCALES = {
    "small": Scale(10_000, 30, {"abl": {"isolation_epochs": 10, "epochs": 30}}),
    "paper": Scale(0, 60, {}),
}
# Images a second on one core of the machine that the results were measured on, to estimate costs.
SPEED = {"wrn-16-1": 700, "resnet18-thin": 650, "fcn": 2500, "resnet34": 26, "mobilenetv2": 40}
# Core-seconds of a method in those of the attack model's training, as measured; e2abl has 60 epochs at each scale.
COST = {
    **{"none": 1.0, "abl": 1.3, "advrbd": 2.5, "dbr": 1.7, "e2abl": 3.0, "dual-head": 1.2, "self-clean": 0.7},
    **{"nad": 0.2, "mcr": 0.8, "fine-tune": 0.1, "fine-prune": 0.12, "neural-cleanse-unlearn": 2.1},
    **{"low-loss": 0.7, "flooding": 1.0, "label-smoothing-confidence": 1.0},
}
ALTERNATIVES = 2.3  # the other ways of ABL to unlearn train for 40 more epochs


@dataclass(frozen=True)
class Cell:
    """One number of a table: an attack under a method."""

    table: str
    row: str
    method: str  # the column's name
    scale: str
    seed: int

    @property
    def name(self) -> str:
        """For `--cells`."""
        return f"{self.table}/{self.row}/{self.method}/{self.scale}/{self.seed}"

    @property
    def form(self) -> str:
        """The same."""
        return self.name

    def parts(self) -> tuple[Table, Row, Method, Scale]:
        """What the names stand for."""
        table = TABLES[self.table]
        row = next(row for row in table.rows if row.label == self.row)
        method = next(method for method in table.methods if method.name == self.method)
        return table, row, method, SCALES[self.scale]


def cells(names: Sequence[str], rows: str, scale: str, n_seeds: int) -> list[Cell]:
    """The cells of some tables, row by row: a fair picture of a row stands before the next one begins.

    Args:
        names: Tables.
        rows: Labels joined by commas; empty for all. A comma before a space belongs to a label.
        scale: A key of `SCALES`.
        n_seeds: Seeds count from 0.

    Raises:
        ConfigError: If no table has a row of that label.
    """
    wanted = re.split(r",(?! )", rows) if rows else []
    labels = {row.label for name in names for row in TABLES[name].rows}
    if unknown := set(wanted) - labels:
        there = "; ".join(sorted(labels))
        raise ConfigError(f"--rows: there is no {sorted(unknown)[0]!r} in {', '.join(names)}; choose among {there}")
    return [
        Cell(name, row.label, method.name, scale, seed)
        for seed in range(n_seeds)
        for name in names
        for row in TABLES[name].rows
        if not wanted or row.label in wanted
        for method in TABLES[name].methods
    ]


def core_hours(cell: Cell) -> float:
    """About how long a cell takes on one core; the attack model counts for the first cell of its row."""
    table, _, method, scale = cell.parts()
    visits = (scale.limit or 50_000) * scale.epochs
    unlearns = "unlearning" in dict(method.settings)
    cost = ALTERNATIVES if unlearns else COST.get(method.key, 0.15)
    return cost * visits / SPEED[table.backbone] / 3600


def listing() -> str:
    """Every table, its cost at both scales, and what it needs."""
    rows = [
        "| table | of | rows | core-hours, small | core-hours, paper | data |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    for name, table in TABLES.items():
        cost = [sum(map(core_hours, cells([name], "", scale, 1))) for scale in ("small", "paper")]
        data = ", ".join(dict.fromkeys(row.data or table.data for row in table.rows))
        rows.append(f"| {name} | {table.title} | {len(table.rows)} | {cost[0]:.1f} | {cost[1]:.1f} | {data} |")
    return "\n".join(rows)
