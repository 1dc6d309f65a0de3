"""A recovered trigger, unlearned or taught to mean nothing."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from antibackdoor.data.samples import IntArray
from antibackdoor.protocols import Given, Purified
from antibackdoor.purifiers.clean import accuracy, clean_samples, working_copy
from antibackdoor.purifiers.neural_cleanse import (
    Recovered,
    RecoveredTrigger,
    Reversal,
    recover_trigger,
    trigger_success,
)
from antibackdoor.purifiers.trigger_retraining import stamped_rows
from antibackdoor.purifiers.tuning import Tuning, tune
from antibackdoor.training.journal import Journal
from antibackdoor.training.loop import Objective, classify, cross_entropy
from antibackdoor.training.ranges import check_choices, check_ranges
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.session import Batch
from antibackdoor.training.trainer import Trainer


@dataclass(frozen=True)
class CleanseFacts:
    """What Neural Cleanse found, and what the repair did.

    Attributes:
        n_clean: Clean samples that were given.
        target_label: The label with the smallest trigger.
        anomaly_index: Of that label.
        trigger_size: L1 norm of its mask, in pixels or time steps.
        trigger_success: Share of the clean samples of other labels that it led to the label, in [0, 1].
        repaired: Whether the model was changed; it is not where no label stands out.
        trigger_success_after: The same share for the delivered model.
        accuracy_before: Share of the clean samples that the given model classifies correctly, in [0, 1].
        accuracy_after: The same for the delivered model; it was trained on them.
    """

    n_clean: int
    target_label: int
    anomaly_index: float
    trigger_size: float
    trigger_success: float
    repaired: bool
    trigger_success_after: float
    accuracy_before: float
    accuracy_after: float


@dataclass(frozen=True)
class NeuralCleanseUnlearning:
    """Recovers the trigger of the label that stands out, and makes the model forget it.

    For each label the smallest `A(x) = (1 - m) x + m p` is sought that leads clean samples there. A label whose mask is
    much smaller than those of the others is a target. A part of the clean samples is stamped with its trigger; on them
    the model ascends the loss of the target label, up to a bound, while it descends the loss of the clean samples
    (global gradient ascent of ABL, for a model that is given). Where no label stands out, the model stays as it is.

    Attributes:
        repair: `unlearn`: ascend on stamped samples, up to a bound; `retrain`: train on stamped samples with their true
            labels (Neural Cleanse's own repair, and "Rec-T" in NAD's Table 6).
        anomaly: Minimum anomaly index of a target, >= 0: the paper's 2. 0 always takes the label with the smallest
            trigger; needed with two classes, where none can be an outlier.
        steps: Search steps per label, >= 1: the authors' 1,000. The cost is that of `steps * K` batches.
        search_rate: Learning rate of Adam in the search, > 0.
        penalty: Initial weight of the mask's L1 norm in the search, > 0; it then adapts to the success.
        success: Share of a batch that a trigger must move to the label, in (0, 1].
        share: Share of the clean samples to stamp, in (0, 1]: 20% in Neural Cleanse. ABL does not state it.
        bound: Loss at which a sample's ascent ends, in nats above log K, >= 0.
        epochs: Passes over the clean samples, >= 1: ABL's code unlearns for 5. NAD retrains for 10.
        learning_rate: Constant learning rate of SGD, in (0, 100): ABL's 5e-4. NAD retrains with 0.1.
        momentum: Momentum of SGD, in [0, 1).
        weight_decay: L2 penalty, in [0, 100).
        batch_size: Samples per step, also in the search.
        augment: Augmentations, as in the recipe; `none` by default, since they would move the trigger.

    ABL's appendix B.10 with the details is not in the published text that we have; the combination is ours.

    References: Wang et al., "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks", IEEE S&P
    2019; Li et al., "Anti-Backdoor Learning", NeurIPS 2021, arXiv 2110.11571, section 4.3 and Equation 3.
    """

    needs: ClassVar[tuple[str, ...]] = ("clean",)
    takes: ClassVar[tuple[str, ...]] = ()
    unused: ClassVar[tuple[str, ...]] = ("schedule",)

    repair: Literal["unlearn", "retrain"] = "unlearn"
    anomaly: float = 2.0
    steps: int = 1000
    search_rate: float = 0.1
    penalty: float = 1e-3
    success: float = 0.99
    share: float = 1.0
    bound: float = 2.0
    epochs: int = 5
    learning_rate: float = 5e-4
    momentum: float = 0.9
    weight_decay: float = 1e-4
    batch_size: int = 64
    augment: str = "none"

    def purify(self, model: nn.Module, given: Given, recipe: Recipe, *, journal: Journal | None = None) -> Purified:
        """Recover a trigger by `given.clean`, and repair a copy of the model.

        Args:
            model: The model, on the CPU; left as it is.
            given: `clean` is needed.
            recipe: Device, precision, seed.
            journal: Keeps checkpoints; nothing is kept by default.

        Raises:
            ConfigError: If there are no clean samples, or a hyper-parameter is out of range.
            DataError: If the clean samples do not fit the model.
        """
        clean = clean_samples(self, model, given)
        tuning = self._checked()
        trainer = Trainer(clean, tuning.recipe(recipe, clean), journal)
        session, feed = trainer.session, trainer.feed._replace(augmentations=())
        untouched = session.prepare(deepcopy(model))
        search = Reversal(
            self.steps, self.search_rate, self.penalty, self.success, session.batch_size, seed=recipe.seed
        )
        found = recover_trigger(session, feed, untouched, search, fold=partial(trainer.fold, "recovering triggers"))
        label = found.target_label
        trigger, stands_out = found.trigger(label), bool(found.anomaly[label] >= self.anomaly)
        repaired = trainer.network(lambda: working_copy(model))
        if stands_out:
            self._repair(trainer, repaired, trigger, label, tuning)
        else:
            trainer.journal.tell(
                f"no label stands out (anomaly index {found.anomaly[label]:.1f}, threshold {self.anomaly:g}): "
                "the model is unchanged"
            )
        before, after = (accuracy(session, feed, network) for network in (untouched, repaired))
        left = trigger_success(session, feed, repaired.eval(), trigger, label)
        facts = _facts(found, len(clean), stands_out, left, before, after)
        return Purified(trainer.delivered(repaired, lambda: deepcopy(model)), facts)

    def _checked(self) -> Tuning:
        """How to train, once all that was set makes sense."""
        check_choices(self)
        check_ranges(
            self,
            anomaly="[0, inf)",
            steps="[1, inf)",
            search_rate="(0, inf)",
            penalty="(0, inf)",
            success="(0, 1]",
            share="(0, 1]",
            bound="[0, inf)",
        )
        tuning = Tuning(decay_after=0).of(self)
        check_ranges(tuning, epochs="[1, inf)")
        return tuning

    def _repair(
        self, trainer: Trainer, model: nn.Module, trigger: RecoveredTrigger, label: int, tuning: Tuning
    ) -> None:
        samples, feed = trainer.samples, trainer.feed
        rows = stamped_rows(len(samples), self.share, seed=trainer.recipe.seed)
        if self.repair == "retrain":
            inputs = np.array(samples.inputs)
            inputs[rows] = trigger.apply(samples.inputs[rows], rows)
            taught = torch.from_numpy(inputs).to(feed.inputs.device)
            tune(trainer, model, tuning, classify(model), name="retraining", change=lambda _, rows: taught[rows])
            return
        bound = float(np.log(samples.n_classes)) + self.bound
        objective = unlearning(model, trigger, label, rows, len(samples), bound)
        tune(trainer, model, tuning, objective, name="unlearning")


def unlearning(
    model: nn.Module, trigger: RecoveredTrigger, label: int, rows: IntArray, n: int, bound: float
) -> Objective:
    """Descends the mean loss of the batch, and ascends that of a label on stamped samples, each mean with weight 1.

    Args:
        model: The network in training.
        trigger: Stamps the samples.
        label: The label to forget; its own samples are not stamped.
        rows: Samples that are stamped.
        n: Number of all samples.
        bound: In nats; a stamped sample whose loss lies above it no longer counts.
    """
    is_stamped = torch.zeros(n, dtype=torch.bool)
    is_stamped[torch.from_numpy(rows)] = True

    def objective(batch: Batch) -> tuple[Tensor, Tensor]:
        chosen = (is_stamped.to(batch.rows.device)[batch.rows] & (batch.labels != label)).nonzero()[:, 0]
        logits = model(torch.cat([batch.inputs, trigger.stamped(batch.inputs[chosen])]))
        size = len(batch.inputs)
        losses = cross_entropy(logits[:size], batch.labels)
        targets = torch.full_like(chosen, label)
        ascended = cross_entropy(logits[size:], targets).clamp_max(bound) * (size / max(len(chosen), 1))
        return losses.index_add(0, chosen, -ascended), losses

    return objective


def _facts(found: Recovered, n_clean: int, stands_out: bool, left: float, before: float, after: float) -> CleanseFacts:
    label = found.target_label
    return CleanseFacts(
        n_clean=n_clean,
        target_label=label,
        anomaly_index=float(found.anomaly[label]),
        trigger_size=float(found.sizes[label]),
        trigger_success=float(found.success[label]),
        repaired=stands_out,
        trigger_success_after=left,
        accuracy_before=before,
        accuracy_after=after,
    )
