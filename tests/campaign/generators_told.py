"""What happens to a command: the disk is full, a signal comes, the data have changed; and what a user is told."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from antibackdoor.runs.samples_table import read_samples_table

from .case import PLAIN, TRAIN, Box, Case, Table, Wrong
from .generators_runs import resuming
from .material import pictures, waves

_NETWORK = ("--backbone", "wrn-10-1")
_SEARCH = ("--epochs", "1", "--device", "cpu", "--precision", "fp32", "--warmup-steps", "40", "--confusion-steps", "2")


def _any_command(box: Box) -> tuple[object, ...]:
    pics = box.copy("pics")
    run = box.copy("run", writable=True)
    chosen: tuple[object, ...] = box.pick(
        ("train", pics, "--out", "new", *PLAIN, *_NETWORK), ("poison", pics, "--out", "new", "--rate", "0.2"),
        ("poison", box.copy("waves.npz"), "--out", "new", "--rate", "0.2", "--attack", "powerline"),
        ("poison", box.copy("waves.ts"), "--out", "new", "--rate", "0.2", "--attack", "powerline"),
        ("scan", pics, "--out", "new", "--detector", "spectral", *TRAIN, *_NETWORK),
        ("predict", run, pics, "--out", "said.csv"),
        ("evaluate", run, "--data", pics, "--split", "all", "--device", "cpu"), ("report", run),
        ("purify", run, "--clean", pics, "--out", "new", "--method", "fine-tune", *TRAIN),
    )  # fmt: skip
    return chosen


def _whole_or_absent(output: str) -> None:
    """What `poison` and `predict` write is whole or absent, and nothing hidden is left."""
    left = [place.name for place in Path().iterdir() if place.name.startswith(".")]
    if left:
        raise Wrong(f"something hidden was left: {left[:3]}")
    poisoned = Path("new/trigger.json").exists(), Path("new/truth.parquet").exists()
    if (
        Path("new").exists()
        and not Path("new/config.json").exists()
        and not all(poisoned)
        and any(Path("new").iterdir())
    ):
        raise Wrong(
            f"a poisoned copy is neither whole nor absent: {sorted(place.name for place in Path('new').iterdir())[:5]}"
        )


def full_disk(box: Box) -> Case:
    """No file may grow beyond some bytes, as on a full disk: told in our words."""
    command = _any_command(box)
    if box.chance(0.3):
        x, y = waves(length=400)
        np.savez(box.inputs / "long.npz", x_train=x, y_train=y)
        command = ("poison", box.inputs / "long.npz", "--out", "new", "--rate", "0.2", "--attack", "powerline")
    most = int(2 ** box.rng.uniform(14, 18))  # what the campaign notes of the case is smaller

    def check(output: str) -> None:
        if any(word in output for word in ("enforce fail", "inline_container", "0.0 GB", "Errno")):
            raise Wrong(f"a full disk was told in the words of a library: {output.splitlines()[-1][:200]}")
        _whole_or_absent(output)

    return Case(command, check=check, check_always=True, most_bytes=most, about=f"{most} bytes")


def signals(box: Box) -> Case:
    """A signal comes at any moment, once or five times: the command ends in one line."""
    command = _any_command(box)
    which = box.pick(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    left = [int(box.pick(1, 1, 5))]
    seconds = float(box.rng.uniform(0.001, 0.5))

    def strike(number: int, frame: object) -> None:
        left[0] -= 1
        if left[0]:
            signal.setitimer(signal.ITIMER_REAL, 0.01)
        os.kill(os.getpid(), which)

    def begin() -> None:
        # Before and after the command, a signal ends this process as it ends any other.
        signal.signal(which, lambda number, frame: os._exit(128 + number))
        signal.signal(signal.SIGALRM, strike)
        signal.setitimer(signal.ITIMER_REAL, seconds)

    return Case(
        command, before=begin, codes=(128 + which,), check=_whole_or_absent, check_always=True,
        about=f"{which.name} after {seconds:.3f} s",
    )  # fmt: skip


def changed_data(box: Box) -> Case:
    """`--resume` after one training picture was replaced by another of the same name: refused."""
    # Both runs hold out the same fifth, which is no part of what they were trained on.
    run = box.copy("run", writable=True)
    trained_on = read_samples_table(run).ids.tolist()
    if box.chance(0.5):
        case = resuming(box, box.copy("unfinished", writable=True), "unfinished")
    else:
        words = ("train", box.copy("pics"), "--out", run.name, *PLAIN, *_NETWORK, "--resume")
        case = Case(words, about="finished")
    place = box.inputs / "pics" / box.pick(*trained_on)
    Image.fromarray(box.rng.integers(0, 255, (8, 8), dtype=np.uint8)).save(place)
    return Case(case.command, expect="refused", about=f"{case.about} {place.name}")


def unchanged_data(box: Box) -> Case:
    """`--resume` on the same data goes on, or says that the run is finished."""
    if box.chance(0.5):
        case = resuming(box, box.copy("unfinished", writable=True), "unfinished")
        return Case(case.command, expect="ok", about=case.about)
    words = ("train", box.copy("pics"), "--out", box.copy("run", writable=True).name, *PLAIN, *_NETWORK, "--resume")

    def check(output: str) -> None:
        if "finished" not in output:
            raise Wrong("a finished run does not say that it is finished")

    return Case(words, expect="ok", check=check, about="finished")


def file_modes(box: Box) -> Case:
    """All files of a run have the modes that the umask gives."""
    command = _any_command(box)
    mask = int(box.pick(0o022, 0o027, 0o077, 0o002))

    def check(output: str) -> None:
        for place in [*Path("new").rglob("*"), *Path().glob("said.csv")]:
            wanted = (0o777 if place.is_dir() else 0o666) & ~mask
            if place.stat().st_mode & 0o777 != wanted:
                raise Wrong(
                    f"a file's mode does not follow the umask: {place.name} {place.stat().st_mode & 0o777:o}, {mask:o}"
                )

    return Case(command, before=lambda: os.umask(mask) and None, expect="ok", check=check, about=f"{mask:o}")


def unused_splits(box: Box) -> Case:
    """A split that nothing reads is told."""
    if box.chance(0.5):
        folder = box.copy("split")
        pictures(folder / "val", n=6, seed=5)
        path, word = folder, "val"
    else:
        x, y = waves()
        path, word = box.inputs / "data.npz", "x_val"
        np.savez(path, x_train=x, y_train=y, x_test=x + 0.1, y_test=y, x_val=x[:4], y_val=y[:4])

    def check(output: str) -> None:
        listed = Path("new/skipped.csv")
        if word not in output + (listed.read_text() if listed.exists() else ""):
            raise Wrong(f"an unused split was not told: {word}")

    return Case(("train", path, "--out", "new", *PLAIN), expect="ok", check=check, about=word)


def told_numbers(box: Box) -> Case:
    """Labels that were not examined, accuracy by class, and no fields without a value."""
    folder = box.inputs / "data"
    pictures(folder, n=int(box.rng.integers(12, 30)), seed=int(box.rng.integers(1000)))

    def check(output: str) -> None:
        metrics: dict[str, Any] = json.loads(Path("new/metrics.json").read_text())
        if not any("balanced" in key for key in metrics) or not Path("new/classes.csv").exists():
            raise Wrong("no accuracy by class after a training")
        if any(line.rstrip().endswith(" None") for line in output.splitlines()):
            raise Wrong("a field without a value went to the terminal")
        if "examined" not in output:
            raise Wrong("labels that were not examined were not told")

    return Case(("train", folder, "--out", "new", *_SEARCH, *_NETWORK), expect="ok", check=check)


def a_large_table(box: Box) -> Case:
    """A table is read within a few times its size."""
    x = np.round(box.rng.normal(size=(1500, 2000)), 3)
    path = box.inputs / box.pick("data.csv", "data.tsv")
    separator = "," if path.suffix == ".csv" else "\t"
    path.write_text(
        "".join(f"{row % 2}{separator}{separator.join(map(str, values))}\n" for row, values in enumerate(x))
    )
    size = path.stat().st_size

    def read() -> None:
        import resource

        from antibackdoor.data.reading import read

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        read(path, test_fraction=0)
        taken = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        if taken > 6 * size:
            raise Wrong(f"a table takes many times its size: {taken / size:.1f} times")

    return Case(call=read)


TOLD = Table(
    {
        "changed data": changed_data, "unchanged data": unchanged_data, "file modes": file_modes,
        "unused splits": unused_splits,
        "told numbers": told_numbers,
    },
    {"full disk": full_disk, "full disk again": full_disk, "signals": signals, "signals again": signals,
    "large table": a_large_table},
)  # fmt: skip
