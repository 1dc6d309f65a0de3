"""Checkpoints, bare files of weights, triggers and truth."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from .case import TRAIN, Box, Case, Table, mutated, mutated_json, odd_value
from .generators_arrays import Canary
from .generators_runs import resuming, tensors_of, values_of


def bytes_of_a_checkpoint(box: Box) -> Case:
    """Some bytes of the checkpoint of an unfinished run are changed."""
    run = box.copy("unfinished", writable=True)
    (run / "checkpoint.pt").write_bytes(mutated((run / "checkpoint.pt").read_bytes(), box.rng))
    return resuming(box, run, "bytes")


def value_in_a_checkpoint(box: Box) -> Case:
    """One value in it is of another type, shape or size."""
    run = box.copy("unfinished", writable=True)
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    where = _changed(state, box, "")
    torch.save(state, run / "checkpoint.pt")
    return resuming(box, run, where)


def _changed(state: Any, box: Box, where: str) -> str:
    """Change one leaf of a nest in place."""
    keys = list(state) if isinstance(state, dict) else list(range(len(state)))
    if not keys:
        return f"{where} is empty"
    key = keys[int(box.rng.integers(len(keys)))]
    value, name = state[key], f"{where}.{key}"
    if isinstance(value, dict | list) and value and box.chance(0.85):
        return _changed(value, box, name)
    if isinstance(state, dict) and box.chance(0.15):
        del state[key]
        return f"{name} removed"
    if isinstance(state, tuple):
        return f"{name} kept"
    if isinstance(value, torch.Tensor) and box.chance(0.7):
        flat = value.reshape(-1)
        new = (
            flat[:-1],
            torch.cat([flat, flat]),
            value.double(),
            value * float("nan"),
            value.reshape(-1, 1),
            -value if value.dtype != torch.bool else value,
        )
        state[key] = new[int(box.rng.integers(len(new)))]
        return f"{name} {tuple(state[key].shape)}"
    state[key] = odd_value(box.rng, value)
    if isinstance(state[key], int) and abs(state[key]) > 2**62:
        state[key] = 2**62
    return f"{name} = {str(state[key])[:40]!r}"


def pickled_checkpoint(box: Box) -> Case:
    """A checkpoint that runs code when it is unpickled."""
    run = box.copy("unfinished", writable=True)
    _evil(run / "checkpoint.pt", box)
    return resuming(box, run, "pickle")


def _evil(path: Path, box: Box) -> None:
    kind = int(box.rng.integers(3))
    if kind == 0:
        path.write_bytes(pickle.dumps({"state_dict": Canary()}))
    elif kind == 1:
        torch.save({"state": {"x": Canary()}, "log_bytes": 0, "seconds": 0.0}, path)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Canary()))
            archive.writestr("archive/version", "3")


def _opened(box: Box, path: Path, about: str) -> Case:
    pics = box.copy("pics")
    network = ("--backbone", box.pick("wrn-10-1", "wrn-10-1", "wrn-10-1", "resnet-18", "fcn"))
    command: tuple[object, ...] = box.pick(
        ("purify", path, "--clean", pics, "--out", "new", "--method", "fine-tune", *network, *TRAIN),
        ("scan", pics, "--out", "new", "--detector", "spectral", "--checkpoint", path, *network, *TRAIN[2:]),
    )
    return Case(command, about=about)


def bare_weights(box: Box) -> Case:
    """A bare file of weights with some bytes changed."""
    path = box.copy(box.pick("weights.pt", "weights.pth", "weights.safetensors"))
    path.write_bytes(mutated(path.read_bytes(), box.rng))
    return _opened(box, path, path.name)


def entries_of_weights(box: Box) -> Case:
    """A bare file of weights with one entry changed, or nested, or of another type."""
    state = torch.load(box.material / "weights.pt", weights_only=True)
    where, path = _changed(state, box, ""), box.inputs / "weights.pt"
    form = box.pick(
        state,
        {"state_dict": state},
        {"model": {"net": state}},
        {f"module.{k}": v for k, v in state.items()},
        [state],
        list(state.values()),
    )
    torch.save(form, path)
    return _opened(box, path, where)


def head_of_weights(box: Box) -> Case:
    """A bare safetensors file with another head."""
    path = box.copy("weights.safetensors")
    return _opened(box, path, tensors_of(path, box) if box.chance(0.7) else values_of(path, box))


def evil_weights(box: Box) -> Case:
    """Weights that run code when they are unpickled, or an archive of something else."""
    path = box.inputs / box.pick("weights.pt", "weights.pth", "weights.tar", "weights.safetensors")
    if box.chance(0.7):
        _evil(path, box)
    else:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as archive:
            archive.add(box.material / "run", "../../outside")
        path.write_bytes(file.getvalue())
    return _opened(box, path, path.name)


def _with_trigger(box: Box, folder: Path, about: str) -> Case:
    run, pics = box.copy("run", writable=True), box.copy("pics")
    command: tuple[object, ...] = box.pick(
        ("evaluate", run, "--data", pics, "--split", "all", "--trigger", folder, "--device", "cpu"),
        ("evaluate", run, "--data", pics, "--split", "all", "--trigger", folder, "--device", "cpu"),
        (
            "purify",
            run,
            "--clean",
            pics,
            "--test",
            pics,
            "--measure-trigger",
            folder,
            "--out",
            "new",
            "--method",
            "fine-tune",
            *TRAIN,
        ),
        ("compare", pics, "--methods", "none", "--trigger", folder, "--out", "new", "--backbone", "wrn-10-1", *TRAIN),
    )
    return Case(command, about=about)


def value_in_a_trigger(box: Box) -> Case:
    """One value of `trigger.json` is another."""
    folder = box.copy(box.pick("poisoned", "poisoned", "poisoned-waves"))
    changed, where = mutated_json(json.loads((folder / "trigger.json").read_text()), box.rng)
    (folder / "trigger.json").write_text(json.dumps(changed))
    return _with_trigger(box, folder, where)


def bytes_of_a_trigger(box: Box) -> Case:
    """Some bytes of a trigger are changed."""
    folder = box.copy("poisoned")
    place = folder / box.pick("trigger.json", "trigger.safetensors")
    place.write_bytes(mutated(place.read_bytes(), box.rng))
    return _with_trigger(box, folder, place.name)


def arrays_of_a_trigger(box: Box) -> Case:
    """The arrays of a trigger have other shapes, types and values."""
    folder = box.copy("poisoned")
    path = folder / "trigger.safetensors"
    return _with_trigger(box, folder, tensors_of(path, box) if box.chance(0.7) else values_of(path, box))


def links_in_a_trigger(box: Box) -> Case:
    """A file of the trigger's folder is missing, a link, a pipe or a device."""
    folder = box.copy("poisoned")
    place = folder / box.pick("trigger.json", "trigger.safetensors", "truth.parquet")
    place.unlink()
    kind = int(box.rng.integers(4))
    if kind == 0:
        os.mkfifo(place)
    elif kind == 1:
        place.symlink_to(box.pick("/dev/zero", "nowhere", str(box.outside / "precious.txt"), place.name))
    elif kind == 2:
        place.mkdir()
    if place.name == "truth.parquet":
        return Case(("evaluate", box.copy("run", writable=True), "--truth", place), about=f"{place.name} kind {kind}")
    return _with_trigger(box, folder, f"{place.name} kind {kind}")


