"""Who is to be looked at: the suspects of a run, in groups of the same given and suggested label."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from antibackdoor.data.samples import IntArray
from antibackdoor.protocols import CRITERIA, STATUSES
from antibackdoor.runs.samples_table import SamplesTable

MOST_UNJUDGED = 100  # samples that are shown where a method ranks all and isolates none


@dataclass(frozen=True, eq=False)
class Group:
    """Suspects with the same two labels, the most suspicious first.

    Attributes:
        given: Name of the label that came with the data.
        suggested: Name of the label that the run suggests; empty if it suggests no other.
        rows: `(n,)` int64, positions in the table.
    """

    given: str
    suggested: str
    rows: IntArray


@dataclass(frozen=True)
class Evidence:
    """What a run says of one sample, as text.

    Attributes:
        id: Its name in the data.
        given: The label that came with the data.
        suggested: The label that the run suggests; empty if it suggests no other.
        suspicion: How suspicious, higher is more.
        status: What became of it: kept, isolated, relabeled, cleaned.
        criterion: Which criterion decided; empty for none.
        prediction: What the delivered model says, with its confidence; empty if there is no model.
    """

    id: str
    given: str
    suggested: str
    suspicion: str
    status: str
    criterion: str
    prediction: str


def groups_of(table: SamplesTable) -> tuple[Group, ...]:
    """The suspects, the largest group first; the most suspicious samples where none is isolated."""
    suspicion = np.nan_to_num(table.suspicion, nan=-np.inf)
    order = np.argsort(-suspicion, kind="stable")
    isolated = table.isolated[order]
    rows = order[isolated] if isolated.any() else order[:MOST_UNJUDGED]
    found: dict[tuple[str, str], list[int]] = {}
    for row in rows.tolist():
        found.setdefault(_labels(table, row), []).append(row)
    groups = [Group(*labels, np.array(members, dtype=np.int64)) for labels, members in found.items()]
    return tuple(sorted(groups, key=lambda group: -len(group.rows)))


def evidence_of(table: SamplesTable, row: int) -> Evidence:
    """What the run says of a row of its table."""
    verdict = table.verdict
    given, suggested = _labels(table, row)
    criterion = CRITERIA[verdict.criterion[row]]
    said = ""
    if table.prediction is not None and table.confidence is not None:
        said = f"{class_name(table, int(table.prediction[row]))}, {float(table.confidence[row]):.0%}"
    return Evidence(
        id=str(table.ids[row]),
        given=given,
        suggested=suggested,
        suspicion=f"{float(verdict.suspicion[row]):.3g}",
        status=STATUSES[verdict.status[row]],
        criterion="" if criterion == "none" else criterion,
        prediction=said,
    )


def class_name(table: SamplesTable, label: int) -> str:
    """A class by its label; a table that somebody has changed may hold any."""
    return str(table.class_names[label]) if 0 <= label < len(table.class_names) else f"class {label}"


def _labels(table: SamplesTable, row: int) -> tuple[str, str]:
    given, suggested = int(table.given_label[row]), int(table.verdict.suggested_label[row])
    return class_name(table, given), "" if suggested == given else class_name(table, suggested)
