"""Cells of a benchmark: one data set, one attack, one defense, one seed; measured in a process of its own.

The results are JSON lines, one a cell, so that a stopped benchmark goes on where it was. Where a cell occurs
twice, its last line counts.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t as student

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"

# No defense: plain training without anything that carries the trigger, which only a benchmark can leave out. What the
# trigger does to such a network is no backdoor.
CLEAN_PART = "clean-part"

Settings = Sequence[tuple[str, Any]]
Probe = tuple[str, float] | tuple[str, float, Settings]


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        data: File in the data folder.
        backbone: The network.
        attack: A key of `ATTACKS`, or of those in `unseen.py`; empty for clean data.
        rate: Poisoned share of the training samples.
        defense: A key of `DEFENSES`, or `CLEAN_PART`.
        seed: Chooses poisoned samples, weights and order.
        epochs: Passes over the data; 0 lets the package choose.
        limit: Most training and test samples, evenly spread; 0 takes all.
        probes: Attacks, their rates and (where not the defaults) attributes, whose triggers are tried on the model
            although it never saw them.
        cover_rate: Share of the training samples that carry the trigger under their own label; 0 leaves it to the plan.
        plan: A key of `PLANS`, with the constants of its own but the rate; empty for the attack's own plan.
        settings: Attributes of the attack and their values, where not its defaults.
    """

    data: str
    backbone: str
    attack: str
    rate: float
    defense: str
    seed: int
    epochs: int = 0
    limit: int = 0
    probes: Sequence[Probe] = ()
    cover_rate: float = 0.0
    plan: str = ""
    settings: Settings = ()

    @property
    def name(self) -> str:
        """For `--cells`: data/attack/defense/seed, or data/attack-plan/defense/seed."""
        attack = "-".join(part for part in (self.attack, self.plan) if part)
        return f"{Path(self.data).stem}/{attack or 'clean'}/{self.defense}/{self.seed}"

    @property
    def form(self) -> str:
        """For `--cells`, where cells share a name: with its rate and settings, as in name:0.01:mode=abl_wrapped."""
        return ":".join((self.name, f"{self.rate:g}", *(f"{key}={value}" for key, value in self.settings)))


class Mean(NamedTuple):
    """A mean over seeds and half the width of its 95% interval (Student's t; nan for one seed)."""

    value: float
    half: float

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "-"
        return f"{100 * self.value:.1f}" + ("" if math.isnan(self.half) else f" ± {100 * self.half:.1f}")


def mean(values: Iterable[float | None]) -> Mean:
    """Mean and 95% interval of the values that are numbers."""
    numbers = np.array([v for v in values if v is not None and not math.isnan(v)], dtype=np.float64)
    if not len(numbers):
        return Mean(math.nan, math.nan)
    if len(numbers) == 1:
        return Mean(float(numbers[0]), math.nan)
    error = float(numbers.std(ddof=1)) / math.sqrt(len(numbers))
    return Mean(float(numbers.mean()), error * float(student.ppf(0.975, len(numbers) - 1)))


def ordered(
    attacked: Sequence[tuple[str, str, str, float]],
    seeds: Iterable[int],
    *,
    defenses: Sequence[str] = ("dual-head", "none", CLEAN_PART, "e2abl"),
    clean_defenses: Sequence[str] = ("dual-head", "none"),
    epochs: int,
    limit: int,
) -> list[Cell]:
    """Cells in an order that gives a fair picture early: seed by seed, all attacks under one defense after the other.

    Args:
        attacked: Data file, network, attack, rate of each column.
        seeds: Seeds, the first of them first.
        defenses: For poisoned data, the most interesting first.
        clean_defenses: For the data as they are.
        epochs: Passes over the data.
        limit: Most samples.
    """
    clean = list(dict.fromkeys((data, backbone) for data, backbone, _, _ in attacked))
    cells: list[Cell] = []
    for seed in seeds:
        for defense in defenses:
            cells += [Cell(d, b, a, r, defense, seed, epochs, limit) for d, b, a, r in attacked]
        for defense in clean_defenses:
            cells += [Cell(d, b, "", 0.0, defense, seed, epochs, limit) for d, b in clean]
    return cells


# --------------------------------------------------------------------------- one cell


