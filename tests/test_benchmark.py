"""The run loop of the benchmarks, with a measure function that takes no time; and what is measured of a model."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from antibackdoor.app.by_class import measure_by_class
from antibackdoor.attacks import AllToOne, SavedTrigger, SourceSpecific, Truth
from antibackdoor.benchmark import (
    Matrix,
    Measured,
    append_line,
    arguments,
    command,
    data_hash,
    identity,
    mean,
    measure_cells,
    measure_model,
    measure_partition,
    measure_verdict,
    provenance,
    read_lines,
    run,
)
from antibackdoor.benchmark.runner import choose, unlike
from antibackdoor.data.copies import Uncounted
from antibackdoor.data.samples import Samples
from antibackdoor.errors import ConfigError, DataError
from antibackdoor.protocols import ISOLATED, KEPT, NO_CRITERION, RELABELED, SCORE, Verdict
from antibackdoor.runs.metric_keys import MEASURED_WITH_A_TRIGGER
from antibackdoor.statistics.intervals import wilson_interval
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.session import Session


@dataclass(frozen=True)
class Cell:
    """One measurement of nothing."""

    data: str
    seed: int
    method: str = ""
    settings: tuple[tuple[str, int], ...] = ()

    @property
    def name(self) -> str:
        return f"{self.data}/{self.method or 'none'}/{self.seed}"

    @property
    def form(self) -> str:
        return ":".join((self.name, *(f"{key}={value}" for key, value in self.settings)))


def measure(cell: Cell, folder: Path) -> Measured:
    """Each call leaves a mark; one cell fails, one is killed."""
    with (folder / "calls").open("a") as file:
        file.write(f"{cell.name}\n")
    print("what a library says on standard output")
    if cell.data == "broken":
        raise ValueError("these data are broken")
    if cell.data == "killed":
        os._exit(9)
    return Measured({"seed_twice": 2 * cell.seed, "nothing": float("nan"), "n": np.int64(3)}, "abc")


def table(lines: list[dict[str, Any]]) -> str:
    return ", ".join(str(line["name"]) for line in lines)


def matrix(*cells: Cell, file: str = "") -> Matrix[Cell]:
    return Matrix(cells, measure, table, lambda metrics: str(metrics["n"]), lambda cell: file, methods=("method",))


def calls(folder: Path) -> list[str]:
    path = folder / "calls"
    return path.read_text().splitlines() if path.exists() else []


def options(folder: Path, *words: str) -> argparse.Namespace:
    return arguments("Nothing.", out=folder / "results.jsonl", data=folder, seeds=1).parse_args(list(words))


def test_what_is_measured_is_not_measured_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first, second = Cell("digits", 1), Cell("digits", 2, settings=(("k", 3),))
    out = tmp_path / "results.jsonl"
    assert measure_cells(matrix(first), [first], out, tmp_path) == []
    whole = out.read_bytes()
    out.write_bytes(whole + b'{"name": "digits/none/2", "cell": {"da')  # killed while it wrote
    run(matrix(first, second), options(tmp_path))
    assert calls(tmp_path) == ["digits/none/1", "digits/none/2"]
    lines = read_lines(out)
    assert [line["metrics"] for line in lines] == [{"seed_twice": n, "nothing": None, "n": 3} for n in (2, 4)]
    assert lines[1]["cell"] == {"data": "digits", "seed": 2, "method": "", "settings": [["k", 3]]}
    assert {"name", "cell", "metrics", "data_hash", "versions", "commit", "machine", "command"} == set(lines[1])
    assert out.read_bytes().startswith(whole)
    # Standard output holds the table alone.
    assert capfd.readouterr().out == "digits/none/1, digits/none/2\n"


def test_a_cell_that_fails_does_not_stop_the_others(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cells = Cell("broken", 0), Cell("killed", 0), Cell("digits", 0)
    with pytest.raises(SystemExit, match="2 cells failed"):
        run(matrix(*cells), options(tmp_path))
    told = capfd.readouterr()
    assert "these data are broken" in told.err and "exit code 9" in told.err
    assert told.out == "digits/none/0\n"
    assert [line["name"] for line in read_lines(tmp_path / "results.jsonl")] == ["digits/none/0"]


def test_again_table_and_missing_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cell = Cell("digits", 0)
    run(matrix(cell, file="digits.npz"), options(tmp_path))
    assert "there is no digits.npz" in capsys.readouterr().err
    run(matrix(cell), options(tmp_path, "--table"))
    assert calls(tmp_path) == []
    append_line(tmp_path / "results.jsonl", {"name": cell.name, "cell": {"data": "digits"}, "metrics": {"n": 1}})
    run(matrix(cell), options(tmp_path))
    assert calls(tmp_path) == []  # a line of an older version, with fewer fields, counts
    run(matrix(cell), options(tmp_path, "--again"))
    assert len(calls(tmp_path)) == 1 and read_lines(tmp_path / "results.jsonl")[0]["metrics"]["n"] == 3


def test_cells_are_chosen_by_name_or_form() -> None:
    cells = [Cell("digits", 0), Cell("digits", 1), Cell("digits", 1, "none", (("k", 3),))]
    assert choose(cells, "*/1") == cells[1:]
    assert choose(cells, "*:k=3,digits/none/0") == [cells[0], cells[2]]
    with pytest.raises(ConfigError, match="matches no cell; the first is digits/none/0"):
        choose(cells, "mnist/*")


def test_identity_leaves_out_what_is_empty() -> None:
    cell = dataclasses.asdict(Cell("digits", 0, settings=(("k", 3),)))
    assert identity(cell) == identity(json.loads(json.dumps(cell)))
    assert identity(cell) == identity({**cell, "plan": "", "rate": 0.0})
    assert identity(cell) != identity({**cell, "seed": 1})


def test_the_last_line_of_a_cell_counts(tmp_path: Path) -> None:
    out = tmp_path / "new" / "results.jsonl"
    assert read_lines(out) == []
    for n, data in enumerate(("a", "b", "a")):
        append_line(out, {"cell": {"data": data}, "n": n})
    out.write_bytes(out.read_bytes() + b'[1]\n{"throughput": 3}\n\xff\n')
    assert [(line["cell"]["data"], line["n"]) for line in read_lines(out)] == [("a", 2), ("b", 1)]


def test_other_data_under_another_method_are_told() -> None:
    lines = [
        {"name": f"{data}/{method}", "cell": {"data": data, "method": method}, "data_hash": hashed}
        for data, method, hashed in (("a", "x", "1"), ("a", "y", "2"), ("b", "x", "3"), ("b", "y", "3"))
    ]
    assert unlike([*lines, {"name": "a/z", "cell": {"data": "a", "method": "z"}}], ["method"]) == ["a/y"]


def test_the_command_names_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["/home/me/repository/benchmarks/series.py", "--out", "/tmp/a.jsonl", "--data=/data", "--cells", "a/b"]
    monkeypatch.setattr(sys, "argv", words)
    expected = ["python", "benchmarks/series.py", "--out", "a.jsonl", "--data=data", "--cells", "a/b"]
    assert command() == expected
    assert set(provenance()) == {"versions", "commit", "machine"}


def test_a_mean_over_seeds() -> None:
    assert str(mean([0.9, 0.92, None, 0.94])) == "92.0 ± 5.0"  # 4.303 * 0.02 / sqrt(3)
    assert (str(mean([0.5])), str(mean([None]))) == ("50.0", "-")


def test_the_scripts_import_each_other_without_circles() -> None:
    paths = {path.stem: path for path in (Path(__file__).parents[1] / "benchmarks").glob("*.py")}
    needs = {name: {part for part in imported(path) if part in paths} for name, path in paths.items()}
    assert needs["tables"] and needs["unseen"]
    while ready := {name for name, parts in needs.items() if not parts}:
        needs = {name: parts - ready for name, parts in needs.items() if name not in ready}
    assert not needs, f"circles among {sorted(needs)}"


def imported(path: Path) -> set[str]:
    """Top parts of all that a file imports, wherever in the file it does."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


