"""A run in progress: one folder, one writer, and a checkpoint from which a killed run goes on."""

from __future__ import annotations

import errno
import json
import os
import platform
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from antibackdoor.errors import AntibackdoorError, RunError
from antibackdoor.runs.artifacts import METRICS, Metrics, write_metrics
from antibackdoor.runs.atomic import (
    TEMPORARY_PREFIX,
    cannot,
    one_line,
    plain,
    read_json,
    remove_leftovers,
    replacing,
    write_json,
)

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

CONFIG, LOG, CHECKPOINT = "config.json", "log.jsonl", "checkpoint.pt"

_LOCK = ".lock"
_FORMAT = "antibackdoor run 1"
CHECKPOINT_VERSION = 2  # of the fields below; another version is refused


class RunFolder:
    """The folder of one run, held against other writers until it is closed. It is a `Journal`.

    Log the facts of an epoch first, save the checkpoint after them: a checkpoint remembers how long the log
    was, and a resumed run cuts the log to that length, so that no epoch is told twice. What a method logs between its
    phases it says again when it resumes; such a line is not written a second time.

    Attributes:
        path: The folder.
        settings: The settings of the run, in JSON's types.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], lock: int) -> None:
        """Use `RunFolder.create`."""
        self.path = path
        self.folder: Path | None = path
        self.settings = settings
        self.tell: Callable[[str], None] = lambda _message: None
        self._lock: int | None = lock
        self._told: set[bytes] = set()  # lines of the processes that were stopped
        self._opened, self._before = time.perf_counter(), 0.0

    @classmethod
    def create(
        cls, path: Path, settings: Mapping[str, Any], *, resume: bool = False, command: Sequence[str] = ()
    ) -> RunFolder:
        """Open a new run folder, or with `resume` go on with a run of the same settings.

        Args:
            path: A folder that does not exist, is empty, or (with `resume`) holds a run.
            settings: All that decides the outcome, nested as you like, in JSON's types.
            resume: Go on from the last checkpoint; starts a new run where there is none yet.
            command: The command line, for the report; it may differ when resuming.

        Raises:
            RunError: The folder holds something else, another run, or a run with other settings; another
                process writes to it; or it cannot be written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            # Looked at before the lock file is made: a folder that is not ours must stay as it was.
            if not (path / CONFIG).exists() and any(not _is_ours(entry.name) for entry in path.iterdir()):
                raise RunError(f"{path} holds files but no run; choose an empty or a new folder")
            lock = _acquire(path)
        except OSError as error:
            raise RunError(cannot("use the run folder", path, error)) from error
        run = cls(path, plain(settings), lock)
        try:
            run._open(resume, command)
        except BaseException:
            run.close()
            raise
        return run

    @property
    def finished(self) -> bool:
        """Whether the run has its results; then there is nothing left to train."""
        return (self.path / METRICS).exists()

    @property
    def seconds(self) -> float:
        """How long the run has taken so far, up to the checkpoint in the processes that were stopped."""
        return self._before + time.perf_counter() - self._opened

    def log(self, **fields: float | int | str | bool | None) -> None:
        """Append one JSON line to `log.jsonl`, unless it was there when the run was resumed. NaN becomes null.

        Raises:
            RunError: The file cannot be written.
        """
        line = _line(fields)
        if line in self._told:
            self._told.remove(line)
            return
        try:
            with (self.path / LOG).open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(cannot("write", self.path / LOG, error)) from error

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint: nested dicts, lists and tuples of tensors, arrays, numbers, strings, None.

        Arrays and tensors come back from `load` as CPU tensors.

        Raises:
            RunError: The state holds another type, or the file cannot be written.
        """
        checkpoint = {
            "version": CHECKPOINT_VERSION,
            "fields": sorted(map(str, state)),
            "log_bytes": self._log_bytes(),
            "seconds": self.seconds,
            "state": _tensors(state, "state"),
        }
        path = self.path / CHECKPOINT
        with replacing(path) as temporary:
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError as error:  # torch wraps a full disk in its own error
                raise RunError(f"cannot write {path}: {one_line(error)}") from error

    def load(self) -> dict[str, Any] | None:
        """The state last saved, or None if there is none.

        Raises:
            RunError: The checkpoint is damaged.
        """
        checkpoint = self._checkpoint(mmap=False)
        return None if checkpoint is None else checkpoint["state"]

    def finish(self, metrics: Metrics) -> None:
        """Write `metrics.json`, which marks the run as finished, and remove the checkpoint.

        Call it last: what is missing from the folder at this moment stays missing.

        Raises:
            RunError: A metric is nested, or the folder cannot be written.
        """
        write_metrics(self.path, metrics)
        self._remove_checkpoint()

    def close(self) -> None:
        """Let other processes write to the folder."""
        if self._lock is not None:
            # The lock file stays: to delete it would open a race with a process that waits for it.
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, AntibackdoorError):
            self._forget()
        self.close()

    def _forget(self) -> None:
        """Leave no run behind that never began: the user mends his setting and gives the command again."""
        if not any((self.path / name).exists() for name in (LOG, CHECKPOINT, METRICS)):
            with suppress(OSError):
                (self.path / CONFIG).unlink(missing_ok=True)

    def _open(self, resume: bool, command: Sequence[str]) -> None:
        """Start or go on, now that no one else can write here."""
        remove_leftovers(self.path)
        if not (self.path / CONFIG).exists():
            config = {
                "format": _FORMAT,
                "settings": self.settings,
                "command": list(command),
                "versions": _versions(),
            }
            write_json(self.path / CONFIG, config)
            return
        config = read_config(self.path)
        if not resume:
            state = "a finished run" if self.finished else "an unfinished run"
            advice = "choose another folder" if self.finished else "go on with --resume, or choose another folder"
            raise RunError(f"{self.path} holds {state}; {advice}")
        difference = _difference(config["settings"], self.settings)
        if difference is not None:
            raise RunError(f"cannot resume {self.path}: {difference}; use the same settings or another folder")
        if self.finished:
            # It may have been killed between the two steps of `finish`.
            self._remove_checkpoint()
            return
        checkpoint = self._checkpoint(mmap=True)
        self._cut_log(0 if checkpoint is None else checkpoint["log_bytes"])
        self._told = {_line(entry) for entry in read_log(self.path)}
        self._before = 0.0 if checkpoint is None else float(checkpoint["seconds"])

    def _checkpoint(self, *, mmap: bool) -> dict[str, Any] | None:
        return _read_checkpoint(self.path / CHECKPOINT, mmap=mmap)

    def _remove_checkpoint(self) -> None:
        try:
            (self.path / CHECKPOINT).unlink(missing_ok=True)
        except OSError as error:
            raise RunError(cannot("remove", self.path / CHECKPOINT, error)) from error

    def _log_bytes(self) -> int:
        try:
            return (self.path / LOG).stat().st_size
        except FileNotFoundError:
            return 0

    def _cut_log(self, length: int) -> None:
        if self._log_bytes() > length:
            try:
                os.truncate(self.path / LOG, length)
            except OSError as error:
                raise RunError(cannot("write", self.path / LOG, error)) from error


def _read_checkpoint(path: Path, *, mmap: bool) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as parts:  # torch does not look at the checksums that it writes
            if parts.testzip() is not None:
                raise ValueError("a checksum is wrong")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        kinds = {"log_bytes": int, "seconds": float, "state": dict}  # in every version
        if not (isinstance(checkpoint, dict) and all(isinstance(checkpoint.get(key), kinds[key]) for key in kinds)):
            raise TypeError("it is not a checkpoint of this package")
        version = checkpoint.get("version", 1)
        if version == CHECKPOINT_VERSION and checkpoint["fields"] != sorted(map(str, checkpoint["state"])):
            raise ValueError("it lacks some of its fields")
    except OSError as error:
        raise RunError(cannot("read", path, error)) from error
    except Exception as error:  # torch raises a dozen kinds for a damaged file
        raise RunError(f"{path} is damaged ({one_line(error, 80)}); delete it to start afresh") from error
    if version != CHECKPOINT_VERSION:
        raise RunError(
            f"{path} has version {version!r} of checkpoints, this program writes {CHECKPOINT_VERSION}: go on with the "
            "version of antibackdoor that began the run, or choose another folder"
        )
    return dict(checkpoint)


def read_checkpoint(run: Path) -> dict[str, Any] | None:
    """The state last saved in a run folder, without holding the folder; None if there is none.

    For processes that help another one, which alone writes.

    Raises:
        RunError: The checkpoint is damaged.
    """
    checkpoint = _read_checkpoint(run / CHECKPOINT, mmap=False)
    return None if checkpoint is None else checkpoint["state"]


def read_config(run: Path) -> dict[str, Any]:
    """Read `config.json`: `settings` (nested dict), `command` (list of str), `versions` (name → version).

    Raises:
        RunError: The folder holds no run, or the file is damaged.
    """
    if not (run / CONFIG).exists():
        raise RunError(f"{run} holds no run: there is no {CONFIG} in it")
    config = read_json(run / CONFIG)
    if config.get("format") != _FORMAT:
        raise RunError(f"{run / CONFIG} is not of this program's making (format {config.get('format')!r})")
    types = {"settings": dict, "command": list, "versions": dict}
    for key, kind in types.items():
        if not isinstance(config.get(key), kind):
            raise RunError(f"{run / CONFIG} is damaged: {key!r} is missing")
    return config


def read_log(run: Path) -> list[dict[str, Any]]:
    """The entries of `log.jsonl`, without a last line that a kill has torn; empty if there is no log.

    Raises:
        RunError: The file cannot be read, or another line is damaged.
    """
    path = run / LOG
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(cannot("read", path, error)) from error
    entries = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is torn or empty
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise RunError(f"{path} is damaged in line {number}: {one_line(error)}") from error
        if not isinstance(entry, dict):
            raise RunError(f"{path} is damaged in line {number}: it is no JSON object")
        entries.append(entry)
    return entries


def _line(fields: Mapping[str, Any]) -> bytes:
    return (json.dumps(plain(fields), allow_nan=False) + "\n").encode("ascii")


def _is_ours(name: str) -> bool:
    """Whether a killed `create` may have left this file before there was a config."""
    return name == _LOCK or name.startswith(TEMPORARY_PREFIX)


def _acquire(path: Path) -> int:
    """Lock the folder; the system drops the lock when the process ends, however it ends."""
    descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        os.close(descriptor)
        raise RunError(f"another process writes to {path}; wait for it or choose another folder") from error
    except OSError as error:
        # Some network file systems have no locks; a run there is better than none.
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            os.close(descriptor)
            raise
    return descriptor


def _difference(stored: object, given: object, name: str = "") -> str | None:
    """The first setting that differs, in words; None if all agree."""
    if isinstance(stored, dict) and isinstance(given, dict):
        for key in [*given, *(key for key in stored if key not in given)]:
            where = f"{name}.{key}" if name else str(key)
            if key not in stored:
                return f"setting {where!r} is new"
            if key not in given:
                return f"setting {where!r} is missing"
            difference = _difference(stored[key], given[key], where)
            if difference is not None:
                return difference
        return None
    if stored == given:
        return None
    return f"setting {name!r} was {one_line(repr(stored), 60)} and is now {one_line(repr(given), 60)}"


def _tensors(value: Any, where: str) -> Any:
    """The same nest with arrays as tensors and numpy scalars as numbers: what `weights_only` can load."""
    if isinstance(value, Mapping):
        return {key: _tensors(part, f"{where}[{key!r}]") for key, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [_tensors(part, f"{where}[{i}]") for i, part in enumerate(value)]
        return parts if isinstance(value, list) else tuple(parts)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(np.require(value, requirements=["C", "W"]))
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        # torch.save would write all of the storage that a view looks into.
        return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise RunError(f"a checkpoint cannot hold {where}: it is a {type(value).__name__}")


def _versions() -> dict[str, str]:
    """Versions of what decides the numbers of a run."""
    versions = {"python": platform.python_version()}
    for package in ("antibackdoor", "torch", "numpy"):
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions
