"""How much of the backdoor is left in a delivered model, estimated without knowing the trigger."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import nn

from antibackdoor.data.samples import IntArray, Samples
from antibackdoor.data.streams import Stream, stream
from antibackdoor.protocols import CLEANED, NEARBY, RELABELED, Trained
from antibackdoor.statistics.difference import difference
from antibackdoor.statistics.intervals import wilson_interval
from antibackdoor.training.loop import predict
from antibackdoor.training.session import Session

ASKED = 2000  # samples of each suspected label that the model is asked about


def residual_attack_success(session: Session, model: nn.Module, samples: Samples, trained: Trained) -> dict[str, float]:
    """How often the model still answers as the attacker wants, by two questions to it.

    The first: which share of the samples that carry a shortcut, and that it was not taught to be something else, does
    it give their given label, the suspected target? That is the attack success rate if the poison is mislabelled. The
    second: samples of other labels are changed as those with the shortcut differ from their like
    (`Difference.carry_over`); which share of them does that move? The larger share is the estimate, except where the
    poison keeps its true labels: there the first question tells how well the model sees through a trigger, and the
    second share counts alone. Labels are true where most of the carriers came back under them, or where none came back
    under another label, the model agrees with most of the carriers, and the change moves less than half as many.

    Args:
        session: Device and precision.
        model: The delivered model, prepared.
        samples: The training set.
        trained: What the defense isolated and what of it came back; those isolated as near copies carry no shortcut.

    Returns:
        `estimated_residual_attack_success_rate` with `_low` and `_high` (Wilson's 95% interval of the share asked
        for); empty where no label has five such samples.
    """
    verdict, isolated = trained.verdict, trained.verdict.isolated
    core = isolated & (verdict.criterion != NEARBY)
    successes = asked = 0
    for label in np.unique(samples.labels[core]).tolist():
        of_label = core & (samples.labels == label)
        change = difference(samples, of_label, ~isolated)
        others = np.flatnonzero(~isolated & (samples.labels != label))
        if change is None or not len(others):
            continue
        kept = of_label if trained.probe is None else of_label & trained.probe
        carriers = _some(np.flatnonzero(kept if kept.any() else of_label))
        obeyed = predict(session, model, samples.take(carriers)).labels == label
        moved = samples.take(_some(others))
        moved = replace(moved, inputs=change.carry_over(moved.inputs))
        followed = predict(session, model, moved).labels == label
        came_back = (verdict.status[of_label] == CLEANED).mean() > 0.5
        is_mislabelled = (verdict.status[of_label] == RELABELED).any()  # so the defense held
        true_labels = came_back or (not is_mislabelled and obeyed.mean() > 0.5 and followed.mean() < obeyed.mean() / 2)
        answers = followed if true_labels or followed.mean() > obeyed.mean() else obeyed
        successes, asked = successes + int(answers.sum()), asked + len(answers)
    if not asked:
        return {}
    name, (low, high) = "estimated_residual_attack_success_rate", wilson_interval(successes, asked)
    return {name: successes / asked, f"{name}_low": low, f"{name}_high": high}


def _some(rows: IntArray) -> IntArray:
    return np.sort(stream(0, Stream.RESIDUAL).permutation(rows)[:ASKED])
