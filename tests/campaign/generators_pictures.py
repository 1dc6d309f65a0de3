"""Folders of pictures: one odd file, one odd name, one odd folder; links, pipes and bombs."""

from __future__ import annotations

import io
import os
import struct
import unicodedata
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from .case import PLAIN, Box, Case, Table, Wrong, mutated
from .material import pictures

CLASSES = ("class0", "class1")


def reading(box: Box, path: Path, about: str = "", *, commands: bool = True) -> Case:
    """Read a data set in one of the ways that a user would: from Python, or by a command."""
    skip = ("--on-error", box.pick("raise", "skip"))
    kind = int(box.rng.integers(10)) if commands else 0
    if kind == 1:
        return Case(("predict", box.copy("run", writable=True), path, "--out", "said.csv", *skip), about=about)
    if kind == 2:
        return Case(("train", path, "--out", "new", *PLAIN, *skip), about=about)
    if kind == 3:
        run = box.copy("run", writable=True)
        return Case(("evaluate", run, "--data", path, "--device", "cpu", "--split", "all", *skip), about=about)
    if kind == 4:
        return Case(("scan", path, "--out", "new", "--detector", "spectral", *PLAIN[2:], *skip), about=about)
    if kind in (5, 6):
        return Case(("poison", path, "--out", "new", "--rate", "0.2", *skip), about=about)

    def read() -> None:
        from antibackdoor.data.reading import read

        read(path, on_error=skip[1], test_fraction=0)

    return Case(call=read, about=about)


def classes_of(path: Path, allowed: set[str], *, n: int | None = None) -> Case:
    """Read it; other classes than these are an error, unless the data are refused."""

    def read() -> None:
        from antibackdoor.data.reading import read

        found = read(path, on_error="skip", test_fraction=0)
        names = {unicodedata.normalize("NFC", str(name)) for name in found.train.class_names}
        if names != {unicodedata.normalize("NFC", name) for name in allowed}:
            raise Wrong(f"other classes were read: {sorted(names)[:5]} for {sorted(allowed)[:5]}")
        if n is not None and len(found.train) + (0 if found.test is None else len(found.test)) > n:
            raise Wrong(f"more samples were read than there are: over {n}")

    return Case(call=read, about=f"classes {sorted(allowed)[:4]}")


def a_picture(box: Box, folder: Path) -> Path:
    """One of the pictures."""
    return Path(box.pick(*sorted(folder.rglob("*.png"))))


def bytes_of_a_picture(box: Box) -> Case:
    """Some bytes of one picture are changed."""
    folder = box.copy("pics")
    place = a_picture(box, folder)
    place.write_bytes(mutated(place.read_bytes(), box.rng))
    return reading(box, folder, place.name)


