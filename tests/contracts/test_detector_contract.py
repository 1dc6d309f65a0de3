"""One contract for every detector in the table, on images and on series."""

from __future__ import annotations

import dataclasses
import inspect
import json
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from ledger import Ledger
from sklearn.metrics import roc_auc_score
from torch import nn

from antibackdoor.data.samples import BoolArray, Samples
from antibackdoor.defenses import Undefended
from antibackdoor.detectors import DETECTORS
from antibackdoor.errors import AntibackdoorError, ConfigError, DataError, ModelError
from antibackdoor.protocols import CRITERIA, FLAGS, STATUSES, Build, Detection, Given, Trained, Verdict
from antibackdoor.training.history import LossHistory
from antibackdoor.training.recipe import Recipe

# Small budgets; the defaults are for real data.
QUICK: dict[str, dict[str, Any]] = {
    "confusion": {"confusion_steps": 3, "warmup_steps": 20, "head_width": 8, "power": False},
    "low-loss": {"epochs": 2},
}
RECIPE = Recipe(epochs=2, batch_size=16, device="cpu", precision="fp32", augment="none", seed=3)
CASES = [(name, kind) for name in sorted(DETECTORS) for kind in ("image", "series")]
TRAINING = [name for name in sorted(DETECTORS) if "build" in DETECTORS[name].needs]
# Fields of a recipe that decide a training.
DECISIVE = {"epochs": 3, "batch_size": 8, "learning_rate": 0.03, "momentum": 0.5, "weight_decay": 0.05}

# The floor: budgets at which a detector is to find poison that is easier to learn than the classes.
EASY = dataclasses.replace(RECIPE, epochs=6)
LONGER: dict[str, dict[str, Any]] = {
    "confusion": {"confusion_steps": 20, "warmup_steps": 30, "power": False},
    "low-loss": {"epochs": 6},
}
FLOOR = 0.9
LOWER: dict[str, tuple[float, str]] = {
    "label-smoothing-confidence": (0.8, "ABL reports that it fails on most attacks"),
    "loss-drop": (0.8, "it goes by losses met while the whole network learns everything, without a second head"),
    "spectral": (0.75, "scores are relative to their label, so the extremes of clean labels rank as high as poison"),
}


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# --------------------------------------------------------------------------- data, network, what is given


def faint(kind: str, n: int = 48, n_classes: int = 4, *, seed: int = 0) -> Samples:
    """Noise with a faint sign of the class: a corner that is brighter, a frequency that is stronger."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n, dtype=np.int64) % n_classes
    if kind == "image":
        pixels = rng.normal(110, 40, (n, 1, 8, 8))
        for label in range(n_classes):
            row, column = 4 * (label // 2), 4 * (label % 2)
            pixels[labels == label, :, row : row + 4, column : column + 4] += 8
        inputs = pixels.clip(0, 255).astype(np.uint8)
    else:
        waves = np.sin((2 + 3 * labels)[:, None, None] * np.linspace(0, 2 * np.pi, 32, endpoint=False))
        inputs = (rng.standard_normal((n, 1, 32)) + 0.25 * waves).astype(np.float32)
    return Samples(inputs, labels, np.arange(n).astype(str), np.array([f"class{k}" for k in range(n_classes)]))


def with_poison(clean: Samples, rate: float = 0.1) -> tuple[Samples, BoolArray]:
    """Some samples get a loud mark and the label 1."""
    others = np.flatnonzero(clean.labels != 1)
    rows = np.random.default_rng(1).choice(others, round(rate * len(clean)), replace=False)
    inputs, labels = clean.inputs.copy(), clean.labels.copy()
    if clean.kind == "image":
        inputs[rows, :, -3:, -3:] = 255 * (np.indices((3, 3)).sum(0) % 2)
    else:
        inputs[rows, :, :6] = [4, -4, 4, -4, 4, -4]
    labels[rows] = 1
    return dataclasses.replace(clean, inputs=inputs, labels=labels), np.isin(np.arange(len(clean)), rows)


def small(shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """A network of the user's: two convolutions, four places, a classifier."""
    is_image = len(shape) == 3
    conv, norm = (nn.Conv2d, nn.BatchNorm2d) if is_image else (nn.Conv1d, nn.BatchNorm1d)
    pool = nn.AdaptiveAvgPool2d(2) if is_image else nn.AdaptiveAvgPool1d(4)
    return nn.Sequential(
        nn.Sequential(conv(shape[0], 12, 3, padding=1), norm(12), nn.ReLU()),
        nn.Sequential(conv(12, 24, 3, padding=1, stride=2), norm(24), nn.ReLU()),
        nn.Sequential(pool, nn.Flatten()),
        nn.Linear(96, n_classes),
    )


