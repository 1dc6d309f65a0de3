"""Runs cases in forked children of a warm parent, judges each, and lists the faults."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .case import Box, Case, Table, Wrong
from .outcomes import BROKEN, FAULTS, Allowed, Ended, Outcome, judge
from .sandbox import Sandbox, Watch, limit, note_to, where

MEGABYTES = 1536  # that a case may take beyond what the warm parent has; the inputs are a few kilobytes
_SHOWN = 6  # cases of a group of faults that are listed


@dataclass(frozen=True)
class Plan:
    """Which cases to run, and how.

    Attributes:
        table: The generators.
        seed: With the number of a case it decides all of the case.
        material: Folder of valid inputs.
        root: Where the sandboxes are made; those of faults are kept.
        seconds: A case that takes longer hangs.
    """

    table: Table
    seed: int
    material: Path
    root: Path
    seconds: int

    def folder(self, number: int) -> Path:
        """The sandbox of a case."""
        return self.root / f"case-{number}"


@dataclass(frozen=True)
class Verdict:
    """A case and its outcome."""

    number: int
    generator: str
    about: str
    outcome: Outcome
    seconds: float


def warm(plan: Plan) -> None:
    """Import all that the commands need, so that a child starts with everything there."""
    from .material import build, modules

    names = plan.root / "modules.txt"
    pid = os.fork()
    if not pid:
        _silenced(plan.root / "material.txt")
        code = 1
        try:
            build(plan.material)
            names.write_text("\n".join(sorted(modules())))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError(f"the material could not be made: {(plan.root / 'material.txt').read_text()[-2000:]}")
    for name in names.read_text().split():
        try:
            importlib.import_module(name)
        except Exception:  # an optional part of another library
            continue


def _silenced(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


def run(plan: Plan, numbers: Sequence[int], jobs: int, minutes: float = math.inf) -> list[Verdict]:
    """All these cases, several at a time; after so many minutes no other is begun."""
    waiting, running, verdicts = list(numbers)[::-1], {}, []
    until = time.monotonic() + 60 * minutes
    while waiting or running:
        waiting = waiting if time.monotonic() < until else []
        while waiting and len(running) < jobs:
            number = waiting.pop()
            running[_started(plan, number)] = (number, time.monotonic())
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in running:
            number, began = running.pop(pid)
            verdicts.append(_judged(plan, number, status, False, time.monotonic() - began))
            continue
        for pid, (number, began) in list(running.items()):
            if time.monotonic() - began > plan.seconds:
                os.killpg(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
                del running[pid]
                verdicts.append(_judged(plan, number, status, True, time.monotonic() - began))
        time.sleep(0.002)
    return sorted(verdicts, key=lambda verdict: verdict.number)


def _started(plan: Plan, number: int) -> int:
    """Fork the child of a case."""
    folder = plan.folder(number)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forking while other threads run: they are idle pools of libraries
        pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        for descriptor, name in ((1, "out.txt"), (2, "err.txt"), (50, "notes.txt")):
            opened = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(opened, descriptor)
            os.close(opened)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        code = _child(plan, number, Sandbox(folder / "box"))
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
        code = 99
    os._exit(code)


def _child(plan: Plan, number: int, sandbox: Sandbox) -> int:
    """Make the case, watch it, and note how it ended; returns the exit code."""
    note = note_to(50)
    name, generator = plan.table.of_case(number, plan.seed)
    sandbox.make()
    sandbox.enter()
    try:
        with np.errstate(all="ignore"):
            case = generator(Box(sandbox, np.random.default_rng([plan.seed, number]), plan.material))
        words = " ".join(f"{word!s}" for word in case.command)
        about = f"{case.about} | {words}" if case.about else words
        allowed = {"codes": case.codes, "may_run_out": case.may_run_out, "may_warn": case.call is not None}
        note({"note": "case", "about": about, "expect": case.expect, "keep": case.keep, **allowed})
        note({"note": "hashes", "hashes": sandbox.hashes(case.keep)})
    except Exception:
        note({"note": BROKEN, "what": traceback.format_exc()[-1500:], "group": name})
        return 0
    limit(MEGABYTES, plan.seconds, case.most_bytes)
    watch = Watch(sandbox, note)
    watch.install()
    try:
        return _acted(case, sandbox, watch)
    except BaseException as error:
        watch.on = False
        note({"note": "error", "type": type(error).__name__, "what": _told(error), "group": _group(error)})
        traceback.print_exc()
        return 1


def _acted(case: Case, sandbox: Sandbox, watch: Watch) -> int:
    from antibackdoor.cli import main as command_line
    from antibackdoor.errors import AntibackdoorError

    code = 0
    if case.before is not None:
        case.before()
    try:
        if case.call is not None:
            case.call()
        else:
            command_line([str(word) for word in case.command])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except AntibackdoorError as error:
        if case.call is None:
            raise
        print(f"antibackdoor: {error!s}".replace("\n", "\\n"), file=sys.stderr)
        code = 2
    sys.stdout.flush()
    if case.check is not None and (code == 0 or case.check_always):
        watch.on = False
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        folder = sandbox.root.parent
        case.check(_read(folder / "out.txt") + _read(folder / "err.txt"))
    return code


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _group(error: BaseException) -> str:
    """The innermost place of the package in the error's trace."""
    if isinstance(error, Wrong):
        return str(error).split(":")[0][:100]
    place = where()
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name = frame.f_code.co_filename
        if "antibackdoor" in name and "campaign" not in name:
            place = f"{name.rsplit('antibackdoor/', 1)[-1]}:{frame.f_code.co_name}"
    return f"{type(error).__name__} in {place}"


