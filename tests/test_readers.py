"""Reading and writing whole data sets: layouts, splits, the cache, and round trips."""

from __future__ import annotations

import io
import json
import os
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from antibackdoor.data.reading import FORMATS, DataSet, read, read_inputs, read_samples, write
from antibackdoor.data.samples import Samples
from antibackdoor.errors import ConfigError, DataError

DATA = Path(os.environ.get("ANTIBACKDOOR_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def png(value: int | tuple[int, int, int] = 0, size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("L" if isinstance(value, int) else "RGB", size, value).save(buffer, "PNG")
    return buffer.getvalue()


def as_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def as_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def build(kind: str, tmp_path: Path, files: dict[str, bytes]) -> Path:
    return as_folder(tmp_path / "data", files) if kind == "folder" else as_zip(tmp_path / "data.zip", files)


SPLIT = {
    "train/cat/a.png": png((1, 2, 3)),
    "train/cat/b.png": png((4, 5, 6)),
    "train/dog/a.png": png((7, 8, 9)),
    "test/dog/a.png": png((10, 11, 12)),
}


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("wrapper", ["", "wrapped/"])
def test_split_layout(kind: str, wrapper: str, tmp_path: Path) -> None:
    stray = {
        ".DS_Store": b"x",
        "train/cat/Thumbs.db": b"x",
        "__MACOSX/train/cat/._a.png": b"x",
        "readme.txt": b"x",
    }
    data = read(build(kind, tmp_path, {wrapper + name: data for name, data in (SPLIT | stray).items()}))
    assert data.format == kind
    assert data.train.ids.tolist() == ["train/cat/a.png", "train/cat/b.png", "train/dog/a.png"]
    assert data.train.class_names.tolist() == ["cat", "dog"]
    assert data.train.labels.tolist() == [0, 0, 1]
    assert data.train.inputs[:, :, 0, 0].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert data.train.inputs.dtype == np.uint8 and data.train.shape == (3, 8, 8)
    assert isinstance(data.train.inputs, np.memmap)
    assert data.test is not None and data.test.ids.tolist() == ["test/dog/a.png"]
    assert data.test.labels.tolist() == [1] and data.test.inputs[0, :, 0, 0].tolist() == [10, 11, 12]
    assert data.notes["test"] == "given" and data.skipped == ()


@pytest.mark.parametrize("name", ["val", "valid", "Validation", "testing"])
def test_names_of_the_test_split(name: str, tmp_path: Path) -> None:
    files = {key.replace("test/", f"{name}/"): data for key, data in SPLIT.items()}
    data = read(as_folder(tmp_path / "data", files))
    assert data.test is not None and data.test.ids.tolist() == [f"{name}/dog/a.png"]


def test_val_beside_test_is_noted(tmp_path: Path) -> None:
    data = read(as_folder(tmp_path / "data", SPLIT | {"val/cat/a.png": png((0, 0, 0))}))
    assert data.test is not None and data.test.ids.tolist() == ["test/dog/a.png"]
    assert data.notes["left_out"] == "val"


def test_classes_called_like_splits_are_classes_where_images_lie_in_them(tmp_path: Path) -> None:
    files = {f"{name}/{i}.png": png(i) for name in ("car", "train") for i in range(3)}
    assert read(as_folder(tmp_path / "data", files)).train.class_names.tolist() == ["car", "train"]


def test_numbered_classes_are_in_order_of_value(tmp_path: Path) -> None:
    files = {f"{name}/{i}.png": png(i) for name in ("10", "9", "00002") for i in range(3)}
    assert read(as_folder(tmp_path / "data", files)).train.class_names.tolist() == ["00002", "9", "10"]


def test_nested_folders_belong_to_their_class(tmp_path: Path) -> None:
    files = {f"{name}/session/{i}.png": png(i) for name in ("cat", "dog") for i in range(3)}
    data = read(as_folder(tmp_path / "data", files), test_fraction=0)
    assert data.train.ids[0] == "cat/session/0.png" and data.train.n_classes == 2


def test_links_to_classes_are_followed_if_asked_for_but_not_in_circles(tmp_path: Path) -> None:
    outside = as_folder(tmp_path / "outside", {f"{i}.png": png(i) for i in range(3)})
    root = as_folder(tmp_path / "data", {f"dog/{i}.png": png(i) for i in range(3)})
    (root / "cat").symlink_to(outside)
    (root / "dog" / "again").symlink_to(root)
    with pytest.raises(DataError, match=r"cat is a link that leads out.*--follow-links"):
        read(root, test_fraction=0)
    data = read(root, test_fraction=0, follow_links=True)
    assert [(file.id, file.reason) for file in data.unread] == [
        ("dog/again", "is a link to the whole folder, which is read under its own name")
    ]
    assert data.train.ids.tolist() == [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(3)]


def many(n: int = 10) -> dict[str, bytes]:
    return {f"{name}/{i:03d}.png": png(i) for name in ("cat", "dog") for i in range(n)}


def test_hold_out_is_stratified_and_follows_the_seed(tmp_path: Path) -> None:
    root = as_folder(tmp_path / "data", many())
    first, again, other = read(root, seed=1), read(root, seed=1), read(root, seed=2)
    assert first.test is not None and again.test is not None and other.test is not None
    assert np.bincount(first.train.labels).tolist() == [8, 8] and np.bincount(first.test.labels).tolist() == [
        2,
        2,
    ]
    assert first.test.ids.tolist() == again.test.ids.tolist() != other.test.ids.tolist()
    assert sorted([*first.train.ids.tolist(), *first.test.ids.tolist()]) == sorted(many())
    values = {name: int(name[4:7]) for name in many()}
    assert first.test.inputs[:, 0, 0, 0].tolist() == [values[i] for i in first.test.ids.tolist()]
    assert first.notes["test"] == "held out 20%"


def test_hold_out_leaves_a_sample_of_each_class_on_both_sides(tmp_path: Path) -> None:
    for fraction in (0.01, 0.99):
        data = read(as_folder(tmp_path / "data", many(3)), test_fraction=fraction)
        assert data.test is not None
        assert set(data.train.labels.tolist()) == set(data.test.labels.tolist()) == {0, 1}


def test_without_a_test_split_on_request(tmp_path: Path) -> None:
    data = read(as_folder(tmp_path / "data", many(1)), test_fraction=0)
    assert data.test is None and len(data.train) == 2 and data.notes["test"] == "none"


def test_another_path_for_the_test_samples(tmp_path: Path) -> None:
    root = as_folder(tmp_path / "data", many(3))
    other = as_zip(tmp_path / "other.zip", {"dog/x.png": png(77), "cat/x.png": png(66)})
    data = read(root, test=other)
    assert len(data.train) == 6 and data.test is not None
    assert data.test.labels.tolist() == [0, 1] and data.test.inputs[:, 0, 0, 0].tolist() == [66, 77]


def test_progress_is_shown_on_a_terminal_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = as_folder(tmp_path / "data", many(2))
    read(root)
    read(root, progress=True, image_size=24)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    read(root, progress=True, image_size=16)
    out, err = capsys.readouterr()
    assert out == "" and "Decoding images" in err


# --- the cache


def test_the_second_read_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = as_zip(tmp_path / "data.zip", SPLIT)
    first = read(root)

    def explode(*args: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr("antibackdoor.data.image_files.decode", explode)
    monkeypatch.setattr("antibackdoor.data.image_files.look_at", explode)
    assert (read(root).train.inputs == first.train.inputs).all()


def test_a_changed_image_is_decoded_again(tmp_path: Path) -> None:
    root = as_folder(tmp_path / "data", SPLIT)
    read(root)
    changed = root / "train/cat/a.png"
    changed.write_bytes(png((99, 99, 99)))
    os.utime(changed, ns=(1, 1))
    assert read(root).train.inputs[0, 0, 0, 0] == 99


@pytest.mark.parametrize("damage", ["truncate", "delete", "index", "rows"])
def test_a_damaged_cache_is_built_anew(damage: str, tmp_path: Path) -> None:
    root, cache = as_folder(tmp_path / "data", SPLIT), tmp_path / "elsewhere"
    expected = np.array(read(root, cache=cache).train.inputs)
    for entry in cache.glob("images-*"):
        inputs = entry / "inputs.npy"
        if damage == "truncate":
            inputs.write_bytes(inputs.read_bytes()[:-1])
        elif damage == "delete":
            inputs.unlink()
        elif damage == "index":
            (entry / "index.json").write_text('{"skipped": [')
        else:
            np.save(entry / "rows.npy", np.arange(2))
    for survey in cache.glob("survey-*"):
        survey.write_text(json.dumps({"sizes": "nonsense"}))
    assert (read(root, cache=cache).train.inputs == expected).all()


def test_nothing_half_written_is_left_after_an_error(tmp_path: Path) -> None:
    root, cache = as_folder(tmp_path / "data", SPLIT | {"train/dog/b.png": b"broken"}), tmp_path / "cache"
    with pytest.raises(DataError):
        read(root, cache=cache)
    assert [path.name for path in cache.iterdir() if path.name.startswith(".")] == []
    assert [path.name for path in cache.glob("images-*") if not (path / "index.json").is_file()] == []


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="--cache"):
        read(as_folder(tmp_path / "data", SPLIT), cache=tmp_path / "file" / "cache")


def test_memory_is_bounded_when_reading_and_writing(tmp_path: Path) -> None:
    n, side = 2000, 96
    inputs = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 3, side, side))
    labels = np.arange(n, dtype=np.int64) % 2
    ids = np.arange(n).astype(np.str_)
    samples = Samples(inputs, labels, ids, np.array(["a", "b"]))
    tracemalloc.start()
    try:
        path = write(tmp_path / "big.npz", samples, format="npz").path
        data = read(path, test_fraction=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert data.train.inputs.nbytes > 52e6 and peak < 25e6
    assert (data.train.inputs[:, 2, -1, -1] == np.arange(n, dtype=np.uint8)).all()


# --- samples for a trained model


def test_read_samples_maps_classes_and_resizes(tmp_path: Path) -> None:
    root = as_folder(tmp_path / "data", SPLIT)
    names = ["wolf", "dog", "cat"]
    test = read_samples(root, class_names=names, shape=(1, 16, 16))
    assert test.ids.tolist() == ["test/dog/a.png"] and test.labels.tolist() == [1]
    assert test.shape == (1, 16, 16) and test.class_names.tolist() == names
    train = read_samples(root, class_names=names, shape=(3, 8, 8), split="train")
    assert train.labels.tolist() == [2, 2, 1]
    everything = read_samples(root, class_names=names, shape=(3, 8, 8), split="all")
    assert everything.ids.tolist() == [*train.ids.tolist(), "test/dog/a.png"]
    assert everything.inputs[:, 0, 0, 0].tolist() == [1, 4, 7, 10]
    with pytest.raises(DataError, match=r"'cat'.*not among"):
        read_samples(root, class_names=["dog", "wolf"], shape=(3, 8, 8), split="all")
    with pytest.raises(DataError, match="model takes series"):
        read_samples(root, class_names=names, shape=(1, 100))


def test_read_samples_takes_data_without_splits_as_a_whole(tmp_path: Path) -> None:
    root = as_zip(tmp_path / "data.zip", {"dog/0.png": png(5)})
    assert read_samples(root, class_names=["cat", "dog"], shape=(1, 8, 8)).labels.tolist() == [1]


def test_read_inputs_needs_no_classes(tmp_path: Path) -> None:
    root = as_folder(tmp_path / "data", {"b.png": png(2), "deep/er/a.png": png(1), "note.txt": b""})
    inputs, ids = read_inputs(root, shape=(3, 4, 4))
    assert ids.tolist() == ["b.png", "deep/er/a.png"] and inputs.shape == (2, 3, 4, 4)
    assert inputs[:, 0, 0, 0].tolist() == [2, 1]
    one, name = read_inputs(root / "b.png", shape=(1, 8, 8))
    assert name.tolist() == ["b.png"] and one[0, 0, 0, 0] == 2
    with pytest.raises(DataError, match="no images"):
        read_inputs(as_folder(tmp_path / "none", {"a.txt": b""}), shape=(1, 8, 8))


def test_read_inputs_warns_of_what_it_leaves_out(tmp_path: Path) -> None:
    root = as_folder(tmp_path / "data", {"a.png": png(2), "b.png": b"broken"})
    with pytest.warns(UserWarning, match=r"1 unreadable.*b\.png"):
        _, ids = read_inputs(root, shape=(1, 8, 8), on_error="skip")
    assert ids.tolist() == ["a.png"]


def test_read_inputs_of_series(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 2, 5), np.float32))
    (tmp_path / "a.ts").write_text("@classLabel false\n@data\n1,2,3:4,5,6\n")
    (tmp_path / "a.csv").write_text("7,1,2,3\n")
    assert read_inputs(tmp_path / "a.npz", shape=(2, 9))[0].shape == (3, 2, 9)
    assert read_inputs(tmp_path / "a.ts", shape=(2, 5))[0][0, 1].tolist() == [4, 4.5, 5, 5.5, 6]
    assert read_inputs(tmp_path / "a.csv", shape=(1, 3))[0].tolist() == [[[1, 2, 3]]]
    with pytest.raises(DataError, match="2 channels, but the model takes 3"):
        read_inputs(tmp_path / "a.ts", shape=(3, 5))


