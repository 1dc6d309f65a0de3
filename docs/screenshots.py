"""Pictures of the pages for the documents, taken with Debian's chromium: `python docs/screenshots.py DEMO`.

DEMO is the folder of `antibackdoor demo`. The report and the review page are taken wide and narrow, light and dark. The
pictures go into docs/images.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

IMAGES = Path(__file__).parent / "images"
SIZES = {"": (1200, 900), "-narrow": (400, 900)}
SCHEMES = {"": 1, "-dark": 0}  # as Blink counts them


def shoot(address: str, image: Path, width: int, height: int, scheme: int = 1) -> None:
    """One picture of a page, as a browser window of this size shows it."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        sys.exit("chromium is not installed: apt-get install chromium")
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
        options += [f"--window-size={width},{height}", f"--blink-settings=preferredColorScheme={scheme}"]
        words = [browser, *options, f"--screenshot={image}", address]
        subprocess.run(words, check=True, capture_output=True, timeout=120)


def shoot_all(name: str, address: str) -> None:
    """A page in all sizes and colors."""
    for size, (width, height) in SIZES.items():
        for color, scheme in SCHEMES.items():
            shoot(address, IMAGES / f"{name}{size}{color}.png", width, height, scheme)


def main() -> None:
    """Take all pictures."""
    run = Path(sys.argv[1]) / "dual-head"
    IMAGES.mkdir(exist_ok=True)
    shoot_all("report", (run / "report.html").resolve().as_uri())
    command = [sys.executable, "-m", "antibackdoor", "review", str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().removeprefix("Review: ").strip()
        try:
            shoot_all("review", address)
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
