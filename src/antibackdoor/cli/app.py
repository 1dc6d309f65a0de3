"""The command line: commands, their flags and help, and how a mistake ends."""

# Annotations are not postponed here: those of the commands name types that are chosen at run time.
import io
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from antibackdoor.cli.cache import show_cache
from antibackdoor.cli.chosen import Chosen
from antibackdoor.cli.commands import (
    attacks,
    demo,
    doctor,
    evaluate,
    predict,
    refuse_inside,
    report,
    run_scan,
    run_train,
)
from antibackdoor.cli.compare import add_compare
from antibackdoor.cli.config import with_config
from antibackdoor.cli.explain import explain
from antibackdoor.cli.export import export
from antibackdoor.cli.failures import failing_in_words, warning_in_sentences
from antibackdoor.cli.flags import DATA, METHOD, OUTPUT, READING, TRAINING, made, read_options
from antibackdoor.cli.gate import GATE, Gate
from antibackdoor.cli.lists import with_lists
from antibackdoor.cli.purify import run_purify
from antibackdoor.cli.review import review
from antibackdoor.cli.telling import print_facts, tell_reading

Flat = Parameter(name="*")
InData, InTraining = Parameter(group=DATA), Parameter(group=TRAINING)
InMethod, InOutput = Parameter(group=METHOD), Parameter(group=OUTPUT)
RecipeName = Annotated[str, Parameter(name="--recipe", group=TRAINING)]
OnError = Annotated[Literal["raise", "skip"], InData]


def build_app(arguments: Sequence[str]) -> App:
    """The commands; those that run a method show the flags of the one that the arguments name."""
    chosen = Chosen(arguments)
    app = App(
        name="antibackdoor",
        help="Train a clean classifier on data that may be poisoned, and find the suspicious samples.",
        version=version("antibackdoor"),
        version_flags=["--version"],
        suppress_keyboard_interrupt=False,  # its status would tell nothing of SIGTERM, and no advice be given
    )
    _add_train(app, chosen, arguments)
    _add_scan(app, chosen, arguments)
    _add_purify(app, chosen, arguments)
    add_compare(app, chosen.recipe, arguments)
    _add_poison(app, chosen)
    for command in (demo, evaluate, predict, report, review, export, explain, attacks, doctor):
        app.command(command)
    app.command(show_cache, name="cache")
    return app


def _add_train(app: App, chosen: Chosen, arguments: Sequence[str]) -> None:
    recipe_type: Any = chosen.recipe
    method_type: Any = chosen.method

    @app.command
    def train(
        data: Annotated[Path, InData],
        *,
        out: Annotated[Path, InOutput],
        test: Annotated[Path | None, InData] = None,
        clean: Annotated[Path | None, chosen.uses("clean", group=DATA)] = None,
        test_fraction: Annotated[float, InData] = 0.2,
        image_size: Annotated[int | None, InData] = None,
        on_error: OnError = "raise",
        cache: Annotated[Path | None, InData] = None,
        recipe_name: RecipeName = "practical",
        backbone: Annotated[str, InTraining] = "",
        model: Annotated[str, InTraining] = "",
        defense: Annotated[str, InMethod] = "dual-head",
        verdict: Annotated[Path | None, chosen.uses("verdict")] = None,
        decisions: Annotated[Path | None, chosen.uses("decisions")] = None,
        config: Annotated[Path | None, InOutput] = None,
        resume: Annotated[bool, InOutput] = False,
        reading: Annotated[READING, Flat] = READING(),
        recipe: Annotated[recipe_type, Flat] = recipe_type(),
        hyper: Annotated[method_type, Flat] = method_type(),
    ) -> None:
        """Train a clean model on DATA; write the model, verdicts and a report.

        Parameters
        ----------
        data
            Folder or zip file with one subfolder per class, or a .npz, .ts, .csv or .tsv file.
        out
            The run folder to write.
        test
            Separate test data for measuring accuracy.
        clean
            Known clean samples of the same classes, for `retrain` with a detector that needs them.
        test_fraction
            Share of each class to hold out if there is no test split, in [0, 1).
        image_size
            Resize images to squares with this side length, in pixels.
        on_error
            If a sample cannot be read: stop, or skip it and list it in the run folder.
        cache
            Where to keep decoded images.
        recipe_name
            Training recipe: practical (the default), nad, abl or e2abl, as in these papers; other flags override it.
        backbone
            The network architecture; `antibackdoor doctor` lists all. By default, chosen from the data and the machine.
        model
            Your own network, as package.module:factory. Its code is executed.
        defense
            Training method: dual-head, e2abl, none and others; add --help to see its flags.
        verdict
            Run folder of a scan of the same data: train on the samples it kept, without a second search.
        decisions
            decisions.csv from a review of the same data: accepted samples are used, rejected ones never under their
            label, and for the rest the reviewed run's verdict holds. There is no second search.
        config
            TOML file with options for this command; command-line flags override it. Every run saves its options as
            run.toml.
        resume
            Continue a stopped run.
        """
        run_train(
            data, out, chosen.made(hyper), chosen.recipe_of(recipe), test=test, clean=clean,
            test_fraction=test_fraction, backbone=backbone, model=model, image_size=image_size, on_error=on_error,
            cache=cache, reading=read_options(reading), verdict=verdict, decisions=decisions, resume=resume,
            command=arguments,
        )  # fmt: skip


