"""Faults that the driver must find; each is named after its outcome."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from antibackdoor.errors import DataError

from .case import Box, Case, Table, Wrong


def _traceback() -> None:
    raise ValueError("planted")


def _hang() -> None:
    time.sleep(600)


def _subprocess() -> None:
    subprocess.run([sys.executable, "-c", "pass"])


def _system() -> None:
    os.system("true")


def _pickle() -> None:
    pickle.loads(pickle.dumps(Path))  # noqa: S301 - this must be caught


def _import() -> None:
    Path("foreign.py").write_text("x = 1\n")
    sys.path.insert(0, str(Path().absolute()))
    __import__("foreign")


def _outside() -> None:
    Path("../outside/new.txt").write_text("x")


def _through_a_link() -> None:
    Path("link").symlink_to(Path("../outside/precious.txt"))
    with Path("link").open("ab") as file:
        file.write(b"x")


def _removed() -> None:
    Path("../outside/precious.txt").unlink()


def _damaged() -> None:
    np.array([1]).tofile("kept")


def _unseen() -> None:
    import torch

    torch.save({}, "../in/new.pt")  # written by C++: only the hashes see it


def _memory() -> None:
    np.ones(2**31)


def _crash() -> None:
    os.abort()


def _exit_code() -> None:
    raise SystemExit(3)


def _silent() -> None:
    raise SystemExit(2)


def _wrong() -> None:
    raise Wrong("planted")


def _refusal() -> None:
    raise DataError("planted")


def kept(box: Box) -> Case:
    """A file that must not change."""
    (box.work / "kept").write_text("x")
    return Case(call=_damaged, keep=("kept",))


def _not_refused(box: Box) -> Case:
    return Case(call=int, expect="refused")


def _bad_generator(box: Box) -> Case:
    raise KeyError("planted")


_KINDS = {
    "traceback": ("_traceback",), "hang": ("_hang",), "execution": ("_subprocess", "_system", "_pickle", "_import"),
    "write outside": ("_outside", "_through_a_link", "_removed"), "damaged file": ("_unseen",), "memory": ("_memory",),
    "crash": ("_crash",), "untidy": ("_exit_code", "_silent"), "wrong": ("_wrong",), "refused": ("_refusal",),
    "ok": ("int",),
}  # fmt: skip


def _generators() -> dict[str, object]:
    def of(name: str) -> object:
        return lambda box: Case(call=int if name == "int" else globals()[name])

    return {f"{kind}/{name}": of(name) for kind, names in _KINDS.items() for name in names}


PLANTED = Table(
    {},
    {
        **_generators(),  # type: ignore[dict-item]
        "damaged file/kept": kept, "wrong/not refused": _not_refused, "broken generator/raises": _bad_generator,
    },
)  # fmt: skip
