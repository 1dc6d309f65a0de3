"""SCAnFT: SCAn finds the poisoned samples of a model's training data, and the model unlearns them."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from antibackdoor.data.samples import IntArray, Samples
from antibackdoor.detectors.scan import SCAn
from antibackdoor.protocols import Given, Purified, check_given
from antibackdoor.purifiers.clean import accuracy, working_copy
from antibackdoor.purifiers.unlearning import (
    ALL_OTHERS,
    Ascent,
    batches_beside,
    suspicious_samples,
    teach,
    unlearn,
)
from antibackdoor.training.journal import Journal
from antibackdoor.training.ranges import check_ranges
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.schedules import constant
from antibackdoor.training.trainer import Phase, Trainer


@dataclass(frozen=True)
class SCAnFTFacts:
    """What SCAn found, and what became of it.

    Attributes:
        n_isolated: Samples that SCAn flagged; 0 if the model is delivered unchanged.
        n_labels_flagged: Labels that they carry.
        largest_anomaly: Over all labels, in robust standard deviations; None if SCAn gives no verdict.
        n_unlearning_epochs: Passes over the flagged samples.
        isolated_accuracy_before: Share of them that the given model gives their given label; None if there are none.
        isolated_accuracy_after: The same for the delivered model.
    """

    n_isolated: int
    n_labels_flagged: int
    largest_anomaly: float | None
    n_unlearning_epochs: int = 0
    isolated_accuracy_before: float | None = None
    isolated_accuracy_after: float | None = None


@dataclass(frozen=True)
class SCAnFT:
    """Unlearns what SCAn flags, by gradient ascent, and fine-tunes on the rest.

    If nothing is flagged, the model is delivered unchanged.

    Attributes:
        scan: The detector, with its hyper-parameters.
        unlearning_epochs: Maximum passes over the flagged samples, >= 1; 5. It stops early once the model gives fewer
            than 1/K of them their given label.
        unlearning_rate: Learning rate of the ascent, in (0, 100); 5e-4.
        unlearning_batch_size: Flagged samples per step of the ascent, >= 2; 64.
        ascent_bound: Loss at which a sample's ascent ends, in units of log K, > 0; inf for no bound.
        epochs: Passes over the unflagged samples afterwards, >= 0; 10. One sample in eight of each batch is flagged;
            its target is uniform over all labels but its own. Fine-tuning only on unflagged samples brings the backdoor
            back.
        learning_rate: Learning rate of the fine-tuning, in (0, 100); 0.01.

    AdvrBD gives no numbers for this method; those here are of public code for SCAn. The bound, the early end, and the
    flagged samples in the fine-tuning are ours.

    References: Pu et al., "How to Train a Backdoor-Robust Model on a Poisoned Dataset without Auxiliary Data?", arXiv
    2405.12719 (the method as a baseline); Tang et al., "Demon in the Variant", USENIX Security 2021, arXiv 1908.00686.
    """

    needs: ClassVar[tuple[str, ...]] = ("suspicious", "clean")
    takes: ClassVar[tuple[str, ...]] = ()
    unused: ClassVar[tuple[str, ...]] = ("schedule",)

    scan: SCAn = field(default_factory=SCAn)
    unlearning_epochs: int = 5
    unlearning_rate: float = 5e-4
    unlearning_batch_size: int = 64
    ascent_bound: float = 2.0
    epochs: int = 10
    learning_rate: float = 0.01

    def purify(self, model: nn.Module, given: Given, recipe: Recipe, *, journal: Journal | None = None) -> Purified:
        """Detect, unlearn, fine-tune.

        Args:
            model: The model, on the CPU; left as it is.
            given: `suspicious` data, which the model was trained on, and `clean` samples.
            recipe: Batch size of the fine-tuning, momentum, weight decay, augmentation, device, seed.
            journal: Keeps checkpoints; nothing is kept by default.

        Raises:
            ConfigError: If something is missing, or a hyper-parameter is out of range.
            DataError: If the clean samples are too few, or of another kind than the data.
            ModelError: If the model does not take such samples.
        """
        given = check_given(self, given)
        check_ranges(
            self,
            unlearning_epochs="[1, inf)",
            unlearning_rate="(0, 100)",
            unlearning_batch_size="[2, inf)",
            ascent_bound="(0, inf]",
            epochs="[0, inf)",
            learning_rate="(0, 100)",
        )
        samples = suspicious_samples(model, given)
        trainer = Trainer(samples, recipe, journal)
        trained = trainer.network(lambda: working_copy(model))
        found = trainer.remember("scan", lambda: self._found(model, given, samples, recipe))
        isolated = np.asarray(found["isolated"], dtype=np.int64)
        about = {"n_labels_flagged": found["n_labels_flagged"], "largest_anomaly": found["largest_anomaly"]}
        if not len(isolated):
            return Purified(deepcopy(model).eval(), SCAnFTFacts(0, **about))
        ascent = Ascent(isolated, np.zeros(0, dtype=np.int64), self.ascent_bound, "none")
        forgotten = unlearn(
            trainer,
            trained,
            ascent,
            epochs=self.unlearning_epochs,
            learning_rate=self.unlearning_rate,
            batch_size=self.unlearning_batch_size,
        )
        trainer.run(trained, self._fine_tuning(trained, trainer, isolated))
        after = accuracy(trainer.session, trainer.feed, trained, isolated)
        facts = SCAnFTFacts(
            len(isolated),
            **about,
            n_unlearning_epochs=forgotten.n_epochs,
            isolated_accuracy_before=forgotten.before,
            isolated_accuracy_after=after,
        )
        return Purified(trainer.delivered(trained, lambda: deepcopy(model)), facts)

    def _found(self, model: nn.Module, given: Given, samples: Samples, recipe: Recipe) -> dict[str, Any]:
        """What SCAn flags, in a form that a checkpoint keeps."""
        detection = self.scan.detect(samples, Given(model=model, clean=given.clean), recipe)
        return {
            "isolated": np.flatnonzero(detection.verdict.isolated),
            "n_labels_flagged": detection.facts.n_labels_flagged,
            "largest_anomaly": detection.facts.largest_anomaly,
        }

    def _fine_tuning(self, model: nn.Module, trainer: Trainer, isolated: IntArray) -> Phase:
        """Descent on what was not flagged, while the flagged are taught all labels but their own."""
        seed, size, n = trainer.recipe.seed, trainer.session.batch_size, len(trainer.samples)
        flagged = np.isin(np.arange(n), isolated)
        mask = torch.from_numpy(flagged).to(trainer.session.device)
        weight = min(len(isolated) / (n - len(isolated)), 1.0)  # every sample counts alike
        lessons = torch.full((n,), ALL_OTHERS, device=trainer.session.device)
        return Phase(
            "fine-tuning",
            self.epochs,
            teach(model, mask, lessons, weight),
            constant(self.learning_rate),
            plan=lambda epoch: batches_beside(np.flatnonzero(~flagged), isolated, size, seed=seed, epoch=epoch),
            recorded=False,
        )
