"""Every file of a data set is a sample, an error or told of: splits, links, odd names, odd suffixes, odd depths."""

from __future__ import annotations

import io
import os
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import pictures, write_folder
from PIL import Image

from antibackdoor.data import folder as folder_format
from antibackdoor.data.reading import DataSet, read, read_inputs, read_samples
from antibackdoor.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def encoded(image: Image.Image, kind: str = "PNG", **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def picture(value: int = 0, kind: str = "PNG") -> bytes:
    return encoded(Image.new("RGB", (8, 8), (value, value, value)), kind)


def as_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def as_zip(path: Path, files: dict[str, bytes]) -> Path:
    path = path.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


Writer = Callable[[Path, dict[str, bytes]], Path]
BOTH = pytest.mark.parametrize("write", [as_folder, as_zip])


def classes(*parents: str, names: tuple[str, ...] = ("cat", "dog"), n: int = 2) -> dict[str, bytes]:
    return {
        f"{parent}/{name}/{i}.png".lstrip("/"): picture(i) for parent in parents for name in names for i in range(n)
    }


def unread(data: DataSet) -> dict[str, str]:
    return {file.id: file.reason for file in data.unread}


# --- splits


@BOTH
@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("training_set", "test_set"),
        ("training_set/training_set", "test_set/test_set"),
        ("images_train", "images_val"),
        ("data/imagesTr", "data/imagesTs"),
        ("train2017", "val2017"),
        ("train/images", "valid/images"),
        ("trainset", "testset"),
        ("Train Data", "Test Data"),
        ("train", "dev_set"),
    ],
)
def test_split_folders_are_recognized(train: str, test: str, write: Writer, tmp_path: Path) -> None:
    data = read(write(tmp_path / "data", classes(train, test)))
    assert data.train.class_names.tolist() == ["cat", "dog"]
    assert data.test is not None and len(data.train) == len(data.test) == 4
    assert {name.split("/")[0] for name in data.train.ids.tolist()} == {train.removeprefix("data/").split("/")[0]}


@BOTH
def test_splits_within_each_class(write: Writer, tmp_path: Path) -> None:
    files = {f"{c}/{s}/{i}.png": picture(i) for c in ("cat", "dog") for s in ("train", "test", "val") for i in range(2)}
    data = read(write(tmp_path / "data", files))
    assert data.train.class_names.tolist() == ["cat", "dog"] and data.test is not None
    assert data.train.ids.tolist() == [f"{c}/train/{i}.png" for c in ("cat", "dog") for i in range(2)]
    assert len(data.test) == 4 and len(data.unread) == 4 and data.notes["splits"] == "folders within each class"


@BOTH
@pytest.mark.parametrize(
    ("files", "message"),
    [
        (classes("fold_0", "fold_1"), "parts of one data set"),
        ({f"fold{i}/{j}.png": picture(j) for i in range(3) for j in range(2)}, "parts of one data set"),
        (classes("batch1", "batch2"), "parts of one data set"),
        (classes("seg_train", "seg_test", "seg_pred"), "'seg_pred' lies beside"),
        ({f"img_{s}/{i}.png": picture(i) for s in ("train", "test") for i in range(2)}, "outside of class folders"),
        (classes("a/train", "a/test", "b/train", "b/test"), "split folders, which are too deep"),
        (classes("my_train", "other"), "may be a split or a class"),
    ],
)
def test_what_may_be_splits_is_not_taken_for_classes(
    files: dict[str, bytes], message: str, write: Writer, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "data", files))


@pytest.mark.parametrize(
    "names",
    [("bullet_train", "car"), ("crash_test", "bullet_train", "car"), ("part1", "part2"), ("strain", "protest")],
)
def test_classes_with_such_words_in_their_names_stay_classes(names: tuple[str, ...], tmp_path: Path) -> None:
    assert read(as_folder(tmp_path / "data", classes("", names=names))).train.class_names.tolist() == sorted(names)
    sessions = {f"{name}/of {name}/{i}.png": picture(i) for name in names for i in range(2)}
    if len(names) == 2:
        assert read(as_folder(tmp_path / "deep", sessions)).train.class_names.tolist() == sorted(names)


def test_the_same_folders_in_each_class_are_noted(tmp_path: Path) -> None:
    data = read(as_folder(tmp_path / "data", classes("cat", "dog", names=("front", "side"))))
    assert data.train.class_names.tolist() == ["cat", "dog"] and "top folders" in data.notes["classes"]


