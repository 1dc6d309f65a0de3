"""Data that are drawn by rule, so that no file is needed: pictures of shapes and characters, and three sets of series.

`drawn.py` trains on them, `isolation.py` and `unseen.py` search them. No limit of the search was set with them but the
two that `benchmarks/NOTEBOOK.md` tells of (when hard samples come oftener, and `LEAST_MOVED`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from antibackdoor.data.samples import Samples

SIZE, LENGTH = 32, 128
CHARACTERS = "ABCDEFGHJKLMNPQRSTUVWXYZabdefghnqrt23456789"
Drawn = np.random.Generator
Array = np.ndarray[Any, Any]


def cylinders(label: int, drawn: Drawn) -> Array:
    """Cylinder, bell or funnel, `(1, T)`; after Saito, 1994."""
    times, begin = np.arange(LENGTH), drawn.integers(16, 33)
    end = begin + drawn.integers(32, 97)
    inside = (times >= begin) & (times <= end)
    form = (1.0, (times - begin) / (end - begin), (end - times) / (end - begin))[label]
    return ((6 + drawn.normal()) * inside * form + drawn.normal(size=LENGTH))[None]


def two_patterns(label: int, drawn: Drawn) -> Array:
    """Two steps, each up or down, somewhere in noise, `(1, T)`; after Geurts, 2002."""
    series = drawn.normal(size=LENGTH)
    first, second = drawn.integers(8, 17, 2) * 2
    at = drawn.integers(0, LENGTH - first - second - 16)
    then = drawn.integers(at + first, LENGTH - second)
    for begin, length, sign in ((at, first, label // 2), (then, second, label % 2)):
        step = np.where(np.arange(length) < length // 2, -5.0, 5.0)
        series[begin : begin + length] = step if sign else -step
    return series[None]


def control_charts(label: int, drawn: Drawn) -> Array:
    """Normal, cyclic, rising, falling, a step up, a step down, `(1, 60)`; after Alcock and Manolopoulos, 1999."""
    times = np.arange(60)
    series = 30 + 2 * drawn.uniform(-3, 3, 60)
    if label == 1:
        series += drawn.uniform(10, 15) * np.sin(2 * np.pi * times / drawn.uniform(10, 15))
    if label in (2, 3):
        series += (5 - 2 * label) * drawn.uniform(0.2, 0.5) * times
    if label in (4, 5):
        series += (9 - 2 * label) * drawn.uniform(7.5, 20) * (times >= drawn.integers(20, 41))
    return series[None]


def shapes(label: int, drawn: Drawn) -> Array:
    """Disk, ring, square, triangle, cross, bar, in any color on any other, `(H, W, 3)`."""
    big = 4 * SIZE
    ground, color = drawn.integers(0, 256, (2, 3))
    picture = Image.new("RGB", (big, big), tuple(map(int, ground)))
    pen, ink = ImageDraw.Draw(picture), tuple(map(int, color))
    r = drawn.uniform(0.18, 0.36) * big
    x, y = drawn.uniform(r, big - r, 2)
    turned = drawn.uniform(0, 2 * np.pi)

    def around(angles: Array, radii: Any = 1.0) -> list[tuple[float, float]]:
        a = angles + turned
        return list(zip((x + r * radii * np.cos(a)).tolist(), (y + r * radii * np.sin(a)).tolist(), strict=True))

    if label == 0:
        pen.ellipse((x - r, y - r, x + r, y + r), fill=ink)
    elif label == 1:
        pen.ellipse((x - r, y - r, x + r, y + r), outline=ink, width=int(0.3 * r))
    elif label in (2, 3):
        sides = {2: 4, 3: 3}[label]
        pen.polygon(around(2 * np.pi * np.arange(sides) / sides), fill=ink)
    else:
        for k in range(2 if label == 4 else 1):
            ends = around(np.pi * np.arange(2) + np.pi / 2 * k)
            pen.line(ends, fill=ink, width=int(0.5 * r))
    small = np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float64)
    noisy = small + drawn.normal(0, 8, small.shape) + drawn.normal(0, 20) * np.linspace(-1, 1, SIZE)[:, None]
    return np.clip(noisy, 0, 255).astype(np.uint8)


def characters(label: int, drawn: Drawn) -> Array:
    """A letter or digit, turned, moved, in any gray on any other, `(H, W)`."""
    big = 4 * SIZE
    ground, ink = (int(v) for v in drawn.choice(256, 2, replace=False))
    while abs(ground - ink) < 60:
        ground, ink = (int(v) for v in drawn.choice(256, 2, replace=False))
    picture = Image.new("L", (big, big), ground)
    font = ImageFont.load_default(drawn.uniform(0.5, 0.85) * big)
    at = tuple(big / 2 + drawn.uniform(-0.12, 0.12, 2) * big)
    ImageDraw.Draw(picture).text(at, CHARACTERS[label], font=font, fill=ink, anchor="mm")
    shear = drawn.uniform(-0.25, 0.25, 2)
    picture = picture.transform(
        (big, big),
        Image.Transform.AFFINE,
        (1, shear[0], -shear[0] * big / 2, shear[1], 1, -shear[1] * big / 2),
        Image.Resampling.BILINEAR,
        fillcolor=ground,
    )
    small = np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float64)
    return np.clip(small + drawn.normal(0, 8, small.shape), 0, 255).astype(np.uint8)


class Kind(NamedTuple):
    """What draws a sample of a class, how many classes there are, of how many samples each, and the network."""

    one: Callable[[int, Drawn], Array]
    n_classes: int
    each: int
    network: str
    attacks: tuple[str, ...]


KINDS = {
    "cylinders": Kind(cylinders, 3, 1000, "fcn", ("static", "powerline")),
    "two-patterns": Kind(two_patterns, 4, 750, "fcn", ("static", "powerline")),
    "control-charts": Kind(control_charts, 6, 500, "fcn", ("static", "powerline")),
    "shapes": Kind(shapes, 6, 500, "wrn-16-1", ("badnets", "blend", "sig", "wanet")),
    "characters": Kind(characters, len(CHARACTERS), 100, "wrn-16-1", ("badnets", "blend", "sig", "wanet")),
}
TESTS = 1000  # added to the seed for samples to test with


def draw(name: str, seed: int) -> Samples:
    """One of the kinds as samples of the package."""
    kind = KINDS[name]
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(kind.n_classes), kind.each))
    inputs = np.stack([kind.one(k, np.random.default_rng((seed, row))) for row, k in enumerate(labels.tolist())])
    if inputs.dtype != np.uint8:
        inputs = inputs.astype(np.float32)
    elif inputs.ndim == 3:  # gray
        inputs = inputs[:, None]
    else:
        inputs = np.ascontiguousarray(inputs.transpose(0, 3, 1, 2))
    ids = np.char.add(f"{seed}/", np.arange(len(labels)).astype(str))
    return Samples(inputs, labels.astype(np.int64), ids, np.arange(kind.n_classes).astype(str))
