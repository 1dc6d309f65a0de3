"""Several methods on the same data: one table, for the terminal and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from antibackdoor.report.html import write_page
from antibackdoor.report.words import duration, percent, printable

NOTHING = "–"


@dataclass(frozen=True, eq=False)
class ComparedRun:
    """One method with one seed.

    Attributes:
        method: Its name.
        kind: `defense`, `detector` or `purifier`.
        seed: Of the run; None for the mean over seeds, or for all of them.
        metrics: As in `metrics.json`; empty where the method could not work.
        reason: Why it could not; empty if it could.
    """

    method: str
    kind: str
    seed: int | None
    metrics: Mapping[str, Any]
    reason: str = ""

    @property
    def folder(self) -> str:
        """Name of its run folder."""
        return f"{self.method}-{self.seed}"


@dataclass(frozen=True)
class Column:
    """One number of the table.

    Attributes:
        key: In `metrics.json`; with `_low` and `_high` where `interval` is true.
        title: Heading.
        show: How it is written.
        interval: Whether it has one.
        good: Which end of its bar is good; empty for no bar.
    """

    key: str
    title: str
    show: Literal["percent", "score", "seconds", "flag"] = "percent"
    interval: bool = False
    good: Literal["high", "low", ""] = ""


COLUMNS = (
    Column("clean_accuracy", "Clean accuracy", interval=True, good="high"),
    Column("attack_success_rate", "Attack success", interval=True, good="low"),
    Column("robust_accuracy", "Robust accuracy"),
    Column("isolation_recall", "Isolation recall"),
    Column("false_positive_rate", "False isolation"),
    Column("suspicion_auroc", "AUROC", "score"),
    Column("poisoned", "Says poisoned", "flag"),
    Column("seconds", "Time", "seconds"),
)


@dataclass(frozen=True)
class Cell:
    """A number in words, its interval, and its bar: start, end and value in percent of the width."""

    text: str
    interval: str = ""
    value: float | None = None
    low: float = 0.0
    high: float = 0.0
    good: str = ""


def with_means(runs: Sequence[ComparedRun]) -> list[ComparedRun]:
    """The runs, grouped by method, and after those of a method with several seeds their mean.

    A method that failed with every seed for the same reason has one row.

    The interval of a mean is the smallest and the largest value among the seeds.
    """
    rows: list[ComparedRun] = []
    for method in dict.fromkeys(run.method for run in runs):
        own = [run for run in runs if run.method == method]
        if len({run.reason for run in own}) == 1 and own[0].reason:
            own = [replace(own[0], seed=None)] if len(own) > 1 else own
        rows += own
        done = [run.metrics for run in own if not run.reason]
        if len(own) > 1 and done:
            rows.append(ComparedRun(method, own[0].kind, None, _mean(done)))
    return rows


def _mean(several: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    for column in COLUMNS:
        if column.show == "flag":
            metrics[column.key] = _agreed([known.get(column.key) for known in several])
            continue
        values = [value for known in several if (value := number(known, column.key)) is not None]
        if len(values) == len(several):
            metrics[column.key] = float(np.mean(values))
            metrics |= {f"{column.key}_low": min(values), f"{column.key}_high": max(values)} if column.interval else {}
    return metrics


def _agreed(said: Sequence[Any]) -> Any:
    """What all seeds say, or how many of them say yes."""
    answers = [answer for answer in said if isinstance(answer, bool)]
    if len(answers) < len(said) or len(set(answers)) == 1:
        return answers[0] if len(answers) == len(said) else None
    return f"{sum(answers)} of {len(answers)}"


def shown_columns(runs: Sequence[ComparedRun]) -> list[Column]:
    """The columns in which at least one run has a number."""
    return [column for column in COLUMNS if any(cell(column, run.metrics).text != NOTHING for run in runs)]


def cell(column: Column, metrics: Mapping[str, Any]) -> Cell:
    """What stands in the table; a dash for what was not measured."""
    if column.show == "flag":
        said = metrics.get(column.key)
        words = {True: "yes", False: "no"}.get(said, NOTHING) if isinstance(said, bool) else said
        return Cell(words if isinstance(words, str) else NOTHING)
    value = number(metrics, column.key)
    if value is None:
        return Cell(NOTHING)
    if column.show == "seconds":
        return Cell(duration(value))
    text = percent(value) if column.show == "percent" else f"{value:.3f}"
    low, high = number(metrics, f"{column.key}_low"), number(metrics, f"{column.key}_high")
    if not column.interval or low is None or high is None:
        return Cell(text)
    return Cell(
        text,
        f"{100 * low:.1f}–{100 * high:.1f}",
        100 * _share(value),
        100 * _share(low),
        100 * _share(high),
        column.good,
    )


def _share(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def number(metrics: Mapping[str, Any], key: str) -> float | None:
    """A number of the metrics; None where there is none."""
    value = metrics.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        return None
    return float(value)


def text_table(runs: Sequence[ComparedRun]) -> str:
    """The table in plain text; a method that could not work has its reason in place of numbers."""
    rows = with_means(runs)
    columns = shown_columns(rows)
    lines = [["method", "seed", *(column.title.lower() for column in columns)]]
    reasons = [""]
    for row in rows:
        cells = [cell(column, row.metrics) for column in columns]
        texts = [f"{part.text} [{part.interval}]" if part.interval else part.text for part in cells]
        lines.append([row.method, _seed(row), *([""] * len(cells) if row.reason else texts)])
        reasons.append(row.reason)
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    padded = []
    for line, reason in zip(lines, reasons, strict=True):
        head = "  ".join(part.ljust(width) for part, width in zip(line[:2], widths[:2], strict=True))
        tail = reason or "  ".join(part.rjust(width) for part, width in zip(line[2:], widths[2:], strict=True))
        padded.append(f"{head}  {tail}".rstrip())
    return "\n".join(padded)


def _seed(run: ComparedRun) -> str:
    if run.seed is None:
        return "all" if run.reason else "mean"
    return str(run.seed)


def write_methods_page(
    out: Path, title: str, runs: Sequence[ComparedRun], about: Sequence[tuple[str, str]], command: str
) -> None:
    """Write the table as one page.

    Args:
        out: The file.
        title: Heading.
        runs: One for each method and seed, in the order of the table.
        about: What all runs share: `(name, value)`.
        command: The command line.

    Raises:
        RunError: The page cannot be written.
    """
    columns = shown_columns(runs)
    means = [row for row in with_means(runs) if row.seed is None]
    several = len({run.seed for run in runs}) > 1
    write_page(
        out,
        "comparison.html.j2",
        title=printable(title),
        summary=_summary(runs),
        columns=[column.title for column in columns],
        tables=[_rows(part, columns) for part in ((means, runs) if several else (runs,))],
        about=[(printable(name, 80), printable(value, 300)) for name, value in about],
        command=printable(command, 2000),
    )


def _rows(runs: Sequence[ComparedRun], columns: Sequence[Column]) -> list[dict[str, Any]]:
    return [
        {
            "method": printable(run.method),
            "kind": run.kind,
            "seed": _seed(run),
            "reason": printable(run.reason, 400),
            "cells": [cell(column, run.metrics) for column in columns],
        }
        for run in runs
    ]


def _summary(runs: Sequence[ComparedRun]) -> str:
    """What was compared, and what the attack does where nothing is done about it; no method is called the best."""
    methods = len(dict.fromkeys(run.method for run in runs))
    seeds = len({run.seed for run in runs})
    failed = len({run.method for run in runs if run.reason})
    said = [f"{methods} methods on the same data" + (f", {seeds} seeds each." if seeds > 1 else ".")]
    if failed:
        said.append(f"{failed} of them could not run; the table says why.")
    plain = [
        value
        for run in runs
        if run.method == "none" and (value := number(run.metrics, "attack_success_rate")) is not None
    ]
    if plain:
        said.append(
            f"Without a defense, the attack succeeds on {percent(float(np.mean(plain)))} of the triggered test samples."
        )
    return " ".join(said)
