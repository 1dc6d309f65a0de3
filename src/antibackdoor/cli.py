"""The command line: parse, call, print."""

# Annotations are not postponed here: those of the commands name types that are chosen at run time.
import csv
import os
import platform
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import cyclopts
from cyclopts import App, Parameter

from antibackdoor.errors import AntibackdoorError, ConfigError

INTERRUPTED = 130
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
        from antibackdoor.defenses import E2ABL
        from antibackdoor.recipe import Recipe

        recipe_type, defense_type = Recipe, E2ABL
    if arguments[:1] == ["train"]:
        from antibackdoor.defenses import DEFENSES
        from antibackdoor.recipe import Recipe

        recipe_type, defense_type = Recipe, _chosen(arguments, "--defense", DEFENSES, "e2abl")
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
        defense: str = "e2abl",
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
            e2abl, e2abl-published, or none.
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
        seed: int = 0,
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
        seed
            Chooses samples and trigger.
        cache
            Where decoded images are kept.
        """
        from antibackdoor.readers import read
        from antibackdoor.red_team import Aim, poison_data_set

        loaded = read(data, test_fraction=0, cache=cache, seed=seed, progress=True)
        aim = Aim(rate, target_label, source_label, cover_rate)
        print_facts(poison_data_set(loaded, hyper, aim, out, seed=seed))

    for command in (demo, evaluate, predict, report, attacks, doctor):
        app.command(command)
    return app


def run_train(
    data: Path,
    out: Path,
    defense: Any,
    recipe: Any,
    *,
    test: Path | None,
    test_fraction: float,
    backbone: str,
    model: str,
    image_size: int | None,
    on_error: Literal["raise", "skip"],
    cache: Path | None,
    resume: bool,
    command: Sequence[str],
) -> None:
    """Read, train, tell."""
    from antibackdoor.pipeline import Job, is_helper, train
    from antibackdoor.readers import read

    loaded = read(
        data, test=test, test_fraction=test_fraction, image_size=image_size, on_error=on_error, cache=cache,
        seed=recipe.seed, progress=recipe.progress and not is_helper(),
    )  # fmt: skip
    job = Job(defense, recipe, backbone, model)
    try:
        outcome = train(loaded, job, out, resume=resume, command=["antibackdoor", *map(_portable, command)])
    except KeyboardInterrupt:
        stop(f"Stopped. Give the same command with --resume to go on with {out}.")
    if outcome is not None:
        print_facts(outcome.metrics)
    if not is_helper():
        print(f"Report: {out / 'report.html'}")


def run_scan(
    data: Path,
    out: Path,
    defense: Any,
    recipe: Any,
    *,
    power: bool,
    backbone: str,
    model: str,
    image_size: int | None,
    on_error: Literal["raise", "skip"],
    cache: Path | None,
    resume: bool,
    command: Sequence[str],
) -> None:
    """Read, search, tell."""
    from antibackdoor.pipeline import Job
    from antibackdoor.readers import read
    from antibackdoor.scanning import scan

    loaded = read(
        data, test_fraction=0, image_size=image_size, on_error=on_error, cache=cache, seed=recipe.seed,
        progress=recipe.progress,
    )  # fmt: skip
    job = Job(defense, recipe, backbone, model)
    portable = ["antibackdoor", *map(_portable, command)]
    try:
        facts = scan(loaded, job, out, power=power, resume=resume, command=portable, tell=_tell)
    except KeyboardInterrupt:
        stop(f"Stopped. Give the same command with --resume to go on with {out}.")
    if facts is not None:
        print_facts(facts)
    print(f"Report: {out / 'report.html'}")


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def demo(out: Path = Path("demo"), *, seed: int = 0, epochs: int = 0, device: str = "auto") -> None:
    """Poison a small real data set, train without and with E2ABL, and compare: about a minute on a laptop.

    Parameters
    ----------
    out
        Folder to write; the runs in it are resumed.
    seed
        Chooses test samples, poisoned samples and the network's first weights.
    epochs
        Passes over the data; 0 chooses.
    device
        auto, cpu, cuda or mps.
    """
    from antibackdoor.demo import run_demo
    from antibackdoor.recipe import Recipe

    recipe = Recipe(epochs=epochs, device=device, seed=seed)
    command = ["antibackdoor", "demo", "--out", _portable(str(out)), "--seed", str(seed)]
    results = run_demo(out, recipe, command=command)
    for name, metrics in results.items():
        print(
            f"{name:>10}: clean accuracy {metrics['clean_accuracy']:.1%}, "
            f"attack success rate {metrics['attack_success_rate']:.1%}"
        )
    print(f"Report: {out / 'report.html'}")


def evaluate(
    run: Path,
    *,
    data: Path,
    truth: Path | None = None,
    trigger: Path | None = None,
    split: Literal["test", "train", "all"] = "test",
    device: str = "auto",
    cache: Path | None = None,
) -> None:
    """Measure the model of a run on DATA and add the numbers to its metrics.json.

    Parameters
    ----------
    run
        The run folder.
    data
        Labelled data; its test split is used if it has one.
    truth
        truth.parquet of the poisoned training data, to measure the isolation.
    trigger
        Folder of a saved trigger (as `poison` writes it), to measure the attack success rate.
    split
        Which split of DATA to use.
    device
        auto, cpu, cuda or mps.
    cache
        Where decoded images are kept.
    """
    from antibackdoor import evaluation
    from antibackdoor.artifacts import load_model_spec
    from antibackdoor.readers import read_samples

    spec = load_model_spec(run)
    samples = read_samples(
        data, class_names=list(spec.class_names), shape=spec.input_shape, split=split, cache=cache, progress=True
    )
    print_facts(evaluation.evaluate(run, samples, truth=truth, trigger=trigger, device=device))


def predict(run: Path, data: Path, *, out: Path, device: str = "auto", cache: Path | None = None) -> None:
    """Classify DATA with the model of a run; labels are not needed.

    Parameters
    ----------
    run
        The run folder.
    data
        Images in a folder or zip, one image, .npz, .ts, .csv or .tsv.
    out
        Table to write: .csv or .parquet with id, prediction, confidence.
    device
        auto, cpu, cuda or mps.
    cache
        Where decoded images are kept.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from antibackdoor import pipeline
    from antibackdoor.atomic import replacing
    from antibackdoor.readers import read_inputs

    if out.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"--out {out} must end in .csv or .parquet")
    model, spec = pipeline.load_model(run)
    inputs, ids = read_inputs(data, shape=spec.input_shape, cache=cache, progress=True)
    answers = pipeline.classify_inputs(model, spec, inputs, ids, device=device)
    names = [spec.class_names[label] for label in answers.labels]
    with replacing(out) as temporary:
        if out.suffix == ".parquet":
            columns = {"id": ids.tolist(), "prediction": names, "confidence": answers.confidence}
            pq.write_table(pa.table(columns), temporary)
        else:
            with temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
                writer = csv.writer(file)
                writer.writerow(["id", "prediction", "confidence"])
                writer.writerows(zip(ids.tolist(), names, (f"{c:.6f}" for c in answers.confidence), strict=True))
    print(f"{len(ids)} predictions: {out}")