def mode_of_a_picture(box: Box) -> Case:
    """One picture has another mode or format."""
    folder = box.copy(box.pick("pics", "colors"))
    place = a_picture(box, folder)
    mode = box.pick("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F", "HSV", "LAB")
    format_ = box.pick("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "ICO", "TGA", "JPEG2000")
    with Image.open(place) as image:
        try:
            changed = image.convert("RGB").convert(mode)
        except ValueError:
            changed = image.convert("L").convert("I").convert(mode if mode == "I;16" else "L")
    try:
        changed.save(place, format_)
    except (OSError, ValueError, KeyError):
        Image.new("RGB", (8, 8), "red").convert("L").save(place, "PNG")
    return reading(box, folder, f"{mode} {format_}")


def suffix_of_a_picture(box: Box) -> Case:
    """One picture has a suffix that few know: it is read, told, or refused."""
    folder = box.copy("split")
    place = a_picture(box, folder / "train")
    suffix = box.pick(
        ".jfif", ".jpe", ".jp2", ".avif", ".heic", ".tga", ".ico", ".dds", ".qoi", "", ".PNG_", ".jpg~", ".dat"
    )
    renamed = place.with_name(f"odd{suffix}")
    image = Image.open(place)
    place.unlink()
    image.save(renamed, "JPEG" if suffix in (".jfif", ".jpe") else "PNG")

    def check(output: str) -> None:
        import pyarrow.parquet as pq

        ids = pq.read_table("new/samples.parquet")["id"].to_pylist()
        skipped = Path("new/skipped.csv")
        told = output + (skipped.read_text() if skipped.exists() else "")
        if not any("odd" in name for name in ids) and "odd" not in told and "not looked at" not in told:
            raise Wrong(f"a file was passed over in silence: {renamed.name}")

    return Case(("train", folder, "--out", "new", *PLAIN, "--backbone", "wrn-10-1"), check=check, about=suffix)


def split_names(box: Box) -> Case:
    """Split folders under names of the wild are no classes."""
    train, test = box.pick(
        ("seg_train", "seg_test"), ("training_set", "test_set"), ("images_train", "images_test"),
        ("train_data", "test_data"),
        ("Train_images", "Test_images"), ("fold_0", "fold_1"), ("train2017", "val2017"), ("my-train", "my-val"),
        ("TRAIN", "VALID"), ("split_train", "split_test"),
    )  # fmt: skip
    top = box.inputs / "data" / ("deeper" if box.chance(0.3) else ".")
    pictures(top / train, seed=1)
    pictures(top / test, n=8, seed=2)
    return classes_of(box.inputs / "data", set(CLASSES))


def junk_beside(box: Box) -> Case:
    """Folders and files that systems leave behind are no classes."""
    folder = box.copy("pics")
    name = box.pick("@eaDir", ".DS_Store", "Thumbs.db", "__MACOSX", ".ipynb_checkpoints", "$RECYCLE.BIN", ".thumbnails",
                    "#recycle", "System Volume Information", "lost+found")  # fmt: skip
    place = box.pick(folder, folder / "class0") / name
    if name in (".DS_Store", "Thumbs.db"):
        place.write_bytes(box.rng.bytes(100))
    else:
        pictures(place, n=4)
        if box.chance(0.5):
            Image.new("L", (8, 8)).save(place / "x.png")
    return classes_of(folder, set(CLASSES))


_NAMES = ("=1+1", "@SUM(A1)", "+1", "-1", "a\nb", "\x1b[2Jx", "x" * 200, "é", "e\u0301", "\u202egnp", "a b", "'", '"',
"a,b", "%s", "{0}",
          "<script>alert(1)<script>", "CON", "..x", "~", "$(touch x)", "`id`", "\t", "🎲", "a\\b", ":", "*", "?",
          "nul\u2028l")  # fmt: skip


def name_of_a_file(box: Box) -> Case:
    """One picture has an odd name; tables that come of it hold no formulas."""
    folder = box.copy("pics")
    place = a_picture(box, folder)
    name = box.pick(*_NAMES)
    place.rename(place.with_name(f"{name}.png"))
    command = ("predict", box.copy("run", writable=True), folder, "--out", "said.csv", "--device", "cpu")
    return Case(command, expect="ok", check=no_formulas, about=ascii(name)[:60])


def name_of_a_class(box: Box) -> Case:
    """One class has an odd name."""
    folder = box.copy("pics")
    name = box.pick(*_NAMES)
    (folder / "class1").rename(folder / name)
    kind = box.pick("train", "poison")
    words = PLAIN if kind == "train" else ("--rate", "0.2")
    return Case((kind, folder, "--out", "new", *words), check=no_formulas, about=ascii(name)[:60])


def no_formulas(output: str) -> None:
    """No cell of any table begins as a formula does."""
    import csv

    for table in Path().rglob("*.csv"):
        with table.open(newline="", encoding="utf-8", errors="replace") as file:
            for row in csv.reader(file):
                for cell in row:
                    if cell[:1] in ("=", "+", "-", "@", "\t", "\r") and not _is_number(cell):
                        raise Wrong(f"a formula in a table: {table.name}: {cell[:40]!r}")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def unicode_of_splits(box: Box) -> Case:
    """The same class in NFC in one split and in NFD in the other."""
    folder = box.copy("split")
    (folder / "train" / "class1").rename(folder / "train" / "größe")
    (folder / "test" / "class1").rename(folder / "test" / unicodedata.normalize("NFD", "größe"))
    return classes_of(folder, {"class0", "größe"})


def few_bits(box: Box) -> Case:
    """Files of 16 bits that use 10 to 14 are not nearly black, or it is told."""
    bits = int(box.rng.integers(10, 15))
    for label in (0, 1):
        (box.inputs / "data" / f"class{label}").mkdir(parents=True)
        for row in range(6):
            values = box.rng.integers(0, 2**bits, (8, 8)).astype(np.uint16)
            values[0, 0] = 2**bits - 1
            Image.fromarray(values).save(box.inputs / "data" / f"class{label}" / f"{row}.png")

    def read() -> None:
        from antibackdoor.data.reading import read

        found = read(box.inputs / "data", test_fraction=0)
        brightest = int(np.asarray(found.train.inputs).max())
        if brightest < 128 and "bit" not in str(found.notes):
            raise Wrong(f"16-bit files became nearly black: brightest {brightest} of 255, {bits} bits")

    return Case(call=read, about=f"{bits} bits")


def copies(box: Box) -> Case:
    """Test samples that are copies of training samples are told."""
    folder = box.copy("split")
    n = int(box.rng.integers(1, 4))
    for place in sorted((folder / "train" / "class0").iterdir())[:n]:
        (folder / "test" / "class0" / f"copy-{place.name}").write_bytes(place.read_bytes())

    def check(output: str) -> None:
        report = Path("new/metrics.json").read_text()
        if not any(word in output + report for word in ("copies", "copy", "duplicate")):
            raise Wrong(f"copies in the test split were not told: {n}")

    return Case(("train", folder, "--out", "new", *PLAIN, "--backbone", "wrn-10-1"), expect="ok", check=check)


def size_of_a_picture(box: Box) -> Case:
    """One picture has another size."""
    folder = box.copy("pics")
    place = a_picture(box, folder)
    size = box.pick((1, 1), (1, 4000), (4000, 1), (8, 9), (3, 3), (512, 512), (7, 8), (2000, 2000))
    Image.new("L", size, 100).save(place)
    return reading(box, folder, str(size))


def exif_of_a_picture(box: Box) -> Case:
    """One JPEG has odd metadata."""
    folder = box.copy("pics")
    place = a_picture(box, folder)
    exif = mutated(b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0", box.rng)
    with Image.open(place) as image:
        image.save(place, "JPEG", exif=exif, icc_profile=box.rng.bytes(30) if box.chance(0.5) else None)
    return reading(box, folder, "exif")


def missing_files(box: Box) -> Case:
    """A class is empty, has one picture, or is a file."""
    folder = box.copy("pics")
    places = sorted((folder / "class1").iterdir())
    kind = int(box.rng.integers(4))
    for place in places[1 if kind == 1 else 0 :]:
        place.unlink()
    if kind == 2:
        (folder / "class1").rmdir()
    if kind == 3:
        (folder / "class1").rmdir()
        (folder / "class1").write_bytes(b"x")
    return reading(box, folder, f"kind {kind}")


def links(box: Box) -> Case:
    """Links that double, turn in a circle or leave the data."""
    folder = box.copy("pics")
    kind = int(box.rng.integers(6))
    pictures(box.outside / "secret", n=6)
    if kind == 0:
        deep = folder / "class0"
        for level in range(24):
            inner = deep / f"d{level}"
            inner.mkdir()
            for name in ("a", "b"):
                (deep / f"{name}{level}").symlink_to(inner.name)
            deep = inner
        Image.new("L", (8, 8)).save(deep / "x.png")
    elif kind == 1:
        (folder / "class0" / "loop").symlink_to(folder if box.chance(0.5) else ".")
    elif kind == 2:
        (folder / "class0" / "away").symlink_to(box.outside / "secret" / "class0")
    elif kind == 3:
        (folder / "class2").symlink_to(box.outside / "secret" / "class1")
    elif kind == 4:
        (folder / "class0" / "x.png").symlink_to(box.pick("/dev/zero", "/dev/urandom", "/proc/self/mem", "nowhere"))
    else:
        (folder / "class0" / "x.png").symlink_to(next((box.outside / "secret" / "class0").iterdir()))
    command = reading(box, folder, f"kind {kind}")
    return command if kind in (1, 4) else classes_of(folder, set(CLASSES), n=24 + (kind == 0))


def special_files(box: Box) -> Case:
    """A pipe or a socket is called like a picture."""
    folder = box.copy("pics")
    place = folder / "class0" / "x.png"
    if box.chance(0.7):
        os.mkfifo(place)
    else:
        import socket

        os.chdir(place.parent)  # names of sockets are short
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("x.png")
        os.chdir(box.work)

    def read() -> None:
        from antibackdoor.data.reading import read

        found = read(folder, on_error="skip", test_fraction=0)
        if "x.png" not in f"{found.notes} {found.skipped} {found.unread}":
            raise Wrong("a special file was passed over in silence: x.png")

    return Case(call=read) if box.chance(0.5) else reading(box, folder, "special")


def bombs(box: Box) -> Case:
    """A picture that declares, or unpacks to, far more than it holds."""
    folder = box.copy("pics")
    kind = int(box.rng.integers(4))
    (folder / "class0" / "bomb.png").write_bytes((_huge_png, _text_png, _frames, _huge_tiff)[kind]())
    return reading(box, folder, f"kind {kind}")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, *extra: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(b"\0" * (min(width, 60000) + 1) * min(height, 100))
    return (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + b"".join(extra) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")
    )


def _huge_png() -> bytes:
    return _png(60000, 60000)


def _text_png() -> bytes:
    return _png(8, 8, *[_chunk(b"zTXt", b"a\0\0" + zlib.compress(b"a" * 2**26))] * 4)


def _frames() -> bytes:
    file = io.BytesIO()
    frames = [Image.new("L", (64, 64), number % 255) for number in range(300)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


def _huge_tiff() -> bytes:
    entries = [(256, 4, 1, 50000), (257, 4, 1, 50000), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8),
               (277, 3, 1, 1), (278, 4, 1, 50000), (279, 4, 1, 2**31)]  # fmt: skip
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + b"\0" * 4


def not_data(box: Box) -> Case:
    """What is given as data is something else."""
    place = box.inputs / box.pick("x", "x.zip", "x.npz", "x.csv", "x.ts", "x.tsv", "x.png", "x.parquet", "x.tar")
    kind = int(box.rng.integers(5))
    if kind == 0:
        place.write_bytes(box.rng.bytes(int(box.rng.integers(0, 3000))))
    elif kind == 1:
        place.mkdir()
    elif kind == 2:
        place.symlink_to(box.pick("/dev/null", "/dev/zero", "/proc/self/environ", "nowhere", place.name))
    elif kind == 3:
        os.mkfifo(place)
    else:
        place.write_bytes(
            (box.material / box.pick("pics.zip", "waves.npz", "waves.ts", "waves.csv", "weights.pt")).read_bytes()
        )
    return reading(box, place, f"{place.name} kind {kind}")


def one_picture(box: Box) -> Case:
    """`predict` on a single damaged file."""
    place = box.inputs / "one.png"
    place.write_bytes(mutated((box.material / "pics/class0/000.png").read_bytes(), box.rng))
    return Case(("predict", box.copy("run", writable=True), place, "--out", "said.csv", "--device", "cpu"))


def unlike(box: Box) -> Case:
    """`predict` on inputs that are unlike those that the model was trained on."""
    pictures(box.inputs / "data", n=6, channels=3, size=32)
    return Case(("predict", box.copy("run", writable=True), box.inputs / "data", "--out", "said.csv"), expect="refused")


PICTURES = Table(
    {
        "picture bytes": bytes_of_a_picture, "picture mode": mode_of_a_picture, "picture suffix": suffix_of_a_picture,
        "split names": split_names, "junk folders": junk_beside, "file name": name_of_a_file,
        "class name": name_of_a_class, "unicode of splits": unicode_of_splits, "few bits": few_bits, "copies": copies,
        "picture size": size_of_a_picture, "picture metadata": exif_of_a_picture, "missing files": missing_files,
        "one picture": one_picture, "unlike inputs": unlike,
    },
    {"data links": links, "special files": special_files, "picture bombs": bombs, "not data": not_data},
)  # fmt: skip
