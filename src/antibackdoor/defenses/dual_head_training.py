"""The training of the network that the default defense delivers: on what was not isolated, and on what comes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from antibackdoor.data.samples import BoolArray
from antibackdoor.data.streams import Stream
from antibackdoor.defenses.recovery import Return, recover
from antibackdoor.search.caught import Caught
from antibackdoor.search.removal import Removal
from antibackdoor.training.loop import Objective, batches, cross_entropy, shuffled
from antibackdoor.training.session import Batch
from antibackdoor.training.trainer import Phase, Trainer

Later = tuple[Caught, BoolArray]  # what is isolated after the check, `(N,)` those that features alone speak against
CHECK = 3  # quarters of the training before the check; what it finds costs a training from the start


class Outcome(NamedTuple):
    """How a main training ended."""

    back: Return  # how isolated samples came back in the end
    later: Later | None  # what the check found; the training then was not finished


@dataclass(frozen=True, eq=False)
class MainTraining:
    """Everything about a main training that does not depend on what was isolated.

    Attributes:
        trainer: Device, precision, data, checkpoints.
        name: Of its fold, unique in the run.
        budget: Visits to a sample, one by one, that the training lasts.
        confidence: Least probability of another label from which an isolated sample gets it, in (0, 1].
        rejected: `(N,)` bool, samples that never come back under their given label.
        recorded: Whether the losses go into the history.
        look: Asks the network, when it has learned the classes, whether more is to be isolated; None asks nothing.
    """

    trainer: Trainer
    name: str
    budget: int
    confidence: float
    rejected: BoolArray
    recorded: bool
    look: Callable[[nn.Module, Caught], Later | None] | None

    def run(self, model: nn.Module, caught: Caught, late: BoolArray, removal: Removal | None) -> Outcome:
        """Train a network.

        Args:
            model: Untrained; it is trained in place.
            caught: What is isolated.
            late: `(N,)` bool, those of them that an earlier check found.
            removal: What to undo in the isolated samples; None if that is not known.
        """
        optimizer = self.trainer.session.optimizer(model.parameters(), self.trainer.recipe.learning_rate)
        given = self.trainer.samples.labels
        start: dict[str, Any] = {
            "back": tuple(Return.nothing(given)),
            "visits": 0,
            "asked": 0,
            "looked": self.look is None,
            "later": {},
        }

        def epoch(place: int, state: dict[str, Any]) -> dict[str, Any]:
            return self._epoch(place, state, model, optimizer, caught, late, removal)

        end = self.trainer.fold(self.name, self.budget, start, epoch, until=self._is_over, optimizer=optimizer)
        later = end["later"]
        found = (Caught(**later["caught"]), later["late"]) if later else None
        return Outcome(Return(*end["back"]), found)

    def _is_over(self, state: dict[str, Any]) -> bool:
        """A rest too small for batch statistics is left."""
        least = min(self.trainer.session.batch_size, self.budget)
        return bool(state["later"]) or self.budget - state["visits"] < least

    def _epoch(
        self,
        place: int,
        state: dict[str, Any],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        caught: Caught,
        late: BoolArray,
        removal: Removal | None,
    ) -> dict[str, Any]:
        """One pass over what is trained on now; before it, the check and the recovery where they are due."""
        trainer, budget, visits = self.trainer, self.budget, state["visits"]
        session, seed, given = trainer.session, trainer.recipe.seed, trainer.samples.labels
        back, asked, quarter = Return(*state["back"]), state["asked"], 4 * visits // budget
        looked = state["looked"]
        if quarter >= CHECK and not looked and self.look is not None:
            looked, found = True, self.look(model, caught)
            if found is not None:
                return {**state, "later": {"caught": vars(found[0]), "late": found[1]}}
        if caught.isolated.any() and quarter > asked:
            back = recover(session, trainer.feed, model, caught, late, removal, self.confidence)
            back = back.never(self.rejected)
            asked = quarter
        usable = np.flatnonzero(~caught.isolated | (back.labels != given) | back.unchanged | back.cleared)
        order = usable[shuffled(len(usable), seed, Stream.MAIN_ORDER, place)][: budget - visits]
        done = visits + len(order)
        rate = trainer.recipe.rate()
        phase = Phase(
            name=self.name,
            epochs=0,
            objective=_weighted(model, torch.from_numpy(back.weights).to(session.device)),
            learning_rate=None,
            plan=lambda _epoch: batches(order, session.batch_size),
            labels=back.labels,
            change=removal and removal.only(back.unchanged),
            recorded=self.recorded,
        )
        trainer.epoch(
            model, phase, place, optimizer, within=lambda share: rate((visits + share * (done - visits)) / budget)
        )
        return {"back": tuple(back), "visits": done, "asked": asked, "looked": looked, "later": {}}


def _weighted(model: nn.Module, weights: Tensor) -> Objective:
    def objective(batch: Batch) -> tuple[Tensor, Tensor]:
        losses = cross_entropy(model(batch.inputs), batch.labels)
        return losses * weights[batch.rows], losses

    return objective
