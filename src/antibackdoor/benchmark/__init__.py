"""Benchmarks made of cells: one measurement each, kept as it is made, resumed where it was stopped.

    runner.py      the run loop: which cells are left to measure, each in a process of its own, and the shared options
    lines.py       the results: JSON lines, one a cell
    provenance.py  versions, commit, machine and command line of a result
    summary.py     means over seeds, Markdown tables

`app/measuring.py` has what is measured of a trained model and of a verdict, and the hash of the training data.
A matrix of cells is a script such as those in `benchmarks/`: a frozen dataclass that describes a cell, a function that
measures one, and a function that makes a table of the lines.
"""

from __future__ import annotations

from antibackdoor.app.measuring import attack_success, data_hash, measure_model, measure_partition, measure_verdict
from antibackdoor.benchmark.lines import append_line, identity, read_lines
from antibackdoor.benchmark.provenance import command, provenance
from antibackdoor.benchmark.runner import Cell, Matrix, Measured, arguments, choose, measure_cells, run
from antibackdoor.benchmark.summary import Mean, grid, mean

__all__ = [
    "Cell",
    "Matrix",
    "Mean",
    "Measured",
    "append_line",
    "arguments",
    "attack_success",
    "choose",
    "command",
    "data_hash",
    "grid",
    "identity",
    "mean",
    "measure_cells",
    "measure_model",
    "measure_partition",
    "measure_verdict",
    "provenance",
    "read_lines",
    "run",
]
