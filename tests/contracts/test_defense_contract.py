"""One contract for every defense in the table, on images and on series."""

from __future__ import annotations

import dataclasses
import inspect
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from conftest import pictures, waves
from ledger import Ledger
from torch import Tensor, nn

from antibackdoor.data.samples import Samples
from antibackdoor.defenses import DEFENSES
from antibackdoor.detectors import ConfusionTraining
from antibackdoor.errors import AntibackdoorError, ConfigError, DataError, ModelError
from antibackdoor.models.backbones import build_backbone
from antibackdoor.protocols import (
    CRITERIA,
    DECISION,
    FLAGS,
    KEPT,
    NO_CRITERION,
    STATUSES,
    Build,
    Given,
    Trained,
    Verdict,
)
from antibackdoor.training.recipe import Recipe

# Small budgets; the defaults are for real data.
SEARCH = ConfusionTraining(power=False, confusion_steps=3, warmup_steps=60)
QUICK: dict[str, dict[str, Any]] = {
    "abl": {"isolation_epochs": 1, "epochs": 1, "unlearning_epochs": 1},
    "advrbd": {"short_epochs": 1, "rounds": 2, "round_epochs": 1},
    "cutmix": {"epochs": 2},
    "dbr": {"short_epochs": 1, "shaping_epochs": 1, "removal_epochs": 1},
    "dual-head": {"search": SEARCH},
    "e2abl": {"epochs": 3, "warmup_epochs": 1},
}
RECIPE = Recipe(epochs=2, device="cpu", precision="fp32", seed=3)
NAMES = sorted(DEFENSES)
CASES = [(name, kind) for name in NAMES for kind in ("image", "series")]
# Fields of the parts of a method, such as the search of the default, count as its own: part, name, or "" and name.
Place = tuple[str, str]


def places(name: str) -> dict[Place, Any]:
    """The hyper-parameters of a method and of its parts, with their defaults."""
    found: dict[Place, Any] = {}
    for field in dataclasses.fields(DEFENSES[name]):
        value = getattr(DEFENSES[name](), field.name)
        if dataclasses.is_dataclass(value):
            found |= {(field.name, inner.name): getattr(value, inner.name) for inner in dataclasses.fields(value)}
        else:
            found["", field.name] = value
    return found


SPLIT = {name: place for name in NAMES for place in places(name) if place[1] == "attach"}


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings(
            "ignore", message=".*even kernel lengths.*"
        )  # torch's, at fcn; the command line mutes it
        yield


