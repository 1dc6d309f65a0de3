"""What the commands do: call the package and print. Slow imports wait until a command needs them."""

import inspect
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from antibackdoor.cli.flags import READING, read_options
from antibackdoor.cli.gate import Gate
from antibackdoor.cli.signals import advising
from antibackdoor.cli.telling import print_facts, print_verdict, tell_reading, told
from antibackdoor.errors import ConfigError, spelled_out


def run_train(
    data: Path,
    out: Path,
    defense: Any,
    recipe: Any,
    *,
    test: Path | None,
    clean: Path | None,
    test_fraction: float,
    backbone: str,
    model: str,
    image_size: int | None,
    on_error: Literal["raise", "skip"],
    cache: Path | None,
    reading: dict[str, Any],
    verdict: Path | None,
    decisions: Path | None,
    resume: bool,
    command: Sequence[str],
) -> None:
    """Read, train, tell."""
    from antibackdoor.app.decisions import with_decisions
    from antibackdoor.app.finished import finished_message
    from antibackdoor.app.pipeline import Job, is_helper, train
    from antibackdoor.app.verdicts import verdict_of
    from antibackdoor.data.reading import read
    from antibackdoor.protocols import Given, check_given

    refuse_inside(out, data)
    loaded = read(
        data, test=test, test_fraction=test_fraction, image_size=image_size, on_error=on_error, cache=cache,
        seed=recipe.seed, progress=recipe.progress and not is_helper(), **reading,
    )  # fmt: skip
    tell_reading(loaded)
    known = None if clean is None else like(loaded.train, clean, "train", on_error, cache, reading, loaded.bits)
    given = Given(clean=known, verdict=None if verdict is None else verdict_of(verdict, loaded.train))
    if decisions is not None:
        given, note = with_decisions(given, decisions, loaded.train, defense.takes)
        loaded = replace(loaded, notes={**loaded.notes, "decisions": note})
        if not is_helper():
            told(f"Decisions: {note}.")
    check_given(defense, given)
    job = Job(defense, recipe, backbone, model)
    with resumable(out):
        outcome = train(loaded, job, out, given=given, resume=resume, command=portable(command), tell=told)
    if outcome is not None:
        print_verdict(outcome.metrics, out, data)
        print_facts(outcome.metrics)
    elif not is_helper():
        print(spelled_out(finished_message(out, loaded.test)))
    if not is_helper():
        print(f"Report: {out / 'report.html'}")


def run_scan(
    data: Path,
    out: Path,
    detector: Any,
    recipe: Any,
    *,
    clean: Path | None,
    checkpoint: Path | None,
    backbone: str,
    model: str,
    image_size: int | None,
    on_error: Literal["raise", "skip"],
    cache: Path | None,
    reading: dict[str, Any],
    gate: Gate,
    resume: bool,
    command: Sequence[str],
) -> None:
    """Read, look, tell."""
    from antibackdoor.app.finished import finished_message
    from antibackdoor.app.given_models import open_model
    from antibackdoor.app.networks import NetworkChoice
    from antibackdoor.app.scanning import Scan, scan
    from antibackdoor.data.reading import read
    from antibackdoor.protocols import Given

    refuse_inside(out, data)
    loaded = read(
        data, test_fraction=0, image_size=image_size, on_error=on_error, cache=cache, seed=recipe.seed,
        progress=recipe.progress, **reading,
    )  # fmt: skip
    tell_reading(loaded)
    known = None if clean is None else like(loaded.train, clean, "train", on_error, cache, reading, loaded.bits)
    given = Given(clean=known)
    if checkpoint is not None:
        opened = open_model(checkpoint, NetworkChoice(backbone, model), known or loaded.train, recipe)
        given = Given(clean=known, model=opened.model, history=opened.history)
        backbone = "" if model else opened.spec.backbone
    job = Scan(detector, recipe, backbone, model)
    with resumable(out):
        facts = scan(loaded, job, out, given=given, resume=resume, command=portable(command), tell=told)
    metrics = gate.write(out, data.name)
    if not gate.json:
        print_verdict(metrics, out, data)
        if facts is None:
            print(spelled_out(finished_message(out)))
        else:
            print_facts(facts)
        print(f"Report: {out / 'report.html'}")
    gate.finish(metrics)


