"""Small charts as inline SVG that follow the page's colors. Every text is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import ArrayLike, NDArray

WIDTH, HEIGHT = 520, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 18, 40, 58  # room for the ticks and labels, also at a phone's larger type

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Axis:
    """A direction of the chart.

    Attributes:
        label: What is shown, with its unit.
        low: Where the axis starts, in its own coordinate (a logarithm, for example).
        high: Where it ends; above `low`.
        ticks: `(coordinate, text)` of each tick.
    """

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True, eq=False)
class Line:
    """A curve through `(n,)` points in axis coordinates; a gap where a value is not finite."""

    x: Values
    y: Values
    style: str


@dataclass(frozen=True, eq=False)
class Area:
    """What lies between two curves, `(n,)` each, in axis coordinates."""

    x: Values
    low: Values
    high: Values
    style: str


@dataclass(frozen=True)
class Rule:
    """A dashed vertical line with a short text at its upper end."""

    x: float
    text: str


@dataclass(frozen=True)
class Hover:
    """A column of the chart from `left` to `right` that tells its numbers to a pointer."""

    left: float
    right: float
    text: str


Mark = Line | Area | Rule | Hover


def linear_axis(label: str, low: float, high: float, as_percent: bool = False) -> Axis:
    """An axis with about five round ticks; a range without width is widened."""
    scale = max(abs(low), abs(high))
    if not high - low > max(1e-9 * scale, 1e-30):
        low, high = low - max(0.5, scale / 10), high + max(0.5, scale / 10)
    step = _round_step((high - low) / 5)
    multiples = np.arange(np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9) + 1)
    ticks = multiples * step + 0.0  # turns a minus zero into zero
    decimals = max(0, -int(np.floor(np.log10(step * (100 if as_percent else 1)) + 1e-9)))
    if as_percent:
        texts = [f"{100 * tick:.{decimals}f}%" for tick in ticks]
    elif decimals > 4 or scale >= 1e5:
        texts = [f"{tick:.3g}" for tick in ticks]  # too wide otherwise
    else:
        texts = [f"{tick:,.{decimals}f}" for tick in ticks]
    return Axis(label, low, high, tuple(zip(ticks.tolist(), texts, strict=True)))


def count_axis(label: str, highest: float) -> Axis:
    """A logarithmic axis for counts; use `count_position` for the values."""
    top = max(1, int(np.ceil(np.log10(max(highest, 2)))))
    stride = 1 if top <= 6 else 2
    ticks = tuple((float(power), _short(10**power)) for power in range(0, top + 1, stride))
    return Axis(label, count_position(0).item(), top + 0.05, ticks)


def count_position(counts: ArrayLike) -> Values:
    """Counts on the axis of `count_axis`; none at all lies visibly below one."""
    return np.log10(np.maximum(np.asarray(counts, dtype=np.float64), 0.5))


def step_axis(label: str, steps: Values) -> Axis:
    """An axis for optimizer steps: linear up to the first positive one, logarithmic beyond."""
    first, last = _first_step(steps), float(steps.max(initial=1))
    high = max(step_position(np.array([last]), steps).item(), 1.0)
    ticks, previous = [(0.0, "0")], 0.0
    for power in range(12):
        for factor in (1, 2, 5):
            value = factor * 10**power
            position = step_position(np.array([value]), steps).item()
            if first <= value <= last and position - previous > high / 8:
                ticks.append((position, _short(value)))
                previous = position
    return Axis(label, 0.0, high, tuple(ticks))


def step_position(chosen: Values, steps: Values) -> Values:
    """Optimizer steps on the axis of `step_axis(…, steps)`."""
    return np.arcsinh(chosen / _first_step(steps))


def chart(name: str, x: Axis, y: Axis, marks: Sequence[Mark]) -> Markup:
    """One chart; marks are drawn in their order. `name` is what a screen reader says."""
    parts = [
        Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, name),
        _axes(x, y),
    ]
    parts += [_mark(mark, x, y) for mark in marks]
    return Markup("").join([*parts, Markup("</svg>")])


def sparkline(series: NDArray[np.float32]) -> Markup:
    """A `(C, T)` series as one small picture without axes: each channel a curve on the common scale."""
    finite = series[np.isfinite(series)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    span = (high - low) or 1.0
    across = np.linspace(0, 160, series.shape[1])
    curves = [
        Markup('<path class="line s{}" d="{}"/>').format(channel % 4, _path(across, 76 - 72 * (values - low) / span))
        for channel, values in enumerate(series.astype(np.float64))
    ]
    return Markup(
        '<svg class="spark" viewBox="0 0 160 80" preserveAspectRatio="none" aria-hidden="true">{}</svg>'
    ).format(Markup("").join(curves))


def _axes(x: Axis, y: Axis) -> Markup:
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    parts = []
    for value, text in y.ticks:
        at = _down(value, y)
        parts.append(Markup('<path class="grid" d="M{} {}H{}"/>').format(_LEFT, _n(at), right))
        parts.append(Markup('<text class="end" x="{}" y="{}">{}</text>').format(_LEFT - 8, _n(at + 4.5), text))
    for value, text in x.ticks:
        at = _across(value, x)
        parts.append(Markup('<path class="tick" d="M{} {}v5"/>').format(_n(at), bottom))
        parts.append(Markup('<text class="middle" x="{}" y="{}">{}</text>').format(_n(at), bottom + 21, text))
    parts.append(Markup('<path class="tick" d="M{} {}H{}"/>').format(_LEFT, bottom, right))
    parts.append(Markup('<text class="label" x="4" y="18">{}</text>').format(y.label))
    middle = (_LEFT + right) / 2
    parts.append(Markup('<text class="label middle" x="{}" y="{}">{}</text>').format(middle, HEIGHT - 10, x.label))
    return Markup("").join(parts)


def _mark(mark: Mark, x: Axis, y: Axis) -> Markup:
    match mark:
        case Line():
            points = _across(mark.x, x), _down(mark.y, y)
            return Markup('<path class="line {}" d="{}"/>').format(mark.style, _path(*points))
        case Area():
            over = np.concatenate([mark.x, mark.x[::-1]])
            edge = np.concatenate([mark.low, mark.high[::-1]])
            path = _path(_across(over, x), _down(edge, y))
            return Markup('<path class="area {}" d="{}Z"/>').format(mark.style, path)
        case Rule():
            at = _across(mark.x, x)
            side, place = ("rule end", at - 4) if at > 0.8 * WIDTH else ("rule", at + 4)  # no text beyond the edge
            line = Markup('<path class="rule" d="M{} {}V{}"/>').format(_n(at), _TOP - 14, HEIGHT - _BOTTOM)
            text = Markup('<text class="{}" x="{}" y="{}">{}</text>').format(side, _n(place), _TOP - 4, mark.text)
            return line + text
        case Hover():
            left, right = _across(mark.left, x), _across(mark.right, x)
            box = Markup('<rect class="hover" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>')
            return box.format(_n(left), _TOP, _n(max(right - left, 0.5)), HEIGHT - _BOTTOM - _TOP, mark.text)


def _path(x: Values, y: Values) -> Markup:
    """Move to each point; where a value is not finite the pen is lifted. A lone point becomes a dot."""
    commands, pen = [], "M"
    for across, down in zip(x.tolist(), y.tolist(), strict=True):
        if not np.isfinite(across + down):
            pen = "M"
            continue
        # A stroke without length but with a round cap is a dot, so that one epoch can be seen.
        commands.append(f"{pen}{_n(across)} {_n(down)}" + ("h0" if pen == "M" else ""))
        pen = "L"
    return escape("".join(commands))


def _across(value: Any, axis: Axis) -> Any:
    """Axis coordinates (a number or an array) as SVG x."""
    return _LEFT + (value - axis.low) / (axis.high - axis.low) * (WIDTH - _LEFT - _RIGHT)


def _down(value: Any, axis: Axis) -> Any:
    """Axis coordinates (a number or an array) as SVG y, which grows downward."""
    return HEIGHT - _BOTTOM - (value - axis.low) / (axis.high - axis.low) * (HEIGHT - _BOTTOM - _TOP)


def _n(value: float) -> str:
    """A coordinate with one digit after the point: enough for the eye, and small."""
    return f"{value:.1f}".removesuffix(".0")


def _short(value: int) -> str:
    """A round number that fits beside an axis: `500`, `20k`, `1M`."""
    for unit, letter in ((10**9, "G"), (10**6, "M"), (1000, "k")):
        if value >= unit and value % unit == 0:
            return f"{value // unit}{letter}"
    return str(value)


def _round_step(step: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** np.floor(np.log10(step))
    return float(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9)))


def _first_step(steps: Values) -> float:
    positive = steps[steps > 0]
    return float(positive.min()) if positive.size else 1.0