@BOTH
def test_splits_that_are_not_used_are_listed(write: Writer, tmp_path: Path) -> None:
    root = write(tmp_path / "data", classes("train", "test", "val", n=1))
    assert set(unread(read(root))) == {"val/cat/0.png", "val/dog/0.png"}
    other = read(root, test=write(tmp_path / "other", classes("", n=3)))
    assert set(unread(other)) == {f"{split}/{c}/0.png" for split in ("test", "val") for c in ("cat", "dog")}
    assert other.test is not None and len(other.test) == 6


def test_arrays_that_are_not_used_are_listed(tmp_path: Path) -> None:
    x, y = np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 0, 1, 1])
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x, y_test=y, x_val=x, y_val=y)
    assert set(unread(read(tmp_path / "a.npz"))) == {"x_val", "y_val"}
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "cache").mkdir(exist_ok=True)


# --- what is no sample


def odd_files() -> dict[str, bytes]:
    kinds = {"a.jfif": "JPEG", "b": "PNG", "c.avif": "AVIF", "d.bin": "GIF", "e.jp2": "JPEG2000", "f.tga": "TGA"}
    kinds |= {"g.qoi": "QOI", "h.dds": "DDS", "i.ico": "ICO", "j.dat": "WEBP", "k.txt": "BMP", "l.raw": "TGA"}
    kinds |= {"m.png.bak": "PNG", "n.": "PPM", "o.pcx": "PCX", "p.jpe": "JPEG"}
    return {name: encoded(Image.new("RGB", (16, 16), (9, 9, 9)), kind) for name, kind in kinds.items()}


@BOTH
def test_images_are_recognized_by_their_content(write: Writer, tmp_path: Path) -> None:
    files = odd_files()
    data = read(write(tmp_path / "data", {f"{c}/{k}": v for c in ("cat", "dog") for k, v in files.items()}))
    ids = [*data.train.ids.tolist(), *(data.test.ids.tolist() if data.test else [])]
    assert sorted(ids) == sorted(f"{c}/{name}" for c in ("cat", "dog") for name in files)
    assert data.unread == () and abs(data.train.inputs.astype(int) - 9).max() <= 3


@BOTH
def test_what_is_not_looked_at_is_listed_with_its_reason(write: Writer, tmp_path: Path) -> None:
    others = {
        "readme.txt": (b"Name: x\n", "not an image"),
        "labels.csv": (b"#define a 1\n1,2\n", "not an image"),
        "cat/P5 notes": (b"P5 is a word here\n", "not an image"),
        "cat/nothing": (b"", "is empty"),
        "cat/plot.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n", "not an image"),
        "cat/.hidden.png": (picture(), "is hidden"),
        "dog/@eaDir/0.png": (picture(), "'@eaDir', which is not a class"),
        "@eaDir/0.png": (picture(), "'@eaDir', which is not a class"),
        "__MACOSX/dog/._0.png": (b"x", "'__MACOSX', which is not a class"),
        ".ipynb_checkpoints/0.png": (picture(), "hidden folder '.ipynb_checkpoints'"),
        "dog/Thumbs.db": (b"\xd0\xcf\x11\xe0" + bytes(60), "not an image"),
    }
    data = read(write(tmp_path / "data", classes("", n=3) | {name: value for name, (value, _) in others.items()}))
    assert data.train.class_names.tolist() == ["cat", "dog"] and data.skipped == ()
    found = unread(data)
    assert set(found) == set(others)
    for name, (_, reason) in others.items():
        assert reason in found[name], name
    assert data.reading_metrics()["n_unread"] == len(others) and "11 files were not looked at" in data.told()[-1]
    assert dict(data.left_out) == found


def test_pipes_and_devices_are_told_of_and_not_opened(tmp_path: Path) -> None:
    root = as_folder(tmp_path / "data", classes("", n=3))
    os.mkfifo(root / "cat" / "x.png")
    (root / "dog" / "y.png").symlink_to("/dev/zero")
    assert unread(read(root, follow_links=True)) == {
        "cat/x.png": "is a pipe, which is not opened",
        "dog/y.png": "is a device, which is not opened",
    }


