"""One contract for every purifier in the table, on images and on series."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import types
import typing
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from conftest import pictures, waves
from torch import Tensor, nn

from antibackdoor.attacks import BadNets, StaticPattern, poison, sample_numbers
from antibackdoor.attacks.poisoning import Poisoned
from antibackdoor.data.samples import Samples
from antibackdoor.defenses import Undefended
from antibackdoor.errors import AntibackdoorError, ConfigError, ModelError
from antibackdoor.protocols import ALWAYS_THERE, FLAGS, Given, Purified, Trained, Verdict
from antibackdoor.purifiers import PURIFIERS
from antibackdoor.statistics.metrics import attack_success_rate, clean_accuracy
from antibackdoor.training.history import LossHistory
from antibackdoor.training.recipe import Recipe

RECIPE = Recipe(epochs=2, device="cpu", precision="fp32", seed=3, progress=False)
NAMES = sorted(PURIFIERS)
CASES = [(name, kind) for name in NAMES for kind in ("image", "series")]
N_CLASSES = 3

# Settings with which a method changes the model at all on such small data.
EAGER: dict[str, dict[str, Any]] = {
    "neural-cleanse-unlearn": {"anomaly": 0.0, "learning_rate": 0.1},
}
# Another value of a field, where half of the value or the next choice would mean nothing.
OTHER: dict[tuple[str, str], Any] = {
    ("fine-prune", "layer"): "first",
    ("fine-prune", "step"): 1.0,
    ("fine-prune", "accuracy"): 0.5,
    ("fine-prune", "floor"): 0.9,
    ("fine-prune", "rate"): 0.1,
    ("fine-prune", "tolerance"): 0.6,
    ("fine-tune", "hole"): 3,
    ("nad", "layers"): ("second",),
    ("nad", "betas"): (1.0,),
    ("nad", "held_out"): 0.3,
    ("nad", "pair"): "BF-BF",
    ("neural-cleanse-unlearn", "anomaly"): 1e9,
    ("neural-cleanse-unlearn", "steps"): 9,
    ("neural-cleanse-unlearn", "penalty"): 1.0,
    ("neural-cleanse-unlearn", "success"): 0.01,
    ("neural-cleanse-unlearn", "bound"): 0.0,
    ("scan-ft", "ascent_bound"): 1e-6,
    ("unlearn", "ascent_bound"): 1e-6,
}
# Largest attack success that is left of an easy backdoor, and settings for 240 clean samples of 8 x 8 pixels or 24
# steps: the classes of these pictures are places, which crops would mix up.
FLOORS: dict[str, tuple[dict[str, Any], float]] = {
    "fine-prune": ({"augment": "none", "learning_rate": 0.1, "tolerance": 0.2}, 0.6),
    "fine-tune": ({"augment": "none", "hole": 3}, 0.6),
    "mcr": ({"augment": "none", "learning_rate": 0.1, "epochs": 40, "batch_size": 32}, 0.3),
    "nad": ({"augment": "none", "betas": (50.0,)}, 0.2),
    "neural-cleanse-unlearn": ({"anomaly": 0.0, "steps": 50, "epochs": 20, "learning_rate": 0.01}, 0.2),
    "scan-ft": ({}, 0.1),
    "self-clean": ({"share_of_training": 1.0}, 0.2),
    "trigger-retrain": ({"augment": "none"}, 0.1),
    "unlearn": ({"learning_rate": 0.01}, 0.3),
}
# Methods without a floor, each with the reason.
NO_FLOOR = {"clp": "at u = 3 none of 8 or 16 channels is an outlier; a smaller u costs more than the backdoor"}


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


class Tiny(nn.Module):
    """Two stages with batch norm and a linear layer, for images and series."""

    def __init__(self, shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__()
        image = len(shape) == 3
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if image else (nn.Conv1d, nn.BatchNorm1d)
        self.first = nn.Sequential(conv(shape[0], 8, 3, padding=1), norm(8), nn.ReLU())
        self.second = nn.Sequential(conv(8, 16, 3, stride=2, padding=1), norm(16), nn.ReLU())
        self.classifier = nn.Linear(16, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.classifier(self.second(self.first(x)).flatten(2).mean(2))
        return logits


def make_samples(kind: str, n: int, n_classes: int = N_CLASSES, seed: int = 0) -> Samples:
    return pictures(n, n_classes, seed=seed) if kind == "image" else waves(n, n_classes, length=24, seed=seed)


@dataclass(frozen=True)
class Scene:
    """A backdoored model, and all that a purifier may be given."""

    model: nn.Module
    build: Callable[[], nn.Module]
    poisoned: Poisoned
    clean: Samples
    history: LossHistory


@functools.cache
def scene(kind: str, n_classes: int = N_CLASSES, n_clean: int = 36) -> Scene:
    poisoned = poison(
        make_samples(kind, 120, n_classes),
        BadNets() if kind == "image" else StaticPattern(),
        seed=0,
        rate=0.2,
        target_label=0,
    )
    samples = poisoned.samples
    build: Callable[[], nn.Module] = lambda: Tiny(samples.shape, n_classes)  # noqa: E731
    trained: Trained = Undefended().train(samples, build, dataclasses.replace(RECIPE, epochs=12, augment="none"))
    return Scene(trained.model, build, poisoned, make_samples(kind, n_clean, n_classes, seed=1), trained.history)


def everything(here: Scene) -> dict[str, Any]:
    """A value for each field of `Given`."""
    truth, samples = here.poisoned.truth.is_poisoned, here.poisoned.samples
    verdict = Verdict.isolating(truth.astype(np.float64), truth, samples)
    teacher = Tiny(samples.shape, samples.n_classes)
    return {
        "build": here.build,
        "model": here.model,
        "history": here.history,
        "clean": here.clean,
        "suspicious": samples,
        "isolated": truth,
        "verdict": verdict,
        "decisions": verdict,
        "teacher": teacher,
        "trigger": here.poisoned.trigger,
        "input_shape": samples.shape,
    }


# Methods that can do with one of two things name neither as a need.
HELPFUL = {"unlearn": ("isolated",), "self-clean": ("verdict",)}


def given_for(name: str, here: Scene, *, without: str = "") -> Given:
    wanted = {*ALWAYS_THERE, *PURIFIERS[name].needs, *HELPFUL.get(name, ())} - {without}
    return Given(**{field: value for field, value in everything(here).items() if field in wanted})


def make(name: str, **settings: Any) -> Any:
    """A method whose trainings are short."""
    short: dict[str, Any] = dict(EAGER.get(name, {}))
    for field in dataclasses.fields(PURIFIERS[name]):
        if field.name.endswith("epochs"):
            short[field.name] = 2
        if field.name == "steps":
            short[field.name] = 3
    return PURIFIERS[name](**{**short, **settings})


def purified(name: str, here: Scene, recipe: Recipe = RECIPE, journal: Any = None, **settings: Any) -> Purified:
    method = make(name, **settings)
    result: Purified = method.purify(here.model, given_for(name, here), recipe, journal=journal)
    return result


def weights(model: nn.Module) -> bytes:
    return b"".join(value.numpy().tobytes() for value in model.state_dict().values())


def said(result: Purified) -> tuple[bytes, str]:
    return weights(result.model), repr(result.facts)


def predictions(model: nn.Module, inputs: Any) -> Any:
    values = torch.from_numpy(np.array(inputs)).float()
    with torch.no_grad():
        return model(values / 255 if inputs.dtype == np.uint8 else values).argmax(1).numpy()


def check(result: Purified, here: Scene) -> None:
    model, samples = result.model, here.clean
    assert isinstance(model, Tiny) and not model.training
    with torch.no_grad():
        logits = model(torch.from_numpy(np.array(samples.inputs[:5])).float())
    assert logits.shape == (5, samples.n_classes) and logits.isfinite().all()
    fresh = here.build()
    assert list(model.state_dict()) == list(fresh.state_dict())
    fresh.load_state_dict(model.state_dict())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(value.device.type == "cpu" for value in model.state_dict().values())
    assert dataclasses.is_dataclass(result.facts)
    for value in dataclasses.asdict(result.facts).values():
        assert value is None or isinstance(value, bool | int | float | str)


@pytest.mark.parametrize("name", NAMES)
def test_hyper_parameters_make_sense(name: str) -> None:
    method = PURIFIERS[name]()
    settings = dataclasses.asdict(method)  # type: ignore[call-overload]
    restored = json.loads(json.dumps(settings))
    for key, value in restored.items():
        default = getattr(method, key)
        if dataclasses.is_dataclass(default):
            restored[key] = type(default)(**value)
        elif isinstance(value, list):
            restored[key] = tuple(value)
    assert PURIFIERS[name](**restored) == method
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(method, next(iter(settings)), 1)
    for field in settings:
        assert f"{field}:" in (inspect.getdoc(method) or ""), f"{field} is not described"
    assert "Reference" in (inspect.getdoc(method) or "")
    assert {*method.needs, *method.takes} <= {field.name for field in dataclasses.fields(Given)}
    own = {field.name for field in dataclasses.fields(Recipe)}
    assert set(method.unused) <= own and not set(method.unused) & set(settings)


def kinds_of(name: str, field: str) -> set[type]:
    """The types that the annotation of a field allows; a choice counts as a text."""
    hint = typing.get_type_hints(PURIFIERS[name])[field]
    parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return {str if typing.get_origin(part) is typing.Literal else part for part in parts}


def wrong_values(name: str, field: str) -> list[Any]:
    kinds = kinds_of(name, field)
    if int in kinds or float in kinds:
        return [-7, float("nan")] if float in kinds else [-7]
    if str in kinds:
        return ["nonsense"]
    default = getattr(PURIFIERS[name](), field)
    if isinstance(default, tuple):
        return [(-7.0,)] if default else [("nonsense",)]
    return []


@pytest.mark.parametrize(
    ("name", "field"), [(name, field.name) for name in NAMES for field in dataclasses.fields(PURIFIERS[name])]
)
def test_bad_hyper_parameters(name: str, field: str) -> None:
    for wrong in wrong_values(name, field):
        with pytest.raises(AntibackdoorError) as error:
            purified(name, scene("image"), **{field: wrong})
        assert isinstance(error.value, ModelError if "layer" in field else ConfigError), field
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_missing_is_named(name: str) -> None:
    here = scene("image")
    for missing in PURIFIERS[name].needs:
        with pytest.raises(ConfigError) as error:
            make(name).purify(here.model, given_for(name, here, without=missing), RECIPE)
        assert FLAGS[missing] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_useless_is_refused(name: str) -> None:
    here, method = scene("image"), make(name)
    useless = [field for field in FLAGS if field not in (*method.needs, *method.takes, "model")]
    for field in useless:
        given = dataclasses.replace(given_for(name, here), **{field: everything(here)[field]})
        with pytest.raises(ConfigError) as error:
            method.purify(here.model, given, RECIPE)
        assert FLAGS[field] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_same_seed_same_bytes(name: str, kind: str) -> None:
    here = scene(kind)
    model, inputs, modes = weights(here.model), here.clean.inputs.tobytes(), [m.training for m in here.model.modules()]
    here.clean.inputs.flags.writeable = False  # as a memory-mapped data set is
    torch.manual_seed(1)
    first = purified(name, here)
    torch.manual_seed(2)
    again = purified(name, here)
    check(first, here)
    assert said(first) == said(again)
    assert weights(here.model) == model and here.clean.inputs.tobytes() == inputs
    assert [module.training for module in here.model.modules()] == modes
    assert not any(module._forward_hooks for module in here.model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in here.model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_frozen_model_in_training_mode(name: str) -> None:
    here = scene("image")
    frozen = here.build()
    frozen.load_state_dict(here.model.state_dict())
    frozen.train().requires_grad_(False)
    given = given_for(name, here)
    result = make(name).purify(frozen, given, RECIPE)
    assert weights(result.model) == weights(purified(name, here).model)
    assert frozen.training and not any(parameter.requires_grad for parameter in frozen.parameters())


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_two_classes_few_samples_and_a_rare_class(name: str, kind: str) -> None:
    two = scene(kind, 2, 12)
    check(purified(name, two), two)
    here = scene(kind)
    rare = np.flatnonzero((here.clean.labels != 2) | (np.arange(36) < 3))  # one of class 2
    for rows in (rare, np.arange(7)):
        few = dataclasses.replace(here, clean=here.clean.take(rows))
        check(purified(name, few), few)


@pytest.mark.parametrize("name", NAMES)
def test_pictures_as_floats_and_bf16(name: str) -> None:
    here = scene("image")

    def floats(samples: Samples) -> Samples:
        return dataclasses.replace(samples, inputs=(samples.inputs / np.float32(255)).astype(np.float32))

    poisoned = dataclasses.replace(here.poisoned, samples=floats(here.poisoned.samples))
    there = dataclasses.replace(here, clean=floats(here.clean), poisoned=poisoned)
    check(purified(name, there, dataclasses.replace(RECIPE, precision="bf16")), there)


def another(name: str, field: str) -> Any:
    """Another value for a field that makes sense."""
    if (name, field) in OTHER:
        return OTHER[name, field]
    hint, method = typing.get_type_hints(PURIFIERS[name])[field], make(name)
    now = getattr(method, field)
    if typing.get_origin(hint) is typing.Literal:
        return next(choice for choice in typing.get_args(hint) if choice != now)
    if field == "augment":
        return "flip"
    if field.endswith("batch_size"):
        return 16
    if now is None:
        return {"learning_rate": 0.03, "momentum": 0.5, "weight_decay": 0.01}[field]
    if isinstance(now, bool):
        return not now
    return now + 1 if isinstance(now, int) else now / 2 or 0.25


@pytest.mark.parametrize(
    ("name", "field"),
    [
        (name, field.name)
        for name in NAMES
        for field in dataclasses.fields(PURIFIERS[name])
        if not dataclasses.is_dataclass(getattr(PURIFIERS[name](), field.name))
    ],
)
def test_every_field_has_a_say(name: str, field: str) -> None:
    here = scene("image")
    try:
        changed = purified(name, here, **{field: another(name, field)})
    except ConfigError as error:
        assert "\n" not in str(error)
        return
    assert said(changed) != said(purified(name, here))


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_has_a_say_where_the_method_has_none(name: str) -> None:
    here, method = scene("image"), make(name)
    changed: dict[str, Any] = {"epochs": 3, "batch_size": 16, "learning_rate": 0.03, "momentum": 0.5}
    changed |= {"weight_decay": 0.01, "augment": "flip", "schedule": "constant", "seed": 4}
    owned = {field.name for field in dataclasses.fields(method)}
    plain = said(purified(name, here))
    for field, value in changed.items():
        result = said(purified(name, here, dataclasses.replace(RECIPE, **{field: value})))
        silent = field in owned or field in method.unused
        assert (result == plain) == silent, f"{field} {'has' if silent else 'has no'} say"


class Ledger:
    """A journal that keeps the last checkpoint, or stops after some."""

    folder = None

    def __init__(self, kept: dict[str, Any] | None = None, stop_after: int = 10**9) -> None:
        self.kept, self.n_saved, self.stop_after = kept, 0, stop_after

    def log(self, **fields: Any) -> None:
        """Nothing is kept."""

    def tell(self, message: str) -> None:
        """Nobody waits."""

    def save(self, state: dict[str, Any]) -> None:
        self.kept = copied(state)
        self.n_saved += 1
        if self.n_saved >= self.stop_after:
            raise KeyboardInterrupt

    def load(self) -> dict[str, Any] | None:
        return copied(self.kept)


def copied(value: Any) -> Any:
    """A checkpoint as a file would give it back: arrays as tensors."""
    if isinstance(value, dict):
        return {key: copied(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(part) for part in value)
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    return value.clone() if isinstance(value, Tensor) else value


# Other ways through a method, with other networks and phases.
WAYS: list[tuple[str, str, dict[str, Any]]] = [
    *((name, kind, {}) for name, kind in CASES),
    ("fine-prune", "image", {"floor": 0.9}),
    ("mcr", "series", {"endpoints": "B-BF"}),
    ("nad", "image", {"held_out": 0.25, "beta_search": 0.3, "patience": 1, "betas": (9.0,)}),
    ("nad", "series", {"pair": "BF-BF", "preset": "code"}),
    ("neural-cleanse-unlearn", "series", {"repair": "retrain"}),
]


@pytest.mark.parametrize(("name", "kind", "settings"), WAYS)
def test_resumed_at_every_checkpoint_it_ends_the_same(name: str, kind: str, settings: dict[str, Any]) -> None:
    here = scene(kind)
    whole = Ledger()
    unbroken = said(purified(name, here, journal=whole, **settings))
    assert unbroken == said(purified(name, here, **settings))  # a journal changes nothing
    for stop in range(1, whole.n_saved + 1):
        broken = Ledger(stop_after=stop)
        with pytest.raises(KeyboardInterrupt):
            purified(name, here, journal=broken, **settings)
        resumed = said(purified(name, here, journal=Ledger(broken.kept), **settings))
        assert resumed == unbroken, f"stopped after checkpoint {stop} of {whole.n_saved}"


@pytest.mark.parametrize(("name", "kind"), [case for case in CASES if case[0] in FLOORS])
def test_an_easy_backdoor_is_gone(name: str, kind: str) -> None:
    here, (settings, most) = scene(kind, N_CLASSES, 240), FLOORS[name]
    test, plan = make_samples(kind, 150, seed=2), here.poisoned.plan
    stamped = here.poisoned.trigger.apply(test.inputs, sample_numbers(test.ids))
    eligible, goal = plan.eligible(test.labels), plan.goal(test.labels)
    assert attack_success_rate(predictions(here.model, stamped), eligible, goal) > 0.9
    recipe = dataclasses.replace(RECIPE, epochs=12)  # that of the training
    model = PURIFIERS[name](**settings).purify(here.model, given_for(name, here), recipe).model
    left = attack_success_rate(predictions(model, stamped), eligible, goal)
    assert left <= most, f"{left:.2f} of the attack is left"
    assert clean_accuracy(predictions(model, test.inputs), test.labels) > 0.8


def test_every_purifier_has_a_floor_or_a_reason() -> None:
    assert set(NAMES) <= {*FLOORS, *NO_FLOOR}
