"""Kill runs of every command: SIGKILL at a random moment, again or go on until done, and the end must be the same.

`python -m tests.campaign.kills --runs 50 --seed 0` runs them; 1 if an end differs.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .case import TRAIN
from .driver import Plan, Table, warm

_NETWORK = ("--backbone", "wrn-10-1")
_EPOCHS = ("--epochs", "12", *TRAIN[2:])
_SEARCH = ("--device", "cpu", "--precision", "fp32", "--warmup-steps", "100", "--confusion-steps", "4", "--no-progress")
_PASSED_OVER = ("second", "minute", "hour", "command", "versions", "date", "created", "started", "finished")
_ONLY_THERE = (".html",)  # pages hold times and dates: they must be there


@dataclass(frozen=True)
class Job:
    """A command to kill.

    Attributes:
        words: Its arguments; it runs in a folder of its own.
        inputs: What of the material it needs, copied into that folder.
        resumes: Whether it is given again with `--resume`; else as it was.
        apart: Run it as a program of its own, since it starts others.
        share: Of the kill runs, as parts of the whole.
    """

    words: tuple[str, ...]
    inputs: tuple[str, ...] = ("pics",)
    resumes: bool = False
    apart: bool = False
    share: int = 2


JOBS: dict[str, Job] = {
    "train": Job(("train", "pics", "--out", "new", "--defense", "none", *_EPOCHS, *_NETWORK), resumes=True),
    "train, dual-head": Job(("train", "pics", "--out", "new", "--epochs", "6", *_SEARCH, *_NETWORK), resumes=True),
    "train --devices 2": Job(
        ("train", "pics", "--out", "new", "--defense", "none", *_EPOCHS, *_NETWORK, "--devices", "2"), resumes=True,
        apart=True, share=1,
    ),
    "scan": Job(("scan", "pics", "--out", "new", *_SEARCH, *_NETWORK), resumes=True),
    "purify": Job(
        ("purify", "run", "--clean", "pics", "--test", "pics", "--out", "new", "--method", "fine-tune", *_EPOCHS),
        ("pics", "run"), resumes=True,
    ),
    "compare": Job(
        ("compare", "pics", "--methods", "none,spectral", "--out", "new", *_EPOCHS, *_NETWORK), resumes=True
    ),
    "poison": Job(("poison", "pics", "--out", "new", "--rate", "0.25")),
    "poison, npz": Job(("poison", "waves.npz", "--out", "new", "--rate", "0.25", "--attack", "powerline"),
    ("waves.npz",)),
    "poison, ts": Job(("poison", "waves.ts", "--out", "new", "--rate", "0.25", "--attack", "powerline"), ("waves.ts",)),
    "poison, zip": Job(("poison", "pics.zip", "--out", "new", "--rate", "0.25"), ("pics.zip",)),
    "evaluate": Job(
        ("evaluate", "run-poisoned", "--data", "poisoned", "--split", "all", "--trigger", "poisoned", "--truth",
        "poisoned/truth.parquet"),
        ("run-poisoned", "poisoned"),
    ),
    "predict": Job(("predict", "run", "pics", "--out", "said.csv"), ("pics", "run")),
    "demo": Job(("demo", "--out", "new", "--epochs", "1", "--device", "cpu"), (), share=1),
}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What came of a kill run: the differences of its end, none if all is well."""

    name: str
    kills: tuple[float, ...]
    differences: tuple[str, ...]


def start(job: Job, folder: Path, *, again: bool) -> int:
    """Start the command in this folder, in a session of its own; returns the process."""
    words = [*job.words, *(["--resume"] if again and job.resumes else [])]
    if job.apart:
        with (folder.parent / f"{folder.name}.txt").open("ab") as log:
            environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
            command = [sys.executable, "-m", "antibackdoor", *words]
            # The driver waits for process numbers, so this object is let go.
            return subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
            ).pid
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        log_descriptor = os.open(folder.parent / f"{folder.name}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log_descriptor, 1)
        os.dup2(log_descriptor, 2)
        os.chdir(folder)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        from antibackdoor.cli import main as command_line

        command_line(words)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def finish(pid: int, seconds: float) -> int | None:
    """Its exit code; it is killed when the time is over, with all that it started, and None returned."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def prepared(job: Job, material: Path, folder: Path) -> Path:
    """A fresh folder with the inputs of the command."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in job.inputs:
        source = material / name
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, folder / name)
    return folder


def end_of(folder: Path) -> dict[str, str]:
    """A digest of each file of an end; of pages only that they are there. The cache is no part of it."""
    found: dict[str, str] = {}
    for place in sorted(folder.rglob("*")):
        name = str(place.relative_to(folder))
        if place.is_file() and not name.startswith("cache"):
            try:
                found[name] = _digest(place)
            except (ValueError, OSError) as error:  # half of a file is a difference, too
                found[name] = f"damaged: {error}"
    return found


