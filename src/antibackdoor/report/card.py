"""One page about an attack on a data set: what it does to a sample, how visible that is, how often it was done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from antibackdoor.data.samples import FloatArray, InputArray, IntArray, StrArray
from antibackdoor.report.gallery import data_uri, short_series, small_images
from antibackdoor.report.html import write_page
from antibackdoor.report.svg import sparkline
from antibackdoor.report.words import percent, printable, quoted

CARD = "card.html"
SHOWN = 12  # samples
SSIM_WINDOW = 7  # pixels, odd; smaller in pictures that are smaller


class Visibility(NamedTuple):
    """How much a trigger changes samples: means over them."""

    psnr: float  # decibels, peak signal-to-noise ratio; inf if nothing changed
    ssim: float | None  # structural similarity in [-1, 1]; None for series and for pictures below 3 pixels
    largest: float  # L-infinity distance, in grey levels of 255, or in units of the series


@dataclass(frozen=True, eq=False)
class Changes:
    """Poisoned samples before and after.

    Attributes:
        clean: `(n, *shape)` inputs as they were.
        poisoned: `(n, *shape)` inputs as they are now.
        ids: `(n,)` str.
        true_labels, labels: `(n,)` int64, before and after.
        class_names: `(K,)` str.
    """

    clean: InputArray
    poisoned: InputArray
    ids: StrArray
    true_labels: IntArray
    labels: IntArray
    class_names: StrArray


@dataclass(frozen=True)
class _Row:
    name: str
    pictures: tuple[str, ...]  # data URIs of images, or markup of series
    labels: str


def write_card(out: Path, title: str, facts: Mapping[str, Any], changes: Changes) -> Path:
    """Write `card.html` into a folder: clean, poisoned and difference of a dozen samples, and how visible it is.

    Args:
        out: The folder.
        title: Name of the attack.
        facts: What else there is to say, name → plain value.
        changes: Some poisoned samples.

    Raises:
        RunError: The page cannot be written.
    """
    numbers = {name.replace("_", " "): _shown(name, value) for name, value in facts.items()}
    if len(changes.clean):
        seen = visibility(changes.clean, changes.poisoned)
        unit = "of 255 grey levels" if changes.clean.ndim == 4 else "units of the series"
        numbers["PSNR"] = "no change" if np.isinf(seen.psnr) else f"{seen.psnr:.1f} dB"
        if seen.ssim is not None:
            numbers["SSIM"] = f"{seen.ssim:.4f}"
        numbers["largest change"] = f"{seen.largest:.4g} {unit}"
    facts_shown = {"title": printable(title), "numbers": numbers, "rows": _rows(changes)}
    write_page(out / CARD, "card.html.j2", **facts_shown, is_image=changes.clean.ndim == 4)
    return out / CARD


def visibility(clean: InputArray, poisoned: InputArray) -> Visibility:
    """PSNR, SSIM and largest change, each the mean over the samples `(n, *shape)`; PSNR over those that changed."""
    before, after = clean.astype(np.float64), poisoned.astype(np.float64)
    is_image = clean.ndim == 4
    if is_image and clean.dtype != np.uint8:
        before, after = 255 * before, 255 * after
    change = np.abs(after - before).reshape(len(clean), -1)
    reach = 255.0 if is_image else float(before.max() - before.min()) or 1.0
    noise = (change**2).mean(axis=1)
    decibels = 10 * np.log10(reach**2 / noise[noise > 0])
    side = min(SSIM_WINDOW, *clean.shape[2:]) if is_image else 0
    similar = [
        structural_similarity(a, b, reach=reach, window=side - 1 + side % 2)
        for a, b in (zip(before, after, strict=True) if side >= 3 else ())
    ]
    return Visibility(
        psnr=float(decibels.mean()) if len(decibels) else float("inf"),
        ssim=float(np.mean(similar)) if similar else None,
        largest=float(change.max(axis=1).mean()),
    )


def structural_similarity(a: FloatArray, b: FloatArray, *, reach: float, window: int) -> float:
    """SSIM of two pictures, the mean over all windows that lie inside them, and over channels.

    With means, variances and covariance (over n - 1) in a window, and `c1 = (0.01 reach)^2`, `c2 = (0.03 reach)^2`:
    `(2 ma mb + c1) (2 cov + c2) / ((ma^2 + mb^2 + c1) (va + vb + c2))`.

    Args:
        a: `(C, H, W)` float64.
        b: `(C, H, W)` float64.
        reach: Largest possible difference of two pixels, > 0: 255 for bytes.
        window: Side of the square windows in pixels, odd, in `3..min(H, W)`.

    Returns:
        In [-1, 1]; 1 for equal pictures.

    Reference: Wang, Bovik, Sheikh and Simoncelli, Image Quality Assessment: From Error Visibility to Structural
    Similarity, IEEE Transactions on Image Processing 13(4), 2004. It has Gaussian windows of 11 pixels; these are
    uniform.
    """
    from scipy.ndimage import uniform_filter  # slow to import

    edge = window // 2  # windows around pixels closer to the border reach outside

    def mean(values: FloatArray) -> FloatArray:
        smooth: FloatArray = uniform_filter(values, size=(1, window, window))
        return smooth[:, edge : values.shape[1] - edge, edge : values.shape[2] - edge]

    unbiased = window**2 / (window**2 - 1)
    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = unbiased * (mean(a * a) - mean_a**2), unbiased * (mean(b * b) - mean_b**2)
    covariance = unbiased * (mean(a * b) - mean_a * mean_b)
    c1, c2 = (0.01 * reach) ** 2, (0.03 * reach) ** 2  # the paper's K1 and K2
    similar = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float((similar / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())


def _rows(changes: Changes) -> list[_Row]:
    rows = []
    clean, poisoned = changes.clean[:SHOWN], changes.poisoned[:SHOWN]
    if clean.ndim == 4:
        pictures = [
            [data_uri(image) for image in small_images(part)] for part in (clean, poisoned, _grey(clean, poisoned))
        ]
    else:
        drawn = (clean, poisoned, poisoned - clean)
        pictures = [[sparkline(series) for series in short_series(part)] for part in drawn]
    for row, name in enumerate(changes.ids[:SHOWN]):
        before, after = (changes.class_names[labels[row]] for labels in (changes.true_labels, changes.labels))
        words = f"{quoted(before, 30)} stays" if before == after else f"{quoted(before, 30)} → {quoted(after, 30)}"
        rows.append(_Row(printable(name, 40), tuple(column[row] for column in pictures), words))
    return rows


def _grey(clean: InputArray, poisoned: InputArray) -> InputArray:
    """Differences around middle grey, each image stretched to the full range, as uint8."""
    change: FloatArray = poisoned.astype(np.float64) - clean.astype(np.float64)
    reach = np.abs(change).max(axis=(1, 2, 3), keepdims=True)
    return np.rint(127.5 + 127.5 * change / np.where(reach > 0, reach, 1)).astype(np.uint8)


def _shown(name: str, value: Any) -> str:
    if isinstance(value, float):
        return percent(value) if name.endswith("rate") else f"{value:.4g}"
    return printable("–" if value is None else value)