@pytest.fixture(autouse=True)
def _short_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small data warm up for one snapshot of 150 steps; shorter ones make several, and a checkpoint after each."""
    monkeypatch.setattr("antibackdoor.search.warm_up.BLOCK", 5)
    monkeypatch.setattr("antibackdoor.search.warm_up.SNAPSHOT", 10)


def make_samples(kind: str, n: int = 40, n_classes: int = 3) -> Samples:
    return pictures(n, n_classes) if kind == "image" else waves(n, n_classes)


def builder(samples: Samples) -> Build:
    name = "wrn-10-1" if samples.kind == "image" else "fcn"
    return lambda: build_backbone(name, samples.shape, samples.n_classes)


def make(name: str, place: Place | None = None, value: Any = None) -> Any:
    """A quick method, with one hyper-parameter of it or of a part changed."""
    method: Any = DEFENSES[name](**QUICK.get(name, {}))
    if place is None:
        return method
    part, field = place
    if part:
        return dataclasses.replace(method, **{part: dataclasses.replace(getattr(method, part), **{field: value})})
    return dataclasses.replace(method, **{field: value})


def trained(name: str, samples: Samples, recipe: Recipe = RECIPE, **asked: Any) -> Trained:
    result: Trained = make(name).train(samples, builder(samples), recipe, **asked)
    return result


def weights(result: Trained) -> bytes:
    return b"".join(value.numpy().tobytes() for value in result.model.state_dict().values())


def said(result: Trained) -> bytes:
    """All that a training says of samples."""
    verdict = result.verdict
    parts = [verdict.suspicion, verdict.status, verdict.suggested_label, verdict.criterion, result.history.losses]
    parts += [part for part in (result.probe, verdict.margin) if part is not None]
    return b"".join(part.tobytes() for part in parts)


def check_verdict(verdict: Verdict, samples: Samples) -> None:
    n = len(samples)
    for values, kind in (
        (verdict.suspicion, np.float64),
        (verdict.status, np.uint8),
        (verdict.suggested_label, np.int64),
        (verdict.criterion, np.uint8),
    ):
        assert values.shape == (n,) and values.dtype == kind
    assert np.isfinite(verdict.suspicion).all()
    assert verdict.status.max() < len(STATUSES) and verdict.criterion.max() < len(CRITERIA)
    assert ((verdict.criterion != NO_CRITERION) == (verdict.status != KEPT)).all(), "what was isolated has a reason"
    assert ((verdict.suggested_label == samples.labels) | verdict.isolated).all()
    np.testing.assert_array_equal(verdict.ordered(samples.labels).suspicion, verdict.suspicion)
    assert set(verdict.unexamined) <= set(samples.labels.tolist())
    assert verdict.suggested_label.min() >= 0 and verdict.suggested_label.max() < samples.n_classes
    assert verdict.poisoned in (None, False, True)
    assert set(verdict.target_labels) <= set(range(samples.n_classes))
    assert verdict.p_value is None or 0 < verdict.p_value <= 1
    assert verdict.margin is None or (verdict.margin.shape == (n,) and verdict.margin.dtype == np.float64)


def check_shapes(result: Trained, samples: Samples) -> None:
    n = len(samples)
    check_verdict(result.verdict, samples)
    if result.midway is not None:
        check_verdict(result.midway, samples)
    assert result.history.n_samples == n and result.history.losses.dtype == np.float32
    assert np.isfinite(result.history.losses).all()
    assert len(result.history.steps) == len(result.history) and (np.diff(result.history.steps) > 0).all()
    if result.probe is not None:
        assert result.probe.shape == (n,) and result.probe.dtype == np.bool_
        assert not (result.probe & ~result.verdict.isolated).any()
    assert not result.model.training
    with torch.no_grad():
        logits = result.model(torch.from_numpy(samples.inputs[:5]).float())
    assert logits.shape == (5, samples.n_classes) and logits.isfinite().all()
    assert dataclasses.is_dataclass(result.facts) and type(result.facts).__dataclass_params__.frozen  # type: ignore[attr-defined]
    for field in dataclasses.fields(result.facts):
        value = getattr(result.facts, field.name)
        assert value is None or type(value) in (bool, int, float, str), field.name
        assert f"{field.name}:" in (inspect.getdoc(result.facts) or ""), f"{field.name} is not described"


# --------------------------------------------------------------------------- hyper-parameters


def from_json(kind: type[Any], settings: dict[str, Any]) -> Any:
    """A method from what a file says of it; parts are methods, too."""
    hints = get_type_hints(kind)
    values = {
        name: from_json(hints[name], value)
        if isinstance(value, dict)
        else tuple(value)
        if isinstance(value, list)
        else value
        for name, value in settings.items()
    }
    return kind(**values)


@pytest.mark.parametrize("name", NAMES)
def test_hyper_parameters_make_sense(name: str) -> None:
    for method in (DEFENSES[name](), make(name)):
        assert from_json(DEFENSES[name], json.loads(json.dumps(dataclasses.asdict(method)))) == method
    described = inspect.getdoc(DEFENSES[name]) or ""
    assert described and not described.startswith(f"{DEFENSES[name].__name__}(")
    for field in dataclasses.fields(DEFENSES[name]):
        assert f"{field.name}:" in described, f"{field.name} is not described"
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(DEFENSES[name](), field.name, 1)
    part_names = [field for part, field in places(name) if part]
    assert not {field for part, field in places(name) if not part} & {*part_names}, "two flags of one name"


@pytest.mark.parametrize(("name", "place"), [(name, place) for name in NAMES for place in places(name)])
def test_bad_hyper_parameters(name: str, place: Place) -> None:
    default = places(name)[place]
    if isinstance(default, bool):
        return
    samples = make_samples("image")
    numbers = [-7.0, float("nan")] if isinstance(default, float) else [-7]
    for wrong in ["nonsense"] if isinstance(default, str) else numbers:
        with pytest.raises(AntibackdoorError) as error:
            make(name, place, wrong).train(samples, builder(samples), dataclasses.replace(RECIPE, epochs=1))
        assert isinstance(error.value, ModelError if place[1] in ("attach", "layer") else ConfigError)
        assert "\n" not in str(error.value)


# --------------------------------------------------------------------------- what comes out


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_same_seed_same_bytes(name: str, kind: str) -> None:
    samples = make_samples(kind)
    before = samples.inputs.tobytes(), samples.labels.tobytes()
    samples.inputs.flags.writeable = False  # as a memory-mapped data set is
    torch.manual_seed(1)
    first = trained(name, samples)
    torch.manual_seed(2)
    np.random.default_rng().random()
    again, other = trained(name, samples), trained(name, samples, dataclasses.replace(RECIPE, seed=4))

    assert (samples.inputs.tobytes(), samples.labels.tobytes()) == before
    check_shapes(first, samples)
    assert weights(first) == weights(again) != weights(other)
    assert said(first) == said(again) != said(other)
    assert first.facts == again.facts and first.verdict.target_labels == again.verdict.target_labels
    assert first.verdict.suspicion.tobytes() != other.verdict.suspicion.tobytes()


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_delivered_model_is_the_users_alone(name: str, kind: str) -> None:
    samples = make_samples(kind, n_classes=2)  # K = 2 at the same time
    build = builder(samples)
    result = trained(name, samples)
    check_shapes(result, samples)
    fresh = build()
    assert list(result.model.state_dict()) == list(fresh.state_dict())
    fresh.load_state_dict(result.model.state_dict())
    assert type(result.model) is type(fresh)
    assert not any(module._forward_hooks for module in result.model.modules())
    assert all(value.device.type == "cpu" and value.requires_grad for value in result.model.parameters())


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_rare_class_and_few_samples(name: str, kind: str) -> None:
    full = make_samples(kind, n=40, n_classes=4)
    rare = full.take(np.flatnonzero((full.labels != 2) | (np.arange(40) < 8)))  # two of class 2
    check_shapes(trained(name, rare), rare)
    few = full.take(np.arange(9))  # fewer than a batch
    check_shapes(trained(name, few), few)
    odd = full.take(np.arange(33))  # one more than a batch
    check_shapes(trained(name, odd), odd)


@pytest.mark.parametrize("name", NAMES)
def test_pictures_as_floats_and_bf16(name: str) -> None:
    bytes_ = make_samples("image")
    floats = dataclasses.replace(bytes_, inputs=(bytes_.inputs / np.float32(255)).astype(np.float32))
    check_shapes(trained(name, floats, dataclasses.replace(RECIPE, precision="bf16")), floats)


class Own(nn.Module):
    """A network of the user's: no batch norm, layers under names of its own."""

    def __init__(self, shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__()
        conv = nn.Conv2d if len(shape) == 3 else nn.Conv1d
        self.first, self.deep = conv(shape[0], 6, 3, padding=1), conv(6, 8, 3, padding=1)
        self.classifier = nn.Linear(8, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        features = self.deep(self.first(x).relu()).relu()
        logits: Tensor = self.classifier(features.flatten(2).mean(2))
        return logits


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_users_own_network(name: str, kind: str) -> None:
    samples = make_samples(kind)
    build: Callable[[], nn.Module] = lambda: Own(samples.shape, samples.n_classes)  # noqa: E731
    method = make(name, SPLIT[name], "first") if name in SPLIT else make(name)
    result = method.train(samples, build, RECIPE)
    check_shapes(result, samples)
    assert isinstance(result.model, Own)


@pytest.mark.parametrize("name", SPLIT)
def test_attach_names_a_layer(name: str) -> None:
    samples = make_samples("image")
    with pytest.raises(ModelError, match="nowhere"):
        make(name, SPLIT[name], "nowhere").train(samples, builder(samples), RECIPE)


# --------------------------------------------------------------------------- what is given


def knows(name: str) -> set[str]:
    return {*DEFENSES[name].needs, *DEFENSES[name].takes}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_useless_is_refused(name: str) -> None:
    samples = make_samples("image")
    for part in FLAGS.keys() - knows(name):
        with pytest.raises(ConfigError, match=FLAGS[part]) as error:
            make(name).train(samples, builder(samples), RECIPE, given=Given(**{part: object()}))
        assert part in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_needed_is_asked_for(name: str) -> None:
    samples = make_samples("image")
    for part in {*DEFENSES[name].needs} - {"build"}:
        with pytest.raises(ConfigError, match=FLAGS[part]):
            make(name).train(samples, builder(samples), RECIPE)
    empty = trained(name, samples, given=Given(build=builder(samples), input_shape=samples.shape))
    assert weights(empty) == weights(trained(name, samples)), "what is always there is nothing more"


def judged(samples: Samples, isolated: list[int], criterion: int, *others: int) -> Verdict:
    """A verdict with a reason for the isolated samples, and for the others that it speaks of."""
    n = len(samples)
    status = np.where(np.isin(np.arange(n), isolated), 1, KEPT).astype(np.uint8)
    criteria = np.where(np.isin(np.arange(n), [*isolated, *others]), criterion, NO_CRITERION).astype(np.uint8)
    return Verdict(np.linspace(0, 1, n), status, samples.labels, criteria, poisoned=bool(isolated))


@pytest.mark.parametrize("name", [name for name in NAMES if "decisions" in DEFENSES[name].takes])
def test_a_persons_decisions_win(name: str) -> None:
    samples = make_samples("image")
    rejected, trusted = [3, 10], [7, 8, 9]
    result = trained(name, samples, given=Given(decisions=judged(samples, rejected, DECISION, *trusted)))
    check_shapes(result, samples)
    assert result.verdict.isolated[rejected].all() and not result.verdict.isolated[trusted].any()
    other = make_samples("image", n=20)
    with pytest.raises(DataError, match="about 20 samples, the data have 40"):
        trained(name, samples, given=Given(decisions=judged(other, [3], DECISION)))


@pytest.mark.parametrize("name", [name for name in NAMES if "verdict" in DEFENSES[name].takes])
def test_a_given_verdict_replaces_the_search(name: str) -> None:
    samples, isolated = make_samples("image"), [2, 5, 11]
    verdict = judged(samples, isolated, CRITERIA.index("score"))
    result = trained(name, samples, given=Given(verdict=verdict))
    check_shapes(result, samples)
    assert result.verdict.isolated[isolated].all()
    for label in range(samples.n_classes):  # those who were kept stay in the order of the given verdict
        rows = np.flatnonzero((samples.labels == label) & ~result.verdict.isolated)
        orders = [np.argsort(suspicion[rows]) for suspicion in (result.verdict.suspicion, verdict.suspicion)]
        np.testing.assert_array_equal(*orders)
        of_label = samples.labels == label  # and the values are those of the verdict, dealt out by its own rule
        expected = replace(verdict, status=result.verdict.status).ordered(samples.labels).suspicion
        np.testing.assert_array_equal(result.verdict.suspicion[of_label], expected[of_label])
    with pytest.raises(DataError, match="about 20 samples, the data have 40"):
        trained(name, samples, given=Given(verdict=judged(make_samples("image", n=20), [3], 1)))


# --------------------------------------------------------------------------- resuming


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_resumed_at_every_checkpoint_it_ends_the_same(name: str, kind: str) -> None:
    samples, whole = make_samples(kind), Ledger()
    unbroken = trained(name, samples, journal=whole)
    assert whole.n_saved >= 2
    assert weights(unbroken) == weights(trained(name, samples))  # a journal changes nothing
    for stop in range(1, whole.n_saved + 1):
        broken = Ledger(stop_after=stop)
        with pytest.raises(KeyboardInterrupt):
            trained(name, samples, journal=broken)
        rest = Ledger(broken.kept)
        resumed = trained(name, samples, journal=rest)
        assert weights(resumed) == weights(unbroken), f"stopped after checkpoint {stop} of {whole.n_saved}"
        assert said(resumed) == said(unbroken), f"stopped after checkpoint {stop} of {whole.n_saved}"
        assert resumed.facts == unbroken.facts
        for part in ("poisoned", "target_labels", "p_value"):
            assert getattr(resumed.verdict, part) == getattr(unbroken.verdict, part)
        assert broken.n_saved + rest.n_saved == whole.n_saved


def test_resumed_within_the_warm_up() -> None:
    samples, recipe, whole = make_samples("image"), dataclasses.replace(RECIPE, batch_size=8), Ledger()
    unbroken = trained("dual-head", samples, recipe, journal=whole)
    assert [line["phase"] for line in whole.lines[:3]] == ["warm-up"] * 3
    broken = Ledger(stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        trained("dual-head", samples, recipe, journal=broken)
    assert broken.lines == whole.lines[:2]
    resumed = trained("dual-head", samples, recipe, journal=Ledger(broken.kept))
    assert weights(resumed) == weights(unbroken) and said(resumed) == said(unbroken)
