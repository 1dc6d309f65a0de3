"""What a run decided, for other tools: lists of paths, tables, and the kept samples themselves."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from antibackdoor.data.csv_cells import write_rows
from antibackdoor.data.samples import BoolArray, StrArray
from antibackdoor.errors import ConfigError, shortened
from antibackdoor.protocols import CRITERIA, KEPT, RELABELED, STATUSES
from antibackdoor.runs.atomic import replacing, write_bytes
from antibackdoor.runs.decisions import ACCEPTED, DECISIONS, REJECTED, Decision, read_decisions
from antibackdoor.runs.samples_table import SamplesTable, read_samples_table

_BREAKS = ("\n", "\r", "\0")  # would tear a list of one path a line


@dataclass(frozen=True, eq=False)
class Selection:
    """Which samples of a run are kept.

    Attributes:
        run: The run folder.
        table: The run's verdict on every sample.
        kept: `(N,)` bool. A person's decisions, where the folder holds some, win over the run.
        decisions: These decisions, by id.
    """

    run: Path
    table: SamplesTable
    kept: BoolArray
    decisions: dict[str, Decision]

    @property
    def told(self) -> str:
        """What is kept, in one sentence."""
        n_kept, n = int(self.kept.sum()), len(self.kept)
        sentence = f"{n_kept:,} of {n:,} samples are kept, {n - n_kept:,} are in quarantine"
        return sentence + (f"; {DECISIONS} was used" if self.decisions else "")


def selection_of(run: Path) -> Selection:
    """What a finished run kept, and a person decided.

    Raises:
        RunError: If the folder holds no verdict, or a file in it is damaged.
    """
    table = read_samples_table(run)
    path = run / DECISIONS
    decisions = read_decisions(path) if path.exists() else {}
    said = np.array([getattr(decisions.get(name), "decision", "") for name in table.ids.tolist()], np.str_)
    kept = ((table.verdict.status == KEPT) | (said == ACCEPTED)) & (said != REJECTED)
    return Selection(run, table, kept, decisions)


def write_list(path: Path, ids: StrArray) -> None:
    """Write a new text file with one id a line: paths in the data for images in files, else `split/row`.

    Raises:
        ConfigError: If the file exists, or a name holds a line break.
        RunError: If it cannot be written.
    """
    refuse_existing(path)
    torn = next((name for name in ids.tolist() if any(sign in name for sign in _BREAKS)), None)
    if torn is not None:
        raise ConfigError(
            f"the name {shortened(torn, 60)!r} has a line break, which a list cannot hold: use --format csv"
        )
    write_bytes(path, "".join(f"{name}\n" for name in ids.tolist()).encode("utf-8", "backslashreplace"))


def columns_of(selection: Selection) -> dict[str, list[Any]]:
    """One row a sample, labels by name; `label` is the one to train on, empty where there is none.

    A sample that the run used under another label has that one as `label`, but is not kept: a person may want to look.
    """
    table, verdict = selection.table, selection.table.verdict
    names = table.class_names
    relabeled = verdict.status == RELABELED
    usable = np.where(selection.kept, names[table.given_label], np.where(relabeled, names[verdict.suggested_label], ""))
    said = [selection.decisions.get(name) for name in table.ids.tolist()]
    columns: dict[str, list[Any]] = {
        "id": table.ids.tolist(),
        "kept": selection.kept.tolist(),
        "label": usable.tolist(),
        "given_label": names[table.given_label].tolist(),
        "suggested_label": names[verdict.suggested_label].tolist(),
        "status": [STATUSES[code] for code in verdict.status.tolist()],
        "criterion": [CRITERIA[code] for code in verdict.criterion.tolist()],
        "suspicion": verdict.suspicion.tolist(),
        "decision": ["" if one is None else one.decision for one in said],
    }
    if table.prediction is not None and table.confidence is not None:
        columns["prediction"] = names[table.prediction].tolist()
        columns["confidence"] = table.confidence.tolist()
    return columns


def write_table(path: Path, columns: dict[str, list[Any]], *, parquet: bool) -> None:
    """Write a new table as CSV (no cell is a formula) or Parquet.

    Raises:
        ConfigError: If the file exists.
        RunError: If it cannot be written.
    """
    refuse_existing(path)
    if parquet:
        texts = {name: [_utf8(value) for value in values] for name, values in columns.items()}
        with replacing(path) as temporary, temporary.open("wb") as file:
            pq.write_table(pa.table(texts), file)
        return
    text = io.StringIO(newline="")
    write_rows(text, [list(columns), *zip(*columns.values(), strict=True)])
    write_bytes(path, text.getvalue().encode("utf-8", "backslashreplace"))


def cleanlab_columns(selection: Selection) -> dict[str, list[Any]]:
    """The columns of cleanlab's `CleanLearning.get_label_issues()`, in the order of the run's samples.

    Labels are numbers; `label_quality` lies in [0, 1], low for suspicious samples: one minus their rank.
    """
    table, n = selection.table, len(selection.kept)
    suspicion = np.nan_to_num(table.suspicion, nan=-np.inf)
    order = np.lexsort((suspicion, ~selection.kept))  # whoever is not kept is worse than all others
    quality = np.empty(n)
    quality[order] = 1 - np.arange(n) / max(n - 1, 1)
    predicted = table.verdict.suggested_label if table.prediction is None else table.prediction
    return {
        "id": table.ids.tolist(),
        "is_label_issue": (~selection.kept).tolist(),
        "label_quality": quality.tolist(),
        "given_label": table.given_label.tolist(),
        "predicted_label": predicted.tolist(),
    }


def refuse_existing(path: Path) -> None:
    """Check that nothing is at `path`.

    Raises:
        ConfigError: If something is.
    """
    if path.exists() or path.is_symlink():
        raise ConfigError(f"{path} exists already; remove it or choose another name")


def _utf8(value: Any) -> Any:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
