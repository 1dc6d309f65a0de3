"""The log of a run for TensorBoard and MLflow, written from `log.jsonl`, `config.json` and `metrics.json`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from antibackdoor.app.exporting import refuse_existing
from antibackdoor.errors import ConfigError
from antibackdoor.runs.artifacts import METRICS, read_metrics
from antibackdoor.runs.atomic import one_line
from antibackdoor.runs.run_folder import read_config, read_log

_LONGEST = 500  # characters of a parameter that MLflow takes in every version


def logged(run: Path) -> Iterator[tuple[str, float, int]]:
    """Name, value and step of every number in the log, then of every number in the metrics (step 0).

    The step is the optimizer step where the log tells it, else the epoch, else the line's place.
    """
    for place, entry in enumerate(read_log(run)):
        phase = str(entry.get("phase", "log"))
        step = entry.get("step", entry.get("epoch", place))
        for name, value in _numbers(entry):
            if name not in ("step", "epoch"):
                yield f"{phase}/{name}", value, step if type(step) is int else place
    for name, value in _numbers(_metrics(run)):
        yield f"metrics/{name}", value, 0


def to_tensorboard(run: Path, folder: Path) -> int:
    """Write a new folder of events. Returns how many values it has.

    Raises:
        ConfigError: If tensorboard is not installed, or the folder exists.
        RunError: If the run cannot be read.
    """
    refuse_existing(folder)
    values = list(logged(run))
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError("--tensorboard needs tensorboard: pip install 'antibackdoor[tensorboard]'") from error
    writer: Any = SummaryWriter(str(folder))  # type: ignore[no-untyped-call, unused-ignore]
    for name, value, step in values:
        writer.add_scalar(name.replace(" ", "_"), value, step)
    writer.close()
    return len(values)


def to_mlflow(run: Path, uri: str) -> str:
    """Log settings, metrics and log as one MLflow run of the experiment `antibackdoor`. Returns its id.

    Raises:
        ConfigError: If mlflow is not installed, or the server cannot be reached.
        RunError: If the run cannot be read.
    """
    settings, values = read_config(run)["settings"], list(logged(run))
    try:
        import mlflow  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ConfigError("--mlflow needs mlflow: pip install 'antibackdoor[mlflow]'") from error
    try:
        mlflow.set_tracking_uri(uri)
        mlflow.set_experiment("antibackdoor")
        with mlflow.start_run(run_name=run.resolve().name) as active:
            for name, value in _flat(settings):
                mlflow.log_param(name, str(value)[:_LONGEST])
            for name, value, step in values:
                mlflow.log_metric(name.replace(" ", "_"), value, step=step)
            return str(active.info.run_id)
    except Exception as error:  # its client raises those of a dozen libraries
        raise ConfigError(f"cannot log to --mlflow {uri}: {one_line(error)}") from error


def _metrics(run: Path) -> dict[str, Any]:
    return read_metrics(run) if (run / METRICS).exists() else {}


def _numbers(fields: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in fields.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield name, float(value)


def _flat(settings: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value
