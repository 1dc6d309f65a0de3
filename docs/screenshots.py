"""Pictures of the pages for the documents, taken with Debian's chromium: `python docs/screenshots.py DEMO`.

DEMO is the folder of `antibackdoor demo`. The pictures go into docs/images.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

IMAGES = Path(__file__).parent / "images"
SIZES = {"report": (1200, 900), "report-narrow": (400, 900)}


def shoot(page: Path, image: Path, width: int, height: int) -> None:
    """One picture of a page, as a browser window of this size shows it."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        sys.exit("chromium is not installed: apt-get install chromium")
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
        size = f"--window-size={width},{height}"
        words = [browser, *options, size, f"--screenshot={image}", page.resolve().as_uri()]
        subprocess.run(words, check=True, capture_output=True, timeout=120)


def main() -> None:
    """Take all pictures."""
    demo = Path(sys.argv[1])
    IMAGES.mkdir(exist_ok=True)
    for name, (width, height) in SIZES.items():
        shoot(demo / "dual-head" / "report.html", IMAGES / f"{name}.png", width, height)


if __name__ == "__main__":
    main()
