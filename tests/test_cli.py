"""The command line as a user meets it: every command, every format, and every mistake in one line."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import pictures, waves, write_folder

from antibackdoor.attacks import ATTACKS
from antibackdoor.data.reading import write

Call = Callable[..., tuple[int, str, str]]
FAST = ["--epochs", "1", "--device", "cpu", "--precision", "fp32", "--warmup-steps", "50", "--confusion-steps", "2"]
PLAIN = ["--defense", "none", "--epochs", "1", "--device", "cpu", "--precision", "fp32"]
FORMATS = ["folder", "zip", "npz", "ts", "csv"]
HERE = Path(__file__).parent


def make_data(tmp_path: Path, format_: str) -> Path:
    """A small data set in this format: 60 samples of 3 classes."""
    if format_ == "folder":
        return write_folder(pictures(60, 3), tmp_path / "data")
    samples = pictures(60, 3) if format_ == "zip" else waves(60, 3)
    return write(tmp_path / f"data.{format_}", samples, format=format_).path


def network(format_: str) -> list[str]:
    return ["--backbone", "wrn-10-1" if format_ in ("folder", "zip") else "fcn"]


@pytest.fixture
def trained(call: Call, tmp_path: Path) -> Path:
    """A finished run on pictures."""
    run = tmp_path / "run"
    assert call("train", make_data(tmp_path, "folder"), "--out", run, *PLAIN, "--backbone", "wrn-10-1")[0] == 0
    return run


@pytest.mark.parametrize(
    "command", ["", "train", "scan", "purify", "poison", "demo", "evaluate", "predict", "report", "attacks", "doctor"]
)
def test_help(call: Call, command: str) -> None:
    code, out, err = call(*([command] if command else []), "--help")
    assert (code, err) == (0, "")
    assert "Usage" in out


def test_help_shows_the_hyper_parameters_of_the_chosen_method(call: Call) -> None:
    assert "--confusion-steps" in call("train", "--help")[1]
    published = call("train", "--defense=e2abl", "--help")[1]
    assert "--recovery-rate" in published and "--confusion-steps" not in published
    assert "--recovery-rate" not in call("train", "--defense", "none", "--help")[1]
    assert "--alpha" in call("poison", "--attack", "blend", "--help")[1]


def test_lists(call: Call) -> None:
    code, out, err = call("attacks")
    lines = out.splitlines()
    assert (code, err) == (0, "") and [line.split()[0] for line in lines[::2]] == list(ATTACKS)
    assert all(re.search(r"\b(19|20)\d\d\b", line) for line in lines[1::2]), "each with its paper and year"
    code, out, err = call("doctor")
    assert (code, err) == (0, "") and "wrn-16-1" in out and "torch" in out
    assert call("--version")[1].strip().count(".") == 2


@pytest.mark.parametrize("format_", FORMATS)
def test_train_evaluate_predict_report(call: Call, tmp_path: Path, format_: str) -> None:
    data, run = make_data(tmp_path, format_), tmp_path / "run"
    code, out, err = call("train", data, "--out", run, *FAST, *network(format_))
    assert (code, err) == (0, "")
    assert "clean_accuracy" in out and "Report:" in out
    expected = {"config.json", "log.jsonl", "model.safetensors", "model.json", "samples.parquet", "metrics.json",
                "history.safetensors", "report.html", "gallery.npz"}  # fmt: skip
    assert expected <= {path.name for path in run.iterdir()}
    assert not (run / "skipped.csv").exists() and not (run / "checkpoint.pt").exists()

    code, out, err = call("evaluate", run, "--data", data, "--device", "cpu", "--split", "all")
    assert (code, err) == (0, "")
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["n_test"] == 60 and metrics["clean_accuracy_low"] <= metrics["clean_accuracy"]

    for name in ("said.csv", "said.parquet"):
        code, out, err = call("predict", run, data, "--out", tmp_path / name, "--device", "cpu")
        assert (code, err) == (0, "")
    with (tmp_path / "said.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    table = pq.read_table(tmp_path / "said.parquet").to_pydict()
    assert [row["id"] for row in rows] == table["id"] and len(rows) == 60
    assert [row["prediction"] for row in rows] == table["prediction"]
    assert set(table["prediction"]) <= {"class0", "class1", "class2"}
    assert [float(row["confidence"]) for row in rows] == pytest.approx(table["confidence"], abs=1e-6)

    (run / "report.html").unlink()
    assert call("report", run)[0] == 0
    assert (run / "report.html").stat().st_size > 5000


def test_predict_one_picture(call: Call, tmp_path: Path, trained: Path) -> None:
    picture = next((tmp_path / "data" / "class0").iterdir())
    assert call("predict", trained, picture, "--out", tmp_path / "one.csv", "--device", "cpu")[0] == 0
    assert len((tmp_path / "one.csv").read_text().splitlines()) == 2


def test_what_was_trained_on_is_not_tested_on(call: Call, tmp_path: Path, trained: Path) -> None:
    data, before = tmp_path / "data", json.loads((trained / "metrics.json").read_text())
    assert call("evaluate", trained, "--data", data, "--device", "cpu")[0] == 0
    after = json.loads((trained / "metrics.json").read_text())
    assert (after["n_test"], after["clean_accuracy"]) == (before["n_test"], before["clean_accuracy"])
    assert call("evaluate", trained, "--data", data, "--split", "all", "--device", "cpu")[0] == 0
    assert json.loads((trained / "metrics.json").read_text())["n_test"] == 60
    renamed = data.rename(tmp_path / "others")
    picture = sorted((renamed / "class0").iterdir())[0]
    picture.write_bytes(sorted((renamed / "class1").iterdir())[0].read_bytes())
    # The same names, but one other picture: which of these are new to the model cannot be told.
    expect(call("evaluate", trained, "--data", renamed, "--device", "cpu"), "are not what they were", "--split all")


@pytest.mark.parametrize("format_", FORMATS)
def test_poison_then_train_then_measure(call: Call, tmp_path: Path, format_: str) -> None:
    data, dirty, run = make_data(tmp_path, format_), tmp_path / "dirty", tmp_path / "run"
    attack = ["--attack", "badnets", "--cell", "1"] if format_ in ("folder", "zip") else ["--attack", "static"]
    code, out, err = call("poison", data, "--out", dirty, *attack, "--rate", "0.2", "--target-label", "class1")
    assert (code, err) == (0, "")
    assert "n_poisoned                   10" in out, "of the four fifths that train"
    assert {"truth.parquet", "trigger.json", "trigger.safetensors"} <= {path.name for path in dirty.iterdir()}

    code, _, err = call("train", dirty, "--out", run, *FAST, *network(format_))
    assert (code, err) == (0, "")
    code, _, err = call(
        "evaluate", run, "--data", dirty, "--truth", dirty / "truth.parquet", "--trigger", dirty, "--device", "cpu"
    )
    assert (code, err) == (0, "")
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["n_test"] == 12 and metrics["n_triggered"] == 8, "a fifth was held out; all but the target class"
    for name in ("attack_success_rate", "clean_accuracy_nontarget", "suspicion_auroc"):
        assert 0 <= metrics[name] <= 1
    assert {"isolation_precision", "isolation_recall", "n_poisoned", "n_missed"} <= metrics.keys()


def test_the_file_that_poison_wrote_trains_too(call: Call, tmp_path: Path) -> None:
    data, dirty = make_data(tmp_path, "npz"), tmp_path / "dirty"
    assert call("poison", data, "--out", dirty, "--attack", "static")[0] == 0
    assert call("train", dirty / "poisoned.npz", "--out", tmp_path / "run", *PLAIN, "--backbone", "fcn")[0] == 0


def test_unreadable_samples_are_listed(call: Call, tmp_path: Path) -> None:
    data, run = make_data(tmp_path, "folder"), tmp_path / "run"
    (data / "class0" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    code, _, err = call("train", data, "--out", run, *PLAIN, "--backbone", "wrn-10-1", "--on-error", "skip")
    assert (code, err) == (0, "1 sample could not be read; skipped.csv lists it.\n")
    with (run / "skipped.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["class0/broken.png"] and rows[0]["reason"]
    assert str(tmp_path) not in (run / "skipped.csv").read_text()


def test_finished_run_resumes_to_itself(call: Call, tmp_path: Path, trained: Path) -> None:
    before = (trained / "model.safetensors").read_bytes()
    code, out, err = call("train", tmp_path / "data", "--out", trained, *PLAIN, "--backbone", "wrn-10-1", "--resume")
    assert (code, err) == (0, "") and "Report:" in out
    assert (trained / "model.safetensors").read_bytes() == before


FACTORIES = """
import torch
from torch import nn

