"""`compare` on the command line: the same data through several methods, and one table."""

# Annotations are not postponed here: those of the command name a type that is made at run time.
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from antibackdoor.cli.commands import like, portable, refuse_inside, resumable
from antibackdoor.cli.flags import DATA, METHOD, OUTPUT, READING, TRAINING, made, read_options, settings_type
from antibackdoor.cli.telling import tell_reading, told

InData, InTraining = Parameter(group=DATA), Parameter(group=TRAINING)
InMethod, InOutput = Parameter(group=METHOD), Parameter(group=OUTPUT)


def shared_recipe(name: str) -> type[Any]:
    """The flags of the recipe that all compared methods share, with the defaults of the recipe of this name."""
    from antibackdoor.training.recipe import Recipe, named_recipe

    return settings_type(Recipe, TRAINING, without=("devices",), defaults=named_recipe(name))


def add_compare(app: App, recipe_type: Any, arguments: Sequence[str]) -> None:
    """Add the command; `recipe_type` holds the flags of the recipe."""

    @app.command
    def compare(
        data: Annotated[Path, InData],
        *,
        methods: Annotated[str, InMethod],
        out: Annotated[Path, InOutput],
        clean: Annotated[Path | None, InData] = None,
        test: Annotated[Path | None, InData] = None,
        test_fraction: Annotated[float, InData] = 0.2,
        truth: Annotated[Path | None, InData] = None,
        trigger: Annotated[Path | None, InData] = None,
        image_size: Annotated[int | None, InData] = None,
        on_error: Annotated[Literal["raise", "skip"], InData] = "raise",
        cache: Annotated[Path | None, InData] = None,
        recipe_name: Annotated[str, Parameter(name="--recipe", group=TRAINING)] = "practical",
        backbone: Annotated[str, InTraining] = "",
        model: Annotated[str, InTraining] = "",
        seeds: Annotated[int, InTraining] = 1,
        config: Annotated[Path | None, InOutput] = None,
        resume: Annotated[bool, InOutput] = False,
        reading: Annotated[READING, Parameter(name="*")] = READING(),
        recipe: Annotated[recipe_type, Parameter(name="*")] = recipe_type(),
    ) -> None:
        """Run several defenses, detectors and purifiers on DATA and compare them in one table.

        Each method uses its default hyper-parameters. Purifiers, and detectors that need a trained model, share one
        undefended model trained on the same data and seed.

        Parameters
        ----------
        data
            Folder or zip file with one subfolder per class, or a .npz, .ts, .csv or .tsv file.
        methods
            Comma-separated names of methods of any kind: none, dual-head, abl, spectral, nad and others.
        out
            Output folder for all runs (METHOD-SEED), comparison.csv and report.html.
        clean
            Known clean samples, for purifiers and detectors that need them; their training split is used.
        test
            Separate test data.
        test_fraction
            Share of each class to hold out if there is no test split, in [0, 1).
        truth
            truth.parquet of the poisoned data, to measure the isolation. No method sees it.
        trigger
            Folder with a saved trigger, to measure the attack success rate. No method sees it.
        image_size
            Resize images to squares with this side length, in pixels.
        on_error
            If a sample cannot be read: stop, or skip it and list it in the run folders.
        cache
            Where to keep decoded images.
        recipe_name
            Training recipe: practical (the default), nad, abl or e2abl, as in these papers; other flags override it.
        backbone
            The network architecture; `antibackdoor doctor` lists all. By default, chosen from the data and the machine.
        model
            Your own network, as package.module:factory. Its code is executed.
        seeds
            Number of seeds per method; the first is --seed.
        config
            TOML file with options for this command; command-line flags override it. Every run saves its options as
            run.toml.
        resume
            Continue a stopped comparison; finished runs are kept.
        """
        _run_compare(
            data, _names(methods), out, recipe, clean=clean, test=test, test_fraction=test_fraction, truth=truth,
            trigger=trigger, image_size=image_size, on_error=on_error, cache=cache, reading=read_options(reading),
            backbone=backbone, model=model, seeds=seeds, resume=resume, command=arguments,
        )  # fmt: skip


def _names(methods: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in methods.split(",") if name.strip())


def _run_compare(
    data: Path,
    methods: tuple[str, ...],
    out: Path,
    recipe_flags: Any,
    *,
    clean: Path | None,
    test: Path | None,
    test_fraction: float,
    truth: Path | None,
    trigger: Path | None,
    image_size: int | None,
    on_error: Literal["raise", "skip"],
    cache: Path | None,
    reading: dict[str, Any],
    backbone: str,
    model: str,
    seeds: int,
    resume: bool,
    command: Sequence[str],
) -> None:
    """Read, compare, tell."""
    from antibackdoor.app.comparing import Material, Study, compare
    from antibackdoor.data.reading import read
    from antibackdoor.report import text_table
    from antibackdoor.training.recipe import Recipe

    refuse_inside(out, data)
    recipe = made(Recipe, recipe_flags)
    study = Study(methods, recipe, seeds, backbone, model)  # refuses unknown names before data are read
    loaded = read(
        data, test=test, test_fraction=test_fraction, image_size=image_size, on_error=on_error, cache=cache,
        seed=recipe.seed, progress=recipe.progress, **reading,
    )  # fmt: skip
    tell_reading(loaded)
    known = None if clean is None else like(loaded.train, clean, "train", on_error, cache, reading, loaded.bits)
    material = Material(loaded, known, truth, trigger)
    with resumable(out):
        runs = compare(study, material, out, resume=resume, command=portable(command), tell=told)
    print(text_table(runs))
    print(f"Table: {out / 'comparison.csv'}")
    print(f"Report: {out / 'report.html'}")