def _add_scan(app: App, chosen: Chosen, arguments: Sequence[str]) -> None:
    recipe_type: Any = chosen.recipe
    method_type: Any = chosen.method

    @app.command
    def scan(
        data: Annotated[Path, InData],
        *,
        out: Annotated[Path, InOutput],
        clean: Annotated[Path | None, chosen.uses("clean", group=DATA)] = None,
        image_size: Annotated[int | None, InData] = None,
        on_error: OnError = "raise",
        cache: Annotated[Path | None, InData] = None,
        recipe_name: RecipeName = "practical",
        backbone: Annotated[str, InTraining] = "",
        model: Annotated[str, InTraining] = "",
        detector: Annotated[str, InMethod] = "confusion",
        checkpoint: Annotated[Path | None, chosen.uses("model", "history")] = None,
        config: Annotated[Path | None, InOutput] = None,
        resume: Annotated[bool, InOutput] = False,
        reading: Annotated[READING, Flat] = READING(),
        gate: Annotated[GATE, Flat] = GATE(),
        recipe: Annotated[recipe_type, Flat] = recipe_type(),
        hyper: Annotated[method_type, Flat] = method_type(),
    ) -> None:
        """Check whether DATA is poisoned and which samples are suspicious. Delivers no model.

        Parameters
        ----------
        data
            Folder or zip file with one subfolder per class, or a .npz, .ts, .csv or .tsv file. The training split is
            used.
        out
            The run folder to write.
        clean
            Known clean samples of the same classes, for detectors that need them.
        image_size
            Resize images to squares with this side length, in pixels.
        on_error
            If a sample cannot be read: stop, or skip it and list it in the run folder.
        cache
            Where to keep decoded images.
        recipe_name
            Training recipe: practical (the default), nad, abl or e2abl, as in these papers; other flags override it.
        backbone
            The network architecture; `antibackdoor doctor` lists all. By default, chosen from the data and the machine.
        model
            Your own network, as package.module:factory. Its code is executed.
        detector
            Detector: confusion (the default), spectral, loss-drop and others; add --help to see its flags.
        checkpoint
            A model trained on DATA: a run folder, or a weights file (name its network with --backbone or --model). If
            not given, detectors that need a model train an undefended one.
        config
            TOML file with options for this command; command-line flags override it. Every run saves its options as
            run.toml.
        resume
            Continue a stopped scan.
        """
        run_scan(
            data, out, chosen.made(hyper), chosen.recipe_of(recipe), clean=clean, checkpoint=checkpoint,
            backbone=backbone, model=model, image_size=image_size, on_error=on_error, cache=cache,
            reading=read_options(reading), gate=made(Gate, gate), resume=resume, command=arguments,
        )  # fmt: skip


