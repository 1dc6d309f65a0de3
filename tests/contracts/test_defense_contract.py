"""One contract for every defense in the table, on images and on series."""

from __future__ import annotations

import dataclasses
import inspect
import json
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from conftest import pictures, waves
from torch import Tensor, nn

from antibackdoor.data.samples import Samples
from antibackdoor.defenses import DEFENSES
from antibackdoor.errors import AntibackdoorError, ConfigError, ModelError
from antibackdoor.models.backbones import build_backbone
from antibackdoor.protocols import Build, Trained
from antibackdoor.training.recipe import Recipe

# Small budgets; the defaults are for real data.
QUICK: dict[str, dict[str, Any]] = {
    "dual-head": {"confusion_steps": 3, "warmup_steps": 60},
    "e2abl": {"warmup_epochs": 1},
}
RECIPE = Recipe(epochs=3, device="cpu", precision="fp32", seed=3)
CASES = [(name, kind) for name in sorted(DEFENSES) for kind in ("image", "series")]
SPLIT = [
    name for name in sorted(DEFENSES) if any(field.name == "attach" for field in dataclasses.fields(DEFENSES[name]))
]


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings(
            "ignore", message=".*even kernel lengths.*"
        )  # torch's, at fcn; the command line mutes it
        yield


def make_samples(kind: str, n: int = 40, n_classes: int = 3) -> Samples:
    return pictures(n, n_classes) if kind == "image" else waves(n, n_classes)


def builder(samples: Samples) -> Build:
    name = "wrn-10-1" if samples.kind == "image" else "fcn"
    return lambda: build_backbone(name, samples.shape, samples.n_classes)


def make(name: str, **settings: Any) -> Any:
    return DEFENSES[name](**{**QUICK.get(name, {}), **settings})


def trained(name: str, samples: Samples, recipe: Recipe = RECIPE, **settings: Any) -> Trained:
    result: Trained = make(name, **settings).train(samples, builder(samples), recipe)
    return result


def weights(result: Trained) -> bytes:
    return b"".join(value.numpy().tobytes() for value in result.model.state_dict().values())


def check_shapes(result: Trained, samples: Samples) -> None:
    n = len(samples)
    assert result.suspicion.shape == (n,) and result.suspicion.dtype == np.float64
    assert result.isolated.shape == (n,) and result.isolated.dtype == np.bool_
    assert result.recovered.shape == (n,) and result.recovered.dtype == np.bool_
    assert result.labels.shape == (n,) and result.labels.dtype == np.int64
    assert np.isfinite(result.suspicion).all()
    assert result.history.n_samples == n and result.history.losses.dtype == np.float32
    assert np.isfinite(result.history.losses).all()
    assert len(result.history.steps) == len(result.history) and (np.diff(result.history.steps) > 0).all()
    assert not (result.recovered & ~result.isolated).any()
    assert ((result.labels == samples.labels) | result.recovered).all()
    assert result.labels.min() >= 0 and result.labels.max() < samples.n_classes
    assert set(result.backdoor_labels) <= set(range(samples.n_classes))
    assert not result.model.training
    with torch.no_grad():
        logits = result.model(torch.from_numpy(samples.inputs[:5]).float())
    assert logits.shape == (5, samples.n_classes) and logits.isfinite().all()
    for value in (result.notes or {}).values():
        assert value is None or isinstance(value, bool | int | float | str)


@pytest.mark.parametrize("name", sorted(DEFENSES))
def test_hyper_parameters_make_sense(name: str) -> None:
    defense = DEFENSES[name]()
    settings = dataclasses.asdict(defense)
    restored = {key: tuple(v) if isinstance(v, list) else v for key, v in json.loads(json.dumps(settings)).items()}
    assert DEFENSES[name](**restored) == defense
    if settings:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(defense, next(iter(settings)), 1)
    for field in settings:
        assert f"{field}:" in (inspect.getdoc(defense) or ""), f"{field} is not described"