def test_listing_opens_no_file_whose_name_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = as_folder(tmp_path / "data", classes("", n=5) | {"cat/x": picture()})
    opened: list[str] = []
    real = folder_format._open_regular
    monkeypatch.setattr(folder_format, "_open_regular", lambda path: opened.append(path.name) or real(path))
    read_inputs(root, shape=(3, 8, 8))
    assert sorted(opened) == sorted([f"{i}.png" for i in range(5)] * 2 + ["x", "x"])  # x to recognize and to decode it


def test_a_heic_image_is_read_or_asks_for_the_extra(tmp_path: Path) -> None:
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
    for name in ("x.heic", "x.jpg", "x"):
        root = as_folder(tmp_path / name, classes("") | {f"cat/{name}": heic})
        with pytest.raises(DataError, match=r"HEIC image, which needs.*antibackdoor\[heic\]|cannot be read|no image"):
            read(root)


@BOTH
def test_all_unreadable_files_come_in_one_message(write: Writer, tmp_path: Path) -> None:
    broken = {f"dog/b{i:02d}.png": b"x" for i in range(25)}
    root = write(tmp_path / "data", classes("", n=3) | broken)
    with pytest.raises(DataError, match=r"^25 samples cannot be read, the first: dog/b00\.png") as caught:
        read(root, test_fraction=0)
    assert str(caught.value).endswith("--on-error skip") and "\n" not in str(caught.value)
    *lines, last = caught.value.__notes__
    assert len(lines) == 20 and lines[19].startswith("dog/b19.png")
    assert "5 more" in last and (listed := Path(last.split(" in ")[1])).is_file()
    assert len(listed.read_text().splitlines()) == 25
    data = read(root, test_fraction=0, on_error="skip")
    assert [fault.id for fault in data.skipped] == list(broken) and len(data.left_out) == 25
    with pytest.warns(UserWarning, match="25 unreadable"):
        read_inputs(root, shape=(3, 8, 8), on_error="skip")


# --- links


def test_each_real_folder_is_read_once(tmp_path: Path) -> None:
    root = as_folder(tmp_path / "data", classes("", n=3))
    place = root / "cat"
    for _ in range(24):  # 2^23 paths
        (place / "a").mkdir()
        (place / "b").symlink_to(place / "a")
        place = place / "a"
    (place / "deep.png").write_bytes(picture())
    (root / "dog" / "round").symlink_to(root)
    (root / "bird").symlink_to(root / "dog")
    data = read(root, test_fraction=0)
    assert len(data.train) == 7 and data.train.class_names.tolist() == ["cat", "dog"]
    found = unread(data)
    assert len(found) == 26 and found["bird"] == "is a link to 'dog', which is read under its own name"


def test_links_that_lead_out_are_refused_unless_asked_for(tmp_path: Path) -> None:
    outside = as_folder(tmp_path / "outside", classes("", n=3))
    root = as_folder(tmp_path / "data", classes("", n=3))
    (root / "cow").symlink_to(outside / "cat")
    (root / "cat" / "x.png").symlink_to(outside / "dog" / "1.png")
    (root / "cat" / "y.png").symlink_to(root / "cat" / "1.png")  # within
    with pytest.raises(DataError, match=r"2 samples.*leads out of.*--follow-links"):
        read(root)
    skipped = read(root, test_fraction=0, on_error="skip")
    assert {fault.id for fault in skipped.skipped} == {"cow", "cat/x.png"} and len(skipped.train) == 7
    followed = read(root, test_fraction=0, follow_links=True)
    assert len(followed.train) == 11 and followed.train.class_names.tolist() == ["cat", "cow", "dog"]
    whole = tmp_path / "whole"
    whole.symlink_to(outside)  # the root itself may be one
    assert len(read(whole, test_fraction=0).train) == 6


def test_a_thousand_folders_deep(tmp_path: Path) -> None:
    root = as_folder(tmp_path / "data", classes("", n=2))
    deep = root / "cat"
    for _ in range(1100):
        deep /= "d"
        deep.mkdir()
    (deep / "x.png").write_bytes(picture())
    try:
        assert len(read(root, test_fraction=0).train) == 5
    finally:  # pytest's own cleaning is recursive
        (deep / "x.png").unlink()
        for _ in range(1100):
            deep.rmdir()
            deep = deep.parent


# --- names in archives


def with_member(path: Path, name: str, mode: int = 0) -> Path:
    root = as_zip(path, classes(""))
    member = zipfile.ZipInfo(name)
    member.external_attr = mode << 16
    with zipfile.ZipFile(root, "a") as archive:
        archive.writestr(member, picture())
    return root


