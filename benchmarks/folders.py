"""Where the benchmarks keep their results, and where they look for data."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"


def data() -> Path:
    """`ANTIBACKDOOR_DATA`, by default `shared/data` beside the repository."""
    return Path(os.environ.get("ANTIBACKDOOR_DATA") or REPOSITORY.parent / "shared" / "data")
