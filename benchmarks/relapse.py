"""Does a purified backdoor come back? A model is fine-tuned on clean samples and five poisoned ones.

Most backdoors that seem erased do: Min et al., "Uncovering, Explaining, and Mitigating the Superficial Safety of
Backdoor Defense", NeurIPS 2024, arXiv 2410.09838. A network that never saw the trigger is the control: what five
samples teach it is no relapse.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import nn

from antibackdoor.app.measuring import attack_success
from antibackdoor.attacks import Poisoned
from antibackdoor.attacks.poisoning import sample_numbers, stamp
from antibackdoor.data.samples import Samples
from antibackdoor.data.streams import Stream, stream
from antibackdoor.protocols import Build, Given
from antibackdoor.purifiers import PURIFIERS
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.session import Session

N_POISONED = 5
EPOCHS = 5
LEARNING_RATE = 0.01


def attack_success_after_five(
    model: nn.Module, clean: Samples, test: Samples, poisoned: Poisoned, build: Build, recipe: Recipe
) -> float:
    """Attack success in [0, 1] after fine-tuning on `clean`, five of which are poisoned by the attack's own trigger.

    Args:
        model: On the CPU; left as it is.
        clean: What a user would fine-tune on; five of it that the attack aims at are stamped and get its label.
        test: Clean test samples.
        poisoned: The attack.
        build: Makes a fresh network.
        recipe: Device, precision, seed.
    """
    plan, trigger = poisoned.plan, poisoned.trigger
    aimed = np.flatnonzero(plan.eligible(clean.labels))
    rows = np.sort(stream(recipe.seed, Stream.CARD, 2).choice(aimed, N_POISONED, replace=False))
    inputs, labels = np.array(clean.inputs), clean.labels.copy()
    inputs[rows] = stamp(clean.inputs, trigger, sample_numbers(clean.ids), rows=rows)
    labels[rows] = plan.goal(clean.labels)[rows]
    mixed = replace(clean, inputs=inputs, labels=labels)
    tune = PURIFIERS["fine-tune"](epochs=EPOCHS, learning_rate=LEARNING_RATE, augment="none")
    tuned = tune.purify(model, Given(build=build, input_shape=clean.shape, clean=mixed), recipe).model
    session = Session(recipe, len(test), images=test.kind == "image")
    return float(attack_success(session, session.prepare(tuned), test, trigger, plan)["attack_success_rate"])
