"""One contract for every flag of every method: it parses, its help says what it is, and it changes something."""

from __future__ import annotations

import functools
import re
import types
import typing
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
import pytest
import torch
from conftest import pictures
from torch import Tensor, nn

from antibackdoor.app.methods import TABLES
from antibackdoor.attacks import BadNets, poison
from antibackdoor.cli.app import build_app
from antibackdoor.cli.flags import OWNED, descriptions, flag, flat_fields, made, recipe_without
from antibackdoor.defenses import DEFENSES, Undefended
from antibackdoor.detectors import ConfusionTraining
from antibackdoor.errors import AntibackdoorError, ConfigError
from antibackdoor.protocols import Given, Trained, Verdict
from antibackdoor.purifiers import SelfPurification
from antibackdoor.training.history import LossHistory
from antibackdoor.training.recipe import Recipe

N_CLASSES = 3
# Command, flag that names the method, and arguments without which the command does not parse.
COMMANDS = (
    ("train", "--defense", ("data", "--out", "run")),
    ("scan", "--detector", ("data", "--out", "run")),
    ("purify", "--method", ("model", "--out", "run")),
)
METHODS = {name: (place, kind) for place, table in enumerate(TABLES) for name, kind in table.items()}
LIMITS = {("confusion", "epochs")}  # of what another field says; 0 is none
LENGTH = re.compile(r"(^|_)(epochs|steps|rounds)$")  # fields that say how long something lasts

# What the small data ask for: settings of all runs of a method.
QUICK: dict[str, dict[str, Any]] = {
    "abl": {"isolation_rate": 0.25, "stop": "never", "gga": "last"},
    "e2abl": {"epochs": 4, "warmup_epochs": 1, "isolation_rate": 0.3, "recovery_rate": 0.1, "least_recovered": 1},
    "neural-cleanse-unlearn": {"anomaly": 0.0, "learning_rate": 0.1, "steps": 25},
}
# Other settings that a flag needs to show.
WITH: dict[tuple[str, str], dict[str, Any]] = {
    ("abl", "stop"): {"unlearning_epochs": 9, "unlearning_learning_rate": 0.5},
    ("advrbd", "least_change"): {"rounds": 4, "most_flagged": 1.0},
    ("advrbd", "relearn_learning_rate"): {"relearn": 1},
    ("dual-head", "recovery_confidence"): {"epochs": 12},
    ("e2abl", "keep_nonbackdoor"): {"epochs": 6, "warmup_epochs": 3, "isolation_rate": 0.9, "recovery_rate": 0.8},
    ("e2abl", "release_nonbackdoor"): {"isolation_rate": 0.6},
    ("neural-cleanse-unlearn", "success"): {"steps": 60},
}
SEARCH: dict[str, dict[str, Any]] = {"warmup_steps": {"warmup_steps": 8}, "hard_share": {"warmup_steps": 24}}
WITH |= {(name, field): SEARCH[field] for name in ("confusion", "dual-head") for field in SEARCH}
WITH |= {("confusion", "epochs"): {"warmup_steps": 24}}
# What a flag needs that is given beside the data.
GIVEN = {("dual-head", "recovery_confidence"): ("verdict",)}
GIVEN_ALWAYS = {"self-clean": ("verdict",)}  # a search of so few samples finds nothing
# Methods that skip labels of fewer than 20 samples.
N_SAMPLES = {"activation-clustering": 72, "scan": 72, "scan-ft": 72}
# Values that mean something, where half, twice or one more of the default do not.
OTHER: dict[str | tuple[str, str], list[Any]] = {
    "attach": ["second", "first"],
    "layer": ["first"],
    "augment": ["flip", "crop", "none"],
    "isolation_augment": ["flip"],
    "momentum": [0.5],
    "ascent_bound": [0.01],
    ("abl", "isolation"): ["spectral", "flooding"],
    ("abl", "bound"): [0.01],
    ("activation-clustering", "largest_share"): [0.5, 0.01],
    ("activation-clustering", "least_silhouette"): [1.0, -1.0],
    ("activation-clustering", "n_components"): [1],
    ("advrbd", "eps"): [0.001],
    ("advrbd", "least_change"): [1.0],
    ("advrbd", "most_flagged"): [1.0],
    ("confusion", "epochs"): [1],
    ("dbr", "poisoned_rate"): [0.3],
    ("dual-head", "recovery_confidence"): [1e-6],
    ("e2abl", "least_recovered"): [6],
    ("e2abl", "recovery_rate"): [0.2],
    ("fine-prune", "step"): [1.0],
    ("fine-prune", "tolerance"): [0.6],
    ("nad", "betas"): [(1.0,)],
    ("nad", "layers"): [("second",)],
    ("neural-cleanse-unlearn", "anomaly"): [1e9],
    ("neural-cleanse-unlearn", "bound"): [0.0],
    ("neural-cleanse-unlearn", "success"): [0.3],
    ("retrain", "detector"): ["loss-drop", "low-loss"],
    ("scan", "threshold"): [0.01, 1e6],
    ("scan-ft", "threshold"): [0.01, 1e6],
    ("scan", "n_components"): [1],
    ("scan-ft", "n_components"): [1],
    ("scan-ft", "unlearning_batch_size"): [2],
    ("unlearn", "batch_size"): [2],
}
OTHER |= {(name, "hard_share"): [0.9] for name in ("confusion", "dual-head")}
OTHER |= {(name, "warmup_steps"): [16] for name in ("confusion", "dual-head")}
PARTS = set(flat_fields(ConfusionTraining)) & set(flat_fields(SelfPurification))
# Flags whose effect these data cannot show, each with the reason.
RECIPE_SILENT = {
    "device": "there is one on every machine",
    "devices": "starts processes: tests/test_devices.py",
    "progress": "bars on a terminal",
}
SILENT: dict[tuple[str, str], str] = {
    ("confusion", "power"): "nothing is planted in labels of fewer than 20 samples: tests/test_scan.py",
    ("e2abl", "label_vote"): "the mean and the majority of so few samples name the same label",
    **{("self-clean", field): "a part of the search, whose flags are those of `confusion`" for field in PARTS},
}
# Help texts of more than two sentences: presets and choices, one sentence each.
LONG = {
    ("ABL", "gga"): 3,
    ("ABL", "preset"): 4,
    ("ChannelLipschitzPruning", "u"): 3,
    ("FineTuning", "preset"): 3,
    ("LowLoss", "gamma"): 3,
    ("NAD", "betas"): 4,
    ("NAD", "preset"): 4,
    ("SCAnFT", "epochs"): 3,
}


