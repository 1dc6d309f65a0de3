"""The papers' tables, measured here: paper, ours, difference, grade; or "not run" and what it would cost.

    python benchmarks/papers.py --list                       what there is, and about how long it takes
    python benchmarks/papers.py --table nad-1                one table and its page; goes on where it was stopped
    python benchmarks/papers.py --table nad-1 --rows BadNets,SIG --scale paper
    python benchmarks/papers.py --pages                      writes docs/results/ and the cards

All methods of a row see the same poisoned bytes, and purifiers and detectors the same attack model, which is kept in
the cache between calls. The last epoch counts, never the best by test data. A row counts only if the attack works
without a defense.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import folders
import numpy as np
import safetensors.torch
from paper_cells import SCALES, TABLES, Cell, Scale, cells, core_hours, listing
from paper_pages import brief, page, with_measured
from paper_tables import Method, Row
from relapse import attack_success_after_five
from torch import nn

from antibackdoor.app.measuring import top_percent
from antibackdoor.app.methods import TABLES as METHOD_TABLES
from antibackdoor.app.networks import NetworkChoice, builder, describe_model
from antibackdoor.attacks import ATTACKS, Poisoned, poison
from antibackdoor.benchmark import (
    Matrix,
    Measured,
    choose,
    data_hash,
    measure_cells,
    measure_model,
    measure_partition,
    measure_verdict,
    read_lines,
)
from antibackdoor.benchmark.runner import unlike
from antibackdoor.data.cache import cache_folder
from antibackdoor.data.reading import read
from antibackdoor.data.samples import Samples
from antibackdoor.data.streams import Stream, stream
from antibackdoor.defenses import DEFENSES, Undefended
from antibackdoor.errors import AntibackdoorError
from antibackdoor.protocols import Build, Given
from antibackdoor.purifiers import PURIFIERS
from antibackdoor.runs.atomic import replacing
from antibackdoor.statistics import metrics
from antibackdoor.training.history import LossHistory
from antibackdoor.training.recipe import PRESETS, Recipe
from antibackdoor.training.session import Session, seeded

RESULTS = folders.RESULTS / "papers.jsonl"
PAGES = folders.REPOSITORY / "docs" / "results"
CARDS = folders.REPOSITORY / "docs" / "methods"
CLEAN_SHARE = 0.05  # of the whole training set, at each scale, that purifiers get (all four papers)


@dataclass(frozen=True, eq=False)
class Prepared:
    """The data of a row, and its attack model."""

    train: Samples
    test: Samples
    clean: Samples
    poisoned: Poisoned | None
    recipe: Recipe
    build: Build
    network: NetworkChoice


def prepare(cell: Cell, folder: Path) -> Prepared:
    """Read, draw the clean samples, poison."""
    table, row, column, scale = cell.parts()
    data = read(folder / (row.data or table.data), seed=cell.seed)
    assert data.test is not None
    original = data.train
    order = stream(cell.seed, Stream.CARD, 1).permutation(len(original))
    clean = original.take(np.sort(order[: max(round(CLEAN_SHARE * len(original)), 2 * original.n_classes)]))
    if scale.limit and len(original) > scale.limit:
        original = original.take(np.linspace(0, len(original) - 1, scale.limit).astype(np.int64))
    poisoned = None
    if row.attack:
        attack = ATTACKS[row.attack](**dict(row.settings))
        plan = replace(attack.plan(), **dict(row.plan))
        poisoned = poison(original, attack, seed=cell.seed, plan=plan, rate=row.rate)
    train = original if poisoned is None or column.never_poisoned else poisoned.samples
    recipe = replace(PRESETS[table.preset], epochs=scale.epochs, seed=cell.seed, progress=False, **dict(row.recipe))
    if column.key == "none":
        recipe = replace(recipe, **dict(column.settings))
    choice = NetworkChoice(table.backbone)
    build = builder(describe_model(train, choice, recipe, "none"))
    return Prepared(train, data.test, clean, poisoned, recipe, build, choice)


def attack_model(ready: Prepared, cell: Cell) -> tuple[nn.Module, LossHistory, float]:
    """The network that was trained without a defense, its losses, and its core-seconds; kept in the cache."""
    recipe = hashlib.blake2b(repr(ready.recipe).encode(), digest_size=8).hexdigest()
    key = f"{data_hash(ready.train)}-{TABLES[cell.table].backbone}-{recipe}"
    path = cache_folder(None) / "papers" / f"{key}.safetensors"
    if not path.exists():
        started = time.process_time()
        trained = Undefended().train(ready.train, ready.build, ready.recipe)
        path.parent.mkdir(parents=True, exist_ok=True)
        history = {"losses": np.ascontiguousarray(trained.history.losses), "steps": trained.history.steps}
        with replacing(path) as temporary:
            tensors = {f"model.{name}": value.contiguous() for name, value in trained.model.state_dict().items()}
            tensors |= {f"history.{name}": _tensor(value) for name, value in history.items()}
            tensors["seconds"] = _tensor(np.array(time.process_time() - started))
            safetensors.torch.save_file(tensors, temporary)
    kept = safetensors.torch.load_file(path)
    model = seeded(ready.build, 0)
    model.load_state_dict({name.removeprefix("model."): v for name, v in kept.items() if name.startswith("model.")})
    history = LossHistory(kept["history.losses"].numpy(), kept["history.steps"].numpy())
    return model.eval(), history, float(kept["seconds"])


def _tensor(values: Any) -> Any:
    import torch

    return torch.from_numpy(np.asarray(values))


def made(method: Method, row: Row, scale: Scale) -> Any:
    """The method with its settings, the lengths of the scale, and the row's augmentation in place of its default."""
    kind = next(table[method.key] for table in METHOD_TABLES if method.key in table)
    of_row = {"augment": row.augment} if row.augment and getattr(kind, "augment", "none") in (None, "") else {}
    return kind(**{**scale.method_epochs.get(method.key, {}), **of_row, **dict(method.settings)})