def measure(cell: Cell, folder: Path) -> dict[str, Any]:
    """Read, poison, train, and measure on the test data; called in a fresh process."""
    import drawn
    import torch
    import unseen

    from antibackdoor.app.pipeline import Job, builder, describe_model
    from antibackdoor.attacks import ATTACKS, PLANS, poison
    from antibackdoor.data.reading import read
    from antibackdoor.defenses import DEFENSES
    from antibackdoor.training.loop import predict
    from antibackdoor.training.recipe import Recipe
    from antibackdoor.training.session import Session

    if cell.data in drawn.KINDS:
        both = drawn.draw(cell.data, cell.seed), drawn.draw(cell.data, cell.seed + drawn.TESTS)
    else:
        data = read(folder / cell.data, seed=cell.seed)
        both = data.train, data.test
    train, test = (thinned(samples, cell.limit) for samples in both)
    poisoned, without = None, cell.defense == CLEAN_PART
    if cell.attack:
        attack = ATTACKS[cell.attack](**dict(cell.settings)) if cell.attack in ATTACKS else unseen.written(cell.attack)
        plan: Any = PLANS[cell.plan]() if cell.plan else attack.plan()
        if cell.cover_rate:
            plan = replace(plan, cover_rate=cell.cover_rate)
        poisoned = poison(train, attack, seed=cell.seed, plan=plan, rate=cell.rate)
        train = poisoned.samples
        if without:
            train = train.take(np.flatnonzero(~poisoned.truth.is_poisoned & ~poisoned.truth.is_cover))
    defense = DEFENSES["none" if without else cell.defense]()
    job = Job(defense, Recipe(epochs=cell.epochs, seed=cell.seed), backbone=cell.backbone)
    build = builder(describe_model(train, job, None))
    started, worked = time.perf_counter(), time.process_time()
    trained = job.defense.train(train, build, job.recipe)
    seconds = time.perf_counter() - started
    cpu_seconds = time.process_time() - worked  # all threads; hardly depends on what else runs
    session = Session(job.recipe, len(test), images=test.kind == "image")
    model = session.prepare(trained.model)
    measured = {
        **_accuracy(predict(session, model, test).labels, test.labels),
        **({} if poisoned is None else _attacked(session, model, test, poisoned.trigger, poisoned.plan)),
        **_probed(session, model, train, test, cell),
        **_isolated(trained, None if without else poisoned, train),
        **_left(session, model, train, trained),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "epochs_run": job.recipe.passes(len(train)),
        "n_train": len(train),
        "n_test": len(test),
        "threads": torch.get_num_threads(),
        "device": session.device.type,
        "bf16": session.bf16,
    }
    return {"name": cell.name, "cell": asdict(cell), "metrics": measured, **provenance()}


def thinned(samples: Any, limit: int) -> Any:
    """At most `limit` samples, evenly spread over the rows (which are often sorted by class)."""
    if not limit or len(samples) <= limit:
        return samples
    return samples.take(np.linspace(0, len(samples) - 1, limit).astype(np.int64))


def _accuracy(predicted: Any, labels: Any) -> dict[str, float]:
    from antibackdoor.statistics.intervals import wilson_interval
    from antibackdoor.statistics.metrics import clean_accuracy

    low, high = wilson_interval(int((predicted == labels).sum()), len(labels))
    return {
        "clean_accuracy": clean_accuracy(predicted, labels),
        "clean_accuracy_low": low,
        "clean_accuracy_high": high,
    }


def _attacked(session: Any, model: Any, test: Any, trigger: Any, plan: Any) -> dict[str, float]:
    """How often the trigger works on held-out samples of other classes, with Wilson's 95% interval."""
    from antibackdoor.attacks import trigger_test_set
    from antibackdoor.statistics.intervals import wilson_interval
    from antibackdoor.statistics.metrics import attack_success_rate, robust_accuracy
    from antibackdoor.training.loop import predict

    triggered = trigger_test_set(test, trigger, plan)
    answers = predict(session, model, triggered).labels
    goal, everyone = plan.goal(triggered.labels), np.ones(len(triggered), dtype=bool)
    low, high = wilson_interval(int((answers == goal).sum()), len(triggered))
    return {
        "attack_success_rate": attack_success_rate(answers, everyone, goal),
        "attack_success_rate_low": low,
        "attack_success_rate_high": high,
        "robust_accuracy": robust_accuracy(answers, everyone, triggered.labels),
        "n_triggered": len(triggered),
    }


