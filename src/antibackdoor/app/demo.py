"""The main job on a small real data set that every installation has: scikit-learn's handwritten digits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from antibackdoor.app.evaluation import evaluate
from antibackdoor.app.pipeline import Job, train
from antibackdoor.attacks import BadNets, poison, save_trigger, write_truth
from antibackdoor.data.held_out import hold_out
from antibackdoor.data.reading import DataSet
from antibackdoor.data.samples import Samples
from antibackdoor.defenses import DualHead, Undefended
from antibackdoor.errors import RunError
from antibackdoor.protocols import TrainingDefense
from antibackdoor.report import write_comparison
from antibackdoor.runs.atomic import entries
from antibackdoor.training.recipe import Recipe

BACKBONE = "wrn-16-1"
OWN = {"undefended", "dual-head", "trigger", "truth.parquet", "report.html"}  # what a demo writes


def digits(seed: int) -> DataSet:
    """1,797 handwritten digits of 8 x 8 pixels (Alpaydin and Kaynak, 1998), a fifth of each class held out."""
    source = load_digits()
    images = np.round(source.images * (255 / 16)).astype(np.uint8)[:, None]
    names = np.array([str(name) for name in source.target_names])
    ids = np.array([f"digits/{row}" for row in range(len(images))])
    samples = Samples(images, source.target.astype(np.int64), ids, names)
    kept, held = hold_out(samples.labels, names, 0.2, seed=seed)
    return DataSet(samples.take(kept), samples.take(held), "npz", (), {"test": "held out 20%"})


def run_demo(
    out: Path, recipe: Recipe, *, rate: float = 0.1, target_label: int = 0, command: Sequence[str] = ()
) -> dict[str, Any]:
    """Poison the digits, train without and with the default defense, and compare.

    Args:
        out: A new folder; gets `undefended/`, `dual-head/` (run folders) and `report.html`.
        recipe: How to train; its seed also chooses the held-out and the poisoned samples.
        rate: Share of the training images that are poisoned, in (0, 1).
        target_label: The attacker's digit.
        command: The command line, for the report.

    Returns:
        The metrics of both runs, by name.

    Raises:
        RunError: If the folder holds anything but a demo, or one with other settings.
    """
    there = entries(out)
    if there and not {"undefended"} <= there <= OWN:
        raise RunError(f"{out} holds files that are not from a demo; choose an empty or a new folder")
    data = digits(recipe.seed)
    assert data.test is not None
    poisoned = poison(data.train, BadNets(), seed=recipe.seed, rate=rate, target_label=target_label)
    dirty = replace(data, train=poisoned.samples)
    out.mkdir(parents=True, exist_ok=True)
    methods: dict[str, TrainingDefense] = {"undefended": Undefended(), "dual-head": DualHead()}
    for name, defense in methods.items():
        run = out / name
        train(
            dirty, Job(defense, recipe, backbone=BACKBONE), run, resume=(run / "config.json").exists(), command=command
        )
    # Only now: a demo with other settings was refused, and keeps what it has.
    save_trigger(out / "trigger", poisoned.trigger, poisoned.plan, attack=poisoned.attack)
    write_truth(out / "truth.parquet", poisoned.samples.ids, poisoned.truth)
    places: dict[str, Any] = {"truth": out / "truth.parquet", "trigger": out / "trigger", "device": recipe.device}
    results = {name: evaluate(out / name, data.test, **places) for name in methods}
    titles = [("Plain training", out / "undefended"), ("With the default defense", out / "dual-head")]
    write_comparison(out / "report.html", titles)
    return results
