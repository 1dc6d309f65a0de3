"""E2ABL on the digits: runs that are watched, and runs that are killed and go on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from antibackdoor.data.samples import Samples
from antibackdoor.defenses import DualHead
from antibackdoor.models.backbones import build_backbone
from antibackdoor.models.normalization import channel_statistics, normalized
from antibackdoor.models.two_head import TwoHead
from antibackdoor.protocols import Trained
from antibackdoor.runs.run_folder import RunFolder
from antibackdoor.search.caught import Caught
from antibackdoor.search.search import Search, TrapSettings
from antibackdoor.training.history import LossHistory
from antibackdoor.training.loop import NoJournal
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.session import Feed, Session

RECIPE = Recipe(epochs=6, seed=0)


def builder(samples: Samples) -> Callable[[], nn.Module]:
    mean, std = channel_statistics(samples)
    return lambda: normalized(build_backbone("wrn-10-1", samples.shape, samples.n_classes), mean, std)


class Killed(Exception):
    pass


class Fragile:
    """A run folder whose process dies right after a checkpoint of this phase, the first from this epoch on."""

    def __init__(self, folder: RunFolder, phase: str, epoch: int) -> None:
        self.folder, self.end = folder, (phase, epoch)
        self.log, self.load = folder.log, folder.load

    def save(self, state: dict[str, Any]) -> None:
        self.folder.save(state)
        if (state["phase"], state.get("epoch", 0)) == self.end:
            raise Killed


class Watched(NoJournal):
    """Keeps the last checkpoint of each phase, and how many samples each epoch of the main head saw."""

    def __init__(self, begin: dict[str, Any] | None = None) -> None:
        self.begin = begin
        self.last: dict[str, dict[str, Any]] = {}
        self.trained: list[int] = []

    def load(self) -> dict[str, Any] | None:
        return self.begin

    def log(self, **values: Any) -> None:
        if values["phase"] == "training":
            self.trained.append(values["n_trained"])

    def save(self, state: dict[str, Any]) -> None:
        self.last[state["phase"]] = copy.deepcopy(state)


def killed_and_resumed(
    folder: Path, samples: Samples, recipe: Recipe, *ends: tuple[str, int], method: DualHead | None = None
) -> Trained:
    build, method = builder(samples), method or DualHead()
    for phase, epoch in ends:
        with RunFolder.create(folder, {}, resume=True) as run, pytest.raises(Killed):
            method.train(samples, build, recipe, journal=Fragile(run, phase, epoch))
    with RunFolder.create(folder, {}, resume=True) as run:
        return method.train(samples, build, recipe, journal=run)


def assert_alike(one: Trained, other: Trained) -> None:
    for part in ("isolated", "recovered", "returned", "labels", "suspicion", "evidence"):
        np.testing.assert_array_equal(getattr(one, part), getattr(other, part))
    assert one.notes == other.notes
    for name, value in one.model.state_dict().items():
        assert value.equal(other.model.state_dict()[name]), name


def find_nothing(
    session: Session, samples: Samples, feed: Feed, net: TwoHead, settings: TrapSettings, history: LossHistory
) -> Caught:
    """In place of `spring`: the search before the main training finds nothing, whatever there is."""
    search = Search(session, feed, net, settings, np.arange(len(samples)))
    search.first_look()
    return search.nothing()