def _probed(session: Any, model: Any, train: Any, test: Any, cell: Cell) -> dict[str, Any]:
    """What triggers do to a model that was not trained with them: a success of theirs owes nothing to poison."""
    if not cell.probes:
        return {}
    from antibackdoor.attacks import ATTACKS, make_trigger

    success = {}
    for attack, rate, *settings in cell.probes:
        trigger, plan = make_trigger(train, ATTACKS[attack](**dict(*settings)), seed=cell.seed, rate=rate)
        success[attack] = _attacked(session, model, test, trigger, plan)["attack_success_rate"]
    return {"attack_success_without_poison": success}


def _isolated(trained: Any, poisoned: Any, train: Any) -> dict[str, Any]:
    """What was isolated, and how much of it rightly."""
    from antibackdoor.statistics import metrics

    is_poisoned = np.zeros(len(train), dtype=bool) if poisoned is None else poisoned.truth.is_poisoned
    facts: dict[str, Any] = {
        "n_poisoned": int(is_poisoned.sum()),
        "n_isolated": int(trained.isolated.sum()),
        "n_missed": int((is_poisoned & ~trained.isolated).sum()),
        "n_false": int((trained.isolated & ~is_poisoned).sum()),
        "n_recovered": int(trained.recovered.sum()),
        "backdoor_labels": list(trained.backdoor_labels),
        "isolation_precision": metrics.isolation_precision(trained.isolated, is_poisoned),
        "isolation_recall": metrics.isolation_recall(trained.isolated, is_poisoned),
        "false_positive_rate": metrics.false_positive_rate(trained.isolated, is_poisoned),
        "suspicion_auroc": metrics.auroc(trained.suspicion, is_poisoned),
    }
    if poisoned is not None:
        facts["recovered_label_precision"] = metrics.recovered_label_precision(
            trained.labels, poisoned.truth.true_labels, trained.recovered, is_poisoned
        )
    return {**facts, "notes": trained.notes or {}}


def _left(session: Any, model: Any, train: Any, trained: Any) -> dict[str, float]:
    """The attack success rate as a user estimates it, to be compared with the true one."""
    from antibackdoor.app.residual import residual_attack_success

    if not trained.poisoned:
        return {}
    return residual_attack_success(session, model, train, trained)


def provenance(packages: Sequence[str] = ("antibackdoor", "torch", "numpy", "scipy", "scikit-learn")) -> dict[str, Any]:
    """Versions, commit, machine: what a number is worth nothing without."""
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"versions": versions, "commit": _commit(), "machine": f"{_processor()}, {os.cpu_count()} cores"}


def _commit() -> str:
    """The commit, with `-dirty` if the package's source differs from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=HERE.parent, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    head = git("rev-parse", "--short=12", "HEAD")
    return (head or "unknown") + ("-dirty" if git("status", "--porcelain", "--", "src") else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def plain(value: Any) -> Any:
    """The same nest with null in place of nan, which JSON does not know."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --------------------------------------------------------------------------- many cells


