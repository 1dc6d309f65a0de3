"""One contract for every attack in the table, on images and on series."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from antibackdoor.attacks import ATTACKS, load_trigger, poison, sample_numbers, save_trigger, stamp, trigger_test_set
from antibackdoor.data.samples import Samples
from antibackdoor.errors import ConfigError

# Attacks that train or optimize run at a small budget here; their defaults are for real data.
QUICK: dict[str, dict[str, Any]] = {
    "dynamic": {"epochs": 1, "mask_epochs": 1, "joint_epochs": 1, "width": 2},
    "feature_collision": {"epochs": 1, "n_steps": 2},
    "label_consistent": {"epochs": 1, "n_steps": 2},
    "trojan": {"epochs": 1, "n_steps": 3},
    "lba": {"epochs": 1, "n_steps": 3},
    "timetrojan_fgsm": {"epochs": 1, "rounds": 1},
    "timetrojan_de": {"epochs": 1, "rounds": 1, "population": 5, "generations": 1},
    "tsba_b": {"epochs": 1, "rounds": 1, "width": 4},
}
SHAPES = {"image": (3, 32, 32), "series": (2, 60)}
CASES = [(name, kind) for name, attack in sorted(ATTACKS.items()) for kind in attack.kinds]
IMAGES = [name for name, kind in CASES if kind == "image"]
SERIES = [name for name, kind in CASES if kind == "series"]


def make_attack(name: str) -> Any:
    return ATTACKS[name](**QUICK.get(name, {}))


def make_samples(shape: tuple[int, ...], n: int = 60, dtype: Any = None, seed: int = 0) -> Samples:
    """Half the samples are of class 0, so that clean-label and source-specific plans have room."""
    rng = np.random.default_rng(seed)
    if len(shape) == 3:
        smooth = rng.random((n, shape[0], 1, 1)) * 0.5 + rng.random((n, *shape)) * 0.5
        inputs = np.rint(smooth * 255).astype(np.uint8)
        inputs = inputs if dtype in (None, np.uint8) else (inputs / np.float32(255)).astype(np.float32)
    else:
        inputs = np.cumsum(rng.standard_normal((n, *shape)), axis=-1).astype(np.float32)
    labels = np.where(np.arange(n) % 2 == 0, 0, 1 + np.arange(n) % 3)
    return Samples(inputs, labels, np.array([f"{seed}/{i}" for i in range(n)]), np.array(list("abcd")))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_poisoning(name: str, kind: str) -> None:
    samples = make_samples(SHAPES[kind])
    before = samples.inputs.copy()
    attack = make_attack(name)
    result, again = (poison(samples, attack, seed=5, rate=0.1) for _ in range(2))

    changed = result.truth.is_poisoned | result.truth.is_cover
    assert result.truth.is_poisoned.sum() == 6
    assert samples.inputs.tobytes() == before.tobytes()
    assert result.samples.inputs[~changed].tobytes() == before[~changed].tobytes()
    assert result.samples.inputs.dtype == before.dtype and result.samples.inputs.shape == before.shape
    assert np.isfinite(result.samples.inputs).all()
    different = (result.samples.inputs != before).reshape(len(samples), -1).any(axis=1)
    assert different[result.truth.is_poisoned].all()
    assert result.samples.inputs.tobytes() == again.samples.inputs.tobytes()
    assert (result.samples.labels == again.samples.labels).all()
    assert (result.truth.true_labels == samples.labels).all()
    own = ~result.truth.is_poisoned
    assert (result.samples.labels[own] == samples.labels[own]).all()


@pytest.mark.parametrize("name", IMAGES)
def test_float_images_stay_in_range(name: str) -> None:
    samples = make_samples(SHAPES["image"], dtype=np.float32)
    result = poison(samples, make_attack(name), seed=5, rate=0.1)
    assert result.samples.inputs.dtype == np.float32
    assert result.samples.inputs.min() >= 0 and result.samples.inputs.max() <= 1


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_batches_do_not_matter_and_inputs_stay(name: str, kind: str) -> None:
    samples = make_samples(SHAPES[kind], n=17)
    trigger = make_attack(name).trigger(samples, seed=2)
    numbers = sample_numbers(samples.ids)
    before = samples.inputs.copy()
    for stage in (getattr(trigger, "planted", trigger), getattr(trigger, "cover", trigger), trigger):
        whole = stage.apply(samples.inputs, numbers)
        parts = [stage.apply(samples.inputs[i : i + 5], numbers[i : i + 5]) for i in range(0, 17, 5)]
        assert np.concatenate(parts).tobytes() == whole.tobytes()
        backwards = stage.apply(samples.inputs[::-1], numbers[::-1])[::-1]
        assert backwards.tobytes() == whole.tobytes()
        assert not np.shares_memory(whole, samples.inputs)
        assert stage.apply(samples.inputs[:0], numbers[:0]).shape == samples.inputs[:0].shape
    assert samples.inputs.tobytes() == before.tobytes()


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_saved_trigger_gives_the_same_bytes_on_unseen_data(name: str, kind: str, tmp_path: Path) -> None:
    samples, unseen = make_samples(SHAPES[kind]), make_samples(SHAPES[kind], seed=9)
    attack = make_attack(name)
    result = poison(samples, attack, seed=1, rate=0.1)
    save_trigger(tmp_path, result.trigger, result.plan, attack=attack)
    saved = load_trigger(tmp_path)
    assert saved.plan == result.plan
    assert saved.attack == type(attack).__name__
    original, loaded = (trigger_test_set(unseen, trigger, result.plan) for trigger in (result.trigger, saved.trigger))
    assert original.inputs.tobytes() == loaded.inputs.tobytes()
    assert len(original) > 0
    replanted = poison(samples, attack, seed=1, rate=0.1, trigger=saved.trigger)
    assert replanted.samples.inputs.tobytes() == result.samples.inputs.tobytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trigger.json", "trigger.safetensors"]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_wrong_data_and_values(name: str, kind: str) -> None:
    attack = make_attack(name)
    samples = make_samples(SHAPES[kind])
    other = make_samples(SHAPES["series" if kind == "image" else "image"])
    with pytest.raises(ConfigError, match="changes"):
        attack.trigger(other, seed=0)
    with pytest.raises(ConfigError, match="rate"):
        poison(samples, attack, seed=0, rate=2.0)
    trigger = attack.trigger(samples, seed=0)
    wrong_shape = make_samples((3, 40, 40) if kind == "image" else (2, 70), n=2)
    with pytest.raises(ConfigError, match="was made for"):
        trigger.apply(wrong_shape.inputs, np.arange(2))


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_hyper_parameters_make_sense(name: str) -> None:
    attack = make_attack(name)
    settings_ = {field.name: getattr(attack, field.name) for field in dataclasses.fields(attack)}  # type: ignore[arg-type]
    restored = {key: tuple(v) if isinstance(v, list) else v for key, v in json.loads(json.dumps(settings_)).items()}
    assert ATTACKS[name](**restored) == attack
    assert attack.evidence in {"A", "B", "C", "D"} and attack.threat_model in {"P", "P+M", "T"}
    assert "Reference:" in (inspect.getdoc(attack) or "")
    with pytest.raises(dataclasses.FrozenInstanceError):
        attack.kinds = ()  # type: ignore[misc]
    for field in settings_:
        assert f"{field}" in (inspect.getdoc(attack) or ""), f"{field} is not described"
        value = settings_[field]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            broken = dataclasses.replace(attack, **{field: -7})  # type: ignore[type-var]
            with pytest.raises(ConfigError):
                poison(make_samples(SHAPES[attack.kinds[0]]), broken, seed=0)
        elif isinstance(value, str):
            broken = dataclasses.replace(attack, **{field: "nonsense"})  # type: ignore[type-var]
            with pytest.raises(ConfigError):
                poison(make_samples(SHAPES[attack.kinds[0]]), broken, seed=0)


image_shapes = st.tuples(st.sampled_from([1, 3]), st.integers(8, 96), st.integers(8, 96))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(IMAGES), image_shapes, st.sampled_from([0.0, 1 / 12, 1.0]), st.integers(0, 3))
def test_images_of_any_shape(name: str, shape: tuple[int, int, int], rate: float, seed: int) -> None:
    _any_shape(name, make_samples(shape, n=12), rate, seed)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(SERIES),
    st.tuples(st.integers(1, 13), st.integers(4, 320)),
    st.sampled_from([0.0, 1 / 12, 1.0]),
    st.integers(0, 3),
)
def test_series_of_any_shape(name: str, shape: tuple[int, int], rate: float, seed: int) -> None:
    _any_shape(name, make_samples(shape, n=12), rate, seed)


def _any_shape(name: str, samples: Samples, rate: float, seed: int) -> None:
    attack = make_attack(name)
    try:
        result = poison(samples, attack, seed=seed, rate=rate)
    except ConfigError as error:
        # All of the data can be poisoned only where the target class is not left out; small images may not
        # hold the pattern. Both must be said in one line.
        assert rate == 1.0 or min(samples.shape[1:]) < 32
        assert "\n" not in str(error)
        return
    drawn = result.truth.is_poisoned.sum()
    assert drawn == round(rate * 12) or (rate == 1.0 and 0 < drawn < 12)
    untouched = ~(result.truth.is_poisoned | result.truth.is_cover)
    assert result.samples.inputs[untouched].tobytes() == samples.inputs[untouched].tobytes()
    shown = stamp(samples.inputs, result.trigger, sample_numbers(samples.ids))
    assert shown.shape == samples.inputs.shape and shown.dtype == samples.inputs.dtype
