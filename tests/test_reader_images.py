"""How single images become pixels, with values worked out by hand; and archives that mean harm."""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from antibackdoor.data.image_files import MAX_FILE_BYTES
from antibackdoor.data.reading import read, read_inputs
from antibackdoor.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def png(value: int = 0, size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def folder_of(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def zip_of(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def pixel(path: Path, image: Image.Image, channels: int = 3, **settings: object) -> list[int]:
    """The first pixel of an image that was saved and read."""
    image.save(path, **settings)
    inputs, _ = read_inputs(path, shape=(channels, image.height, image.width))
    return inputs[0, :, 0, 0].tolist()


def palette_image(colors: list[int]) -> Image.Image:
    image = Image.new("P", (8, 8), 1)
    image.putpalette(colors)
    return image


@pytest.mark.parametrize(
    ("image", "suffix", "rgb", "grey"),
    [
        (Image.new("1", (8, 8), 1), "png", [255] * 3, 255),
        (Image.new("L", (8, 8), 100), "png", [100] * 3, 100),
        (Image.new("RGB", (8, 8), (255, 0, 0)), "png", [255, 0, 0], 76),  # 0.299 x 255
        (palette_image([0, 0, 0, 10, 20, 30]), "png", [10, 20, 30], 18),
        (palette_image([0, 0, 0, 10, 20, 30]), "gif", [10, 20, 30], 18),
        (Image.new("RGBA", (8, 8), (200, 0, 0, 0)), "png", [255] * 3, 255),  # transparent: white
        (Image.new("RGBA", (8, 8), (0, 0, 0, 51)), "png", [204] * 3, 204),  # a fifth of black on white
        (Image.new("LA", (8, 8), (0, 51)), "png", [204] * 3, 204),
        (Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "tif", [0, 255, 255], 179),
        (Image.fromarray(np.full((8, 8), 65535, np.uint16)), "png", [255] * 3, 255),
        (Image.fromarray(np.full((8, 8), 257 * 100, np.uint16)), "png", [100] * 3, 100),
        (Image.fromarray(np.full((8, 8), 257 * 100 + 129, np.uint16)), "tif", [101] * 3, 101),
        (Image.fromarray(np.full((8, 8), 0.5, np.float32)), "tif", [128] * 3, 128),
        (Image.new("RGB", (8, 8), (1, 2, 3)), "bmp", [1, 2, 3], 2),
        (Image.new("RGB", (8, 8), (1, 2, 3)), "ppm", [1, 2, 3], 2),
    ],
)
def test_modes(image: Image.Image, suffix: str, rgb: list[int], grey: int, tmp_path: Path) -> None:
    assert pixel(tmp_path / f"a.{suffix}", image) == rgb
    assert pixel(tmp_path / f"b.{suffix}", image, channels=1) == [grey]


def test_transparency_of_a_palette_and_of_a_color(tmp_path: Path) -> None:
    assert pixel(tmp_path / "p.png", palette_image([0, 0, 0, 10, 20, 30]), transparency=1) == [255, 255, 255]
    assert pixel(tmp_path / "c.png", Image.new("RGB", (8, 8), (9, 9, 9)), transparency=(9, 9, 9)) == [255, 255, 255]


def test_floats_outside_of_the_unit_interval_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"outside of 0\.\.1"):
        pixel(tmp_path / "a.tif", Image.fromarray(np.full((8, 8), 1.5, np.float32)))


def test_orientation_is_applied(tmp_path: Path) -> None:
    upright = Image.new("RGB", (16, 8))
    upright.paste((255, 255, 255), (0, 0, 8, 8))  # the left half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: the left half comes to the top
    for value in range(2):
        for name in ("cat", "dog"):
            path = tmp_path / "data" / name / f"{value}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            upright.save(path, exif=exif)
    data = read(tmp_path / "data", test_fraction=0)
    assert data.train.shape == (3, 16, 8)
    assert data.train.inputs[0, 0, :, 0].tolist() == [255] * 8 + [0] * 8


def test_grey_sets_have_one_channel_and_one_color_makes_three(tmp_path: Path) -> None:
    grey = [Image.new("L", (8, 8), 7), palette_image([0, 0, 0, 9, 9, 9]), Image.new("1", (8, 8), 1)]
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i, image in enumerate(grey):
            image.save(tmp_path / "data" / name / f"{i}.png")
    data = read(tmp_path / "data", test_fraction=0)
    assert data.train.shape == (1, 8, 8) and data.train.inputs[:3, 0, 0, 0].tolist() == [7, 9, 255]
    (tmp_path / "data/dog/x.png").write_bytes(png())
    assert read(tmp_path / "data", test_fraction=0).train.shape == (3, 8, 8)


def of_sizes(root: Path, sizes: list[tuple[int, int]]) -> Path:
    return folder_of(root, {f"{'ab'[i % 2]}/{i}.png": png(50, size) for i, size in enumerate(sizes)})


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(20, 30)] * 4, (30, 20)),  # PIL sizes are (width, height)
        ([(256, 10)] * 4, (10, 256)),
        ([(300, 260)] * 4, (224, 224)),  # shared, but too large to keep
        ([(40, 90), (41, 50), (61, 60), (80, 75)], (48, 48)),  # shorter sides 40, 41, 60, 75: median 50.5
        ([(5, 5), (6, 6), (7, 7), (8, 8)], (16, 16)),
    ],
)
def test_the_common_size(sizes: list[tuple[int, int]], expected: tuple[int, int], tmp_path: Path) -> None:
    data = read(of_sizes(tmp_path / "data", sizes), test_fraction=0)
    assert data.train.shape == (3, *expected) and (data.train.inputs == 50).all()
    assert f"{expected[0]} x {expected[1]}" in data.notes["image_size"]