def builder(samples: Samples) -> Build:
    return lambda: small(samples.shape, samples.n_classes)


def undefended(samples: Samples, recipe: Recipe = RECIPE) -> Trained:
    return Undefended().train(samples, builder(samples), recipe)


@pytest.fixture(scope="module")
def plain() -> dict[str, tuple[Samples, Trained]]:
    """Poisoned samples of each kind, and a network trained on them."""
    made = {kind: with_poison(faint(kind, 96))[0] for kind in ("image", "series")}
    return {kind: (samples, undefended(samples)) for kind, samples in made.items()}


Plain = dict[str, tuple[Samples, Trained]]


def what_it_needs(name: str, samples: Samples, trained: Trained, n_clean: int = 80) -> Given:
    """Everything that a detector needs, and nothing else."""
    there = {
        "build": builder(samples),
        "model": trained.model,
        "history": trained.history,
        "clean": faint(samples.kind, n_clean, samples.n_classes, seed=7),
        "suspicious": samples,
        "isolated": np.arange(len(samples)) < 3,
        "verdict": trained.verdict,
    }
    return Given(**{part: there[part] for part in DETECTORS[name].needs})


def make(name: str, **settings: Any) -> Any:
    return DETECTORS[name](**{**QUICK.get(name, {}), **settings})


def detected(name: str, samples: Samples, trained: Trained, recipe: Recipe = RECIPE, **settings: Any) -> Detection:
    given = what_it_needs(name, samples, trained)
    result: Detection = make(name, **settings).detect(samples, given, recipe)
    return result


def said(detection: Detection) -> bytes:
    """The bytes of all that a verdict says of samples."""
    verdict = detection.verdict
    return b"".join(part.tobytes() for part in (verdict.suspicion, verdict.status, verdict.suggested_label))


def check_shapes(detection: Detection, samples: Samples) -> None:
    verdict, n = detection.verdict, len(samples)
    for values, kind in (
        (verdict.suspicion, np.float64),
        (verdict.status, np.uint8),
        (verdict.suggested_label, np.int64),
        (verdict.criterion, np.uint8),
    ):
        assert values.shape == (n,) and values.dtype == kind
    assert np.isfinite(verdict.suspicion).all()
    assert verdict.status.max() < len(STATUSES) and verdict.criterion.max() < len(CRITERIA)
    assert ((verdict.criterion > 0) == verdict.isolated).all()
    np.testing.assert_array_equal(verdict.ordered(samples.labels).suspicion, verdict.suspicion)
    assert set(verdict.unexamined) <= set(samples.labels.tolist())
    assert verdict.suggested_label.min() >= 0 and verdict.suggested_label.max() < samples.n_classes
    assert verdict.poisoned in (None, False, True)
    assert set(verdict.target_labels) <= set(range(samples.n_classes))
    assert verdict.p_value is None or 0 < verdict.p_value <= 1
    assert verdict.margin is None or verdict.margin.shape == (n,)
    assert detection.history is None or detection.history.n_samples == n
    assert dataclasses.is_dataclass(detection.facts) and type(detection.facts).__dataclass_params__.frozen
    for field in dataclasses.fields(detection.facts):
        value = getattr(detection.facts, field.name)
        assert value is None or isinstance(value, bool | int | float | str), field.name
        assert f"{field.name}:" in (inspect.getdoc(detection.facts) or ""), f"{field.name} is not described"


