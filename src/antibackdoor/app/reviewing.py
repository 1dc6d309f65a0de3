"""From a run folder to a review that a browser can open."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from antibackdoor.app.run_data import data_of
from antibackdoor.review.page import ReviewPage
from antibackdoor.review.pictures import from_run, from_samples, trigger_picture
from antibackdoor.review.session import ReviewSession
from antibackdoor.runs.decisions import DECISIONS
from antibackdoor.runs.samples_table import read_samples_table


@dataclass(frozen=True)
class ReviewSettings:
    """What to review.

    Attributes:
        run: The folder of a scan or a training.
        data: Its data, for pictures of all suspects; None for those that the folder holds.
        cache: Where decoded images are kept.
    """

    run: Path
    data: Path | None = None
    cache: Path | None = None


def open_review(settings: ReviewSettings) -> ReviewPage:
    """The page of a review, with the decisions that the folder holds already.

    Raises:
        RunError: If the folder holds no verdict, or a file in it is damaged.
        DataError: If the data are not those of the run.
    """
    run = settings.run
    table = read_samples_table(run)
    notes = []
    if settings.data is None:
        pictures = from_run(run)
        notes.append("Only the most suspicious samples have pictures: to see all, start the review with --data.")
    else:
        found = data_of(run, table, settings.data, cache=settings.cache)
        pictures = from_samples(found.samples, found.rows)
    session = ReviewSession(run, table)
    n_isolated = int(table.isolated.sum())
    if n_isolated:
        headline = f"{n_isolated:,} of {len(table.ids):,} samples are suspected"
    else:
        headline = f"None of {len(table.ids):,} samples was isolated"
        notes.insert(0, "Here are the most suspicious ones, in the order of the run's score.")
    data = "DATA" if settings.data is None else shlex.quote(str(settings.data))
    return ReviewPage(
        session=session,
        pictures=pictures,
        trigger=trigger_picture(run),
        title=run.resolve().name,
        headline=headline,
        notes=tuple(notes),
        next_step=f"antibackdoor train {data} --decisions {shlex.quote(str(run / DECISIONS))} --out NEW_FOLDER",
    )
