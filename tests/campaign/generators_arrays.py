"""Arrays in `.npz` and `.npy`."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .case import PLAIN, Box, Case, Table, Wrong, mutated
from .generators_pictures import reading
from .material import waves


class Canary:
    """A pickle of it touches a file when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (eval, ("open('../outside/new.txt', 'w').write('x')",))


def _npy(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz_of(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    """An `.npz` of members that need not be arrays."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            with archive.open(info, "w") as file:  # `writestr` takes no empty name
                file.write(data)
    return path


def _valid(box: Box) -> dict[str, bytes]:
    with zipfile.ZipFile(box.material / box.pick("waves.npz", "images.npz")) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def header(descr: object, shape: object, order: object = False, extra: str = "") -> bytes:
    """The head of a `.npy` with any content."""
    text = f"{{'descr': {descr!r}, 'fortran_order': {order!r}, 'shape': {shape!r}, {extra}}}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text + b"\n"


def bytes_of_an_npz(box: Box) -> Case:
    """Some bytes of the file are changed."""
    path = box.inputs / "data.npz"
    path.write_bytes(mutated((box.material / box.pick("waves.npz", "images.npz")).read_bytes(), box.rng))
    return reading(box, path)


def bytes_of_a_member(box: Box) -> Case:
    """Some bytes of one array are changed; the checksum fits."""
    members = _valid(box)
    name = box.pick(*sorted(members))
    head = int(box.pick(128, len(members[name])))
    members[name] = mutated(members[name][:head], box.rng) + members[name][head:]
    return reading(box, npz_of(box.inputs / "data.npz", members), name)


HEADERS: tuple[tuple[object, object, object], ...] = (
    ("<f4", (24, -1, 16), False), ("<f4", (True, True, 16), False), ("<f4", (2**40, 1, 16), False),
    ("<f4", (24, 1, 2**62), False), ("|O", (24,), False), ("<U2147483647", (24,), False), ("<U0", (24,), False),
    ("<f4", 24, False), ("<f4", (), False), ("<f4", (24, 1, 16), 1), ("<f4", (24, 1, 16), "x"),
    ("V4", (24, 1, 16), False),
    ("<M8[s]", (24,), False), ([("a", "<f4")], (24,), False), ("<f4", (24, 0, 16), False), ("<f4", (0, 1, 16), False),
    ("<f4", (24.5, 1, 16), False), ("<f4", ("24", 1, 16), False), ("<f4", (24, 1) * 40, False),
    ("nonsense", (24,), False),
    (">f8", (24, 1, 16), True), ("<c16", (24, 1, 16), False), ("<f2", (24, 1, 16), False), ("|b1", (24, 1, 16), False),
    ("<f4", [24, 1, 16], False), (None, (24,), False), (12, (24,), False),
)  # fmt: skip


def header_of_an_array(box: Box) -> Case:
    """One array has another header than its bytes have."""
    members = _valid(box)
    name = box.pick(*sorted(members))
    chosen = HEADERS[int(box.rng.integers(len(HEADERS)))]
    members[name] = header(*chosen) + members[name][128:]
    return reading(box, npz_of(box.inputs / "data.npz", members), f"{name} {chosen}"[:80])


def members_of_an_npz(box: Box) -> Case:
    """One array is missing, renamed, doubled or added."""
    members = _valid(box)
    name, kind = box.pick(*sorted(members)), int(box.rng.integers(5))
    if kind == 0:
        del members[name]
    elif kind == 1:
        members[box.pick("X_train.npy", "x_train", "x_train.npy.npy", "/x_train.npy", "y.npy", "")] = members.pop(name)
    elif kind == 2:
        members[box.pick("x_test.npy", "y_test.npy", "class_names.npy", "lengths_train.npy", "x_val.npy")] = members[
            name
        ]
    elif kind == 3:
        members["notes.txt"] = b"x"
    else:
        members[name] = b""
    return reading(box, npz_of(box.inputs / "data.npz", members), f"{name} kind {kind}")


def labels(box: Box) -> Case:
    """Odd labels beside valid series."""
    x, y = waves()
    odd: tuple[Any, ...] = (
        y.astype(float), y + 0.5, -y, y * 10**12, y.astype(bool), y.astype("U5"), y.astype("S5"), y[:-1], y[:, None],
        np.eye(2)[y], np.where(y == 0, np.nan, 1.0), y.astype("M8[s]"), np.zeros(24, int), np.arange(24),
        y.astype(np.uint64) * 2**63,
        np.array(["a\n", "\x1b[2J"])[y], np.array(["", "b"])[y], np.array(["=1", "@x"])[y], y.astype(complex),
        np.array(3),
        np.array(["x" * 3000, "y"])[y], y.astype(np.float16), y.astype(">i2"),
    )  # fmt: skip
    place = int(box.rng.integers(len(odd)))
    np.savez(box.inputs / "data.npz", x_train=x, y_train=odd[place])
    return reading(box, box.inputs / "data.npz", f"labels {place}")


def values(box: Box) -> Case:
    """Odd values among valid ones."""
    x, y = waves(channels=int(box.pick(1, 2)))
    kind = int(box.rng.integers(12))
    row = int(box.rng.integers(24))
    if kind < 5:
        x[row, 0, int(box.rng.integers(16))] = box.pick(np.nan, np.inf, -np.inf, 3e38, 1e-45)
    wide = x.astype(np.float64) * 1e30
    changed: Any = {
        5: x.astype(complex), 6: x.astype(np.float16), 7: (x * 100).astype(np.int16), 8: x.astype(">f8"), 9: wide,
        10: np.zeros_like(x), 11: x[:, :, :1],
    }.get(kind, x)  # fmt: skip
    np.savez(box.inputs / "data.npz", x_train=changed, y_train=y)
    return reading(box, box.inputs / "data.npz", f"values {kind}")


def padding(box: Box) -> Case:
    """Series padded with NaN at their end are read by one rule in every format, or refused in every one."""
    x, y = waves(length=20)
    for row in range(24):
        x[row, 0, 12 + row % 8 :] = np.nan
    np.savez(box.inputs / "data.npz", x_train=x, y_train=y)
    rows = [
        [str(label), *("NaN" if np.isnan(v) else f"{v:.5f}" for v in series[0])]
        for label, series in zip(y, x, strict=True)
    ]
    (box.inputs / "data.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    lines = "".join(f"{','.join(row[1:])}:{row[0]}\n" for row in rows)
    (box.inputs / "data.ts").write_text(
        f"@problemName d\n@univariate true\n@equalLength false\n@classLabel true 0 1\n@data\n{lines}"
    )

    def read() -> None:
        from antibackdoor.data.reading import read
        from antibackdoor.errors import DataError

        found: dict[str, object] = {}
        for suffix in ("tsv", "npz", "ts"):
            try:
                found[suffix] = (
                    np.asarray(read(box.inputs / f"data.{suffix}", test_fraction=0).train.inputs).round(3).tolist()
                )
            except DataError:
                found[suffix] = "refused"
        if len({str(part) for part in found.values()}) > 1:
            raise Wrong(f"padding is read by several rules: { ({k: str(v)[:20] for k, v in found.items()}) }")

    return Case(call=read)


def axes(box: Box) -> Case:
    """Arrays whose axes can be taken in two ways are refused, or asked for."""
    kind = int(box.rng.integers(3))
    y = np.arange(24) % 2
    x: Any = (
        box.rng.normal(size=(24, 100, 3)).astype(np.float32), box.rng.random((24, 28, 28)).astype(np.float32),
        box.rng.integers(0, 255, (24, 16000), dtype=np.uint8),
    )[kind]  # fmt: skip
    np.savez(box.inputs / "data.npz", x_train=x, y_train=y)

    def read() -> None:
        from antibackdoor.data.reading import read

        found = read(box.inputs / "data.npz", test_fraction=0)
        if kind == 0 and found.train.shape == (100, 3):
            raise Wrong("axes were guessed: (N, T, C) became 100 channels of three steps")
        if kind == 1 and found.train.kind == "series":
            raise Wrong("axes were guessed: gray images became series")

    return Case(call=read, about=f"axes {kind}")


def shapes(box: Box) -> Case:
    """Arrays of odd shapes and types, that fit each other or do not."""
    shape = box.pick((24, 8), (24, 8, 8), (24, 8, 8, 1), (24, 8, 8, 3), (24, 3, 8, 8), (24, 8, 8, 4), (24,),
    (24, 1, 1, 1, 8),
                     (24, 0), (1, 8, 8), (24, 2000, 2), (24, 1, 1), (24, 3, 3, 3))  # fmt: skip
    dtype = box.pick(np.uint8, np.float32, np.float64, np.int64, np.int8, np.bool_, np.uint16)
    x = (box.rng.random(shape) * (1 if dtype is np.float32 else 200)).astype(dtype)
    np.savez(box.inputs / "data.npz", x_train=x, y_train=np.arange(shape[0]) % 2)
    return reading(box, box.inputs / "data.npz", f"{shape} {dtype.__name__}")


def lengths(box: Box) -> Case:
    """Odd lengths, names and test splits beside valid series."""
    x, y = waves()
    more: dict[str, Any] = {}
    kind = int(box.rng.integers(3))
    if kind == 0:
        more["lengths_train"] = box.pick(
            np.zeros(24, int), np.full(24, 17), np.full(24, -1), np.full(24, 1), np.full(23, 5), np.full(24, 5.5),
            np.full((24, 1), 5), np.full(24, 2**62), np.full(24, "5"),
        )  # fmt: skip
    elif kind == 1:
        more["class_names"] = box.pick(
            np.array(["a"]), np.array(["a", "a"]), np.array([1, 2]), np.array(["a", "b", "c"]), np.array([["a", "b"]]),
            np.array(["", " "]), np.array("a"), np.array(["a\n", "\x1b"]),
        )  # fmt: skip
    else:
        more["x_test"] = box.pick(x[:, :, :5], x[:0], x[:4, 0], np.concatenate([x, x], 1), x[:4] * np.nan)
        more["y_test"] = box.pick(y[:4], y[:0], y + 5, y)
    np.savez(box.inputs / "data.npz", x_train=x, y_train=y, **more)
    return reading(box, box.inputs / "data.npz", f"kind {kind}")


def pickled(box: Box) -> Case:
    """Arrays of objects, whose pickles run code."""
    members, kind = _valid(box), int(box.rng.integers(3))
    name = box.pick("x_train.npy", "y_train.npy", "class_names.npy", "other.npy")
    bomb = header("|O", (24,)) + pickle.dumps(np.array([Canary()] * 24, dtype=object))
    members[name] = bomb if kind else pickle.dumps(Canary())
    path = npz_of(box.inputs / "data.npz", members)
    if kind == 2:
        path = box.inputs / "data.npy"
        path.write_bytes(bomb)
    return reading(box, path, name)


def single_arrays(box: Box) -> Case:
    """A `.npy` given as data."""
    path = box.inputs / box.pick("data.npy", "data.npz")
    data = _npy(waves()[0])
    path.write_bytes(mutated(data, box.rng) if box.chance(0.5) else data)
    return reading(box, path)


def bombs(box: Box) -> Case:
    """A few bytes that declare, or unpack to, gigabytes."""
    members, kind = _valid(box), int(box.rng.integers(3))
    name = box.pick("x_train.npy", "y_train.npy", "class_names.npy")
    if kind == 0:
        members[name] = header("<f4", (2**33, 1, 16))
    elif kind == 1:
        members[name] = header("<f4", (2**23, 1, 4)) + b"\0" * 2**27
    else:
        members[name] = header("<U100000000", (24,)) + b"\0" * 1000
    return reading(box, npz_of(box.inputs / "data.npz", members, zipfile.ZIP_DEFLATED), f"{name} kind {kind}")


def trained_on_odd(box: Box) -> Case:
    """Data that can be read, but hardly trained on."""
    kind = int(box.rng.integers(5))
    n, classes, length = ((4, 2, 16), (24, 24, 16), (40, 2, 2), (24, 2, 1), (30, 12, 8))[kind]
    x, y = waves(n, classes, length=length)
    np.savez(box.inputs / "data.npz", x_train=x, y_train=y)
    return Case(
        ("train", box.inputs / "data.npz", "--out", "new", *PLAIN), about=f"{n} samples of {classes}, {length} steps"
    )


ARRAYS = Table(
    {
        "npz bytes": bytes_of_an_npz, "npz member bytes": bytes_of_a_member, "npz header": header_of_an_array,
        "npz members": members_of_an_npz, "npz labels": labels, "npz values": values, "nan padding": padding,
        "axes": axes,
        "npz lengths": lengths,
    },
    {
        "npz pickles": pickled, "npy": single_arrays, "npz bombs": bombs, "npz shapes": shapes,
        "hardly trainable": trained_on_odd,
    },
)  # fmt: skip
