"""The same data through several defenses, detectors and purifiers: one run folder each, one table for all."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from antibackdoor.app.evaluation import evaluate, fingerprints, is_evaluated
from antibackdoor.app.given_models import Opened, open_model, own_factory
from antibackdoor.app.methods import look_up
from antibackdoor.app.networks import Factory, NetworkChoice
from antibackdoor.app.pipeline import Job, train
from antibackdoor.app.purifying import purify
from antibackdoor.app.scanning import Scan, scan
from antibackdoor.data.csv_cells import write_rows
from antibackdoor.data.reading import DataSet
from antibackdoor.data.samples import Samples
from antibackdoor.defenses import DEFENSES
from antibackdoor.detectors import DETECTORS
from antibackdoor.errors import ConfigError, DataError, ModelError, RunError
from antibackdoor.protocols import ALWAYS_THERE, Given
from antibackdoor.purifiers import PURIFIERS
from antibackdoor.report import COLUMNS, ComparedRun, write_methods_page
from antibackdoor.runs.artifacts import read_metrics
from antibackdoor.runs.atomic import entries, replacing
from antibackdoor.runs.model_file import MODEL
from antibackdoor.runs.samples_table import SAMPLES
from antibackdoor.training.recipe import Recipe

TABLES: dict[str, dict[str, Any]] = {"defense": DEFENSES, "detector": DETECTORS, "purifier": PURIFIERS}
COMMANDS = {"defense": "train", "detector": "scan", "purifier": "purify"}
UNDEFENDED = "none"
MOST_SEEDS = 1000
TABLE, PAGE = "comparison.csv", "report.html"
OF_ISOLATED = ("isolation_recall", "false_positive_rate")
GIVEN = ("model", "history", "clean", "suspicious")  # what a comparison can give to a method


@dataclass(frozen=True)
class Study:
    """What to compare.

    Attributes:
        methods: Names of defenses, detectors and purifiers, each with its default hyper-parameters.
        recipe: How to train; its seed is the first one.
        n_seeds: How many seeds, one after the other.
        backbone: A key of `BACKBONES`; empty chooses by data and machine.
        model: A network of one's own in place of a backbone.
    """

    methods: tuple[str, ...]
    recipe: Recipe = field(default_factory=Recipe)
    n_seeds: int = 1
    backbone: str = ""
    model: str | Factory = ""

    def __post_init__(self) -> None:
        if not self.methods:
            raise ConfigError("there is nothing to compare: name methods, such as dual-head,abl,nad")
        doubled = sorted({name for name in self.methods if self.methods.count(name) > 1})
        if doubled:
            raise ConfigError(f"--methods names {', '.join(doubled)} more than once: name each method once")
        for name in self.methods:
            class_of(name)
        if not 1 <= self.n_seeds <= MOST_SEEDS:
            raise ConfigError(f"seeds is {self.n_seeds}; give a number from 1 to {MOST_SEEDS}")
        if self.recipe.devices > 1:
            raise ConfigError("a comparison runs on one device: leave --devices out")

    @property
    def seeds(self) -> range:
        """The seeds of the runs."""
        return range(self.recipe.seed, self.recipe.seed + self.n_seeds)


@dataclass(frozen=True, eq=False)
class Material:
    """What the methods are given, and what they are measured by.

    Attributes:
        data: The data, perhaps poisoned, and test samples.
        clean: Samples that are known to be clean, for methods that need some.
        truth: `truth.parquet` of the data, to measure verdicts; no method sees it.
        trigger: Folder of the trigger, to measure attack success; no method sees it.
    """

    data: DataSet
    clean: Samples | None = None
    truth: Path | None = None
    trigger: Path | None = None


def kind_of(name: str) -> str:
    """Whether a name is that of a `defense`, a `detector` or a `purifier`."""
    return next(kind for kind, table in TABLES.items() if name in table)


def class_of(name: str) -> Any:
    """The class of a method, of any kind.

    Raises:
        ConfigError: If there is none of this name.
    """
    return look_up(name, {name: kind for table in TABLES.values() for name, kind in table.items()}, "--methods")


def compare(
    study: Study,
    material: Material,
    out: str | Path,
    *,
    resume: bool = False,
    command: Sequence[str] = (),
    tell: Callable[[str], None] = lambda _: None,
) -> list[ComparedRun]:
    """Run every method with every seed, measure the runs, and write one table.

    Detectors that need a trained model and all purifiers work on the undefended training of the same seed, which is
    trained once (`none-SEED`). A method that cannot work on these data becomes a line with its reason.

    Args:
        study: Methods, recipe, seeds, network.
        material: Data, and what is known of them.
        out: A new folder: a run folder `METHOD-SEED` for each run, `comparison.csv`, `report.html`.
        resume: Go on with a comparison in `out`; finished runs are kept.
        command: The command line, for the reports.
        tell: Is told which run begins.

    Returns:
        One entry for each method and seed, the undefended training first.

    Raises:
        ConfigError: If clean samples are missing, or not a single method can work.
        RunError: If the folder holds something else, or runs with other settings.
        DataError: If truth or trigger cannot be read.
    """
    out = Path(out)
    _refuse_incomplete(study, material)
    _refuse_folder(out, resume)
    out.mkdir(parents=True, exist_ok=True)
    names = _in_order(study)
    order = [(name, seed) for name in names for seed in study.seeds]
    runs: dict[tuple[str, int], ComparedRun] = {}
    for place, (name, seed) in enumerate(order):
        tell(f"{name}, seed {seed} ({place + 1} of {len(order)})")
        runs[name, seed] = _run(study, material, name, seed, out, command)
    found = [runs[key] for key in order]
    if all(run.reason for run in found):
        raise ConfigError(f"no method can run on these data: {found[0].method}: {found[0].reason}")
    _write_table(out / TABLE, found)
    write_methods_page(out / PAGE, out.resolve().name, found, _about(study, material), " ".join(command))
    return found


def _refuse_incomplete(study: Study, material: Material) -> None:
    lacking = [name for name in study.methods if "clean" in class_of(name).needs]
    if lacking and material.clean is None:
        verb = "needs" if len(lacking) == 1 else "need"
        raise ConfigError(f"{', '.join(lacking)} {verb} clean samples: give --clean, or leave the method out")
    if material.trigger is not None and not material.data.test:
        raise ConfigError("a trigger is measured on test samples: give --test, or a --test-fraction")
    fingerprints(None, material.trigger, material.truth)  # a mistake here is told before the work


def _refuse_folder(out: Path, resume: bool) -> None:
    """Only what a comparison writes may be there, and only to go on."""
    there = entries(out)
    known = "|".join(re.escape(name) for table in TABLES.values() for name in table)
    if any(name not in (TABLE, PAGE) and not re.fullmatch(rf"({known})-\d+", name) for name in there):
        raise RunError(f"{out} holds files that are not from a comparison; choose an empty or a new folder")
    if there and not resume:
        raise RunError(f"{out} holds a comparison; continue with --resume, or choose another folder")


def _in_order(study: Study) -> list[str]:
    """The methods in the order of the table: the undefended training first where it is asked for, or others need it."""
    rest = [name for name in study.methods if name != UNDEFENDED]
    needed = UNDEFENDED in study.methods or any(_needs_model(name) for name in rest)
    return [UNDEFENDED, *rest] if needed else rest


def _needs_model(name: str) -> bool:
    return kind_of(name) == "purifier" or bool({"model", "history"} & {*class_of(name).needs})


def _run(study: Study, material: Material, name: str, seed: int, out: Path, command: Sequence[str]) -> ComparedRun:
    """One method with one seed, trained and measured, or the reason why it cannot be."""
    folder = out / f"{name}-{seed}"
    about = ComparedRun(name, kind_of(name), seed, {})
    try:
        _work(study, material, name, replace(study.recipe, seed=seed), folder, command)
        _measure(study, material, folder)
        return replace(about, metrics=_told(read_metrics(folder)))
    except (ConfigError, DataError, ModelError) as error:
        return replace(about, reason=" ".join(str(error).split()))


def _told(metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics without shares of isolated samples where a method only ranks: it isolates nobody by design."""
    ranks = metrics.get("poisoned") is None and not metrics.get("n_isolated")
    return {key: value for key, value in metrics.items() if not (ranks and key in OF_ISOLATED)}


