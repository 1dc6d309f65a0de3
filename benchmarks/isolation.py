"""What the default's search isolates, by data, attack, rate and seed; no network is trained to the end, so a cell takes
seconds to minutes.

    python benchmarks/isolation.py                                  all cells; goes on where it was stopped
    python benchmarks/isolation.py --cells 'digits/*'               some of them
    python benchmarks/isolation.py --table                          the table of what is there

Digits and the data of `benchmarks/synthetic.py` need no files; the others are read from ANTIBACKDOOR_DATA, and cells
whose file is not there are passed over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import folders
import numpy as np
import synthetic
import triggers

import antibackdoor.benchmark
from antibackdoor.app.demo import digits
from antibackdoor.app.networks import NetworkChoice, builder, describe_model
from antibackdoor.attacks import ATTACKS, poison
from antibackdoor.benchmark import Matrix, Measured, data_hash
from antibackdoor.data.reading import read
from antibackdoor.data.samples import BoolArray, Samples
from antibackdoor.detectors import ConfusionTraining
from antibackdoor.protocols import NEARBY, Build, Given
from antibackdoor.statistics.metrics import auroc
from antibackdoor.training.recipe import Recipe

RATES = (0.0, 0.1, 0.05, 0.02, 0.01, 0.2, 0.005)
# The other attacks of `benchmarks/attacks.py`, but feature collision, whose success is not measured yet.
OTHERS = (
    *("trojan", "dynamic", "lba", "cba", "dfst", "refool"),
    *("physical", "tact", "adaptive_blend", "adaptive_patch", "label_consistent"),
)
# Of the UEA and UCR archives, for whoever puts their files into the data folder.
ARCHIVED = ("JapaneseVowels", "ItalyPowerDemand", "OSULeaf", "GunPoint", "ArrowHead", "BasicMotions")
FEW = ("17", "49", "56", "79", "135", "0268")
# Data, file (none for digits), samples (0: all), network, attacks. A name with "-all" takes training and test split
# together; one that ends in "-by3" makes one label of every three classes, "-only35" keeps classes 3 and 5 alone, "-x5"
# has each sample five times, "-tracks" makes a label of the thirty pictures of each single sign. With "-tail" class 0,
# the target of most attacks, is the most frequent one and the last a hundred times rarer; with "-rare" it is reversed.
DATA = (
    ("digits", "", 0, "wrn-16-1", ("badnets", "blend", "sig")),
    ("ecg5000", "ecg5000.npz", 0, "series-resnet", ("static", "powerline")),
    ("ecg5000-all", "ecg5000.npz", 0, "fcn", ("static", "powerline")),
    ("uwave", "uwavegesture.npz", 0, "fcn", ("static", "powerline")),
    ("arabicdigits", "arabicdigits.npz", 0, "series-resnet", ("static", "powerline")),
    ("gtsrb-4000", "gtsrb32.zip", 4000, "wrn-16-1", ("badnets", "blend")),
    ("gtsrb", "gtsrb32.zip", 0, "wrn-16-1", ("badnets", "blend", "sig")),
    ("cifar10-2000", "cifar10.zip", 2000, "wrn-16-1", ("badnets", "blend", "sig")),
    ("cifar10-10000", "cifar10.zip", 10_000, "wrn-16-1", ("badnets", "blend", "sig", "wanet", *OTHERS)),
    ("mnist", "mnist5k.npz", 0, "wrn-16-1", ("badnets", "blend", "sig", "wanet")),
    *((f"{name.lower()}-all", f"{name}_TRAIN.ts", 0, "fcn", ("static", "powerline")) for name in ARCHIVED),
    ("cifar10-tail", "cifar10.zip", 0, "wrn-16-1", ("badnets", "blend")),
    ("cifar10-rare", "cifar10.zip", 0, "wrn-16-1", ("badnets", "blend")),
    ("mnist-tail", "mnist5k.npz", 0, "wrn-16-1", ("badnets", "blend")),
    ("mnist-rare", "mnist5k.npz", 0, "wrn-16-1", ("badnets", "blend")),
    ("arabicdigits-tail", "arabicdigits.npz", 0, "series-resnet", ("static", "powerline")),
    ("arabicdigits-rare", "arabicdigits.npz", 0, "series-resnet", ("static", "powerline")),
    *((name, "", 0, kind.network, kind.attacks) for name, kind in synthetic.KINDS.items()),
    ("digits-by2", "", 0, "wrn-16-1", ("badnets", "blend")),
    ("digits-by3", "", 0, "wrn-16-1", ("badnets", "blend")),
    ("digits-by5", "", 0, "wrn-16-1", ("badnets", "blend")),
    ("arabicdigits-by2", "arabicdigits.npz", 0, "series-resnet", ("static", "powerline")),
    ("gtsrb-4000-by7", "gtsrb32.zip", 4000, "wrn-16-1", ("badnets", "blend")),
    ("cifar10-2000-by2", "cifar10.zip", 2000, "wrn-16-1", ("badnets", "blend")),
    ("cifar10-2000-by5", "cifar10.zip", 2000, "wrn-16-1", ("badnets", "blend")),
    ("digits-only38", "", 0, "wrn-16-1", ("badnets", "blend")),
    *((f"digits-only{few}", "", 0, "wrn-16-1", ("badnets", "blend")) for few in FEW),
    ("cifar10-10000-only35", "cifar10.zip", 10_000, "wrn-16-1", ("badnets", "blend")),
    ("arabicdigits-only38", "arabicdigits.npz", 0, "series-resnet", ("static", "powerline")),
    ("ecg5000-all-only01", "ecg5000.npz", 0, "fcn", ("static", "powerline")),
    ("digits-x5", "", 288, "wrn-16-1", ("badnets", "blend")),
    ("cifar10-50000", "cifar10.zip", 0, "wrn-16-1", ("badnets", "blend", "sig", "wanet")),
    ("gtsrb-tracks", "gtsrb32.zip", 0, "wrn-16-1", ("badnets", "blend")),
)


@dataclass(frozen=True)
class Cell:
    """One search."""

    data: str
    attack: str  # empty for clean data
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """For `--cells`: data/attack/rate/seed."""
        return f"{self.data}/{self.attack or 'clean'}/{self.rate:g}/{self.seed}"

    @property
    def form(self) -> str:
        """The name, which no two cells share."""
        return self.name


C = TypeVar("C", bound=antibackdoor.benchmark.Cell)


def all_cells(n_seeds: int) -> list[Cell]:
    """Seed by seed, common rates first, small data first: a fair picture early."""
    found: dict[Cell, None] = {}
    for seed in range(n_seeds):
        for rate in RATES:
            for name, _, _, _, attacks in DATA:
                for attack in attacks if rate else ("",):
                    found[Cell(name, attack, rate, seed)] = None
    return list(found)


class Searched(NamedTuple):
    """What a cell searches, and the truth about it."""

    samples: Samples
    is_poisoned: BoolArray  # (N,)
    target: int | None
    build: Build


def file_of(data: str) -> str:
    """The file that the data of this name need; empty where they need none."""
    return next(row[1] for row in DATA if row[0] == data)


def clean(name: str, folder: Path, seed: int) -> Samples:
    """The data of a name, before poisoning."""
    _, file, size, _, _ = next(row for row in DATA if row[0] == name)
    if name in synthetic.KINDS:
        train = synthetic.draw(name, seed)
    else:
        data = read(folder / file, seed=seed) if file else digits(seed)
        train = joined(data.train, data.test) if "-all" in name and data.test is not None else data.train
    if name.endswith("-tracks"):
        train = by_track(train)
    if size:
        train = train.take(np.sort(np.random.default_rng(seed).permutation(len(train))[:size]))
    if name.endswith(("-tail", "-rare")):
        train = long_tailed(train, seed, is_first_rare=name.endswith("-rare"))
    if "-by" in name:
        train = merged(train, int(name.rpartition("-by")[2]))
    if "-only" in name:
        train = only(train, sorted(map(int, name.rpartition("-only")[2])))
    return train


def prepare(data: str, attack: str, rate: float, seed: int, folder: Path) -> Searched:
    """Read and poison: the attack is a key of `ATTACKS` or of those in `triggers.py`, or empty."""
    train = clean(data, folder, seed)
    is_poisoned, target = np.zeros(len(train), dtype=bool), None
    if attack:
        kind = ATTACKS[attack]() if attack in ATTACKS else triggers.written(attack)
        poisoned = poison(train, kind, seed=seed, rate=rate)
        train, is_poisoned = poisoned.samples, poisoned.truth.is_poisoned
        target = getattr(poisoned.plan, "target_label", None)
    if "-x" in data:
        copies = np.repeat(np.arange(len(train)), int(data.rpartition("-x")[2]))
        train, is_poisoned = train.take(copies), is_poisoned[copies]
        train = replace(train, ids=np.arange(len(train)).astype(str))
    network = next(row[3] for row in DATA if row[0] == data)
    spec = describe_model(train, NetworkChoice(network), Recipe(seed=seed), "confusion")
    return Searched(train, is_poisoned, target, builder(spec))


def measure(cell: Cell, folder: Path) -> Measured:
    """Poison, search, compare with the truth."""
    searched = prepare(cell.data, cell.attack, cell.rate, cell.seed, folder)
    given, recipe = Given(build=searched.build), Recipe(seed=cell.seed)
    started = time.perf_counter()
    detection = ConfusionTraining(power=False).detect(searched.samples, given, recipe)
    seconds = time.perf_counter() - started
    verdict, facts = detection.verdict, asdict(detection.facts)
    added = verdict.isolated & (verdict.criterion == NEARBY)  # near the found, and above no cut
    metrics = {
        **facts,
        **found(searched, verdict.isolated),
        "n_added": int(added.sum()),
        "n_added_false": int((added & ~searched.is_poisoned).sum()),
        "labels": list(verdict.target_labels),
        "target": searched.target,
        "found_by": facts["found_by"].split("; ") if facts["found_by"] else [],
        "auroc": auroc(verdict.suspicion if verdict.margin is None else verdict.margin, searched.is_poisoned),
        "seconds": round(seconds, 1),
    }
    return Measured(metrics, data_hash(searched.samples))


def found(searched: Searched, isolated: BoolArray) -> dict[str, int]:
    """Counts of what was missed, and of what was taken wrongly."""
    return {
        "n_train": len(searched.samples),
        "n_poisoned": int(searched.is_poisoned.sum()),
        "n_missed": int((searched.is_poisoned & ~isolated).sum()),
        "n_false": int((isolated & ~searched.is_poisoned).sum()),
    }


def joined(first: Samples, second: Samples) -> Samples:
    """Two splits as one data set."""
    return Samples(
        np.concatenate([first.inputs, second.inputs]),
        np.concatenate([first.labels, second.labels]),
        np.concatenate([np.char.add("train/", first.ids), np.char.add("test/", second.ids)]),
        first.class_names,
    )


def merged(samples: Samples, n: int) -> Samples:
    """The same data with one label for every n classes: classes within a label are honest groups."""
    names = samples.class_names
    joined = ["+".join(names[k : k + n]) for k in range(0, len(names), n)]
    return replace(samples, labels=samples.labels // n, class_names=np.array(joined))


def by_track(samples: Samples) -> Samples:
    """A label for each sign that was filmed, 1,307 of them: file names begin with the number of its track."""
    names, labels = np.unique(
        [
            f"{samples.class_names[k]}/{Path(name).name.partition('_')[0]}"
            for k, name in zip(samples.labels, samples.ids, strict=True)
        ],
        return_inverse=True,
    )
    return replace(samples, labels=labels.astype(np.int64), class_names=names)


def long_tailed(samples: Samples, seed: int, *, is_first_rare: bool) -> Samples:
    """The same data with classes that get rarer one by one, the rarest a hundred times rarer than the others were."""
    sizes = np.bincount(samples.labels, minlength=samples.n_classes)
    shares = 100.0 ** -np.linspace(0, 1, samples.n_classes)
    kept = np.ceil(sizes * (shares[::-1] if is_first_rare else shares)).astype(np.int64)
    drawn = np.random.default_rng(seed).permutation(len(samples))
    rows = [drawn[samples.labels[drawn] == k][:n] for k, n in enumerate(kept)]
    return samples.take(np.sort(np.concatenate(rows)))


def only(samples: Samples, classes: list[int]) -> Samples:
    """The samples of some classes, as if there were no others."""
    kept = samples.take(np.flatnonzero(np.isin(samples.labels, classes)))
    return replace(kept, labels=np.searchsorted(classes, kept.labels), class_names=samples.class_names[classes])


def table(lines: list[dict[str, Any]]) -> str:
    """Every cell, failures too: `missed of poisoned / false` for each seed, and alarms where nothing is poisoned."""
    groups: dict[tuple[str, str, str], list[Any]] = {}
    for line in lines:
        data, attack, rate, _ = line["name"].split("/")
        groups.setdefault((data, attack, rate), []).append(line["metrics"])
    rows = ["| data | attack | rate | missed of poisoned / false, by seed |", "| --- | --- | ---: | --- |"]
    for (data, attack, rate), runs in sorted(groups.items()):
        told = "; ".join(map(brief, runs))
        if attack == "clean":
            told = (
                f"{sum(m['n_false'] > 0 for m in runs)} of {len(runs)} alarmed, {sum(m['n_false'] for m in runs)} false"
            )
        rows.append(f"| {data} | {attack} | {rate} | {told} |")
    return "\n".join(rows)


def brief(m: dict[str, Any]) -> str:
    """What was missed and what was taken wrongly."""
    return f"{m['n_missed']} of {m['n_poisoned']} / {m['n_false']}"


def goals(lines: list[dict[str, Any]]) -> str:
    """How often the search does what it is to do, by size and rate."""
    groups: dict[str, list[Any]] = {}
    for line in lines:
        rate, m = line["cell"]["rate"], line["metrics"]
        if m["n_poisoned"]:
            size = "10,000 samples and more" if m["n_train"] >= 10_000 else "fewer"
            groups.setdefault(f"{size}, {'1% and more' if rate >= 0.01 else 'half a percent'}", []).append(m)
    names = ("recall at least 99.9%", "false at most .5%", "verdict right", "target right", "rate inside its interval")
    rows = [f"| poisoned data | runs | {' | '.join(names)} |", "| --- |" + " ---: |" * (1 + len(names))]
    for name, runs in sorted(groups.items()):
        kept = (
            sum(m["n_missed"] <= 0.001 * m["n_poisoned"] for m in runs),
            sum(m["n_false"] <= 0.005 * (m["n_train"] - m["n_poisoned"]) for m in runs),
            sum(bool(m["labels"]) for m in runs),
            sum(m["labels"] == [m["target"]] for m in runs),
            sum(inside(m) for m in runs),
        )
        rows.append(f"| {name} | {len(runs)} | {' | '.join(map(str, kept))} |")
    return "\n".join(rows)


def by_attempt(lines: list[dict[str, Any]]) -> str:
    """Which attempts of the search decided how many of the poisoned cells that tell it, and how well."""
    groups: dict[str, list[Any]] = {}
    for line in lines:
        if line["metrics"]["n_poisoned"] and "found_by" in line["metrics"]:
            groups.setdefault(" + ".join(line["metrics"]["found_by"]) or "none", []).append(line["metrics"])
    rows = ["| found by | searches | missed, all together | false | most false in one |", "| --- |" + " ---: |" * 4]
    for name, runs in sorted(groups.items(), key=lambda group: -len(group[1])):
        missed, poisoned, false = (sum(m[key] for m in runs) for key in ("n_missed", "n_poisoned", "n_false"))
        most = max(m["n_false"] for m in runs)
        rows.append(f"| {name} | {len(runs)} | {missed:,} of {poisoned:,} | {false:,} | {most:,} |")
    return "\n".join(rows)


def inside(m: dict[str, Any]) -> bool:
    """Whether the true rate lies in the interval that is told; there is none where nothing was found."""
    low, high = m["estimated_poisoning_rate_low"], m["estimated_poisoning_rate_high"]
    return low is not None and low <= m["n_poisoned"] / m["n_train"] <= high


def run(
    description: str,
    name: str,
    every: Callable[[int], Iterable[C]],
    measure: Callable[[C, Path], Measured],
    table: Callable[[list[dict[str, Any]]], str],
    *,
    told: Callable[[dict[str, Any]], str] = lambda m: f"{brief(m)} missed / false, {m['seconds']} s",
    methods: tuple[str, ...] = (),
) -> None:
    """Parse, measure, print: a benchmark that only searches. Its cells have a field `data`, a name of `DATA`."""
    out = folders.RESULTS / f"{name}.jsonl"
    options = antibackdoor.benchmark.arguments(description, out=out, data=folders.data(), seeds=3).parse_args()
    cells = list(every(options.seeds))
    matrix = Matrix(cells, measure, table, told, lambda cell: file_of(asdict(cell)["data"]), methods)
    antibackdoor.benchmark.run(matrix, options)


if __name__ == "__main__":
    run(__doc__ or "", "isolation", all_cells, measure, table)