def _add_purify(app: App, chosen: Chosen, arguments: Sequence[str]) -> None:
    recipe_type: Any = chosen.recipe
    method_type: Any = chosen.method

    @app.command
    def purify(
        checkpoint: Annotated[Path, InData],
        *,
        out: Annotated[Path, InOutput],
        clean: Annotated[Path | None, InData] = None,
        suspicious: Annotated[Path | None, chosen.uses("suspicious", group=DATA)] = None,
        test: Annotated[Path | None, InData] = None,
        verdict: Annotated[Path | None, chosen.uses("verdict", "isolated")] = None,
        teacher: Annotated[Path | None, chosen.uses("teacher")] = None,
        teacher_backbone: Annotated[str, chosen.uses("teacher")] = "",
        teacher_model: Annotated[str, chosen.uses("teacher")] = "",
        trigger: Annotated[Path | None, chosen.uses("trigger")] = None,
        measure_trigger: Annotated[Path | None, InData] = None,
        on_error: OnError = "raise",
        cache: Annotated[Path | None, InData] = None,
        recipe_name: RecipeName = "practical",
        backbone: Annotated[str, InTraining] = "",
        model: Annotated[str, InTraining] = "",
        mean: Annotated[tuple[float, ...], InData] = (),
        std: Annotated[tuple[float, ...], InData] = (),
        classes: Annotated[Path | None, InData] = None,
        image_size: Annotated[int | None, InData] = None,
        method: Annotated[str, InMethod] = chosen.name if "purify" in arguments[:1] else "fine-tune",
        config: Annotated[Path | None, InOutput] = None,
        resume: Annotated[bool, InOutput] = False,
        reading: Annotated[READING, Flat] = READING(),
        recipe: Annotated[recipe_type, Flat] = recipe_type(),
        hyper: Annotated[method_type, Flat] = method_type(),
    ) -> None:
        """Remove a backdoor from a trained model.

        Parameters
        ----------
        checkpoint
            The model: a run folder, or a .safetensors, .pt, .pth or .tar weights file.
        out
            The run folder to write.
        clean
            Known clean samples; their training split is used.
        suspicious
            The model's training data, for methods that use them.
        test
            Clean data for measuring accuracy before and after. They are not used for training.
        verdict
            Run folder of a scan of the suspicious data, which says which samples are poisoned.
        teacher
            A teacher model, for methods that distill: a run folder or a weights file.
        teacher_backbone
            Architecture of a teacher that is a bare weights file; by default that of the model.
        teacher_model
            The teacher's network if it is your own, as package.module:factory. Its code is executed.
        trigger
            Folder with a known trigger, for methods that unlearn it.
        measure_trigger
            Folder with a known trigger (as written by `poison`), to measure its success on the test data before and
            after. The method never sees it.
        on_error
            If a sample cannot be read: stop, or skip it.
        cache
            Where to keep decoded images.
        recipe_name
            Training recipe: practical (the default), nad, abl or e2abl, as in these papers; other flags override it.
        backbone
            Architecture of a bare weights file; `antibackdoor doctor` lists all.
        model
            Your own network, as package.module:factory. Its code is executed.
        mean
            Per-channel mean with which a bare file's model was normalized (images in [0, 1]), such as 0.49,0.48,0.45.
            Inferred from the data if not given.
        std
            Per-channel standard deviation, likewise.
        classes
            Text file with one class per line, in the order of a bare file's outputs. Matched on the data if not given.
        image_size
            Side length of the images that a bare file's model takes, in pixels. Needed only without data; with data,
            these are resized to it.
        method
            Purifier: fine-tune, fine-prune, nad, mcr and others; add --help to see its flags. With --suspicious and
            without --clean, the default is self-clean.
        config
            TOML file with options for this command; command-line flags override it. Every run saves its options as
            run.toml.
        resume
            Continue a stopped run.
        """
        run_purify(
            checkpoint, out, chosen.made(hyper), chosen.recipe_of(recipe), clean=clean, suspicious=suspicious,
            test=test, verdict=verdict, teacher=teacher, teacher_backbone=teacher_backbone,
            teacher_model=teacher_model, trigger=trigger, measure_trigger=measure_trigger, backbone=backbone,
            model=model, mean=mean, std=std, classes=classes, image_size=image_size, on_error=on_error, cache=cache,
            reading=read_options(reading), resume=resume, command=arguments,
        )  # fmt: skip


def _add_poison(app: App, chosen: Chosen) -> None:
    method_type: Any = chosen.method

    @app.command
    def poison(
        data: Annotated[Path, InData],
        *,
        out: Annotated[Path, InOutput],
        test_fraction: Annotated[float, InData] = 0.2,
        on_error: OnError = "raise",
        cache: Annotated[Path | None, InData] = None,
        attack: Annotated[str, InMethod] = "badnets",
        rate: Annotated[float | None, InMethod] = None,
        target_label: Annotated[str | None, InMethod] = None,
        source_label: Annotated[str | None, InMethod] = None,
        cover_rate: Annotated[float | None, InMethod] = None,
        seed: Annotated[int, InMethod] = 0,
        reading: Annotated[READING, Flat] = READING(),
        hyper: Annotated[method_type, Flat] = method_type(),
    ) -> None:
        """Write a poisoned copy of DATA in the same format, plus truth.parquet and the trigger.

        Parameters
        ----------
        data
            Folder or zip file with one subfolder per class, or a .npz, .ts, .csv or .tsv file.
        out
            A new folder.
        test_fraction
            Share of each class to use as the copy's clean test split if the data have none.
        on_error
            If a sample cannot be read: stop, or leave it out of the copy.
        cache
            Where to keep decoded images.
        attack
            The attack; `antibackdoor attacks` lists all.
        rate
            Share of the training samples to poison, in [0, 1].
        target_label
            Class (name or number) that the trigger should produce.
        source_label
            Source class, for attacks on a single class.
        cover_rate
            Share of samples that carry the trigger but keep their own label.
        seed
            Random seed for the choice of samples and trigger.
        """
        from antibackdoor.app.red_team import Aim, poison_data_set
        from antibackdoor.data.reading import read

        refuse_inside(out, data)
        loaded = read(
            data, test_fraction=test_fraction, on_error=on_error, cache=cache, seed=seed, progress=True,
            **read_options(reading),
        )  # fmt: skip
        tell_reading(loaded)
        aim = Aim(rate, target_label, source_label, cover_rate)
        print_facts(poison_data_set(loaded, chosen.made(hyper), aim, out, seed=seed))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; the user's mistakes end in one line and exit code 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not be text
        sys.stdout.reconfigure(errors="backslashreplace")
    with warning_in_sentences(), failing_in_words():
        arguments = with_lists(with_config(arguments))
        app = build_app(arguments)
        app(arguments, exit_on_error=False, print_error=False)
