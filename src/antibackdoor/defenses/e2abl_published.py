"""E2ABL in its published form, every constant and every ambiguity of the paper a field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from antibackdoor.defenses.algorithm_1 import Algorithm1
from antibackdoor.protocols import Build, Trained
from antibackdoor.ranges import check_choices, check_ranges
from antibackdoor.recipe import Recipe
from antibackdoor.samples import Samples
from antibackdoor.training import Journal, NoJournal


@dataclass(frozen=True)
class PublishedE2ABL:
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
