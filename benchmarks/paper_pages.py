"""Pages of the papers' tables: paper, ours, or "not run" and what it would cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paper_cells import SCALES, TABLES, Cell, core_hours
from paper_tables import Method, Row

WEAK = 90.0  # percent of attack success without a defense below which a row does not count
BEHIND = 10.0  # points below the paper's own, where that is less, as for source-specific and adaptive attacks


def page(name: str, lines: Sequence[dict[str, Any]]) -> str:
    """A table as a page: paper, ours, difference; rows that were not run with their cost."""
    table = TABLES[name]
    text = [
        f"# {table.title}",
        "",
        f"Evidence grade {table.grade}. {table.about} Attack success (ASR), clean accuracy (CA), accuracy without "
        "the target class (CA-) and robust accuracy (RA: triggered samples that get their true class) in percent; the "
        f"difference is ours minus the paper's, in points. Recipe `{table.preset}`, {table.backbone}. Made by `python "
        f"benchmarks/papers.py --table {name}`.",
    ]
    for scale in SCALES:
        found = by_cell([line for line in lines if line["cell"]["scale"] == scale])
        if found or scale == "small":
            text += ["", f"## Scale: {scale}", "", *_grid(name, scale, found), *_partitions(found)]
    return "\n".join(text) + "\n"


Found = dict[tuple[str, str], dict[str, Any]]  # row and method to the means of what was measured


def by_cell(lines: Sequence[dict[str, Any]]) -> Found:
    """What was measured by row and method of one table at one scale; of several seeds, the mean."""
    seeds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in lines:
        seeds.setdefault((line["cell"]["row"], line["cell"]["method"]), []).append(line["metrics"])
    return {cell: {**_mean(measured), "n_seeds": len(measured)} for cell, measured in seeds.items()}


def _mean(measured: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean of each number; of what is no number, the first."""
    told = dict(measured[0])
    for key, value in told.items():
        every = [one.get(key) for one in measured]
        if isinstance(value, dict):
            told[key] = _mean([one for one in every if isinstance(one, dict)])
        elif all(isinstance(one, int | float) and not isinstance(one, bool) for one in every):
            told[key] = sum(every) / len(every)  # type: ignore[arg-type]
    return told


def _grid(name: str, scale: str, found: Found) -> list[str]:
    several = max((int(told["n_seeds"]) for told in found.values()), default=1) > 1
    changes = "paper, change of ASR / CA" if TABLES[name].differences else "paper ASR / CA"
    columns = ["attack", "method", changes, "ours ASR / CA", "difference"]
    columns += ["CA-", "RA", "after five", "top 1% precision", "core-seconds", *(["seeds"] if several else [])]
    rows = [f"| {' | '.join(columns)} |", f"| --- | --- |{' ---: |' * (len(columns) - 2)}"]
    for row in TABLES[name].rows:
        weak = _is_weak(found.get((row.label, "none")), row)
        for method in TABLES[name].methods:
            told = found.get((row.label, method.name))
            printed = row.paper.get(method.name, (None, None))
            paper = f"{_percent(printed[0])} / {_percent(printed[1])}" if printed != (None, None) else "-"
            start = f"| {row.label} | {method.name} | {paper} |"
            if told is None:
                cost = core_hours(Cell(name, row.label, method.name, scale, 0))
                rows.append(f"{start} not run: {cost:.2f} core-hours |{' |' * (len(columns) - 4)}")
                continue
            ours, *others = _told(told)
            missed = "-" if TABLES[name].differences else _difference(told, printed)
            others += [str(told["n_seeds"])] if several else []
            rows.append(f"{start} {'attack too weak: ' if weak else ''}{ours} | {missed} | {' | '.join(others)} |")
    return rows


def _difference(told: dict[str, Any], printed: tuple[float | None, float | None]) -> str:
    """Ours minus the paper's, in points."""
    ours = told.get("attack_success_rate"), told.get("clean_accuracy")
    parts = ["-" if a is None or b is None else f"{100 * a - b:+.1f}" for a, b in zip(ours, printed, strict=True)]
    return "-" if parts == ["-", "-"] else " / ".join(parts)


PARTITION = ("clean_precision", "top_precision", "recall", "true_label_precision")


