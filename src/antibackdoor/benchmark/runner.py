"""The run loop of a benchmark: what is not measured yet is measured, each cell in a process of its own."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

from antibackdoor.benchmark.lines import Line, append_line, identity, read_lines
from antibackdoor.benchmark.provenance import command, provenance
from antibackdoor.errors import AntibackdoorError, ConfigError
from antibackdoor.runs.atomic import plain


class Cell(Protocol):
    """What is measured once: a frozen dataclass whose fields are JSON's types; one of them is the seed."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def seed(self) -> int:
        """Seed of everything random in the cell."""
        ...

    @property
    def name(self) -> str:
        """Parts joined by `/`, for tables and for `--cells`; cells may share it."""
        ...

    @property
    def form(self) -> str:
        """The name with what tells the cell from others of that name, for `--cells`; the name itself if none has."""
        ...


C = TypeVar("C", bound=Cell)


class Measured(NamedTuple):
    """What measuring a cell returns.

    Attributes:
        metrics: In JSON's types, or numpy's; by name.
        data_hash: Of the training data, poisoned as every method of the table gets them: see `data_hash`.
    """

    metrics: dict[str, Any]
    data_hash: str


@dataclass(frozen=True)
class Matrix(Generic[C]):
    """A benchmark: its cells, and what is done with one.

    Attributes:
        cells: In the order in which they are measured.
        measure: A cell and the folder of the data sets to what was measured. A function of a module, called in a
            fresh process.
        table: Lines to Markdown.
        brief: Metrics to half a line, told when a cell is measured.
        file: A cell to the file that must lie in the folder of the data sets; empty if it needs none. Cells whose
            file is not there are passed over.
        methods: Fields of a cell that leave its training data alone: cells that differ in these only must have data
            of the same hash.
    """

    cells: Sequence[C]
    measure: Callable[[C, Path], Measured]
    table: Callable[[list[Line]], str]
    brief: Callable[[dict[str, Any]], str]
    file: Callable[[C], str]
    methods: tuple[str, ...] = ()


def arguments(description: str, *, out: Path, data: Path, seeds: int) -> argparse.ArgumentParser:
    """The options that all benchmarks share.

    Args:
        description: Of the benchmark.
        out: Default of `--out`.
        data: Default of `--data`.
        seeds: Default of `--seeds`.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--seeds", type=int, default=seeds, help=f"number of seeds, from 0 on (default: {seeds})")
    parser.add_argument("--cells", default="*", help="only these, such as 'cifar10/badnets/*/0,*/clean/*'")
    parser.add_argument("--again", action="store_true", help="measure chosen cells again; the last result counts")
    parser.add_argument("--table", action="store_true", help="print the table of what is there; measure nothing")
    parser.add_argument("--out", type=Path, default=out, help=f"JSON lines, one a cell (default: {out.name})")
    parser.add_argument("--data", type=Path, default=data, help="folder of the data sets")
    return parser


def run(matrix: Matrix[C], options: argparse.Namespace) -> None:
    """Measure the chosen cells that have no line yet, and print the table of the chosen ones.

    Exits with a message if no cell is chosen, a file cannot be used, or cells failed.
    """
    try:
        chosen = choose(matrix.cells, options.cells)
        failed = [] if options.table else measure_cells(matrix, chosen, options.out, options.data, again=options.again)
        wanted = {identity(asdict(cell)) for cell in chosen}
        lines = [line for line in read_lines(options.out) if identity(line["cell"]) in wanted]
    except AntibackdoorError as error:
        sys.exit(str(error))
    print(matrix.table(lines))
    for name in unlike(lines, matrix.methods):
        _tell(f"{name}: not the same training data as under the other methods; measure them again on one machine")
    if failed:
        sys.exit(f"{len(failed)} cells failed; run the same command again for them alone")


def choose(cells: Sequence[C], patterns: str) -> list[C]:
    """The cells whose name or form fits one of the patterns, which are joined by commas.

    Raises:
        ConfigError: If none does.
    """
    wanted = patterns.split(",")
    chosen = [c for c in cells if any(fnmatchcase(name, p) for name in (c.name, c.form) for p in wanted)]
    if not chosen:
        names = f"; the first is {cells[0].name}" if cells else ": there is none"
        raise ConfigError(f"--cells {patterns} matches no cell{names}")
    return chosen


def measure_cells(matrix: Matrix[C], chosen: Sequence[C], out: Path, data: Path, *, again: bool = False) -> list[str]:
    """Measure cells, and add a line for each as soon as it is measured.

    A line has the cell's `name` and fields (`cell`), `metrics`, `data_hash`, what `provenance` tells, and `command`.

    Args:
        matrix: How a cell is measured.
        chosen: The cells.
        out: Takes the lines; cells that have one already are passed over.
        data: Folder of the data sets.
        again: Measure all the same.

    Returns:
        Forms of the cells that failed; their errors are on standard error, and they have no line.
    """
    done = set() if again else {identity(line["cell"]) for line in read_lines(out)}
    todo = [cell for cell in chosen if identity(asdict(cell)) not in done]
    failed = []
    for number, cell in enumerate(todo, start=1):
        _tell(f"[{number}/{len(todo)}] {cell.form}")
        file = matrix.file(cell)
        if file and not (data / file).exists():
            _tell(f"    skipped: there is no {file} in {data}")
            continue
        line = in_own_process(matrix.measure, cell, data)
        if line is None:
            failed.append(cell.form)
            continue
        append_line(out, {**line, "command": command()})
        _tell(f"    {matrix.brief(line['metrics'])}")
    return failed


def in_own_process(measure: Callable[[C, Path], Measured], cell: C, data: Path) -> Line | None:
    """The line of a cell, measured in a fresh process; None if that failed or was killed, which is told."""
    fresh = multiprocessing.get_context("spawn")  # a fork would share threads and memory of this process
    ours, theirs = fresh.Pipe(duplex=False)
    process = fresh.Process(target=_measure_here, args=(theirs, measure, cell, data))
    process.start()
    theirs.close()
    try:
        text = ours.recv_bytes()
    except EOFError:
        text = b""
    except BaseException:  # Ctrl-C, most of all: leave no process behind
        process.terminate()
        raise
    finally:
        process.join()
        ours.close()
    if process.exitcode or not text:
        _tell(f"    failed with exit code {process.exitcode}")
        return None
    line: Line = json.loads(text)
    return line


def _measure_here(answer: Connection, measure: Callable[[C, Path], Measured], cell: C, data: Path) -> None:
    """What the fresh process does."""
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # standard output is for the table
    about = provenance()  # first: the source may be edited while the cell is measured
    measured = measure(cell, data)
    line = {"name": cell.name, "cell": asdict(cell), "metrics": measured.metrics, "data_hash": measured.data_hash}
    answer.send_bytes(json.dumps(plain({**line, **about}), allow_nan=False).encode("ascii"))


def unlike(lines: Sequence[Line], methods: Sequence[str]) -> list[str]:
    """Names of cells whose data differ from those of the first cell that is the same but for its method.

    Args:
        lines: As they were written; those without a hash (of older versions) are passed over.
        methods: Fields of a cell that leave its data alone.
    """
    first: dict[str, str] = {}
    found = []
    for line in lines:
        if hashed := line.get("data_hash"):
            of_data = {key: value for key, value in line["cell"].items() if key not in methods}
            if first.setdefault(identity(of_data), hashed) != hashed:
                found.append(str(line["name"]))
    return found


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
