"""`poison` is whole or absent: whenever it is killed, and whatever the disk refuses, nothing halves stay behind."""

import errno
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from antibackdoor.app import red_team
from antibackdoor.app.red_team import Aim, poison_data_set
from antibackdoor.attacks import BadNets, StaticPattern, load_trigger, read_truth
from antibackdoor.data.output import complete_or_absent
from antibackdoor.data.reading import DataSet, read
from antibackdoor.data.samples import Samples
from antibackdoor.errors import DataError

FORMATS = ("npz", "ts", "folder")


def clean(format_: str) -> DataSet:
    rng = np.random.default_rng(0)
    labels, ids = np.arange(12) % 2, np.array([f"{row}" for row in range(12)])
    if format_ in ("ts", "csv"):
        inputs = rng.random((12, 1, 16), dtype=np.float32)
    else:
        inputs = rng.integers(0, 256, (12, 3, 8, 8), dtype=np.uint8)
    samples = Samples(inputs, labels, ids, np.array(["a", "b"]))
    return DataSet(samples, samples.take(np.arange(4)), format_, (), {})


def poisoned(format_: str, out: Path) -> None:
    attack = StaticPattern() if format_ in ("ts", "csv") else BadNets()
    poison_data_set(clean(format_), attack, Aim(rate=0.25), out, seed=0)


def is_whole(out: Path, format_: str) -> bool:
    read(out, cache=out.parents[1] / "cache", test_fraction=0)
    load_trigger(out)
    assert read_truth(out / "truth.parquet")[1].is_poisoned.sum() == 3
    return (out / "card.html").exists()


def poisoned_until_killed(format_: str, out: Path, moment: int) -> None:
    """Poison, killed at the `moment`-th access to the file system beside `out` or below it; exits with their number."""
    seen = [0]
    events = {"open", "os.mkdir", "os.rename", "os.rmdir", "os.remove", "os.scandir", "shutil.rmtree"}

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in events and str(out.parent) in str(arguments[:2]):
            seen[0] += 1
            if seen[0] == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    poisoned(format_, out)
    sys.exit(seen[0])


def checked(format_: str, out: Path, again: bool) -> None:
    """What a killed call left is whole, or (with `again`) gives way to a second call."""
    if again:
        poisoned(format_, out)
        assert [entry.name for entry in out.parent.iterdir()] == ["out"], "leftovers"
    assert is_whole(out, format_)


def in_a_child(work: Callable[..., None], *arguments: object) -> int:
    """Run it in a process forked from one without threads; its exit code, or minus the signal that ended it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["antibackdoor.app.red_team", "pandas", "PIL.PngImagePlugin", "pyarrow.parquet", "pytest"]
    )
    child = context.Process(target=work, args=arguments)
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


@pytest.mark.skipif(sys.platform == "win32", reason="a file that is open cannot be removed there")
@pytest.mark.parametrize("format_", FORMATS)
def test_a_kill_at_any_moment_leaves_all_or_nothing(tmp_path: Path, format_: str) -> None:
    n = in_a_child(poisoned_until_killed, format_, tmp_path / "whole", 0)
    assert n > 8, "the hook sees what is written"
    ends = set()
    for moment in sorted({*range(1, n, n // 5), *range(n - 3, n + 1)}):
        out = tmp_path / str(moment) / "out"
        out.parent.mkdir()
        assert in_a_child(poisoned_until_killed, format_, out, moment) == -signal.SIGKILL
        ends.add(out.exists())
        assert in_a_child(checked, format_, out, not out.exists()) == 0, moment
    assert ends == {False, True}


def test_two_processes_do_not_remove_each_other(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with complete_or_absent(out) as first:
        first.write_text("first")
        with complete_or_absent(out) as second:
            second.write_text("second")
        assert first.exists(), "the second took the first, which is alive, for a leftover"
        out.unlink()
    assert out.read_text() == "first"


def test_a_folder_of_another_path_is_no_leftover(tmp_path: Path) -> None:
    kept = tmp_path / ".writing-out-b-0123abcd"
    kept.mkdir()
    (tmp_path / ".writing-out-0123abcd").symlink_to(kept)
    with complete_or_absent(tmp_path / "out") as path:
        path.write_text("")
    assert kept.is_dir()


@pytest.mark.parametrize("format_", FORMATS)
def test_a_full_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, format_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for place in ("write_truth", "save_trigger", "write_card", "_write_data"):
        with monkeypatch.context() as patch:
            patch.setattr(red_team, place, full)
            with pytest.raises(DataError, match=r"cannot write .*out: the disk is full; free some space"):
                poisoned(format_, tmp_path / "out")
        assert not list(tmp_path.iterdir())
