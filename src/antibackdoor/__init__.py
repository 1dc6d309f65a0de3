"""Train a clean classifier on data that may be poisoned, and learn which samples to distrust.

From a folder of images (or a `.zip`, `.npz`, `.ts`, `.csv`) to a clean model, a verdict on every sample and a report:

    import antibackdoor

    data = antibackdoor.read("photos")
    result = antibackdoor.train(data, out="run")
    suspects = result.table.ids[result.table.isolated]
    model = result.model  # a torch.nn.Module in eval mode

Without files: arrays, data frames, data sets of torch and of Hugging Face; and what to keep of them:

    result = antibackdoor.train(X, y, defense="abl", epochs=30)
    found = antibackdoor.scan(torch_dataset)
    found.table.to_pandas(), found.keep, found.subset(torch_dataset)

Settings, and a network of your own (any function that returns a `torch.nn.Module` with logits):

    job = antibackdoor.Job(recipe=antibackdoor.Recipe(epochs=30), model=make_network)
    antibackdoor.train(data, job, out="own_run")

A defense by itself. `build` takes no arguments and makes the untrained network:

    trained = antibackdoor.DualHead().train(data.train, build, antibackdoor.Recipe(epochs=30))
    trained.model, trained.verdict.suspicion, trained.verdict.isolated

Attack a copy of the data before you trust a defense on them:

    attack = antibackdoor.ATTACKS["badnets"]()
    poisoned = antibackdoor.poison(data.train, attack, rate=0.1, target_label=0, seed=0)
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # as typing has it, which takes its time: a command listens to Ctrl-C only after this file
if TYPE_CHECKING:
    from typing import Any

    from antibackdoor.app.calls import (
        Scanned,
        evaluate,
        scan,
        train,
    )
    from antibackdoor.app.compare_call import Comparison, compare
    from antibackdoor.app.data_calls import (
        from_arrays,
        from_dataframe,
        from_huggingface,
        from_torch,
        read,
        read_inputs,
        read_samples,
        write,
    )
    from antibackdoor.app.networks import load_model
    from antibackdoor.app.pipeline import Job, Outcome
    from antibackdoor.app.purify_call import Purification, purify
    from antibackdoor.app.scanning import Scan
    from antibackdoor.attacks import ATTACKS, poison, trigger_test_set
    from antibackdoor.data.reading import FORMATS, DataSet
    from antibackdoor.data.samples import Samples
    from antibackdoor.defenses import DEFENSES, E2ABL, DualHead, Undefended
    from antibackdoor.detectors import DETECTORS, ConfusionTraining, LossDrop, SpectralSignatures
    from antibackdoor.errors import AntibackdoorError, ConfigError, DataError, ModelError, RunError
    from antibackdoor.models.backbones import BACKBONES, build_backbone
    from antibackdoor.protocols import Detection, Given, Purified, Trained, Verdict
    from antibackdoor.purifiers import PURIFIERS
    from antibackdoor.runs.samples_table import SamplesTable, read_samples_table
    from antibackdoor.statistics.metrics import attack_success_rate, clean_accuracy
    from antibackdoor.training.recipe import Recipe

__all__ = [
    "ATTACKS",
    "BACKBONES",
    "DEFENSES",
    "DETECTORS",
    "E2ABL",
    "FORMATS",
    "PURIFIERS",
    "AntibackdoorError",
    "Comparison",
    "ConfigError",
    "ConfusionTraining",
    "DataError",
    "DataSet",
    "Detection",
    "DualHead",
    "Given",
    "Job",
    "LossDrop",
    "ModelError",
    "Outcome",
    "Purification",
    "Purified",
    "Recipe",
    "RunError",
    "Samples",
    "SamplesTable",
    "Scan",
    "Scanned",
    "SpectralSignatures",
    "Trained",
    "Undefended",
    "Verdict",
    "attack_success_rate",
    "build_backbone",
    "clean_accuracy",
    "compare",
    "evaluate",
    "from_arrays",
    "from_dataframe",
    "from_huggingface",
    "from_torch",
    "load_model",
    "poison",
    "purify",
    "read",
    "read_inputs",
    "read_samples",
    "read_samples_table",
    "scan",
    "train",
    "trigger_test_set",
    "write",
]

_HOMES = {
    "app.calls": (
        "Scanned",
        "evaluate",
        "scan",
        "train",
    ),
    "app.compare_call": (
        "Comparison",
        "compare",
    ),
    "app.data_calls": (
        "from_arrays",
        "from_dataframe",
        "from_huggingface",
        "from_torch",
        "read",
        "read_inputs",
        "read_samples",
        "write",
    ),
    "app.networks": ("load_model",),
    "app.pipeline": (
        "Job",
        "Outcome",
    ),
    "app.purify_call": (
        "Purification",
        "purify",
    ),
    "app.scanning": ("Scan",),
    "attacks": (
        "ATTACKS",
        "poison",
        "trigger_test_set",
    ),
    "data.reading": (
        "FORMATS",
        "DataSet",
    ),
    "data.samples": ("Samples",),
    "defenses": (
        "DEFENSES",
        "E2ABL",
        "DualHead",
        "Undefended",
    ),
    "detectors": (
        "DETECTORS",
        "ConfusionTraining",
        "LossDrop",
        "SpectralSignatures",
    ),
    "errors": (
        "AntibackdoorError",
        "ConfigError",
        "DataError",
        "ModelError",
        "RunError",
    ),
    "models.backbones": (
        "BACKBONES",
        "build_backbone",
    ),
    "protocols": (
        "Detection",
        "Given",
        "Purified",
        "Trained",
        "Verdict",
    ),
    "purifiers": ("PURIFIERS",),
    "runs.samples_table": (
        "SamplesTable",
        "read_samples_table",
    ),
    "statistics.metrics": (
        "attack_success_rate",
        "clean_accuracy",
    ),
    "training.recipe": ("Recipe",),
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used: `antibackdoor --help` needs no torch."""
    if name == "sklearn":
        return importlib.import_module("antibackdoor.sklearn")
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"antibackdoor.{home}"), name)
    raise AttributeError(f"module 'antibackdoor' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