def test_links_and_devices_in_archives(tmp_path: Path) -> None:
    root = with_member(tmp_path / "link", "cat/x.png", stat.S_IFLNK | 0o777)
    with pytest.raises(DataError, match=r"cat/x\.png in .* is a symbolic link.*--on-error skip"):
        read(root)
    assert [fault.id for fault in read(root, on_error="skip").skipped] == ["cat/x.png"]
    with pytest.raises(DataError, match="pipe or a device"):
        read(with_member(tmp_path / "pipe", "cat/x.png", stat.S_IFIFO | 0o644))
    assert len(unread(read(with_member(tmp_path / "mac", "__MACOSX/x.png", stat.S_IFLNK | 0o777)))) == 1


def test_members_without_a_name_are_refused(tmp_path: Path) -> None:
    root = with_member(tmp_path / "data", "?")
    out = bytearray(root.read_bytes())
    for signature, offset in ((b"PK\3\4", 26), (b"PK\1\2", 28)):
        at = out.rfind(signature)
        header = 30 if signature == b"PK\3\4" else 46
        struct.pack_into("<HH", out, at + offset, 0, 1)  # the name becomes an extra field that says nothing
        assert out[at + header : at + header + 1] == b"?"
    root.write_bytes(out)
    with pytest.raises(DataError, match="without a name"):
        read(root)
    with pytest.raises(DataError, match="without a name"):
        read(with_member(tmp_path / "dots", "./."))


def renamed(path: Path, old: bytes, new: bytes, *, clear_flag: bool = True) -> Path:
    data = path.read_bytes().replace(old, new)
    out = bytearray(data)
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = data.find(signature)
        while at >= 0 and clear_flag:
            (flags,) = struct.unpack_from("<H", out, at + offset)
            struct.pack_into("<H", out, at + offset, flags & ~0x800)
            at = data.find(signature, at + 4)
    path.write_bytes(out)
    return path


def test_names_in_utf8_without_the_flag(tmp_path: Path) -> None:
    root = renamed(as_zip(tmp_path / "data", classes("", names=("größe", "猫"))), b"", b"")
    data = read(root, test_fraction=0)
    assert data.train.class_names.tolist() == ["größe", "猫"] and "member_names" not in data.notes


def test_names_in_no_known_encoding_are_told_of(tmp_path: Path) -> None:
    root = renamed(as_zip(tmp_path / "data", classes("", names=("grXXn", "dog"))), b"grXXn", b"gr\x81\x81n")
    data = read(root, test_fraction=0)
    assert data.train.class_names.tolist() == ["dog", "grüün"] and data.notes["member_names"].startswith(
        "2 not in UTF-8"
    )


def test_the_extra_field_with_a_name_is_used(tmp_path: Path) -> None:
    root, raw = tmp_path / "data.zip", b"grX/0.png"
    latin = raw.replace(b"X", b"\xfc")
    field = b"\1" + struct.pack("<I", zlib.crc32(latin)) + "größer/0.png".encode()
    name = zipfile.ZipInfo(raw.decode())
    name.extra = struct.pack("<HH", 0x7075, len(field)) + field
    with zipfile.ZipFile(root, "w") as archive:
        for other, data in classes("").items():
            archive.writestr(other, data)
        archive.writestr(name, picture())
    assert read(renamed(root, raw, latin), test_fraction=0).train.class_names.tolist() == ["cat", "dog", "größer"]


@BOTH
def test_two_forms_of_one_name_are_one_class(write: Writer, tmp_path: Path) -> None:
    one, two = unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")
    files = {f"train/{name}/0.png": picture() for name in (one, "dog")}
    files |= {f"test/{name}/0.png": picture() for name in (two, "dog")}
    data = read(write(tmp_path / "data", files))
    assert (
        data.test is not None
        and data.test.labels.tolist() == [0, 1]
        and data.train.class_names.tolist() == ["dog", one]
    )
    tested = read_samples(tmp_path / "data" if write is as_folder else tmp_path / "data.zip",
                          class_names=["dog", two], shape=(3, 8, 8))  # fmt: skip
    assert len(tested) == 2


# --- depth


RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8)