@pytest.fixture(autouse=True)
def _silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("antibackdoor.search.warm_up.BLOCK", 2)
    monkeypatch.setattr("antibackdoor.search.warm_up.SNAPSHOT", 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


class Tiny(nn.Module):
    """Two stages with batch norm and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.classifier = nn.Linear(16, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.classifier(self.second(self.first(x)).flatten(2).mean(2))
        return logits


@dataclass(frozen=True)
class Scene:
    """Poisoned data, a model that was trained on them, and all else that a method may be given."""

    poisoned: Any
    given: dict[str, Any]


@functools.cache
def scene(n: int) -> Scene:
    samples = pictures(n, N_CLASSES)
    poisoned = poison(samples, BadNets(cell=1), seed=0, rate=0.125, target_label=0)
    recipe = Recipe(epochs=4, batch_size=8, device="cpu", precision="fp32", augment="none", progress=False)
    plain = Undefended().train(poisoned.samples, Tiny, recipe)
    truth = poisoned.truth.is_poisoned
    verdict = Verdict.isolating(truth.astype(np.float64), truth, poisoned.samples)
    given = {
        "build": Tiny,
        "model": plain.model,
        "history": plain.history,
        "clean": pictures(n, N_CLASSES, seed=1),
        "suspicious": poisoned.samples,
        "isolated": truth,
        "verdict": verdict,
        "decisions": verdict,
        "teacher": plain.model,
        "trigger": poisoned.trigger,
        "input_shape": samples.shape,
    }
    return Scene(poisoned, given)


# --------------------------------------------------------------------------- from a flag to what it changes


def words_of(settings: dict[str, Any]) -> tuple[str, ...]:
    """Settings as a person would type them."""
    words: list[str] = []
    for name, value in settings.items():
        if isinstance(value, bool):
            words.append(flag(name) if value else f"--no-{flag(name)[2:]}")
        elif isinstance(value, tuple):
            words += [flag(name), *map(str, value)]
        else:
            words.append(f"{flag(name)}={value}")
    return tuple(words)


@functools.cache
def parsed(name: str, words: tuple[str, ...]) -> tuple[Any, Any]:
    """The method and the recipe that a command line makes."""
    place, kind = METHODS[name]
    command, which, rest = COMMANDS[place]
    line = [command, *rest, which, name, *words]
    _, bound, _ = build_app(line).parse_args(line, exit_on_error=False, print_error=False)
    bound.apply_defaults()
    return made(kind, bound.arguments["hyper"]), made(Recipe, bound.arguments["recipe"])


def shown(name: str) -> dict[str, Any]:
    """The flags of a method and of the recipe beside it: name to type."""
    _, kind = METHODS[name]
    of_recipe = {part.name: typing.get_type_hints(Recipe)[part.name] for part in fields(Recipe)}
    return {
        **{part: hint for part, hint in of_recipe.items() if part not in recipe_without(kind)},
        **{part: typing.get_type_hints(owner)[part] for part, (owner, _) in flat_fields(kind).items()},
    }


def quick(name: str, field: str) -> dict[str, Any]:
    """Settings for a run of a moment, in which a field can show."""
    known = shown(name)
    short = {part: 2 for part in known if LENGTH.search(part) and (name, part) not in LIMITS}
    fixed = {"batch_size": 8, "precision": "fp32", "device": "cpu", "augment": "none", "progress": False}
    fixed = {part: value for part, value in fixed.items() if part in known}
    return {**short, **fixed, **QUICK.get(name, {}), **WITH.get((name, field), {})}


def of(name: str) -> Scene:
    return scene(N_SAMPLES.get(name, 24))


@functools.cache
def given(name: str) -> tuple[str, ...]:
    """What a method is given: what it needs, and as much of what it can use as it takes to run."""
    _, kind = METHODS[name]
    parts = (*kind.needs, *GIVEN_ALWAYS.get(name, ()))
    for more in ((), *((part,) for part in kind.takes)):
        if isinstance(outcome(name, words_of(quick(name, "")), (*parts, *more)), bytes):
            return (*parts, *more)
    raise AssertionError(f"{name} runs with nothing: {outcome(name, words_of(quick(name, '')), parts)}")


@functools.cache
def undefended(name: str, recipe: Recipe) -> Trained:
    """What a scan trains for a detector that needs a model."""
    return Undefended().train(of(name).poisoned.samples, Tiny, recipe)


@functools.cache
def outcome(name: str, words: tuple[str, ...], parts: tuple[str, ...]) -> bytes | str:
    """What a command line makes of the data: bytes of all that is returned, or the line that refuses it."""
    place, _ = METHODS[name]
    here = {part: of(name).given[part] for part in (*parts, "build", "input_shape")}
    samples = of(name).poisoned.samples
    try:
        method, recipe = parsed(name, words)
        if place == 1 and {"model", "history"} & {*parts}:
            plain = undefended(name, recipe)
            here |= {part: getattr(plain, part) for part in ("model", "history") if part in parts}
        if place == 0:
            done = method.train(samples, Tiny, recipe, given=Given(**here))
        elif place == 1:
            done = method.detect(samples, Given(**here), recipe)
        else:
            done = method.purify(of(name).given["model"], Given(**here), recipe)
    except AntibackdoorError as error:
        assert "\n" not in str(error)
        return str(error)
    return told(done)


def told(done: Any) -> bytes:
    """Weights, verdict, losses and facts as bytes."""
    parts: list[Any] = [sorted(asdict(done.facts).items())]
    if getattr(done, "model", None) is not None:
        parts += [value.numpy().tobytes() for value in done.model.state_dict().values()]
    for verdict in (getattr(done, "verdict", None), getattr(done, "midway", None)):
        if verdict is not None:
            parts += [getattr(verdict, part.name) for part in fields(verdict)]
    history = getattr(done, "history", None)
    if isinstance(history, LossHistory):
        parts += [history.losses, history.steps]
    return b"|".join(part if isinstance(part, bytes) else _bytes(part) for part in parts)


def _bytes(part: Any) -> bytes:
    return part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode()


def candidates(name: str, field: str, hint: Any, now: Any) -> list[Any]:
    """Other values of a field."""
    for known in ((name, field), field):
        if known in OTHER:
            return [value for value in OTHER[known] if value != now]
    if typing.get_origin(hint) is Literal:
        return [value for value in typing.get_args(hint) if value != now]
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    if hint is bool:
        return [not now]
    if hint is int:
        return [3] if not now else [now + 1, 2 * now + 2]
    if hint is float:
        return [0.3, 0.05] if not now else [now / 2, now * 1.5]
    raise AssertionError(f"OTHER says no value of {name} {flag(field)}")


FLAGS = [(name, field) for name in METHODS for field in shown(name)]
UNUSED = [
    (name, field) for name, (_, kind) in METHODS.items() for field in kind.unused if field not in flat_fields(kind)
]


@pytest.mark.parametrize(("name", "field"), FLAGS, ids=[f"{name} {flag(field)}" for name, field in FLAGS])
def test_a_flag_changes_something(name: str, field: str) -> None:
    usual = quick(name, field)
    method, recipe = parsed(name, words_of(usual))
    values = {**asdict(recipe), **flat_values(method)}
    if field in RECIPE_SILENT or (name, field) in SILENT:
        return
    parts = (*given(name), *GIVEN.get((name, field), ()))
    before = outcome(name, words_of(usual), parts)
    assert isinstance(before, bytes), before
    others = candidates(name, field, shown(name)[field], values[field])
    assert others, f"no other value of {flag(field)} is known"
    refusals = []
    for value in others:
        settings = {**usual, field: value}
        method, recipe = parsed(name, words_of(settings))
        assert {**asdict(recipe), **flat_values(method)}[field] == value, "the flag does not reach its field"
        after = outcome(name, words_of(settings), parts)
        if isinstance(after, bytes) and after != before:
            return
        refusals += [after] if isinstance(after, str) else []
    assert len(refusals) == len(others), f"{flag(field)} of {others} changes nothing; {refusals}"


def flat_values(method: Any) -> dict[str, Any]:
    """Fields of a method, those of its parts beside them."""
    values: dict[str, Any] = {}
    for part in fields(method):
        value = getattr(method, part.name)
        if hasattr(value, "__dataclass_fields__"):
            own = {name: inner for name, inner in flat_values(value).items() if name not in OWNED}
            values = {**own, **values}
        else:
            values[part.name] = value
    return values


@pytest.mark.parametrize(("name", "field"), FLAGS, ids=[f"{name} {flag(field)}" for name, field in FLAGS])
def test_a_flag_is_described(name: str, field: str) -> None:
    owner = {part: of for part, (of, _) in flat_fields(METHODS[name][1]).items()}.get(field, Recipe)
    text = descriptions(owner).get(field, "")
    sentences = len(re.findall(r"[.](?=\s+[A-Z`0-9]|$)", text))
    assert text and text.endswith("."), f"{flag(field)} is not described in {owner.__name__}"
    most = LONG.get((owner.__name__, field), 2)
    assert 1 <= sentences <= most, f"{sentences} sentences in {owner.__name__}: {text}"


@pytest.mark.parametrize(("name", "field"), UNUSED, ids=[f"{name} {flag(field)}" for name, field in UNUSED])
def test_a_flag_that_changes_nothing_is_refused(name: str, field: str) -> None:
    place, _ = METHODS[name]
    assert field in {part.name for part in fields(Recipe)} and field not in shown(name)
    command, which, rest = COMMANDS[place]
    for words in ([flag(field), "3"], [f"{flag(field)}=3"]):
        with pytest.raises(ConfigError, match=rf"{flag(field)} changes nothing with {which} {name}") as error:
            build_app([command, *rest, which, name, *words])
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", METHODS)
def test_one_name_one_field(name: str) -> None:
    """A part of a method has no field of the name of another: both would follow one flag."""
    _, kind = METHODS[name]
    hints = typing.get_type_hints(kind)
    names: list[str] = []
    for part in fields(kind):
        is_part = hasattr(hints[part.name], "__dataclass_fields__")
        names += list(flat_fields(hints[part.name])) if is_part else [part.name]
    assert len(names) == len(set(names))


def test_the_tables_are_covered() -> None:
    assert set(METHODS) == {name for table in TABLES for name in table}
    assert len(METHODS) == sum(map(len, TABLES)), "two methods have one name"
    known = {(name, field) for name, field in FLAGS}
    for table in (SILENT, WITH, GIVEN, {key: 0 for key in OTHER if isinstance(key, tuple)}):
        assert set(table) <= known, "a reason for a flag that is gone"
    assert set(DEFENSES) <= set(METHODS)
    assert torch.get_num_threads() == 1