# --- writing


def same(a: Samples, ids: np.ndarray, b: Samples) -> None:
    """`b`, found by the ids that `write` gave back, equals `a`."""
    at = {name: row for row, name in enumerate(b.ids.tolist())}
    rows = np.array([at[name] for name in ids.tolist()])
    assert sorted(rows.tolist()) == list(range(len(a)))
    assert a.inputs.dtype == b.inputs.dtype and (b.inputs[rows] == a.inputs).all()
    assert (b.class_names[b.labels[rows]] == a.class_names[a.labels]).all()


SUFFIX = {
    "folder": "", "zip": ".zip", "npz": ".npz", "ts": ".ts", "csv": ".tsv",
    "parquet": ".parquet", "huggingface": "", "webdataset": ".tar", "labels-csv": "",
}  # fmt: skip


@st.composite
def data_sets(draw: st.DrawFn, image: bool, max_channels: int = 3) -> tuple[Samples, Samples | None]:
    n_classes = draw(st.integers(2, 4))
    channels = draw(st.sampled_from([1, 3] if image else range(1, max_channels + 1)))
    shape = (channels, *draw(st.tuples(st.integers(2, 9), st.integers(2, 9)))) if image else (channels, 5)
    name = st.text("abcXZ_-é", min_size=1, max_size=5)
    names = draw(st.lists(name, min_size=n_classes, max_size=n_classes, unique=True))
    seed = draw(st.integers(0, 2**32 - 1))
    splits = []
    for split in ("train", "test")[: draw(st.integers(1, 2))]:
        n = draw(st.integers(n_classes, 8))
        rng = np.random.default_rng([seed, len(split)])
        labels = rng.permutation(np.concatenate([np.arange(n_classes), rng.integers(0, n_classes, n - n_classes)]))
        inputs = (
            rng.integers(0, 256, (n, *shape), np.uint8) if image else rng.normal(size=(n, *shape)).astype(np.float32)
        )
        was = rng.integers(0, n_classes, n)  # classes before relabelling: names of files collide
        ids = [f"{split}/{sorted(names)[k]}/{i // 2}.{'jpg' if i % 2 else 'png'}" for i, k in enumerate(was)]
        splits.append(Samples(inputs, labels.astype(np.int64), np.array(ids), np.array(sorted(names))))
    return splits[0], splits[1] if len(splits) == 2 else None