def network(input_shape, n_classes):
    return nn.Sequential(nn.Conv2d(input_shape[0], 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, n_classes))

def five_outputs(input_shape):
    return network(input_shape, 5)

def no_network():
    return 3

not_callable = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's in the current folder."""
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    return name


def test_own_network(call: Call, tmp_path: Path, own: str) -> None:
    data, run = make_data(tmp_path, "folder"), tmp_path / "run"
    code, _, err = call("train", data, "--out", run, *FAST, "--model", f"{own}:network", "--attach", "network.0")
    assert (code, err) == (0, "")
    named = ["--model", f"{own}:network", "--device", "cpu"]
    assert call("evaluate", run, "--data", data, *named)[0] == 0
    assert call("predict", run, data, "--out", tmp_path / "own.csv", *named)[0] == 0
    expect(
        call("evaluate", run, "--data", data, "--model", "own_nets_that_are_not_there:network"), "cannot be imported"
    )


def test_nothing_that_a_run_folder_names_is_run(call: Call, tmp_path: Path, trained: Path) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "hostile.py").write_text(f"open({str(ran)!r}, 'w')\ndef network(): pass\n")
    spec = json.loads((trained / "model.json").read_text())
    (trained / "model.json").write_text(json.dumps({**spec, "backbone": "hostile:network"}))
    for words in (
        ("predict", trained, tmp_path / "data", "--out", tmp_path / "p.csv"),
        ("evaluate", trained, "--data", tmp_path / "data"),
    ):
        expect(call(*words), "hostile:network", "--model")
    assert not ran.exists() and "hostile" not in sys.modules


