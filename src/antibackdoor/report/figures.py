"""The report's figures. They are computed from whole columns and hold a bounded number of points."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from antibackdoor.data.samples import BoolArray, FloatArray, IntArray
from antibackdoor.report.svg import (
    Area,
    Hover,
    Line,
    Mark,
    Rule,
    Values,
    chart,
    count_axis,
    count_position,
    linear_axis,
    step_axis,
    step_position,
)
from antibackdoor.report.words import count, percent, printable, quoted
from antibackdoor.training.history import Losses

_BINS = 60
_CLASSES = 30  # bars of the class figure
_POINTS = 400  # points of a training curve


@dataclass(frozen=True)
class Figure:
    """A chart with its words.

    Attributes:
        title: Heading.
        caption: What there is to see.
        legend: `(style, name)` of each curve.
        svg: The chart.
    """

    title: str
    caption: str
    legend: tuple[tuple[str, str], ...]
    svg: Markup


@dataclass(frozen=True)
class ClassBar:
    """The isolated samples of one class.

    Attributes:
        name: Class name, or "… other classes".
        share: Fraction of its samples that are isolated.
        numbers: `3 of 5,000 (0.1%)`.
        marked: Whether the run names it as a backdoor label.
    """

    name: str
    share: float
    numbers: str
    marked: bool


def loss_figure(
    moments: Iterable[tuple[int, Losses]], isolated: BoolArray, suspected: BoolArray | None = None
) -> Figure | None:
    """Median and 10-90% band of the loss of isolated samples, of those beside them, and of all others.

    Args:
        moments: `(step, losses)`, the losses `(N,)`.
        isolated: `(N,)` bool.
        suspected: `(N,)` bool, samples whose given label is suspected; those of them that are not isolated get a curve
            of their own.

    Returns:
        The figure; None without a moment.
    """
    beside = np.zeros_like(isolated) if suspected is None or not isolated.any() else suspected & ~isolated
    groups = {"isolated": isolated, "beside": beside, "other": ~isolated & ~beside}
    groups = {name: mask for name, mask in groups.items() if name != "beside" or mask.any()}
    steps: list[int] = []
    quantiles: dict[str, list[Values]] = {name: [] for name in groups}
    for step, losses in moments:
        steps.append(step)
        for name, mask in groups.items():
            quantiles[name].append(_quantiles(losses[mask]))
    if not steps:
        return None
    where = np.array(steps, dtype=np.float64)
    across = step_position(where, where)
    tables = {name: np.stack(rows) for name, rows in quantiles.items()}
    highest = float(np.nanmax([1e-3, *(table[np.isfinite(table)].max(initial=0) for table in tables.values())]))
    marks: list[Mark] = [Area(across, t[:, 0], t[:, 2], s) for s, t in tables.items() if np.isfinite(t).all()]
    marks += [Line(across, table[:, 1], style) for style, table in tables.items()]
    edges = _edges(across)
    for i, step in enumerate(steps):
        medians = {name.replace("beside", "same label"): table[i, 1] for name, table in tables.items()}
        told = ", ".join(f"{name} {median:.3g}" for name, median in medians.items() if np.isfinite(median))
        marks.append(Hover(edges[i], edges[i + 1], f"step {step:,}: median loss {told}"))
    caption = (
        "Lines are medians; bands hold 80% of the samples. A shortcut is learned early, or it remains at the end of "
        "the search, when the classes are unlearned."
    )
    change = _change_point(tables["isolated"], tables.get("beside", tables["other"]))
    if change is not None:
        marks.append(Rule(float(across[change]), "apart"))
        others = "the others of their label" if "beside" in tables else "the others"
        caption += (
            f" From step {steps[change]:,} on, half of the isolated samples have a smaller loss than nine tenths of "
            f"{others}."
        )
    axes = (
        step_axis("Optimizer steps (log scale)", where),
        linear_axis("Loss (cross-entropy, nats)", 0, highest * 1.03),
    )
    return Figure(
        "How fast the samples are learned",
        caption,
        _legend(isolated, beside),
        chart("Loss of isolated and other samples over optimizer steps", *axes, marks),
    )


def score_figure(score: FloatArray, isolated: BoolArray, name: str) -> Figure | None:
    """Histogram of a score, by its column's name, with a logarithmic count; None if no value is finite."""
    finite = np.isfinite(score)
    if not finite.any():
        return None
    score, isolated = score[finite], isolated[finite]
    title = "Margin: log-odds of the given label" if name == "margin" else name.capitalize()
    x = linear_axis(title, float(score.min()), float(score.max()))
    edges = np.linspace(x.low, x.high, _BINS + 1)
    counts = {
        "other": np.histogram(score[~isolated], edges)[0],
        "isolated": np.histogram(score[isolated], edges)[0],
    }
    y = count_axis("Samples (log scale)", max(int(values.max()) for values in counts.values()))
    marks: list[Mark] = []
    for style, values in counts.items():
        across, heights = np.repeat(edges, 2)[1:-1], np.repeat(count_position(values), 2)
        marks.append(Area(across, np.full_like(heights, y.low), heights, style))
        marks.append(Line(across, np.where(_drawn(values), heights, np.nan), style))
    for left, right, other, held in zip(edges[:-1], edges[1:], counts["other"], counts["isolated"], strict=True):
        text = f"{name} {left:.4g} to {right:.4g}: {count(held)} isolated, {count(other)} other"
        marks.append(Hover(float(left), float(right), text))
    return Figure(
        "How suspicious the samples are",
        "Two separate peaks suggest a backdoor. The tail of one peak does so only if it has other labels' content.",
        _legend(isolated),
        chart(f"Histogram of the {name} of all samples", x, y, marks),
    )


