from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from antibackdoor.app.pipeline import verdict_table
from antibackdoor.data.samples import Samples
from antibackdoor.errors import ModelError, RunError
from antibackdoor.protocols import CLEANED, CRITERIA, ISOLATED, KEPT, RELABELED, STATUSES, Verdict
from antibackdoor.runs import artifacts, model_file
from antibackdoor.runs.artifacts import iterate_history, read_history, read_metrics, write_history, write_metrics
from antibackdoor.runs.model_file import ModelSpec, load_model_spec, load_weights, save_model
from antibackdoor.runs.run_folder import RunFolder, read_checkpoint, read_config, read_log
from antibackdoor.runs.samples_table import (
    SAMPLES,
    SamplesTable,
    read_sample_columns,
    read_samples_table,
    write_samples_table,
)
from antibackdoor.training.history import LossHistory
from antibackdoor.training.loop import Predictions

SPEC = ModelSpec(
    backbone="small_cnn",
    kind="image",
    input_shape=(3, 8, 8),
    class_names=("cat", "d\udcffg", "</script>"),
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.2, 0.2),
    image_size="resize",
    method="dual-head",
    package_version="0.1.0",
)


def a_table(n: int = 10) -> SamplesTable:
    rng = np.random.default_rng(0)
    return SamplesTable(
        ids=np.array([f"a/{i}.png" for i in range(n)]),
        given_label=rng.integers(0, 3, n),
        class_names=np.array(["cat", "dog", "frog"]),
        verdict=Verdict(
            suspicion=rng.random(n),
            status=(np.arange(n) % len(STATUSES)).astype(np.uint8),
            suggested_label=rng.integers(0, 3, n),
            criterion=(np.arange(n) % len(CRITERIA)).astype(np.uint8),
            poisoned=True,
            target_labels=(0, 2),
            p_value=0.01,
            margin=rng.normal(size=n),
        ),
        prediction=rng.integers(0, 3, n),
        confidence=rng.random(n),
    )


def one_line_of(error: pytest.ExceptionInfo[Exception]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_the_suggested_label_is_the_models_only_where_nothing_better_is_known() -> None:
    """Of five samples one is kept, one relabeled, one cleaned; two stay out, one with a label."""
    given, said = np.array([0, 0, 0, 0, 1]), np.array([2, 2, 2, 2, 2])
    samples = Samples(np.zeros((5, 1, 4), np.float32), given, np.arange(5).astype(str), np.array(["a", "b", "c"]))
    status = np.array([KEPT, RELABELED, CLEANED, ISOLATED, ISOLATED], dtype=np.uint8)
    verdict = Verdict(np.zeros(5), status, np.array([0, 1, 0, 1, 1]), np.zeros(5, dtype=np.uint8))
    predictions = Predictions(said, np.ones(5, np.float32), np.zeros(5, np.float32))
    assert verdict_table(samples, verdict, predictions).verdict.suggested_label.tolist() == [0, 1, 0, 1, 2]
    assert verdict_table(samples, verdict).verdict.suggested_label.tolist() == [0, 1, 0, 1, 1], "without a model"
    table = verdict_table(samples, replace(verdict, status=np.minimum(status, ISOLATED)), predictions)
    assert table.verdict.suggested_label.tolist() == [0, 1, 2, 1, 2]


def test_model_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    save_model(tmp_path, model, SPEC)
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    load_weights(tmp_path, other)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    assert load_model_spec(tmp_path) == SPEC


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    first = nn.Linear(4, 4)
    save_model(tmp_path, nn.Sequential(first, nn.ReLU(), first), SPEC)
    tied = nn.Linear(4, 4)
    load_weights(tmp_path, nn.Sequential(tied, nn.ReLU(), tied))
    assert torch.equal(tied.weight, first.weight)


def test_tied_convolutions_come_back_from_another_memory_layout(tmp_path: Path) -> None:
    first = nn.Conv2d(3, 3, 3).to(memory_format=torch.channels_last)
    save_model(tmp_path, nn.Sequential(first, nn.ReLU(), first), SPEC)
    tied = nn.Conv2d(3, 3, 3)
    load_weights(tmp_path, nn.Sequential(tied, nn.ReLU(), tied))
    assert torch.equal(tied.weight, first.weight)


def test_wrong_or_corrupt_weights_are_one_line(tmp_path: Path) -> None:
    save_model(tmp_path, nn.Linear(4, 4), SPEC)
    with pytest.raises(ModelError, match="does not fit") as error:
        load_weights(tmp_path, nn.Linear(4, 5))
    one_line_of(error)
    with pytest.raises(ModelError, match="does not fit") as error:
        load_weights(tmp_path, nn.Sequential(nn.Linear(4, 4)))
    one_line_of(error)
    whole = (tmp_path / model_file.MODEL).read_bytes()
    for damage in (whole[:-7], b"", b"\xff" * 100):
        (tmp_path / model_file.MODEL).write_bytes(damage)
        with pytest.raises(ModelError, match="corrupt") as error:
            load_weights(tmp_path, nn.Linear(4, 4))
        one_line_of(error)
    (tmp_path / model_file.MODEL).unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        load_weights(tmp_path, nn.Linear(4, 4))


@pytest.mark.parametrize("text", ["{", "[]", "{}", json.dumps({**SPEC.to_json(), "kind": "text"}), "\xff"])
def test_damaged_description_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / model_file.SPEC).write_text(text, encoding="latin-1")
    with pytest.raises(ModelError) as error:
        load_model_spec(tmp_path)
    one_line_of(error)


