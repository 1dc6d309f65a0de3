"""Groups of samples that belong together: the recordings of a patient, the frames of a track, the pictures of a camera.

Samples of one group are alike. Where some of them are trained on and others tested, the accuracy measures memory.
"""

from __future__ import annotations

import re

import numpy as np

from antibackdoor.data.samples import IntArray
from antibackdoor.data.source import Listed, one_line
from antibackdoor.errors import ConfigError, DataError


def groups_of(listed: Listed, group_by: str, where: str) -> tuple[str, ...]:
    """The group of each sample: what its table says, or what a pattern finds in its id.

    Args:
        listed: The samples.
        group_by: A regular expression; the group is what its first parentheses hold, or else all that it matches.
        where: What to call the data in messages.

    Raises:
        ConfigError: If this is no regular expression.
        DataError: If it matches not every id.
    """
    if listed.groups:
        return listed.groups
    try:
        pattern = re.compile(group_by)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"group_by is {group_by!r:.60}, which is not a valid regular expression: {error}") from error
    found = [pattern.search(name) for name in listed.ids]
    missed = [row for row, match in enumerate(found) if match is None or not _text(match)]
    if missed:
        raise DataError(
            f"{where}: --group-by {one_line(group_by)!r:.60} names no column, and as a pattern it finds no group in "
            f"{len(missed):,} of {len(found):,} ids, such as {one_line(listed.ids[missed[0]])!r:.80}: give another"
        )
    return tuple(_text(match) for match in found if match is not None)


def _text(match: re.Match[str]) -> str:
    return (match.group(1) if match.re.groups else match.group(0)) or ""


def numbered(groups: tuple[str, ...]) -> IntArray:
    """The groups as numbers from 0, `(N,)`, in the order of their names."""
    return np.unique(np.array(groups, dtype=object), return_inverse=True)[1].reshape(-1).astype(np.int64)


def refuse_straddling(train: tuple[str, ...], test: tuple[str, ...], where: str) -> None:
    """Refuse a test split that shares groups with the training split.

    Raises:
        DataError: If it does.
    """
    both = sorted({*train} & {*test})
    if both:
        raise DataError(
            f"{where}: {len(both):,} groups have samples in the training data and in the test data, such as "
            f"{one_line(both[0])!r:.60}: give test data of other groups, or leave --group-by out"
        )
