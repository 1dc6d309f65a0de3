"""The picture of the architecture shows the rooms and imports that there are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_picture_is_up_to_date() -> None:
    words = [sys.executable, str(DOCS / "draw_architecture.py"), "--check"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
