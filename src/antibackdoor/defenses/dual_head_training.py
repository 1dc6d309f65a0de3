"""The training of the network that E2ABL delivers: on what was not isolated, and on what comes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from antibackdoor.data.samples import BoolArray
from antibackdoor.defenses.recovery import Return, recover
from antibackdoor.search.caught import Caught
from antibackdoor.search.removal import Removal
from antibackdoor.training.loop import Journal, Objective, batches, cross_entropy, on_triangle, shuffled, train_epoch
from antibackdoor.training.session import Batch, Feed, Session

Later = tuple[Caught, BoolArray]  # what is isolated after the look, `(N,)` those that features alone speak against
LATE_LOOK = 3  # quarters of the training before it; what is found then costs a training from the start


@dataclass(frozen=True, eq=False)
class MainTraining:
    """Everything about the main training that does not depend on what was isolated.

    Attributes:
        session: Device, precision, processes, recipe.
        feed: The data with their given labels.
        journal: Keeps checkpoints.
        budget: Visits to a sample, one by one, that the training lasts.
        confidence: Least probability of another label from which an isolated sample gets it, in (0, 1].
        look: Asks the network, when it has learned the classes, whether more is to be isolated.
    """

    session: Session
    feed: Feed
    journal: Journal
    budget: int
    confidence: float
    look: Callable[[nn.Module, Caught], Later | None]

    def run(
        self,
        model: nn.Module,
        caught: Caught,
        late: BoolArray,
        removal: Removal | None,
        kept: dict[str, Any],
        state: dict[str, Any],
    ) -> tuple[Return, Later | None]:
        """Train a network.

        Args:
            model: Untrained; it is trained in place.
            caught: What is isolated.
            late: `(N,)` bool, those of them that an earlier run's look at its network found.
            removal: What to undo in the isolated samples; None if that is not known.
            kept: What belongs into the checkpoints beside the state of this training; `looked` tells whether an
                earlier run looked at its network already.
            state: A checkpoint to go on from, if its phase is "main".

        Returns:
            How isolated samples came back in the end; and what the one look at the network found, whose training then
            was not finished.
        """
        session, feed, budget = self.session, self.feed, self.budget
        recipe = session.recipe
        optimizer = session.optimizer(model.parameters(), recipe.learning_rate)
        given = feed.labels.cpu().numpy()
        back, epoch, visits, asked, looked = Return.nothing(given), 0, 0, 0, bool(kept["looked"])
        if state.get("phase") == "main":
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            back = Return(*(np.asarray(part) for part in state["back"]))
            epoch, visits, asked, looked = (state[key] for key in ("epoch", "visits", "asked", "looked"))
        while budget - visits >= min(session.batch_size, budget):  # a rest too small for batch statistics is left
            quarter = 4 * visits // budget
            if quarter >= LATE_LOOK and not looked:
                looked, found = True, self.look(model, caught)
                if found is not None:
                    return back, found
            if caught.isolated.any() and quarter > asked:
                back = recover(session, feed, model, caught, late, removal, self.confidence)
                asked = quarter
            usable = np.flatnonzero(~caught.isolated | (back.labels != given) | back.unchanged | back.cleared)
            order = usable[shuffled(len(usable), recipe.seed, 4, epoch)][: budget - visits]
            done = visits + len(order)
            losses = train_epoch(
                session,
                feed._replace(labels=torch.from_numpy(back.labels), change=removal and removal.only(back.unchanged)),
                batches(order, session.batch_size),
                model,
                _weighted(model, torch.from_numpy(back.weights).to(session.device)),
                optimizer,
                seed=(recipe.seed, 4, epoch),
                learning_rate=on_triangle(recipe.learning_rate, visits / budget, done / budget),
                title=f"epoch {epoch + 1}, to {done / budget:.0%}",
            )
            epoch, visits = epoch + 1, done
            self.journal.log(phase="training", epoch=epoch, loss=float(np.nanmean(losses)), n_trained=len(order))
            self.journal.save(
                {
                    **kept,
                    "phase": "main",
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "back": list(back),
                    "epoch": epoch,
                    "visits": visits,
                    "asked": asked,
                    "looked": looked,
                }
            )
        return back, None


def _weighted(model: nn.Module, weights: Tensor) -> Objective:
    def objective(batch: Batch) -> tuple[Tensor, Tensor]:
        losses = cross_entropy(model(batch.inputs), batch.labels)
        return losses * weights[batch.rows], losses

    return objective