def _digest(place: Path) -> str:
    suffix = place.suffix
    if suffix in _ONLY_THERE:
        return "there"
    if suffix == ".json":
        return _hash(_timeless(json.loads(place.read_text())))
    if suffix == ".jsonl":
        return _hash([_timeless(json.loads(line)) for line in place.read_text().splitlines()])
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(place)
        return _hash([table.to_pydict(), str(table.schema)])
    if suffix == ".csv":
        with place.open(newline="") as file:
            rows = list(csv.reader(file))
        columns = [k for k, name in enumerate(rows[0])] if rows else []
        kept = [k for k in columns if not _of_time(rows[0][k])]
        return _hash([[row[k] for k in kept if k < len(row)] for row in rows])
    return hashlib.sha256(place.read_bytes()).hexdigest()


def _of_time(name: str) -> bool:
    return any(part in name.lower() for part in _PASSED_OVER)


def _timeless(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _timeless(value) for key, value in values.items() if not _of_time(key)}
    return [_timeless(value) for value in values] if isinstance(values, list) else values


def _hash(values: object) -> str:
    return hashlib.sha256(repr(values).encode("utf-8", "surrogatepass")).hexdigest()


def undisturbed(name: str, job: Job, material: Path, root: Path, seconds: float) -> tuple[dict[str, str], float]:
    """The end of the command, and how long it takes."""
    folder = prepared(job, material, root / "whole" / name.replace(" ", "_"))
    began = time.monotonic()
    code = finish(start(job, folder, again=False), seconds)
    if code != 0:
        raise RuntimeError(f"{name} ended with {code}: {(folder.parent / f'{folder.name}.txt').read_text()[-1000:]}")
    return end_of(folder), time.monotonic() - began


def killed(
    name: str, job: Job, material: Path, folder: Path, whole: tuple[dict[str, str], float], rng: np.random.Generator,
    seconds: float,
) -> Result:  # fmt: skip
    """Kill it up to three times, let it end, and compare."""
    end, duration = whole
    prepared(job, material, folder)
    kills: list[float] = []
    for _ in range(int(rng.integers(1, 4))):
        fraction = float(rng.random())
        pid = start(job, folder, again=bool(kills))
        code = finish(pid, fraction * duration)
        kills.append(round(fraction, 3))
        if code is not None:  # it was faster than we
            break
    code = finish(start(job, folder, again=True), seconds)
    log = (folder.parent / f"{folder.name}.txt").read_text(errors="replace")
    now = end_of(folder)
    differences = [f"{path}: {'missing' if path in end else 'left'}" for path in sorted({*end} ^ {*now})]
    differences += [f"{path} differs" for path in sorted({*end} & {*now}) if end[path] != now[path]]
    # What was complete when the kill came is not made again: the refusal says so, and the end tells the rest.
    if code not in (0, 2) or (code == 2 and job.resumes) or "Traceback" in log:
        differences.insert(0, f"ended with {code}: {' '.join(log.splitlines()[-1:])[:300]}")
    if not differences:
        shutil.rmtree(folder)
    return Result(name, tuple(kills), tuple(differences))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the kill runs; 1 if an end differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign.kills", description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="commands whose name holds this")
    parser.add_argument("--keep", type=Path, help="a new folder for what went wrong")
    parser.add_argument("--seconds", type=float, default=300, help="a command that takes longer hangs")
    given = parser.parse_args(arguments)
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    sys.dont_write_bytecode = True
    root = (given.keep or Path(tempfile.mkdtemp(prefix="kills-"))).absolute()
    root.mkdir(parents=True, exist_ok=True)
    plan = Plan(Table({}, {}), given.seed, root / "material", root, 60)
    warm(plan)
    names = [name for name, job in JOBS.items() for _ in range(job.share) if given.only in name]
    order = [names[k] for k in np.random.default_rng(given.seed).permutation(len(names))]
    ends: dict[str, tuple[dict[str, str], float]] = {}
    bad = 0
    for number in range(given.runs):
        name = order[number % len(order)]
        if name not in ends:
            ends[name] = undisturbed(name, JOBS[name], plan.material, root, given.seconds)
        rng = np.random.default_rng([given.seed, number])
        result = killed(name, JOBS[name], plan.material, root / f"run-{number}", ends[name], rng, given.seconds)
        bad += bool(result.differences)
        what = "; ".join(result.differences[:4]) or "same"
        print(f"{number} {name}, killed at {result.kills} of {ends[name][1]:.1f} s: {what}", flush=True)
    print(f"{given.runs - bad} of {given.runs} ends are the same")
    if given.keep is None:
        shutil.rmtree(root, ignore_errors=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
