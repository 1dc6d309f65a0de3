"""The papers' tables in `benchmarks/`: every cell can be made, and every page be written."""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from antibackdoor.attacks import ATTACKS
from antibackdoor.training.recipe import PRESETS

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from paper_cells import SCALES, TABLES, cells, core_hours, listing
from paper_pages import page, with_measured
from papers import made


@pytest.mark.parametrize("name", TABLES)
def test_every_cell_of_a_table_can_be_made(name: str) -> None:
    table = TABLES[name]
    assert table.methods[0].key == "none" or name == "abl-isolation", "rows count only if the attack works undefended"
    assert len({row.label for row in table.rows}) == len(table.rows)
    assert len({method.name for method in table.methods}) == len(table.methods)
    for row in table.rows:
        replace(PRESETS[table.preset], **dict(row.recipe))
        if row.attack:
            replace(ATTACKS[row.attack](**dict(row.settings)).plan(), **dict(row.plan))
        for method in table.methods:
            if method.key == "none":
                replace(PRESETS[table.preset], **dict(method.settings))
                continue
            for scale in SCALES.values():
                check_types(made(method, row, scale), method.settings)


def check_types(method: Any, settings: Any) -> None:
    """A `True` for a number of passes would be one pass."""
    kinds = {field.name: type(getattr(type(method), field.name, None)) for field in fields(method)}
    for name, value in settings:
        assert kinds[name] in (type(value), type(None), float), (name, value)


def test_the_row_decides_how_a_method_augments_unless_the_method_does() -> None:
    table = TABLES["abl-1"]
    signs = next(row for row in table.rows if row.label == "GTSRB, BadNets")
    for method in table.methods:
        if method.key in ("abl", "nad", "mcr", "fine-prune"):
            assert made(method, signs, SCALES["small"]).augment == "crop,cutout"
    e2abl = TABLES["e2abl-1"].methods
    assert {made(m, signs, SCALES["small"]).augment for m in e2abl if m.key == "e2abl"} == {"none", "crop,flip,cutout"}


def line(table: str, row: str, method: str, seed: int, **metrics: Any) -> dict[str, Any]:
    cell = {"table": table, "row": row, "method": method, "scale": "small", "seed": seed}
    return {"cell": cell, "metrics": {"seconds": 10.0, **metrics}}


def test_a_page_has_means_differences_and_what_was_not_run() -> None:
    lines = [
        line("nad-1", "BadNets", "none", 0, attack_success_rate=1.0, clean_accuracy=0.8),
        line("nad-1", "BadNets", "nad", 0, attack_success_rate=0.05, clean_accuracy=0.7, facts={}),
        line("nad-1", "BadNets", "nad", 1, attack_success_rate=0.07, clean_accuracy=0.8, facts={}),
    ]
    text = page("nad-1", lines)
    (nad,) = [row for row in text.splitlines() if row.startswith("| BadNets | nad |")]
    assert "| 4.77 / 81.17 | 6.0 / 75.0 | +1.2 / -6.2 |" in nad and nad.endswith("| 10 | 2 |")
    assert "| BadNets | mcr | 4.65 / 80.94 | not run: 0.10 core-hours |" in text
    rows = [row for row in text.splitlines() if row.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    assert "6.0 / 75.0" in with_measured("# NAD\n", "nad", lines)


@pytest.mark.parametrize(
    ("row", "method", "success", "weak"),
    [("BadNets", "none", 0.89, True), ("Adaptive-Patch", "none", 0.30, False), ("Adaptive-Patch", "none", 0.2, True)],
)
def test_an_attack_is_too_weak_below_what_its_paper_has(row: str, method: str, success: float, weak: bool) -> None:
    text = page("advrbd-2", [line("advrbd-2", row, method, 0, attack_success_rate=success, clean_accuracy=0.8)])
    assert ("attack too weak" in text) == weak


def test_what_nobody_was_relabeled_for_is_a_blank() -> None:
    midway = {"top_precision": 0.9, "clean_precision": 1.0, "recall": 1.0, "true_label_precision": None}
    text = page("e2abl-3", [line("e2abl-3", "BadNets", "no control", 0, midway=midway)])
    assert "| BadNets | no control | 100.0 | 90.0 | 100.0 | - |" in text


def test_costs_are_listed_with_all_data() -> None:
    assert "cifar10.zip, gtsrb32.zip" in listing()
    assert all(core_hours(cell) > 0 for cell in cells(list(TABLES), "", "paper", 1))
