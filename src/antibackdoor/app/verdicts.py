"""What an earlier run said, brought to the samples at hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from antibackdoor.data.samples import Samples
from antibackdoor.errors import DataError
from antibackdoor.protocols import KEPT, STATUSES, Verdict
from antibackdoor.runs.artifacts import METRICS, read_metrics
from antibackdoor.runs.samples_table import SamplesTable, read_samples_table


def verdict_of(run: str | Path, samples: Samples) -> Verdict:
    """The verdict of a finished scan or training on these samples, which may be a part of its samples.

    Args:
        run: The run folder.
        samples: The samples to be judged; their ids and given labels must be those of the run.

    Raises:
        RunError: If the folder holds no verdict.
        DataError: If it is about other samples.
    """
    run = Path(run)
    table = read_samples_table(run)
    rows = _rows(run, table, samples)
    names = {str(name): place for place, name in enumerate(samples.class_names.tolist())}
    if [str(name) for name in table.class_names.tolist()] != list(names):
        raise DataError(f"{run} has other classes than the data; give the scan of these data")
    if (table.given_label[rows] != samples.labels).any():
        raise DataError(f"{run} has other labels than the data have now; scan them again")
    whole = _judged(run, table)
    return replace(
        whole,
        suspicion=whole.suspicion[rows],
        # A model that used some samples under another label, or cleaned, is not this one.
        status=np.minimum(whole.status[rows], STATUSES.index("isolated")).astype(np.uint8),
        suggested_label=whole.suggested_label[rows],
        criterion=whole.criterion[rows],
        target_labels=tuple(sorted(set(samples.labels[whole.status[rows] != KEPT].tolist()) & {*whole.target_labels})),
        margin=None if whole.margin is None else whole.margin[rows],
    )


def _judged(run: Path, table: SamplesTable) -> Verdict:
    """The verdict of a table; what older tables do not say of the data stands in the metrics."""
    verdict = table.verdict
    if verdict.poisoned is not None or not (run / METRICS).exists():
        return verdict
    facts = read_metrics(run)
    named = np.isin(table.class_names, [str(name) for name in facts["target_labels"]])
    return replace(verdict, poisoned=facts["poisoned"], target_labels=tuple(np.flatnonzero(named).tolist()))


def _rows(run: Path, table: SamplesTable, samples: Samples) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    place = {name: row for row, name in enumerate(table.ids.tolist())}
    missing = next((name for name in samples.ids.tolist() if name not in place), None)
    if missing is not None:
        raise DataError(f"{run} says nothing about the sample {missing!r}; give the scan of these data")
    return np.array([place[name] for name in samples.ids.tolist()], dtype=np.int64)
