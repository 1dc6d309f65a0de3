"""The command line: commands, their flags and help, and how a mistake ends."""

# Annotations are not postponed here: those of the commands name types that are chosen at run time.
import io
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Group, Parameter

from antibackdoor.cli.cache import show_cache
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
from antibackdoor.cli.compare import add_compare, shared_recipe
from antibackdoor.cli.config import with_config
from antibackdoor.cli.explain import explain
from antibackdoor.cli.export import export
from antibackdoor.cli.failures import failing_in_words, warning_in_sentences
from antibackdoor.cli.flags import (
    DATA,
    METHOD,
    OUTPUT,
    READING,
    TRAINING,
    made,
    parsed,
    read_options,
    recipe_without,
    refuse_unused,
    settings_type,
)
from antibackdoor.cli.gate import GATE, Gate
from antibackdoor.cli.purify import run_purify
from antibackdoor.cli.review import review
from antibackdoor.cli.telling import print_facts, tell_reading

Flat = Parameter(name="*")
InData, InTraining = Parameter(group=DATA), Parameter(group=TRAINING)
InMethod, InOutput = Parameter(group=METHOD), Parameter(group=OUTPUT)
OnError = Annotated[Literal["raise", "skip"], InData]

_NOTHING = parsed("Nothing", [])