def test_nothing_already_written_is_lost(call: Call, tmp_path: Path, trained: Path) -> None:
    data, table = tmp_path / "data", (trained / "samples.parquet").read_bytes()
    expect(call("predict", trained, data, "--out", trained / "samples.parquet"), "exists already")
    expect(call("demo", "--out", trained, "--epochs", "1"), "holds files that are not from a demo")
    expect(call("train", data, "--out", data / "run", *PLAIN), "lies in the data folder")
    expect(call("poison", data, "--out", data / "dirty"), "lies in the data folder")
    assert (trained / "samples.parquet").read_bytes() == table and not (data / "run").exists()


def test_a_training_that_diverges_says_so(call: Call, tmp_path: Path) -> None:
    data, wild = make_data(tmp_path, "folder"), ["--warmup-learning-rate", "1e30", "--epochs", "2"]
    settings = ["--backbone", "wrn-10-1", "--precision", "fp32", "--device", "cpu"]
    code, said, err = call("train", data, "--out", tmp_path / "run", *wild, *settings)
    last = err.splitlines(keepends=True)[-1]  # a slow machine first says how long the search takes
    expect((code, said, last), "diverged", "'warm-up", "learning rate")
    assert not (tmp_path / "run" / "model.safetensors").exists()


def expect(result: tuple[int, str, str], *words: str) -> None:
    code, _, err = result
    assert code == 2, err
    assert err.startswith("antibackdoor: ") and err.count("\n") == 1 and "Traceback" not in err
    for word in words:
        assert word in err, err


