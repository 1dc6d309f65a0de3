"""Triggers on disk: `trigger.safetensors` for the arrays, `trigger.json` for all else. Never pickle."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

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
from antibackdoor.attacks.surrogate import Surrogate
from antibackdoor.attacks.timetrojan import SparseSteps
from antibackdoor.attacks.timetrojan_de import EvolvedSteps, Search
from antibackdoor.attacks.tsba import GeneratedScaling
from antibackdoor.attacks.wanet import NoisyWarp, Warp
from antibackdoor.errors import DataError

if TYPE_CHECKING:
    from antibackdoor.protocols import Attack, Plan, Trigger

_FORMAT = 1
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
    (folder / "trigger.safetensors").write_bytes(save(arrays))
    (folder / "trigger.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def load_trigger(folder: Path) -> SavedTrigger:
    """Read back what `save_trigger` wrote; the trigger then stamps unseen data with identical bytes.

    Raises:
        DataError: If a file is missing or damaged.
    """
    try:
        document = json.loads((folder / "trigger.json").read_text(encoding="utf-8"))
        arrays = load_file(folder / "trigger.safetensors")
        if document["format"] != _FORMAT:
            raise DataError(f"{folder} holds a trigger of format {document['format']}; this version reads {_FORMAT}")
        settings = {name: _tuples(value) for name, value in document["plan"].items()}
        plan: Plan = PLANS[settings.pop("type")](**settings)
        trigger: Trigger = _decode(document["trigger"], arrays)
        return SavedTrigger(trigger, plan, document["attack"], document["settings"])
    except FileNotFoundError as error:
        files = ("trigger.json", "trigger.safetensors")
        missing = next((name for name in files if not (folder / name).exists()), files[0])
        raise DataError(
            f"{folder} holds no trigger: there is no {missing} in it; give a folder that `poison` wrote"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise DataError(f"{folder} holds no usable trigger: {type(error).__name__}: {error}") from error


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
        return arrays[value["array"]]
    settings = {name: _decode(part, arrays) for name, part in value.items() if name != "type"}
    return TRIGGERS[value["type"]](**settings)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value
