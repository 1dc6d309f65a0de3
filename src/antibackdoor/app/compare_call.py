"""`compare` as it is called from Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antibackdoor.app import comparing
from antibackdoor.app.call_parts import free_folder, samples_like, tell
from antibackdoor.app.comparing import Material, Study
from antibackdoor.app.given_data import as_data_set
from antibackdoor.app.networks import Factory
from antibackdoor.app.python_words import python_words
from antibackdoor.app.settings import applied
from antibackdoor.defenses import Undefended
from antibackdoor.errors import ConfigError
from antibackdoor.report import ComparedRun, text_table
from antibackdoor.training.recipe import Recipe


@dataclass(frozen=True, eq=False)
class Comparison:
    """What a comparison found; `print` shows it as a table.

    Attributes:
        runs: One for each method and seed, the undefended training first where it is needed.
        folder: Holds a run folder `METHOD-SEED` for each of them, `comparison.csv` and `report.html`.
    """

    runs: list[ComparedRun]
    folder: Path

    def __repr__(self) -> str:
        return f"Comparison({len(self.runs)} runs, {str(self.folder)!r})"

    def __str__(self) -> str:
        return text_table(self.runs)


@python_words()
def compare(
    data: Any,
    y: Any = None,
    out: str | Path | None = None,
    *,
    methods: str | Sequence[str],
    clean: Any = None,
    test_fraction: float | None = None,
    truth: str | Path | None = None,
    trigger: str | Path | None = None,
    seeds: int = 1,
    recipe: Recipe | str | None = None,
    backbone: str = "",
    model: str | Factory = "",
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    schedule: str | None = None,
    momentum: float | None = None,
    weight_decay: float | None = None,
    augment: str | None = None,
    precision: str | None = None,
    device: str | None = None,
    seed: int | None = None,
    progress: bool | None = None,
    resume: bool = False,
) -> Comparison:
    """Run several defenses, detectors and purifiers on the same data and compare them in one table.

    Each method uses its default hyper-parameters. Purifiers, and detectors that need a trained model, share one
    undefended model trained on the same data and seed.

    Args:
        data: As in `train`.
        y: The labels, where `data` are arrays.
        out: The folder for all runs; by default `comparison`, or `comparison-2`, ... where that exists.
        methods: Names of methods of any kind, in a list or with commas between them: `"none,dual-head,spectral,nad"`.
        clean: Samples that are known to be clean, for methods that need some, as in `scan`.
        test_fraction: As in `train`.
        truth: `truth.parquet` of the poisoned data, to measure the isolation. No method sees it.
        trigger: Folder of a saved trigger, to measure the attack success rate. No method sees it.
        seeds: Number of seeds per method; the first is `seed`.
        recipe: How to train, as in `train`; the settings below win over its fields.
        backbone: As in `train`; also `model` and the settings that follow.
        resume: Go on with the comparison in `out`; finished runs are kept.

    Returns:
        One entry per method and seed, with its metrics, or the reason why it could not work.

    Raises:
        AntibackdoorError: If settings, data or folder do not fit; the message names the argument.
    """
    settings = {
        "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "schedule": schedule,
        "momentum": momentum, "weight_decay": weight_decay, "augment": augment, "precision": precision,
        "device": device, "seed": seed, "progress": progress,
    }  # fmt: skip
    _, shared = applied(Undefended(), recipe, settings, "defense")
    study = Study(_names(methods), shared, seeds, backbone, model)
    whole = as_data_set(data, y, test_fraction=test_fraction)
    material = Material(
        whole,
        None if clean is None else samples_like(whole, clean, "clean"),
        None if truth is None else Path(truth),
        None if trigger is None else Path(trigger),
    )
    folder = free_folder(out, "comparison", resume=resume)
    runs = comparing.compare(study, material, folder, resume=resume, tell=tell if shared.progress else lambda _: None)
    return Comparison(runs, folder)


def _names(methods: Any) -> tuple[str, ...]:
    """The names of methods, with commas between them or in a list."""
    names = methods.split(",") if isinstance(methods, str) else methods
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"methods is of type {type(methods).__name__}; give names, such as ['none', 'dual-head']")
    return tuple(name.strip() for name in names if name.strip())
