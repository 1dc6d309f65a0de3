"""The cells of whole trainings: one data set, one attack, one defense, one seed."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import folders
import numpy as np
import synthetic
import torch
import triggers
from torch import nn

import antibackdoor.benchmark
from antibackdoor.app.networks import NetworkChoice, builder, describe_model
from antibackdoor.app.residual import residual_attack_success
from antibackdoor.attacks import ATTACKS, PLANS, Poisoned, make_trigger, poison
from antibackdoor.benchmark import (
    Matrix,
    Measured,
    attack_success,
    data_hash,
    grid,
    mean,
    measure_model,
    measure_verdict,
)
from antibackdoor.data.reading import read
from antibackdoor.data.samples import Samples
from antibackdoor.defenses import DEFENSES
from antibackdoor.protocols import Attack, Trained
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.session import Session

# No defense: plain training without anything that carries the trigger, which only a benchmark can leave out. What the
# trigger does to such a network is no backdoor.
CLEAN_PART = "clean-part"
# Fields of a cell that leave its training data alone.
METHODS = ("defense", "backbone", "epochs", "probes", "defense_settings")

Settings = Sequence[tuple[str, Any]]
Probe = tuple[str, float] | tuple[str, float, Settings]


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        data: File in the data folder, or a key of `synthetic.KINDS`.
        backbone: The network.
        attack: A key of `ATTACKS`, or of those in `triggers.py`; empty for clean data.
        rate: Poisoned share of the training samples.
        defense: A key of `DEFENSES`, or `CLEAN_PART`.
        seed: Chooses poisoned samples, weights and order.
        epochs: Passes over the data; 0 lets the package choose, or the method, if it has a number of its own.
        limit: Most training and test samples, evenly spread; 0 takes all.
        probes: Attacks, their rates and (where not the defaults) attributes, whose triggers are tried on the model
            although it never saw them.
        cover_rate: Share of the training samples that carry the trigger under their own label; 0 leaves it to the plan.
        plan: A key of `PLANS`, with the constants of its own but the rate; empty for the attack's own plan.
        settings: Attributes of the attack and their values, where not its defaults.
        defense_settings: The same of the defense.
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
    defense_settings: Settings = ()

    @property
    def name(self) -> str:
        """For `--cells`: data/attack/defense/seed, or data/attack-plan/defense/seed."""
        attack = "-".join(part for part in (self.attack, self.plan) if part)
        return f"{Path(self.data).stem}/{attack or 'clean'}/{self.defense}/{self.seed}"

    @property
    def form(self) -> str:
        """For `--cells`, where cells share a name: with its rate and settings, as in name:0.01:mode=abl_wrapped."""
        settings = (f"{key}={value}" for key, value in (*self.settings, *self.defense_settings))
        return ":".join((self.name, f"{self.rate:g}", *settings))


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


class Prepared(NamedTuple):
    """The data of a cell."""

    train: Samples  # before poisoning
    test: Samples
    poisoned: Poisoned | None


def prepare(cell: Cell, folder: Path) -> Prepared:
    """Read and poison."""
    if cell.data in synthetic.KINDS:
        both = synthetic.draw(cell.data, cell.seed), synthetic.draw(cell.data, cell.seed + synthetic.TESTS)
    else:
        data = read(folder / cell.data, seed=cell.seed)
        assert data.test is not None, f"{cell.data} has no test samples"
        both = data.train, data.test
    train, test = (thinned(samples, cell.limit) for samples in both)
    if not cell.attack:
        return Prepared(train, test, None)
    attack: Attack = (
        ATTACKS[cell.attack](**dict(cell.settings)) if cell.attack in ATTACKS else triggers.written(cell.attack)
    )
    plan: Any = PLANS[cell.plan]() if cell.plan else attack.plan()
    if cell.cover_rate:
        plan = replace(plan, cover_rate=cell.cover_rate)
    return Prepared(train, test, poison(train, attack, seed=cell.seed, plan=plan, rate=cell.rate))


def measure(cell: Cell, folder: Path) -> Measured:
    """Read, poison, train, and measure on the test data."""
    original, test, poisoned = prepare(cell, folder)
    train, truth = (original, None) if poisoned is None else (poisoned.samples, poisoned.truth)
    hashed = data_hash(train)
    if cell.defense == CLEAN_PART and truth is not None:
        train, truth = train.take(np.flatnonzero(~truth.is_poisoned & ~truth.is_cover)), None
    defense, recipe = defense_of(cell), Recipe(epochs=cell.epochs, seed=cell.seed)
    build = builder(describe_model(train, NetworkChoice(cell.backbone), recipe, cell.defense))
    started, worked = time.perf_counter(), time.process_time()
    trained = defense.train(train, build, recipe)
    seconds = time.perf_counter() - started
    cpu_seconds = time.process_time() - worked  # all threads; hardly depends on what else runs
    session = Session(recipe, len(test), images=test.kind == "image")
    model = session.prepare(trained.model)
    trigger, plan = (None, None) if poisoned is None else (poisoned.trigger, poisoned.plan)
    metrics = {
        **measure_model(session, model, test, trigger=trigger, plan=plan),
        **_probed(session, model, original, test, cell),
        **measure_verdict(trained.verdict, truth),
        **_left(session, model, train, trained),
        "facts": asdict(trained.facts),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "epochs_run": getattr(defense, "epochs", 0) or recipe.passes(len(train)),
        "n_train": len(train),
        "threads": torch.get_num_threads(),
        "device": session.device.type,
        "bf16": session.bf16,
    }
    return Measured(metrics, hashed)


def defense_of(cell: Cell) -> Any:
    """The defense with its settings; one that has epochs of its own takes those of the cell."""
    kind = DEFENSES["none" if cell.defense == CLEAN_PART else cell.defense]
    own = {"epochs": cell.epochs} if cell.epochs and "epochs" in kind.__dataclass_fields__ else {}
    return kind(**{**own, **dict(cell.defense_settings)})


def thinned(samples: Samples, limit: int) -> Samples:
    """At most `limit` samples, evenly spread over the rows (which are often sorted by class)."""
    if not limit or len(samples) <= limit:
        return samples
    return samples.take(np.linspace(0, len(samples) - 1, limit).astype(np.int64))


def _probed(session: Session, model: nn.Module, train: Samples, test: Samples, cell: Cell) -> dict[str, Any]:
    """What triggers do to a model that was not trained with them: a success of theirs owes nothing to poison."""
    success = {}
    for attack, rate, *settings in cell.probes:
        trigger, plan = make_trigger(train, ATTACKS[attack](**dict(*settings)), seed=cell.seed, rate=rate)
        success[attack] = attack_success(session, model, test, trigger, plan)["attack_success_rate"]
    return {"attack_success_without_poison": success} if success else {}


def _left(session: Session, model: nn.Module, train: Samples, trained: Trained) -> dict[str, float]:
    """The attack success rate as a user estimates it, to be compared with the true one."""
    return residual_attack_success(session, model, train, trained) if trained.verdict.poisoned else {}


# --------------------------------------------------------------------------- many cells


def arguments(description: str, name: str, seeds: int) -> argparse.ArgumentParser:
    """The options that all benchmarks of whole trainings share."""
    out = folders.RESULTS / f"{name}.jsonl"
    parser = antibackdoor.benchmark.arguments(description, out=out, data=folders.data(), seeds=seeds)
    parser.add_argument("--epochs", type=int, default=0, help="passes over the data; 0 lets the package choose")
    parser.add_argument("--limit", type=int, default=0, help="most training and test samples (for a quick try)")
    return parser


def run(
    cells: Sequence[Cell],
    options: argparse.Namespace,
    render: Callable[[Sequence[dict[str, Any]]], str] | None = None,
) -> None:
    """Measure the chosen cells that are not measured yet, and print a table of their lines."""
    antibackdoor.benchmark.run(Matrix(cells, measure, render or table, brief, file_of, METHODS), options)


def file_of(cell: Cell) -> str:
    """The file that a cell needs; empty where it needs none."""
    return "" if cell.data in synthetic.KINDS else cell.data


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

    def row(names: tuple[str, ...], runs: list[dict[str, Any]]) -> list[str]:
        shares, counts = (
            [mean(run.get(key) for run in runs) for key in keys]
            for keys in (
                ("clean_accuracy", "attack_success_rate", "isolation_recall"),
                ("n_missed", "n_false", "seconds"),
            )
        )
        return [*names, str(len(runs)), *map(str, shares), *(f"{count.value:.1f}" for count in counts)]

    columns = ("seeds", "clean accuracy %", "attack success %", "recall %", "missed", "false", "s")
    rows = [row(names, runs) for names, runs in sorted(groups.items())]
    return grid(("data", "attack", "defense", *columns), rows, words=3)
