"""From a stranger's model to a purified one, in a run folder with a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from antibackdoor.app.given_models import Opened
from antibackdoor.app.measuring import accuracy_metrics
from antibackdoor.app.methods import hyper_parameters, method_name
from antibackdoor.app.pipeline import fingerprint
from antibackdoor.data.samples import Samples
from antibackdoor.errors import ConfigError
from antibackdoor.protocols import Given, Purified, Purifier
from antibackdoor.report import write_report
from antibackdoor.runs.model_file import save_model
from antibackdoor.runs.run_folder import RunFolder
from antibackdoor.training.loop import predict
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
        resume: Go on with the purification in `out`.
        command: The command line, for the report.

    Returns:
        What stands in `metrics.json`; None if the run was finished already.

    Raises:
        AntibackdoorError: If settings, data, model or folder do not fit.
    """
    recipe, out = recipe or Recipe(), Path(out)
    if recipe.devices > 1:
        raise ConfigError(f"a purification runs on one device; --devices {recipe.devices} is for train")
    name = method_name(purifier)
    spec = replace(opened.spec, method=name)
    with RunFolder.create(out, _settings(opened, purifier, recipe, given), resume=resume, command=command) as run:
        if run.finished:
            write_report(out)
            return None
        purified = purifier.purify(opened.model, replace(given, build=opened.build, input_shape=opened.spec.input_shape), recipe, journal=run)
        metrics = {
            "method": name,
            "backbone": spec.backbone,
            "purified_from": opened.spec.method,
            **opened.notes,
            "seconds": round(run.seconds, 2),
            "seed": recipe.seed,
            **asdict(purified.facts),
            **_accuracies(opened, purified, recipe, test),
        }
        save_model(out, purified.model, spec)
        run.finish(metrics)
    write_report(out)
    return metrics


def _settings(opened: Opened, purifier: Purifier, recipe: Recipe, given: Given) -> dict[str, Any]:
    """All that decides the outcome, in JSON's types."""
    settings = asdict(recipe)
    del settings["progress"]
    known = {"clean": given.clean, "suspicious": given.suspicious}
    return {
        "method": method_name(purifier),
        "hyper_parameters": hyper_parameters(purifier),
        "recipe": settings,
        "model": {"network": opened.spec.backbone, "input_shape": list(opened.spec.input_shape)},
        "given": {name: fingerprint(samples) for name, samples in known.items() if samples is not None},
    }


def _accuracies(opened: Opened, purified: Purified, recipe: Recipe, test: Samples | None) -> dict[str, Any]:
    """Accuracy on test samples before and after."""
    if test is None or not len(test):
        return {}
    session = Session(recipe, len(test), images=test.kind == "image")
    before = predict(session, session.prepare(opened.model), test).labels
    after = predict(session, session.prepare(purified.model), test).labels
    purified.model.cpu()
    return {
        "clean_accuracy_before": accuracy_metrics(before, test.labels)["clean_accuracy"],
        **accuracy_metrics(after, test.labels),
    }