def class_bars(given: IntArray, isolated: BoolArray, names: Sequence[str], backdoor: Sequence[str]) -> list[ClassBar]:
    """The share of isolated samples by given label, highest first; beyond 30 classes the rest is one bar.

    Empty if nothing is isolated: a column of zeros says less than the verdict does.
    """
    if not isolated.any():
        return []
    valid = (given >= 0) & (given < len(names))
    totals = np.bincount(given[valid], minlength=len(names))
    held = np.bincount(given[valid & isolated], minlength=len(names))
    shares = held / np.maximum(totals, 1)
    order = np.lexsort((-held, -shares))
    order = order[totals[order] > 0]
    marked = set(backdoor)
    bars = [
        ClassBar(printable(names[k], 80), float(shares[k]), _share(held[k], totals[k]), names[k] in marked)
        for k in order[:_CLASSES]
    ]
    rest = order[_CLASSES:]
    if len(rest):
        some, total = int(held[rest].sum()), int(totals[rest].sum())
        bars.append(ClassBar(f"{count(len(rest))} other classes", some / total, _share(some, total), False))
    return bars


def training_figures(entries: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Curves of every field of the log that ends in `loss` or `accuracy`, over all phases in their order."""
    entries = [entry for entry in entries if any(_wanted(key, value) for key, value in entry.items())]
    stride = -(-len(entries) // _POINTS) or 1
    epochs = np.arange(1, len(entries) + 1)[::stride]
    entries = entries[::stride]
    figures = []
    for ending, label in (("loss", "Loss (nats)"), ("accuracy", "Accuracy")):
        fields = sorted({k for entry in entries for k, v in entry.items() if k.endswith(ending) and _wanted(k, v)})[:4]
        if not fields:
            continue
        curves = {field: np.array([_value(entry.get(field)) for entry in entries]) for field in fields}
        figures.append(_training_figure(label, epochs, curves, _phases(entries, epochs)))
    return figures


def _training_figure(
    label: str, epochs: IntArray, curves: Mapping[str, Values], phases: Sequence[tuple[int, str]]
) -> Figure:
    is_share = label == "Accuracy"
    values = np.concatenate(list(curves.values()))
    finite = values[np.isfinite(values)]
    low, high = (0.0, 1.0) if is_share else (min(0.0, float(finite.min())), float(finite.max()) * 1.03)
    across = epochs.astype(np.float64)
    marks: list[Mark] = []
    if 1 < len(phases) <= 8:
        marks += [Rule(start - 0.5, str(number)) for number, (start, _) in enumerate(phases, start=1)]
    marks += [Line(across, curve, f"s{i}") for i, curve in enumerate(curves.values())]
    edges = _edges(across)
    for i, epoch in enumerate(epochs):
        told = ", ".join(f"{_spoken(field)} {curve[i]:.4g}" for field, curve in curves.items() if np.isfinite(curve[i]))
        marks.append(Hover(edges[i], edges[i + 1], f"{epoch}: {told}"))
    x = linear_axis("Epochs (warm-up: snapshots), all phases", 0.5, float(epochs[-1]) + 0.5)
    return Figure(
        f"{'Accuracy' if is_share else 'Loss'} in training",
        _phase_caption(phases),
        tuple((f"s{i}", _spoken(field)) for i, field in enumerate(curves)),
        chart(f"{label} over epochs", x, linear_axis(label, low, high, as_percent=is_share), marks),
    )


def _phases(entries: Sequence[Mapping[str, Any]], epochs: IntArray) -> list[tuple[int, str]]:
    """`(first epoch, name)` of each phase."""
    phases: list[tuple[int, str]] = []
    for entry, epoch in zip(entries, epochs, strict=True):
        name = str(entry.get("phase", ""))
        if not phases or phases[-1][1] != name:
            phases.append((int(epoch), name))
    return phases


def _phase_caption(phases: Sequence[tuple[int, str]]) -> str:
    if len(phases) < 2 or len(phases) > 8:
        return ""
    told = (f"{i} {quoted(name, 30)} from epoch {start}" for i, (start, name) in enumerate(phases, start=1))
    return f"Phases: {', '.join(told)}."


def _spoken(field: str) -> str:
    return printable(field.replace("_", " "), 30)


def _wanted(key: str, value: object) -> bool:
    return key.endswith(("loss", "accuracy")) and np.isfinite(_value(value))


def _value(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else float("nan")


def _quantiles(losses: Losses) -> Values:
    """10%, 50% and 90% of the finite losses, `(3,)`; NaN if there are none."""
    losses = losses[np.isfinite(losses)]
    if not losses.size:
        return np.full(3, np.nan)
    return np.quantile(losses, (0.1, 0.5, 0.9)).astype(np.float64)


def _change_point(isolated: Values, beside: Values) -> int | None:
    """The moment from which the median (of `(T, 3)`) of one group stays below the lowest tenth of the other, if any."""
    is_apart = isolated[:, 1] < beside[:, 0]
    together = np.flatnonzero(~is_apart)
    first = int(together[-1]) + 1 if together.size else 0
    return first if first < len(is_apart) else None


def _edges(centers: Values) -> list[float]:
    """Borders halfway between neighbors, `n + 1` of them."""
    middles = (centers[:-1] + centers[1:]) / 2
    return [float(centers[0]), *middles.tolist(), float(centers[-1])]


def _drawn(counts: IntArray) -> BoolArray:
    """Which upper corners of the bins the outline visits, `(2 * bins,)`: it does not run along the zero."""
    some = np.pad(counts > 0, 1)
    left, middle, right = some[:-2], some[1:-1], some[2:]
    return np.stack([middle | left, middle | right], axis=1).ravel()


def _share(some: float, total: float) -> str:
    return f"{count(some)} of {count(total)} ({percent(some / total)})"


def _legend(isolated: BoolArray, beside: BoolArray | None = None) -> tuple[tuple[str, str], ...]:
    held, near = int(isolated.sum()), 0 if beside is None else int(beside.sum())
    if not held:
        return (("other", f"all samples ({count(len(isolated))})"),)
    entries = [("isolated", f"isolated ({count(held)})")]
    if near:
        entries.append(("beside", f"others of the suspected labels ({count(near)})"))
    return (*entries, ("other", f"others ({count(len(isolated) - held - near)})"))
