"""What to say where a run that is to go on has nothing left to do."""

from __future__ import annotations

from pathlib import Path

from antibackdoor.app.fingerprints import is_same
from antibackdoor.data.samples import Samples
from antibackdoor.runs.artifacts import read_metrics


def finished_message(run: str | Path, test: Samples | None = None) -> str:
    """That a run is finished, whose settings and data are known to be the same; and whether its numbers are of `test`.

    Raises:
        RunError: If the run is not finished, or damaged.
    """
    measured_on = read_metrics(Path(run)).get("test_fingerprint")
    said = f"{run} is finished: settings and data are unchanged, so nothing was computed again."
    if test is None or measured_on is None or is_same(measured_on, test):
        return said
    return f"{said} Its accuracy is for other test data; `antibackdoor evaluate {run} --data DATA` measures these."
