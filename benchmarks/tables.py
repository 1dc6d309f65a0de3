"""The tables and figures in README.md and docs/, made from benchmarks/results; all else there is written by hand.

    python benchmarks/tables.py             write them
    python benchmarks/tables.py --check     exit with 1 if one is not what the results say

A table stands between `<!-- table NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import ablation
import attacks
import calibration
import cells
import curves
import folders
import isolation
import residual
import synthetic

from antibackdoor.benchmark import grid, mean, read_lines

DOCUMENTS = (folders.REPOSITORY / "README.md", *sorted((folders.REPOSITORY / "docs").rglob("*.md")))
PLACE = re.compile(r"(<!-- table ([\w-]+) -->\n).*?(<!-- end -->)", flags=re.DOTALL)

Metrics = dict[str, Any]
DEFAULT = "default (dual-head)"
DEFENSES = {
    "none": "none",
    cells.CLEAN_PART: "none, clean part alone",
    "e2abl": "E2ABL",
    "dual-head": DEFAULT,
}
ATTACKS = {
    "badnets": "BadNets",
    "blend": "Blend",
    "sig": "SIG",
    "adaptive_blend": "Adaptive-Blend",
    "wanet": "WaNet",
    "tact": "TaCT",
    "cba": "Composite",
    "adaptive_patch": "Adaptive-Patch",
    "dfst": "DFST",
    "smooth_noise": "smooth random field",
    "sharpening": "sharper edges",
    "blur": "blur",
    "rotation": "rotation",
    "static": "static pattern",
    "powerline": "powerline noise",
    "clean": "clean data",
}
PLANS = {"all_to_all": "each class to the next", "multi_target": "two targets", "source_specific": "one source"}
ATTACKS |= {f"{a}-{p}": f"{ATTACKS[a]}, {PLANS[p]}," for p in PLANS for a in ("badnets", "blend", "static")}


def lines_of(name: str) -> list[dict[str, Any]]:
    """The lines of a result."""
    return read_lines(folders.RESULTS / name)


def of_variants(names: Sequence[str]) -> list[dict[str, Any]]:
    """Lines of the ablation with one of these variants."""
    return [line for line in lines_of("ablation.jsonl") if line["cell"]["variant"] in names]


def whole(name: str) -> dict[str, Any]:
    """A result that is one object."""
    result: dict[str, Any] = json.loads((folders.RESULTS / name).read_text(encoding="utf-8"))
    return result


def by_seed(runs: Sequence[Metrics], key: str, form: Callable[[Any], str]) -> str:
    """One number a seed."""
    values = [run.get(key) for run in runs]
    return "-" if None in values else "; ".join(form(value) for value in values)


def percent(value: float) -> str:
    """A share as a number of percent."""
    return f"{100 * value:.1f}"


def count(value: int) -> str:
    """A number of samples."""
    return f"{value:,}"


# --------------------------------------------------------------------------- the tables


def demo() -> str:
    """Means over the seeds; isolated and missed seed by seed."""
    runs = whole("demo.json")["runs"]

    def rows() -> Iterator[Sequence[str]]:
        for title in runs[0]:
            found = [run[title] for run in runs]
            shares = [str(mean(run.get(key) for run in found)) for key in ("clean_accuracy", "attack_success_rate")]
            defended = DEFAULT in title
            missed = by_seed(found, "n_missed", count) if defended and found[0].get("n_poisoned") else "-"
            yield [title, *shares, by_seed(found, "n_isolated", count) if defended else "-", missed]

    return grid(("training", "clean accuracy %", "attack success %", "isolated", "missed"), rows())


def trainings(file: str, *data: str) -> str:
    """Accuracy, attack success and isolation of each training, one number a seed; of several data, with their names."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for line in sorted(lines_of(file), key=lambda line: str(line["name"])):
        groups.setdefault(tuple(line["name"].split("/")[:3]), []).append(line)

    def rows() -> Iterator[Sequence[str]]:
        for of, (attack, told), (defense, name) in product(data, ATTACKS.items(), DEFENSES.items()):
            if found := groups.get((of, attack, defense)):
                title = told if len(data) == 1 else f"{of}, {told}"
                runs, rate = [line["metrics"] for line in found], found[0]["cell"]["rate"]
                shares = [by_seed(runs, key, percent) for key in ("clean_accuracy", "attack_success_rate")]
                counts = [by_seed(runs, key, count) for key in ("n_missed", "n_false")]
                if defense in ("none", cells.CLEAN_PART):
                    counts = ["-", "-"]
                elif rate:
                    counts[0] += f" of {runs[0]['n_poisoned']:,}"
                else:
                    counts[0] = "-"
                yield [f"{title} {100 * rate:.0f}%" if rate else title, name, *shares, *counts]

    return grid(("data", "defense", "clean accuracy %", "attack success %", "missed", "false"), rows())