# --------------------------------------------------------------------------- what is measured


def series(labels: list[int]) -> Samples:
    """Constant series whose value is the label."""
    inputs = np.array(labels, dtype=np.float32)[:, None, None].repeat(4, axis=2)
    ids = np.arange(len(labels)).astype(str)
    return Samples(inputs, np.array(labels, dtype=np.int64), ids, np.array(["a", "b", "c"]))


class ByValue(nn.Module):
    """Classifies a series by its first value; what is above 5 is of class 0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = x[:, 0, 0].round().long()
        return nn.functional.one_hot(torch.where(value > 5, 0, value), 3).float()


@dataclass(frozen=True)
class Louder:
    """Adds 10 to half of the samples, and 1 to the others."""

    def apply(self, inputs: np.ndarray[Any, Any], ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        added = np.where(np.arange(len(inputs)) % 2 == 0, 10, 0).astype(np.float32)
        return inputs + added[:, None, None]


def test_a_model_is_measured_by_hand_computed_numbers() -> None:
    test = series([0, 0, 0, 0, 1, 1, 2, 2])
    test = test.relabel(np.array([0, 0, 0, 1, 1, 1, 2, 2]))  # the model says 0 of the fourth
    session = Session(Recipe(device="cpu", progress=False), len(test), images=False)
    model = session.prepare(ByValue())
    plain = measure_model(session, model, test)
    assert plain["clean_accuracy"] == 7 / 8 and plain["n_test"] == 8
    assert plain["clean_accuracy_low"] < 7 / 8 < plain["clean_accuracy_high"]
    assert "attack_success_rate" not in plain
    plan = AllToOne(target_label=0).fit(3)
    measured = measure_model(session, model, test, trigger=Louder(), plan=plan)
    # Five samples are not of class 0; the trigger works on the first, third and fifth of them, in effect.
    assert measured["n_triggered"] == 5 and measured["attack_success_rate"] == 3 / 5
    assert measured["robust_accuracy"] == 2 / 5 and measured["clean_accuracy_nontarget"] == 4 / 5
    assert measured["attack_success_rate_low"] < 3 / 5 < measured["attack_success_rate_high"]
    with pytest.raises(DataError, match="none of the test samples"):
        measure_model(session, model, series([0, 0]), trigger=Louder(), plan=plan)
    with pytest.raises(ConfigError, match="both"):
        measure_model(session, model, test, plan=plan)


def test_a_trigger_for_one_class_is_measured_on_the_others() -> None:
    test = series([0, 0, 1, 1, 2, 2, 2, 2, 2])
    session = Session(Recipe(device="cpu", progress=False), len(test), images=False)
    plan = SourceSpecific(target_label=0, source_label=1).fit(3)
    measured = measure_model(session, session.prepare(ByValue()), test, trigger=Louder(), plan=plan)
    assert measured["n_triggered"] == 2 and measured["attack_success_rate"] == 1 / 2
    # Five samples of class 2: the first, third and fifth become class 0.
    others = {key: value for key, value in measured.items() if "_other_sources" in key}
    low, high = wilson_interval(3, 5)
    assert others == {
        "attack_success_rate_other_sources": 3 / 5,
        "attack_success_rate_other_sources_low": low,
        "attack_success_rate_other_sources_high": high,
        "robust_accuracy_other_sources": 2 / 5,
        "n_triggered_other_sources": 5,
    }
    assert others.keys() <= {*MEASURED_WITH_A_TRIGGER}


def test_what_does_not_count_counts_for_no_accuracy() -> None:
    test = series([0, 1, 1, 1, 2])
    test = test.relabel(np.array([0, 1, 2, 2, 1]))  # the model is wrong about the last three
    session = Session(Recipe(device="cpu", progress=False), len(test), images=False)
    saved = SavedTrigger(Louder(), AllToOne(target_label=0).fit(3), "", {})
    nobody, last = np.zeros(5, dtype=bool), np.arange(5) == 4
    for left_out, right in ((None, 1 / 4), (Uncounted(nobody, last), 1 / 3)):
        measured, _ = measure_by_class(session, session.prepare(ByValue()), test, saved, uncounted=left_out)
        assert measured["clean_accuracy_nontarget"] == right


def test_a_verdict_is_measured_by_hand_computed_numbers() -> None:
    status = np.array([KEPT, ISOLATED, RELABELED, RELABELED], dtype=np.uint8)
    criterion = np.where(status == KEPT, NO_CRITERION, SCORE).astype(np.uint8)
    verdict = Verdict(np.array([0.1, 0.2, 0.8, 0.9]), status, np.array([0, 0, 1, 2]), criterion, True, (0,), 0.01)
    is_poisoned = np.array([True, False, True, True])
    truth = Truth(is_poisoned, np.array([1, 0, 1, 1]), np.zeros(4, dtype=bool))
    measured = measure_verdict(verdict, truth)
    counts = {key: measured[f"n_{key}"] for key in ("poisoned", "isolated", "missed", "false", "relabeled", "cleaned")}
    assert counts == {"poisoned": 3, "isolated": 3, "missed": 1, "false": 1, "relabeled": 2, "cleaned": 0}
    assert measured["recovered_label_precision"] == 1 / 2 and measured["isolation_recall"] == 2 / 3
    assert measured["target_labels"] == [0] and measured["p_value"] == 0.01
    composite = dataclasses.replace(truth, also_true=np.array([1, 0, 1, 2]))
    assert measure_verdict(verdict, composite)["recovered_label_precision"] == 1
    honest = measure_verdict(verdict)
    assert honest["n_poisoned"] == 0 and honest["n_false"] == 3 and "recovered_label_precision" not in honest


def test_either_class_of_a_composite_is_right_in_the_middle_of_a_training() -> None:
    status, twos = np.zeros(200, dtype=np.uint8), np.full(200, 2)
    verdict = Verdict(np.arange(200.0), status, twos, status)
    is_poisoned, ones = np.arange(200) >= 198, np.ones(200, dtype=np.int64)
    assert measure_partition(verdict, is_poisoned, ones)["true_label_precision"] == 0
    assert measure_partition(verdict, is_poisoned, ones, twos)["true_label_precision"] == 1


def test_the_hash_is_that_of_inputs_and_labels(tmp_path: Path) -> None:
    samples = series([0, 1, 2])
    np.save(tmp_path / "inputs.npy", samples.inputs)
    mapped = dataclasses.replace(samples, inputs=np.load(tmp_path / "inputs.npy", mmap_mode="r"))
    assert data_hash(samples) == data_hash(mapped) == data_hash(dataclasses.replace(samples, ids=samples.ids[::-1]))
    others = samples.relabel(np.array([0, 2, 2])), dataclasses.replace(samples, inputs=samples.inputs + 1)
    assert len({data_hash(one) for one in (samples, *others, samples.take(np.array([0, 1])))}) == 4
