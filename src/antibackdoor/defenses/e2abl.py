"""E2ABL as its paper has it: Algorithm 1, every constant and every ambiguity of the paper a field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from antibackdoor.data.samples import BoolArray, IntArray, Samples
from antibackdoor.data.streams import Stream, number, stream
from antibackdoor.errors import ConfigError
from antibackdoor.models.two_head import HeadWidth, TrunkGrad, TwoHead, split_network
from antibackdoor.protocols import (
    ISOLATED,
    KEPT,
    NO_CRITERION,
    RELABELED,
    SCORE,
    Build,
    Given,
    Trained,
    Verdict,
    check_given,
)
from antibackdoor.statistics.isolation import highest, loss_drop
from antibackdoor.training.history import Losses, LossHistory
from antibackdoor.training.journal import Journal
from antibackdoor.training.loop import Objective, batches, cross_entropy, shuffled
from antibackdoor.training.ranges import check_choices, check_ranges
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.session import Batch
from antibackdoor.training.trainer import Phase, Trainer

MIDWAY = 10  # epochs after the warm-up at which Table II measures the partition


@dataclass(frozen=True)
class E2ABL:
    """E2ABL with the constants of the paper (Jiang et al., "End-to-End Anti-Backdoor Learning on Images and Time
    Series", arXiv 2401.03215, Equations 4 and 5, Algorithm 1).

    After a warm-up of the second head, each epoch ranks all samples by their loss drop, isolates a fixed share,
    trains the main head on the rest and the second head on the isolated, and gives the most suspicious samples the
    label that the main head finds second to the backdoor label. Where the paper contradicts itself or is silent, a
    field says which reading is taken.

    Attributes:
        attach: Layer of the second head; empty for about the middle (stage 2 of a ResNet, as in the paper).
        head_width: Channels of the second head; 0 for enough to make the network 1.2 times as large, as the paper
            states for its own (it gives no widths; on ResNet-34 about 640).
        two_models: Train a separate trunk for the second head (the paper's ablation).
        epochs: Passes over the data, including the warm-up, >= 1: the paper's 60.
        augment: Augmentations, as in the recipe. The paper mentions none; the group's earlier ABL trains with
            `crop,flip,cutout`.
        warmup_epochs: Epochs that train only the second head, >= 0.
        warmup_learning_rate: Its learning rate.
        warmup_trunk: Also train the trunk in the warm-up; Algorithm 1 names only the head, but a head on a random trunk
            would learn nothing.
        learning_rate: Learning rate of trunk and main head after the warm-up.
        second_learning_rate: Learning rate of the second head after the warm-up.
        momentum: Nesterov momentum (not stated; the value of the authors' earlier code).
        weight_decay: L2 penalty (not stated; likewise).
        isolation_rate: Share of samples isolated, in (0, 1): the paper's 20%.
        recovery_rate: Share of all samples to relabel, in [0, isolation_rate]: the text's 1% (Algorithm 1 relabels all
            isolated samples).
        least_recovered: Minimum number of samples to relabel, for tiny data.
        initial_loss: Loss before training: the constant `log_k`; the `measured` loss of the untrained network; or none
            (`after_epoch_1`: the history starts after the first epoch).
        loss_source: Losses from an `evaluation` pass after each epoch, or the training losses (`online`).
        weighting: `per_sample` counts every sample once (Algorithm 1); `eq4` gives each of the three expectations of
            Equation 4 weight 1.
        trunk_grad: Losses that train the trunk after the warm-up: `joint` both heads', `main` only the main head's,
            `none` neither.
        label_vote: The backdoor label is the class with the largest mean probability among the top samples
            (`mean_softmax`), or the most frequent prediction (`majority`).
        release_nonbackdoor: Also train the main head on isolated samples whose given label is not the backdoor
            label.
        keep_nonbackdoor: Leave the given label to top samples that do not carry the backdoor label.
        recovery_delay: Epochs after the warm-up without relabeling, since the main head is still untrained.
        second_keeps_top: Keep training the second head on top samples under their given labels.
        control: `recover` relabels the top samples; `unlearn` ascends the loss of the backdoor label on them, bounded
            by log K (Table III); `none` omits the third term.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[tuple[str, ...]] = ()
    unused: ClassVar[tuple[str, ...]] = ("schedule",)

    attach: str = ""
    head_width: int = 0
    two_models: bool = False
    epochs: int = 60
    augment: str = "none"
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
    second_keeps_top: bool = True
    control: Literal["recover", "unlearn", "none"] = "recover"

    def train(
        self,
        samples: Samples,
        build: Build,
        recipe: Recipe,
        *,
        given: Given | None = None,
        journal: Journal | None = None,
    ) -> Trained:
        """Train `build()` by Algorithm 1.

        Args:
            samples: The training set.
            build: Makes the untrained network.
            recipe: Batch size, device, seed; this method has epochs, learning rates and augmentation of its own.
            given: Nothing is used.
            journal: Keeps checkpoints; nothing is kept by default.

        Raises:
            ConfigError: If a rate is out of range or the recipe does not fit.
            ModelError: If the network cannot be split.
        """
        check_given(self, given)
        self._check()
        own = replace(recipe, augment=self.augment, momentum=self.momentum, weight_decay=self.weight_decay)
        return _Algorithm1(self, Trainer(samples, own, journal), build).run()

    @staticmethod
    def as_published() -> None:
        """Refused: `E2ABL` itself is the published form now."""
        raise ConfigError("E2ABL.as_published() is E2ABL() now; what E2ABL() was is DualHead()")

    def _check(self) -> None:
        check_ranges(
            self,
            head_width="[0, inf)",
            epochs="[1, inf)",
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
    top: BoolArray  # (N,) the most suspicious of them, to be relabeled
    labels: IntArray  # (N,) the given label, or the recovered one for `top`
    backdoor_label: int


class _Algorithm1:
    """One run: the networks, and what does not change while they train."""

    def __init__(self, method: E2ABL, trainer: Trainer, build: Build) -> None:
        self.method, self.trainer, self.build = method, trainer, build
        self.samples, self.session = trainer.samples, trainer.session
        self.n, self.n_classes, self.seed = len(self.samples), self.samples.n_classes, trainer.recipe.seed
        self.net = trainer.network(self._two_heads)
        # The ablation with two models gives the second head a trunk of its own.
        self.side = trainer.network(self._two_heads, index=1) if method.two_models else self.net
        self.trained = self.net if self.side is self.net else nn.ModuleList([self.net, self.side])
        self.warmup = self._optimizer(method.warmup_learning_rate, method.warmup_learning_rate)
        self.optimizer = self._optimizer(method.learning_rate, method.second_learning_rate)
        self.order = stream(self.seed, Stream.TIES).permutation(self.n)

    def run(self) -> Trained:
        """All epochs, each with a partition of its own."""
        first = self.trainer.remember("first losses", self._first_losses)
        start: dict[str, Any] = {"losses": first[None], "steps": np.zeros(1, dtype=np.int64), "now": {}, "midway": {}}
        end = self.trainer.fold("algorithm 1", self.method.epochs, start, self._step)
        history = LossHistory(end["losses"], end["steps"])
        then = 1 + self.method.warmup_epochs + MIDWAY
        halfway = LossHistory(history.losses[:then], history.steps[:then])
        return Trained(
            model=self.trainer.delivered(self.net.deliver(), self.build),
            history=history,
            verdict=self._verdict(Partition(**end["now"]), history),
            midway=self._verdict(Partition(**end["midway"]), halfway) if end["midway"] else None,
        )

    def _step(self, epoch: int, state: dict[str, Any]) -> dict[str, Any]:
        """One epoch, and the partition for the next one."""
        method, history = self.method, LossHistory(state["losses"], state["steps"])
        warming = epoch < method.warmup_epochs
        partition = None
        if not warming:
            partition = Partition(**state["now"]) if state["now"] else self._divide(history)
        cuts = self._batches(partition, epoch)
        phase = Phase(
            "warm-up" if warming else "training",
            epochs=method.epochs,
            objective=self._warming() if partition is None else self._three_terms(partition, epoch),
            learning_rate=None,  # the optimizer has two groups with rates of their own
            plan=lambda _epoch: cuts,
            recorded=False,
        )
        seen = self.trainer.epoch(self.trained, phase, epoch, self.warmup if warming else self.optimizer)
        losses = self._second_losses() if method.loss_source == "evaluation" else seen
        losses = np.where(np.isnan(losses), history.losses[-1], losses)
        history = history.append(losses, int(history.steps[-1]) + len(cuts))
        is_divided = epoch + 1 >= min(method.warmup_epochs, method.epochs)  # the verdict needs a partition
        now = vars(self._divide(history)) if is_divided else {}
        midway = now if epoch + 1 == method.warmup_epochs + MIDWAY else state["midway"]
        return {"losses": history.losses, "steps": history.steps, "now": now, "midway": midway}

    def _verdict(self, partition: Partition, history: LossHistory) -> Verdict:
        given = self.samples.labels
        relabeled = partition.top & (partition.labels != given) & (self.method.control == "recover")
        status = np.where(relabeled, RELABELED, np.where(partition.isolated, ISOLATED, KEPT))
        return Verdict(
            suspicion=loss_drop(self._ranked(history)),
            status=status.astype(np.uint8),
            suggested_label=partition.labels,
            criterion=np.where(partition.isolated, SCORE, NO_CRITERION).astype(np.uint8),
            target_labels=(partition.backdoor_label,),
        ).ordered(given)

    def _two_heads(self) -> TwoHead:
        example = torch.zeros(2, *self.samples.shape)
        width: HeadWidth = self.method.head_width or "published"
        return split_network(self.build(), example, self.n_classes, attach=self.method.attach or None, head_width=width)

    def _optimizer(self, main: float, second: float) -> torch.optim.SGD:
        groups: list[dict[str, Any]] = [{"params": list(self.net.network.parameters()), "lr": main}]
        if self.side is not self.net:
            groups.append({"params": list(self.side.network.parameters()), "lr": second})
        groups.append({"params": list(self.side.second.parameters()), "lr": second})
        return self.trainer.optimizer(groups)

    def _first_losses(self) -> Losses:
        if self.method.initial_loss != "measured":
            return np.full(self.n, np.log(self.n_classes), dtype=np.float32)
        # A zero-initialized last layer would make every loss log K again.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number(self.seed, Stream.INITIAL_HEAD))
            [m for m in self.side.second.modules() if isinstance(m, nn.Linear)][-1].reset_parameters()
        return self._second_losses()

    def _ranked(self, history: LossHistory) -> LossHistory:
        if self.method.initial_loss == "after_epoch_1" and len(history) > 2:
            return LossHistory(history.losses[1:], history.steps[1:])
        return history

    def _batches(self, partition: Partition | None, epoch: int) -> list[IntArray]:
        """All rows once; with `eq4`, a third of each batch is drawn from the relabeled samples."""
        size = self.session.batch_size
        rows = shuffled(self.n, self.seed, Stream.MAIN_ORDER, epoch)
        top = np.flatnonzero(partition.top) if partition is not None else rows[:0]
        if self.method.weighting == "per_sample" or not len(top):
            return batches(rows, size)
        rng, drawn = stream(self.seed, Stream.RELABELED, epoch), max(1, size // 3)
        return [np.concatenate([cut, rng.choice(top, drawn)]) for cut in batches(rows, size - drawn)]

    def _warming(self) -> Objective:
        trunk_grad: TrunkGrad = "joint" if self.method.warmup_trunk else "none"

        def objective(batch: Batch) -> tuple[Tensor, Tensor]:
            nobody = torch.zeros(0, dtype=torch.int64, device=batch.rows.device)
            _, logits = self.side.both(batch.inputs, nobody, trunk_grad=trunk_grad)
            losses = cross_entropy(logits, batch.labels)
            return losses, losses

        return objective

    def _three_terms(self, partition: Partition, epoch: int) -> Objective:
        """Equation 4: the main head on the clean part and on relabeled samples, the second head on the isolated."""
        method, device = self.method, self.session.device
        recovering = epoch >= method.warmup_epochs + method.recovery_delay
        top = partition.top if recovering and method.control != "none" else np.zeros(self.n, dtype=bool)
        released = partition.isolated & (self.samples.labels != partition.backdoor_label)
        clean = ~partition.isolated | (released & method.release_nonbackdoor & ~top)
        held = partition.isolated if method.second_keeps_top else partition.isolated & ~partition.top
        in_clean, in_top, in_second = (torch.from_numpy(mask).to(device) for mask in (clean, top, held))
        recovered = torch.from_numpy(partition.labels).to(device)
        main_loss = self._unlearning(partition, in_top) if method.control == "unlearn" else None

        def objective(batch: Batch) -> tuple[Tensor, Tensor]:
            is_clean, is_top, is_second = in_clean[batch.rows], in_top[batch.rows], in_second[batch.rows]
            places = (is_clean | is_top).nonzero()[:, 0]
            if self.side is self.net:
                main, second = self.net.both(batch.inputs, places, trunk_grad=method.trunk_grad)
            else:
                main, second = self.net(batch.inputs[places]), self.side.second_logits(batch.inputs)
            of_second = cross_entropy(second, batch.labels)
            rows = batch.rows[places]
            of_main = cross_entropy(main, recovered[rows]) if main_loss is None else main_loss(main, rows)
            every_main = torch.zeros_like(of_second).index_put((places,), of_main)
            weights = self._weights(is_clean, is_top, is_second)
            return every_main * weights[0] + of_second * weights[1], of_second

        return objective

    def _unlearning(self, partition: Partition, in_top: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The ablation of Table III: the main head ascends the backdoor label on the top samples."""
        given = torch.from_numpy(self.samples.labels).to(self.session.device)
        bound = float(np.log(self.n_classes))

        def loss(main: Tensor, rows: Tensor) -> Tensor:
            backdoor = torch.full_like(rows, partition.backdoor_label)
            ascent = -cross_entropy(main, backdoor).clamp_max(bound)
            return torch.where(in_top[rows], ascent, cross_entropy(main, given[rows]))

        return loss

    def _weights(self, is_clean: Tensor, is_top: Tensor, is_second: Tensor) -> tuple[Tensor, Tensor]:
        """Weights `(B,)` of each sample's main and second loss."""
        if self.method.weighting == "per_sample":
            return (is_clean | is_top).float(), is_second.float()
        size = len(is_clean)
        main = sum(mask.float() * (size / mask.sum().clamp_min(1)) for mask in (is_clean, is_top))
        return torch.as_tensor(main), is_second.float() * (size / is_second.sum().clamp_min(1))

    def _second_losses(self) -> Losses:
        """Loss of every sample on the second head, in eval mode."""
        return cast(Losses, self._asked(cross_entropy, np.arange(self.n), "measuring losses"))

    def _asked(self, reduce: Callable[[Tensor, Tensor], Tensor], rows: IntArray, title: str) -> Any:
        """What the second head says of rows."""
        self.side.eval()
        values = self.session.evaluate(self.trainer.feed, self.side.second_logits, reduce, rows, title=title)
        self.side.train()
        return values

    def _divide(self, history: LossHistory) -> Partition:
        """Lines 7 to 10 of Algorithm 1: isolate, name the backdoor label, relabel the most suspicious."""
        method, given = self.method, self.samples.labels
        drop, ties = loss_drop(self._ranked(history)), (history.losses[-1].astype(np.float64), self.order)
        isolated = highest(drop, method.isolation_rate, ties=ties)
        least = method.least_recovered if method.recovery_rate else 0
        top = highest(drop, method.recovery_rate, ties=ties, at_least=least) & isolated
        rows, labels = np.flatnonzero(top), given.copy()
        if not len(rows):
            return Partition(isolated, top, labels, int(np.bincount(given[isolated]).argmax()))
        backdoor_label = self._vote(rows)
        self.net.eval()
        main = self.session.evaluate(
            self.trainer.feed, self.net, lambda logits, _labels: logits, rows, title="recovering"
        )
        self.net.train()
        main[:, backdoor_label] = -np.inf
        suggested = main.argmax(1)
        if method.keep_nonbackdoor:
            suggested = np.where(given[rows] == backdoor_label, suggested, given[rows])
        labels[rows] = suggested
        return Partition(isolated, top, labels, backdoor_label)

    def _vote(self, rows: IntArray) -> int:
        """The label that the second head predominantly gives to the most suspicious samples."""
        probabilities = self._asked(lambda logits, _labels: logits.softmax(1), rows, "naming the backdoor label")
        if self.method.label_vote == "majority":
            return int(np.bincount(probabilities.argmax(1), minlength=self.n_classes).argmax())
        return int(probabilities.mean(0).argmax())