def measure(cell: Cell, folder: Path) -> Measured:
    """Train or purify or detect, and measure."""
    table, row, column, scale = cell.parts()
    ready = prepare(cell, folder)
    truth = None if ready.poisoned is None else ready.poisoned.truth
    model, history, seconds_of_attack = attack_model(ready, cell)
    started = time.process_time()
    told: dict[str, Any] = {}
    if column.key == "none":
        delivered: nn.Module | None = model
    elif column.key in DEFENSES:
        trained = made(column, row, scale).train(ready.train, ready.build, ready.recipe)
        delivered = trained.model
        told = {**measure_verdict(trained.verdict, truth), "facts": asdict(trained.facts)}
        if trained.midway is not None and truth is not None:
            told["midway"] = measure_partition(trained.midway, truth.is_poisoned, truth.true_labels, truth.also_true)
    elif column.key in PURIFIERS:
        purifier = made(column, row, scale)
        given = _given(purifier, ready, teacher=_teacher(column.teacher, ready))
        purified = purifier.purify(model, given, ready.recipe)
        delivered, told = purified.model, {"facts": asdict(purified.facts)}
    else:
        detector = made(column, row, scale)
        given = _given(detector, ready, model, history)
        detection = detector.detect(ready.train, given, ready.recipe)
        delivered, told = None, {**measure_verdict(detection.verdict, truth), "facts": asdict(detection.facts)}
        if truth is not None:
            top = top_percent(detection.verdict.suspicion)
            told["precision_of_top"] = metrics.isolation_precision(top, truth.is_poisoned)
    seconds = seconds_of_attack if column.key == "none" else time.process_time() - started
    measured = {**told, "seconds": round(seconds, 1), "n_train": len(ready.train)}
    if delivered is not None:
        session = Session(ready.recipe, len(ready.test), images=ready.test.kind == "image")
        known = ready.poisoned
        trigger, plan = (None, None) if known is None else (known.trigger, known.plan)
        measured |= measure_model(session, session.prepare(delivered), ready.test, trigger=trigger, plan=plan)
        if table.relapse and known is not None:
            measured["attack_success_after_five"] = attack_success_after_five(
                delivered, ready.clean, ready.test, known, ready.build, ready.recipe
            )
    return Measured(measured, data_hash(ready.train))


