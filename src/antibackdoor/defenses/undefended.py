"""Plain training: what happens without a defense."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from antibackdoor.data.samples import Samples
from antibackdoor.protocols import Build, Trained
from antibackdoor.training.history import LossHistory
from antibackdoor.training.loop import Journal, NoJournal, batches, classify, on_triangle, shuffled, train_epoch
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.session import Session, seeded


@dataclass(frozen=True)
class Undefended:
    """Trains on all samples under their given labels, for comparison.

    Nothing is isolated. The suspicion of a sample is minus its last training loss, which says little.
    """

    def train(self, samples: Samples, build: Build, recipe: Recipe, *, journal: Journal | None = None) -> Trained:
        """Train `build()` on all samples.

        Args:
            samples: The training set.
            build: Makes the untrained network.
            recipe: Epochs, batch size, learning rate, device, seed.
            journal: Keeps checkpoints; nothing is kept by default.

        Raises:
            ConfigError: If the recipe does not fit the data or the machine.
        """
        journal = journal or NoJournal()
        n, n_epochs = len(samples), recipe.passes(len(samples))
        session = Session(recipe, n, images=samples.kind == "image")
        feed = session.feed(samples)
        model = session.prepare(seeded(build, recipe.seed))
        optimizer = session.optimizer(model.parameters(), recipe.learning_rate)
        history, first = LossHistory.start(n, samples.n_classes), 0
        if state := journal.load():
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            history, first = LossHistory.from_state(state["history"]), state["epoch"]
        for epoch in range(first, n_epochs):
            plan = batches(shuffled(n, recipe.seed, epoch), session.batch_size)
            losses = train_epoch(
                session,
                feed,
                plan,
                model,
                classify(model),
                optimizer,
                seed=(recipe.seed, epoch),
                learning_rate=on_triangle(recipe.learning_rate, epoch / n_epochs, (epoch + 1) / n_epochs),
                title=f"epoch {epoch + 1}/{n_epochs}",
            )
            history = history.append(losses, int(history.steps[-1]) + len(plan))
            journal.log(phase="training", epoch=epoch + 1, loss=float(losses.mean()))
            journal.save(
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "history": history.state(),
                    "epoch": epoch + 1,
                }
            )
        nothing = np.zeros(n, dtype=bool)
        return Trained(
            model=session.finished(model, build),
            history=history,
            suspicion=-history.losses[-1].astype(np.float64),
            isolated=nothing,
            recovered=nothing,
            labels=samples.labels,
        )
