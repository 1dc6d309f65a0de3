"""Triggers on disk: `trigger.safetensors` for the arrays, `trigger.json` for all else. Never pickle."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from antibackdoor.attacks.adaptive import InTurn, OneOf, PartialBlend
from antibackdoor.attacks.blend import PerSampleNoise
from antibackdoor.attacks.cba import HalfMixer
from antibackdoor.attacks.dfst import GlobalStyle
from antibackdoor.attacks.dynamic import GeneratedPatch
from antibackdoor.attacks.feature_collision import Collision, Descent
from antibackdoor.attacks.label_consistent import HardenedPatch
from antibackdoor.attacks.plans import PLANS
from antibackdoor.attacks.powerline import ScaledHum
from antibackdoor.attacks.refool import Reflections
from antibackdoor.attacks.stamps import Additive, Patch, Staged
from antibackdoor.attacks.static import OwnExtremes
from antibackdoor.attacks.stored_values import made
from antibackdoor.attacks.surrogate import Surrogate
from antibackdoor.attacks.timetrojan import SparseSteps
from antibackdoor.attacks.timetrojan_de import EvolvedSteps, Search
from antibackdoor.attacks.tsba import GeneratedScaling
from antibackdoor.attacks.wanet import NoisyWarp, Warp
from antibackdoor.data.json_text import read_json_object
from antibackdoor.data.regular_files import read_regular
from antibackdoor.data.source import one_line
from antibackdoor.errors import AntibackdoorError, DataError, cannot, shortened

if TYPE_CHECKING:
    from antibackdoor.data.samples import Samples
    from antibackdoor.protocols import Attack, Plan, Trigger

JSON, ARRAYS = "trigger.json", "trigger.safetensors"
_FORMAT = 1
_MOST_BYTES = 2**30  # twenty times a pool of reflections for pictures of 224 pixels
_KINDS: tuple[type[Any], ...] = (
    Patch,
    Additive,
    Staged,
    PerSampleNoise,
    OwnExtremes,
    ScaledHum,
    Warp,
    NoisyWarp,
    PartialBlend,
    OneOf,
    InTurn,
    Reflections,
    GlobalStyle,
    HalfMixer,
    Surrogate,
    HardenedPatch,
    SparseSteps,
    Search,
    EvolvedSteps,
    GeneratedScaling,
    GeneratedPatch,
    Descent,
    Collision,
)
TRIGGERS: dict[str, type[Any]] = {kind.__name__: kind for kind in _KINDS}


class SavedTrigger(NamedTuple):
    """A trigger read back from a folder."""

    trigger: Trigger
    plan: Plan
    attack: str  # class name of the attack, "" if it was not given
    settings: dict[str, Any]  # hyper-parameters of the attack


def save_trigger(folder: Path, trigger: Trigger, plan: Plan, *, attack: Attack | None = None) -> None:
    """Write a trigger and its plan into a folder, which is made if need be.

    Args:
        folder: Receives `trigger.safetensors` and `trigger.json`.
        trigger: Any trigger of this package.
        plan: The fitted plan, so that an evaluation knows the labels aimed at.
        attack: Recorded by name and hyper-parameters, for the reader's information.

    Raises:
        OSError: If a file cannot be written.
    """
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    document = {
        "format": _FORMAT,
        "attack": "" if attack is None else type(attack).__name__,
        "settings": {} if attack is None else _settings(attack),
        "plan": {"type": _plan_name(plan), **_settings(plan)},
        "trigger": _encode(trigger, "trigger", arrays),
    }
    folder.mkdir(parents=True, exist_ok=True)
    # Not `save_file`, which has an error of its own for a full disk.
    (folder / ARRAYS).write_bytes(save(arrays))
    (folder / JSON).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def load_trigger(folder: Path) -> SavedTrigger:
    """Read back what `save_trigger` wrote; the trigger then stamps unseen data with identical bytes.

    Raises:
        DataError: If a file is missing or damaged.
    """
    try:
        document = read_json_object(folder / JSON)
        arrays = load(read_regular(folder / ARRAYS, most=_MOST_BYTES))
        if document["format"] != _FORMAT:
            raise ValueError(
                f"it has the format {shortened(repr(document['format']), 40)}, this program reads {_FORMAT}"
            )
        settings = {name: _tuples(value) for name, value in _part(document, "plan").items()}
        plan: Plan = made(PLANS[_type(settings)], {n: value for n, value in settings.items() if n != "type"})
        trigger: Trigger = _decode(_part(document, "trigger"), arrays)
        if not hasattr(trigger, "apply"):
            raise ValueError(f"a {type(trigger).__name__} is not a trigger by itself")
        attack = document["attack"]
        if not isinstance(attack, str):
            raise ValueError("'attack' is not a name")
        return SavedTrigger(trigger, plan, attack, _part(document, "settings"))
    except FileNotFoundError as error:
        missing = next((name for name in (JSON, ARRAYS) if not (folder / name).exists()), JSON)
        raise DataError(
            f"{folder} holds no trigger: there is no {missing} in it; give a folder that `poison` wrote"
        ) from error
    except OSError as error:
        raise DataError(cannot("read the trigger in", folder, error)) from error
    except (ValueError, KeyError, TypeError, SafetensorError, AntibackdoorError) as error:
        reason = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{folder} holds no usable trigger: {one_line(shortened(reason))}") from error


def load_fitting_trigger(folder: Path, samples: Samples) -> SavedTrigger:
    """`load_trigger`, tried on one of the samples that it is for: a mistake is told before the work, not after it.

    Raises:
        DataError: As `load_trigger`, or if trigger or plan do not fit the samples, or aim at none of them.
    """
    saved = load_trigger(folder)
    try:
        saved.plan.fit(samples.n_classes)
        rows = np.flatnonzero(saved.plan.eligible(samples.labels))[:1]
        inputs = np.asarray(samples.inputs[rows])
        changed = saved.trigger.apply(inputs, rows) if len(rows) else inputs
        if changed.shape != inputs.shape or changed.dtype != inputs.dtype or not np.isfinite(changed).all():
            raise ValueError("the result is not such a sample")
    except Exception as error:  # arrays that do not belong together fail in any way
        raise DataError(
            f"the trigger of {folder} does not fit samples of shape {samples.shape} of {samples.n_classes} classes: "
            f"{one_line(shortened(str(error) or type(error).__name__))}"
        ) from error
    if not len(rows):
        raise DataError(f"the attack of {folder} targets none of the test samples; give test data of all classes")
    return saved


def _part(document: dict[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(document[name], dict):
        raise ValueError(f"{name!r} is not an object")
    return dict(document[name])


def _type(values: dict[str, Any]) -> str:
    if not isinstance(values["type"], str):
        raise ValueError("a type is not a name")
    return values["type"]


def _settings(method: Attack | Plan) -> dict[str, Any]:
    return {field.name: getattr(method, field.name) for field in fields(method)}


def _plan_name(plan: Plan) -> str:
    for name, kind in PLANS.items():
        if type(plan) is kind:
            return name
    raise DataError(f"the plan {type(plan).__name__} is not in the table of plans and cannot be saved")


def _encode(value: Any, place: str, arrays: dict[str, np.ndarray[Any, Any]]) -> Any:
    if isinstance(value, np.ndarray):
        arrays[place] = np.ascontiguousarray(value)
        return {"array": place}
    if isinstance(value, tuple):
        return [_encode(part, f"{place}.{position}", arrays) for position, part in enumerate(value)]
    if not is_dataclass(value):
        return value
    if TRIGGERS.get(type(value).__name__) is not type(value):
        raise DataError(f"{type(value).__name__} is not in the table of triggers and cannot be saved")
    values = {field.name: getattr(value, field.name) for field in fields(value)}
    parts = {name: _encode(part, f"{place}.{name}", arrays) for name, part in values.items()}
    return {"type": type(value).__name__, **parts}


def _decode(value: Any, arrays: dict[str, np.ndarray[Any, Any]]) -> Any:
    if isinstance(value, list):
        return tuple(_decode(part, arrays) for part in value)
    if not isinstance(value, dict):
        return value
    if "array" in value:
        if not isinstance(value["array"], str):
            raise ValueError("an array is not a name")
        return arrays[value["array"]]
    settings = {name: _decode(part, arrays) for name, part in value.items() if name != "type"}
    return made(TRIGGERS[_type(value)], settings)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value