def report(run: Path) -> None:
    """Write report.html of a run anew.

    Parameters
    ----------
    run
        The run folder.
    """
    from antibackdoor.report import write_report

    print(f"Report: {write_report(run)}")


def attacks() -> None:
    """List the attacks of the red team."""
    from antibackdoor.attacks import ATTACKS

    for name, attack in ATTACKS.items():
        summary = (attack.__doc__ or "").strip().splitlines()[0]
        kinds = ", ".join(attack.kinds)
        print(f"{name:18} {kinds:14} threat {attack.threat_model:4} evidence {attack.evidence}  {summary}")


def doctor() -> None:
    """Show versions, devices and networks, and what is missing."""
    import torch

    from antibackdoor.backbones import BACKBONES
    from antibackdoor.session import has_fast_bf16

    print(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in ("antibackdoor", "torch", "lightning-fabric", "numpy", "scikit-learn", "pyarrow", "safetensors"):
        try:
            print(f"{package} {version(package)}")
        except PackageNotFoundError:
            print(f"{package} MISSING: pip install {package}")
    print(f"cpu: {torch.get_num_threads()} threads, fast bf16: {_yes(has_fast_bf16(torch.device('cpu')))}")
    n_gpus = torch.cuda.device_count()
    print(f"cuda devices: {n_gpus}" + ("" if n_gpus else " (none found; training uses the CPU)"))
    for index in range(n_gpus):
        print(f"  {torch.cuda.get_device_name(index)}")
    print("backbones:")
    for name, backbone in BACKBONES.items():
        print(f"  {name:18} {backbone.kind:7} {backbone.description}")


def print_facts(facts: dict[str, Any]) -> None:
    """One `key value` line a fact."""
    for key, value in facts.items():
        print(f"{key:28} {value:.4f}" if isinstance(value, float) else f"{key:28} {value}")


def _portable(argument: str) -> str:
    """An argument for the record: run folders are passed on, so they keep no absolute path."""
    flag, equals, value = argument.rpartition("=") if argument.startswith("--") else ("", "", argument)
    return flag + equals + (Path(value).name if Path(value).is_absolute() else value)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


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
    try:
        app = build_app(arguments)
        app(arguments, exit_on_error=False, print_error=False)
    except AntibackdoorError as error:
        fail(str(error))
    except cyclopts.CycloptsError as error:
        fail(" ".join(str(error).split()))
    except KeyboardInterrupt:
        stop("Stopped.")


def stop(message: str) -> NoReturn:
    """End after Ctrl-C."""
    if _helps():
        sys.exit(0)
    print(f"\n{message}", file=sys.stderr)
    sys.exit(INTERRUPTED)


def fail(message: str) -> NoReturn:
    """Say what is wrong in one line on standard error and exit with 2."""
    if _helps():  # the first process meets the same mistake, says so, and must not be killed before it has
        sys.exit(0)
    print(f"antibackdoor: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(USER_ERROR)


def _helps() -> bool:
    if not {"LOCAL_RANK", "RANK"} & os.environ.keys():
        return False
    from antibackdoor.pipeline import is_helper

    return is_helper()
