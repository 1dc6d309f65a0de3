"""Run folders of third parties: each file with one change; links, pipes and bombs in them; the cache."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .case import PLAIN, TRAIN, UNFINISHED, Box, Case, Table, mutated, mutated_json
from .generators_arrays import HEADERS, Canary, header, npz_of

# What no reading command may change.
KEPT = ("model.safetensors", "model.json", "config.json", "samples.parquet", "history.safetensors", "gallery.npz")


def using(box: Box, run: Path, about: str) -> Case:
    """Use a run folder in one of the ways that a user would."""
    pics = box.copy("pics")
    device = ("--device", "cpu")
    reading: tuple[tuple[object, ...], ...] = (
        ("report", run), ("report", run), ("evaluate", run, "--data", pics, "--split", "all", *device),
        ("evaluate", run, "--data", pics, *device),
        ("evaluate", run, "--truth", box.copy("poisoned") / "truth.parquet"),
        ("predict", run, pics, "--out", "said.csv", *device),
        ("purify", run, "--clean", pics, "--out", "new", "--method", "fine-tune", *TRAIN),
        ("train", pics, "--out", "new", "--defense", "retrain", "--verdict", run, *TRAIN),
        ("scan", pics, "--out", "new", "--detector", "loss-drop", "--checkpoint", run, *TRAIN[2:]),
    )  # fmt: skip
    keep = tuple(f"{run.name}/{name}" for name in KEPT if (run / name).is_file() and not (run / name).is_symlink())
    return Case(box.pick(*reading), keep=keep, about=about)


def resuming(box: Box, run: Path, about: str) -> Case:
    """Go on with the material's unfinished training, a little further."""
    words = ("train", box.copy("pics"), "--out", run.name, *PLAIN[:2], "--epochs", UNFINISHED, *PLAIN[4:])
    return Case((*words, "--backbone", "wrn-10-1", "--resume"), about=about)


def a_run(box: Box) -> Path:
    """A copy of one of the runs."""
    names = ("run", "run-poisoned", "run-dual", "scan", "purified", "run-waves")
    return box.copy(box.pick(*names), writable=True)


def value_in_json(box: Box) -> Case:
    """One value in a JSON file of a run is another."""
    run = a_run(box)
    name = box.pick(*[name for name in ("metrics.json", "model.json", "config.json") if (run / name).exists()])
    changed, where = mutated_json(json.loads((run / name).read_text()), box.rng)
    (run / name).write_text(json.dumps(changed), encoding="utf-8")
    return using(box, run, f"{run.name} {name} {where}")


def bytes_of_a_run_file(box: Box) -> Case:
    """Some bytes of any file of a run are changed."""
    run = a_run(box)
    place = Path(box.pick(*sorted(place for place in run.iterdir() if place.is_file() and place.stat().st_size)))
    place.write_bytes(mutated(place.read_bytes(), box.rng))
    return using(box, run, f"{run.name} {place.name}")


def a_line_of_the_log(box: Box) -> Case:
    """One line of the log is another."""
    run = a_run(box)
    place = run / "log.jsonl"
    lines = place.read_text().splitlines() if place.exists() else ["{}"]
    row = int(box.rng.integers(len(lines)))
    if box.chance(0.6):
        changed, where = mutated_json(json.loads(lines[row]), box.rng)
        lines[row] = json.dumps(changed)
    else:
        where = lines[row] = box.pick(
            "", "[]", "null", "{", '"x"', "{}", "NaN", '{"epoch": NaN}', "\x00", "1e999", '{"a": {"b": [1]}}'
        )
    place.write_text("\n".join(lines) + "\n")
    return using(box, run, f"log {where[:60]}")


