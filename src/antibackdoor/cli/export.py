"""`export` on the command line: what a run decided, for other tools."""

from pathlib import Path
from typing import Any, Literal

from antibackdoor.cli.commands import factory_of
from antibackdoor.cli.telling import told
from antibackdoor.errors import ConfigError, spelled_out

TABLES = ("csv", "parquet", "cleanlab")


def export(
    run: Path,
    *,
    keep: Path | None = None,
    quarantine: Path | None = None,
    to: Path | None = None,
    data: Path | None = None,
    link: bool = False,
    format: Literal["csv", "parquet", "huggingface", "fiftyone", "cleanlab"] | None = None,
    onnx: Path | None = None,
    model: str = "",
    tensorboard: Path | None = None,
    mlflow: str = "",
    cache: Path | None = None,
) -> None:
    """Export a run's results for other tools: lists, a table, the kept samples, the model, the log.

    A person's decisions from a review (decisions.csv in the run folder) override the run.

    Parameters
    ----------
    run
        The run folder.
    keep
        Text file to write: the kept samples, one path (or split/row) per line.
    quarantine
        Text file to write: all other samples.
    to
        Folder to write: the kept samples, copied from --data. With --format csv, parquet or cleanlab: file to write.
    data
        The data that were scanned or trained on. They are never modified.
    link
        Hard-link the files instead of copying them: both names then refer to the same file.
    format
        csv or parquet: a table of all samples. cleanlab: a CSV table with cleanlab's label-issue columns. huggingface,
        fiftyone: the kept samples in a folder for these tools. Default: the format of the data.
    onnx
        ONNX file to write: the run's model, checked in onnxruntime. Needs antibackdoor[onnx].
    model
        Your own network (package.module:factory), if the run was trained with one; its code is executed.
    tensorboard
        Folder to write: the run's log for TensorBoard. Needs antibackdoor[tensorboard].
    mlflow
        URI of an MLflow tracking server or database to log the run's settings, log and metrics to. Needs
        antibackdoor[mlflow].
    cache
        Where to keep decoded images.
    """
    wanted = (keep, quarantine, to, onnx, tensorboard, mlflow or None)
    if format is not None and to is None:
        raise ConfigError(f"--format {format} needs a place: give --to")
    if all(one is None for one in wanted):
        raise ConfigError("say what to export: --keep FILE, --quarantine FILE, --to FOLDER, --onnx FILE or others")
    if (link or data is not None) and (to is None or format in TABLES):
        raise ConfigError("--data and --link are for copies of samples: give --to FOLDER, and no table format")
    if keep is not None or quarantine is not None or to is not None:
        _samples(run, keep, quarantine, to, data, link, format, cache)
    if onnx is not None:
        from antibackdoor.app.networks import load_model
        from antibackdoor.app.onnx_file import write_onnx

        difference = write_onnx(onnx, *load_model(run, factory_of(model, run)))
        print(f"ONNX: {onnx} (onnxruntime differs from torch by at most {difference:.1e})")
    if tensorboard is not None:
        from antibackdoor.app.trackers import to_tensorboard

        print(f"TensorBoard: {to_tensorboard(run, tensorboard)} values in {tensorboard}")
    if mlflow:
        from antibackdoor.app.trackers import to_mlflow

        print(f"MLflow: run {to_mlflow(run, mlflow)}")


def _samples(
    run: Path,
    keep: Path | None,
    quarantine: Path | None,
    to: Path | None,
    data: Path | None,
    link: bool,
    format: str | None,
    cache: Path | None,
) -> None:
    from antibackdoor.app.exporting import cleanlab_columns, columns_of, selection_of, write_list, write_table
    from antibackdoor.app.kept_files import KeptFiles

    selection = selection_of(run)
    if keep is not None:
        write_list(keep, selection.table.ids[selection.kept])
    if quarantine is not None:
        write_list(quarantine, selection.table.ids[~selection.kept])
    print(f"{selection.told}.")
    if to is None:
        return
    if format in TABLES:
        columns = cleanlab_columns(selection) if format == "cleanlab" else columns_of(selection)
        write_table(to, columns, parquet=format == "parquet")
        print(spelled_out(f"Table: {to}"))
        return
    if data is None:
        raise ConfigError("--to copies samples of the data, which a run folder does not hold: give --data as well")
    files = KeptFiles(selection, data, cache, link)
    write: Any = {None: files.copy_to, "huggingface": files.as_hugging_face, "fiftyone": files.as_fiftyone}[format]
    told(f"{write(to)}.")
