"""E2ABL as its paper has it: Algorithm 1, every constant and every ambiguity of the paper a field."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from antibackdoor.data.samples import BoolArray, IntArray, Samples
from antibackdoor.models.two_head import HeadWidth, TrunkGrad, TwoHead, split_network
from antibackdoor.protocols import Build, Trained
from antibackdoor.statistics.isolation import highest, loss_drop
from antibackdoor.training.history import Losses, LossHistory
from antibackdoor.training.loop import (
    Journal,
    NoJournal,
    Objective,
    batches,
    cross_entropy,
    evaluate,
    shuffled,
    train_epoch,
)
from antibackdoor.training.ranges import check_choices, check_ranges
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.session import Batch, Session, seeded


@dataclass(frozen=True)
class E2ABL:
    """E2ABL with the constants of the paper (Jiang et al., "End-to-End Anti-Backdoor Learning on Images and Time
    Series", arXiv 2401.03215, Equations 4 and 5, Algorithm 1).

    After a warm-up of the second head, each epoch ranks all samples by their loss drop, isolates a fixed share,
    trains the main head on the rest and the second head on the isolated, and gives the most suspicious samples the
    label that the main head finds second to the backdoor label. Where the paper contradicts itself or is silent, a
    field says which reading is taken. Augmentation is off, as in the paper; the recipe's epochs include the warm-up.

    Attributes:
        attach: Layer of the second head; empty for about the middle (stage 2 of a ResNet, as in the paper).
        head_width: Channels of the second head; 0 for five times the layer's, which makes ResNet-34 1.2 times
            larger, as stated (the paper gives no widths).
        two_models: Train a separate trunk for the second head (the paper's ablation).
        warmup_epochs: Epochs that train the second head alone, >= 0.
        warmup_learning_rate: Its learning rate.
        warmup_trunk: Whether the warm-up also trains the trunk; Algorithm 1 names the head only, but a trunk left at
            random would learn nothing.
        learning_rate: Learning rate of trunk and main head after the warm-up.
        second_learning_rate: Learning rate of the second head after the warm-up.
        momentum: Nesterov momentum (not stated; the value of the authors' earlier code).
        weight_decay: L2 penalty (not stated; likewise).
        isolation_rate: Share of samples isolated, in (0, 1): the paper's 20%.
        recovery_rate: Share of all samples that are relabelled, in [0, isolation_rate]: the text's 1% (Algorithm 1
            relabels all isolated ones).
        least_recovered: Fewest samples to relabel, for tiny data.
        initial_loss: What stands for the loss before training: the constant `log_k`; the `measured` loss of the
            untrained network; or none (`after_epoch_1`: the history starts after the first epoch).
        loss_source: Losses from an `evaluation` pass after each epoch, or those met in training (`online`).
        weighting: `per_sample` counts every sample once (Algorithm 1); `eq4` gives each of the three expectations of
            Equation 4 weight 1.
        trunk_grad: Which losses reach the trunk after the warm-up: `joint` both heads', `main` only the main
            head's, `none` neither.
        label_vote: The backdoor label is the class with the largest mean probability among the top samples
            (`mean_softmax`), or the most frequent prediction (`majority`).
        release_nonbackdoor: Also train the main head on isolated samples whose given label is not the backdoor
            label.
        keep_nonbackdoor: Leave the given label to top samples that do not carry the backdoor label.
        recovery_delay: Epochs after the warm-up in which nothing is relabelled, since the main head is untrained.
        trap_keeps_top: Whether the second head keeps training on top samples under their given labels.
        control: `recover` relabels the top samples; `unlearn` ascends their loss, bounded by log K (Table III);
            `none` leaves the third term out.
    """

    attach: str = ""
    head_width: int = 0
    two_models: bool = False
    warmup_epochs: int = 2
    warmup_learning_rate: float = 0.1
    warmup_trunk: bool = True
    learning_rate: float = 0.01
    second_learning_rate: float = 0.005
    momentum: float = 0.9
    weight_decay: float = 1e-4
    isolation_rate: float = 0.2
    recovery_rate: float = 0.01
    least_recovered: int = 5
    initial_loss: Literal["log_k", "measured", "after_epoch_1"] = "log_k"
    loss_source: Literal["evaluation", "online"] = "evaluation"
    weighting: Literal["per_sample", "eq4"] = "per_sample"
    trunk_grad: Literal["joint", "main", "none"] = "joint"
    label_vote: Literal["mean_softmax", "majority"] = "mean_softmax"
    release_nonbackdoor: bool = False
    keep_nonbackdoor: bool = False
    recovery_delay: int = 1
    trap_keeps_top: bool = True
    control: Literal["recover", "unlearn", "none"] = "recover"

    def train(self, samples: Samples, build: Build, recipe: Recipe, *, journal: Journal | None = None) -> Trained:
        """Train `build()` by Algorithm 1.

        Args:
            samples: The training set.
            build: Makes the untrained network.
            recipe: Epochs (warm-up included), batch size, device, seed.
            journal: Keeps checkpoints; nothing is kept by default.

        Raises:
            ConfigError: If a rate is out of range or the recipe does not fit.
            ModelError: If the network cannot be split.
        """
        self._check()
        return Algorithm1(self, samples, build, recipe, journal or NoJournal()).run()

    def _check(self) -> None:
        check_ranges(
            self,
            head_width="[0, inf)",
            warmup_epochs="[0, inf)",
            warmup_learning_rate="(0, 100)",
            learning_rate="(0, 100)",
            second_learning_rate="(0, 100)",
            momentum="[0, 1)",
            weight_decay="[0, 100)",
            isolation_rate="(0, 1)",
            recovery_rate=f"[0, {self.isolation_rate}]",
            least_recovered="[0, inf)",
            recovery_delay="[0, inf)",
        )
        check_choices(self)


@dataclass(frozen=True, eq=False)
class Partition:
    """Who trains which head in the next epoch."""

    isolated: BoolArray  # (N,) the second head's samples
    top: BoolArray  # (N,) the most suspicious ones, to be relabelled
    labels: IntArray  # (N,) the given label, or the recovered one for `top`
    backdoor_label: int


class Algorithm1:
    """One run of Algorithm 1: its state is what a checkpoint keeps."""

    def __init__(self, method: E2ABL, samples: Samples, build: Build, recipe: Recipe, journal: Journal) -> None:
        self.method, self.samples, self.build, self.journal = method, samples, build, journal
        self.n, self.n_classes = len(samples), samples.n_classes
        self.session = Session(recipe, self.n, images=samples.kind == "image")
        self.feed = self.session.feed(samples)._replace(augmentations=())
        self.n_epochs = recipe.passes(self.n)
        self.net = self._two_heads(recipe.seed)
        # The ablation with two models gives the second head a trunk of its own.
        self.trap = self._two_heads(recipe.seed + 1) if method.two_models else self.net
        self.warmup = self._optimizer(method.warmup_learning_rate, method.warmup_learning_rate)
        self.optimizer = self._optimizer(method.learning_rate, method.second_learning_rate)
        self.history = self._first_history()
        self.losses = self.history.losses[0]
        self.partition: Partition | None = None
        self.epoch = 0

    def run(self) -> Trained:
        if state := self.journal.load():
            self._restore(state)
        while self.epoch < self.n_epochs:
            warming = self.epoch < self.method.warmup_epochs
            if not warming and self.partition is None:
                self.partition = self._divide()
            cuts = self._batches(warming)
            losses = self._epoch(warming, cuts)
            if self.method.loss_source == "evaluation":
                losses = self._second_losses()
            self.losses = np.where(np.isnan(losses), self.losses, losses)
            self.history = self.history.append(self.losses, int(self.history.steps[-1]) + len(cuts))
            self.epoch += 1
            if self.epoch >= self.method.warmup_epochs:
                self.partition = self._divide()
            self._note(warming)
        partition = self.partition or self._divide()
        return Trained(
            model=self.session.finished(self.net.deliver(), self.build),
            history=self.history,
            suspicion=loss_drop(self._ranked_history()),
            isolated=partition.isolated,
            recovered=partition.top & (partition.labels != self.samples.labels),
            labels=partition.labels,
            backdoor_labels=(partition.backdoor_label,),
        )

    def _two_heads(self, seed: int) -> TwoHead:
        def both() -> TwoHead:
            example = torch.zeros(2, *self.samples.shape)
            width: HeadWidth = self.method.head_width or "published"
            attach = self.method.attach or None
            return split_network(self.build(), example, self.n_classes, attach=attach, head_width=width)

        net = seeded(both, seed)
        self.session.prepare(net)
        return net

    def _optimizer(self, main: float, second: float) -> torch.optim.SGD:
        groups: list[dict[str, Any]] = [{"params": list(self.net.network.parameters()), "lr": main}]
        if self.trap is not self.net:
            groups.append({"params": list(self.trap.network.parameters()), "lr": second})
        groups.append({"params": list(self.trap.second.parameters()), "lr": second})
        settings = self.method
        return torch.optim.SGD(
            groups, momentum=settings.momentum, weight_decay=settings.weight_decay, nesterov=settings.momentum > 0
        )

    def _first_history(self) -> LossHistory:
        history = LossHistory.start(self.n, self.n_classes)
        if self.method.initial_loss == "measured":
            # A zero-initialized last layer would make every loss log K again.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.session.recipe.seed)
                last = [m for m in self.trap.second.modules() if isinstance(m, nn.Linear)][-1]
                last.reset_parameters()
            return LossHistory(self._second_losses()[None], history.steps)
        return history

    def _ranked_history(self) -> LossHistory:
        if self.method.initial_loss == "after_epoch_1" and len(self.history) > 2:
            return LossHistory(self.history.losses[1:], self.history.steps[1:])
        return self.history

    def _epoch(self, warming: bool, cuts: list[IntArray]) -> Losses:
        objective = self._warming() if warming or self.partition is None else self._three_terms(self.partition)
        return train_epoch(
            self.session,
            self.feed,
            cuts,
            self._trained(),
            objective,
            self.warmup if warming else self.optimizer,
            seed=(self.session.recipe.seed, self.epoch),
            augmented=False,
            title=f"{'warm-up ' if warming else ''}epoch {self.epoch + 1}/{self.n_epochs}",
        )

    def _trained(self) -> nn.Module:
        return self.net if self.trap is self.net else nn.ModuleList([self.net, self.trap])

    def _batches(self, warming: bool) -> list[IntArray]:
        """All rows once; with `eq4`, a third of each batch is drawn from the relabelled samples."""
        seed, size = self.session.recipe.seed, self.session.batch_size
        rows = shuffled(self.n, seed, self.epoch)
        top = np.flatnonzero(self.partition.top) if self.partition is not None else rows[:0]
        if warming or self.method.weighting == "per_sample" or not len(top):
            return batches(rows, size)
        rng, drawn = np.random.default_rng((seed, 5, self.epoch)), max(1, size // 3)
        return [np.concatenate([cut, rng.choice(top, drawn)]) for cut in batches(rows, size - drawn)]

    def _warming(self) -> Objective:
        trunk_grad: TrunkGrad = "joint" if self.method.warmup_trunk else "none"

        def objective(batch: Batch) -> tuple[Tensor, Tensor]:
            nobody = torch.zeros(0, dtype=torch.int64, device=batch.rows.device)
            _, logits = self.trap.both(batch.inputs, nobody, trunk_grad=trunk_grad)
            losses = cross_entropy(logits, batch.labels)
            return losses, losses

        return objective

    def _three_terms(self, partition: Partition) -> Objective:
        """Equation 4: the main head on the clean part and on relabelled samples, the second head on the isolated."""
        method, device = self.method, self.session.device
        recovering = self.epoch >= method.warmup_epochs + method.recovery_delay
        top = partition.top if recovering and method.control != "none" else np.zeros(self.n, dtype=bool)
        released = partition.isolated & (self.samples.labels != partition.backdoor_label)
        clean = ~partition.isolated | (released & method.release_nonbackdoor & ~top)
        trapped = partition.isolated if method.trap_keeps_top else partition.isolated & ~partition.top
        in_clean, in_top, in_trap = (torch.from_numpy(mask).to(device) for mask in (clean, top, trapped))
        recovered = torch.from_numpy(partition.labels).to(device)

        def objective(batch: Batch) -> tuple[Tensor, Tensor]:
            is_clean, is_top, is_trap = in_clean[batch.rows], in_top[batch.rows], in_trap[batch.rows]
            places = (is_clean | is_top).nonzero()[:, 0]
            if self.trap is self.net:
                main, second = self.net.both(batch.inputs, places, trunk_grad=method.trunk_grad)
            else:
                main, second = self.net(batch.inputs[places]), self.trap.second_logits(batch.inputs)
            of_second = cross_entropy(second, batch.labels)
            if method.control == "unlearn":
                bound = float(np.log(self.n_classes))
                ascent = -cross_entropy(main, batch.labels[places]).clamp_max(bound)
                of_main = torch.where(is_top[places], ascent, cross_entropy(main, batch.labels[places]))
            else:
                of_main = cross_entropy(main, recovered[batch.rows[places]])
            every_main = torch.zeros_like(of_second).index_put((places,), of_main)
            weights = self._weights(is_clean, is_top, is_trap)
            return every_main * weights[0] + of_second * weights[1], of_second

        return objective

    def _weights(self, is_clean: Tensor, is_top: Tensor, is_trap: Tensor) -> tuple[Tensor, Tensor]:
        """Weights `(B,)` of each sample's main and second loss."""
        if self.method.weighting == "per_sample":
            return (is_clean | is_top).float(), is_trap.float()
        size = len(is_clean)
        main = sum(mask.float() * (size / mask.sum().clamp_min(1)) for mask in (is_clean, is_top))
        return torch.as_tensor(main), is_trap.float() * (size / is_trap.sum().clamp_min(1))

    def _second_losses(self) -> Losses:
        """Loss of every sample on the second head, in eval mode."""
        self.trap.eval()
        losses = evaluate(self.session, self.feed, self.trap.second_logits, cross_entropy, title="measuring losses")
        self.trap.train()
        return losses

    def _divide(self) -> Partition:
        """Lines 7 to 10 of Algorithm 1: isolate, name the backdoor label, relabel the most suspicious."""
        method = self.method
        drop, ties = loss_drop(self._ranked_history()), self.losses.astype(np.float64)
        isolated = highest(drop, ties, method.isolation_rate)
        least = method.least_recovered if method.recovery_rate else 0
        top = highest(drop, ties, method.recovery_rate, at_least=least) & isolated
        rows, given = np.flatnonzero(top), self.samples.labels
        labels = given.copy()
        if not len(rows):
            return Partition(isolated, top, labels, int(np.bincount(given[isolated]).argmax()))
        backdoor_label = self._vote(rows)
        self.net.eval()
        main = evaluate(self.session, self.feed, self.net, lambda logits, _labels: logits, rows, title="recovering")
        self.net.train()
        main[:, backdoor_label] = -np.inf
        suggested = main.argmax(1)
        if method.keep_nonbackdoor:
            suggested = np.where(given[rows] == backdoor_label, suggested, given[rows])
        labels[rows] = suggested
        return Partition(isolated, top, labels, backdoor_label)

    def _vote(self, rows: IntArray) -> int:
        """The label that the second head predominantly gives to the most suspicious samples."""
        self.trap.eval()
        probabilities = evaluate(
            self.session,
            self.feed,
            self.trap.second_logits,
            lambda logits, _labels: logits.softmax(1),
            rows,
            title="naming the backdoor label",
        )
        self.trap.train()
        if self.method.label_vote == "majority":
            return int(np.bincount(probabilities.argmax(1), minlength=self.n_classes).argmax())
        return int(probabilities.mean(0).argmax())

    def _note(self, warming: bool) -> None:
        partition = self.partition
        self.journal.log(
            phase="warm-up" if warming else "training",
            epoch=self.epoch,
            loss=float(self.losses.mean()),
            n_isolated=0 if partition is None else int(partition.isolated.sum()),
            backdoor_label=None if partition is None else partition.backdoor_label,
        )
        self.journal.save(
            {
                "model": self._trained().state_dict(),
                "warmup": self.warmup.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "history": self.history.state(),
                "epoch": self.epoch,
                "partition": None if partition is None else asdict(partition),
            }
        )

    def _restore(self, state: dict[str, Any]) -> None:
        self._trained().load_state_dict(state["model"])
        self.warmup.load_state_dict(state["warmup"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history = LossHistory.from_state(state["history"])
        self.losses, self.epoch = self.history.losses[-1], state["epoch"]
        if kept := state["partition"]:
            self.partition = Partition(
                np.asarray(kept["isolated"], dtype=bool),
                np.asarray(kept["top"], dtype=bool),
                np.asarray(kept["labels"], dtype=np.int64),
                kept["backdoor_label"],
            )