def a_column_of_samples(box: Box) -> Case:
    """One column of `samples.parquet` is missing, of another type, or holds other values."""
    run = a_run(box)
    while not (run / "samples.parquet").exists():
        shutil.rmtree(run)
        run = a_run(box)
    table = pq.read_table(run / "samples.parquet")
    name, kind = box.pick(*table.column_names), int(box.rng.integers(8))
    place, n = table.column_names.index(name), len(table)
    odd: tuple[Any, ...] = (
        [None] * n, ["x"] * n, [1.5] * n, [-1] * n, [2**62] * n, [float("nan")] * n, [True] * n, [[1]] * n, [b"x"] * n,
        ["kept"] * n, [0] * n, ["class0/000.png"] * n,
    )  # fmt: skip
    if kind == 0:
        table = table.drop_columns([name])
    elif kind == 1:
        table = table.slice(0, int(box.rng.integers(n)))
    elif kind == 2:
        about = dict(table.schema.metadata or {})
        key = box.pick(*sorted(about), b"class_names")
        about[key] = json.dumps(mutated_json({"x": json.loads(about.get(key, b"null"))}, box.rng)[0].get("x")).encode()
        table = table.replace_schema_metadata(about if box.chance(0.8) else None)
    elif kind == 3:
        table = pa.concat_tables([table, table])
    elif kind == 4:
        table = table.rename_columns([f"{column}_" if column == name else column for column in table.column_names])
    else:
        table = table.set_column(place, name, pa.array(odd[int(box.rng.integers(len(odd)))]))
    pq.write_table(table, run / "samples.parquet")
    return using(box, run, f"{run.name} {name} kind {kind}")