def arguments(description: str, name: str, seeds: int) -> argparse.ArgumentParser:
    """The options that all benchmarks made of cells share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seeds", type=int, default=seeds, help="number of seeds, from 0 on")
    parser.add_argument("--epochs", type=int, default=0, help="passes over the data; 0 lets the package choose")
    parser.add_argument("--limit", type=int, default=0, help="most training and test samples (for a quick try)")
    parser.add_argument("--cells", default="*", help="only these, such as 'cifar10/badnets/*/0,*/clean/*'")
    parser.add_argument("--again", action="store_true", help="measure chosen cells anew; the last result counts")
    parser.add_argument("--table", action="store_true", help="print the table of what is there; measure nothing")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{name}.jsonl")
    parser.add_argument("--data", type=Path, default=data_folder(), help="folder of the data sets")
    return parser


def data_folder() -> Path:
    """`ANTIBACKDOOR_DATA`, by default `shared/data` beside the repository."""
    return Path(os.environ.get("ANTIBACKDOOR_DATA") or HERE.parent.parent / "shared" / "data")


def run(
    cells: Sequence[Cell],
    options: argparse.Namespace,
    render: Callable[[Sequence[dict[str, Any]]], str] | None = None,
) -> None:
    """Measure the chosen cells that are not measured yet, one process each, and print a table of their lines."""
    patterns = options.cells.split(",")
    chosen = [cell for cell in cells if any(fnmatchcase(name, p) for name in (cell.name, cell.form) for p in patterns)]
    if not chosen:
        sys.exit(f"--cells {options.cells} fits no cell; the first is {cells[0].name}")
    done = set() if options.again else {identity(line["cell"]) for line in read_lines(options.out)}
    todo = [] if options.table else [cell for cell in chosen if identity(asdict(cell)) not in done]
    failed = 0
    for number, cell in enumerate(todo, start=1):
        print(f"[{number}/{len(todo)}] {cell.form}", file=sys.stderr, flush=True)
        result = _in_own_process(cell, options.data)
        if result is None:
            failed += 1
            continue
        append_line(options.out, {**result, "command": command()})
        print(f"    {brief(result['metrics'])}", file=sys.stderr, flush=True)
    wanted = {identity(asdict(cell)) for cell in chosen}
    print((render or table)([line for line in read_lines(options.out) if identity(line["cell"]) in wanted]))
    if failed:
        sys.exit(f"{failed} cells failed; run the same command again for them alone")


def _in_own_process(cell: Cell, folder: Path) -> dict[str, Any] | None:
    """Fresh memory for each cell; None if it failed (its error is on standard error)."""
    task = json.dumps({"cell": asdict(cell), "data": str(folder)})
    done = subprocess.run(
        [sys.executable, str(HERE / "cells.py")], input=task, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        print(f"    failed with exit code {done.returncode}", file=sys.stderr)
        return None
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def identity(cell: dict[str, Any]) -> str:
    """What makes two cells the same; an option that is not used is as one that did not exist yet."""
    return json.dumps({key: value for key, value in cell.items() if value}, sort_keys=True)


def command() -> list[str]:
    """The command line, without the folders of this machine."""
    words = [f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]
    return ["python", *(Path(word).name if Path(word).is_absolute() else word for word in words)]


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a whole result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plain(result), indent=1) + "\n", encoding="utf-8")


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Add a JSON line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(plain(line)) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The last line of each cell, in the order of the first ones; a torn line is passed over."""
    latest: dict[str, dict[str, Any]] = {}
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        latest[identity(line["cell"])] = line
    return list(latest.values())


def brief(metrics: dict[str, Any]) -> str:
    """A cell in half a line."""
    parts = [f"accuracy {metrics['clean_accuracy']:.1%}"]
    if metrics.get("attack_success_rate") is not None:
        parts.append(f"attack success {metrics['attack_success_rate']:.1%}")
    counts = [f"{metrics[f'n_{name}']} {name}" for name in ("poisoned", "isolated", "missed", "false")]
    return ", ".join([*parts, *counts, f"{metrics['seconds']:.0f} s"])


def table(lines: Sequence[dict[str, Any]]) -> str:
    """A Markdown table: one row a data set, attack and defense; means over seeds in percent."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for line in lines:
        data, attack, defense, _ = line["name"].split("/")
        groups.setdefault((data, attack, defense), []).append(line["metrics"])
    rows = [
        "| data | attack | defense | seeds | clean accuracy % | attack success % | recall % | missed | false | s |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for names, metrics in sorted(groups.items()):
        values = {key: mean(m.get(key) for m in metrics) for key in COLUMNS}
        counts = [f"{values[key].value:.1f}" for key in ("n_missed", "n_false", "seconds")]
        shares = [str(values[key]) for key in ("clean_accuracy", "attack_success_rate", "isolation_recall")]
        rows.append(f"| {' | '.join([*names, str(len(metrics)), *shares, *counts])} |")
    return "\n".join(rows)


COLUMNS = ("clean_accuracy", "attack_success_rate", "isolation_recall", "n_missed", "n_false", "seconds")


if __name__ == "__main__":
    given = json.load(sys.stdin)
    outcome = measure(Cell(**given["cell"]), Path(given["data"]))
    print(json.dumps(plain(outcome)))