def test_the_size_asked_for(tmp_path: Path) -> None:
    root = of_sizes(tmp_path / "data", [(20, 30)] * 4)
    assert read(root, image_size=24, test_fraction=0).train.shape == (3, 24, 24)
    assert read(root, image_size=(8, 16), test_fraction=0).train.shape == (3, 8, 16)


def test_resizing_keeps_the_corners(tmp_path: Path) -> None:
    """A trigger in a corner of a wide image must survive; a centre crop would cut it away."""
    image = Image.new("L", (64, 16), 0)
    image.paste(255, (56, 8, 64, 16))
    image.save(tmp_path / "a.png")
    inputs, _ = read_inputs(tmp_path / "a.png", shape=(1, 16, 16))
    assert inputs[0, 0, -4:, -1].min() > 200 and inputs[0, 0, 0, 0] == 0


def test_a_large_jpeg_is_not_decoded_at_full_scale_but_looks_the_same(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 255, 1024).astype(np.uint8), (1024, 1))
    Image.fromarray(ramp).save(tmp_path / "a.jpg", quality=95)
    inputs, _ = read_inputs(tmp_path / "a.jpg", shape=(1, 16, 16))
    expected = np.asarray(Image.fromarray(ramp).resize((16, 16), Image.Resampling.BICUBIC))
    assert np.abs(inputs[0, 0].astype(int) - expected).max() <= 2


# --- files that cannot be read

GOOD = {f"{name}/{i}.png": png(i) for name in ("cat", "dog") for i in range(4)}