def broken_folder(tmp_path: Path, what: str) -> Path:
    data = tmp_path / what
    if what == "missing":
        return data
    data.mkdir()
    if what == "one":
        shutil.copytree(make_data(tmp_path, "folder") / "class0", data / "class0")
    if what == "corrupt":
        shutil.copytree(make_data(tmp_path, "folder"), data, dirs_exist_ok=True)
        (data / "class1" / "bad.png").write_bytes(b"no picture")
    return data


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("missing", ["there is no file or folder"]),
        ("empty", ["holds no images"]),
        ("one", ["only one class"]),
        ("corrupt", ["bad.png", "--on-error skip"]),
    ],
)
def test_data_that_cannot_be_used(call: Call, tmp_path: Path, what: str, words: list[str]) -> None:
    run = tmp_path / "run"
    expect(call("train", broken_folder(tmp_path, what), "--out", run, *PLAIN, "--backbone", "wrn-10-1"), *words)
    assert not run.exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_series_with_nan(call: Call, tmp_path: Path, value: float) -> None:
    samples = waves(20)
    inputs = samples.inputs.copy()
    inputs[3, 0, 5] = value
    np.savez(tmp_path / "data.npz", x_train=inputs, y_train=samples.labels)
    expect(call("train", tmp_path / "data.npz", "--out", tmp_path / "run", *PLAIN), "data.npz")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epochs", "-1"], ["epochs is -1"]),
        (["--epochs", "many"], ["many"]),
        (["--learning-rate", "0"], ["learning_rate is 0"]),
        (["--seed", str(2**64)], ["seed is 18446744073709551616", "below 2^32"]),
        (["--precision", "fp8"], ["fp8"]),
        (["--augment", "rotate"], ["'rotate'", "crop"]),
        (["--test-fraction", "1"], ["test_fraction is 1"]),
        (["--image-size", "3"], ["3"]),
        (["--nonsense", "1"], ["--nonsense"]),
        (["--defense", "prayer"], ["prayer", "dual-head"]),
        (["--backbone", "vgg"], ["'vgg' is not known", "wrn-16-1"]),
        (["--backbone", "fcn"], ["for series data"]),
        (["--attach", "nowhere"], ["nowhere"]),
        (["--device", "tpu"], ["'tpu' is unknown", "cpu"]),
        (["--devices", "3", "--batch-size", "32"], ["multiple of 3"]),
        (["--model", "OWN:network", "--backbone", "wrn-10-1"], ["exclude each other"]),
        (["--model", "no_such_module:network"], ["no_such_module", "cannot be imported"]),
        (["--model", "OWN:nothing"], ["no function or class 'nothing'"]),
        (["--model", "OWN:not_callable"], ["no function or class 'not_callable'"]),
        (["--model", "OWN:no_network"], ["must return a torch.nn.Module"]),
        (["--model", "OWN:five_outputs"], ["shape (2, 5)", "(2, 3)"]),
        (["--model", "own.py"], ["module:"]),
    ],
)
def test_wrong_settings(call: Call, tmp_path: Path, own: str, arguments: list[str], words: list[str]) -> None:
    arguments = [argument.replace("OWN", own) for argument in arguments]
    fast = [] if "--epochs" in arguments or "--defense" in arguments else ["--epochs", "1"]
    expect(call("train", make_data(tmp_path, "folder"), "--out", tmp_path / "run", *fast, *arguments), *words)


def test_paths_that_no_file_system_takes(call: Call, tmp_path: Path) -> None:
    long = "x" * 300
    expect(call("train", long, "--out", tmp_path / "run"), long, "name too long")
    expect(call("report", long), long, "name too long")
    expect(call("poison", make_data(tmp_path, "npz"), "--out", long, "--attack", "static"), long, "name too long")


def test_names_do_not_steer_the_terminal(call: Call, tmp_path: Path) -> None:
    write_folder(pictures(60, 3), tmp_path / "data")
    code, _, error = call("train", tmp_path / "data", "--out", tmp_path / "a\x1b[2Jb\u202e" / "run", *PLAIN)
    assert code == 0, error
    code, _, error = call("train", tmp_path / "data", "--out", tmp_path / "a\x1b[2Jb\u202e" / "run", *PLAIN)
    assert code == 2 and "\\x1b[2Jb\\u202e" in error and "\x1b" not in error and error.count("\n") == 1


def test_unreadable_samples_can_be_left_out_of_predictions(call: Call, trained: Path, tmp_path: Path) -> None:
    data = make_data(tmp_path, "folder")
    next(data.rglob("*.png")).write_bytes(b"no picture")
    arguments = ["predict", trained, data, "--out", tmp_path / "p.csv", "--device", "cpu"]
    expect(call(*arguments), "--on-error skip")
    code, _, err = call(*arguments, "--on-error", "skip")
    assert code == 0 and "antibackdoor: note: 1 unreadable samples were left out" in err
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 1 + 59


def test_a_run_folder_whose_name_is_no_text(call: Call, tmp_path: Path) -> None:
    run = Path(os.fsdecode(os.fsencode(tmp_path) + b"/r\xff"))
    data = make_data(tmp_path, "npz")
    assert call("train", data, "--out", run, *PLAIN, "--backbone", "fcn")[0] == 0
    assert (run / "samples.parquet").exists() and (run / "report.html").exists()


@pytest.mark.parametrize("n_samples", [2, 4])
def test_the_least_data_that_there_can_be(call: Call, tmp_path: Path, n_samples: int) -> None:
    inputs, labels = np.ones((n_samples, 1, 16), dtype=np.float32), np.arange(n_samples) % 2
    np.savez(tmp_path / "few.npz", x_train=inputs, y_train=labels)
    arguments = ["--out", tmp_path / "run", *FAST, "--backbone", "fcn", "--test-fraction", "0"]
    assert call("train", tmp_path / "few.npz", *arguments)[0] == 0


