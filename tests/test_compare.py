"""`compare`: the same data through methods of any kind, one table, and a stopped comparison that ends the same."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from conftest import pictures
from test_report import audit

from antibackdoor.app.comparing import TABLES, class_of, kind_of
from antibackdoor.attacks import BadNets, poison, save_trigger, write_truth
from antibackdoor.data.reading import write
from antibackdoor.data.samples import Samples
from antibackdoor.detectors import DETECTORS
from antibackdoor.errors import DataError
from antibackdoor.protocols import Detection, Given
from antibackdoor.report import ComparedRun, text_table, write_methods_page
from antibackdoor.report.comparison import with_means
from antibackdoor.runs.run_folder import RunFolder
from antibackdoor.training.journal import Journal
from antibackdoor.training.recipe import Recipe

Call = Callable[..., tuple[int, str, str]]
QUICK = ["--backbone", "wrn-10-1", "--device", "cpu", "--precision", "fp32", "--epochs", "2", "--augment", "none"]


@dataclass(frozen=True)
class SeriesOnly:
    """A detector that cannot work on images."""

    needs: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[tuple[str, ...]] = ()
    unused: ClassVar[tuple[str, ...]] = ()

    def detect(self, samples: Samples, given: Given, recipe: Recipe, *, journal: Journal | None = None) -> Detection:
        """Refuse."""
        raise DataError(f"works on series only, not on {samples.kind} data")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`data.npz` with a test split, poisoned; `clean.npz`; trigger and truth in `known`."""
    monkeypatch.setitem(DETECTORS, "series-only", SeriesOnly)
    poisoned = poison(pictures(90, 3), BadNets(), seed=0, rate=0.2, target_label=1)
    written = write(tmp_path / "data.npz", poisoned.samples, pictures(30, 3, seed=2), format="npz")
    write(tmp_path / "clean.npz", pictures(30, 3, seed=1), format="npz")
    save_trigger(tmp_path / "known", poisoned.trigger, poisoned.plan)
    write_truth(tmp_path / "known" / "truth.parquet", written.train_ids, poisoned.truth)
    return tmp_path


def known(bench: Path) -> list[object]:
    trigger = bench / "known"
    return ["--clean", bench / "clean.npz", "--trigger", trigger, "--truth", trigger / "truth.parquet"]


