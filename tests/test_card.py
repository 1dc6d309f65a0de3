"""The page that shows what an attack does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import pictures, waves

from antibackdoor.app.red_team import Aim, poison_data_set
from antibackdoor.attacks import ATTACKS
from antibackdoor.data.reading import DataSet
from antibackdoor.data.samples import Samples
from antibackdoor.report import Changes, visibility, write_card
from antibackdoor.report.card import structural_similarity


def changes(clean: Samples, poisoned: np.ndarray) -> Changes:
    return Changes(clean.inputs, poisoned, clean.ids, clean.labels, (clean.labels + 1) % 2, clean.class_names)


def test_visibility_of_a_known_change() -> None:
    clean = np.full((3, 1, 16, 16), 100, np.uint8)
    seen = visibility(clean, clean + np.uint8(10))
    assert seen.psnr == pytest.approx(20 * np.log10(255 / 10))
    assert seen.largest == 10 and seen.ssim is not None and 0.9 < seen.ssim < 1
    same = visibility(clean, clean)
    assert same.psnr == float("inf") and same.ssim == pytest.approx(1) and same.largest == 0
    floats = visibility((clean / 255).astype(np.float32), ((clean + 10) / 255).astype(np.float32))
    assert floats.psnr == pytest.approx(seen.psnr, rel=1e-5) and floats.largest == pytest.approx(10, rel=1e-5)


def test_similarity_by_hand() -> None:
    # Flat pictures have no variance: (2 ma mb + c1) / (ma^2 + mb^2 + c1) with c1 = 2.55^2.
    flat = np.full((1, 8, 8), 100.0)
    assert structural_similarity(flat, flat + 10, reach=255, window=7) == pytest.approx(22006.5025 / 22106.5025)
    # One window, two pictures of mean 0 with opposite signs: only (c2 - 2 v) / (c2 + 2 v) is left, c2 = 0.03^2.
    signs = np.array([[[1.0, -1, 0], [-1, 1, 0], [0, 0, 0]]])
    v = 4 / 8  # four squares of 1, over n - 1
    value = structural_similarity(signs, -signs, reach=1, window=3)
    assert value == pytest.approx((0.0009 - 2 * v) / (0.0009 + 2 * v))


# Of scikit-image 0.26 with its defaults, over channels; in the smaller picture with windows of 3 pixels.
@pytest.mark.parametrize(
    ("height", "width", "ssim", "psnr"),
    [(9, 11, -0.1774246228242666, 7.495110426001851), (4, 6, 0.3973943577565712, 10.677127535773314)],
)
def test_visibility_is_that_of_scikit_image(height: int, width: int, ssim: float, psnr: float) -> None:
    channel, row, column = np.ogrid[:2, :height, :width]
    before = 37 * row + 11 * column**2 + 60 * channel
    after = before + 7 * (row + column) * (channel + 1)
    seen = visibility((before % 256).astype(np.uint8)[None], (after % 256).astype(np.uint8)[None])
    assert seen.ssim == pytest.approx(ssim, abs=1e-12) and seen.psnr == pytest.approx(psnr, abs=1e-12)


def test_visibility_of_series_is_in_their_units() -> None:
    clean = waves(4).inputs
    seen = visibility(clean, clean + np.float32(0.5))
    assert seen.ssim is None and seen.largest == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("samples", [pictures(20), waves(20), pictures(20, size=2)], ids=["images", "series", "tiny"])
def test_a_dozen_samples_are_shown(tmp_path: Path, samples: Samples) -> None:
    poisoned = samples.inputs.copy()
    poisoned[..., 0] = poisoned.max()
    page = write_card(tmp_path, "BadNets", {"poisoning_rate": 0.1}, changes(samples, poisoned)).read_text("utf-8")
    assert page.count('class="three"') == 12 and "10.0%" in page and "PSNR" in page
    assert page.count("<img") == (36 if samples.kind == "image" else 0)
    assert page.count("<svg") == (0 if samples.kind == "image" else 36)
    assert "<script" not in page and "default-src 'none'" in page


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    samples = pictures(4)
    hostile = replace(
        samples, ids=np.array(["<script>alert(1)</script>"] * 4), class_names=np.array(["<b>", "\u202egnp"])
    )
    page = write_card(tmp_path, "<i>x</i>", {"<u>": "<s>"}, changes(hostile, samples.inputs)).read_text("utf-8")
    for tag in ("<script>", "<b>", "<i>", "<u>", "<s>", "\u202e"):
        assert tag not in page


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_poisoning_writes_one(tmp_path: Path, rate: float) -> None:
    data = DataSet(pictures(40), None, "npz", (), {})
    poison_data_set(data, ATTACKS["badnets"](), Aim(rate=rate), tmp_path / "out", seed=0)
    page = (tmp_path / "out" / "card.html").read_text("utf-8")
    assert ("No sample was poisoned" in page) == (rate == 0)
