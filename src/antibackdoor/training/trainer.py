"""Phases of training: a defense says what they are, the trainer runs them, keeps checkpoints and resumes.

    trainer = Trainer(samples, recipe, journal)
    model = trainer.network(build)
    trainer.run(model, Phase("isolation", epochs=20, objective=flooding(model, 0.5), learning_rate=constant(0.1)))
    isolated = trainer.remember("isolated", lambda: lowest(trainer.losses(model), 0.01))
    trainer.run(model, Phase("training", epochs=60, rows=np.flatnonzero(~isolated), ...))

After a kill the same code runs again from its first line. Networks come back as the last checkpoint has them, finished
phases and folds are passed over, and what was remembered is not computed again. So whatever is computed from a network
between two phases must go through `remember`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from antibackdoor.data.samples import IntArray, Samples
from antibackdoor.data.streams import Stream, number
from antibackdoor.errors import ConfigError
from antibackdoor.training.history import Losses, LossHistory
from antibackdoor.training.journal import Journal, NoJournal, spoken
from antibackdoor.training.loop import Objective, batches, cross_entropy, shuffled, train_epoch
from antibackdoor.training.mixing import MIXES, mixed
from antibackdoor.training.recipe import Recipe, augmentation_names, mixing_names
from antibackdoor.training.schedules import Schedule
from antibackdoor.training.session import Feed, Network, Session, seeded

Kept = TypeVar("Kept")


WORTH_TELLING = 60.0  # seconds that a phase has still to go, from which it is told


@dataclass(frozen=True, eq=False)
class Phase:
    """A part of a training in which nothing changes but the weights and the learning rate.

    Attributes:
        name: For the log and the progress bar; no two phases of a training share one.
        epochs: Passes over the rows, >= 0.
        objective: What each batch descends, and what of each sample is recorded.
        learning_rate: As a function of the done share of the phase; None leaves the optimizer its own.
        rows: `(M,)` positions of the samples to train on; all by default.
        augment: Names of augmentations as in `Recipe.augment`; the recipe's by default, `none` for none.
        batch_size: Samples a step; the recipe's by default.
        plan: Rows of each batch of an epoch, for phases that do not visit each row once.
        labels: `(N,)` int64 labels in place of the given ones, or `(N, K)` float32 soft labels.
        change: `(inputs, rows)` to inputs, before augmentation: samples as this phase sees them.
        recorded: Whether its losses go into the history.
    """

    name: str
    epochs: int
    objective: Objective
    learning_rate: Schedule | None
    rows: IntArray | None = None
    augment: str | None = None
    batch_size: int | None = None
    plan: Callable[[int], list[IntArray]] | None = None
    labels: Any = None
    change: Callable[[Tensor, Tensor], Tensor] | None = None
    recorded: bool = True


class Trainer:
    """Runs the phases of one training. It owns networks, optimizers, the loss history and the checkpoint.

    Attributes:
        session: Device, precision, processes.
        feed: The data, ready for cutting batches.
        history: Loss of each sample after each epoch of each phase; a sample that was not seen keeps its value.
        resumed: Whether there was a checkpoint.
    """

    def __init__(
        self, samples: Samples, recipe: Recipe, journal: Journal | None = None, *, mixes: bool = False
    ) -> None:
        """Prepare the data, and load the checkpoint if there is one.

        Args:
            samples: The training set.
            recipe: How to train.
            journal: Keeps checkpoints; nothing is kept by default.
            mixes: Whether all phases that take the recipe's augmentation are plain classification, so that it may
                mix samples and their labels (`mixup`, `cutmix`).

        Raises:
            ConfigError: If the recipe does not fit the data, the machine or the method.
            RunError: If the checkpoint is damaged.
        """
        if mixing_names(recipe.augment) and not mixes:
            raise ConfigError(
                f"augmentation '{mixing_names(recipe.augment)[0]}' mixes labels, and this method needs those of single "
                "samples: leave it out of --augment, or choose another method"
            )
        self.samples, self.recipe, self.journal = samples, recipe, journal or NoJournal()
        self.session = Session(recipe, len(samples), images=samples.kind == "image")
        self.feed = self.session.feed(samples)
        self.history = LossHistory.start(len(samples), samples.n_classes)
        self._modules: list[Any] = []  # networks and optimizers, in the order in which they were made
        self._finished: dict[str, Any] = {}  # results of finished phases and folds, and what was remembered
        self._current: dict[str, Any] = {}  # the fold under way: name, step, state
        self._depth = 0
        self._timed: set[str] = set()  # phases of which it was told how long they take
        self._restored: list[Any] = []
        state = self.journal.load()
        self.resumed = bool(state)
        if state:
            self._restored = list(state["modules"])
            self._finished, self._current = dict(state["finished"]), dict(state["current"])
            self.history = LossHistory.from_state(state["history"])

    @property
    def passes(self) -> int:
        """Passes over the data that the recipe asks for."""
        return self.recipe.passes(len(self.samples))

    # ----------------------------------------------------------------------- what is trained

    def network(self, build: Callable[[], Network], *, index: int = 0) -> Network:
        """A network on the session's device; its first weights depend on the recipe's seed and the index alone."""
        model = seeded(build, number(self.recipe.seed, Stream.WEIGHTS, index))
        self.session.prepare(model)
        self._adopt(model)
        return model

    def optimizer(self, parameters: Iterable[Any], **settings: float) -> torch.optim.SGD:
        """SGD that lives longer than a phase; `settings` replace the recipe's momentum and weight decay.

        Args:
            parameters: Parameters, or groups of them with learning rates of their own.
            settings: `momentum`, `weight_decay`, `nesterov` (0 or 1).
        """
        optimizer = self._sgd(parameters, **settings)
        self._adopt(optimizer)
        return optimizer

    def _sgd(
        self,
        parameters: Iterable[Any],
        momentum: float | None = None,
        weight_decay: float | None = None,
        nesterov: float = 1,
    ) -> torch.optim.SGD:
        kept = self.recipe.momentum if momentum is None else momentum
        return torch.optim.SGD(
            list(parameters),
            lr=self.recipe.learning_rate,
            momentum=kept,
            weight_decay=self.recipe.weight_decay if weight_decay is None else weight_decay,
            nesterov=bool(nesterov) and kept > 0,
        )

    def _adopt(self, module: Any) -> None:
        """Give a network or optimizer the state that the checkpoint has of it."""
        place = len(self._modules)
        self._modules.append(module)
        if place < len(self._restored):
            module.load_state_dict(self._restored[place])

    def delivered(self, model: nn.Module, build: Callable[[], nn.Module]) -> nn.Module:
        """The trained weights in a network as `build` makes it, on the CPU, in eval mode."""
        return self.session.finished(model, build)

    # ----------------------------------------------------------------------- what is done

    def run(self, model: nn.Module, phase: Phase, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Run a phase, or what is left of it.

        Args:
            model: The network in training; also the owner of the gradients that processes average.
            phase: What to do.
            optimizer: One that outlives the phase; a new one by default.

        Raises:
            ConfigError: If the phase cannot be run, or a loss is not finite.
        """
        if phase.name in self._finished:
            return
        if phase.epochs < 0:
            raise ConfigError(f"the phase {phase.name!r} has {phase.epochs} epochs; give 0 or more")
        own = optimizer is None
        steps = optimizer or self._sgd([p for p in model.parameters() if p.requires_grad])

        def epoch(place: int, _state: None) -> None:
            self.epoch(model, phase, place, steps)

        self.fold(phase.name, phase.epochs, None, epoch, optimizer=steps if own else None)

    def epoch(
        self,
        model: nn.Module,
        phase: Phase,
        epoch: int,
        optimizer: torch.optim.Optimizer,
        *,
        within: Schedule | None = None,
    ) -> Losses:
        """One pass of a phase; for folds that do more than this in a step.

        Args:
            model: The network in training.
            phase: What to do; its `epochs` may be 0 where their number is not known.
            epoch: Number of the pass, from 0 on.
            optimizer: Its steps are taken.
            within: Learning rate as a function of the done share of this pass; follows from the phase by default.

        Returns:
            `(N,)` the recorded losses, nan for samples that were not seen.
        """
        seed, size = self.recipe.seed, phase.batch_size or self.session.batch_size
        mixes = [MIXES[name] for name in mixing_names(self.recipe.augment if phase.augment is None else phase.augment)]
        rows = np.arange(len(self.samples), dtype=np.int64) if phase.rows is None else phase.rows
        key = stable_key(phase.name)
        if phase.plan is not None:
            plan = phase.plan(epoch)
        else:
            plan = batches(rows[shuffled(len(rows), seed, Stream.ORDER, key, epoch)], size)
        started = time.perf_counter()
        losses = train_epoch(
            self.session,
            self.feed_of(phase),
            plan,
            model,
            mixed(phase.objective, mixes, self.samples.n_classes) if mixes else phase.objective,
            optimizer,
            seed=(seed, Stream.STEP, key, epoch),
            learning_rate=within or self._rate(phase, epoch),
            title=f"{phase.name} {epoch + 1}" + (f"/{phase.epochs}" if phase.epochs else ""),
        )
        self._tell_what_is_left(phase, epoch, time.perf_counter() - started)
        seen = ~np.isnan(losses)
        if phase.recorded:
            kept = np.where(seen, losses, self.history.losses[-1])
            self.history = self.history.append(kept, int(self.history.steps[-1]) + len(plan))
        mean = float(losses[seen].mean()) if seen.any() else float("nan")
        self.journal.log(phase=phase.name, epoch=epoch + 1, loss=mean, n_trained=int(seen.sum()))
        return losses

    def _tell_what_is_left(self, phase: Phase, epoch: int, seconds: float) -> None:
        """After the first pass of a long phase, how long the others take."""
        left = seconds * (phase.epochs - epoch - 1)
        if phase.name not in self._timed and left >= WORTH_TELLING:
            self.journal.tell(f"{phase.name}: {spoken(left)} left on this machine")
        self._timed.add(phase.name)

    def _rate(self, phase: Phase, epoch: int) -> Schedule | None:
        """The learning rate within an epoch."""
        rate = phase.learning_rate
        return None if rate is None else lambda done: rate((epoch + done) / max(phase.epochs, 1))

    def feed_of(self, phase: Phase) -> Feed:
        """The data as a phase sees them: its augmentations, its labels."""
        feed = self.feed
        if phase.augment is not None:
            feed = feed._replace(augmentations=augmentation_names(phase.augment, self.samples))
        if phase.labels is not None:
            feed = feed._replace(labels=torch.as_tensor(phase.labels))
        if phase.change is not None:
            feed = feed._replace(change=phase.change)
        return feed

    def fold(
        self,
        name: str,
        n_steps: int,
        start: Kept,
        step: Callable[[int, Kept], Kept],
        *,
        until: Callable[[Kept], bool] = lambda _: False,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> Kept:
        """`state = step(i, state)` for i in 0..n-1, with a checkpoint after each step.

        Args:
            name: Unique in this training.
            n_steps: How many steps.
            start: The first state: nested dicts and tuples of arrays, tensors, numbers and strings, or None.
            step: Makes the next state; it may train networks of this trainer.
            until: Ends it early, before a step, if true of the state.
            optimizer: One that lives as long as the fold.

        Returns:
            The last state.
        """
        if name in self._finished:
            return cast(Kept, restored(self._finished[name], start))
        first, state = 0, start
        if self._current.get("name") == name:
            first, state = int(self._current["step"]), restored(self._current["state"], start)
            if optimizer is not None:
                optimizer.load_state_dict(self._current["optimizer"])
        self._depth += 1
        for place in range(first, n_steps):
            if until(state):
                break
            state = step(place, state)
            if self._depth == 1 and place + 1 < n_steps and not until(state):
                kept = None if optimizer is None else optimizer.state_dict()
                self._current = {"name": name, "step": place + 1, "state": state, "optimizer": kept}
                self._save()
        self._depth -= 1
        if self._depth == 0:
            self._finished[name], self._current = state, {}
            self._save()
        return state

    def remember(self, name: str, compute: Callable[[], Kept]) -> Kept:
        """The result of a computation, which is not repeated when the run resumes.

        Args:
            name: Unique in this training.
            compute: Returns an array, or nested dicts and tuples of arrays, numbers and strings.
        """
        key = f"remembered {name}"
        if key in self._finished:
            return cast(Kept, restored(self._finished[key], None))
        value = compute()
        if self._depth == 0:
            self._finished[key] = value
            self._save()
        return value

    def losses(self, model: nn.Module, rows: IntArray | None = None) -> Losses:
        """Cross-entropy of samples under a network in eval mode, without augmentation, `(M,)`."""
        was_training = model.training
        model.eval()
        values = self.session.evaluate(self.feed, model, cross_entropy, rows, title="measuring losses")
        model.train(was_training)
        return values

    def _save(self) -> None:
        self.journal.save(
            {
                "modules": [module.state_dict() for module in self._modules],
                "finished": self._finished,
                "current": self._current,
                "history": self.history.state(),
            }
        )


def stable_key(name: str) -> int:
    """A number for the name of a phase, the same in every process."""
    return int.from_bytes(name.encode("utf-8"), "little") % (2**31 - 1)


def restored(value: Any, like: Any) -> Any:
    """What a checkpoint gives back: tensors become arrays again, unless the first state had tensors there."""
    if isinstance(value, dict):
        return {key: restored(part, like.get(key) if isinstance(like, dict) else None) for key, part in value.items()}
    if isinstance(value, list | tuple):
        parts = like if isinstance(like, list | tuple) and len(like) == len(value) else [None] * len(value)
        return type(value)(restored(part, other) for part, other in zip(value, parts, strict=True))
    if isinstance(value, Tensor) and not isinstance(like, Tensor):
        return value.numpy()
    return value
