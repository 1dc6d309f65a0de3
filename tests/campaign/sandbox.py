"""The sandbox of a case: its folders, limits and hashes, and the hook that watches what the process does.

in/       the inputs, never to be changed        outside/  what nobody may touch or take samples from
work/     the current folder, free to write      cache/ tmp/  free to write      home/  never to be written
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .outcomes import EXECUTION, OUTSIDE

VIOLATION = 97  # exit code after a violation: the process goes no step further
_FREE = ("work", "cache", "tmp")
_KEPT = ("in", "outside", "home")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_DEVICES = ("/dev/null", "/dev/tty", "/dev/shm")
_HASHED_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Sandbox:
    """The folders of a case."""

    root: Path

    def make(self) -> None:
        """Make them, with a file outside that must survive."""
        for name in (*_FREE, *_KEPT):
            (self.root / name).mkdir(parents=True)
        (self.root / "outside" / "precious.txt").write_text("precious\n" * 100)

    def enter(self) -> None:
        """Let the process live here."""
        os.chdir(self.root / "work")
        os.environ.update(
            HOME=str(self.root / "home"), XDG_CACHE_HOME=str(self.root / "cache"), TMPDIR=str(self.root / "tmp"),
            COLUMNS="200",
        )  # fmt: skip

    def hashes(self, kept: tuple[str, ...]) -> dict[str, str]:
        """A digest of each entry that may not change: inputs, what lies outside, and `kept` below `work`."""
        found: dict[str, str] = {}
        for place in (*_KEPT, *(f"work/{name}" for name in kept)):
            _hash_below(self.root / place, place, found)
        return found


def _hash_below(path: Path, name: str, found: dict[str, str]) -> None:
    try:
        status = path.lstat()
    except OSError:
        return
    kind = stat.S_IFMT(status.st_mode)
    if stat.S_ISDIR(status.st_mode):
        found[name] = "folder"
        for entry in sorted(path.iterdir()):
            _hash_below(entry, f"{name}/{entry.name}", found)
    elif stat.S_ISREG(status.st_mode) and status.st_size <= _HASHED_BYTES:
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    else:
        target = path.readlink() if stat.S_ISLNK(status.st_mode) else ""
        found[name] = f"{kind} {status.st_size} {target}"


def limit(megabytes: int, seconds: int, most_bytes: int) -> None:
    """Bound what this process may take: address space beyond what it has, time, and the size of a file."""
    with open("/proc/self/statm") as file:  # noqa: PTH123 - a file of the system
        now = int(file.read().split()[0]) * resource.getpagesize()
    top = now + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (top, top))
    resource.setrlimit(resource.RLIMIT_CPU, (2 * seconds, 2 * seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit fails as on a full disk


class Watch:
    """An audit hook: the first execution of foreign code, or write outside, is noted and ends the process.

    It sees what Python does. Writes of C++ and Rust libraries are found by the hashes.
    """

    def __init__(self, sandbox: Sandbox, note: Callable[[dict[str, Any]], None]) -> None:
        self._root = os.path.realpath(sandbox.root)
        self._free = tuple(os.path.join(self._root, name) + os.sep for name in _FREE)  # noqa: PTH118
        self._note = note
        self._busy = False
        self.on = True

    def install(self) -> None:
        """From now on; a hook cannot be removed."""
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on or self._busy or event not in _WATCHED:
            return
        self._busy = True  # the checks below raise events themselves
        try:
            _WATCHED[event](self, event, arguments)
        finally:
            self._busy = False

    def _end(self, kind: str, what: str, group: str) -> None:
        self._note({"note": kind, "what": what[:500], "group": group[:200]})
        os._exit(VIOLATION)

    def execution(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Another program, a foreign thing in a pickle, or the network."""
        self._end(EXECUTION, f"{event} {arguments!r}", f"{event} in {where()}")

    def code(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Code from a file of the sandbox is executed."""
        place = getattr(arguments[0], "co_filename", "")
        if place.startswith(self._root):
            self._end(EXECUTION, f"{event} of code in {place}", f"{event} in {where()}")

    def loaded(self, event: str, arguments: tuple[Any, ...]) -> None:
        """A shared library from the sandbox is loaded."""
        if self._root in str(arguments[0]):
            self._end(EXECUTION, f"{event} {arguments!r}", f"{event} in {where()}")

    def opened(self, event: str, arguments: tuple[Any, ...]) -> None:
        """A file is opened; for writing it must lie in a free folder, links followed."""
        path, mode, flags = arguments
        writes = any(sign in mode for sign in "wax+") if isinstance(mode, str) else bool((flags or 0) & _WRITING)
        if writes:
            self._check(event, path, -1, follow=True)

    def touched(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Something is removed, renamed, made or changed; a link itself, not what it leads to."""
        n_paths = 2 if event in ("os.rename", "os.link") else 1
        for place in range(n_paths):
            folder = arguments[_FOLDERS[event] + place] if event in _FOLDERS else -1
            self._check(event, arguments[place], folder, follow=event in ("os.truncate", "os.chmod", "os.utime"))

    def linked(self, event: str, arguments: tuple[Any, ...]) -> None:
        """A symbolic link is made: the place of the link counts."""
        self._check(event, arguments[1], arguments[2], follow=False)

    def _check(self, event: str, path: Any, folder: int, *, follow: bool) -> None:
        if isinstance(path, int):
            return
        text = os.fsdecode(path)
        if folder >= 0 and not text.startswith(os.sep):
            text = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), text)  # noqa: PTH118, PTH115
        if follow:
            real = os.path.realpath(text)
        else:
            parent, name = os.path.split(text.rstrip(os.sep))
            real = os.path.join(os.path.realpath(parent or "."), name)  # noqa: PTH118
        if not f"{real}{os.sep}".startswith(self._free) and not real.startswith(_DEVICES):
            self._end(OUTSIDE, f"{event} {text!r} ({real})", f"{event} in {where()}")


def where() -> str:
    """The innermost function of the package on the stack."""
    frame = sys._getframe()
    while frame is not None:
        place = frame.f_code.co_filename
        if "antibackdoor" in place and f"{os.sep}campaign{os.sep}" not in place:
            return f"{place.rsplit('antibackdoor' + os.sep, 1)[-1]}:{frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "?"


def note_to(descriptor: int) -> Callable[[dict[str, Any]], None]:
    """A function that writes one line of JSON a note."""

    def note(values: dict[str, Any]) -> None:
        os.write(descriptor, (json.dumps(values) + "\n").encode("ascii", "replace"))

    return note


# Where a file event has its `dir_fd`; -1 there means none.
_FOLDERS = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 2, "os.rename": 2, "os.link": 2, "os.chmod": 2}
_PROGRAMS = (
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "os.fork", "os.forkpty",
    "pty.spawn", "pickle.find_class", "socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto",
    "urllib.Request", "ftplib.connect", "http.client.connect", "smtplib.connect", "webbrowser.open", "code.__new__",
)  # fmt: skip
_TOUCHED = (
    "os.remove",
    "os.rmdir",
    "os.mkdir",
    "os.rename",
    "os.link",
    "os.chmod",
    "os.truncate",
    "os.utime",
    "os.chown",
)
_WATCHED: dict[str, Callable[[Watch, str, tuple[Any, ...]], None]] = {
    **dict.fromkeys(_PROGRAMS, Watch.execution),
    **dict.fromkeys(_TOUCHED, Watch.touched),
    "exec": Watch.code,
    "ctypes.dlopen": Watch.loaded,
    "open": Watch.opened,
    "os.symlink": Watch.linked,
}