def cost() -> str:
    """Processor time of the default on clean data against plain training, of seeds that have both."""
    seconds = {line["name"]: line["metrics"].get("cpu_seconds") for line in lines_of("cifar10.jsonl")}

    def rows() -> Iterator[Sequence[str]]:
        for seed in range(10):
            plain, defended = (seconds.get(f"cifar10/clean/{name}/{seed}") for name in ("none", "dual-head"))
            if plain and defended:
                yield [str(seed), f"{plain:,.0f}", f"{defended:,.0f}", f"{defended / plain:.2f}"]

    return grid(("seed", "plain training, processor s", f"{DEFAULT}, processor s", "ratio"), rows())


def speed() -> str:
    """Images per second of each contestant."""
    result = whole("speed.json")
    titles = {
        "bare": "bare loop (forward, backward, step)",
        "none": "antibackdoor, no defense",
        "dual-head": f"antibackdoor, {DEFAULT}",
        "skorch": "skorch (fp32)",
        "art": "ART (fp32)",
    }
    rows = (
        [titles[name], f"{rate['median']:,.0f}", f"{rate['min']:,.0f} to {rate['max']:,.0f}", f"{rate['ratio']:.2f}"]
        for name, rate in result["images_per_second"].items()
    )
    return grid(("training", "images/s", "range", "of the bare loop"), rows)


def memory() -> str:
    """Peak memory by number of images."""
    result = whole("memory.json")
    rows = (
        [count(run["images"]), *(f"{run[key]:,.0f}" for key in ("file_mib", "peak_mib", "peak_without_files_mib"))]
        for run in result["runs"]
    )
    return grid(("images", "file, MiB", "peak, MiB", "of it not file, MiB"), rows)


def throughput() -> str:
    """How fast fixed triggers stamp."""
    rows = (
        [cell["throughput"], count(cell["n_images"]), f"{seconds:.2f}", f"{cell['n_images'] / seconds:,.0f}"]
        for cell, seconds in (
            (line["cell"], line["metrics"]["seconds"])
            for line in lines_of("attacks.jsonl")
            if "throughput" in line["cell"]
        )
    )
    return grid(("attack", "images", "s", "images/s"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "demo": demo,
    "cifar10": lambda: trainings("cifar10.jsonl", "cifar10"),
    "arabicdigits": lambda: trainings("series.jsonl", "arabicdigits"),
    "ecg5000": lambda: trainings("series.jsonl", "ecg5000"),
    "uwave": lambda: trainings("series.jsonl", "uwavegesture"),
    "soft": lambda: trainings("soft.jsonl", "cifar10"),
    "plans-cifar10": lambda: trainings("plans.jsonl", "cifar10"),
    "plans-arabicdigits": lambda: trainings("plans.jsonl", "arabicdigits"),
    "drawn": lambda: trainings("drawn.jsonl", *synthetic.KINDS),
    "cost": cost,
    "goals": lambda: isolation.goals(lines_of("isolation.jsonl")),
    "calibration": lambda: calibration.table(calibration.clean_lines()),
    "ablation": lambda: ablation.table(of_variants(ablation.NAMES)),
    "late": lambda: ablation.table(of_variants(ablation.TRAINED)),
    "attempts": lambda: isolation.by_attempt(lines_of("isolation.jsonl")),
    "unseen": lambda: isolation.table(lines_of("unseen.jsonl")),
    "isolation": lambda: isolation.table(lines_of("isolation.jsonl")),
    "residual": lambda: residual.table(list(residual.pairs(folders.RESULTS))),
    "attacks": lambda: attacks.table([line for line in lines_of("attacks.jsonl") if "attack" in line["cell"]]),
    "throughput": throughput,
    "speed": speed,
    "memory": memory,
}

FIGURES: dict[str, Callable[[], str]] = {"curves.svg": lambda: curves.figure(lines_of("curves.jsonl"))}


def filled(text: str) -> str:
    """A document with its tables as the results say."""
    return PLACE.sub(lambda place: f"{place[1]}\n{TABLES[place[2]]()}\n\n{place[3]}", text)


def main() -> None:
    """Write, or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a table is not up to date")
    options = parser.parse_args()
    wanted = {path: filled(path.read_text(encoding="utf-8")) for path in DOCUMENTS}
    wanted |= {folders.REPOSITORY / "docs" / name: draw() for name, draw in FIGURES.items()}
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in [] if options.check else stale:
        path.write_text(wanted[path], encoding="utf-8")
    if stale:
        names = ", ".join(path.name for path in stale)
        print(f"{'not up to date' if options.check else 'written'}: {names}", file=sys.stderr)
    sys.exit(1 if stale and options.check else 0)


if __name__ == "__main__":
    main()
