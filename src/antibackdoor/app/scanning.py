"""Is this data set poisoned? Any detector, from a data set to a run folder; no classifier is delivered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from antibackdoor.app.chapters import Chapters
from antibackdoor.app.methods import method_name, method_summary
from antibackdoor.app.networks import Factory, NetworkChoice, builder, check_resumed_network, describe_model
from antibackdoor.app.pipeline import describe, verdict_metrics, verdict_table
from antibackdoor.data.reading import DataSet
from antibackdoor.data.samples import Samples
from antibackdoor.defenses import Undefended
from antibackdoor.detectors import ConfusionTraining
from antibackdoor.errors import ConfigError
from antibackdoor.protocols import Build, Detection, Detector, Given, check_given
from antibackdoor.report import save_gallery, write_report
from antibackdoor.runs.artifacts import write_history, write_skipped
from antibackdoor.runs.run_folder import RunFolder
from antibackdoor.runs.samples_table import write_samples_table
from antibackdoor.training.history import LossHistory
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.session import seeded


@dataclass(frozen=True)
class Scan:
    """What to look for, and how.

    Attributes:
        detector: The detector with its hyper-parameters; `ConfusionTraining` by default.
        recipe: How to train what the detector needs.
        backbone: A key of `BACKBONES`; empty chooses by data and machine.
        model: The user's own network in place of a backbone.
    """

    detector: Detector = field(default_factory=ConfusionTraining)
    recipe: Recipe = field(default_factory=Recipe)
    backbone: str = ""
    model: str | Factory = ""

    @property
    def network(self) -> NetworkChoice:
        """Which network to use."""
        return NetworkChoice(self.backbone, self.model)


def scan(
    data: DataSet,
    job: Scan | None = None,
    out: str | Path = "scan",
    *,
    given: Given | None = None,
    resume: bool = False,
    command: Sequence[str] = (),
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any] | None:
    """Judge the training samples and write verdict, evidence and report.

    A detector that needs a trained model, or its losses, and is given none gets one that was trained on these data
    without a defense.

    Args:
        data: Only its training samples are looked at.
        job: Detector, network and recipe; the defaults if not given.
        out: The run folder; it gets everything that a training's has, except a model.
        given: What the detector may know beside the data: a trained `model`, `clean` samples.
        resume: Go on with the scan in `out`.
        command: The command line, for the report.
        tell: Is told how long it will take, before it begins.

    Returns:
        What stands in `metrics.json`; None if the scan was finished already.

    Raises:
        AntibackdoorError: If settings, data or folder do not fit.
    """
    job, out, given = job or Scan(), Path(out), given or Given()
    wanted = getattr(job, "detector", job)
    if not hasattr(wanted, "detect"):
        raise ConfigError(f"{type(wanted).__name__} is not a detector: give one of DETECTORS, as Scan(detector)")
    _check(job.detector, given)
    samples = data.train
    spec = describe_model(samples, job.network, job.recipe, method_name(job.detector), data.notes.get("image_size"))
    check_resumed_network(out, spec)
    build = builder(spec, job.network.factory)
    settings = describe(data, job.detector, job.recipe, spec, given)
    with RunFolder.create(out, settings, resume=resume, command=command) as run:
        if run.finished:
            write_report(out)
            return None
        run.tell = tell
        book = Chapters(run)
        whole = _with_model(samples, job, given, build, book)
        detection = job.detector.detect(samples, whole, job.recipe, journal=book.journal_of("detector"))
        detection = replace(detection, verdict=detection.verdict.ordered(samples.labels))
        metrics = {
            **verdict_metrics(samples, detection.verdict),
            **data.reading_metrics(),
            "method": spec.method,
            "method_summary": method_summary(job.detector),
            "backbone": spec.backbone,
            "seconds": round(run.seconds, 2),
            "seed": job.recipe.seed,
            **asdict(detection.facts),
        }
        _write(out, data, detection)
        run.finish(metrics)
    write_report(out)
    return metrics


def _needs_training(detector: Detector, given: Given) -> bool:
    """Whether a network must be trained without a defense, because the detector needs one and is given none."""
    return given.model is None and not {"model", "history"}.isdisjoint(detector.needs)


def _check(detector: Detector, given: Given) -> None:
    """Refuse what does not fit before anything is trained.

    Raises:
        ConfigError: If the detector cannot do with what it is given, or cannot use it.
    """
    if given.model is not None and given.history is None and "history" in detector.needs:
        raise ConfigError(
            f"{type(detector).__name__} needs the losses of the training, which a weights file does not hold: give "
            "the run folder of the training, or leave --checkpoint out to train here"
        )
    trained = Given(model=nn.Identity(), history=LossHistory.start(1, 2)) if _needs_training(detector, given) else given
    check_given(detector, _usable(detector, replace(given, model=trained.model, history=trained.history)))


def _usable(detector: Detector, given: Given) -> Given:
    """Without the losses, which come with a model whether a detector can use them or not."""
    return given if "history" in {*detector.needs, *detector.takes} else replace(given, history=None)


def _with_model(samples: Samples, job: Scan, given: Given, build: Build, book: Chapters) -> Given:
    """What the detector is given: also an undefended network's model and losses, where it needs these."""
    whole = replace(given, build=build, input_shape=samples.shape)
    if _needs_training(job.detector, given):
        model, history = _undefended(samples, job, build, book)
        known = {*job.detector.needs, *job.detector.takes}
        whole = replace(whole, model=model if "model" in known else None, history=history)
    return _usable(job.detector, whole)


def _undefended(samples: Samples, job: Scan, build: Build, book: Chapters) -> tuple[nn.Module, LossHistory]:
    """A network trained without a defense, as a chapter of its own."""
    kept = book.kept("undefended")
    if kept is None:
        trained = Undefended().train(samples, build, job.recipe, journal=book.journal_of("undefended"))
        book.keep("undefended", {"model": trained.model.state_dict(), "history": trained.history.state()})
        return trained.model, trained.history
    model = seeded(build, 0)
    model.load_state_dict(kept["model"])
    return model.eval(), LossHistory.from_state(kept["history"])


def _write(out: Path, data: DataSet, detection: Detection) -> None:
    """Everything of the run folder except `metrics.json` and the report."""
    samples, verdict = data.train, detection.verdict
    if detection.history is not None:
        write_history(out, detection.history)
    write_samples_table(out, verdict_table(samples, verdict))
    write_skipped(out, data.left_out)
    score = verdict.suspicion if verdict.margin is None else verdict.margin
    save_gallery(out, samples, np.lexsort((-score, ~verdict.isolated)), verdict.isolated)