def truth(box: Box) -> Case:
    """One column of the truth is odd, or some bytes are."""
    folder = box.copy("poisoned")
    path = folder / "truth.parquet"
    table = pq.read_table(path)
    name, n = box.pick(*table.column_names), len(table)
    kind = int(box.rng.integers(5))
    odd: tuple[Any, ...] = (
        [None] * n,
        ["x"] * n,
        [1.5] * n,
        [-1] * n,
        [2**62] * n,
        [float("nan")] * n,
        [[1]] * n,
        [b"x"] * n,
        [2] * n,
    )
    if kind == 0:
        path.write_bytes(mutated(path.read_bytes(), box.rng))
    elif kind == 1:
        pq.write_table(table.drop_columns([name]), path)
    elif kind == 2:
        pq.write_table(pa.concat_tables([table, table]) if box.chance(0.5) else table.slice(0, 3), path)
    elif kind == 3:
        pq.write_table(table.take(pa.array(np.zeros(n, np.int64))), path)
    else:
        column = odd[int(box.rng.integers(len(odd)))]
        pq.write_table(table.set_column(table.column_names.index(name), name, pa.array(column)), path)
    run = box.copy(box.pick("run-poisoned", "run-poisoned", "scan"), writable=True)
    command: tuple[object, ...] = box.pick(
        ("evaluate", run, "--truth", path),
        (
            "compare",
            folder,
            "--methods",
            "none,spectral",
            "--truth",
            path,
            "--out",
            "new",
            "--backbone",
            "wrn-10-1",
            *TRAIN,
        ),
    )
    return Case(command, about=f"{name} kind {kind}")


def poison_over_something(box: Box) -> Case:
    """`poison` into a folder that holds something, or part of a poisoned copy."""
    shutil.copytree(box.material / "poisoned", box.work / "new")
    kind = int(box.rng.integers(4))
    if kind == 0:
        (box.work / "new" / "truth.parquet").unlink()
    elif kind == 1:
        (box.work / "new" / "trigger.json").unlink()
    elif kind == 2:
        shutil.rmtree(box.work / "new")
        (box.work / "new").symlink_to(box.outside)
    else:
        shutil.rmtree(box.work / "new")
        (box.work / "new").write_text("x")
    return Case(("poison", box.copy("pics"), "--out", "new", "--rate", "0.2"), expect="refused", about=f"kind {kind}")


FILES = Table(
    {
        "checkpoint bytes": bytes_of_a_checkpoint, "checkpoint value": value_in_a_checkpoint,
        "weights bytes": bare_weights,
        "weights entries": entries_of_weights, "weights head": head_of_weights, "trigger value": value_in_a_trigger,
        "trigger bytes": bytes_of_a_trigger, "trigger arrays": arrays_of_a_trigger, "truth": truth,
    },
    {
        "checkpoint pickle": pickled_checkpoint, "weights pickle": evil_weights, "trigger links": links_in_a_trigger,
        "poison over something": poison_over_something,
    },
)  # fmt: skip
