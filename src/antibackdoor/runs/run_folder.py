"""A run in progress: one folder, one writer, and a checkpoint from which a killed run goes on."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

from antibackdoor.data.json_text import json_object
from antibackdoor.data.regular_files import open_regular, read_regular, regular_file
from antibackdoor.errors import AntibackdoorError, RunError
from antibackdoor.runs.artifacts import METRICS, Metrics, write_metrics
from antibackdoor.runs.atomic import (
    TEMPORARY_PREFIX,
    cannot,
    one_line,
    plain,
    read_json,
    remove_leftovers,
    write_json,
)
from antibackdoor.runs.checkpoint_file import CHECKPOINT, read_checkpoint, read_checkpoint_file, write_checkpoint
from antibackdoor.runs.checksums import write_checksums
from antibackdoor.runs.lock import LOCK, acquire, release
from antibackdoor.runs.options_file import OPTIONS, write_options

__all__ = ["CHECKPOINT", "CONFIG", "LOG", "RunFolder", "read_checkpoint", "read_config", "read_log"]

CONFIG, LOG = "config.json", "log.jsonl"

_FORMAT = "antibackdoor run 1"
_SAME = "use the same settings or another folder"
_LOG_BYTES = 256 * 2**20  # some million epochs


class RunFolder:
    """The folder of one run, held against other writers until it is closed. It is a `Journal`.

    Log the facts of an epoch first, save the checkpoint after them: a checkpoint remembers how long the log
    was, and a resumed run cuts the log to that length, so that no epoch is told twice. What a method logs between its
    phases it says again when it resumes; such a line is not written a second time.

    Attributes:
        path: The folder.
        settings: The settings of the run, in JSON's types.
        notes: The notes that the run began with.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], lock: int) -> None:
        """Use `RunFolder.create`."""
        self.path = path
        self.folder: Path | None = path
        self.settings = settings
        self.notes: dict[str, str] = {}
        self.tell: Callable[[str], None] = lambda _message: None
        self._lock: int | None = lock
        self._told: set[bytes] = set()  # lines of the processes that were stopped
        self._opened, self._before = time.perf_counter(), 0.0

    @classmethod
    def create(
        cls,
        path: Path,
        settings: Mapping[str, Any],
        *,
        resume: bool = False,
        command: Sequence[str] = (),
        notes: Mapping[str, str] | None = None,
    ) -> RunFolder:
        """Open a new run folder, or with `resume` go on with a run of the same settings.

        Args:
            path: A folder that does not exist, is empty, or (with `resume`) holds a run.
            settings: All that decides the outcome, nested as you like, in JSON's types.
            resume: Go on from the last checkpoint; starts a new run where there is none yet.
            command: The command line, for the report; it may differ when resuming.
            notes: What may change while a run is stopped, but should not do so unsaid, by name.

        Raises:
            RunError: The folder holds something else, another run, or a run with other settings; another
                process writes to it; or it cannot be written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            # Looked at before the lock file is made: a folder that is not ours must stay as it was.
            if not (path / CONFIG).exists() and any(not _is_ours(entry.name) for entry in path.iterdir()):
                raise RunError(f"{path} holds files but no run; choose an empty or a new folder")
            lock = acquire(path)
        except OSError as error:
            raise RunError(cannot("use the run folder", path, error)) from error
        run = cls(path, plain(settings), lock)
        try:
            run._open(resume, command, dict(notes or {}))
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
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            with os.fdopen(open_regular(self.path / LOG, flags), "ab") as file:
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
        write_checkpoint(self.path, state, log_bytes=self._log_bytes(), seconds=self.seconds)

    def load(self) -> dict[str, Any] | None:
        """The state last saved, or None if there is none.

        Raises:
            RunError: The checkpoint is damaged.
        """
        return read_checkpoint(self.path)

    def finish(self, metrics: Metrics) -> None:
        """Write `metrics.json`, which marks the run as finished, and remove the checkpoint.

        Call it last: what is missing from the folder at this moment stays missing.

        Raises:
            RunError: A metric is nested, or the folder cannot be written.
        """
        write_checksums(self.path)
        write_metrics(self.path, metrics)
        self._remove_checkpoint()

    def close(self) -> None:
        """Let other processes write to the folder."""
        if self._lock is not None:
            release(self.path, self._lock)
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
                (self.path / OPTIONS).unlink(missing_ok=True)

    def _open(self, resume: bool, command: Sequence[str], notes: dict[str, str]) -> None:
        """Start or go on, now that no one else can write here."""
        remove_leftovers(self.path)
        if not (self.path / CONFIG).exists():
            config: dict[str, Any] = {
                "format": _FORMAT,
                "settings": self.settings,
                "command": list(command),
                "versions": _versions(),
                "notes": notes,
            }
            self.notes = notes
            write_json(self.path / CONFIG, config)
            write_options(self.path, command)
            return
        config = read_config(self.path)
        if not resume:
            state = "a finished run" if self.finished else "an unfinished run"
            advice = "choose another folder" if self.finished else "continue with --resume, or choose another folder"
            raise RunError(f"{self.path} holds {state}; {advice}")
        difference = _difference(config["settings"], self.settings)
        if difference is not None:
            raise RunError(f"cannot resume {self.path}: {difference}")
        self.notes = config.get("notes", {})  # earlier versions took none
        if self.finished:
            # It may have been killed between the two steps of `finish`.
            self._remove_checkpoint()
            return
        if not (self.path / OPTIONS).exists():  # of an older version, or killed between the two files
            write_options(self.path, command)
        checkpoint = read_checkpoint_file(self.path, mmap=True)
        self._cut_log(0 if checkpoint is None else checkpoint["log_bytes"])
        self._told = {_line(entry) for entry in read_log(self.path)}
        self._before = 0.0 if checkpoint is None else float(checkpoint["seconds"])

    def _remove_checkpoint(self) -> None:
        try:
            (self.path / CHECKPOINT).unlink(missing_ok=True)
        except OSError as error:
            raise RunError(cannot("remove", self.path / CHECKPOINT, error)) from error

    def _log_bytes(self) -> int:
        """How long the log is.

        Raises:
            RunError: It is no regular file.
        """
        try:
            with regular_file(self.path / LOG) as file:
                return os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise RunError(cannot("read", self.path / LOG, error)) from error

    def _cut_log(self, length: int) -> None:
        if self._log_bytes() > length:
            try:
                with os.fdopen(open_regular(self.path / LOG, os.O_WRONLY), "wb") as file:
                    file.truncate(length)
            except OSError as error:
                raise RunError(cannot("write", self.path / LOG, error)) from error


def read_config(run: Path) -> dict[str, Any]:
    """Read `config.json`: `settings` (nested dict), `command` (list of str), `versions` (name → version).

    Raises:
        RunError: The folder holds no run, or the file is damaged.
    """
    if not (run / CONFIG).exists():
        raise RunError(f"{run} holds no run: there is no {CONFIG} in it")
    config = read_json(run / CONFIG)
    if config.get("format") != _FORMAT:
        told = one_line(repr(config.get("format")), 60)
        raise RunError(f"{run / CONFIG} was not written by this program (format {told})")
    wrong = _wrong_in_config(config)
    if wrong:
        raise RunError(f"{run / CONFIG} is damaged: {wrong}")
    return config


def _wrong_in_config(config: Mapping[str, Any]) -> str:
    """What of the configuration has not the form in which it is written; empty if all has."""
    types = {"settings": dict, "command": list, "versions": dict}
    for key, kind in types.items():
        if not isinstance(config.get(key), kind):
            return f"{key!r} is missing"
    settings = config["settings"]
    for key in ("hyper_parameters", "recipe", "model", "given", "data"):
        if not isinstance(settings.get(key, {}), dict):
            return f"'settings.{key}' is no object"
    if not isinstance(config.get("notes", {}), dict):
        return "'notes' is no object"
    texts = {"command": config["command"], "versions": config["versions"].values()}
    texts["notes"] = config.get("notes", {}).values()
    texts["settings.given"] = settings.get("given", {}).values()
    wrong = next((name for name, values in texts.items() if not all(isinstance(text, str) for text in values)), None)
    return "" if wrong is None else f"{wrong!r} holds something other than text"


def read_log(run: Path) -> list[dict[str, Any]]:
    """The entries of `log.jsonl`, without a last line that a kill has torn; empty if there is no log.

    Raises:
        RunError: The file cannot be read, or another line is damaged.
    """
    path = run / LOG
    try:
        lines = read_regular(path, most=_LOG_BYTES).split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(cannot("read", path, error)) from error
    entries = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is torn or empty
        try:
            entry = json_object(line)
        except ValueError as error:
            raise RunError(f"{path} is damaged in line {number}: {one_line(error)}") from error
        if any(isinstance(value, dict | list) for value in entry.values()):
            raise RunError(f"{path} is damaged in line {number}: it is nested")
        entries.append(entry)
    return entries


def _line(fields: Mapping[str, Any]) -> bytes:
    return (json.dumps(plain(fields), allow_nan=False) + "\n").encode("ascii")


def _is_ours(name: str) -> bool:
    """Whether a killed `create` may have left this file before there was a config."""
    return name == LOCK or name.startswith(TEMPORARY_PREFIX)


def _difference(stored: object, given: object, name: str = "") -> str | None:
    """The first setting that differs, in words, with what to do about it; None if all agree."""
    if isinstance(stored, dict) and isinstance(given, dict):
        for key in [*given, *(key for key in stored if key not in given)]:
            where = f"{name}.{key}" if name else str(key)
            if key not in stored:
                return f"setting {where!r} is new; {_SAME}"
            if key not in given:
                return f"setting {where!r} is missing; {_SAME}"
            difference = _difference(stored[key], given[key], where)
            if difference is not None:
                return difference
        return None
    if stored == given:
        return None
    changed = f"was {one_line(repr(stored), 60)} and is now {one_line(repr(given), 60)}"
    if name.startswith("data."):
        if name.endswith("fingerprint") and len(str(stored)) < len(str(given)):
            return "it was started by an earlier version, which did not check all of the data; choose another folder"
        what = "inputs, labels or names of some samples" if name.endswith("fingerprint") else f"{name!r} {changed}"
        return (
            f"the data have changed since it was started ({what}); give the data as they were, or choose another folder"
        )
    if name.startswith("given."):
        return f"its inputs have changed since it was started ({name[6:]}); give the same, or choose another folder"
    return f"setting {name!r} {changed}; {_SAME}"


def _versions() -> dict[str, str]:
    """Versions of what decides the numbers of a run."""
    versions = {"python": platform.python_version()}
    for package in ("antibackdoor", "torch", "numpy"):
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions
