"""`purify` on the command line: open a model, purify it, tell."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from antibackdoor.cli.commands import like, portable, resumable
from antibackdoor.cli.telling import print_facts
from antibackdoor.errors import ConfigError, spelled_out


def run_purify(
    checkpoint: Path,
    out: Path,
    purifier: Any,
    recipe: Any,
    *,
    clean: Path | None,
    suspicious: Path | None,
    test: Path | None,
    verdict: Path | None,
    teacher: Path | None,
    teacher_backbone: str,
    teacher_model: str,
    trigger: Path | None,
    measure_trigger: Path | None,
    backbone: str,
    model: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    classes: Path | None,
    image_size: int | None,
    on_error: Literal["raise", "skip"],
    cache: Path | None,
    reading: dict[str, Any],
    resume: bool,
    command: Sequence[str],
) -> None:
    """Open, purify, tell."""
    from antibackdoor.app.finished import finished_message
    from antibackdoor.app.given_models import (
        FileHints,
        class_names_in,
        open_model,
        open_teacher,
        refuse_near_chance,
        teacher_choice,
    )
    from antibackdoor.app.methods import check_purifier
    from antibackdoor.app.purifying import purify
    from antibackdoor.app.verdicts import verdict_of
    from antibackdoor.protocols import Given

    hints = FileHints(mean, std, class_names_in(classes), image_size)
    choice = _choice(checkpoint, backbone, model, hints)
    taught_by = teacher_choice(teacher, teacher_backbone, teacher_model)
    parts = {"clean": clean, "suspicious": suspicious, "trigger": trigger, "teacher": teacher, "verdict": verdict}
    check_purifier(purifier, [name for name, value in parts.items() if value is not None])
    path = clean or suspicious or test
    usual, bits = _as_recorded(checkpoint, reading)
    known = None if path is None else _given_samples(checkpoint, path, on_error, cache, reading, image_size)
    opened = open_model(checkpoint, choice, known, recipe, hints)
    if clean is not None and known is not None and checkpoint.is_dir():
        refuse_near_chance(checkpoint, opened.model, known)
    texts = {name: value for name, value in usual.items() if isinstance(value, str)}
    opened = replace(opened, spec=replace(opened.spec, read_options=texts))
    poisoned = None if suspicious is None else like(known, suspicious, "train", on_error, cache, usual, bits)
    judged = known if poisoned is None else poisoned
    if verdict is not None and judged is None:
        raise ConfigError(f"--verdict {verdict} needs its data: give them with --suspicious")
    given = Given(
        clean=None if clean is None else known,
        suspicious=poisoned,
        verdict=None if verdict is None or judged is None else verdict_of(verdict, judged),
        teacher=None if teacher is None else open_teacher(teacher, taught_by, opened, choice, known).model,
        trigger=None if trigger is None else _known_trigger(trigger, known),
    )
    tested = None if test is None else like(known, test, "test", on_error, cache, usual, bits)
    with resumable(out):
        facts = purify(
            opened, purifier, out, given=given, recipe=recipe, test=tested, measure_trigger=measure_trigger,
            resume=resume, command=portable(command),
        )  # fmt: skip
    if facts is None:
        print(spelled_out(finished_message(out, tested)))
    else:
        print_facts(facts)
    print(f"Report: {out / 'report.html'}")


def _as_recorded(checkpoint: Path, reading: dict[str, Any]) -> tuple[dict[str, Any], int | None]:
    """How all data are read: as the user says, else as those that the model was trained on were."""
    from antibackdoor.data.options import known_options
    from antibackdoor.runs.model_file import load_model_spec

    if not checkpoint.is_dir():
        return reading, None
    spec = load_model_spec(checkpoint)
    return {**known_options(spec.read_options).chosen(), **reading}, spec.significant_bits


def _given_samples(
    checkpoint: Path,
    path: Path,
    on_error: Literal["raise", "skip"],
    cache: Path | None,
    reading: dict[str, Any],
    image_size: int | None,
) -> Any:
    """Labelled samples in the shape and the classes of a run folder, or in their own."""
    from antibackdoor.app.read_as import as_trained
    from antibackdoor.data.reading import read, read_samples
    from antibackdoor.runs.model_file import load_model_spec

    if not checkpoint.is_dir():
        return read(
            path, test_fraction=0, image_size=image_size, on_error=on_error, cache=cache, progress=True, **reading
        ).train
    spec = load_model_spec(checkpoint)
    return read_samples(
        path, class_names=list(spec.class_names), shape=spec.input_shape, split="train", on_error=on_error, cache=cache,
        progress=True, **reading, **as_trained(spec, accept_unlike=True),
    )  # fmt: skip


def _choice(checkpoint: Path, backbone: str, model: str, hints: Any) -> Any:
    """What is said of the model's network, once that is known to fit the file or folder."""
    from antibackdoor.app.given_models import check_words
    from antibackdoor.app.networks import NetworkChoice

    if not checkpoint.exists():
        raise ConfigError(f"there is no {checkpoint}; give a run folder or a weights file")
    choice = NetworkChoice(backbone, model)
    check_words(checkpoint, choice, hints)
    return choice


def _known_trigger(folder: Path, samples: Any) -> Any:
    """The trigger of a folder, once it is known to fit the samples."""
    from antibackdoor.attacks import load_fitting_trigger, load_trigger

    return (load_trigger(folder) if samples is None else load_fitting_trigger(folder, samples)).trigger
