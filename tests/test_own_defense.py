"""A defense of a user's own: forty lines, and one in the table."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from conftest import pictures, write_folder
from ledger import Ledger
from phases import RECIPE, builder, weights

from antibackdoor.data.samples import Samples
from antibackdoor.defenses import DEFENSES
from antibackdoor.protocols import Build, Given, Trained, Verdict, check_given
from antibackdoor.statistics.isolation import highest
from antibackdoor.training.journal import Journal
from antibackdoor.training.loop import classify
from antibackdoor.training.objectives import ascend, flooding
from antibackdoor.training.ranges import check_ranges
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.schedules import constant, triangle
from antibackdoor.training.trainer import Phase, Trainer

Call = Callable[..., tuple[int, str, str]]


@dataclass(frozen=True)
class TwoCounts:
    """Facts.

    Attributes:
        n_isolated: Samples that were unlearned.
    """

    n_isolated: int


@dataclass(frozen=True)
class ThreePhases:
    """Isolates what is learned first, trains on the rest, and unlearns what was isolated (after ABL).

    Attributes:
        level: At which the mean loss is held, in nats, >= 0.
        isolation_rate: Share of the samples that are isolated, in (0, 1).
        isolation_epochs: Passes of the first phase, >= 1.
        unlearning_epochs: Passes of the last phase, >= 0.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[tuple[str, ...]] = ()
    unused: ClassVar[tuple[str, ...]] = ()

    level: float = 0.5
    isolation_rate: float = 0.1
    isolation_epochs: int = 2
    unlearning_epochs: int = 2

    def train(
        self,
        samples: Samples,
        build: Build,
        recipe: Recipe,
        *,
        given: Given | None = None,
        journal: Journal | None = None,
    ) -> Trained:
        check_given(self, given)
        check_ranges(self, level="[0, inf)", isolation_rate="(0, 1)")
        trainer = Trainer(samples, recipe, journal)
        model, rate, bound = trainer.network(build), recipe.learning_rate, math.log(samples.n_classes)
        trainer.run(
            model,
            Phase("isolation", self.isolation_epochs, flooding(model, self.level), constant(rate), augment="none"),
        )
        scores = trainer.remember("scores", lambda: -trainer.losses(model).astype(np.float64))
        isolated = highest(scores, self.isolation_rate)
        rest, few = np.flatnonzero(~isolated), np.flatnonzero(isolated)
        trainer.run(model, Phase("training", trainer.passes, classify(model), triangle(rate), rows=rest))
        trainer.run(
            model, Phase("unlearning", self.unlearning_epochs, ascend(model, bound), constant(rate / 10), rows=few)
        )
        verdict = Verdict.isolating(scores, isolated, samples)
        return Trained(trainer.delivered(model, build), trainer.history, verdict, TwoCounts(len(few)))


def test_a_defense_of_three_phases_resumes_at_every_checkpoint() -> None:
    samples, whole = pictures(48, 3), Ledger()
    train = lambda journal: ThreePhases().train(samples, builder(samples), RECIPE, journal=journal)  # noqa: E731
    unbroken = train(whole)
    assert whole.n_saved == 2 + 1 + 2 + 2, "one for each epoch and for what is remembered"
    assert [line["phase"] for line in whole.lines] == ["isolation"] * 2 + ["training"] * 2 + ["unlearning"] * 2
    assert [line["n_trained"] for line in whole.lines] == [48, 48, 43, 43, 5, 5]
    assert unbroken.verdict.isolated.sum() == unbroken.facts.n_isolated == 5
    assert unbroken.history.steps.tolist() == [0, 3, 6, 9, 12, 13, 14]
    for stop in range(1, whole.n_saved + 1):
        broken = Ledger(stop_after=stop)
        with pytest.raises(KeyboardInterrupt):
            train(broken)
        rest = Ledger(broken.kept)
        resumed = train(rest)
        assert weights(resumed.model) == weights(unbroken.model), f"stopped after checkpoint {stop}"
        assert resumed.history.losses.tobytes() == unbroken.history.losses.tobytes()
        assert resumed.verdict.suspicion.tobytes() == unbroken.verdict.suspicion.tobytes()
        assert broken.n_saved + rest.n_saved == whole.n_saved and broken.lines + rest.lines == whole.lines


def test_a_line_in_the_table_puts_it_on_the_command_line(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DEFENSES, "three-phases", ThreePhases)
    data, run = write_folder(pictures(40, 2), tmp_path / "data"), tmp_path / "run"
    code, said, _ = call("train", data, "--out", run, "--defense", "three-phases", "--help")
    assert code == 0
    for flag in ("--level", "--isolation-rate", "--isolation-epochs", "--unlearning-epochs", "--learning-rate"):
        assert flag in said
    assert "Share of the samples that are isolated" in " ".join(said.split())
    quick = ("--epochs", 1, "--isolation-epochs", 1, "--unlearning-epochs", 1, "--backbone", "wrn-10-1")
    code, _, err = call("train", data, "--out", run, "--defense", "three-phases", "--level", 0.3, *quick)
    assert (code, err) == (0, "")
    config = json.loads((run / "config.json").read_text())["settings"]
    assert config["method"] == "three-phases"
    assert config["hyper_parameters"] == {
        "level": 0.3, "isolation_rate": 0.1, "isolation_epochs": 1, "unlearning_epochs": 1,
    }  # fmt: skip
    assert json.loads((run / "metrics.json").read_text())["n_isolated"] == 3  # a tenth of the training split
