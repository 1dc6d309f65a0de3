"""`train --decisions`: what a person accepted is trained on, what they rejected never under its label."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import pictures, write_folder

from antibackdoor.app.decisions import decisions_of, with_decisions
from antibackdoor.data.samples import Samples
from antibackdoor.defenses import DualHead
from antibackdoor.errors import DataError, RunError
from antibackdoor.models.backbones import build_backbone
from antibackdoor.protocols import DECISION, ISOLATED, KEPT, Given, Verdict
from antibackdoor.runs.decisions import ACCEPTED, REJECTED, Decision, read_decisions, write_decisions
from antibackdoor.runs.run_folder import read_config
from antibackdoor.runs.samples_table import SamplesTable, read_samples_table, write_samples_table
from antibackdoor.training.recipe import Recipe

Call = Callable[..., tuple[int, str, str]]
QUICK = ["--backbone", "wrn-10-1", "--epochs", "1", "--device", "cpu", "--augment", "none"]
QUICK += ["--test-fraction", "0"]


def scanned(run: Path, samples: Samples, suspects: list[int]) -> Path:
    """A run folder with a verdict, as a scan leaves it."""
    run.mkdir()
    isolated = np.isin(np.arange(len(samples)), suspects)
    verdict = Verdict.isolating(isolated.astype(float), isolated, samples, poisoned=True, target_labels=(0,))
    write_samples_table(run, SamplesTable(samples.ids, samples.labels, samples.class_names, verdict))
    return run


def test_decisions_are_honored_without_a_search(tmp_path: Path) -> None:
    samples = pictures(32)
    run = scanned(tmp_path / "scan", samples, [0, 2, 4])
    said = {str(samples.ids[row]): Decision(word, "class0", "class1") for row, word in ((0, ACCEPTED), (6, REJECTED))}
    write_decisions(run / "decisions.csv", said)
    defense = DualHead(post_training_check=False)
    given, note = with_decisions(Given(), run / "decisions.csv", samples, defense.takes)
    assert note.startswith("1 samples are accepted and 1 rejected")
    recipe = Recipe(epochs=1, device="cpu", augment="none", progress=False)
    trained = defense.train(samples, lambda: build_backbone("wrn-10-1", samples.shape, 2), recipe, given=given)
    status, criterion = trained.verdict.status, trained.verdict.criterion
    assert status[0] == KEPT, "a person trusts it"
    assert status[6] != KEPT and criterion[6] == DECISION, "a person rejected it"
    assert (status[[2, 4]] != KEPT).all(), "for the rest the scan holds"
    assert trained.facts.search_steps == 0
    # Without the run beside them, the decisions are all there is.
    alone = tmp_path / "alone.csv"
    write_decisions(alone, said)
    given, note = with_decisions(Given(), alone, samples, defense.takes)
    assert given.verdict is not None and np.flatnonzero(given.verdict.isolated).tolist() == [6] and "kept" in note
    assert with_decisions(Given(), alone, samples, ("decisions",))[0].verdict is None


def test_the_command_takes_decisions(call: Call, tmp_path: Path) -> None:
    samples, run = pictures(32), tmp_path / "run"
    data = write_folder(samples, tmp_path / "data")
    said = {str(samples.ids[0]): Decision(ACCEPTED), str(samples.ids[6]): Decision(REJECTED)}
    write_decisions(tmp_path / "decisions.csv", said)
    arguments = [*QUICK, "--decisions", tmp_path / "decisions.csv"]
    code, _, err = call("train", data, "--out", run, *arguments, "--defense", "retrain", "--drop-rate", "0.5")
    assert code == 0 and "1 samples are accepted and 1 rejected" in err, err
    table = read_samples_table(run)
    by_id = dict(zip(table.ids.tolist(), table.status.tolist(), strict=True))
    assert (by_id[str(samples.ids[0])], by_id[str(samples.ids[6])]) == ("kept", "isolated")
    settings = read_config(run)["settings"]
    assert "decisions" in settings["given"] and "1 rejected" in settings["data"]["decisions"]
    code, _, err = call("train", data, "--out", tmp_path / "x", *arguments, "--defense", "none")
    assert code == 2 and "cannot use decisions" in err


def test_wrong_decisions_end_in_one_line(tmp_path: Path) -> None:
    samples, path = pictures(8), tmp_path / "d.csv"
    first = str(samples.ids[0])
    for text, words in [
        ("name,verdict\na,b\n", "no columns 'id' and 'decision'"),
        (f"id,decision\n{first},maybe\n", "line 2: the decision is 'maybe'"),
        (f"id,decision\n{first},accepted\n{first},rejected\n", "accepted and rejected"),
        ("id,decision\n\udcff,accepted\n", "save it as CSV in UTF-8"),
    ]:
        path.write_text(text, errors="surrogateescape")
        with pytest.raises(RunError, match=words):
            decisions_of(path, samples)
    for row in ("somebody/else.png,class0,accepted", f"{first},class1,accepted"):
        path.write_text(f"id,given_label,decision\n{row}\n")
        with pytest.raises(DataError, match=r"none of the 1 samples|review them again"):
            decisions_of(path, samples)
    # A spreadsheet writes a byte order mark, other cases and empty cells.
    path.write_text(f"\ufeffID,Decision,note\n{first},Rejected,\n{samples.ids[1]},,\n")
    verdict, note = decisions_of(tmp_path / "d.csv", samples)
    assert np.flatnonzero(verdict.status == ISOLATED).tolist() == [0] and note.startswith(
        "0 samples are accepted and 1"
    )


def test_no_name_becomes_a_formula(tmp_path: Path) -> None:
    names = [
        "=HYPERLINK(1)",
        "+1",
        "-1",
        "-a",
        "@a",
        "\tb",
        "'=c",
        "''",
        'say "hi", you',
        "plain",
        "two\nlines",
        "\udcff",
    ]
    said = {name: Decision(REJECTED, "=class", "@class") for name in names}
    write_decisions(tmp_path / "d.csv", said)
    cells = [
        cell for line in (tmp_path / "d.csv").read_text().splitlines() for cell in line.replace('"', "").split(",")
    ]
    assert not [cell for cell in cells if cell[:1] in ("=", "+", "@", "\t")]
    assert list(read_decisions(tmp_path / "d.csv")) == [*names[:-1], "\\udcff"]