def _given(
    method: Any,
    ready: Prepared,
    model: nn.Module | None = None,
    history: LossHistory | None = None,
    teacher: nn.Module | None = None,
) -> Given:
    """What the method needs or can use, of what there is; no truth. Only `trigger-retrain` needs the trigger."""
    there: dict[str, Any] = {
        "clean": ready.clean,
        "suspicious": ready.train,
        "model": model,
        "history": history,
        "teacher": teacher,
        "trigger": None if ready.poisoned is None else ready.poisoned.trigger,
    }
    wanted = {name: value for name, value in there.items() if name in (*method.needs, *method.takes)}
    return Given(build=ready.build, input_shape=ready.train.shape, **wanted)


def _teacher(backbone: str, ready: Prepared) -> nn.Module | None:
    """A network that is trained on the clean samples alone, with crops and flips; None without a name."""
    if not backbone:
        return None
    recipe = replace(ready.recipe, augment="crop,flip")
    build = builder(describe_model(ready.clean, NetworkChoice(backbone), recipe, "none"))
    return Undefended().train(ready.clean, build, recipe).model


def _is_control(cell: dict[str, Any]) -> bool:
    """Whether a cell was trained on data that nobody poisoned, unlike the others of its row."""
    table = TABLES.get(cell["table"])
    return table is not None and any(m.never_poisoned for m in table.methods if m.name == cell["method"])


def main() -> None:
    """Parse and do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="what there is, and what it costs")
    parser.add_argument("--pages", action="store_true", help="write all pages of docs/results/, and the cards")
    parser.add_argument("--table", default="", help=f"some of {','.join(TABLES)}")
    parser.add_argument("--rows", default="", help="only these rows, joined by commas")
    parser.add_argument("--cells", default="*", help="only these cells, such as 'nad-1/BadNets/*'")
    parser.add_argument("--scale", choices=list(SCALES), default="small")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--data", type=Path, default=folders.data())
    options = parser.parse_args()
    if options.list:
        print(listing())
        return
    names = options.table.split(",") if options.table else []
    unknown = [name for name in names if name not in TABLES]
    if unknown:
        sys.exit(f"there is no table {unknown[0]!r}: choose among {', '.join(TABLES)}")
    try:
        every = cells(names, options.rows, options.scale, options.seeds)
        chosen = choose(every, options.cells) if every else []
    except AntibackdoorError as error:
        sys.exit(str(error))
    if chosen:
        print(f"about {sum(map(core_hours, chosen)):.1f} core-hours, {os.cpu_count()} cores", file=sys.stderr)
        matrix = Matrix(
            every,
            measure,
            lambda lines: "",
            brief,
            lambda cell: cell.parts()[1].data or cell.parts()[0].data,
            ("method",),
        )
        failed = measure_cells(matrix, chosen, options.out, options.data)
        if failed:
            print(f"{len(failed)} cells failed; run the same command again for them alone", file=sys.stderr)
    lines = read_lines(options.out)
    compared = [line for line in lines if not _is_control(line["cell"])]
    for name in unlike(compared, ("method",)):
        print(f"{name}: not the same training data as under the other methods; measure them again", file=sys.stderr)
    PAGES.mkdir(parents=True, exist_ok=True)
    for name in TABLES if options.pages else names:
        text = page(name, [line for line in lines if line["cell"]["table"] == name])
        (PAGES / f"{name}.md").write_text(text, encoding="utf-8")
        if not options.pages:
            print(text)
    if options.pages:
        for path in sorted(CARDS.glob("*.md")):
            path.write_text(with_measured(path.read_text(encoding="utf-8"), path.stem, lines), encoding="utf-8")


if __name__ == "__main__":
    main()