def test_a_mistake_in_the_settings_leaves_no_run_behind(call: Call, tmp_path: Path) -> None:
    data, run = make_data(tmp_path, "folder"), tmp_path / "run"
    expect(call("train", data, "--out", run, "--epochs", "1", "--attach", "nowhere", "--device", "cpu"), "nowhere")
    # What went wrong is mended by the same command with another setting.
    code, _, err = call("train", data, "--out", run, *PLAIN, "--backbone", "wrn-10-1")
    assert (code, err) == (0, "")


@pytest.mark.parametrize("command", ["train", "scan", "purify", "poison", "evaluate", "predict", "report"])
def test_missing_arguments(call: Call, command: str) -> None:
    expect(call(command))


def test_run_folders_that_do_not_fit(call: Call, tmp_path: Path, trained: Path) -> None:
    data = tmp_path / "data"
    expect(call("train", data, "--out", trained, *PLAIN, "--backbone", "wrn-10-1"), "holds a finished run")
    expect(call("train", data, "--out", trained, *PLAIN, "--backbone", "wrn-16-1", "--resume"), "cannot resume")
    expect(call("train", data, "--out", trained, *PLAIN, "--seed", "5", "--backbone", "wrn-10-1", "--resume"), "seed")
    expect(call("train", data, "--out", data, *PLAIN), "holds files but no run")
    expect(call("evaluate", data, "--data", data), "model.json")
    expect(call("report", data), "no run")
    expect(call("report", tmp_path / "nothing"), "no run")
    expect(call("predict", data, data, "--out", tmp_path / "x.csv"), "model.json")
    expect(call("predict", trained, data, "--out", tmp_path / "x.txt"), ".csv or .parquet")
    expect(call("evaluate", trained, "--data", data, "--device", "tpu"), "'tpu'")
    expect(call("evaluate", trained, "--data", tmp_path / "no"), "there is no file or folder")
    expect(call("evaluate", trained, "--data", data, "--truth", data), "truth")
    expect(call("train", data, "--out", tmp_path / "one", *PLAIN, "--batch-size", "1"), "batch_size is 1")
    expect(call("evaluate", trained, "--data", data, "--trigger", data), "trigger")
    whole = (trained / "model.safetensors").read_bytes()
    (trained / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    expect(call("evaluate", trained, "--data", data), "model.safetensors", "checksum")
    (trained / "checksums.json").unlink()
    expect(call("predict", trained, data, "--out", tmp_path / "x.csv"), "model.safetensors", "corrupt")
    (trained / "model.safetensors").unlink()
    expect(call("evaluate", trained, "--data", data), "model.safetensors")


def test_wrong_poisons(call: Call, tmp_path: Path) -> None:
    data, dirty = make_data(tmp_path, "folder"), tmp_path / "dirty"
    expect(call("poison", data, "--out", dirty, "--attack", "magic"), "magic", "badnets")
    expect(call("poison", data, "--out", dirty, "--rate", "2"), "rate is 2")
    expect(call("poison", data, "--out", dirty, "--target-label", "dog"), "no class 'dog'", "class0")
    expect(call("poison", data, "--out", dirty, "--source-label", "class0"), "--source-label")
    expect(call("poison", data, "--out", dirty, "--attack", "static"), "series")
    expect(call("poison", data, "--out", data), "exists already")
    assert not dirty.exists()


def test_the_user_is_warned_of_nothing_he_cannot_help(start: Callable[..., Any], tmp_path: Path) -> None:
    """In a process of its own, since pytest swallows warnings: fcn has even kernels, the cache is read-only."""
    jobs = [
        ["train", str(make_data(tmp_path, kind)), "--out", str(tmp_path / f"run-{kind}"), *FAST, "--backbone", backbone]
        for kind, backbone in (("folder", "wrn-10-1"), ("npz", "fcn"))
    ]
    script = (
        "import contextlib\nfrom antibackdoor.cli import main\n"
        f"for job in {jobs!r}:\n    with contextlib.suppress(SystemExit): main(job)"
    )
    process = start(command=[sys.executable, "-c", script])
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert out.count("Report:") == 2 and not any(line.strip() == "" for line in out.splitlines())