def assert_same(table: SamplesTable, back: SamplesTable) -> None:
    """Every column and every fact of the verdict, in the same types."""
    for one, other in ((table, back), (table.verdict, back.verdict)):
        for field in fields(one):
            expected, found = getattr(one, field.name), getattr(other, field.name)
            if isinstance(expected, Verdict):
                continue
            np.testing.assert_array_equal(found, expected, err_msg=field.name)
            if isinstance(expected, np.ndarray):
                assert found.dtype.kind == expected.dtype.kind, field.name
            else:
                assert type(found) is type(expected), field.name


def test_samples_table_comes_back(tmp_path: Path) -> None:
    table = a_table()
    write_samples_table(tmp_path, table)
    assert_same(table, read_samples_table(tmp_path))
    columns, names = read_sample_columns(tmp_path, ["id", "suspicion"], np.array([3, 1]))
    assert list(columns["id"]) == ["a/3.png", "a/1.png"]
    assert names == ("cat", "dog", "frog")
    write_samples_table(tmp_path, replace(table, verdict=replace(table.verdict, poisoned=None)), "midway.parquet")
    assert read_samples_table(tmp_path, "midway.parquet").verdict.poisoned is None


def test_samples_table_of_a_scan_has_no_predictions(tmp_path: Path) -> None:
    table = replace(a_table(), prediction=None, confidence=None, verdict=replace(a_table().verdict, margin=None))
    write_samples_table(tmp_path, table)
    assert_same(table, read_samples_table(tmp_path))
    columns, _ = read_sample_columns(tmp_path, ["status"])
    assert columns["status"].tolist() == table.verdict.status.tolist()
    # Other programs see words, not codes.
    words = pq.read_table(tmp_path / SAMPLES).to_pydict()
    assert words["status"] == table.status.tolist() and words["criterion"][:2] == ["none", "shortcut"]


def test_what_is_isolated_in_the_samples_table() -> None:
    table = a_table(4)
    assert table.status.tolist() == ["kept", "isolated", "relabeled", "cleaned"]
    assert table.isolated.tolist() == [False, True, True, True]
    assert table.suspicion is table.verdict.suspicion


def test_samples_table_holds_hostile_names(tmp_path: Path) -> None:
    ids = np.array(["caf\udce9.png", "\u202egnp.exe", "<b>", "\U0001f600", "x" * 5000])
    table = replace(a_table(5), ids=ids, class_names=np.array(["\udcff", "'\"", "</script>"]))
    write_samples_table(tmp_path, table)
    back = read_samples_table(tmp_path)
    assert back.ids.tolist() == ["caf\\udce9.png", *ids[1:].tolist()]
    assert back.class_names.tolist() == table.class_names.tolist()


def test_samples_table_of_many_row_groups_and_of_none(tmp_path: Path) -> None:
    table = a_table(150_000)
    write_samples_table(tmp_path, table)
    np.testing.assert_array_equal(read_samples_table(tmp_path).suspicion, table.suspicion)
    write_samples_table(tmp_path, a_table(0))
    assert len(read_samples_table(tmp_path).ids) == 0


def test_samples_table_errors_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="differ in length: id 3, given_label 10") as error:
        write_samples_table(tmp_path, replace(a_table(), ids=np.array(["a", "b", "c"])))
    one_line_of(error)
    with pytest.raises(RunError, match=r"samples\.parquet") as error:
        read_samples_table(tmp_path)
    (tmp_path / SAMPLES).write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(RunError, match="damaged") as error:
        read_samples_table(tmp_path)
    one_line_of(error)
    write_samples_table(tmp_path, a_table())
    with pytest.raises(RunError, match="damaged"):
        read_sample_columns(tmp_path, ["id"], np.array([99]))
    with pytest.raises(RunError, match="damaged"):
        read_sample_columns(tmp_path, ["nonsense"])


