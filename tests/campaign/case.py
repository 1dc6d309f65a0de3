"""What a generator is given, and what it makes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .sandbox import Sandbox

TRAIN = ("--epochs", "1", "--device", "cpu", "--precision", "fp32", "--batch-size", "8", "--no-progress")
UNFINISHED = 40  # epochs of the training that was killed
PLAIN = ("--defense", "none", *TRAIN)


class Wrong(Exception):
    """The package took data for something else, or kept silent."""


@dataclass(frozen=True)
class Box:
    """The sandbox, the dice and the valid things to start from.

    Attributes:
        sandbox: Its folders.
        rng: The only source of chance.
        material: Read-only folder of valid inputs; see `material.py`.
    """

    sandbox: Sandbox
    rng: np.random.Generator
    material: Path

    @property
    def inputs(self) -> Path:
        """Files here may not change."""
        return self.sandbox.root / "in"

    @property
    def work(self) -> Path:
        """The current folder of the command."""
        return self.sandbox.root / "work"

    @property
    def outside(self) -> Path:
        """Nobody may write or read samples here."""
        return self.sandbox.root / "outside"

    def copy(self, name: str, *, writable: bool = False, as_: str = "") -> Path:
        """A copy of a valid thing among the inputs, or in the current folder."""
        target = (self.work if writable else self.inputs) / (as_ or name)
        target.parent.mkdir(parents=True, exist_ok=True)
        source = self.material / name
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True)
        else:
            shutil.copy(source, target)
        return target

    def pick(self, *options: Any) -> Any:
        """One of them."""
        return options[int(self.rng.integers(len(options)))]

    def chance(self, probability: float) -> bool:
        """True so often."""
        return bool(self.rng.random() < probability)


@dataclass(frozen=True)
class Case:
    """What to do, and what must come of it.

    Attributes:
        command: Arguments of the command line, or
        call: a function of the package to call instead.
        expect: How it must end; `either` where both are right.
        keep: Names below `work` that must not change, beside all inputs.
        check: Looks at the sandbox and the command's output afterwards, in the same process; raises `Wrong`.
        check_always: Also after a refusal.
        before: Called just before the command.
        codes: Exit codes that are right beside 0 and 2.
        most_bytes: That a file may have, as if the disk were full.
        may_run_out: Whether it asks for so much memory that to say so is right.
        about: A line on what was changed, for the person who reads the list of faults.
    """

    command: Sequence[object] = ()
    call: Callable[[], object] | None = None
    expect: Literal["either", "ok", "refused"] = "either"
    keep: tuple[str, ...] = ()
    check: Callable[[str], None] | None = None
    check_always: bool = False
    before: Callable[[], object] | None = None
    codes: tuple[int, ...] = ()
    most_bytes: int = 2**30
    may_run_out: bool = False
    about: str = ""


Generator = Callable[[Box], Case]


@dataclass(frozen=True)
class Table:
    """Generators by name: valid inputs with one change, and anything else."""

    one_change: Mapping[str, Generator]
    hostile: Mapping[str, Generator]

    def merged(self, other: Table) -> Table:
        """Both."""
        return Table({**self.one_change, **other.one_change}, {**self.hostile, **other.hostile})

    def of_case(self, number: int, seed: int) -> tuple[str, Generator]:
        """The generator of a case: every other one changes one thing, and each table is gone through in turn."""
        tables = [table for table in (self.one_change, self.hostile) if table]
        table, place = tables[number % len(tables)], number // len(tables)
        names = sorted(table)
        order = np.random.default_rng([seed, place // len(names)]).permutation(len(names))
        name = names[order[place % len(names)]]
        return name, table[name]


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """One change to some bytes: flipped, cut, doubled, emptied, overwritten, inserted."""
    if not data:
        return b"\0"
    place = int(rng.integers(len(data)))
    kind = int(rng.integers(8))
    length = int(min(len(data) - place, rng.integers(1, 64)))
    if kind == 0:
        return data[:place] + bytes([data[place] ^ (1 << int(rng.integers(8)))]) + data[place + 1 :]
    if kind == 1:
        return data[:place]
    if kind == 2:
        return data[:place] + data[place : place + length] + data[place:]
    if kind == 3:
        return data[:place] + data[place + length :]
    if kind == 4:
        return data[:place] + rng.bytes(length) + data[place + length :]
    if kind == 5:
        return data[:place] + bytes([int(rng.choice([0, 0xFF, 0x7F, 0x80]))]) * length + data[place + length :]
    if kind == 6:
        return data + rng.bytes(length)
    return b"" if rng.random() < 0.3 else data[:place] + rng.bytes(length) + data[place:]


ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 10**30, -(10**30), 2**31, 2**63, 2**64, 1e308, -1e308, 5e-324, 0.5, -0.5, 1e400,
    float("nan"), float("-inf"), "", "x", "0", "nan", "class0", "../../outside/precious.txt", "/etc/passwd",
    "a\nb", "\x1b[31m", "\ud800", "é" * 2000, [], [1], [[]], [None], ["a", 3], {}, {"a": 1}, [{}], [0] * 3000,
)  # fmt: skip


def odd_value(rng: np.random.Generator, old: object = None) -> Any:
    """A value that a careless reader does not expect in the place of `old`."""
    if isinstance(old, list) and old and rng.random() < 0.4:
        return [old[:-1], old + old, old[::-1], [old], [*old, None], [str(part) for part in old]][int(rng.integers(6))]
    if isinstance(old, int | float) and not isinstance(old, bool) and rng.random() < 0.4:
        return [-old, old + 1, old * 1000, str(old), float(old) + 0.5, [old], old - 1][int(rng.integers(7))]
    if isinstance(old, str) and rng.random() < 0.3:
        return [old + "x", old.upper(), old[:-1], old * 50, [old], f"{old}\0"][int(rng.integers(6))]
    return ODD_VALUES[int(rng.integers(len(ODD_VALUES)))]


def mutated_json(values: Any, rng: np.random.Generator) -> tuple[Any, str]:
    """The same nest with one value changed, one key lost or one renamed; and where."""
    places: list[tuple[Any, Any, str]] = []

    def walk(part: Any, name: str) -> None:
        inner = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
        for key, value in inner:
            places.append((part, key, f"{name}.{key}"))
            walk(value, f"{name}.{key}")

    walk(values, "")
    if not places:
        return odd_value(rng), "all"
    part, key, name = places[int(rng.integers(len(places)))]
    kind = int(rng.integers(10))
    if kind == 0:
        del part[key]
        return values, f"{name} removed"
    if kind == 1 and isinstance(part, dict):
        part[f"{key}_"] = part.pop(key)
        return values, f"{name} renamed"
    part[key] = odd_value(rng, part[key])
    return values, f"{name} = {str(part[key])[:60]!r}"