@pytest.mark.parametrize(
    ("name", "field"), [(name, field.name) for name in sorted(DEFENSES) for field in dataclasses.fields(DEFENSES[name])]
)
def test_bad_hyper_parameters(name: str, field: str) -> None:
    default = getattr(DEFENSES[name](), field)
    if isinstance(default, bool):
        return
    samples = make_samples("image")
    numbers = [-7, float("nan")] if isinstance(default, float) else [-7]
    for wrong in ["nonsense"] if isinstance(default, str) else numbers:
        with pytest.raises(AntibackdoorError) as error:
            make(name, **{field: wrong}).train(samples, builder(samples), dataclasses.replace(RECIPE, epochs=1))
        assert isinstance(error.value, ModelError if field == "attach" else ConfigError)
        assert "\n" not in str(error.value)


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
    assert first.suspicion.tobytes() == again.suspicion.tobytes()
    assert first.history.losses.tobytes() == again.history.losses.tobytes()
    assert (first.isolated == again.isolated).all() and (first.labels == again.labels).all()
    assert first.suspicion.tobytes() != other.suspicion.tobytes()


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
    assert all(value.device.type == "cpu" for value in result.model.state_dict().values())


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_rare_class_and_few_samples(name: str, kind: str) -> None:
    full = make_samples(kind, n=40, n_classes=4)
    rare = full.take(np.flatnonzero((full.labels != 2) | (np.arange(40) < 8)))  # two of class 2
    check_shapes(trained(name, rare), rare)
    few = full.take(np.arange(9))  # fewer than a batch
    check_shapes(trained(name, few), few)
    odd = full.take(np.arange(33))  # one more than a batch
    check_shapes(trained(name, odd), odd)


@pytest.mark.parametrize("name", sorted(DEFENSES))
def test_pictures_as_floats_and_bf16(name: str) -> None:
    bytes_ = make_samples("image")
    floats = dataclasses.replace(bytes_, inputs=(bytes_.inputs / np.float32(255)).astype(np.float32))
    recipe = dataclasses.replace(RECIPE, precision="bf16", epochs=2)
    check_shapes(trained(name, floats, recipe), floats)


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
    settings = {"attach": "first"} if name in SPLIT else {}
    result = make(name, **settings).train(samples, build, RECIPE)
    check_shapes(result, samples)
    assert isinstance(result.model, Own)


@pytest.mark.parametrize("name", SPLIT)
def test_attach_names_a_layer(name: str) -> None:
    samples = make_samples("image")
    with pytest.raises(ModelError, match="nowhere"):
        make(name, attach="nowhere").train(samples, builder(samples), RECIPE)


class Ledger:
    """A journal that keeps every checkpoint, or stops after some."""

    def __init__(self, kept: dict[str, Any] | None = None, stop_after: int = 10**9) -> None:
        self.kept, self.n_saved, self.stop_after = kept, 0, stop_after
        self.lines: list[dict[str, Any]] = []

    def log(self, **fields: Any) -> None:
        self.lines.append(fields)

    def save(self, state: dict[str, Any]) -> None:
        # A copy, as the file is: training goes on in the same tensors.
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


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_resumed_at_every_checkpoint_it_ends_the_same(name: str, kind: str) -> None:
    samples = make_samples(kind)
    whole = Ledger()
    unbroken = make(name).train(samples, builder(samples), RECIPE, journal=whole)
    assert whole.n_saved >= 3
    assert weights(unbroken) == weights(trained(name, samples))  # a journal changes nothing
    for stop in range(1, whole.n_saved + 1):
        broken = Ledger(stop_after=stop)
        with pytest.raises(KeyboardInterrupt):
            make(name).train(samples, builder(samples), RECIPE, journal=broken)
        rest = Ledger(broken.kept)
        resumed = make(name).train(samples, builder(samples), RECIPE, journal=rest)
        assert weights(resumed) == weights(unbroken), f"stopped after checkpoint {stop} of {whole.n_saved}"
        assert resumed.suspicion.tobytes() == unbroken.suspicion.tobytes()
        assert resumed.history.losses.tobytes() == unbroken.history.losses.tobytes()
        assert (resumed.isolated == unbroken.isolated).all() and (resumed.labels == unbroken.labels).all()
        assert resumed.backdoor_labels == unbroken.backdoor_labels and resumed.notes == unbroken.notes
        assert broken.n_saved + rest.n_saved == whole.n_saved


def test_resumed_within_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small data warm up for one snapshot only, so snapshots are made shorter here."""
    monkeypatch.setattr("antibackdoor.search.warm_up.BLOCK", 5)
    monkeypatch.setattr("antibackdoor.search.warm_up.SNAPSHOT", 10)
    samples = make_samples("image")
    recipe = dataclasses.replace(RECIPE, epochs=30, batch_size=8)
    whole = Ledger()
    unbroken = make("dual-head").train(samples, builder(samples), recipe, journal=whole)
    assert [line["phase"] for line in whole.lines[:3]] == ["warm-up"] * 3
    broken = Ledger(stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        make("dual-head").train(samples, builder(samples), recipe, journal=broken)
    resumed = make("dual-head").train(samples, builder(samples), recipe, journal=Ledger(broken.kept))
    assert weights(resumed) == weights(unbroken)
    assert resumed.history.losses.tobytes() == unbroken.history.losses.tobytes()
