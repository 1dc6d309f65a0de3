"""The command line: flags and their help, and how a mistake ends."""

# Annotations are not postponed here: those of the commands name types that are chosen at run time.
import io
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import cyclopts
from cyclopts import App, Parameter

from antibackdoor.cli.commands import (
    attacks,
    demo,
    doctor,
    evaluate,
    is_helper_process,
    predict,
    print_facts,
    refuse_inside,
    report,
    run_scan,
    run_train,
    stop,
)
from antibackdoor.errors import AntibackdoorError, ConfigError, spelled_out

USER_ERROR = 2

Flat = Parameter(name="*")


@dataclass(frozen=True)
class Nothing:
    """The hyper-parameters of a method that has none."""


@dataclass(frozen=True)
class NoSecondHead:
    """The hyper-parameters of plain training.

    Attributes:
        attach: Not used; it is there so that the same flags work with and without a defense.
    """

    attach: str = ""


def build_app(arguments: Sequence[str]) -> App:
    """The commands; `train` and `poison` show the hyper-parameters of the method that the arguments name."""
    # Only the command that is called needs its settings, and torch, which they import, is slow to load.
    recipe_type: Any = Nothing
    defense_type: Any = Nothing
    attack_type: Any = Nothing
    if arguments[:1] == ["scan"]:
        from antibackdoor.defenses import DualHead
        from antibackdoor.training.recipe import Recipe

        recipe_type, defense_type = Recipe, DualHead
    if arguments[:1] == ["train"]:
        from antibackdoor.defenses import DEFENSES
        from antibackdoor.training.recipe import Recipe

        recipe_type, defense_type = Recipe, _chosen(arguments, "--defense", DEFENSES, "dual-head")
    if arguments[:1] == ["poison"]:
        from antibackdoor.attacks import ATTACKS

        attack_type = _chosen(arguments, "--attack", ATTACKS, "badnets")
    # A method without hyper-parameters has nothing to parse.
    defense_fields: Any = defense_type if fields(defense_type) else NoSecondHead
    app = App(
        name="antibackdoor",
        help="Train a clean classifier on data that may be poisoned, and learn which samples to distrust.",
        version=version("antibackdoor"),
        version_flags=["--version"],
    )

    @app.command
    def train(
        data: Path,
        *,
        out: Path,
        test: Path | None = None,
        test_fraction: float = 0.2,
        defense: str = "dual-head",
        backbone: str = "",
        model: str = "",
        image_size: int | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        cache: Path | None = None,
        resume: bool = False,
        recipe: Annotated[recipe_type, Flat] = recipe_type(),
        hyper: Annotated[defense_fields, Flat] = defense_fields(),
    ) -> None:
        """Train a clean model on DATA and write model, verdicts and report.

        Parameters
        ----------
        data
            Folder or zip of class folders, .npz, .ts, .csv or .tsv.
        out
            The run folder to write.
        test
            Other data to measure the accuracy on.
        test_fraction
            Share of each class that is held out if there is no test split, in [0, 1).
        defense
            dual-head, e2abl, or none.
        backbone
            The network; chosen by data and machine if not given (`antibackdoor doctor` lists all).
        model
            Your own network, as package.module:factory.
        image_size
            Side in pixels to which images are resized.
        on_error
            Whether an unreadable sample stops the run, or is skipped and listed in the run folder.
        cache
            Where decoded images are kept.
        resume
            Go on with a run that was stopped.
        """
        method = defense_type() if isinstance(hyper, NoSecondHead) else hyper
        run_train(
            data, out, method, recipe, test=test, test_fraction=test_fraction, backbone=backbone, model=model,
            image_size=image_size, on_error=on_error, cache=cache, resume=resume, command=arguments,
        )  # fmt: skip

    @app.command
    def scan(
        data: Path,
        *,
        out: Path,
        power: bool = True,
        backbone: str = "",
        model: str = "",
        image_size: int | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        cache: Path | None = None,
        resume: bool = False,
        recipe: Annotated[recipe_type, Flat] = recipe_type(),
        hyper: Annotated[defense_fields, Flat] = defense_fields(),
    ) -> None:
        """Say whether DATA is poisoned, which samples are, and what could have been seen; no model is delivered.

        Parameters
        ----------
        data
            Folder or zip of class folders, .npz, .ts, .csv or .tsv; its training split is looked at.
        out
            The run folder to write.
        power
            Also measure, with planted triggers, the smallest poisoning rate that would have been found.
        backbone
            The network; chosen by data and machine if not given (`antibackdoor doctor` lists all).
        model
            Your own network, as package.module:factory.
        image_size
            Side in pixels to which images are resized.
        on_error
            Whether an unreadable sample stops the scan, or is skipped and listed in the run folder.
        cache
            Where decoded images are kept.
        resume
            Go on with a scan that was stopped.
        """
        run_scan(
            data, out, hyper, recipe, power=power, backbone=backbone, model=model, image_size=image_size,
            on_error=on_error, cache=cache, resume=resume, command=arguments,
        )  # fmt: skip

    @app.command
    def poison(
        data: Path,
        *,
        out: Path,
        attack: str = "badnets",
        rate: float | None = None,
        target_label: str | None = None,
        source_label: str | None = None,
        cover_rate: float | None = None,
        test_fraction: float = 0.2,
        seed: int = 0,
        on_error: Literal["raise", "skip"] = "raise",
        cache: Path | None = None,
        hyper: Annotated[attack_type, Flat] = attack_type(),
    ) -> None:
        """Write a poisoned copy of DATA in the same format, with truth.parquet and the trigger beside it.

        Parameters
        ----------
        data
            Folder or zip of class folders, .npz, .ts, .csv or .tsv.
        out
            A new folder.
        attack
            The attack; `antibackdoor attacks` lists all.
        rate
            Share of the training samples to poison, in [0, 1].
        target_label
            Class (name or number) that the trigger shall lead to.
        source_label
            Class that is attacked, for attacks on one class.
        cover_rate
            Share of samples that carry the trigger under their own label.
        test_fraction
            Part of each class that becomes the copy's clean test split, if the data have none.
        seed
            Chooses samples and trigger.
        on_error
            Whether an unreadable sample stops the command, or is left out of the copy.
        cache
            Where decoded images are kept.
        """
        from antibackdoor.app.red_team import Aim, poison_data_set
        from antibackdoor.data.reading import read

        refuse_inside(out, data)
        loaded = read(data, test_fraction=test_fraction, on_error=on_error, cache=cache, seed=seed, progress=True)
        aim = Aim(rate, target_label, source_label, cover_rate)
        print_facts(poison_data_set(loaded, hyper, aim, out, seed=seed))

    for command in (demo, evaluate, predict, report, attacks, doctor):
        app.command(command)
    return app


