"""How the search sees poison, or why it does not: losses of the warm-up, and margins round by round.

    python benchmarks/curves.py                                 all cells; goes on where it was stopped
    python benchmarks/curves.py --cells '*/tact/*'              some of them
    python benchmarks/tables.py                                 draws docs/curves.svg from what is there

10,000 images of CIFAR-10, 3 minutes each. No valley ends the rounds here, so that what would come later shows as well.
Needs `cifar10.zip` in ANTIBACKDOOR_DATA.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import isolation
import numpy as np

from antibackdoor.benchmark import Measured, data_hash
from antibackdoor.data.samples import BoolArray
from antibackdoor.detectors import ConfusionTraining
from antibackdoor.report.svg import HEIGHT, WIDTH, Area, Axis, Line, Rule, chart, linear_axis
from antibackdoor.search.confusion import weights
from antibackdoor.search.search import Demand, Search
from antibackdoor.search.warm_up import warm_up
from antibackdoor.statistics.isolation import find_valley
from antibackdoor.statistics.metrics import auroc
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.trainer import Trainer

DATA = "cifar10-10000"
TITLES = {
    "badnets": "BadNets 1%",
    "blend": "Blend 5%",
    "adaptive_patch": "Adaptive-Patch 5%",
    "wanet": "WaNet 10%",
    "tact": "TaCT 5%",
    "smooth_noise": "smooth random field 5%",
    "cba": "Composite 5%",
    "sig": "SIG 5%",
}
RATES = {"badnets": 0.01, "wanet": 0.1}  # the others: 5%
HEAD = 40  # of the figure, and of each row in it: pixels
QUANTILES = (0.1, 0.5, 0.9)
ROUNDS = {"losses": 2, "parts": 5}  # of each attempt, as the search makes them
COLORS = {"poisoned": "#c2410c", "rest": "#1d4ed8"}  # of the two groups of the target label
STYLES = """
svg { font-family: system-ui, sans-serif; font-size: 13px; fill: #333; }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg .area { fill-opacity: .2; }
svg .grid { stroke: #e5e5e5; } svg .tick { stroke: #888; fill: none; }
svg path.rule { stroke: #888; stroke-dasharray: 4 4; } svg text.rule { font-size: 12px; }
svg .end { text-anchor: end; } svg .middle { text-anchor: middle; } svg .title { font-size: 16px; font-weight: 600; }
""" + "\n".join(
    f"svg .line.{name} {{ stroke: {color}; }} svg .area.{name} {{ fill: {color}; }}" for name, color in COLORS.items()
)


def all_cells(n_seeds: int) -> Iterable[isolation.Cell]:
    """Seed by seed."""
    for seed in range(n_seeds):
        yield from (isolation.Cell(DATA, name, RATES.get(name, 0.05), seed) for name in TITLES)


def watched(groups: dict[str, BoolArray], given: BoolArray, rounds: list[dict[str, Any]]) -> type[Search]:
    """A search that keeps what the margins of the target label were in each round; no valley ends its rounds."""

    class Watched(Search):
        def find_valleys(self, margins: Any, labels: Any, wanted: set[int]) -> Any:
            if margins is self.margins:  # not those of a trial
                kept = {name: np.quantile(margins[rows], QUANTILES).tolist() for name, rows in groups.items()}
                score = auroc(margins[given], groups["poisoned"][given])
                rounds.append({**kept, "auroc": score, "depth": find_valley(margins[given]).depth})
            return super().find_valleys(margins, labels, wanted)

    return Watched


def measure(cell: isolation.Cell, folder: Path) -> Measured:
    """Warm up, make all rounds of both attempts, keep what the samples of the target label did."""
    started, method = time.perf_counter(), ConfusionTraining(power=False)
    searched = isolation.prepare(cell.data, cell.attack, cell.rate, cell.seed, folder)
    samples, given = searched.samples, searched.samples.labels == searched.target
    groups = {"poisoned": given & searched.is_poisoned, "rest": given & ~searched.is_poisoned}
    rounds: list[dict[str, Any]] = []
    trainer = Trainer(samples, Recipe(seed=cell.seed))
    session, feed = trainer.session, trainer.feed._replace(augmentations=())
    net = trainer.network(lambda: method.two_heads(samples, searched.build))
    history = warm_up(
        trainer,
        feed,
        net,
        most_steps=method.most_steps(session, len(samples)),
        learning_rate=method.warmup_learning_rate,
        hard_share=method.hard_share,
    )
    settings, made = method.settings(samples.n_classes), watched(groups, given, rounds)
    search, before, kept = made(session, feed, net, settings, samples.originals), weights(net), {}
    search.first_look()
    suspicions = {"losses": search.by_losses(history), "parts": search.resemblance.contradiction}
    for name, suspicion in suspicions.items():
        rounds.clear()
        net.load_state_dict(before)
        search.narrow(suspicion, ROUNDS[name], Demand(np.inf, np.inf), 0.0)
        kept[name] = list(rounds)
    losses = {name: np.quantile(history.losses[:, rows], QUANTILES, axis=1).T for name, rows in groups.items()}
    metrics = {
        "warm_up": {"steps": history.steps.tolist()} | {name: found.tolist() for name, found in losses.items()},
        **kept,
        "seconds": round(time.perf_counter() - started, 1),
    }
    return Measured(metrics, data_hash(samples))


def table(lines: list[dict[str, Any]]) -> str:
    """AUROC inside the target label and depth of its valley, round by round."""
    rows = ["| attack | rounds from | AUROC by round | valley by round |", "| --- | --- | --- | --- |"]
    for line in sorted(lines, key=lambda line: list(TITLES).index(line["cell"]["attack"])):
        for attempt in ROUNDS:
            rounds = line["metrics"][attempt]
            aurocs, depths = (
                ", ".join(f"{seen[key]:{form}}" for seen in rounds)
                for key, form in (("auroc", ".3f"), ("depth", ".1f"))
            )
            rows.append(f"| {TITLES[line['cell']['attack']]} | {attempt} | {aurocs} | {depths} |")
    return "\n".join(rows)


def figure(lines: list[dict[str, Any]]) -> str:
    """An SVG file: a row for each attack (first seed), the warm-up on the left, the rounds on the right."""
    runs = {line["cell"]["attack"]: line["metrics"] for line in lines if line["cell"]["seed"] == 0}
    shown = [name for name in TITLES if name in runs]
    names = ", ".join(f'<tspan fill="{color}">{name}</tspan>' for name, color in COLORS.items())
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {HEAD + len(shown) * (HEAD + HEIGHT)}">',
        f'<style>{STYLES}</style><rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="20" y="26">Samples of the target label, median and 10 to 90%: {names}</text>',
    ]
    for number, name in enumerate(shown):
        top = HEAD + number * (HEAD + HEIGHT)
        parts.append(f'<text class="title" x="20" y="{top + 26}">{TITLES[name]}</text>')
        for column, drawn in enumerate((warm_up_chart(runs[name]), rounds_chart(runs[name]))):
            box = f'x="{column * WIDTH}" y="{top + HEAD}" width="{WIDTH}" height="{HEIGHT}"'
            parts.append(f"<svg {box}>{drawn}</svg>")
    return "\n".join([*parts, "</svg>", ""])


def warm_up_chart(run: dict[str, Any]) -> str:
    """Losses while the second head learns the labels."""
    found, at = run["warm_up"], np.array(run["warm_up"]["steps"], dtype=float)
    bands = {name: np.array(found[name]) for name in COLORS}
    x = linear_axis("steps of the warm-up", 0, at[-1])
    y = linear_axis("loss, nats", 0, max(band.max() for band in bands.values()))
    return str(chart("losses of the warm-up", x, y, marks(at, bands)))


def rounds_chart(run: dict[str, Any]) -> str:
    """Margins after each round of confusion; where an attempt begins anew, the curves are broken."""
    rounds, at = [*run["losses"], None, *run["parts"]], np.arange(1.0, len(run["losses"]) + len(run["parts"]) + 2)
    gap = [np.nan] * len(QUANTILES)
    bands = {name: np.array([seen[name] if seen else gap for seen in rounds]) for name in COLORS}
    ticks = tuple((place, f"{seen['auroc']:.3f}") for place, seen in zip(at.tolist(), rounds, strict=True) if seen)
    x = Axis("AUROC after each round: first from losses, then from parts", 0.5, at[-1] + 0.5, ticks)
    least, most = (
        float(limit([limit(band[np.isfinite(band)]) for band in bands.values()])) for limit in (np.min, np.max)
    )
    y = linear_axis("log-odds of the given label", least, most)
    begins = len(run["losses"]) + 1.0
    return str(chart("margins by round", x, y, [*marks(at, bands), Rule(begins, "begins anew, from parts")]))


def marks(at: Any, bands: dict[str, Any]) -> list[Any]:
    """A band and its median for each group."""
    areas, lines = [], []
    for style, band in bands.items():
        lines.append(Line(at, band[:, 1], style))
        for part in np.split(np.arange(len(at)), np.flatnonzero(~np.isfinite(band[:, 0]))):
            kept = part[np.isfinite(band[part, 0])]
            areas.append(Area(at[kept], band[kept, 0], band[kept, -1], style))
    return [*areas, *lines]


def told(metrics: dict[str, Any]) -> str:
    """The deepest valley of all rounds."""
    return f"deepest {max(seen['depth'] for attempt in ROUNDS for seen in metrics[attempt]):.1f}"


if __name__ == "__main__":
    isolation.run(__doc__ or "", "curves", all_cells, measure, table, told=told)
