"""Tables of images, saved data sets, shards, a folder with a table of labels: what they hold, and what is refused."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import pictures, waves
from PIL import Image

from antibackdoor.data.reading import read, read_inputs, write
from antibackdoor.data.samples import Samples
from antibackdoor.errors import DataError

CASES = [("parquet", ".parquet"), ("huggingface", ""), ("webdataset", ".tar"), ("labels-csv", "")]


@pytest.mark.parametrize(("format", "suffix"), CASES)
@pytest.mark.parametrize("kind", ["image", "series"])
@pytest.mark.parametrize("with_test", [True, False])
def test_what_is_written_is_read_again(format: str, suffix: str, kind: str, with_test: bool, tmp_path: Path) -> None:
    if format == "labels-csv" and kind == "series":
        pytest.skip("images only")
    make = pictures if kind == "image" else waves
    train, test = make(20, 3), make(6, 3, seed=1) if with_test else None
    written = write(tmp_path / f"data{suffix}", train, test, format=format)
    back = read(written.path, test_fraction=0, cache=tmp_path / "cache")
    assert back.format == format and (back.test is None) != with_test
    rows = [back.train.ids.tolist().index(name) for name in written.train_ids.tolist()]
    assert (back.train.inputs[rows] == train.inputs).all()
    assert (back.train.class_names[back.train.labels[rows]] == train.class_names[train.labels]).all()
    inputs, ids = read_inputs(written.path, shape=train.shape, cache=tmp_path / "cache")
    assert inputs.shape[1:] == train.shape and len(ids) in (20, 26, 6)


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (9, 9, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def flat_folder(folder: Path, table: str, names: list[str]) -> Path:
    folder.mkdir()
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(seed))
    (folder / "labels.csv").write_text(table)
    return folder


@pytest.mark.parametrize(
    ("table", "names"),
    [
        ("file,label\na.png,x\nb.png,y\nc.png,x\nd.png,y\n", ["a.png", "b.png", "c.png", "d.png"]),
        ("id,breed\na,x\nb,y\nc,x\nd,y\n", ["images/a.png", "images/b.png", "images/c.png", "images/d.png"]),
        ("filename,width,class\na.png,9,x\nb.png,9,y\nc.png,9,x\nd.png,9,y\n", ["a.png", "b.png", "c.png", "d.png"]),
    ],
)
def test_a_flat_folder_with_a_table_of_labels(table: str, names: list[str], tmp_path: Path) -> None:
    data = read(flat_folder(tmp_path / "flat", table, [*names, "more.png"]), test_fraction=0, cache=tmp_path / "cache")
    assert data.format == "labels-csv" and data.train.ids.tolist() == names
    assert data.train.class_names[data.train.labels].tolist() == ["x", "y", "x", "y"]
    assert [file.id for file in data.unread] == ["more.png"] and "labels.csv: files in" in data.notes["labels"]


def test_a_column_splits_a_flat_folder_and_missing_files_are_told(tmp_path: Path) -> None:
    table = "file,label,split\na.png,x,train\nb.png,y,train\nc.png,x,test\nd.png,y,val\ngone.png,y,train\n"
    folder = flat_folder(tmp_path / "flat", table, ["a.png", "b.png", "c.png", "d.png"])
    with pytest.raises(DataError, match=r"labels.csv, row 6, names 'gone.png', which is not an image in"):
        read(folder, cache=tmp_path / "cache")
    data = read(folder, on_error="skip", cache=tmp_path / "cache")
    assert data.train.ids.tolist() == ["a.png", "b.png"] and data.test is not None
    assert data.test.ids.tolist() == ["c.png"] and [skipped.id for skipped in data.skipped] == ["gone.png"]


def test_class_folders_stay_class_folders_beside_other_tables(tmp_path: Path) -> None:
    for seed, name in enumerate(("x/a.png", "x/b.png", "y/a.png", "y/b.png")):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(png(seed))
    (tmp_path / "data" / "metadata.csv").write_text("key,value\nlicense,free\n")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "data" / "notes.parquet")
    assert read(tmp_path / "data", cache=tmp_path / "cache").format == "folder"


def image_table(labels: Any, **more: Any) -> pa.Table:
    cells = [{"bytes": png(seed), "path": None} for seed in range(len(labels))]
    return pa.table({"image": pa.array(cells), **more, "label": labels})


def test_shards_of_parquet_as_the_hub_keeps_them(tmp_path: Path) -> None:
    (tmp_path / "hub" / "data").mkdir(parents=True)
    (tmp_path / "hub" / "README.md").write_text("about")
    for place, name in enumerate(("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001")):
        table = image_table(["a", "b", "a"], place=[place] * 3)
        pq.write_table(table, tmp_path / "hub" / "data" / f"{name}.parquet", row_group_size=2)
    data = read(tmp_path / "hub", cache=tmp_path / "cache")
    assert data.format == "parquet" and len(data.train) == 6 and data.test is not None and len(data.test) == 3
    assert (data.train.inputs[:3] == data.train.inputs[3:]).all() and "left out 'place'" in data.notes["table"]


def test_series_in_columns_or_lists_and_named_columns(tmp_path: Path) -> None:
    columns: dict[str, Any] = {f"t{step}": [0.5 * step, 1.0, None, 2.0][:4] for step in range(5)}
    pq.write_table(pa.table({**columns, "y": [3, 4, 3, 4]}), tmp_path / "wide.parquet")
    with pytest.raises(DataError, match="no value at all"):
        read(tmp_path / "wide.parquet", test_fraction=0)
    data = read(tmp_path / "wide.parquet", test_fraction=0, on_error="skip")
    assert data.train.shape == (1, 5) and data.train.class_names.tolist() == ["3", "4"] and len(data.train) == 3
    lists = {"v": [[0.0, 1.0, 2.0], [1.0, 0.0]] * 2, "kind": list("abab"), "who": list("wxyz")}
    pq.write_table(pa.table(lists), tmp_path / "lists.parquet")
    with pytest.raises(DataError, match=r"no class column \('v', 'kind', 'who'\): say which one with --label"):
        read(tmp_path / "lists.parquet")
    data = read(tmp_path / "lists.parquet", label_column="kind", id_column="who", test_fraction=0)
    assert data.train.ids.tolist() == list("wxyz") and data.train.shape == (1, 3)


def shard(path: Path, members: dict[str, bytes], *links: str) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(member)
    return path


def test_shards_of_webdataset(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for number in range(2):
        members: dict[str, bytes] = {}
        for row in range(3):
            members |= {f"{row:03d}.png": png(row), f"{row:03d}.cls": str(row % 2).encode()}
        shard(tmp_path / "shards" / f"train-{number:06d}.tar", members, "003.png")
    labelled = {"a.png": png(0), "a.json": b'{"label": 1, "who": "me"}', "b.png": png(1), "b.json": b'{"label": 0}'}
    shard(tmp_path / "shards" / "test-000000.tar", labelled)
    data = read(tmp_path / "shards", cache=tmp_path / "cache")
    assert data.train.ids.tolist()[3] == "train-000001/000.png" and data.train.class_names.tolist() == ["0", "1"]
    assert data.test is not None and data.test.labels.tolist() == [1, 0]
    shard(tmp_path / "bare.tar", {"a.png": png(0), "b.png": png(1), "b.cls": b"1"})
    with pytest.raises(DataError, match=r"a.png in .*bare.tar has no class next to it"):
        read(tmp_path / "bare.tar", cache=tmp_path / "cache")


@pytest.mark.parametrize("place", ["../secret.png", "/etc/passwd", "a/../../b.png"])
def test_nothing_outside_of_the_data_is_opened(place: str, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(0))
    (tmp_path / "data").mkdir()
    cells = pa.array([{"bytes": None, "path": place}, *({"bytes": png(1), "path": None} for _ in range(3))])
    pq.write_table(pa.table({"image": cells, "label": list("abab")}), tmp_path / "data" / "x.parquet")
    with pytest.raises(DataError, match="only a path that leads out of the data"):
        read(tmp_path / "data" / "x.parquet", cache=tmp_path / "cache")
    saved = write(tmp_path / "saved", pictures(8), None, format="huggingface").path
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": place}]}))
    with pytest.raises(DataError, match="names files outside of its folder"):
        read(saved, cache=tmp_path / "cache")


@pytest.mark.parametrize(("format", "suffix"), CASES)
def test_damage_is_one_line(format: str, suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"data{suffix}", pictures(8), None, format=format).path
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.suffix in (".arrow", ".csv"))
    for file in files:
        content = file.read_bytes()
        for damaged in (b"", content[: len(content) // 2], content[::-1]):
            file.write_bytes(damaged)
            with pytest.raises(DataError) as caught:
                read(path, cache=tmp_path / "cache")
            assert "\n" not in str(caught.value)


def test_floats_are_not_squeezed_into_bytes(tmp_path: Path) -> None:
    images = pictures(8)
    floats = Samples((images.inputs / 255).astype(np.float32), images.labels, images.ids, images.class_names)
    for format, suffix in CASES:
        with pytest.raises(DataError, match="floats would lose precision"):
            write(tmp_path / f"{format}{suffix}", floats, None, format=format)