def like(
    samples: Any,
    path: Path,
    split: Literal["test", "train"],
    on_error: Literal["raise", "skip"],
    cache: Path | None,
    reading: dict[str, Any],
    bits: int | None = None,
) -> Any:
    """Other labelled samples, in the shape and the classes of these, and read as these were."""
    from antibackdoor.data.options import ReadOptions
    from antibackdoor.data.reading import read_samples

    return read_samples(
        path, class_names=samples.class_names.tolist(), shape=samples.shape, split=split, on_error=on_error,
        cache=cache, recorded=ReadOptions(**reading), bits=bits, progress=True,
    )  # fmt: skip


@contextmanager
def resumable(out: Path) -> Iterator[None]:
    """Say how to go on if the user stops what happens within."""
    with advising(spelled_out(f"Stopped. Repeat the command with --resume to continue {out}.")):
        yield


def portable(command: Sequence[str]) -> list[str]:
    """A command line for the record: run folders are passed on, so they keep no absolute path."""
    return ["antibackdoor", *map(_portable, command)]


def demo(
    out: Path = Path("demo"), *, seed: int = 0, epochs: int = 0, device: str = "auto", config: Path | None = None
) -> None:
    """Poison a small real data set, train with and without a defense, and compare. About a minute on a laptop.

    Parameters
    ----------
    out
        Output folder; runs already in it are resumed.
    seed
        Random seed for test samples, poisoned samples and the network's initial weights.
    epochs
        Passes over the data; 0 for automatic.
    device
        auto, cpu, cuda or mps.
    config
        TOML file with options for this command; command-line flags override it.
    """
    from antibackdoor.app.demo import run_demo
    from antibackdoor.training.recipe import Recipe

    recipe = Recipe(epochs=epochs, device=device, seed=seed)
    command = ["antibackdoor", "demo", "--out", _portable(str(out)), "--seed", str(seed), "--epochs", str(epochs)]
    command += ["--device", device]
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
    data: Path | None = None,
    truth: Path | None = None,
    trigger: Path | None = None,
    split: Literal["test", "train", "all"] = "test",
    model: str = "",
    on_error: Literal["raise", "skip"] = "raise",
    device: str = "auto",
    cache: Path | None = None,
    accept_unlike: bool = False,
    reading: Annotated[READING, Parameter(name="*")] = READING(),
) -> None:
    """Evaluate a run's model on DATA and its verdict against TRUTH, and add the numbers to its metrics.json.

    Parameters
    ----------
    run
        The run folder.
    data
        Labeled data: their test split, else the samples that the run held out, else all. Without data, only the verdict
        is evaluated.
    truth
        truth.parquet of the poisoned training data, to measure the isolation.
    trigger
        Folder with a saved trigger (as written by `poison`), to measure the attack success rate.
    split
        Which split of DATA to use.
    model
        Your own network (package.module:factory), if the run was trained with one; its code is executed.
    on_error
        If a sample cannot be read: stop, or leave it out.
    device
        auto, cpu, cuda or mps.
    cache
        Where to keep decoded images.
    accept_unlike
        Accept data whose channels, sizes or values differ from the training data.
    """
    from antibackdoor.app import evaluation
    from antibackdoor.app.read_as import as_trained
    from antibackdoor.data.reading import read_samples
    from antibackdoor.runs.model_file import load_model_spec

    samples = None
    if data is not None:
        spec = load_model_spec(run)
        samples = read_samples(
            data, class_names=list(spec.class_names), shape=spec.input_shape, split=split,
            on_error=on_error, cache=cache, progress=True, **read_options(reading),
            **as_trained(spec, accept_unlike=accept_unlike),
        )  # fmt: skip
        if split == "test":
            samples = evaluation.never_trained_on(run, samples)
    factory = factory_of(model, run)
    print_facts(
        evaluation.evaluate(run, samples, truth=truth, trigger=trigger, device=device, factory=factory, split=split)
    )