def a_history() -> LossHistory:
    history = LossHistory.start(5, 10)
    for step in range(1, 40):
        history = history.append(np.linspace(0, 3, 5, dtype=np.float32) / step, step * 10)
    return history


def test_history_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = a_history()
    write_history(tmp_path, history)
    back = read_history(tmp_path)
    np.testing.assert_array_equal(back.losses, history.losses)
    np.testing.assert_array_equal(back.steps, history.steps)
    monkeypatch.setattr(artifacts, "MOST_EXACT", 10)
    write_history(tmp_path, history.append(np.full(5, 1e9, dtype=np.float32), 400))
    back = read_history(tmp_path)
    np.testing.assert_allclose(back.losses[:-1], history.losses, rtol=1e-3)
    assert np.isfinite(back.losses).all()


def test_history_is_thinned_on_a_log_scale(tmp_path: Path) -> None:
    history = a_history()
    write_history(tmp_path, history)
    moments = list(iterate_history(tmp_path, 10))
    steps = [step for step, _ in moments]
    assert len(moments) <= 10
    assert steps[:3] == [0, 10, 20]
    assert steps[-1] == 390
    np.testing.assert_array_equal(moments[-1][1], history.losses[-1])
    assert len(list(iterate_history(tmp_path, 100))) == 40


def test_damaged_history_is_one_line(tmp_path: Path) -> None:
    for damage in (b"", b"x" * 50):
        (tmp_path / artifacts.HISTORY).write_bytes(damage)
        with pytest.raises(RunError, match="damaged") as error:
            read_history(tmp_path)
        one_line_of(error)


def test_metrics(tmp_path: Path) -> None:
    metrics = {
        "clean_accuracy": np.float64(0.9),
        "n": np.int64(3),
        "x": float("nan"),
        "labels": ("a", "b"),
        "no": None,
    }
    write_metrics(tmp_path, metrics)
    assert read_metrics(tmp_path) == {
        "schema_version": 2,
        "clean_accuracy": 0.9,
        "n": 3,
        "x": None,
        "labels": ["a", "b"],
        "no": None,
    }
    with pytest.raises(RunError, match="'deep' is nested"):
        write_metrics(tmp_path, {"deep": [[1]]})


def test_run_from_start_to_end(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "deep" / "run", {"epochs": 3}, command=["antibackdoor", "train"]) as run:
        assert run.load() is None
        run.log(phase="warmup", epoch=1, loss=float("nan"))
        run.save({"epoch": 1})
        assert not run.finished
        run.finish({"n_samples": 3})
        assert run.finished
        assert sorted(entry.name for entry in run.path.iterdir()) == [
            ".lock",
            "config.json",
            "log.jsonl",
            "metrics.json",
            "run.toml",
        ]
    assert read_log(run.path) == [{"phase": "warmup", "epoch": 1, "loss": None}]
    config = read_config(run.path)
    assert config["settings"] == {"epochs": 3}
    assert config["command"] == ["antibackdoor", "train"]
    assert "torch" in config["versions"]
    with RunFolder.create(run.path, {"epochs": 3}, resume=True) as again:
        assert again.finished
    assert len(read_log(run.path)) == 1


def test_time_is_counted_on_where_a_run_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    with RunFolder.create(tmp_path, {}) as run:
        now[0] += 7
        run.save({})
        now[0] += 50  # lost with the process
    with RunFolder.create(tmp_path, {}, resume=True) as again:
        now[0] += 2
        assert again.seconds == 9


