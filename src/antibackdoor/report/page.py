"""Gathers the files of a run folder and renders the page."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from antibackdoor.errors import RunError
from antibackdoor.protocols import KEPT
from antibackdoor.report.attention import AttentionGrid, attention_grid, load_attention
from antibackdoor.report.facts import method_facts
from antibackdoor.report.figures import ClassBar, Figure, class_bars, loss_figure, score_figure, training_figures
from antibackdoor.report.gallery import Card, Gallery, cards, difference_picture, load_gallery
from antibackdoor.report.html import write_page
from antibackdoor.report.measured import MeasuredRow, measured_rows
from antibackdoor.report.next_steps import Step, next_steps
from antibackdoor.report.purified import (
    ClassTable,
    class_tables,
    is_purified,
    purified_numbers,
    purified_verdict,
)
from antibackdoor.report.suspects import write_suspects
from antibackdoor.report.svg import sparkline
from antibackdoor.report.words import (
    KeyNumber,
    Verdict,
    comparison_headline,
    key_numbers,
    printable,
    suspected_labels,
    verdict,
)
from antibackdoor.runs.artifacts import (
    HISTORY,
    METRICS,
    iterate_history,
    read_metrics,
)
from antibackdoor.runs.model_file import SPEC, load_model_spec
from antibackdoor.runs.run_folder import read_config, read_log
from antibackdoor.runs.samples_table import SAMPLES, read_sample_columns, sample_column_names
from antibackdoor.training.history import Losses

REPORT = "report.html"

SAMPLES_FOOTER = (
    "The verdict for every sample is in samples.parquet, the numbers are in metrics.json, both in the run folder."
)
MODEL_FOOTER = "The purified model is in model.safetensors, the numbers are in metrics.json, both in the run folder."

_MOMENTS = 60  # points of the loss curves
_SETTINGS = 300  # lines of the settings table


@dataclass(frozen=True)
class Comparison:
    """Several runs side by side.

    Attributes:
        headline: What changed, in words; may be empty.
        titles: Name of each run.
        rows: Name of a number and its value in each run.
    """

    headline: str
    titles: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Page:
    """All that the template shows, in the order of the page."""

    title: str
    subtitle: str
    verdict: Verdict
    numbers: tuple[KeyNumber, ...]
    evidence: tuple[Figure, ...]
    classes: tuple[ClassBar, ...]
    cards: tuple[Card, ...]
    common: str  # data URI or markup of what isolated samples have in common; may be empty
    measured: tuple[MeasuredRow, ...]  # every measurement of the model, with its data
    class_tables: tuple[ClassTable, ...]  # accuracy and attack success of each class, where they were measured
    attention: AttentionGrid | None  # where the networks of a purification look
    facts: tuple[tuple[str, str], ...]  # what the method tells of itself
    steps: tuple[Step, ...]  # what to do next
    n_suspects: int  # rows of suspects.csv
    made: tuple[tuple[str, str], ...]  # how the run went: what was chosen for it, and when it ended
    footer: str
    training: tuple[Figure, ...]
    settings: tuple[tuple[str, str], ...]
    method: str  # what the method does and where it comes from
    command: str
    versions: tuple[tuple[str, str], ...]


def write_report(run: Path) -> Path:
    """Write `report.html` into a run folder from its other files, and `suspects.csv` if any sample is isolated.

    Sections without a file are left out.

    Returns:
        The path of the page.

    Raises:
        RunError: The folder holds no run, a file is damaged, or the page cannot be written.
        ModelError: `model.json` is damaged.
    """
    out = run / REPORT
    if (run / SAMPLES).exists() and (run / METRICS).exists():
        write_suspects(run)
    _write(out, _page(run), None)
    return out


def write_comparison(out_html: Path, runs: Sequence[tuple[str, Path]]) -> None:
    """Write one page that compares the metrics of `(title, folder)` runs and reports the last one in full.

    Raises:
        RunError: There is no run, a folder holds none, a file is damaged, or the page cannot be written.
        ModelError: `model.json` is damaged.
    """
    if not runs:
        raise RunError("there is no run to compare; give at least one")
    metrics = [(title, _metrics(run) or {}) for title, run in runs]
    # One run may name one target label and another several; they belong in one line.
    columns = [
        {n.name.replace("Target labels", "Target label"): n.value for n in key_numbers(facts)} for _, facts in metrics
    ]
    # The last run, which is the one reported in full, decides the order.
    names = dict.fromkeys(name for column in reversed(columns) for name in column)
    comparison = Comparison(
        comparison_headline(metrics),
        tuple(printable(title) for title, _ in runs),
        tuple((name, tuple(column.get(name, "–") for column in columns)) for name in names),
    )
    _write(out_html, _page(runs[-1][1]), comparison)


def _write(out: Path, page: Page, comparison: Comparison | None) -> None:
    write_page(out, "template.html.j2", page=page, comparison=comparison)


def _page(run: Path) -> Page:
    config = read_config(run)
    metrics = _metrics(run)
    evidence, classes = _evidence(run, metrics or {})
    gallery = load_gallery(run)
    purified = metrics if metrics is not None and is_purified(metrics) else None
    return Page(
        title=printable(run.resolve().name),
        subtitle=_subtitle(run),
        verdict=verdict(metrics) if purified is None else purified_verdict(purified),
        numbers=tuple(key_numbers(metrics or {}) if purified is None else purified_numbers(purified)),
        evidence=evidence,
        classes=classes,
        cards=() if gallery is None or not (run / SAMPLES).exists() else tuple(cards(run, gallery)),
        common=_common(gallery),
        measured=tuple(measured_rows(run)),
        class_tables=tuple(class_tables(run)),
        attention=_attention(run),
        facts=tuple(method_facts(metrics or {})),
        steps=tuple(next_steps(metrics, run.resolve().name)),
        n_suspects=_n_suspects(metrics),
        made=tuple(_made(run, metrics)),
        footer=SAMPLES_FOOTER if purified is None else MODEL_FOOTER,
        training=tuple(training_figures(read_log(run))),
        settings=tuple(_flat(config["settings"])[:_SETTINGS]),
        method=printable((metrics or {}).get("method_summary", ""), 1500),
        command=printable(shlex.join(str(word) for word in config["command"]), 2000),
        versions=tuple((printable(name), printable(number)) for name, number in config["versions"].items()),
    )


def _n_suspects(metrics: Mapping[str, Any] | None) -> int:
    n = (metrics or {}).get("n_isolated")
    return n if isinstance(n, int) and not isinstance(n, bool) else 0


def _made(run: Path, metrics: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """What the settings do not say: the passes that were chosen, the time that it took, when it ended."""
    if metrics is None:
        return
    for key, name in (("epochs", "passes over the data"), ("backbone", "network"), ("seed", "seed")):
        if metrics.get(key) is not None:
            yield name, printable(metrics[key])
    ended = datetime.fromtimestamp((run / METRICS).stat().st_mtime, UTC)
    yield "last measured", f"{ended:%Y-%m-%d %H:%M} UTC"


def _attention(run: Path) -> AttentionGrid | None:
    attention = load_attention(run)
    return None if attention is None else attention_grid(attention, load_model_spec(run).class_names)


def _common(gallery: Gallery | None) -> str:
    """What the isolated samples have and their nearest others have not, drawn."""
    if gallery is None or gallery.difference is None:
        return ""
    is_image = gallery.difference.ndim == 3
    return difference_picture(gallery.difference) if is_image else sparkline(gallery.difference)


def _metrics(run: Path) -> dict[str, Any] | None:
    return read_metrics(run) if (run / METRICS).exists() else None


def _evidence(run: Path, metrics: Mapping[str, Any]) -> tuple[tuple[Figure, ...], tuple[ClassBar, ...]]:
    """What the table and the history show; nothing before the run has written them."""
    if not (run / SAMPLES).exists():
        return (), ()
    score = "margin" if "margin" in sample_column_names(run) else "suspicion"
    columns, class_names = read_sample_columns(run, ["given_label", score, "status"])
    isolated = columns["status"] != KEPT
    backdoor = suspected_labels(metrics)
    figures = []
    if (run / HISTORY).exists():
        suspected = np.isin(columns["given_label"], [k for k, name in enumerate(class_names) if str(name) in backdoor])
        figures.append(loss_figure(_fitting(run, len(isolated)), isolated, suspected))
    figures.append(score_figure(columns[score], isolated, score))
    bars = class_bars(columns["given_label"], isolated, class_names, backdoor)
    return tuple(figure for figure in figures if figure is not None), tuple(bars)


def _fitting(run: Path, n_samples: int) -> Iterator[tuple[int, Losses]]:
    """The moments of the history, which must be about the samples of the table."""
    for step, losses in iterate_history(run, _MOMENTS):
        if len(losses) != n_samples:
            raise RunError(f"{run / HISTORY} has the losses of {len(losses)} samples, but {SAMPLES} has {n_samples}")
        yield step, losses


def _subtitle(run: Path) -> str:
    if not (run / SPEC).exists():
        return ""
    spec = load_model_spec(run)
    shape = " × ".join(str(size) for size in spec.input_shape)
    what = "images" if spec.kind == "image" else "series"
    parts = (
        printable(spec.method),
        printable(spec.backbone),
        f"{shape} {what}",
        f"{len(spec.class_names)} classes",
    )
    return " · ".join(parts)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as `outer.inner` → value."""
    lines: list[tuple[str, str]] = []
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            lines += _flat(value, f"{name}.")
        else:
            lines.append((printable(name, 80), printable("–" if value is None else value, 300)))
    return lines
