"""Numbers that would mislead: what they rest on stands beside them, in metrics, words, terminal and page."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import pictures, write_folder
from hypothesis import given, settings
from hypothesis import strategies as st

import antibackdoor
from antibackdoor.app.evaluation import evaluate
from antibackdoor.app.measuring import accuracy_metrics
from antibackdoor.cli.telling import print_facts
from antibackdoor.data.copies import uncounted
from antibackdoor.data.reading import DataSet
from antibackdoor.data.samples import Samples
from antibackdoor.defenses import Undefended
from antibackdoor.defenses.abl import ABLFacts
from antibackdoor.errors import RunError
from antibackdoor.protocols import ISOLATED, KEPT, RELABELED, Verdict
from antibackdoor.report.facts import method_facts
from antibackdoor.report.words import key_numbers, remarks, verdict
from antibackdoor.runs.artifacts import read_classes, read_metrics
from antibackdoor.runs.measurements import MEASUREMENTS, read_measurements
from antibackdoor.search.evidence import unexamined_labels
from antibackdoor.training.recipe import Recipe

Call = Callable[..., tuple[int, str, str]]
RECIPE = Recipe(epochs=1, batch_size=16, device="cpu", precision="fp32", augment="none")


def series(n: int, seed: int, n_classes: int = 2) -> Samples:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(0, 1, (n, 1, 24)).astype(np.float32)
    labels = np.arange(n, dtype=np.int64) % n_classes
    ids = np.array([f"{seed}/{row}" for row in range(n)])
    return Samples(inputs, labels, ids, np.array([f"c{k}" for k in range(n_classes)]))


def joined(*parts: Samples) -> Samples:
    inputs, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("inputs", "labels"))
    return Samples(inputs, labels, np.arange(len(labels)).astype(str), parts[0].class_names)


# --------------------------------------------------------------------------- suspicion and status


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=40))
def test_suspicion_agrees_with_the_status(rows: list[tuple[int, int, int]]) -> None:
    labels, status, score = (np.array(column) for column in zip(*rows, strict=True))
    given = Verdict(score.astype(float), status.astype(np.uint8), labels, status.astype(np.uint8))
    said = given.ordered(labels)
    for label in set(labels.tolist()):
        of = labels == label
        np.testing.assert_array_equal(np.sort(said.suspicion[of]), np.sort(given.suspicion[of]))
        for kind in (said.isolated & of, ~said.isolated & of):
            before, after = given.suspicion[kind], said.suspicion[kind]
            assert (np.diff(after[np.argsort(before, kind="stable")]) >= 0).all(), "both groups keep their order"
        if (said.isolated & of).any() and (~said.isolated & of).any():
            assert said.suspicion[said.isolated & of].min() >= said.suspicion[~said.isolated & of].max()
    np.testing.assert_array_equal(said.ordered(labels).suspicion, said.suspicion)


def test_a_verdict_that_agrees_is_left_alone() -> None:
    status = np.array([KEPT, RELABELED, ISOLATED, KEPT], dtype=np.uint8)
    given = Verdict(np.array([0.1, 0.8, 0.5, 0.5]), status, np.zeros(4, dtype=np.int64), status)
    assert given.ordered(np.zeros(4, dtype=np.int64)).suspicion.tolist() == [0.1, 0.8, 0.5, 0.5]


# --------------------------------------------------------------------------- labels that were not examined


def test_small_labels_are_named_whatever_was_found() -> None:
    samples = joined(series(120, 0, 3), replace(series(0, 1, 3)))
    few = samples.take(np.flatnonzero((samples.labels != 1) | (np.arange(120) < 30)))
    assert unexamined_labels(samples, 0) == () and unexamined_labels(few, 0) == (1,)
    copies = joined(few, *[few.take(np.flatnonzero(few.labels == 1))] * 3)
    assert (copies.labels == 1).sum() == 40 and unexamined_labels(copies, 0) == (1,), "copies are no more samples"


def test_silence_about_small_labels_is_told() -> None:
    quiet = {"poisoned": False, "n_samples": 60, "n_unexamined_labels": 1, "n_unexamined_samples": 9,
             "unexamined_labels": ["rare"], "false_alarm_probability": 1.0}  # fmt: skip
    said = verdict(quiet)
    assert said.title == "Nothing found." and "1 label was not examined" in " ".join(said.sentences)
    assert "rare" in " ".join(said.sentences)
    assert "False alarm" not in {number.name for number in key_numbers(quiet)}
    blind = verdict({**quiet, "poisoned": None, "n_unexamined_samples": 60, "n_unexamined_labels": 8})
    assert blind.title == "No label could be examined." and "None of the 8 labels" in " ".join(blind.sentences)
    assert verdict({"poisoned": None, "n_samples": 60}).title == "This run gives no verdict on the data set."
    found = {**quiet, "poisoned": True, "false_alarm_probability": 0.02}
    assert "not examined" in " ".join(verdict(found).sentences)
    assert "False alarm" in {number.name for number in key_numbers(found)}


def test_the_interval_says_what_it_is_conditional_on() -> None:
    facts = {"poisoned": True, "estimated_poisoning_rate": 0.04} | {
        f"estimated_poisoning_rate_{end}": value for end, value in (("low", 0.03), ("high", 0.05))
    }
    (rate,) = [number for number in key_numbers(facts) if number.name == "Poisoning rate"]
    assert rate.note.endswith("if no poison was missed")
    assert "cover only the poison that was found" in remarks(facts)[0]
    assert not remarks({"poisoned": False, "estimated_poisoning_rate_high": None})


def test_a_purification_that_spoils_the_model_says_so() -> None:
    given = {"accuracy_before": 0.75, "accuracy_after": 0.54}
    (said,) = remarks(given)
    assert "too strong: accuracy on the clean samples fell from 75.0% to 54.0%" in said
    assert not remarks({"accuracy_before": 0.75, "accuracy_after": 0.71})
    tested = {"clean_accuracy_before": 0.9, "clean_accuracy": 0.89}
    assert not remarks({**given, **tested}), "what test samples say counts more"
    assert "on the test samples fell" in remarks({**tested, "clean_accuracy": 0.5})[0]


def test_a_fallback_is_told() -> None:
    """Samples are isolated, but not because anything was found."""
    (said,) = remarks({"fell_back": True, "flagged_share": 0.62})
    assert "still predicts the given label of 62.0% of the samples" in said and "lowest loss" in said
    assert said in " ".join(verdict({"poisoned": None, "fell_back": True, "flagged_share": 0.62}).sentences)
    assert not remarks({"fell_back": False, "flagged_share": 0.1}) and remarks({"fell_back": True})


def test_the_facts_of_a_training_are_on_its_page(call: Call, tmp_path: Path) -> None:
    data = write_folder(pictures(24), tmp_path / "data")
    abl = ["--defense", "abl", "--isolation-rate", "0.2", "--isolation-epochs", "1", "--unlearning-epochs", "1"]
    words = ["--epochs", "1", "--backbone", "wrn-10-1", "--device", "cpu"]
    assert call("train", data, "--out", tmp_path / "run", *abl, *words)[0] == 0
    page, metrics = (tmp_path / "run" / "report.html").read_text(), read_metrics(tmp_path / "run")
    rows = dict(method_facts(metrics))
    assert rows.keys() == {part.name for part in fields(ABLFacts)}
    assert "What the method reports" in page and all(f"<bdi>{name}</bdi>" in page for name in rows)
    assert method_facts({"method": "dual-head", "n_samples": 3, "found_by": "", "estimated_poisoning_rate": 0.1}) == []


# --------------------------------------------------------------------------- copies, classes


def test_copies_and_conflicts_count_for_no_accuracy() -> None:
    train, test = series(40, 0), series(20, 1)
    known = train.take(np.arange(10)).relabel(1 - train.labels[:10])
    twice = test.take(np.array([4])).relabel(1 - test.labels[[4]])
    whole = joined(test, known, twice)
    left_out = uncounted(whole, train.contents)
    assert np.flatnonzero(left_out.trained_on).tolist() == list(range(20, 30)), "under another label, too"
    assert np.flatnonzero(left_out.conflicting).tolist() == [4, 30]
    answers = whole.labels.copy()
    answers[:5] = 1 - answers[:5]
    measured = accuracy_metrics(answers, whole.labels, left_out)
    assert (measured["n_test"], measured["n_test_copies"], measured["n_test_conflicting"]) == (31, 10, 2)
    assert measured["clean_accuracy"] == 15 / 19 and measured["clean_accuracy_with_copies"] == 26 / 31


def test_a_constant_answer_has_a_low_balanced_accuracy() -> None:
    labels = np.array([0] * 19 + [1])
    measured = accuracy_metrics(np.zeros(20, dtype=np.int64), labels)
    assert measured["clean_accuracy"] == 0.95 and measured["balanced_accuracy"] == 0.5


@pytest.fixture(scope="module")
def leaky(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DataSet]:
    """A run whose test data hold copies of its training data, which hold a conflict themselves."""
    train = series(40, 0)
    train = joined(train, train.take(np.array([0])).relabel(1 - train.labels[[0]]))
    test = joined(series(20, 1), train.take(np.arange(1, 6)))
    run = tmp_path_factory.mktemp("leaky") / "run"
    data = DataSet(train, test, "npz", (), {"test": "given"})
    antibackdoor.train(data, antibackdoor.Job(Undefended(), RECIPE), run)
    return run, data


def page_of(run: Path) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


def test_a_training_tells_copies_and_classes(leaky: tuple[Path, DataSet]) -> None:
    run, _ = leaky
    metrics = read_metrics(run)
    assert (metrics["n_test"], metrics["n_test_copies"], metrics["n_conflicting_copies"]) == (25, 5, 2)
    assert {"balanced_accuracy", "clean_accuracy_low", "clean_accuracy_with_copies"} <= metrics.keys()
    names, columns = read_classes(run)
    assert names == ["c0", "c1"] and columns["clean_accuracy_n"] == [10, 10]
    page = page_of(run)
    for words in ("5 of 25 test samples are exact copies", "2 training samples are exact copies", "Balanced accuracy",
                  "With copies", "Clean accuracy by class", "on which data"):  # fmt: skip
        assert words in page, words


def test_no_measurement_replaces_another(leaky: tuple[Path, DataSet]) -> None:
    run, data = leaky
    before, table = read_metrics(run), read_classes(run)
    measured = evaluate(run, data.train, split="train", device="cpu")
    assert (
        np.isnan(measured["clean_accuracy"])
        and measured["n_test_copies"] == 41
        and measured["by_class"] == MEASUREMENTS
    )
    assert read_metrics(run) == before and read_classes(run) == table
    assert "training split" in page_of(run) and "all trained on" in page_of(run)
    other = series(30, 5)
    evaluate(run, other, device="cpu")
    after = read_metrics(run)
    assert after["n_test"] == 30 and after["test_fingerprint"] != before["test_fingerprint"]
    assert "clean_accuracy_with_copies" not in after, "a number of the other data"
    kept = read_measurements(run)
    assert [(entry.split, entry.numbers["n_test"], entry.n_counted) for entry in kept] == [
        ("test", 25, 20), ("train", 41, 0), ("test", 30, 30),
    ]  # fmt: skip
    assert kept[0].test_fingerprint == before["test_fingerprint"]
    assert kept[0].numbers["clean_accuracy"] == before["clean_accuracy"]
    evaluate(run, other, device="cpu")
    assert len(read_measurements(run)) == 3, "of the same data again"


@pytest.mark.parametrize(
    "change",
    [
        {"split": "else"}, {"numbers": [1]}, {"numbers": {"n_test": "x"}}, {"class_names": [1]}, {"more": 1},
        {"by_class": {"clean_accuracy": [1.0]}}, {"test_fingerprint": None},
    ],
)  # fmt: skip
def test_damaged_measurements_are_one_line(tmp_path: Path, change: dict[str, object]) -> None:
    entry = {"split": "test", "test_fingerprint": "ab", "trigger_fingerprint": None, "numbers": {"n_test": 3}}
    (tmp_path / MEASUREMENTS).write_text(json.dumps({"measurements": [entry]}))
    assert read_measurements(tmp_path)[0].n_counted == 3
    (tmp_path / MEASUREMENTS).write_text(json.dumps({"measurements": [{**entry, **change}]}))
    with pytest.raises(RunError, match="is damaged"):
        read_measurements(tmp_path)


# --------------------------------------------------------------------------- the terminal


def test_the_terminal_leaves_out_what_has_no_value(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts({"a": None, "b": "", "c": [], "d": float("nan"), "e": 0, "f": False, "n_unexamined_labels": 1,
                 "n_unexamined_samples": 3, "n_samples": 9, "unexamined_labels": ["\u202ex"]})  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["e", "f"]
    assert "1 label was not examined" in lines[-1] and "\\u2068" not in lines[-1] and "\u202e" not in lines[-1]
