"""Flags of several values: `--mean 0.5,0.4`, `--mean 0.5 0.4` and `--mean 0.5 --mean 0.4` say the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

# Those that take several values, and whether these are numbers.
LISTS = {"--mean": True, "--std": True, "--betas": True, "--layers": False}


def with_lists(arguments: Sequence[str]) -> list[str]:
    """The arguments, in which every value of such a flag has the flag before it, as the parser reads them.

    Values may be joined by commas. Numbers may also follow each other; a name that follows another may be something
    else, such as the model.

    >>> with_lists(["purify", "run", "--mean", "0.5,0.4", "--std", "0.2", "0.3", "--layers=a,b", "--out", "x"])
    ['purify', 'run', '--mean=0.5', '--mean=0.4', '--std=0.2', '--std=0.3', '--layers=a', '--layers=b', '--out', 'x']
    """
    return list(_spread(arguments))


def _spread(arguments: Sequence[str]) -> Iterator[str]:
    place = 0
    while place < len(arguments):
        flag, equals, text = arguments[place].partition("=")
        place += 1
        if flag not in LISTS:
            yield arguments[place - 1]
            continue
        values = [text] if equals else list(arguments[place : place + 1])
        place += 0 if equals else len(values)
        while not equals and LISTS[flag] and place < len(arguments) and _are_numbers(arguments[place]):
            values.append(arguments[place])
            place += 1
        if values:
            yield from (f"{flag}={part.strip()}" for value in values for part in value.split(","))
        else:
            yield flag


def _are_numbers(text: str) -> bool:
    try:
        return all(float(part) is not None for part in text.split(","))
    except ValueError:
        return False