def tensors_of(path: Path, box: Box) -> str:
    """Change the header of a safetensors file: a name, shape, type, offset; or its length."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    head, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    if box.chance(0.15):
        path.write_bytes(struct.pack("<Q", int(box.pick(0, 2**40, 2**63, length + 1))) + data[8:])
        return "length of the header"
    changed, where = mutated_json(head, box.rng)
    name = box.pick(*sorted(head)) if isinstance(head, dict) and head else ""
    if box.chance(0.5) and isinstance(changed.get(name), dict) and "shape" in changed[name]:
        part = changed[name]
        shape = part["shape"] if isinstance(part["shape"], list) else []
        part["shape"], part["dtype"] = box.pick(
            (shape[::-1], part.get("dtype")), ([*shape, 1], part.get("dtype")), (shape, "I32"), (shape, "F8"),
            ([0], "F32"),
            ([2**40], "F32"), (shape[1:], part.get("dtype")), ([-1], "F32"),
        )  # fmt: skip
        where = f"{name} {part['shape']} {part['dtype']}"
    text = json.dumps(changed).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return where


def values_of(path: Path, box: Box) -> str:
    """Overwrite numbers of a safetensors file by others."""
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    place = 8 + length + 4 * int(box.rng.integers((len(data) - 8 - length) // 4))
    value = box.pick(b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\xff\xff", b"\0\0\0\0", box.rng.bytes(4))
    if bytes(data[place : place + 4]) == value:
        value = b"\0\0\x80\x3f"
    data[place : place + 4] = value
    path.write_bytes(data)
    return f"value at {place}"


def header_of_weights(box: Box) -> Case:
    """The head of weights or history is another."""
    run = a_run(box)
    places = [run / name for name in ("model.safetensors", "history.safetensors") if (run / name).exists()]
    place = Path(box.pick(*places))
    return using(box, run, f"{place.name} {tensors_of(place, box)}"[:100])


def flipped_weights(box: Box) -> Case:
    """One number of the weights is another: it is noticed wherever the model is used."""
    run = box.copy(box.pick("run", "run-dual"), writable=True)
    about = values_of(run / "model.safetensors", box)
    pics = box.copy("pics")
    command: tuple[object, ...] = box.pick(
        ("evaluate", run, "--data", pics, "--split", "all", "--device", "cpu"),
        ("predict", run, pics, "--out", "said.csv"),
    )
    return Case(command, expect="refused", about=about)


def flipped_history(box: Box) -> Case:
    """One number of the history is another: it is noticed where it is shown."""
    run = box.copy(box.pick("run", "run-dual"), writable=True)
    return Case(("report", run), expect="refused", about=values_of(run / "history.safetensors", box))


def a_gallery(box: Box) -> Case:
    """The pictures of the report are other arrays, bombs, or pickles."""
    run = a_run(box)
    place = run / box.pick("gallery.npz", "gallery.npz", "attention.npz")
    members: dict[str, bytes] = {}
    if (run / "gallery.npz").exists():
        with zipfile.ZipFile(run / "gallery.npz") as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    name, kind = box.pick(*sorted(members), "pictures.npy"), int(box.rng.integers(6))
    if kind == 0:
        members.pop(name, None)
    elif kind == 1:
        members[name] = header(*HEADERS[int(box.rng.integers(len(HEADERS)))]) + members.get(name, b"")[128:]
    elif kind == 2:
        import pickle

        members[name] = header("|O", (4,)) + pickle.dumps(np.array([Canary()] * 4, dtype=object))
    elif kind == 3:
        members[name] = header("|u1", (2**20, 1, 64, 64)) + b"\0" * 2**22
    elif kind == 4:
        members[name] = mutated(members.get(name, b"x"), box.rng)
    else:
        odd = box.pick(
            np.zeros((0, 1, 8, 8), np.uint8),
            np.zeros(3),
            np.array(["x"] * 5),
            np.full((4, 1, 8, 8), np.nan),
            np.zeros((4, 7, 8, 8), np.uint8),
        )
        file = io.BytesIO()
        np.save(file, odd)
        members[name] = file.getvalue()
    npz_of(place, members, zipfile.ZIP_DEFLATED)
    return using(box, run, f"{run.name} {place.name} {name} kind {kind}")


def a_missing_file(box: Box) -> Case:
    """One file of a run is missing, empty, a folder, or of another run."""
    run = a_run(box)
    place = Path(box.pick(*sorted(place for place in run.iterdir() if place.is_file())))
    kind = int(box.rng.integers(4))
    place.unlink()
    if kind == 1:
        place.write_bytes(b"")
    elif kind == 2:
        place.mkdir()
    elif kind == 3:
        others = [box.material / name / place.name for name in ("run-waves", "run-dual", "scan", "purified")]
        there = [other for other in others if other.is_file()]
        if there:
            shutil.copy(box.pick(*there), place)
    return using(box, run, f"{run.name} {place.name} kind {kind}")


def odd_json(box: Box) -> Case:
    """A JSON file holds something that no writer would write."""
    run = a_run(box)
    name = box.pick(*[name for name in ("metrics.json", "model.json", "config.json") if (run / name).exists()])
    text = (run / name).read_text()
    (run / name).write_bytes(
        box.pick(
            b"[" * 100_000, b'{"a":' * 50_000, b"null", b"[]", b"{}", b"1" * 10_000,
            text.replace("1", "1e999").encode(),
            text.encode("utf-16"), text.encode() * 2, b"\xff\xfe", text.replace(":", ": NaN, \"x\":", 1).encode(),
            ('{"format": 1, "x": "' + "a" * 2**22 + '"}').encode(), b" " * 2**20, text.replace("[", "[[").encode(),
        )
    )  # fmt: skip
    return using(box, run, f"{run.name} {name}")


def a_table_of_a_run(box: Box) -> Case:
    """`classes.csv`, `skipped.csv` or the log is odd."""
    run = box.copy("run", writable=True)
    place = run / box.pick("classes.csv", "classes.csv", "skipped.csv")
    text = place.read_text() if place.exists() else "id,reason\nclass0/x.png,is broken\n"
    place.write_bytes(
        box.pick(
            mutated(text.encode(), box.rng), text.replace("1", "x").encode(), text.splitlines()[0].encode(), b"\n",
            text.replace(",", "").encode(),
            text.replace("class0", "=cmd|' /C calc'!A0").encode(), text.replace("1", "nan").encode(),
            b'"' + b"x" * 200_000, text.encode("utf-16"),
        )
    )  # fmt: skip
    return using(box, run, place.name)


def links_in_a_run(box: Box) -> Case:
    """A file of a run folder is a link that leads out, a pipe, or a device: nothing is written or awaited there."""
    unfinished = box.chance(0.4)
    run = box.copy("unfinished", writable=True) if unfinished else a_run(box)
    names = {place.name for place in run.iterdir()} | {
        ".lock",
        "log.jsonl",
        "report.html",
        "checkpoint.pt",
        "classes.csv",
        "skipped.csv",
    }
    place = run / box.pick(*sorted(names))
    target = box.pick("precious", "pipe", "/dev/zero", "nowhere", "itself")
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
    if target == "pipe":
        os.mkfifo(place)
    elif target == "precious":
        place.symlink_to(box.outside / "precious.txt")
    else:
        place.symlink_to({"nowhere": box.outside / "new.txt", "itself": Path(place.name)}.get(target, Path(target)))
    use: Callable[[Box, Path, str], Case] = resuming if unfinished else using
    return use(box, run, f"{run.name}/{place.name} -> {target}")


def a_run_of_a_comparison(box: Box) -> Case:
    """A run in the folder of a comparison is a link that leads out: nothing is written there."""
    folder = box.copy("compared", writable=True)
    run = folder / box.pick("none-0", "spectral-0")
    run.rename(box.outside / "run")
    run.symlink_to(box.outside / "run")
    if box.chance(0.5):
        (box.outside / "run" / "metrics.json").unlink()
    words = ("compare", box.copy("pics"), "--methods", "none,spectral", "--out", "compared", *TRAIN)
    return Case((*words, "--backbone", "wrn-10-1", "--resume"), expect="refused", about=f"{run.name} is a link")


def bombs(box: Box) -> Case:
    """Files of a run that ask for gigabytes."""
    run = box.copy("run", writable=True)
    kind = int(box.rng.integers(4))
    if kind == 0:
        values = pa.array(["x" * 2000]).take(pa.array(np.zeros(600_000, np.int64)))
        table = pa.table({"id": values.dictionary_encode()})
        pq.write_table(table, run / "samples.parquet", compression="zstd")
    elif kind == 1:
        text = json.dumps({"losses": {"dtype": "F32", "shape": [2**20, 2**7], "data_offsets": [0, 2**29]}}).encode()
        with (run / "history.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + 2**29)
    elif kind == 2:
        with (run / box.pick("metrics.json", "model.json", "config.json", "log.jsonl")).open("wb") as file:
            file.truncate(2**33)
    else:
        (run / "log.jsonl").write_text('{"epoch": 1, "x": "y"}\n' * 300_000)
    return using(box, run, f"kind {kind}")


def the_cache(box: Box) -> Case:
    """Files of the cache are damaged, of another kind, or links: they are made anew."""
    pics = box.copy("pics")
    cache = box.sandbox.root / "cache"

    def call() -> None:
        from antibackdoor.data.reading import read

        before = np.array(read(pics, test_fraction=0, cache=cache).train.inputs)
        places = sorted(place for place in cache.rglob("*") if place.is_file())
        place = places[int(box.rng.integers(len(places)))]
        kind = int(box.rng.integers(5))
        if kind == 0:
            place.write_bytes(mutated(place.read_bytes()[:128], box.rng) + place.read_bytes()[128:])
        elif kind == 1:
            place.unlink()
            place.mkdir()
        elif kind == 2:
            place.unlink()
            place.symlink_to(box.pick("/dev/zero", str(box.outside / "precious.txt"), "nowhere"))
        elif kind == 3:
            place.unlink()
            os.mkfifo(place)
        else:
            place.write_bytes(box.pick(b"", b"{}", b"[]", header(*HEADERS[int(box.rng.integers(len(HEADERS)))])))
        after = np.array(read(pics, test_fraction=0, cache=cache).train.inputs)
        if before.shape != after.shape:
            from .case import Wrong

            raise Wrong(f"a damaged cache gave other data: {place.name} kind {kind}")

    return Case(call=call)


RUNS = Table(
    {
        "run json value": value_in_json, "run bytes": bytes_of_a_run_file, "run log": a_line_of_the_log,
        "run samples": a_column_of_samples, "run tensors": header_of_weights, "run weights": flipped_weights,
        "run history": flipped_history, "run gallery": a_gallery, "run missing file": a_missing_file,
        "run tables": a_table_of_a_run,
        "cache": the_cache,
    },
    {
        "run odd json": odd_json, "run links": links_in_a_run, "run links again": links_in_a_run,
        "comparison links": a_run_of_a_comparison,
        "run bombs": bombs,
    },
)  # fmt: skip