@pytest.mark.parametrize("format", list(FORMATS))
def test_round_trip(format: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    image = format in ("folder", "zip", "npz", "parquet", "webdataset", "labels-csv")

    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data_sets(image, 1 if format == "csv" else 3))
    def check(pair: tuple[Samples, Samples | None]) -> None:
        folder = tmp_path_factory.mktemp("round")
        train, test = pair
        written = write(folder / f"data{SUFFIX[format]}", train, test, format=format)
        back = read(written.path, test_fraction=0, cache=folder / "cache")
        assert back.format == format and (back.test is None) == (test is None)
        same(train, written.train_ids, back.train)
        if test is not None and back.test is not None and written.test_ids is not None:
            same(test, written.test_ids, back.test)
        # What was read is in the order of reading, so from here on ids and order are stable.
        again = write(folder / f"again{SUFFIX[format]}", back.train, back.test, format=format)
        assert again.train_ids.tolist() == back.train.ids.tolist()
        assert read(again.path, test_fraction=0, cache=folder / "cache").train.ids.tolist() == back.train.ids.tolist()

    check()


def test_series_round_trip_as_arrays(tmp_path: Path) -> None:
    train = Samples(
        np.random.default_rng(0).normal(size=(4, 2, 7)).astype(np.float32),
        np.array([1, 0, 1, 0]),
        np.array(list("abcd")),
        np.array(["x", "y"]),
    )
    written = write(tmp_path / "a.npz", train, format="npz")
    back = read(written.path, test_fraction=0)
    same(train, written.train_ids, back.train)
    assert back.train.ids.tolist() == ["train/0", "train/1", "train/2", "train/3"]


