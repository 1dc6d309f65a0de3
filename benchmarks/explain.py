"""Does `explain --input` name the samples that taught a backdoor? `python benchmarks/explain.py` (minutes on a CPU).

On the handwritten digits of scikit-learn 5% of the training images are poisoned by each of three attacks, and a network
is trained without a defense. For each triggered test image that the backdoor works on, the training images under the
predicted label are ranked as `explain` does. Told is, as means over these test images: the share of poisoned ones among
the first 10 (precision at 10), among the first n where n are poisoned (precision and recall are equal there), and
precision and recall of those that `explain` says stand apart. What chance would give is the share of poisoned images
under that label. Clean test images of that label are a control: they were taught by clean images.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from antibackdoor.app.demo import BACKBONE, digits
from antibackdoor.app.explaining import layers_of
from antibackdoor.app.networks import NetworkChoice, builder, describe_model
from antibackdoor.attacks import ATTACKS, poison
from antibackdoor.data.samples import BoolArray, Samples
from antibackdoor.defenses import Undefended
from antibackdoor.models.features import coarse_or_mean, features
from antibackdoor.statistics.culprits import likely, similarity
from antibackdoor.training.loop import predict
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.session import Session

TARGET = 0


@dataclass(frozen=True)
class Row:
    """What one attack gives."""

    attack: str
    seed: int
    n_poisoned: int
    chance: float
    attack_success_rate: float
    precision_at_10: float
    precision_at_n: float
    likely_precision: float
    likely_recall: float
    clean_precision_at_10: float


def measured(attack: str, seed: int, epochs: int, rate: float) -> Row:
    """Train on poisoned digits and ask who taught the answers."""
    data = digits(seed)
    assert data.test is not None
    poisoned = poison(data.train, ATTACKS[attack](), seed=seed, rate=rate, target_label=TARGET)
    recipe = Recipe(epochs=epochs, device="cpu", precision="fp32", seed=seed, progress=False)
    build = builder(describe_model(poisoned.samples, NetworkChoice(BACKBONE), recipe, "none"))
    session = Session(recipe, len(poisoned.samples), images=True)
    model = session.prepare(Undefended().train(poisoned.samples, build, recipe).model).eval()
    layers = layers_of(model, torch.zeros(2, *data.train.shape))

    def seen(samples: Samples) -> list[NDArray[np.float32]]:
        found = features(session, session.feed(samples), model, layers, pool=coarse_or_mean)
        return [found[layer] for layer in layers]

    other = data.test.take(data.test.labels != TARGET)
    triggered = replace(other, inputs=poisoned.trigger.apply(other.inputs, np.arange(len(other))))
    worked = predict(session, model, triggered).labels == TARGET
    clean = data.test.take((data.test.labels == TARGET) & (predict(session, model, data.test).labels == TARGET))
    rows = np.flatnonzero(poisoned.samples.labels == TARGET)
    known, is_poisoned = seen(poisoned.samples.take(rows)), poisoned.truth.is_poisoned[rows]
    alike = similarity(known, seen(triggered.take(worked))) if worked.any() else np.zeros((0, len(rows)))
    apart = [likely(one) for one in alike]
    return Row(
        attack=attack,
        seed=seed,
        n_poisoned=int(is_poisoned.sum()),
        chance=float(is_poisoned.mean()),
        attack_success_rate=float(worked.mean()),
        precision_at_10=among_first(alike, is_poisoned, 10),
        precision_at_n=among_first(alike, is_poisoned, int(is_poisoned.sum())),
        likely_precision=mean([is_poisoned[one].mean() for one in apart if one.any()]),
        likely_recall=mean([one[is_poisoned].mean() for one in apart]),
        clean_precision_at_10=among_first(similarity(known, seen(clean)), ~is_poisoned, 10),
    )


def among_first(alike: NDArray[np.float64], wanted: BoolArray, n: int) -> float:
    """Mean share of what is wanted among the n most similar."""
    return mean(wanted[np.argsort(-alike, axis=1, kind="stable")[:, :n]].mean(axis=1).tolist())


def mean(values: Sequence[float]) -> float:
    """The mean; nan for none."""
    return float(np.mean(values)) if len(values) else float("nan")


def main() -> None:
    """Measure, print, and append to a file of results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attacks", nargs="+", default=["badnets", "blend", "trojan"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--out", type=Path, default=None, help="file of JSON lines to append to")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for attack in asked.attacks:
        for seed in range(asked.seeds):
            row = measured(attack, seed, asked.epochs, asked.rate)
            line = json.dumps({name: round(v, 4) if isinstance(v, float) else v for name, v in asdict(row).items()})
            print(line, flush=True)
            if asked.out is not None:
                with asked.out.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