def _work(study: Study, material: Material, name: str, recipe: Recipe, folder: Path, command: Sequence[str]) -> None:
    kind, method = kind_of(name), class_of(name)()
    missing = [part for part in method.needs if part not in (*ALWAYS_THERE, *GIVEN)]
    if missing:
        raise ConfigError(f"needs {' and '.join(missing)}, which a comparison does not give: use {COMMANDS[kind]}")
    if kind == "defense":
        job = Job(method, recipe, study.backbone, study.model)
        train(material.data, job, folder, given=_given(method, material, None), resume=True, command=command)
        return
    opened = _undefended(study, material, recipe, folder.parent) if _needs_model(name) else None
    given = _given(method, material, opened)
    if kind == "detector":
        scan(
            material.data, Scan(method, recipe, study.backbone, study.model), folder, given=given, resume=True,
            command=command,
        )  # fmt: skip
    else:
        assert opened is not None
        given = replace(given, model=None, history=None)
        purify(
            opened, method, folder, given=given, recipe=recipe, test=material.data.test,
            measure_trigger=material.trigger, resume=True, command=command,
        )  # fmt: skip


def _undefended(study: Study, material: Material, recipe: Recipe, out: Path) -> Opened:
    folder = out / f"{UNDEFENDED}-{recipe.seed}"
    if not (folder / MODEL).exists():
        raise ModelError("needs the undefended model, which could not be trained")
    return open_model(folder, NetworkChoice(model=study.model), material.data.train, recipe)