def test_checkpoint_holds_nested_values(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    big = torch.arange(1_000_000)
    frozen = np.arange(3)
    frozen.setflags(write=False)
    state = {
        "model": nn.Linear(2, 2).state_dict(),
        "rows": np.array([True, False]),
        "reversed": np.arange(3)[::-1],
        "frozen": frozen,
        "parts": [1, 2.5, "x", None, True, (np.float32(0.5), np.int64(7))],
        "rng": generator.bit_generator.state,
        3: big[:2],
    }
    with RunFolder.create(tmp_path, {}) as run:
        run.save(state)
        assert (tmp_path / "checkpoint.pt").stat().st_size < 20_000
        back = run.load()
        assert back is not None
        assert back["parts"] == [1, 2.5, "x", None, True, (0.5, 7)]
        assert back["rng"] == generator.bit_generator.state
        assert back["rows"].tolist() == [True, False]
        assert back["reversed"].tolist() == [2, 1, 0]
        assert back[3].tolist() == [0, 1]
        with pytest.raises(RunError, match=r"cannot hold state\['a'\]\[1\]: it is a object"):
            run.save({"a": [1, object()]})
        with pytest.raises(RunError, match="ndarray"):
            run.save({"a": np.array(["x"])})
        assert run.load() is not None


def test_log_is_cut_to_the_checkpoint(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, {}) as run:
        run.log(phase="warmup", epoch=1)
    with RunFolder.create(tmp_path, {}, resume=True) as run:
        assert read_log(tmp_path) == []  # there was no checkpoint: it starts again
        run.log(phase="warmup", epoch=1)
        run.save({"epoch": 1})
        run.log(phase="warmup", epoch=2)
    with (tmp_path / "log.jsonl").open("ab") as file:
        file.write(b'{"phase": "war')
    assert len(read_log(tmp_path)) == 2
    with RunFolder.create(tmp_path, {}, resume=True) as run:
        assert run.load() == {"epoch": 1}
        run.log(phase="warmup", epoch=2)
    assert read_log(tmp_path) == [{"phase": "warmup", "epoch": 1}, {"phase": "warmup", "epoch": 2}]


def test_what_is_said_between_two_phases_is_logged_once(tmp_path: Path) -> None:
    """A method that resumes finds its phases done, and says again what stands between them."""
    with RunFolder.create(tmp_path, {}) as run:
        run.log(phase="warm-up", epoch=1)
        run.log(phase="isolation", n_isolated=7)
        run.log(phase="training", epoch=1)
        run.save({"epoch": 1})
    for _ in range(2):
        with RunFolder.create(tmp_path, {}, resume=True) as run:
            run.log(phase="isolation", n_isolated=7)
    with RunFolder.create(tmp_path, {}, resume=True) as run:
        run.log(phase="isolation", n_isolated=7)
        run.log(phase="training", epoch=2)
        run.save({"epoch": 2})
        run.log(phase="isolation", n_isolated=7)  # a second search that finds as many
    phases = [entry["phase"] for entry in read_log(tmp_path)]
    assert phases == ["warm-up", "isolation", "training", "training", "isolation"]


def test_damaged_log_and_config_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_bytes(b"{}\nnonsense\n{}\n")
    with pytest.raises(RunError, match="line 2"):
        read_log(tmp_path)
    with pytest.raises(RunError, match="holds no run"):
        read_config(tmp_path)
    for text in ("{", "{}", '{"format": "antibackdoor run 1"}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(RunError) as error:
            RunFolder.create(tmp_path, {}, resume=True)
        one_line_of(error)


def test_damaged_checkpoint_is_one_line(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, {}).close()
    for damage in (b"", b"PK\x03\x04 broken", b"\x80\x02."):
        (tmp_path / "checkpoint.pt").write_bytes(damage)
        with pytest.raises(RunError, match="delete it to start over") as error:
            RunFolder.create(tmp_path, {}, resume=True)
        one_line_of(error)
    torch.save({"evil": 1}, tmp_path / "checkpoint.pt")
    with pytest.raises(RunError, match="delete it"):
        RunFolder.create(tmp_path, {}, resume=True)
    (tmp_path / "checkpoint.pt").unlink()
    with RunFolder.create(tmp_path, {}, resume=True) as run:
        run.save({"weights": torch.arange(1000, dtype=torch.float32)})
    whole = (tmp_path / "checkpoint.pt").read_bytes()
    at = whole.index(torch.tensor(500.0).numpy().tobytes())
    (tmp_path / "checkpoint.pt").write_bytes(whole[:at] + b"\xff\xff\xff\xff" + whole[at + 4 :])
    with pytest.raises(RunError, match="checksum"):
        RunFolder.create(tmp_path, {}, resume=True)


def test_checkpoint_of_another_version_is_one_line(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, {}) as run:
        run.save({"epoch": 3})
    path = tmp_path / "checkpoint.pt"
    now = torch.load(path, weights_only=True)
    before = {key: now[key] for key in ("log_bytes", "seconds", "state")}  # all that version 1 had
    for other, said in ((before, "version 1"), ({**now, "version": 4}, "version 4")):
        torch.save(other, path)
        with pytest.raises(RunError, match=rf"{said} of checkpoints, this program writes 3: continue with") as error:
            RunFolder.create(tmp_path, {}, resume=True)
        assert "another folder" in one_line_of(error) and path.exists()
        with pytest.raises(RunError, match=said):
            read_checkpoint(tmp_path)
    torch.save({**now, "state": {}}, path)
    with pytest.raises(RunError, match="its content is not what was saved"):
        RunFolder.create(tmp_path, {}, resume=True)


def test_foreign_folders_are_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("important")
    for resume in (False, True):
        with pytest.raises(RunError, match="holds files but no run"):
            RunFolder.create(tmp_path, {}, resume=resume)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(RunError, match="cannot use the run folder") as error:
        RunFolder.create(tmp_path / "thesis.txt", {})
    one_line_of(error)


def test_other_settings_are_named(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, {"recipe": {"epochs": 100}, "seed": 0}).close()
    with pytest.raises(RunError, match="unfinished run; continue with --resume"):
        RunFolder.create(tmp_path, {"recipe": {"epochs": 100}, "seed": 0})
    with pytest.raises(RunError, match=r"setting 'recipe.epochs' was 100 and is now 50") as error:
        RunFolder.create(tmp_path, {"recipe": {"epochs": 50}, "seed": 0}, resume=True)
    one_line_of(error)
    with pytest.raises(RunError, match=r"setting 'seed' is missing"):
        RunFolder.create(tmp_path, {"recipe": {"epochs": 100}}, resume=True)
    with pytest.raises(RunError, match=r"setting 'extra' is new"):
        RunFolder.create(tmp_path, {"recipe": {"epochs": 100}, "seed": 0, "extra": 1}, resume=True)
    RunFolder.create(tmp_path, {"recipe": {"epochs": 100}, "seed": 0}, resume=True).close()


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, {}), pytest.raises(RunError, match="another process writes"):
        RunFolder.create(tmp_path, {}, resume=True)
    RunFolder.create(tmp_path, {}, resume=True).close()


@contextmanager
def files_of_at_most(n_bytes: int) -> Iterator[None]:
    """What a full disk looks like to the program, without one: writes fail with an OSError."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_full_disk_is_one_line_and_leaves_the_old_files(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, {})
    state = {"x": torch.zeros(100_000)}
    history = LossHistory.start(10_000, 10)
    writes = [
        lambda: write_metrics(tmp_path, {"text": "x" * 20_000}),
        lambda: save_model(tmp_path, nn.Linear(200, 200), SPEC),
        lambda: write_samples_table(tmp_path, a_table(20_000)),
        lambda: write_history(tmp_path, history),
        lambda: run.save(state),
        lambda: run.log(text="x" * 20_000),
    ]
    for write in writes:
        write()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for write in writes:
        with files_of_at_most(4096), pytest.raises(RunError, match="cannot write") as error:
            write()
        one_line_of(error)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    run.close()


def test_missing_folder_is_one_line(tmp_path: Path) -> None:
    for write in (
        lambda: write_metrics(tmp_path / "no", {"a": 1}),
        lambda: save_model(tmp_path / "no", nn.Linear(2, 2), SPEC),
        lambda: write_samples_table(tmp_path / "no", a_table()),
        lambda: write_history(tmp_path / "no", a_history()),
    ):
        with pytest.raises(RunError, match=r"cannot write .*no") as error:
            write()
        one_line_of(error)


WRITER = """
import sys, numpy as np, torch
from pathlib import Path
from antibackdoor.runs.run_folder import RunFolder
run = RunFolder.create(Path(sys.argv[1]), {"seed": 0}, resume=True)
state = run.load() or {"epoch": 0, "weights": torch.zeros(300_000)}
assert (state["weights"] == state["epoch"]).all()
print("ready", flush=True)
for epoch in range(state["epoch"] + 1, 100_000):
    run.log(phase="train", epoch=epoch)
    run.save({"epoch": epoch, "weights": torch.full((300_000,), float(epoch))})
"""


def test_killed_at_any_moment_the_run_goes_on(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    epoch = 0
    for _ in range(3):  # most of the time goes into importing torch
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ},
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(float(rng.uniform(0.02, 0.15)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with RunFolder.create(tmp_path, {"seed": 0}, resume=True) as run:
            state = run.load()
            last = 0 if state is None else state["epoch"]
            assert state is None or bool((state["weights"] == last).all())
            assert last >= epoch
            epoch = last
            assert [entry["epoch"] for entry in read_log(tmp_path)] == list(range(1, last + 1))
            assert not list(tmp_path.glob(".writing-*"))
    assert epoch > 0