def table_of(out: Path) -> list[dict[str, str]]:
    with (out / "comparison.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def one_line(call: Call, *arguments: object) -> str:
    code, _, err = call(*arguments)
    errors = [line for line in err.splitlines() if not re.fullmatch(r".*, seed \d+ \(\d+ of \d+\)", line)]
    assert code == 2 and len(errors) == 1, err
    return errors[0]


def test_a_name_means_one_method() -> None:
    names = [name for table in TABLES.values() for name in table]
    assert len(names) == len(set(names))
    for kind, table in TABLES.items():
        for name in table:
            assert kind_of(name) == kind and class_of(name) is table[name]


def test_one_table_for_methods_of_every_kind(call: Call, bench: Path) -> None:
    out = bench / "out"
    methods = ["--methods", "spectral,series-only,fine-tune,trigger-retrain"]
    code, said, err = call("compare", bench / "data.npz", *methods, "--out", out, *known(bench), *QUICK)
    assert code == 0 and "fine-tune, seed 0 (4 of 5)" in err
    rows = table_of(out)
    assert [row["method"] for row in rows] == ["none", "spectral", "series-only", "fine-tune", "trigger-retrain"]
    none, spectral, refused, tuned, lacking = rows
    assert none["attack_success_rate"] and none["suspicion_auroc"] and not none["isolation_recall"]
    assert spectral["suspicion_auroc"] and not spectral["clean_accuracy"], "a scan delivers no model"
    assert float(tuned["clean_accuracy_low"]) <= float(tuned["clean_accuracy"]) and not tuned["suspicion_auroc"]
    assert refused["reason"] == "works on series only, not on image data"
    assert "needs trigger" in lacking["reason"]
    assert {path.name for path in out.iterdir()} >= {"none-0", "spectral-0", "fine-tune-0"}
    facts = json.loads((out / "fine-tune-0" / "metrics.json").read_text())
    undefended = json.loads((out / "none-0" / "metrics.json").read_text())
    assert facts["attack_success_rate_before"] == undefended["attack_success_rate"]
    assert (out / "fine-tune-0" / "attention.npz").exists()

    lines = said.splitlines()
    assert "clean accuracy" in lines[0] and "says poisoned" not in lines[0], "a column that nobody fills is left out"
    assert lines[3].split()[:2] == ["series-only", "0"] and "works on series only" in lines[3]
    assert re.search(r"fine-tune +0 +[\d.]+% \[", said) and "–" in lines[2]
    text = " ".join(" ".join(audit(out / "report.html").text).split())
    assert "5 methods on the same data. 2 of them could not run" in text and "works on series only" in text
    assert str(bench) not in (out / "report.html").read_text()


def test_a_stopped_comparison_ends_the_same(call: Call, bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = ["--methods", "none,loss-drop,fine-tune", *known(bench), *QUICK]
    whole, stopped = bench / "whole", bench / "stopped"
    assert call("compare", bench / "data.npz", "--out", whole, *methods)[0] == 0
    save, saves = RunFolder.save, []

    def dies(run: RunFolder, state: dict[str, Any]) -> None:
        save(run, state)
        saves.append(1)
        if run.path.name == "fine-tune-0" and sum(1 for _ in saves) > 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", dies)
        code, _, err = call("compare", bench / "data.npz", "--out", stopped, *methods)
    assert code == 130 and "--resume" in err and not (stopped / "comparison.csv").exists()
    finished = (stopped / "none-0" / "model.safetensors").stat().st_mtime_ns
    assert "--resume" in one_line(call, "compare", bench / "data.npz", "--out", stopped, *methods)
    other = ["--learning-rate", "0.05"]
    assert "cannot resume" in one_line(
        call, "compare", bench / "data.npz", "--out", stopped, *methods, *other, "--resume"
    )
    code, said, _ = call("compare", bench / "data.npz", "--out", stopped, *methods, "--resume")
    assert code == 0 and table_of(stopped) == table_of(whole)
    for name in ("none-0", "fine-tune-0"):
        model = f"{name}/model.safetensors"
        assert (stopped / model).read_bytes() == (whole / model).read_bytes()
    assert (stopped / "none-0" / "model.safetensors").stat().st_mtime_ns == finished, "finished runs are kept"
    assert call("compare", bench / "data.npz", "--out", stopped, *methods, "--resume")[1] == said


def test_mistakes_end_in_one_line(call: Call, bench: Path) -> None:
    data, out = bench / "data.npz", ["--out", bench / "out", *QUICK]
    lacking = one_line(call, "compare", data, *out, "--methods", "none,fine-tune,scan,spectral")
    assert "fine-tune, scan need clean samples: give --clean" in lacking
    assert "--methods nothing is unknown" in one_line(call, "compare", data, *out, "--methods", "none,nothing")
    assert "more than once" in one_line(call, "compare", data, *out, "--methods", "none,none")
    assert "nothing to compare" in one_line(call, "compare", data, *out, "--methods", ",")
    assert "seeds is 0" in one_line(call, "compare", data, *out, "--methods", "none", "--seeds", "0")
    assert "holds no trigger" in one_line(call, "compare", data, *out, "--methods", "none", "--trigger", bench)
    alone = one_line(call, "compare", data, *out, "--methods", "series-only")
    assert "no method can run on these data: series-only: works on series only" in alone
    (bench / "out" / "mine.txt").write_text("keep")
    message = one_line(call, "compare", data, *out, "--methods", "none", "--resume")
    assert "holds files that are not from a comparison" in message
    assert "Usage" in call("compare", "--help")[1] and "--devices" not in call("compare", "--help")[1]


def test_a_run_that_is_a_link_is_refused(call: Call, bench: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for out, name in ((tmp_path / "compared", "none-0"), (tmp_path / "shown", "undefended")):
        out.mkdir()
        (out / name).symlink_to(elsewhere)
    compared = one_line(
        call, "compare", bench / "data.npz", "--methods", "none", "--out", tmp_path / "compared", *QUICK, "--resume"
    )
    shown = one_line(call, "demo", "--out", tmp_path / "shown")
    assert "none-0 is a link" in compared and "undefended is a link" in shown
    assert not list(elsewhere.iterdir())


def test_means_over_seeds(tmp_path: Path) -> None:
    runs = [
        ComparedRun("scan", "detector", seed, {"isolation_recall": recall, "poisoned": recall > 0.5, "seconds": 2.0})
        for seed, recall in ((0, 1.0), (1, 0.5))
    ]
    runs += [ComparedRun("<b>bad</b>", "detector", seed, {}, "<script>no</script>") for seed in (0, 1)]
    rows = with_means(runs)
    assert [(row.method, row.seed) for row in rows] == [
        ("scan", 0), ("scan", 1), ("scan", None), ("<b>bad</b>", None),
    ]  # fmt: skip
    assert rows[2].metrics["isolation_recall"] == 0.75 and rows[2].metrics["poisoned"] == "1 of 2"
    table = text_table(runs).splitlines()
    assert table[3].split() == ["scan", "mean", "75.0%", "1", "of", "2", "2.0", "s"]
    write_methods_page(tmp_path / "page.html", "<img src=x>", runs, [("<b>", "</table>")], "compare")
    assert "Each seed" in " ".join(audit(tmp_path / "page.html").text)