def predict(
    run: Path,
    data: Path,
    *,
    out: Path,
    model: str = "",
    on_error: Literal["raise", "skip"] = "raise",
    device: str = "auto",
    cache: Path | None = None,
    accept_unlike: bool = False,
    reading: Annotated[READING, Parameter(name="*")] = READING(),
) -> None:
    """Classify DATA with a run's model; no labels are needed.

    Parameters
    ----------
    run
        The run folder.
    data
        A folder or zip file of images, a single image, or a .npz, .ts, .csv or .tsv file.
    out
        The .csv or .parquet table to write, with id, prediction and confidence.
    model
        Your own network (package.module:factory), if the run was trained with one; its code is executed.
    on_error
        If a sample cannot be read: stop, or leave it out of the table.
    device
        auto, cpu, cuda or mps.
    cache
        Where to keep decoded images.
    accept_unlike
        Accept data whose channels, sizes or values differ from the training data.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from antibackdoor.app import networks, pipeline
    from antibackdoor.app.read_as import as_trained
    from antibackdoor.data.csv_cells import write_rows
    from antibackdoor.data.reading import read_inputs
    from antibackdoor.runs.atomic import replacing

    if out.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"--out {out} must end in .csv or .parquet")
    if out.exists():
        raise ConfigError(f"--out {out} exists already; remove it or choose another name")
    network, spec = networks.load_model(run, factory_of(model, run))
    inputs, ids = read_inputs(
        data, shape=spec.input_shape, on_error=on_error, cache=cache, progress=True, **read_options(reading),
        **as_trained(spec, accept_unlike=accept_unlike),
    )  # fmt: skip
    answers = pipeline.classify_inputs(network, spec, inputs, ids, device=device)
    names = [spec.class_names[label] for label in answers.labels]
    with replacing(out) as temporary:
        if out.suffix == ".parquet":
            columns = {"id": ids.tolist(), "prediction": names, "confidence": answers.confidence}
            with temporary.open("wb") as file:  # pyarrow takes no path that is not UTF-8
                pq.write_table(pa.table(columns), file)
        else:
            with temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as table:
                rows = zip(ids.tolist(), names, (f"{c:.6f}" for c in answers.confidence), strict=True)
                write_rows(table, [("id", "prediction", "confidence"), *rows])
    print(f"{len(ids)} predictions: {out}")


def report(run: Path) -> None:
    """Rebuild the report.html of a run.

    Parameters
    ----------
    run
        The run folder.
    """
    from antibackdoor.report import write_report

    print(f"Report: {write_report(run)}")


def attacks() -> None:
    """List all attacks with their papers.

    Threat: P, the attacker only poisons data; P+M, the attacker also uses a model. Evidence: A, paper and code agree;
    B, the code differs from the paper; C, we filled gaps in the paper; D, a reconstruction.
    """
    from antibackdoor.attacks import ATTACKS

    for name, attack in ATTACKS.items():
        text = inspect.getdoc(attack) or ""
        reference = text.partition("Reference: ")[2].partition("\n\n")[0]
        kinds = ", ".join(attack.kinds)
        print(f"{name:18} {kinds:14} threat {attack.threat_model:4} evidence {attack.evidence}  {text.splitlines()[0]}")
        print(f"{'':18} {' '.join(reference.split())}")


def doctor() -> None:
    """Show versions, devices, networks and missing packages."""
    import torch

    from antibackdoor.models.backbones import BACKBONES
    from antibackdoor.training.session import has_fast_bf16

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


def factory_of(model: str, run: Path) -> Any:
    """The factory that `--model` names; None if it names none. Nothing is imported for a run that needs none."""
    from antibackdoor.app.networks import check_own_network
    from antibackdoor.models.own_network import import_factory
    from antibackdoor.runs.model_file import load_model_spec

    if not model:
        return None
    check_own_network(run, load_model_spec(run), is_given=True)
    return import_factory(model)


def refuse_inside(out: Path, data: Path) -> None:
    """A folder within the data would be read as one of their classes.

    Raises:
        ConfigError: If `out` lies in the folder `data`.
    """
    if data.is_dir() and data.resolve() in out.resolve().parents:
        raise ConfigError(f"--out {out} lies in the data folder {data}; choose a folder outside of it")


def _portable(argument: str) -> str:
    """An argument for the record: run folders are passed on, so they keep no absolute path."""
    flag, equals, value = argument.rpartition("=") if argument.startswith("--") else ("", "", argument)
    return flag + equals + (Path(value).name if Path(value).is_absolute() else value)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
