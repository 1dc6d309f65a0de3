"""No CSV that the package writes holds a formula, and each text comes back as it was."""

import ast
import csv
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import antibackdoor
from antibackdoor.app.comparing import _write_table
from antibackdoor.data.csv_cells import as_cell, from_cell, write_rows
from antibackdoor.data.reading import read, write
from antibackdoor.data.samples import Samples
from antibackdoor.report import ComparedRun
from antibackdoor.runs.artifacts import CLASSES, SKIPPED, read_classes, write_classes, write_skipped

SIGNS = ("=", "+", "-", "@", "\t", "\r", "\n")
NAMES = (
    "=1+1",
    "+cmd|' /C calc'!A0",
    "-1+1.png",
    "@dog",
    "\tx",
    "\rx",
    "'=x",
    "''@x",
    "it's",
    "-5",
    "-1.5e-3",
    "plain",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_text_is_no_formula_and_comes_back(name: str) -> None:
    cell = as_cell(name)
    assert from_cell(cell) == name
    assert not cell.startswith(SIGNS) or float(cell) < 0, "a negative number computes nothing"


@given(st.text(alphabet="'=+-@\t\r\n15.ea", max_size=6))
def test_any_text_comes_back(text: str) -> None:
    assert from_cell(as_cell(text)) == text


def test_numbers_and_gaps_are_written_as_they_are() -> None:
    file = io.StringIO()
    write_rows(file, [["a", -1.5, None, -3, "-0.25"]], end="\n")
    assert file.getvalue() == "a,-1.5,,-3,-0.25\n"


def formulas(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8") as file:
        return [cell for row in csv.reader(file) for cell in row if cell.startswith(SIGNS)]


def test_tables_of_a_run(tmp_path: Path) -> None:
    names = np.array(NAMES)
    write_classes(tmp_path, names, {"accuracy": [0.5] * len(names)})
    assert read_classes(tmp_path)[0] == list(NAMES)
    write_skipped(tmp_path, [("=a/b.png", "-x is no image")])
    _write_table(tmp_path / "comparison.csv", [ComparedRun("=m", "defense", 0, {}, "@why")])
    for name in (CLASSES, SKIPPED, "comparison.csv"):
        assert set(formulas(tmp_path / name)) <= {"-5", "-1.5e-3"}, name


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_series_with_such_classes_come_back(tmp_path: Path, suffix: str) -> None:
    inputs = np.linspace(-1, 1, 8 * 12, dtype=np.float32).reshape(8, 1, 12)
    samples = Samples(inputs, np.arange(8) % 2, np.arange(8).astype(str), np.array(["=cat", "@dog"]))
    written = write(tmp_path / f"data{suffix}", samples, format="csv")
    again = read(written.path, test_fraction=0).train
    assert again.class_names.tolist() == ["=cat", "@dog"]
    assert np.array_equal(again.inputs, inputs)
    assert all(float(cell) < 0 for cell in formulas_of(written.path, suffix))


def formulas_of(path: Path, suffix: str) -> list[str]:
    text = path.read_text().replace("\t", ",") if suffix == ".tsv" else path.read_text()
    return [cell for line in text.splitlines() for cell in line.split(",") if cell.startswith(SIGNS)]


def test_nothing_else_writes_csv() -> None:
    root = Path(antibackdoor.__file__).parent
    writers = {"writer", "DictWriter", "write_csv", "to_csv", "savetxt"}
    found = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in writers
    }
    assert found == {"data/csv_cells.py"}
