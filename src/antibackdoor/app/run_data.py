"""The data that a run is about, read again and matched with what the run says of each sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from antibackdoor.data.options import known_options
from antibackdoor.data.reading import read_samples
from antibackdoor.data.samples import IntArray, Samples
from antibackdoor.errors import DataError, RunError, shortened
from antibackdoor.runs.run_folder import read_config
from antibackdoor.runs.samples_table import SamplesTable, stored_id


class RunData(NamedTuple):
    """The samples behind a run's table."""

    samples: Samples  # the whole training split of the data
    rows: IntArray  # (N,) where those of the table stand in it
    n_unjudged: int  # samples of the split that the run said nothing of, such as those it held out


def data_of(run: Path, table: SamplesTable, data: Path, *, cache: Path | None = None) -> RunData:
    """Read the data that a run judged.

    Args:
        run: The run folder.
        table: Its verdict on every sample.
        data: Where the data are now.
        cache: Where decoded images are kept.

    Raises:
        RunError: If the folder does not say what its data looked like.
        DataError: If the data cannot be read, lack a sample of the run, or have changed since.
    """
    about = read_config(run)["settings"]
    shape, bits = _shape_of(run, about), _part(about, "data").get("significant_bits")
    samples = read_samples(
        data,
        class_names=[str(name) for name in table.class_names.tolist()],
        shape=shape,
        split="train",
        on_error="skip",
        cache=cache,
        recorded=known_options(about.get("reading")),
        bits=bits if type(bits) is int else None,
        progress=True,
    )
    place = {stored_id(name): row for row, name in enumerate(samples.ids.tolist())}
    missing = next((name for name in table.ids.tolist() if name not in place), None)
    if missing is not None:
        raise DataError(f"{data} lacks {shortened(missing, 80)!r}, which {run} judged: give the data of that run")
    rows = np.array([place[name] for name in table.ids.tolist()], dtype=np.int64)
    wrong = samples.labels[rows] != table.given_label
    if table.contents is not None:
        wrong |= samples.contents[rows] != table.contents
    if wrong.any():
        name = shortened(str(table.ids[np.flatnonzero(wrong)[0]]), 80)
        raise DataError(
            f"{int(wrong.sum())} samples of {data} have changed since {run} was made, the first: {name!r}: "
            "scan or train again"
        )
    return RunData(samples, rows, len(samples) - len(rows))


def _shape_of(run: Path, about: dict[str, Any]) -> tuple[int, ...]:
    shape = _part(about, "model").get("input_shape")
    if not (isinstance(shape, list) and len(shape) in (2, 3) and all(type(side) is int and side > 0 for side in shape)):
        raise RunError(f"{run} does not record its data: give a run of train or scan")
    return tuple(shape)


def _part(about: dict[str, Any], name: str) -> dict[str, Any]:
    part = about.get(name)
    return part if isinstance(part, dict) else {}
