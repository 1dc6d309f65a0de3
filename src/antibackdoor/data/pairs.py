"""Archives of time series name two files of one data set `NAME_TRAIN` and `NAME_TEST`."""

from __future__ import annotations

import re
from pathlib import Path

from antibackdoor.data.output import refuse_existing
from antibackdoor.errors import DataError

_TRAIN = re.compile(r"(.*)_(train)", re.IGNORECASE)


def test_beside(path: Path) -> Path | None:
    """The `_TEST` file beside a `_TRAIN` file, if there is one."""
    match = _TRAIN.fullmatch(path.stem)
    if match is None:
        return None
    test = _counterpart(path, match)
    return test if test.is_file() else None


def written_pair(path: Path, *, with_test: bool) -> tuple[Path, Path | None]:
    """The two files to write a data set to; `_TRAIN` is put into the name where it is missing.

    Raises:
        DataError: If one of them exists.
    """
    match = _TRAIN.fullmatch(path.stem)
    if with_test and match is None:
        path = path.with_stem(path.stem + "_TRAIN")
        match = _TRAIN.fullmatch(path.stem)
    test = _counterpart(path, match) if match is not None else None
    if test is not None and not with_test and test.exists():
        raise DataError(f"{test} exists and would be taken for the test split; remove it or write elsewhere")
    for file in (path, test):
        if file is not None:
            refuse_existing(file)
    return path, test if with_test else None


def _counterpart(path: Path, match: re.Match[str]) -> Path:
    return path.with_stem(f"{match[1]}_{ {'train': 'test', 'TRAIN': 'TEST'}.get(match[2], 'Test') }")