def test_a_relabelled_sample_moves_and_leaves_its_namesake_alone(tmp_path: Path) -> None:
    data = read(as_folder(tmp_path / "data", SPLIT))
    relabelled = data.train.relabel(np.array([1, 0, 1]))  # cat/a becomes a dog, where there is an a already
    written = write(tmp_path / "out", relabelled, data.test, format="folder")
    assert written.train_ids.tolist() == ["train/dog/a-0.png", "train/cat/b.png", "train/dog/a.png"]
    assert written.test_ids is not None and written.test_ids.tolist() == ["test/dog/a.png"]
    same(relabelled, written.train_ids, read(tmp_path / "out").train)


def test_same_samples_same_bytes(tmp_path: Path) -> None:
    data = read(as_folder(tmp_path / "data", SPLIT))
    for format in ("zip", "npz"):
        files = [write(tmp_path / f"{i}.{format}", data.train, data.test, format=format).path for i in (1, 2)]
        assert files[0].read_bytes() == files[1].read_bytes()


def images(names: list[str], labels: list[int], dtype: type = np.uint8) -> Samples:
    n = len(labels)
    return Samples(np.zeros((n, 3, 4, 4), dtype), np.array(labels), np.arange(n).astype(np.str_), np.array(names))


def series(names: list[str], labels: list[int], channels: int = 1) -> Samples:
    n = len(labels)
    inputs = np.zeros((n, channels, 4), np.float32)
    return Samples(inputs, np.array(labels), np.arange(n).astype(np.str_), np.array(names))