def _chosen(arguments: Sequence[str], flag: str, table: dict[str, Any], default: str) -> Any:
    """The method that `--flag NAME` or `--flag=NAME` names."""
    name = default
    for place, argument in enumerate(arguments):
        if argument == flag and place + 1 < len(arguments):
            name = arguments[place + 1]
        elif argument.startswith(flag + "="):
            name = argument.split("=", 1)[1]
    if name not in table:
        raise ConfigError(f"{flag} {name} is unknown: choose one of {', '.join(table)}")
    return table[name]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; the user's mistakes end in one line and exit code 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    warnings.filterwarnings("ignore", message=".*even kernel lengths.*")
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not be text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app = build_app(arguments)
        app(arguments, exit_on_error=False, print_error=False)
    except AntibackdoorError as error:
        fail(str(error))
    except cyclopts.CycloptsError as error:
        fail(" ".join(str(error).split()))
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.filename is None:  # no file of the user's
            raise
        fail(f"{error.filename!s}: {error.strerror}; check the path and its permissions, or give another")
    except KeyboardInterrupt:
        stop("Stopped.")


def fail(message: str) -> NoReturn:
    """Say what is wrong in one line on standard error and exit with 2."""
    if is_helper_process():  # the first process meets the same mistake, says so, and must not be killed before it has
        sys.exit(0)
    print(f"antibackdoor: {spelled_out(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(USER_ERROR)