def _judged(plan: Plan, number: int, status: int, timed_out: bool, seconds: float) -> Verdict:
    folder = plan.folder(number)
    notes = [json.loads(line) for line in _read(folder / "notes.txt").splitlines() if line.endswith("}")]
    case: dict[str, Any] = next((note for note in notes if note["note"] == "case"), {})
    before = next((note["hashes"] for note in notes if note["note"] == "hashes"), {})
    after = Sandbox(folder / "box").hashes(tuple(case.get("keep", ()))) if before else {}
    changed = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    code = os.waitstatus_to_exitcode(status)
    ended = Ended(
        code if code >= 0 else None, max(0, -code), timed_out, notes, changed,
        _read(folder / "out.txt"), _read(folder / "err.txt"),
    )  # fmt: skip
    allowed = Allowed(
        case.get("expect", "either"),
        tuple(case.get("codes", ())),
        bool(case.get("may_run_out")),
        bool(case.get("may_warn")),
    )
    outcome = judge(ended, allowed)
    if not outcome.is_fault:
        shutil.rmtree(folder, ignore_errors=True)
    name, _ = plan.table.of_case(number, plan.seed)
    if outcome.is_fault:
        print(f"case {number} {name}: {outcome.kind}: {outcome.what[:200]!a}", file=sys.stderr, flush=True)
    return Verdict(number, name, case.get("about", ""), outcome, seconds)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return ""


def told(verdicts: Sequence[Verdict]) -> str:
    """The counts, and the faults by kind and cause."""
    counts = Counter(verdict.outcome.kind for verdict in verdicts)
    lines = [", ".join(f"{n} {kind}" for kind, n in counts.most_common())]
    groups: dict[tuple[str, str], list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        if verdict.outcome.is_fault:
            groups[verdict.outcome.kind, verdict.outcome.group].append(verdict)
    for (kind, group), members in sorted(groups.items(), key=lambda item: (FAULTS.index(item[0][0]), -len(item[1]))):
        lines.append(f"\n{kind}: {group} ({len(members)})")
        for verdict in members[:_SHOWN]:
            lines.append(f"  case {verdict.number} {verdict.generator}: {verdict.outcome.what[:300]}")
            lines.append(f"      {verdict.about[:400]}")
    return "\n".join(line.encode("utf-8", "backslashreplace").decode() for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a campaign; 1 if there is a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--cases", type=int, default=2000, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="decides all cases")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    parser.add_argument("--seconds", type=int, default=60, help="a case that takes longer hangs")
    parser.add_argument("--minutes", type=float, default=math.inf, help="no case is begun later")
    parser.add_argument("--only", type=int, nargs="+", help="numbers of single cases, to run them again")
    parser.add_argument("--generator", default="", help="only cases of generators whose name holds this")
    parser.add_argument("--keep", type=Path, help="a new folder for the sandboxes of faults")
    parser.add_argument("--planted", action="store_true", help="faults that the driver itself must find")
    parser.add_argument("--json", type=Path, help="a file for the outcomes")
    given = parser.parse_args(arguments)
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))
    sys.dont_write_bytecode = True
    root = given.keep or Path(tempfile.mkdtemp(prefix="campaign-"))
    plan = Plan(_table(given.planted), given.seed, root.absolute() / "material", root.absolute(), given.seconds)
    plan.root.mkdir(parents=True, exist_ok=True)
    if given.planted:
        importlib.import_module("torch")
    else:
        warm(plan)
    numbers = given.only or range(given.cases)
    numbers = [n for n in numbers if given.generator in plan.table.of_case(n, plan.seed)[0]]
    verdicts = run(plan, numbers, given.jobs, given.minutes)
    print(f"{len(verdicts)} of {len(numbers)} cases: {told(verdicts)}")
    if given.json is not None:
        found = [
            [v.number, v.generator, v.outcome.kind, v.outcome.what, v.about, round(v.seconds, 2)] for v in verdicts
        ]
        given.json.write_text(json.dumps(found, indent=0))
    if given.keep is None:
        shutil.rmtree(root, ignore_errors=True)
    return int(any(verdict.outcome.is_fault for verdict in verdicts))


def _table(planted: bool) -> Table:
    if planted:
        from .planted import PLANTED

        return PLANTED
    from .generators import GENERATORS

    return GENERATORS