# --------------------------------------------------------------------------- the hyper-parameters


@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_hyper_parameters_make_sense(name: str) -> None:
    detector = DETECTORS[name]()
    settings = dataclasses.asdict(detector)
    restored = {key: tuple(v) if isinstance(v, list) else v for key, v in json.loads(json.dumps(settings)).items()}
    assert DETECTORS[name](**restored) == detector
    described = inspect.getdoc(detector) or ""
    assert described and not described.startswith(type(detector).__name__ + "(")
    for field in settings:
        assert f"{field}:" in described, f"{field} is not described"
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(detector, field, 1)


@pytest.mark.parametrize(
    ("name", "field"),
    [(name, field.name) for name in sorted(DETECTORS) for field in dataclasses.fields(DETECTORS[name])],
)
def test_bad_hyper_parameters(name: str, field: str, plain: Plain) -> None:
    default = getattr(DETECTORS[name](), field)
    if isinstance(default, bool):
        return
    wrong = {str: ["nonsense"], int: [-7], float: [-7.0, float("nan")]}[type(default)]
    for value in wrong:
        with pytest.raises(AntibackdoorError) as error:
            detected(name, *plain["image"], **{field: value})
        assert isinstance(error.value, ModelError if field in ("layer", "attach") else ConfigError)
        assert "\n" not in str(error.value)


# --------------------------------------------------------------------------- what is said of samples


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_same_seed_same_bytes(name: str, kind: str, plain: Plain) -> None:
    samples, trained = plain[kind]
    before = samples.inputs.tobytes(), samples.labels.tobytes()
    weights = {key: value.clone() for key, value in trained.model.state_dict().items()}
    samples.inputs.flags.writeable = False  # as a memory-mapped data set is
    torch.manual_seed(1)
    first = detected(name, samples, trained)
    torch.manual_seed(2)
    again = detected(name, samples, trained)
    other = detected(name, samples, trained, dataclasses.replace(RECIPE, seed=4))

    check_shapes(first, samples)
    assert said(first) == said(again)
    # What a detector reads off a given model need not be random.
    assert said(first) != said(other) or name not in TRAINING
    assert (samples.inputs.tobytes(), samples.labels.tobytes()) == before
    assert all(value.equal(weights[key]) for key, value in trained.model.state_dict().items())
    assert not trained.model.training
    assert not any(module._forward_hooks for module in trained.model.modules())
    assert all(value.device.type == "cpu" and value.requires_grad for value in trained.model.parameters())


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_few_samples_a_rare_class_two_classes(name: str, kind: str) -> None:
    full = faint(kind)
    rare = full.take(np.flatnonzero((full.labels != 2) | (np.arange(48) < 8)))  # two of class 2
    for samples in (rare, full.take(np.arange(9)), full.take(np.arange(33)), faint(kind, n_classes=2)):
        try:
            detection = detected(name, samples, undefended(samples))
        except DataError as error:  # a detector may say that there is too little
            assert "\n" not in str(error)
            continue
        check_shapes(detection, samples)


@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_pictures_as_floats_and_bf16(name: str) -> None:
    bytes_ = faint("image")
    floats = dataclasses.replace(bytes_, inputs=(bytes_.inputs / np.float32(255)).astype(np.float32))
    recipe = dataclasses.replace(RECIPE, precision="bf16")
    trained = undefended(floats, recipe)
    given = what_it_needs(name, floats, trained)
    if given.clean is not None:
        clean = dataclasses.replace(given.clean, inputs=(given.clean.inputs / np.float32(255)).astype(np.float32))
        given = dataclasses.replace(given, clean=clean)
    check_shapes(make(name).detect(floats, given, recipe), floats)


