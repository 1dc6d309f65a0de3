"""Threads that lose their cores to other programs are given up for a while."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from antibackdoor import cores
from antibackdoor.cores import PATIENCE, PRESSED, WINDOW, Cores, interruptions

Machine = Callable[..., None]


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    """Torch begins each test with four threads, and ends with what it had."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Lets time pass, and interrupts each of four threads so many times meanwhile."""
    clock, counts = [0.0], [0, 0, 0, 0]

    def passes(seconds: float, *times: int) -> None:
        clock[0] += seconds
        for thread, more in enumerate(times):
            counts[thread] += more
        for thread, count in enumerate(counts):
            (tmp_path / str(thread)).mkdir(exist_ok=True)
            lines = ["Name:\tx", "voluntary_ctxt_switches:\t7000", f"nonvoluntary_ctxt_switches:\t{count}", ""]
            (tmp_path / str(thread) / "status").write_text("\n".join(lines))

    passes(0)
    monkeypatch.setattr(cores, "THREADS", tmp_path)
    monkeypatch.setattr(cores.time, "monotonic", lambda: clock[0])
    return passes


def test_one_thread_less_for_each_that_is_pressed(machine: Machine) -> None:
    found = Cores()
    often, seldom = round(2 * WINDOW * PRESSED) + 1, round(2 * WINDOW * PRESSED) - 1
    with found.shared() as look:
        machine(2 * WINDOW, often, seldom, often, seldom)
        look()
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 4, "afterwards as before"
    with found.shared():
        assert torch.get_num_threads() == 2, "the next pass does not begin anew"


def test_one_thread_is_always_left(machine: Machine) -> None:
    with Cores().shared() as look:
        for _ in range(3):
            machine(WINDOW, 1000, 1000, 1000, 0)
            look()
        assert torch.get_num_threads() == 1


def test_a_moment_is_too_short_to_tell(machine: Machine) -> None:
    with Cores().shared() as look:
        machine(WINDOW / 2, 1000, 1000, 1000, 1000)
        look()
        assert torch.get_num_threads() == 4


def test_all_threads_come_back_when_the_others_are_gone(machine: Machine) -> None:
    with Cores().shared() as look:
        machine(WINDOW, 1000, 1000)
        look()
        machine(PATIENCE / 2)
        look()
        assert torch.get_num_threads() == 2
        machine(PATIENCE)
        look()
        assert torch.get_num_threads() == 4


def test_what_happened_between_two_passes_does_not_count(machine: Machine) -> None:
    found = Cores()
    machine(WINDOW, 1000, 1000, 1000, 1000)
    with found.shared() as look:
        machine(WINDOW)
        look()
        assert torch.get_num_threads() == 4


def test_where_nobody_counts_nothing_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "THREADS", tmp_path / "none")
    monkeypatch.setattr(cores, "WINDOW", 0.0)
    assert interruptions() == {}
    with Cores().shared() as look:
        look()
        assert torch.get_num_threads() == 4


@pytest.mark.skipif(not cores.THREADS.exists(), reason="only Linux counts interruptions of threads")
def test_the_real_machine_counts_this_very_thread() -> None:
    assert str(threading.get_native_id()) in interruptions()