class _Chosen:
    """The method that the arguments name, and the flags that follow from it; empty for other commands."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.kind: Any = None
        self.recipe: Any = _NOTHING
        self.method: Any = _NOTHING
        command = arguments[0] if arguments else ""
        if command == "poison":
            from antibackdoor.app.methods import look_up
            from antibackdoor.attacks import ATTACKS

            name = _named(arguments, "--attack", "badnets")
            self.kind = look_up(name, ATTACKS, "--attack")
            self.method = settings_type(self.kind, METHOD)
        elif command in ("train", "scan", "purify"):
            self._of_a_method(command, arguments)
        elif command == "compare":
            self.recipe = shared_recipe()

    def _of_a_method(self, command: str, arguments: Sequence[str]) -> None:
        # Only the command that is called needs its settings, and torch, which they import, is slow to load.
        from antibackdoor.app.methods import look_up
        from antibackdoor.defenses import DEFENSES
        from antibackdoor.detectors import DETECTORS
        from antibackdoor.purifiers import PURIFIERS
        from antibackdoor.training.recipe import Recipe

        of_command: dict[str, tuple[str, dict[str, Any], str]] = {
            "train": ("--defense", DEFENSES, "dual-head"),
            "scan": ("--detector", DETECTORS, "confusion"),
            "purify": ("--method", PURIFIERS, "fine-tune"),
        }
        flag, table, default = of_command[command]
        name = _named(arguments, flag, default)
        self.kind = look_up(name, table, flag)
        refuse_unused(list(arguments), self.kind, f"{flag} {name}")
        self.method = settings_type(self.kind, METHOD)
        self.recipe = settings_type(Recipe, TRAINING, without=recipe_without(self.kind))

    def uses(self, *names: str, group: Group = METHOD) -> Parameter:
        """A flag for something that a method may be given: shown only if this one can use it."""
        usable = {*getattr(self.kind, "needs", ()), *getattr(self.kind, "takes", ())}
        return Parameter(group=group, show=bool(usable & {*names}))

    def made(self, settings: Any) -> Any:
        """The method with the values of its flags."""
        return made(self.kind, settings)

    @staticmethod
    def recipe_of(settings: Any) -> Any:
        """The recipe with the values of its flags."""
        from antibackdoor.training.recipe import Recipe

        return made(Recipe, settings)


def _named(arguments: Sequence[str], flag: str, default: str) -> str:
    """The name that `--flag NAME` or `--flag=NAME` gives."""
    name = default
    for place, argument in enumerate(arguments):
        if argument == flag and place + 1 < len(arguments):
            name = arguments[place + 1]
        elif argument.startswith(flag + "="):
            name = argument.split("=", 1)[1]
    return name


def build_app(arguments: Sequence[str]) -> App:
    """The commands; those that run a method show the flags of the one that the arguments name."""
    chosen = _Chosen(arguments)
    app = App(
        name="antibackdoor",
        help="Train a clean classifier on data that may be poisoned, and learn which samples to distrust.",
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


def _add_train(app: App, chosen: _Chosen, arguments: Sequence[str]) -> None:
    recipe_type: Any = chosen.recipe
    method_type: Any = chosen.method

    @app.command
    def train(
        data: Annotated[Path, InData],
        *,
        out: Annotated[Path, InOutput],
        test: Annotated[Path | None, InData] = None,
        test_fraction: Annotated[float, InData] = 0.2,
        image_size: Annotated[int | None, InData] = None,
        on_error: OnError = "raise",
        cache: Annotated[Path | None, InData] = None,
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
        """Train a clean model on DATA and write model, verdicts and report.

        Parameters
        ----------
        data
            Folder or zip with a folder for each class, or a .npz, .ts, .csv or .tsv file.
        out
            The run folder to write.
        test
            Other data to measure the accuracy on.
        test_fraction
            Share of each class to hold out if there is no test split, in [0, 1).
        image_size
            Resize images to squares of this side, in pixels.
        on_error
            What to do about a sample that cannot be read: stop, or skip it and list it in the run folder.
        cache
            Where to keep decoded images.
        backbone
            The network; `antibackdoor doctor` lists all. Chosen by data and machine if not given.
        model
            A network of your own, as package.module:factory. Its code is run.
        defense
            How to train: dual-head, e2abl, none and others; each shows its own flags with --help.
        verdict
            A scan of the same data: train on what it kept, without a second search.
        decisions
            decisions.csv of a review of the same data: what you accepted is trained on, what you rejected never under
            its label, and for the rest the verdict of the reviewed run holds, without a second search.
        config
            TOML file with options of this command; flags given here win. Every run writes its own as run.toml.
        resume
            Go on with a run that was stopped.
        """
        run_train(
            data, out, chosen.made(hyper), chosen.recipe_of(recipe), test=test, test_fraction=test_fraction,
            backbone=backbone, model=model, image_size=image_size, on_error=on_error, cache=cache,
            reading=read_options(reading), verdict=verdict,
            decisions=decisions, resume=resume, command=arguments,
        )  # fmt: skip


def _add_scan(app: App, chosen: _Chosen, arguments: Sequence[str]) -> None:
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
        """Say whether DATA is poisoned, and which samples are suspicious. No model is delivered.

        Parameters
        ----------
        data
            Folder or zip with a folder for each class, or a .npz, .ts, .csv or .tsv file. The training split is used.
        out
            The run folder to write.
        clean
            Samples of the same classes that are known to be clean, for detectors that need some.
        image_size
            Resize images to squares of this side, in pixels.
        on_error
            What to do about a sample that cannot be read: stop, or skip it and list it in the run folder.
        cache
            Where to keep decoded images.
        backbone
            The network; `antibackdoor doctor` lists all. Chosen by data and machine if not given.
        model
            A network of your own, as package.module:factory. Its code is run.
        detector
            How to look: confusion (the default), spectral, loss-drop and others; each shows its own flags with --help.
        checkpoint
            A model that was trained on DATA: a run folder, or a file of weights (say with --backbone or --model of
            what network). Detectors that need one train it without a defense if it is not given.
        config
            TOML file with options of this command; flags given here win. Every run writes its own as run.toml.
        resume
            Go on with a scan that was stopped.
        """
        run_scan(
            data, out, chosen.made(hyper), chosen.recipe_of(recipe), clean=clean, checkpoint=checkpoint,
            backbone=backbone, model=model, image_size=image_size, on_error=on_error, cache=cache,
            reading=read_options(reading), gate=made(Gate, gate), resume=resume, command=arguments,
        )  # fmt: skip


def _add_purify(app: App, chosen: _Chosen, arguments: Sequence[str]) -> None:
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
        trigger: Annotated[Path | None, chosen.uses("trigger")] = None,
        measure_trigger: Annotated[Path | None, InData] = None,
        on_error: OnError = "raise",
        cache: Annotated[Path | None, InData] = None,
        backbone: Annotated[str, InTraining] = "",
        model: Annotated[str, InTraining] = "",
        mean: Annotated[tuple[float, ...], InData] = (),
        std: Annotated[tuple[float, ...], InData] = (),
        classes: Annotated[Path | None, InData] = None,
        method: Annotated[str, InMethod] = "fine-tune",
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
            The model: a run folder, or a .safetensors, .pt, .pth or .tar file of weights.
        out
            The run folder to write.
        clean
            Samples that are known to be clean; their training split is used.
        suspicious
            The data that the model was trained on, for methods that use them.
        test
            Clean data to measure the accuracy on, before and after. Nothing is trained on them.
        verdict
            A scan of the suspicious data: which of them are poisoned.
        teacher
            Another model, a run folder, for methods that distill.
        trigger
            Folder of a known trigger, for methods that unlearn it.
        measure_trigger
            Folder of a known trigger (as `poison` writes it), to measure on the test data how often it works before
            and after. The method never sees it.
        on_error
            What to do about a sample that cannot be read: stop, or skip it.
        cache
            Where to keep decoded images.
        backbone
            The network that a bare file holds; `antibackdoor doctor` lists all.
        model
            A network of your own, as package.module:factory. Its code is run.
        mean
            Mean of each channel that a bare file's model expects, images in [0, 1]. Found on the data if not given.
        std
            Standard deviation of each channel, likewise.
        classes
            Text file with one class a line, in the order of a bare file's outputs. Matched on the data if not given.
        method
            How to purify: fine-tune, fine-prune, nad, mcr and others; each shows its own flags with --help.
        config
            TOML file with options of this command; flags given here win. Every run writes its own as run.toml.
        resume
            Go on with a run that was stopped.
        """
        run_purify(
            checkpoint, out, chosen.made(hyper), chosen.recipe_of(recipe), clean=clean, suspicious=suspicious,
            test=test, verdict=verdict, teacher=teacher, trigger=trigger, measure_trigger=measure_trigger,
            backbone=backbone, model=model, mean=mean, std=std, classes=classes, on_error=on_error, cache=cache,
            reading=read_options(reading), resume=resume, command=arguments,
        )  # fmt: skip


def _add_poison(app: App, chosen: _Chosen) -> None:
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
        """Write a poisoned copy of DATA in the same format, with truth.parquet and the trigger beside it.

        Parameters
        ----------
        data
            Folder or zip with a folder for each class, or a .npz, .ts, .csv or .tsv file.
        out
            A new folder.
        test_fraction
            Share of each class that becomes the copy's clean test split if the data have none.
        on_error
            What to do about a sample that cannot be read: stop, or leave it out of the copy.
        cache
            Where to keep decoded images.
        attack
            The attack; `antibackdoor attacks` lists all.
        rate
            Share of the training samples to poison, in [0, 1].
        target_label
            Class (name or number) that the trigger is to lead to.
        source_label
            Class to attack, for attacks on one class.
        cover_rate
            Share of samples that carry the trigger under their own label.
        seed
            Chooses samples and trigger.
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
        arguments = with_config(arguments)
        app = build_app(arguments)
        app(arguments, exit_on_error=False, print_error=False)
