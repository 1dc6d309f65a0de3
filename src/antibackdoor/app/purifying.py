"""From a stranger's model to a purified one, in a run folder with a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from antibackdoor.app.attention_pictures import save_attention_of
from antibackdoor.app.by_class import measure_by_class
from antibackdoor.app.evaluation import ATTACKED, BEFORE, CLEAN, fingerprints
from antibackdoor.app.given_models import Opened
from antibackdoor.app.methods import hyper_parameters, method_name, method_summary
from antibackdoor.app.pipeline import describe_given, weights_digest
from antibackdoor.attacks import SavedTrigger, load_fitting_trigger, trigger_test_set
from antibackdoor.data.copies import uncounted
from antibackdoor.data.samples import DigestArray, Samples
from antibackdoor.errors import ConfigError
from antibackdoor.protocols import Given, Purified, Purifier
from antibackdoor.report import write_report
from antibackdoor.runs.artifacts import write_classes
from antibackdoor.runs.measurements import Measurement, keep_measurement
from antibackdoor.runs.model_file import save_model
from antibackdoor.runs.run_folder import RunFolder
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.session import Session


def purify(
    opened: Opened,
    purifier: Purifier,
    out: str | Path,
    *,
    given: Given,
    recipe: Recipe | None = None,
    test: Samples | None = None,
    measure_trigger: Path | None = None,
    resume: bool = False,
    command: Sequence[str] = (),
) -> dict[str, Any] | None:
    """Purify a model and write a run folder.

    Args:
        opened: The model (`app.given_models.open_model`).
        purifier: The method with its hyper-parameters.
        out: The run folder; it gets the purified model, so that `predict` and `evaluate` work on it.
        given: `clean` samples, or whatever else the method needs; `build` is filled in.
        recipe: How to train.
        test: Clean labelled samples to measure the accuracy before and after; they train nothing.
        measure_trigger: Folder of a saved trigger, to measure on `test` how often it works before and after. The
            method never sees it.
        resume: Go on with the purification in `out`.
        command: The command line, for the report.

    Returns:
        What stands in `metrics.json`; None if the run was finished already.

    Raises:
        AntibackdoorError: If settings, data, model, trigger or folder do not fit.
    """
    recipe, out = recipe or Recipe(), Path(out)
    if recipe.devices > 1:
        raise ConfigError(f"a purification runs on one device; --devices {recipe.devices} is for train")
    saved = _trigger_to_measure(measure_trigger, test)
    name = method_name(purifier)
    spec = replace(opened.spec, method=name)
    with RunFolder.create(out, _settings(opened, purifier, recipe, given), resume=resume, command=command) as run:
        if run.finished:
            write_report(out)
            return None
        whole = replace(given, build=opened.build, input_shape=opened.spec.input_shape)
        purified = purifier.purify(opened.model, whole, recipe, journal=run)
        metrics = {
            "method": name,
            "method_summary": method_summary(purifier),
            "backbone": spec.backbone,
            "purified_from": opened.spec.method,
            **opened.notes,
            "seconds": round(run.seconds, 2),
            "seed": recipe.seed,
            **asdict(purified.facts),
        }
        if test is not None and len(test):
            metrics |= fingerprints(test, measure_trigger, None)
            metrics |= _measured(out, opened, purified, given, recipe, test, saved, metrics)
        save_model(out, purified.model, spec)
        run.finish(metrics)
    write_report(out)
    return metrics


def _trigger_to_measure(folder: Path | None, test: Samples | None) -> SavedTrigger | None:
    """The trigger, once it is known to fit the test data: a mistake is told before the work, not after it."""
    if folder is None:
        return None
    if test is None or not len(test):
        raise ConfigError("a trigger is measured on test data: give --test beside --measure-trigger")
    return load_fitting_trigger(folder, test)


def _settings(opened: Opened, purifier: Purifier, recipe: Recipe, given: Given) -> dict[str, Any]:
    """All that decides the outcome, in JSON's types."""
    settings = asdict(recipe)
    del settings["progress"]
    return {
        "method": method_name(purifier),
        "hyper_parameters": hyper_parameters(purifier),
        "recipe": settings,
        "model": {
            "network": opened.spec.backbone,
            "input_shape": list(opened.spec.input_shape),
            "weights": weights_digest(opened.model),
        },
        "given": describe_given(given),
    }


def _measured(
    out: Path,
    opened: Opened,
    purified: Purified,
    given: Given,
    recipe: Recipe,
    test: Samples,
    saved: SavedTrigger | None,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """What test samples say of the model before and after: metrics, and `classes.csv` and `attention.npz`."""
    teacher = given.teacher if purified.teacher is None else purified.teacher
    save_attention_of(out, opened.model, teacher, purified.model, test, saved)
    session = Session(recipe, len(test), images=test.kind == "image")
    triggered = None if saved is None else trigger_test_set(test, saved.trigger, saved.plan)
    left_out = uncounted(test, _contents(given))
    before, old = measure_by_class(session, session.prepare(opened.model), test, saved, triggered, left_out)
    after, new = measure_by_class(session, session.prepare(purified.model), test, saved, triggered, left_out)
    opened.model.cpu()
    purified.model.cpu()
    write_classes(out, test.class_names, {**new, **_before(old)})
    names = [str(name) for name in test.class_names]
    keep_measurement(
        out, Measurement("test", about["test_fingerprint"], about.get("trigger_fingerprint"), after, names, new)
    )
    return {**_before(before), **after, "test_split": "test"}


def _contents(given: Given) -> DigestArray | None:
    """Hashes of all inputs that the method was given; None if it was given none."""
    there = [samples.contents for samples in (given.clean, given.suspicious) if samples is not None]
    return np.concatenate(there) if there else None


def _before(measured: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured of the given model, under names of its own."""
    return {f"{key}{BEFORE}": measured[key] for key in (*CLEAN, *ATTACKED) if key in measured}
