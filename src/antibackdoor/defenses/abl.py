"""Anti-backdoor learning: isolate what is learned first, train on the rest, and unlearn what was isolated."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

from torch import nn

from antibackdoor.data.samples import BoolArray, FloatArray, Samples
from antibackdoor.defenses.abl_ascent import ascend_jointly, ascend_last
from antibackdoor.defenses.abl_unlearning import ALTERNATIVES, Stage, accuracy
from antibackdoor.detectors import DETECTORS
from antibackdoor.detectors.low_loss import low_losses
from antibackdoor.errors import ConfigError
from antibackdoor.protocols import Build, Given, Trained, Verdict, check_given
from antibackdoor.statistics.isolation import most_suspicious
from antibackdoor.training.journal import Journal
from antibackdoor.training.objectives import LGA
from antibackdoor.training.ranges import check_choices, check_ranges
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.schedules import constant, step
from antibackdoor.training.trainer import Phase, Trainer

OWN = "low-loss"  # isolation by the losses of the network in training, which goes on to be tuned
HANDED_ON = ("build", "model", "history")  # what another isolation method gets after the isolation epochs
DROP_AT = (2 / 3,)  # of the tuning: the code lowers its learning rate at epoch 40 of 60
# Table 3 does not state how long the alternatives train; fine-tuning for so long at this rate is our choice.
ALTERNATIVE_EPOCHS, ALTERNATIVE_RATE = 40, 0.01
ASCENDED_BATCHES = 8  # of 64 in 1% of CIFAR-10: fewer isolated samples are ascended more often, for as many steps
CODE_HOLE = 2  # what the code cuts out where it asks for a length of 3


class Schedule(NamedTuple):
    """Lengths, rates and order of the three stages. Fields of `ABL` with these names win over a preset."""

    isolation_epochs: int
    isolation_learning_rate: float
    isolation_augment: str
    epochs: int
    learning_rate: float
    augment: str
    hole: int
    tuned_on: str
    unlearning_epochs: int
    unlearning_learning_rate: float
    gga: str


# code: github.com/bboylyg/ABL. paper: T = 100, T_te = 20, augmentation throughout; Equation 3 as printed, but ascending
# in the last five epochs only, since over all 80 that would destroy the model. e2abl: how E2ABL (Jiang et al., arXiv
# 2401.03215) ran its baseline; it names no augmentation.
AUGMENTED = "crop,flip,cutout"
PRESETS = {
    "code": Schedule(10, 0.1, "none", 60, 0.1, "crop,flip", CODE_HOLE, "rest", 4, 5e-4, "last"),
    "paper": Schedule(20, 0.1, AUGMENTED, 80, 0.1, AUGMENTED, 0, "rest", 5, 5e-4, "joint"),
    "e2abl": Schedule(20, 0.1, "none", 60, 0.1, "none", 0, "all", 20, 1e-4, "last"),
}
OF_PRESETS = ("hole", "tuned_on")  # fields of a schedule that only presets set


@dataclass(frozen=True)
class ABLFacts:
    """What anti-backdoor learning says of its training.

    Attributes:
        isolated_accuracy: Share of the isolated samples that the delivered model gives their given label, in [0, 1];
            None if none was isolated. Near 0 if a backdoor was unlearned.
        unlearning_epochs: Epochs of unlearning that were run.
    """

    isolated_accuracy: float | None
    unlearning_epochs: int


@dataclass(frozen=True)
class ABL:
    """Isolates the samples with the lowest loss, trains on the rest, and unlearns the isolated by gradient ascent.

    Stage 1 trains with the mean loss held at gamma (local gradient ascent), so that poison, which is learned first,
    sinks below the classes. The `isolation_rate` of lowest loss is isolated. Stage 2 goes on with the rest. Stage 3
    ascends the loss of the isolated (global gradient ascent) and so breaks the link from trigger to label. A small
    isolated set is enough, also where most poison stays in the rest. It isolates as many in clean data.

    Differs from the paper and its code: the ascent is bounded and may stop early, both by training samples alone;
    equal losses are told apart at random.

    Attributes:
        preset: Lengths, learning rates and order of the stages. `code`: 10 epochs of isolation without augmentation, 60
            of tuning with it, 4 of ascent. `paper`: 20 and 80 with augmentation, and ascent during the last epochs of
            tuning. `e2abl`: the baseline of E2ABL, 20, 60 on all samples, 20.
        gamma: Level of the mean loss in stage 1, in nats, >= 0: the paper's 0.5.
        lga: One sign per batch (`batch_mean`, all published code), or one per sample.
        isolation: Detector that ranks the samples after stage 1: `low-loss`, or another one that needs only a network,
            a trained model and its losses, with its defaults. Section 4.3 compares `activation-clustering`, `spectral`,
            `flooding` and `label-smoothing-confidence`.
        isolation_rate: Share of the samples that are isolated, in (0, 1), rounded to a count: the paper's 1%, or 20%
            for its comparison of unlearning methods.
        isolation_epochs: Passes of stage 1; 0 for the preset's value.
        isolation_learning_rate: Constant learning rate of stage 1; 0 for the preset's 0.1.
        isolation_augment: Augmentation of stage 1, as in the recipe; empty for the preset's value.
        epochs: Passes of stage 2; 0 for the preset's value.
        learning_rate: Learning rate of stage 2, a tenth of it in the last third; 0 for the preset's 0.1.
        augment: Its augmentation, as in the recipe; empty for the preset's: crop, flip and a hole of 2 pixels in
            `code`, `crop,flip,cutout` in `paper`. Series have none.
        momentum: Nesterov momentum of the code.
        weight_decay: L2 penalty of the code.
        unlearning: `ascent` (ABL), or one of the alternatives of Table 3; the paper isolates 20% for them.
        unlearning_epochs: Maximum passes of stage 3; 0 for the preset's value, increased for small data to take as many
            steps as on CIFAR-10 (40 for the alternatives).
        unlearning_learning_rate: Learning rate of stage 3; 0 for the preset's value (0.01 for the alternatives).
        gga: `last` ascends after the tuning, only on the isolated samples. `joint` ascends during its last
            `unlearning_epochs`, at its learning rate. `preset` takes the preset's choice.
        bound: A sample's ascent ends when its loss is this far above log K, in nats, > 0; inf for no bound.
        stop: `forgotten` ends the ascent once fewer than 1 / K of the isolated samples get their given label; `never`
            does not.
        ascent_statistics: Batch-norm statistics in the ascent: `batch`, as in the code, or `running`, which batches of
            only isolated samples cannot shift.

    Reference: Li et al., "Anti-Backdoor Learning: Training Clean Models on Poisoned Data", NeurIPS 2021, arXiv
    2110.11571, Equation 3 and Tables 1 to 3.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[tuple[str, ...]] = ()
    unused: ClassVar[tuple[str, ...]] = ("schedule",)

    preset: Literal["code", "paper", "e2abl"] = "code"
    gamma: float = 0.5
    lga: Literal["batch_mean", "per_example"] = "batch_mean"
    isolation: str = OWN
    isolation_rate: float = 0.01
    isolation_epochs: int = 0
    isolation_learning_rate: float = 0.0
    isolation_augment: str = ""
    epochs: int = 0
    learning_rate: float = 0.0
    augment: str = ""
    momentum: float = 0.9
    weight_decay: float = 1e-4
    unlearning: Literal[
        "ascent",
        "pixel-noise",
        "gradient-noise",
        "parameter-gradient-noise",
        "label-shuffling",
        "label-uniform",
        "label-uniform-soft",
        "label-smoothing",
        "self-learning",
        "finetune-all",
        "finetune-last",
        "retrain",
    ] = "ascent"
    unlearning_epochs: int = 0
    unlearning_learning_rate: float = 0.0
    gga: Literal["preset", "last", "joint"] = "preset"
    bound: float = 2.0
    stop: Literal["forgotten", "never"] = "forgotten"
    ascent_statistics: Literal["batch", "running"] = "batch"

    def train(
        self,
        samples: Samples,
        build: Build,
        recipe: Recipe,
        *,
        given: Given | None = None,
        journal: Journal | None = None,
    ) -> Trained:
        """Train `build()` in three stages.

        Args:
            samples: The training set.
            build: Makes the untrained network.
            recipe: Batch size, device, seed; this method has epochs, learning rates and augmentation of its own.
            given: Nothing is used.
            journal: Keeps checkpoints; nothing is kept by default.

        Returns:
            The model, and as isolated the samples that were unlearned. `suspicion` is minus the loss after stage 1, or
            that of the detector which `isolation` names.

        Raises:
            ConfigError: If a hyper-parameter is out of range, the detector does not exist or needs what is not there,
                or the recipe does not fit.
        """
        check_given(self, given)
        self._check()
        plan = self.schedule(samples, recipe)
        own = replace(recipe, augment=plan.augment, momentum=self.momentum, weight_decay=self.weight_decay)
        trainer = Trainer(samples, own, journal)
        model = trainer.network(build)
        trainer.run(model, self._isolating(model, plan))
        suspicion = trainer.remember("suspicion", lambda: self._suspicion(trainer, model, build, plan))
        isolated = most_suspicious(suspicion, self.isolation_rate, recipe.seed)
        stage = self._stage(trainer, model, build, isolated, plan)
        delivered, n_epochs = self._unlearned(stage, plan)
        facts = ABLFacts(accuracy(trainer, delivered, isolated), n_epochs)
        verdict = Verdict.isolating(suspicion, isolated, samples)
        return Trained(trainer.delivered(delivered, build), trainer.history, verdict, facts)

    def schedule(self, samples: Samples, recipe: Recipe) -> Schedule:
        """What the preset says of data like these, with the fields that are set in its place."""
        preset = PRESETS[self.preset]
        if samples.kind == "series":  # the presets' augmentations are for images
            preset = preset._replace(isolation_augment="none", augment="none", hole=0)
        if self.unlearning != "ascent":
            preset = preset._replace(
                tuned_on="all", unlearning_epochs=ALTERNATIVE_EPOCHS, unlearning_learning_rate=ALTERNATIVE_RATE
            )
        if self.augment:
            preset = preset._replace(hole=0)
        own: dict[str, Any] = {name: getattr(self, name) for name in Schedule._fields if name not in OF_PRESETS}
        plan = preset._replace(**{name: value for name, value in own.items() if value not in (0, "", "preset")})
        if self.unlearning_epochs or self.unlearning != "ascent" or plan.gga == "joint":
            return plan
        n_batches = max(1, math.ceil(round(self.isolation_rate * len(samples)) / recipe.batch(len(samples))))
        repeated = max(1.0, ASCENDED_BATCHES / n_batches)
        return plan._replace(unlearning_epochs=math.ceil(plan.unlearning_epochs * repeated))

    def _isolating(self, model: nn.Module, plan: Schedule) -> Phase:
        return Phase(
            "isolation",
            plan.isolation_epochs,
            LGA[self.lga](model, self.gamma),
            constant(plan.isolation_learning_rate),
            augment=plan.isolation_augment,
        )

    def _suspicion(self, trainer: Trainer, model: nn.Module, build: Build, plan: Schedule) -> FloatArray:
        """`(N,)` float64, after stage 1."""
        if self.isolation == OWN:
            return low_losses(trainer, model)
        detector = DETECTORS[self.isolation]()
        there: dict[str, Any] = {"build": build, "model": trainer.delivered(model, build), "history": trainer.history}
        given = Given(**{name: there[name] for name in (*detector.needs, *detector.takes) if name in there})
        recipe = replace(
            trainer.recipe,
            epochs=plan.isolation_epochs,
            learning_rate=plan.isolation_learning_rate,
            augment=plan.isolation_augment,
        )
        return detector.detect(trainer.samples, given, recipe).verdict.suspicion

    def _stage(self, trainer: Trainer, model: nn.Module, build: Build, isolated: BoolArray, plan: Schedule) -> Stage:
        return Stage(
            trainer,
            model,
            build,
            isolated,
            epochs=plan.epochs,
            learning_rate=step(plan.learning_rate, DROP_AT),
            hole=plan.hole,
            tuned_on_all=plan.tuned_on == "all",
            unlearning_epochs=plan.unlearning_epochs,
            unlearning_learning_rate=plan.unlearning_learning_rate,
        )

    def _unlearned(self, stage: Stage, plan: Schedule) -> tuple[nn.Module, int]:
        """Stages 2 and 3: the network to deliver, and the epochs that unlearning took."""
        if self.unlearning != "ascent":
            return ALTERNATIVES[self.unlearning](stage)
        ascent = ascend_last if plan.gga == "last" else ascend_jointly
        return ascent(stage, bound=self.bound, stop=self.stop, statistics=self.ascent_statistics)

    def _check(self) -> None:
        check_ranges(
            self,
            gamma="[0, inf)",
            isolation_rate="(0, 1)",
            isolation_epochs="[0, inf)",
            isolation_learning_rate="[0, 100)",
            epochs="[0, inf)",
            learning_rate="[0, 100)",
            momentum="[0, 1)",
            weight_decay="[0, 100)",
            unlearning_epochs="[0, inf)",
            unlearning_learning_rate="[0, 100)",
            bound="(0, inf]",
        )
        check_choices(self)
        able = [name for name, kind in DETECTORS.items() if set(kind.needs) <= set(HANDED_ON)]
        if self.isolation not in DETECTORS:
            raise ConfigError(f"isolation is {self.isolation!r}, not a detector; choose one of {', '.join(able)}")
        if self.isolation not in able:
            needed = ", ".join(part for part in DETECTORS[self.isolation].needs if part not in HANDED_ON)
            raise ConfigError(f"isolation {self.isolation} needs {needed}, which ABL lacks; choose {', '.join(able)}")