def _given(method: Any, material: Material, opened: Opened | None) -> Given:
    """What a method can use of what there is."""
    usable = {*method.needs, *method.takes}
    there = Given(
        model=None if opened is None else opened.model,
        history=None if opened is None else opened.history,
        clean=material.clean,
        suspicious=material.data.train,
    )
    unusable = {part.name for part in fields(Given)} - usable
    return replace(there, **dict.fromkeys(unusable))


def _measure(study: Study, material: Material, folder: Path) -> None:
    """Evaluate a run on the test samples and by the truth, unless that was done before."""
    has_model, has_verdict = (folder / MODEL).exists(), (folder / SAMPLES).exists()
    test = material.data.test if has_model and material.data.test else None
    trigger = material.trigger if test is not None else None
    truth = material.truth if has_verdict else None
    if (test is None and truth is None) or is_evaluated(folder, test, trigger, truth):
        return
    factory = own_factory(NetworkChoice(model=study.model))
    evaluate(folder, test, truth=truth, trigger=trigger, device=study.recipe.device, factory=factory)


def _write_table(path: Path, runs: Sequence[ComparedRun]) -> None:
    keys = [key for column in COLUMNS for key in _keys(column.key, column.interval)]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        rows = [[run.method, run.kind, run.seed, *map(run.metrics.get, keys), run.reason] for run in runs]
        write_rows(file, [["method", "kind", "seed", *keys, "reason"], *rows])


def _keys(key: str, interval: bool) -> tuple[str, ...]:
    return (key, f"{key}_low", f"{key}_high") if interval else (key,)


def _about(study: Study, material: Material) -> list[tuple[str, str]]:
    """What all runs share."""
    train_set, test = material.data.train, material.data.test
    recipe = [(part.name, getattr(study.recipe, part.name)) for part in fields(Recipe) if part.name != "progress"]
    return [
        ("training samples", f"{len(train_set):,} of {train_set.n_classes} classes"),
        ("test samples", "none" if test is None else f"{len(test):,}"),
        ("clean samples", "none" if material.clean is None else f"{len(material.clean):,}"),
        ("seeds", ", ".join(map(str, study.seeds))),
        *((name.replace("_", " "), str(value)) for name, value in recipe if name not in ("seed", "devices")),
    ]
