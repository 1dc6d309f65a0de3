"""Ctrl-C, SIGTERM and SIGHUP: one line of advice, and the status that shells give."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from antibackdoor.cli import app, main, signals
from antibackdoor.cli.commands import resumable

ENDS = [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends the process there")


def send(name: str) -> None:
    os.kill(os.getpid(), getattr(signal, name))
    time.sleep(0.01)  # a handler runs between two steps of the interpreter


@pytest.mark.parametrize(("name", "status"), ENDS)
def test_each_signal_ends_with_advice_and_its_status(
    name: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(_: Sequence[str]) -> None:
        with resumable(Path("my\nrun")):
            send(name)

    before = signal.getsignal(getattr(signal, name))
    monkeypatch.setattr(app, "main", work)
    with pytest.raises(SystemExit) as ended:
        main(["train"])
    assert ended.value.code == status
    assert capsys.readouterr().err == "\nStopped. Repeat the command with --resume to continue my\\nrun.\n"
    assert signal.getsignal(getattr(signal, name)) is before, "a program that calls us keeps its own"


def test_five_in_a_row_do_not_break_off_what_the_first_tidies_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tidied = []

    def work(_: Sequence[str]) -> None:
        try:
            send("SIGINT")
        finally:
            for _ in range(4):
                send("SIGINT")
            tidied.append(True)

    monkeypatch.setattr(app, "main", work)
    with pytest.raises(SystemExit) as ended:
        main(["poison"])
    assert (ended.value.code, tidied, capsys.readouterr().err) == (130, [True], "\nStopped.\n")


def test_the_parser_leaves_it_to_us(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("platform.python_version", lambda: send("SIGTERM"))
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    assert (ended.value.code, capsys.readouterr().err) == (143, "\nStopped.\n")


def in_python(code: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    (tmp_path / "slow.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(5)\n")
    lines = f"import os, signal, sys\nsys.path.insert(0, {str(tmp_path)!r})\n{code}"
    return subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=60, check=False)


def test_a_signal_during_an_import_is_not_taken_for_its_failure(tmp_path: Path) -> None:
    ended = in_python(
        "from antibackdoor.cli.signals import listening\n"
        "with listening(afterwards=True):\n    try:\n        import slow\n    except BaseException:\n        pass\n",
        tmp_path,
    )
    assert (ended.returncode, ended.stderr) == (130, "\nStopped.\n")


def test_nothing_slow_is_imported_before_signals_are_heard(tmp_path: Path) -> None:
    ended = in_python("import antibackdoor.cli\nprint('numpy' in sys.modules or 'cyclopts' in sys.modules)", tmp_path)
    assert ended.stdout == "False\n"


def test_nohup_is_respected(tmp_path: Path) -> None:
    ended = in_python(
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\nfrom antibackdoor.cli.signals import listening\n"
        "with listening(afterwards=True):\n    os.kill(os.getpid(), signal.SIGHUP)\nprint('on')\n",
        tmp_path,
    )
    assert (ended.returncode, ended.stdout) == (0, "on\n")


def test_an_end_that_takes_too_long_can_be_cut_short(tmp_path: Path) -> None:
    ended = in_python(
        "from antibackdoor.cli import signals\nsignals.PATIENCE_SECONDS = 0\n"
        "with signals.listening(afterwards=True):\n    try:\n        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    finally:\n        os.kill(os.getpid(), signal.SIGTERM)\n        print('not reached')\n",
        tmp_path,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (143, "", "\nStopped.\n")


def test_a_call_that_never_returns_to_python_does_not_keep_it_alive(tmp_path: Path) -> None:
    ended = in_python(
        "import threading\nfrom antibackdoor.cli import signals\nsignals.LONGEST_END_SECONDS = 0.05\n"
        "with signals.listening(afterwards=True):\n    try:\n        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    finally:\n        threading.Event().wait(20)\n",
        tmp_path,
    )
    assert (ended.returncode, ended.stderr) == (143, "\nStopped.\n")


def test_statuses_are_those_of_the_list() -> None:
    assert {name for name, _ in ENDS} == set(signals.SIGNALS)
