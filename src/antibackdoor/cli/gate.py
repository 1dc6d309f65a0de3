"""How a scan tells a pipeline: an exit code of its own, JSON on standard output, SARIF and JUnit files."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from antibackdoor.cli.flags import OUTPUT, settings_type

FOUND = 3  # exit code of --fail-on


@dataclass(frozen=True)
class Gate:
    """What else a pipeline wants.

    Attributes:
        fail_on: Exit with code 3 if the data are poisoned; `unsure`: also if there is no verdict, or a label has too
            few samples to be examined.
        json: Print only metrics.json on standard output.
        sarif: SARIF 2.1.0 file to write: one result per suspicious sample.
        junit: JUnit XML file to write: one test case per label.
    """

    fail_on: Literal["nothing", "poisoned", "unsure"] = "nothing"
    json: bool = False
    sarif: Path | None = None
    junit: Path | None = None

    def write(self, out: Path, root: str) -> dict[str, Any]:
        """Write the files from a finished run folder; returns its metrics.

        Raises:
            AntibackdoorError: If the run folder cannot be read, or a file cannot be written.
        """
        from antibackdoor.report.pipelines import junit, sarif
        from antibackdoor.runs.artifacts import read_metrics
        from antibackdoor.runs.atomic import write_bytes, write_json
        from antibackdoor.runs.samples_table import read_samples_table

        metrics = read_metrics(out)
        if self.sarif is not None or self.junit is not None:
            table = read_samples_table(out)
            if self.sarif is not None:
                write_json(self.sarif, sarif(table, metrics, root))
            if self.junit is not None:
                write_bytes(self.junit, junit(table, metrics).encode("utf-8"))
        if self.json:
            print(json.dumps(metrics, indent=2))
        return metrics

    def finish(self, metrics: dict[str, Any]) -> None:
        """Exit with 3 if the result is what `fail_on` names."""
        poisoned = metrics.get("poisoned")
        if self.fail_on == "nothing":
            return
        if poisoned or (self.fail_on == "unsure" and (poisoned is None or metrics.get("n_unexamined_labels"))):
            sys.exit(FOUND)


GATE: Any = settings_type(Gate, OUTPUT)