@pytest.mark.parametrize("name", TRAINING)
def test_the_recipe_counts(name: str, plain: Plain) -> None:
    """A setting of the recipe changes the verdict, or the detector names it as unused, or has a field of that name."""
    samples, trained = plain["series"]
    first = said(detected(name, samples, trained))
    own = {field.name for field in dataclasses.fields(DETECTORS[name])}
    for setting, value in DECISIVE.items():
        same = said(detected(name, samples, trained, dataclasses.replace(RECIPE, **{setting: value}))) == first
        assert same == (setting in own or setting in DETECTORS[name].unused), setting


# --------------------------------------------------------------------------- what is given


@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_what_is_needed_is_asked_for(name: str, plain: Plain) -> None:
    samples, trained = plain["image"]
    given = what_it_needs(name, samples, trained)
    for part in set(DETECTORS[name].needs) - {"build"}:
        with pytest.raises(ConfigError, match=FLAGS[part]) as error:
            make(name).detect(samples, dataclasses.replace(given, **{part: None}), RECIPE)
        assert part in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_what_is_useless_is_refused(name: str, plain: Plain) -> None:
    samples, trained = plain["image"]
    given = what_it_needs(name, samples, trained)
    known = {*DETECTORS[name].needs, *DETECTORS[name].takes}
    for part in FLAGS.keys() - known:
        with pytest.raises(ConfigError, match=FLAGS[part]) as error:
            make(name).detect(samples, dataclasses.replace(given, **{part: object()}), RECIPE)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [name for name in sorted(DETECTORS) if "history" in DETECTORS[name].needs])
def test_a_history_of_other_data_is_refused(name: str, plain: Plain) -> None:
    samples, trained = plain["image"]
    given = dataclasses.replace(what_it_needs(name, samples, trained), history=LossHistory.start(7, 4))
    with pytest.raises(DataError, match="7 samples"):
        make(name).detect(samples, given, RECIPE)


# --------------------------------------------------------------------------- resuming


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_resumed_at_every_checkpoint_it_ends_the_same(name: str, kind: str, plain: Plain) -> None:
    samples, trained = plain[kind]
    given = what_it_needs(name, samples, trained)
    whole = Ledger()
    unbroken = make(name).detect(samples, given, RECIPE, journal=whole)
    assert said(unbroken) == said(detected(name, samples, trained))  # a journal changes nothing
    assert whole.n_saved or name not in TRAINING
    for stop in range(1, whole.n_saved + 1):
        broken = Ledger(stop_after=stop)
        with pytest.raises(KeyboardInterrupt):
            make(name).detect(samples, given, RECIPE, journal=broken)
        resumed = make(name).detect(samples, given, RECIPE, journal=Ledger(broken.kept))
        assert said(resumed) == said(unbroken), f"stopped after checkpoint {stop} of {whole.n_saved}"
        assert resumed.facts == unbroken.facts
        if unbroken.history is not None:
            assert resumed.history is not None
            assert resumed.history.losses.tobytes() == unbroken.history.losses.tobytes()


# --------------------------------------------------------------------------- the floor


@pytest.fixture(scope="module")
def easy() -> dict[str, tuple[Samples, BoolArray, Trained]]:
    """More samples with poison that is learned before the classes, and a network trained on them."""
    made = {kind: with_poison(faint(kind, 240)) for kind in ("image", "series")}
    return {kind: (samples, poisoned, undefended(samples, EASY)) for kind, (samples, poisoned) in made.items()}


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_easy_poison_ranks_high(name: str, kind: str, easy: dict[str, tuple[Samples, BoolArray, Trained]]) -> None:
    samples, is_poisoned, trained = easy[kind]
    detector = DETECTORS[name](**LONGER.get(name, {}))
    detection = detector.detect(samples, what_it_needs(name, samples, trained), EASY)
    floor, _why = LOWER.get(name, (FLOOR, ""))
    assert roc_auc_score(is_poisoned, detection.verdict.suspicion) >= floor


def test_a_ranking_isolates_nobody() -> None:
    verdict = Verdict.ranking(np.arange(48.0), faint("image"))
    assert not verdict.isolated.any() and verdict.poisoned is None