def bomb_png() -> bytes:
    """A PNG that declares 60,000 x 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    import zlib

    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png()[33:]


BROKEN = {
    "no image": (b"this is text", "not an image in a supported format"),
    "empty": (b"", r"is empty \(0 bytes\)"),
    "cut off": (png(3, (64, 64))[:60], "cannot be read as an image"),
    "bomb": (bomb_png(), "too large an image"),
}


@pytest.mark.parametrize("as_zip", [False, True])
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_image_is_named_or_skipped(kind: str, as_zip: bool, tmp_path: Path) -> None:
    content, message = BROKEN[kind]
    files = GOOD | {"dog/2.png": content}
    root = zip_of(tmp_path / "data.zip", files) if as_zip else folder_of(tmp_path / "data", files)
    with pytest.raises(DataError, match=rf"^dog/2\.png in .*data.* {message}.*--on-error skip$") as caught:
        read(root, test_fraction=0)
    assert "\n" not in str(caught.value)
    for _ in range(2):  # decoded, and from the cache
        data = read(root, test_fraction=0, on_error="skip")
        assert [fault.id for fault in data.skipped] == ["dog/2.png"]
        assert data.train.ids.tolist() == [name for name in sorted(GOOD) if name != "dog/2.png"]
        assert data.train.inputs[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 0, 1, 3]
        assert data.train.labels.tolist() == [0] * 4 + [1] * 3
    with pytest.raises(DataError, match="--on-error skip"):  # also where the cache knows
        read(root, test_fraction=0)


def test_a_broken_link(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "data", GOOD)
    (root / "dog/9.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"dog/9\.png.*cannot be opened"):
        read(root)


def test_nothing_readable_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of the 2 images"):
        read(folder_of(tmp_path / "data", {"a/1.png": b"x", "b/1.png": b"x"}), test_fraction=0, on_error="skip")
    with pytest.raises(DataError, match="no sample of the class 'b'"):
        read(folder_of(tmp_path / "more", {"a/1.png": png(), "b/1.png": b"x"}), test_fraction=0, on_error="skip")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"readme.txt": b""}, "holds no images"),
        ({"a.png": png(), "b.png": png()}, "outside of class folders"),
        ({"train/a.png": png(), "test/b.png": png()}, "outside of class folders"),
        (GOOD | {"stray.png": png()}, r"outside of class folders \(stray\.png\)"),
        ({"cat/1.png": png(), "cat/2.png": png()}, "only one class"),
        ({"cat/1.png": png(), "dog/1.png": png(), "dog/2.png": png()}, "class 'cat' has a single sample"),
        ({f"test/{name}": data for name, data in GOOD.items()}, "no train split"),
        ({f"{s}/{name}": data for s in ("train", "extra") for name, data in GOOD.items()}, "'extra' lies beside"),
        (
            {f"train/{name}": data for name, data in GOOD.items()} | {"test/cow/1.png": png()},
            "class 'cow', which has no training sample",
        ),
        (GOOD | {"cow/readme.txt": b""}, "class folder .*cow holds no images"),
    ],
)
def test_layouts_that_are_refused(files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(folder_of(tmp_path / "data", files))
    assert "\n" not in str(caught.value)


def test_paths_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data.h5").write_bytes(b"")
    (tmp_path / "data.zip").write_bytes(b"no zip")
    unread = (("nothing", "no file or folder"), ("data.h5", "unknown format"), ("data.zip", "not a readable zip"))
    for name, message in unread:
        with pytest.raises(DataError, match=message):
            read(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_what_is_neither_file_nor_folder_is_not_opened(tmp_path: Path) -> None:
    """A pipe would be waited for forever."""
    os.mkfifo(tmp_path / "data.npz")
    with pytest.raises(DataError, match="unknown format"):
        read(tmp_path / "data.npz")


# --- archives that mean harm


@pytest.mark.parametrize("name", ["../evil.png", "cat/../../evil.png", "/etc/evil.png", "C:/evil.png", "..\\evil.png"])
def test_paths_that_lead_out_of_a_zip(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="points outside"):
        read(zip_of(tmp_path / "data.zip", GOOD | {name: png()}))


def test_links_in_a_zip(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "data.zip", GOOD)
    link = zipfile.ZipInfo("cat/link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="symbolic link"):
        read(path)


def test_encrypted_zip(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "data.zip", GOOD)
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(signature)
        data[at + offset] |= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="encrypted"):
        read(path)


def test_decompression_bombs(tmp_path: Path) -> None:
    path = tmp_path / "data.zip"
    zip_of(path, GOOD | {"cat/zeros.bmp": bytes(80 * 2**20)})
    with pytest.raises(DataError, match="decompression bomb"):
        read(path)
    data = bytearray(zip_of(path, GOOD).read_bytes())
    at = data.rfind(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", MAX_FILE_BYTES + 1)  # what the directory says of one member
    path.write_bytes(data)
    with pytest.raises(DataError, match="unpack"):
        read(path)
    data[at + 24 : at + 28] = struct.pack("<I", 100)
    data[at + 20 : at + 24] = struct.pack("<I", 10**6)
    path.write_bytes(data)
    with pytest.raises(DataError, match="overlap"):
        read(path)


def test_a_name_twice_in_a_zip(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "data.zip", GOOD)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("cat/1.png", png())
    with pytest.raises(DataError, match=r"'cat/1\.png' twice"):
        read(path)


def test_a_member_with_a_wrong_checksum(tmp_path: Path) -> None:
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as archive:  # stored
        for name, content in GOOD.items():
            archive.writestr(name, content)
    data = path.read_bytes()
    path.write_bytes(data.replace(png(3), png(3)[:-1] + b"\0", 1))
    with pytest.raises(DataError, match=r"cat/3\.png.*cannot be read"):
        read(path)


def test_names_from_windows_and_line_breaks(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "data.zip", {"cat\\1.png": png(1), "dog\\1.png": png(2)})
    assert read(path, test_fraction=0).train.ids.tolist() == ["cat/1.png", "dog/1.png"]
    root = folder_of(tmp_path / "data", GOOD | {"dog/evil\nname.png": b"x"})
    with pytest.raises(DataError) as caught:
        read(root)
    assert "\n" not in str(caught.value)
