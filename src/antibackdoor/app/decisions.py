"""A person's decisions, brought to the samples at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from antibackdoor.app.verdicts import verdict_of
from antibackdoor.data.samples import Samples
from antibackdoor.errors import DataError, shortened
from antibackdoor.protocols import DECISION, ISOLATED, KEPT, NO_CRITERION, Given, Verdict
from antibackdoor.runs.decisions import DECISIONS, REJECTED, Decision, read_decisions
from antibackdoor.runs.samples_table import SAMPLES, stored_id


def decisions_of(path: str | Path, samples: Samples) -> tuple[Verdict, str]:
    """What a person said of these samples, as a verdict, and a note of what of it was used.

    Args:
        path: A `decisions.csv`, or the run folder that holds one.
        samples: The samples to be trained on. They may be a part of those that were reviewed.

    Returns:
        The verdict, in which the criterion of each decided sample is `decision`, and a sentence.

    Raises:
        RunError: If the file cannot be read.
        DataError: If no sample is decided, or a label has changed since the review.
    """
    path = _file(Path(path))
    said = read_decisions(path)
    place = {str(name): label for label, name in enumerate(samples.class_names.tolist())}
    status = np.full(len(samples), KEPT, dtype=np.uint8)
    criterion = np.full(len(samples), NO_CRITERION, dtype=np.uint8)
    suggested = samples.labels.copy()
    for row, name in enumerate(samples.ids.tolist()):
        decision = said.get(stored_id(name))
        if decision is None:
            continue
        _check_label(decision, str(samples.class_names[samples.labels[row]]), name, path)
        criterion[row] = DECISION
        if decision.decision == REJECTED:
            status[row] = ISOLATED
            suggested[row] = place.get(decision.suggested, samples.labels[row])
    decided = criterion == DECISION
    if not decided.any():
        raise DataError(
            f"none of the {len(said)} samples in {path} is among the {len(samples)} training samples: give the "
            "decisions for these data"
        )
    verdict = Verdict((status == ISOLATED).astype(np.float64), status, suggested, criterion)
    n_rejected = int((status == ISOLATED).sum())
    note = f"{int(decided.sum()) - n_rejected} samples are accepted and {n_rejected} rejected by a person"
    left = len(said) - int(decided.sum())
    return verdict, note + (f"; {left} more are not among the training samples" if left else "")


def with_decisions(given: Given, path: str | Path, samples: Samples, takes: Sequence[str]) -> tuple[Given, str]:
    """What a method is given, with a person's decisions, and a note about them.

    A method that takes a verdict does not search again: it gets that of the run that was reviewed, in whose folder the
    decisions lie. Where they lie elsewhere, the decisions are the verdict: only what was rejected is isolated.

    Raises:
        RunError: If the decisions, or the run beside them, cannot be read.
        DataError: If they are about other samples.
    """
    decisions, note = decisions_of(path, samples)
    given = replace(given, decisions=decisions)
    if given.verdict is not None or "verdict" not in takes:
        return given, note
    run = _file(Path(path)).parent
    if (run / SAMPLES).exists():
        return replace(given, verdict=verdict_of(run, samples)), f"{note}; for others, the verdict of their run holds"
    return replace(given, verdict=decisions), f"{note}; all others are kept without a search (no run is next to it)"


def _file(path: Path) -> Path:
    return path / DECISIONS if path.is_dir() else path


def _check_label(decision: Decision, label: str, name: str, path: Path) -> None:
    if decision.given and decision.given != stored_id(label):
        raise DataError(
            f"{path} is about {shortened(name, 80)!r} under the label {shortened(decision.given, 40)!r}, but the data "
            f"say {shortened(label, 40)!r}: review them again"
        )