def _partitions(found: Found) -> list[str]:
    """What E2ABL isolated ten epochs after its warm-up: its Table 2."""
    rows = [
        f"| {row} | {method} | " + " | ".join(_share(told["midway"][key]) for key in PARTITION) + " |"
        for (row, method), told in found.items()
        if "midway" in told
    ]
    head = "| attack | method | clean of the kept | poisoned of the top 1% | isolated of the poisoned | true labels |"
    return (
        ["", "Ten epochs after the warm-up:", "", head, "| --- | --- | ---: | ---: | ---: | ---: |", *rows]
        if rows
        else []
    )


def _is_weak(undefended: dict[str, Any] | None, row: Row) -> bool:
    """Whether the attack fails without a defense: below 90%, or 10 points below the paper where that has less."""
    if undefended is None or not row.attack:
        return False
    printed = row.paper.get("none", (None, None))[0]
    least = WEAK if printed is None or printed >= WEAK else printed - BEHIND
    return bool(100 * undefended.get("attack_success_rate", 0.0) < least)


def _told(m: dict[str, Any]) -> list[str]:
    both = f"{_share(m.get('attack_success_rate'))} / {_share(m.get('clean_accuracy'))}"
    top = _share(m.get("precision_of_top"))
    others = (
        _share(m.get(key)) for key in ("clean_accuracy_nontarget", "robust_accuracy", "attack_success_after_five")
    )
    return [both, *others, top, f"{m['seconds']:.0f}"]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def brief(m: dict[str, Any]) -> str:
    """A cell in half a line."""
    told = _told(m)
    return f"ASR / CA {told[0]}, top {told[4]}, {told[5]} s"


BEGIN, END = "<!-- measured -->", "<!-- end of measured -->"
MOST_ROWS = 12  # of a card


def with_measured(card: str, key: str, lines: Sequence[dict[str, Any]]) -> str:
    """The text of a method's card with what was measured of it, beside the paper, between two marks at its end.

    Args:
        card: The text.
        key: The method.
        lines: All measured cells.
    """
    text = card.split(BEGIN)[0].rstrip() + "\n"
    rows, tables = _rows_of(key, lines), _tables_of(key)
    if not tables:
        return text
    if not rows:
        first = f"[{tables[0]}](../results/{tables[0]}.md)"
        return f"{text}\n{BEGIN}\n\nNot measured here yet: {first} has the paper's numbers, and the cost.\n\n{END}\n"
    head = "| table, attack | paper | ours | no defense, ours |\n| --- | ---: | ---: | ---: |\n"
    about = "Attack success / clean accuracy in percent; 10,000 training images unless it says otherwise."
    more = "" if len(rows) <= MOST_ROWS else f"\n\nThe [tables](../results/index.md) have {len(rows) - MOST_ROWS} more."
    table = head + "\n".join(rows[:MOST_ROWS]) + more
    return f"{text}\n{BEGIN}\n\nMeasured by `benchmarks/papers.py`. {about}\n\n{table}\n\n{END}\n"


def _tables_of(key: str) -> list[str]:
    """Tables that have a column of the method."""
    return [name for name, table in TABLES.items() if any(_is_plain(m, key) for m in table.methods)]


def _is_plain(method: Method, key: str) -> bool:
    """Whether a column tells of this method; the controls among those without a defense tell nothing of it."""
    return method.key == key and (key != "none" or method == Method("none"))


def _rows_of(key: str, lines: Sequence[dict[str, Any]]) -> list[str]:
    rows = []
    for name, table in TABLES.items():
        for scale in SCALES:
            of_table = [line for line in lines if (line["cell"]["table"], line["cell"]["scale"]) == (name, scale)]
            found = by_cell(of_table)
            for row in table.rows:
                for method in table.methods:
                    told = found.get((row.label, method.name))
                    if told is not None and _is_plain(method, key):
                        before = found.get((row.label, "none"))
                        rows.append(_row_of_card(name, scale, row, method, told, before))
    return rows


def _row_of_card(
    name: str, scale: str, row: Row, method: Method, told: dict[str, Any], undefended: dict[str, Any] | None
) -> str:
    asr, ca = row.paper.get(method.name, (None, None))
    known = (asr, ca) != (None, None) and not TABLES[name].differences
    ours = _told(told)[0]
    if ours == "- / -":
        ours = f"precision of the top 1%: {_share(told.get('precision_of_top'))}"
    label = f"[{name}](../results/{name}.md), {row.label}"
    label += f", {method.name}" if method.name != method.key else ""
    label += ", all images" if scale == "paper" else ""
    before = "-" if undefended is None else _told(undefended)[0]
    return f"| {label} | {f'{_percent(asr)} / {_percent(ca)}' if known else '-'} | {ours} | {before} |"