def deep_set(root: Path, image: bytes, suffix: str = "png") -> Path:
    return as_folder(root, {f"{c}/{i}.{suffix}": image for c in ("cat", "dog") for i in range(3)})


@pytest.mark.parametrize(("bits", "kept"), [(8, 8), (10, 10), (12, 12), (14, 14), (15, 16), (16, 16)])
def test_files_of_16_bits_are_scaled_by_the_bits_that_are_used(bits: int, kept: int, tmp_path: Path) -> None:
    top = 2**bits - 1
    values = (RAMP.astype(np.int64) * top // 63).astype(np.uint16)
    for suffix, kind in (("png", "PNG"), ("tif", "TIFF")):
        whole, dark = (encoded(Image.fromarray(part), kind) for part in (values, values // 4))
        data = read(deep_set(tmp_path / suffix, whole, suffix), test_fraction=0)
        assert data.bits == kept and data.train.shape == (1, 8, 8) and "16 bits" in data.notes["pixels"]
        white = 2**kept - 1
        assert abs(data.train.inputs[0, 0] - values * (255 / white)).max() <= 0.5
        other = as_folder(tmp_path / f"dark {suffix}", {f"x.{suffix}": dark})
        inputs, _ = read_inputs(other, shape=(1, 8, 8), bits=data.bits)
        assert abs(inputs[0, 0] - values // 4 * (255 / white)).max() <= 0.5


def png16_rgb(values: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of 16 bits a channel, `(H, W, C)`."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize("channels", [3, 4])
def test_colors_of_16_bits_are_scaled_as_well(channels: int, tmp_path: Path) -> None:
    color = np.stack([RAMP * 64, RAMP * 32, RAMP * 16, np.full((8, 8), 65535, np.uint16)], axis=-1)[..., :channels]
    data = read(deep_set(tmp_path / "data", png16_rgb(color)), test_fraction=0)
    assert data.bits == 12 and data.train.shape == (3, 8, 8)
    expected = np.rint(color[..., :3].astype(float) * 255 / 4095).transpose(2, 0, 1)
    assert abs(data.train.inputs[0] - expected).max() <= 0.5


def test_one_bright_image_among_dim_ones_is_told_of(tmp_path: Path) -> None:
    root = deep_set(tmp_path / "data", png16_rgb((RAMP * 32)[..., None]))
    (root / "cat" / "hot.png").write_bytes(png16_rgb((RAMP * 1040)[..., None]))
    for _ in range(2):  # also from the cache
        assert read(root, test_fraction=0).notes["pixels"].endswith("6 of these 7 use 14 bits at most and become dark")


def test_the_bits_that_a_file_states(tmp_path: Path) -> None:
    values = (RAMP * 8)[..., None]  # at most 504: 9 bits
    stated = read(deep_set(tmp_path / "png", png16_rgb(values, (b"sBIT", b"\x0c"))), test_fraction=0)
    assert stated.bits == 12 and int(stated.train.inputs.max()) == 31
    tagged = {281: 1023}
    tiff = read(
        deep_set(tmp_path / "tif", encoded(Image.fromarray(values[..., 0]), "TIFF", tiffinfo=tagged), "tif"),
        test_fraction=0,
    )
    assert tiff.bits == 10
    one = as_folder(tmp_path / "one", {"x.png": png16_rgb(values, (b"sBIT", b"\x0c"))})
    assert read_inputs(one, shape=(1, 8, 8))[0].max() == 31


def test_other_data_must_fit_the_range_of_the_training(tmp_path: Path) -> None:
    bright = as_folder(tmp_path / "bright", {"x.png": png16_rgb((RAMP * 512)[..., None])})
    with pytest.raises(DataError, match="15 bits, but the training images have 12"):
        read_inputs(bright, shape=(1, 8, 8), bits=12)
    dim = as_folder(tmp_path / "dim", {"x.png": png16_rgb((RAMP * 32)[..., None])})
    with pytest.raises(DataError, match="with an unknown range"):
        read_inputs(dim, shape=(1, 8, 8))


def test_a_cache_in_the_data_is_refused(tmp_path: Path) -> None:
    """It would be one of the classes of the next reading."""
    data = write_folder(pictures(8), tmp_path / "data")
    for cache in (data, data / "class0", data / "new"):
        with pytest.raises(ConfigError, match="lies in the data folder"):
            read(data, cache=cache)
    assert sorted(path.name for path in data.iterdir()) == ["class0", "class1"]
