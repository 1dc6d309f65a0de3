"""A killed run, resumed, ends as an unbroken one does, to the byte."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import pictures, waves, write_folder

from antibackdoor.data.reading import write

Call = Callable[..., tuple[int, str, str]]
Start = Callable[..., subprocess.Popen[str]]
SETTINGS: dict[str, list[object]] = {
    "dual-head": ["--epochs", "8", "--warmup-steps", "150", "--confusion-steps", "4"],
    "e2abl": ["--defense", "e2abl", "--epochs", "8"],
    "none": ["--defense", "none", "--epochs", "20"],
}


def arguments(name: str, data: Path, run: Path) -> list[object]:
    fixed = ["--backbone", "wrn-10-1" if data.is_dir() else "fcn", "--device", "cpu", "--precision", "fp32"]
    return ["train", data, "--out", run, *SETTINGS[name], *fixed]


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, err = process.communicate(timeout=120)
    return process.returncode, err


def wait_for_lines(process: subprocess.Popen[str], run: Path, n_lines: int) -> None:
    """Until the run has begun and its log has this many lines, so that the kill hits it on any machine."""
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        try:
            if (run / "config.json").exists() and n_lines == 0:
                return
            if (run / "log.jsonl").read_bytes().count(b"\n") >= n_lines:
                return
        except FileNotFoundError:
            pass
        time.sleep(0.005)


def assert_same(first: Path, second: Path) -> None:
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert pq.read_table(first / "samples.parquet").equals(pq.read_table(second / "samples.parquet"))
    assert (first / "log.jsonl").read_bytes() == (second / "log.jsonl").read_bytes()
    assert (first / "history.safetensors").read_bytes() == (second / "history.safetensors").read_bytes()
    assert not (second / "checkpoint.pt").exists() and (second / "report.html").exists()


# When to kill: after how many lines of the log, and how many seconds later. E2ABL is hit in both of its phases.
KILLS = {"dual-head": ((0, 0.0), (1, 0.0), (4, 0.02)), "e2abl": ((2, 0.01),), "none": ((5, 0.01),)}


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_killed_and_resumed(start: Start, call: Call, tmp_path: Path, name: str) -> None:
    data = write_folder(pictures(200, 3), tmp_path / "data")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert call(*arguments(name, data, whole))[0] == 0
    kills = []
    for n_lines, delay in KILLS[name]:
        process = start(*arguments(name, data, broken), "--resume")
        wait_for_lines(process, broken, n_lines)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        kills.append(finish(process)[0] == -signal.SIGKILL)
    assert kills[0]
    code, _, err = call(*arguments(name, data, broken), "--resume")
    assert (code, err) == (0, "")
    assert_same(whole, broken)


def test_interrupted_moved_and_resumed(start: Start, call: Call, tmp_path: Path) -> None:
    data = write(tmp_path / "data.npz", waves(200, 3), format="npz").path
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert call(*arguments("none", data, whole))[0] == 0
    process = start(*arguments("none", data, broken))
    wait_for_lines(process, broken, 2)
    process.send_signal(signal.SIGINT)
    code, err = finish(process)
    assert code == 130
    assert "--resume" in err and "broken" in err and "Traceback" not in err and len(err.strip().splitlines()) == 1
    assert (broken / "checkpoint.pt").exists()

    moved = tmp_path / "elsewhere" / "run"
    moved.parent.mkdir()
    shutil.move(broken, moved)
    shutil.move(data, moved.parent / "renamed.npz")
    assert call(*arguments("none", moved.parent / "renamed.npz", moved), "--resume")[0] == 0
    assert_same(whole, moved)


def test_no_two_at_once(start: Start, call: Call, tmp_path: Path) -> None:
    data = write_folder(pictures(200, 3), tmp_path / "data")
    run = tmp_path / "run"
    first = start(*arguments("none", data, run))
    wait_for_lines(first, run, 1)
    first.send_signal(signal.SIGSTOP)  # it holds the folder however slow it is
    try:
        code, _, err = call(*arguments("none", data, run), "--resume")
    finally:
        first.kill()
        finish(first)
    assert code == 2 and "another process writes" in err and err.count("\n") == 1
