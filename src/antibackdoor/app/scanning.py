"""Is this data set poisoned? The search of E2ABL alone, and what it could have seen; no classifier is delivered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from antibackdoor.app.pipeline import Job, builder, describe, describe_model
from antibackdoor.data.reading import DataSet
from antibackdoor.data.samples import InputArray, Samples
from antibackdoor.defenses import DualHead
from antibackdoor.errors import ConfigError
from antibackdoor.protocols import Build
from antibackdoor.report import save_gallery, write_report
from antibackdoor.runs.artifacts import SamplesTable, write_history, write_samples_table, write_skipped
from antibackdoor.runs.atomic import TEMPORARY_PREFIX
from antibackdoor.runs.run_folder import RunFolder
from antibackdoor.search.caught import Caught
from antibackdoor.search.evidence import evidence, judge, suspicion
from antibackdoor.search.planting import plant, smallest_visible_rate
from antibackdoor.training.history import LossHistory


def scan(
    data: DataSet,
    job: Job | None = None,
    out: str | Path = "scan",
    *,
    power: bool = True,
    resume: bool = False,
    command: Sequence[str] = (),
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any] | None:
    """Search the training samples for a backdoor and write verdict, evidence and report.

    Args:
        data: Only its training samples are looked at.
        job: Network, recipe and an `E2ABL`; the defaults if not given.
        out: The run folder; it gets everything that a training's has, except a model.
        power: Also plant known triggers in a copy of the data and search again, to measure what the scan could have
            seen; it takes as long again, or longer.
        resume: Go on with the scan in `out`.
        command: The command line, for the report.
        tell: Is told how long it will take, before it begins.

    Returns:
        What stands in `metrics.json`; None if the scan was finished already.

    Raises:
        ConfigError: If the job's defense is not E2ABL, or the recipe wants several devices.
        AntibackdoorError: If settings, data or folder do not fit.
    """
    job, out = job or Job(), Path(out)
    method, samples = job.defense, data.train
    if not isinstance(method, DualHead):
        raise ConfigError(f"a scan is the search of E2ABL; {type(method).__name__} has none")
    if job.recipe.devices > 1:
        raise ConfigError(f"a scan runs on one device; --devices {job.recipe.devices} is for train")
    spec = describe_model(samples, job, data.notes.get("image_size"))
    build = builder(spec, None if isinstance(job.model, str) else job.model)
    settings = {**describe(data, job, spec), "defense": "scan", "power": power}
    with RunFolder.create(out, settings, resume=resume, command=command) as run:
        if run.finished:
            write_report(out)
            return None
        if not run.load():
            seconds = method.search_seconds(samples, build, job.recipe) * (1 + power)
            tell(f"at most about {_about(seconds)} on this machine")
        caught, history = method.isolate(samples, build, job.recipe, journal=run)
        metrics: dict[str, Any] = {**_facts(samples, caught), **judge(caught), "backbone": spec.backbone}
        if power:
            metrics["smallest_visible_rate"] = _visible(method, samples, caught, build, job, out)
        metrics |= {"seconds": round(run.seconds, 2), "seed": job.recipe.seed}
        _write(out, data, caught, history)
        run.finish(metrics)
    write_report(out)
    return metrics


def _facts(samples: Samples, caught: Caught) -> dict[str, Any]:
    names = [str(samples.class_names[label]) for label in caught.labels]
    return {
        "poisoned": bool(caught.isolated.any()),
        "target_labels": names,
        "n_samples": len(samples),
        "n_copies": samples.n_copies,
        "n_isolated": int(caught.isolated.sum()),
        "found_by": "; ".join(caught.ways),
        "defense": "scan",
    }


def _visible(method: DualHead, samples: Samples, caught: Caught, build: Build, job: Job, out: Path) -> float | None:
    """The smallest planted rate that the same search finds in what it did not isolate."""
    usable = ~caught.isolated
    with _room(samples, int(usable.sum()), out) as room:
        planted = plant(samples, usable, seed=job.recipe.seed, out=room)
        if not planted.rates:
            return None
        found, _ = method.isolate(planted.samples, build, replace(job.recipe, seed=(job.recipe.seed + 1) % 2**32))
        return smallest_visible_rate(planted, found.isolated)


@contextmanager
def _room(samples: Samples, n: int, out: Path) -> Iterator[InputArray | None]:
    """A file for the copy of data that are themselves in a file, removed in the end; None for data in memory."""
    if not isinstance(samples.inputs, np.memmap):
        yield None
        return
    path = out / f"{TEMPORARY_PREFIX}planted.npy"
    try:
        yield np.lib.format.open_memmap(path, "w+", samples.inputs.dtype, (n, *samples.shape))
    finally:
        with suppress(OSError):  # what is left is removed when the folder is next opened
            path.unlink(missing_ok=True)


def _write(out: Path, data: DataSet, caught: Caught, history: LossHistory) -> None:
    """Everything of the run folder except `metrics.json` and the report."""
    samples = data.train
    table = SamplesTable(
        ids=samples.ids,
        given_label=samples.labels,
        suspicion=suspicion(caught, samples.labels),
        margin=caught.margins,
        isolated=caught.isolated,
        recovered=np.zeros(len(samples), dtype=bool),
        suggested_label=samples.labels,
        evidence=evidence(caught),
        class_names=samples.class_names,
    )
    write_history(out, history)
    write_samples_table(out, table)
    write_skipped(out, [(skipped.id, skipped.reason) for skipped in data.skipped])
    save_gallery(out, samples, np.lexsort((-caught.margins, ~caught.isolated)), caught.isolated)


def _about(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds > 100 else f"{max(seconds, 1):.0f} seconds"
