"""What to do next, by what a run found; for the report and for the terminal."""

from __future__ import annotations

from typing import NamedTuple

from antibackdoor.report.words import Facts


class Step(NamedTuple):
    """One thing to do.

    Attributes:
        text: Why or what, in a sentence.
        command: How, on the command line; may be empty.
    """

    text: str
    command: str = ""


def next_steps(metrics: Facts | None, run: str, data: str = "DATA") -> list[Step]:
    """Two to four steps; none for a run that is not finished, or that purified a model.

    Args:
        metrics: What stands in `metrics.json`.
        run: The run folder, as commands may name it.
        data: The data, likewise.
    """
    if metrics is None or "accuracy_before" in metrics:
        return []
    is_scan = "epochs" not in metrics
    poisoned = metrics.get("poisoned")
    if poisoned:
        steps = [
            Step("Look at the suspects. A watermark on a single class looks just like a trigger."),
            Step("Accept or reject them in a browser.", f"antibackdoor review {run}"),
        ]
        if is_scan:
            train = f"antibackdoor train {data} --verdict {run} --out trained"
            return [*steps, Step("Train on the rest.", train), _export(run)]
        return [*steps, _export(run), _measure(run, data)]
    if poisoned is None:
        scan = f"antibackdoor scan {data} --out scanned"
        return [Step("This method gives no verdict on the data. The default scan does.", scan)]
    steps = [Step("Poison a copy of the data and check whether that is found. All attacks:", "antibackdoor attacks")]
    if is_scan:
        return [
            *steps,
            Step("Train. This also looks for poison that is learned late.", f"antibackdoor train {data} --out trained"),
        ]
    return steps


def _export(run: str) -> Step:
    return Step(
        "List the samples to keep and to quarantine.", f"antibackdoor export {run} --keep keep.txt --quarantine bad.txt"
    )


def _measure(run: str, data: str) -> Step:
    return Step("Use the model.", f"antibackdoor predict {run} {data} --out predictions.csv")
