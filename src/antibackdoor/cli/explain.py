"""`explain` on the command line: the evidence on one sample, and who taught a model what it says of an input."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from antibackdoor.cli.commands import factory_of
from antibackdoor.errors import ConfigError, spelled_out


def explain(
    run: Path,
    id: str = "",
    *,
    input: Path | None = None,
    data: Path | None = None,
    top: int = 10,
    model: str = "",
    device: str = "auto",
    cache: Path | None = None,
) -> None:
    """Show the evidence on one sample and its nearest neighbors, or which training samples caused a prediction.

    Similarity is measured in the features of the run's model, among samples of the same label; 1 means identical.

    Parameters
    ----------
    run
        The run folder.
    id
        Id of a sample of the run, as in samples.parquet.
    input
        Inputs that the model gets wrong: a file or folder. Lists the training samples that most likely caused it.
    data
        The run's training data.
    top
        Number of samples to show.
    model
        Your own network (package.module:factory), if the run was trained with one; its code is executed.
    device
        auto, cpu, cuda or mps.
    cache
        Where to keep decoded images.
    """
    from antibackdoor.app.explaining import Explainer

    if bool(id) == (input is not None):
        raise ConfigError("give what to explain: either the ID of a sample or --input FILE")
    explainer = Explainer(run, data, top, factory_of(model, run), device, cache)
    if input is None:
        _tell_sample(explainer.sample(id))
        return
    for found in explainer.inputs(input):
        _say(f"{found.id}: the model says {found.prediction} ({found.confidence:.1%})")
        _say(f"  {found.n_likely} of {found.n_candidates} training samples with this label stand apart by similarity")
        _tell_neighbors(found.ranked)


def _tell_sample(found: Any) -> None:
    evidence = found.evidence
    for name, value in (
        ("sample", evidence.id),
        ("given label", evidence.given),
        ("suggested label", evidence.suggested or "the same"),
        ("status", evidence.status),
        ("suspicion", evidence.suspicion),
        ("criterion", evidence.criterion or "none"),
        ("the model says", evidence.prediction),
    ):
        if value:
            _say(f"{name:16} {value}")
    if found.note:
        _say(f"No neighbors: {found.note}.")
        return
    for title, neighbors in (("kept", found.kept), ("isolated", found.isolated)):
        _say(f"nearest {title}:" + ("" if neighbors else " none under these labels"))
        _tell_neighbors(neighbors)


def _tell_neighbors(neighbors: Iterable[Any]) -> None:
    for one in neighbors:
        _say(f"  {one.similarity:6.3f}  {one.status:9} {one.given}  {one.id}")


def _say(line: str) -> None:
    print(spelled_out(line))