@pytest.mark.parametrize(
    ("format", "samples", "message"),
    [
        ("folder", images(["a/b", "c"], [0, 1]), "cannot be the name of a folder"),
        ("folder", images(["..", "c"], [0, 1]), "cannot be the name of a folder"),
        ("zip", images(["train", "c"], [0, 1]), "taken for a split"),
        ("zip", images(["a", "b"], [0, 0]), "no sample left"),
        ("zip", images(["a", "b"], [0, 1], np.float32), "lose precision"),
        ("folder", series(["a", "b"], [0, 1]), "series cannot be written as images"),
        ("ts", images(["a", "b"], [0, 1]), "images cannot be written"),
        ("ts", series(["a b", "b"], [0, 1]), "cannot be written to .ts"),
        ("csv", series(["a", "b"], [0, 1], 2), "cannot be written to .csv"),
        ("csv", series(["1.0", "2"], [0, 1]), "cannot be written to .csv"),
        ("csv", series(["label", "b"], [0, 1]), "cannot be written to .csv"),
        ("csv", series(["a", "b"], [0, 0]), "no sample left"),
    ],
)
def test_what_a_format_cannot_hold(format: str, samples: Samples, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        write(tmp_path / f"out{SUFFIX[format]}", samples, format=format)
    assert list(tmp_path.glob("*out*")) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    for format, suffix in SUFFIX.items():
        samples = series(["a", "b"], [0, 1]) if format in ("ts", "csv") else images(["a", "b"], [0, 1])
        write(tmp_path / f"{format}{suffix}", samples, format=format)
        with pytest.raises(DataError, match="exists already"):
            write(tmp_path / f"{format}{suffix}", samples, format=format)


def test_settings_out_of_range(tmp_path: Path) -> None:
    root = as_folder(tmp_path / "data", SPLIT)
    for call in (
        lambda: read(root, test_fraction=1.0),
        lambda: read(root, test_fraction=-0.1),
        lambda: read(root, image_size=4),
        lambda: read(root, image_size=(32, 5000)),
        lambda: write(tmp_path / "x", images(["a", "b"], [0, 1]), format="hdf5"),
        lambda: write(tmp_path / "x.png", images(["a", "b"], [0, 1]), format="zip"),
    ):
        with pytest.raises(ConfigError):
            call()


# --- the real data


def real(name: str) -> DataSet:
    if not (DATA / name).is_file():
        pytest.skip(f"{name} is not in the folder named by ANTIBACKDOOR_DATA")
    return read(DATA / name)


def test_real_ecg() -> None:
    data = real("ecg5000.npz")
    assert data.test is not None and data.train.shape == (1, 140) and data.test.inputs.dtype == np.float32
    assert np.bincount(data.train.labels).tolist() == [292, 177, 10, 19, 2]
    assert np.bincount(data.test.labels).tolist() == [2627, 1590, 86, 175, 22]


def test_real_padded_series_are_stretched_from_their_true_length() -> None:
    data = real("arabicdigits.npz")
    with np.load(DATA / "arabicdigits.npz") as raw:
        first, length = raw["x_train"][0], int(raw["lengths_train"][0])
    assert data.train.shape == (13, 93) and (data.train.inputs[0, :, -1] == first[:, length - 1]).all()
    assert "4 to 93" in data.notes["series_length"]


def test_real_images_by_name() -> None:
    """A few members of the real archive, so that the suite stays fast."""
    if not (DATA / "cifar10.zip").is_file():
        pytest.skip("cifar10.zip is not in the folder named by ANTIBACKDOOR_DATA")
    buffer = io.BytesIO()
    with zipfile.ZipFile(DATA / "cifar10.zip") as whole, zipfile.ZipFile(buffer, "w") as part:
        for name in ("train/cat/0000.jpg", "train/dog/0000.jpg", "test/cat/0000.jpg"):
            part.writestr(name, whole.read(name))
        expected = np.asarray(Image.open(io.BytesIO(whole.read("train/dog/0000.jpg"))))
    path = Path(os.environ["XDG_CACHE_HOME"]).parent / "part.zip"
    path.write_bytes(buffer.getvalue())
    data = read(path)
    assert (data.train.inputs[1] == expected.transpose(2, 0, 1)).all()
    assert data.test is not None and data.test.class_names[data.test.labels[0]] == "cat"
