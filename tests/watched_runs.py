"""Trainings on the digits: runs that are watched, and runs that are killed and go on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from torch import nn

from antibackdoor.app.demo import digits
from antibackdoor.data.samples import Samples
from antibackdoor.defenses import DualHead
from antibackdoor.models.backbones import build_backbone
from antibackdoor.models.normalization import channel_statistics, normalized
from antibackdoor.models.two_head import TwoHead
from antibackdoor.protocols import Trained, Verdict
from antibackdoor.runs.run_folder import RunFolder
from antibackdoor.search.caught import Caught
from antibackdoor.search.search import Search, TrapSettings
from antibackdoor.training.history import LossHistory
from antibackdoor.training.journal import NoJournal
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.session import Feed, Session

RECIPE = Recipe(epochs=6, seed=0)
SEARCHED, BEGUN_AGAIN = ("remembered search", 0), ("training", 0)  # what was done when a run was killed


def builder(samples: Samples) -> Callable[[], nn.Module]:
    mean, std = channel_statistics(samples)
    return lambda: normalized(build_backbone("wrn-10-1", samples.shape, samples.n_classes), mean, std)


def two_classes(first: int, second: int) -> Samples:
    """The digits of two classes, under two labels."""
    whole = digits(0).train
    some = whole.take(np.flatnonzero(np.isin(whole.labels, (first, second))))
    names = np.array([str(first), str(second)])
    return replace(some, labels=(some.labels == second).astype(np.int64), class_names=names)


class Moment(NamedTuple):
    """Where in a training a checkpoint was made."""

    name: str  # of the phase under way, or of the last thing that is finished
    step: int  # of that phase; 0 where one is finished


def moment(state: dict[str, Any]) -> Moment:
    """Where in a training this checkpoint was made."""
    if state["current"]:
        return Moment(state["current"]["name"], state["current"]["step"])
    return Moment(list(state["finished"])[-1], 0)


class Killed(Exception):
    pass


class Fragile:
    """A run folder whose process dies right after this checkpoint."""

    def __init__(self, folder: RunFolder, end: tuple[str, int]) -> None:
        self.run, self.end = folder, end
        self.log, self.load, self.tell, self.folder = folder.log, folder.load, folder.tell, folder.folder

    def save(self, state: dict[str, Any]) -> None:
        self.run.save(state)
        if moment(state) == self.end:
            raise Killed


class Watched(NoJournal):
    """Keeps the last checkpoint of each part, and how many samples each epoch of the main head saw."""

    def __init__(self, begin: dict[str, Any] | None = None) -> None:
        self.begin = begin
        self.last: dict[str, dict[str, Any]] = {}
        self.trained: list[int] = []

    def load(self) -> dict[str, Any] | None:
        return copy.deepcopy(self.begin)

    def log(self, **values: Any) -> None:
        if values["phase"].startswith("training"):
            self.trained.append(values["n_trained"])

    def save(self, state: dict[str, Any]) -> None:
        self.last[moment(state).name] = copy.deepcopy(state)


def killed_and_resumed(
    folder: Path, samples: Samples, recipe: Recipe, *ends: tuple[str, int], method: DualHead | None = None
) -> Trained:
    build, method = builder(samples), method or DualHead()
    for end in ends:
        with RunFolder.create(folder, {}, resume=True) as run, pytest.raises(Killed):
            method.train(samples, build, recipe, journal=Fragile(run, end))
    with RunFolder.create(folder, {}, resume=True) as run:
        return method.train(samples, build, recipe, journal=run)


def assert_alike(one: Trained, other: Trained) -> None:
    """All that two trainings say is the same, to the byte."""
    assert_same_verdict(one.verdict, other.verdict)
    assert one.facts == other.facts
    np.testing.assert_array_equal(one.probe, other.probe)
    np.testing.assert_array_equal(one.history.losses, other.history.losses)
    for name, value in one.model.state_dict().items():
        assert value.equal(other.model.state_dict()[name]), name


def assert_same_verdict(one: Verdict, other: Verdict) -> None:
    for part in fields(Verdict):
        np.testing.assert_array_equal(getattr(one, part.name), getattr(other, part.name), part.name)


def find_nothing(
    session: Session, samples: Samples, feed: Feed, net: TwoHead, settings: TrapSettings, history: LossHistory
) -> Caught:
    """In place of `spring`: the search before the main training finds nothing, whatever there is."""
    search = Search(session, feed, net, settings, np.arange(len(samples)))
    search.first_look()
    return search.nothing()
