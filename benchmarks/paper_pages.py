"""Pages of the papers' tables: paper, ours, or "not run" and what it would cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paper_cells import SCALES, TABLES, Cell, core_hours
from paper_tables import Row

WEAK = 90.0  # percent of attack success without a defense below which a row does not count


def page(name: str, lines: Sequence[dict[str, Any]]) -> str:
    """A table as a page: paper, ours, difference; rows that were not run with their cost."""
    table = TABLES[name]
    text = [
        f"# {table.title}",
        "",
        f"Evidence grade {table.grade}. {table.about} Attack success (ASR), clean accuracy (CA), accuracy without "
        "the target class (CA-) and robust accuracy (RA: triggered samples that get their true class) in percent. "
        f"Recipe `{table.preset}`, {table.backbone}. Made by `python benchmarks/papers.py --table {name}`.",
    ]
    for scale in SCALES:
        found = {
            (line["cell"]["row"], line["cell"]["method"]): line for line in lines if line["cell"]["scale"] == scale
        }
        if found or scale == "small":
            text += ["", f"## Scale: {scale}", "", *_grid(name, scale, found), *_partitions(found)]
    return "\n".join(text) + "\n"


def _grid(name: str, scale: str, found: dict[tuple[str, str], dict[str, Any]]) -> list[str]:
    head = (
        "| attack | method | paper ASR / CA | ours ASR / CA | CA- | RA | after five | top 1% precision | core-seconds |"
    )
    if TABLES[name].differences:
        head = head.replace("paper ASR / CA", "paper, change of ASR / CA")
    rows = [head, "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for row in TABLES[name].rows:
        weak = _is_weak(found.get((row.label, "none")), row)
        for method in TABLES[name].methods:
            line = found.get((row.label, method.name))
            asr, ca = row.paper.get(method.name, (None, None))
            paper = f"{_percent(asr)} / {_percent(ca)}" if (asr, ca) != (None, None) else "-"
            if line is None:
                cost = core_hours(Cell(name, row.label, method.name, scale, 0))
                rows.append(f"| {row.label} | {method.name} | {paper} | not run: {cost:.2f} core-hours | | | | | |")
                continue
            told = _told(line["metrics"])
            ours = "attack too weak: " + told[0] if weak else told[0]
            rows.append(f"| {row.label} | {method.name} | {paper} | {ours} | {' | '.join(told[1:])} |")
    return rows


PARTITION = ("clean_precision", "top_precision", "recall", "true_label_precision")


def _partitions(found: dict[tuple[str, str], dict[str, Any]]) -> list[str]:
    """What E2ABL isolated ten epochs after its warm-up: its Table 2."""
    rows = [
        f"| {row} | {method} | " + " | ".join(_share(line["metrics"]["midway"][key]) for key in PARTITION) + " |"
        for (row, method), line in found.items()
        if "midway" in line["metrics"]
    ]
    head = "| attack | method | clean of the kept | poisoned of the top 1% | isolated of the poisoned | true labels |"
    return (
        ["", "Ten epochs after the warm-up:", "", head, "| --- | --- | ---: | ---: | ---: | ---: |", *rows]
        if rows
        else []
    )


def _is_weak(line: dict[str, Any] | None, row: Row) -> bool:
    if line is None or not row.attack:
        return False
    return bool(100 * line["metrics"].get("attack_success_rate", 0.0) < WEAK)


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


def with_measured(card: str, key: str, lines: Sequence[dict[str, Any]]) -> str:
    """The text of a method's card with what was measured of it, beside the paper, between two marks at its end.

    Args:
        card: The text.
        key: The method.
        lines: All measured cells.
    """
    text = card.split(BEGIN)[0].rstrip() + "\n"
    rows = _rows_of(key, lines)
    if not rows:
        return text
    head = "| table, attack | paper | ours | no defense, ours |\n| --- | ---: | ---: | ---: |"
    about = "Attack success / clean accuracy in percent; one seed, 10,000 training images unless it says otherwise."
    return (
        f"{text}\n{BEGIN}\n\nMeasured by `benchmarks/papers.py`. {about}\n\n{head}\n" + "\n".join(rows) + f"\n\n{END}\n"
    )


def _rows_of(key: str, lines: Sequence[dict[str, Any]]) -> list[str]:
    undefended = {
        (line["cell"]["table"], line["cell"]["row"], line["cell"]["scale"]): _told(line["metrics"])[0]
        for line in lines
        if line["cell"]["method"] == "none"
    }
    rows = []
    for line in lines:
        cell = line["cell"]
        table = TABLES.get(cell["table"])
        method = next((m for m in table.methods if m.name == cell["method"]), None) if table else None
        row = next((r for r in table.rows if r.label == cell["row"]), None) if table else None
        if table is None or method is None or row is None or method.key != key:
            continue
        asr, ca = row.paper.get(method.name, (None, None))
        known = (asr, ca) != (None, None) and not table.differences
        told, ours = _told(line["metrics"]), _told(line["metrics"])[0]
        if ours == "- / -":
            ours = f"precision of the top 1%: {told[4]}"
        label = f"[{cell['table']}](../results/{cell['table']}.md), {cell['row']}"
        label += f", {method.name}" if method.name != key else ""
        label += ", all images" if cell["scale"] == "paper" else ""
        before = undefended.get((cell["table"], cell["row"], cell["scale"]), "-")
        rows.append(f"| {label} | {f'{_percent(asr)} / {_percent(ca)}' if known else '-'} | {ours} | {before} |")
    return rows
