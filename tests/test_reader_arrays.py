"""Arrays and series: what their types and shapes mean, and one line for each mistake."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from antibackdoor.data.reading import read, read_samples
from antibackdoor.data.series import resample
from antibackdoor.errors import DataError

Y = np.array([3, -1, 3, -1])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def npz(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)
    return path


def counted(shape: tuple[int, ...], dtype: type = np.uint8) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


@pytest.mark.parametrize(
    ("shape", "dtype", "expected", "at"),
    [
        ((4, 6, 5), np.uint8, (1, 6, 5), (1, 0, 0, 2)),
        ((4, 6, 5, 1), np.uint8, (1, 6, 5), (1, 0, 0, 2)),
        ((4, 6, 5, 3), np.uint8, (3, 6, 5), (1, 2, 0, 0)),
        ((4, 3, 6, 5), np.uint8, (3, 6, 5), None),
        ((4, 3, 6, 1), np.uint8, (1, 3, 6), None),  # the last axis decides
        ((4, 2, 9), np.float64, (2, 9), None),
        ((4, 9), np.float32, (1, 9), None),
    ],
)
def test_axes(
    shape: tuple[int, ...], dtype: type, expected: tuple[int, ...], at: tuple[int, ...] | None, tmp_path: Path
) -> None:
    x = counted(shape, dtype)
    data = read(npz(tmp_path / "a.npz", x_train=x, y_train=Y), test_fraction=0)
    assert data.train.shape == expected and data.format == "npz"
    assert data.train.inputs.dtype == (np.uint8 if dtype == np.uint8 else np.float32)
    if at is not None:
        assert data.train.inputs[at] == x[1].reshape(-1)[2]
    assert data.train.class_names.tolist() == ["-1", "3"] and data.train.labels.tolist() == [1, 0, 1, 0]
    assert data.train.ids.tolist() == ["train/0", "train/1", "train/2", "train/3"]


@pytest.mark.parametrize("order", ["C", "F"])
def test_images_of_floats_and_either_order(order: str, tmp_path: Path) -> None:
    x = np.asarray(np.random.default_rng(0).random((4, 6, 5, 3)), order=order)
    data = read(npz(tmp_path / "a.npz", x_train=x, y_train=Y), test_fraction=0)
    assert data.train.kind == "image" and data.train.inputs.dtype == np.float32
    assert np.array_equal(data.train.inputs, x.transpose(0, 3, 1, 2).astype(np.float32))


def test_held_out_rows_of_an_array(tmp_path: Path) -> None:
    x = counted((40, 4, 4))
    x[:, 0, 0] = np.arange(40)
    data = read(npz(tmp_path / "a.npz", x_train=x, y_train=np.arange(40) % 2))
    assert data.test is not None and len(data.train) == 32
    for samples in (data.train, data.test):
        rows = [int(name.removeprefix("train/")) for name in samples.ids]
        assert samples.inputs[:, 0, 0, 0].tolist() == rows and samples.labels.tolist() == [row % 2 for row in rows]


def test_class_names_and_a_test_split(tmp_path: Path) -> None:
    x = counted((2, 1, 5), np.float32)
    path = npz(tmp_path / "a.npz", x_train=x, y_train=[2, 0], x_test=x, y_test=[0, 0], class_names=["z", "y", "x"])
    data = read(path)
    assert data.train.class_names.tolist() == ["z", "y", "x"] and data.train.labels.tolist() == [2, 0]
    assert data.test is not None and data.test.ids.tolist() == ["test/0", "test/1"]
    assert read_samples(path, class_names=["x", "z"], shape=(1, 5)).labels.tolist() == [1, 1]


@pytest.mark.parametrize("labels", [np.array(["b", "a", "b", "a"]), np.array([b"b", b"a", b"b", b"a"])])
def test_labels_that_are_strings(labels: np.ndarray, tmp_path: Path) -> None:
    data = read(npz(tmp_path / "a.npz", x_train=counted((4, 2, 5), np.float32), y_train=labels), test_fraction=0)
    assert data.train.class_names.tolist() == ["a", "b"] and data.train.labels.tolist() == [1, 0, 1, 0]


def test_padding_is_cut_before_resampling(tmp_path: Path) -> None:
    x = np.zeros((2, 1, 5), np.float32)
    x[0, 0, :3] = [0, 2, 4]
    x[1, 0] = [5, 4, 3, 2, 1]
    data = read(npz(tmp_path / "a.npz", x_train=x, y_train=[0, 1], lengths_train=[3, 5]), test_fraction=0)
    assert data.train.inputs[:, 0].tolist() == [[0, 1, 2, 3, 4], [5, 4, 3, 2, 1]]
    assert "3 to 5" in data.notes["series_length"]


SERIES = counted((4, 1, 5), np.float32)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y_train": Y}, "no array 'x_train'"),
        ({"x_train": SERIES}, "no array 'y_train'"),
        ({"x_train": SERIES, "y_train": Y, "x_test": SERIES}, "no array 'y_test'"),
        ({"x_train": SERIES, "y_train": Y[:3]}, "but there are 3 labels"),
        ({"x_train": SERIES[:0], "y_train": Y[:0]}, "no samples"),
        ({"x_train": SERIES, "y_train": np.array([{}, 1, 2, 3], object)}, "Python objects"),
        ({"x_train": SERIES, "y_train": np.eye(4)}, "expected one number or string"),
        ({"x_train": SERIES, "y_train": [0, 1, 2, 1], "class_names": ["a", "b"]}, r"row 2 .* must lie in 0\.\.1"),
        ({"x_train": SERIES, "y_train": [0, 1, 1, 1], "class_names": ["a", "a"]}, "different strings"),
        ({"x_train": SERIES > 2, "y_train": Y}, "is bool of shape"),
        ({"x_train": counted((4, 6, 5, 4)), "y_train": Y}, "is uint8 of shape"),
        ({"x_train": counted((4, 6, 5, 3), np.float32), "y_train": Y}, r"row \d of x_train .* divide by 255"),
        ({"x_train": np.where(SERIES == 12, np.nan, SERIES), "y_train": Y}, "row 2 of x_train .* missing value before"),
        ({"x_train": np.where(SERIES == 12, np.inf, SERIES), "y_train": Y}, "row 2 of x_train .* infinite"),
        ({"x_train": SERIES.astype(float) * 1e300, "y_train": Y}, "infinite value, or one too large"),
        ({"x_train": SERIES, "y_train": Y, "lengths_train": [1, 2, 3, 6]}, "whole numbers from 1 to 5"),
        ({"x_train": SERIES, "y_train": Y, "lengths_train": [0, 2, 3, 5]}, "whole numbers from 1 to 5"),
        ({"x_train": SERIES, "y_train": [7] * 4}, "only one class"),
        ({"x_train": SERIES, "y_train": [1, 2, 2, 2]}, "class '1' has a single sample"),
        ({"x_train": SERIES, "y_train": Y, "x_test": SERIES, "y_test": [9] * 4}, "class '9', which has no training"),
        ({"x_train": SERIES, "y_train": Y, "x_test": counted((4, 2, 5), np.float32), "y_test": Y}, "1 channels.* 2"),
        ({"x_train": SERIES, "y_train": Y, "x_test": counted((4, 5, 5)), "y_test": Y}, "one kind"),
    ],
)
def test_arrays_that_are_refused(arrays: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(npz(tmp_path / "a.npz", **arrays))
    assert "\n" not in str(caught.value)


def test_bad_rows_are_skipped_on_request(tmp_path: Path) -> None:
    x = np.concatenate([SERIES, SERIES])
    x[3, 0, 2] = np.nan
    data = read(npz(tmp_path / "a.npz", x_train=x, y_train=[*Y, *Y]), test_fraction=0, on_error="skip")
    assert [fault.id for fault in data.skipped] == ["train/3"] and "train/3" not in data.train.ids
    assert data.train.labels.tolist() == [1, 0, 1, 1, 0, 1, 0]
    images = np.full((6, 4, 4, 1), 0.5)
    images[2] = 255
    path = npz(tmp_path / "b.npz", x_train=images, y_train=[0, 0, 0, 1, 1, 1])
    data = read(path, test_fraction=0, on_error="skip")
    assert [fault.id for fault in data.skipped] == ["train/2"] and data.train.labels.tolist() == [0, 0, 1, 1, 1]


def test_a_header_that_claims_more_than_there_is(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, SERIES)
    forged = buffer.getvalue().replace(b"(4, 1, 5)", b"(4, 1,99)")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x_train.npy", forged)
    with pytest.raises(DataError, match="size that its header claims"):
        read(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 but not really", b"\x93NUMPY"])
def test_a_file_that_is_no_npz(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match="not a readable zip"):
        read(tmp_path / "a.npz")


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, 1500), value=st.integers(0, 255))
def test_damaged_bytes_give_data_or_one_line(at: int, value: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    (np.savez_compressed if at % 2 else np.savez)(path, x_train=SERIES, y_train=Y)
    data = bytearray(path.read_bytes())
    data[at % len(data)] = value
    path.write_bytes(data)
    try:
        read(path, test_fraction=0)
    except DataError as error:
        assert "\n" not in str(error)


# --- .ts

TS = "# a comment\n@problemName toy\n@timeStamps false\n@univariate false\n@classLabel true a b\n@data\n"


def test_ts_of_unequal_length_with_its_test_file(tmp_path: Path) -> None:
    (tmp_path / "toy_TRAIN.ts").write_text(TS + "0,2,4:1,1,1:a\n\n0,1,2,3,4:5,4,3,2,1:b\n")
    (tmp_path / "toy_TEST.ts").write_text(TS + "7:8:b\n")
    data = read(tmp_path / "toy_TRAIN.ts")
    assert data.train.inputs.tolist() == [[[0, 1, 2, 3, 4], [1] * 5], [[0, 1, 2, 3, 4], [5, 4, 3, 2, 1]]]
    assert data.train.inputs.dtype == np.float32 and data.train.class_names.tolist() == ["a", "b"]
    assert data.test is not None and data.test.inputs.tolist() == [[[7] * 5, [8] * 5]]
    assert data.test.ids.tolist() == ["test/0"] and data.notes["series_length"].startswith("lengths 1 to 5")
    assert read(tmp_path).format == "ts"  # a folder as the archives ship it
    alone = read_samples(tmp_path / "toy_TEST.ts", class_names=["b"], shape=(2, 3))
    assert alone.inputs.tolist() == [[[7] * 3, [8] * 3]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no @data line"),
        ("1,2,3:a\n", "line 1, is before @data"),
        (TS, "no series"),
        (TS + "1,2:3,4:a\n1,?:3,4:b\n", r"line 8, holds a missing value.*--on-error skip"),
        (TS + "1,NaN:3,4:a\n", "line 7, holds a missing value"),
        (TS + "1,x:3,4:a\n", "line 7, holds 'x', which is not a number"),
        (TS + "1,2:3,4:c\n", "line 7, has the class 'c', which @classLabel does not list"),
        (TS + "1,2:3,4:\n", "line 7, has no class"),
        (TS + "1,2:3,4:a\n1,2:a\n", "line 8, has 1 dimensions where others have 2"),
        ("@timeStamps true\n@data\n", "time stamps"),
        ("@targetLabel true\n@data\n", "regression"),
        ("@classLabel false\n@data\n1,2\n", "declares no class labels"),
        (TS + "1,2:3,4:a\n1,2:3,4:a\n", "only one class"),
    ],
)
def test_ts_that_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.ts").write_text(text)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.ts")


def test_lines_of_ts_are_skipped_on_request(tmp_path: Path) -> None:
    (tmp_path / "a.ts").write_text(TS + "1:1:a\n?:1:a\n3:1:b\n")
    data = read(tmp_path / "a.ts", on_error="skip", test_fraction=0)
    assert data.train.ids.tolist() == ["train/0", "train/2"] and [s.id for s in data.skipped] == ["train/1"]


# --- .csv and .tsv


@pytest.mark.parametrize(
    "text",
    [
        "1,0,1,2\n2,5,6,7\n",
        "label,t0,t1,t2\n1,0,1,2\n2,5,6,7\n",
        "label,0,1,2\n1,0,1,2\n2,5,6,7\n",
        "kind,0,1,2\n1,0,1,2\n2,5,6,7\n",
        "kind,1,2,3\n1,0,1,2\n2,5,6,7\n",
        "\ufeff1.0,0,1,2\r\n2.0000000e+00,5,6,7\r\n",
        '"1","0","1","2"\n\n2,5,6,7,,\n',
        "1,0,1,2,NaN\n2,5,6,7,NaN\n",
    ],
)
def test_csv(text: str, tmp_path: Path) -> None:
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(text.replace(",", delimiter).encode())
        data = read(path, test_fraction=0)
        assert data.format == "csv" and data.train.class_names.tolist() == ["1", "2"]
        assert data.train.inputs.tolist() == [[[0, 1, 2]], [[5, 6, 7]]] and data.train.labels.tolist() == [0, 1]


def test_csv_with_text_classes_below_numbered_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("kind,0,1,2\ndog,1,2,3\ncat,3,4,5\n")
    assert read(tmp_path / "a.csv", test_fraction=0).train.class_names.tolist() == ["cat", "dog"]


def test_csv_classes_with_an_underscore_are_no_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1_0,1,2\n10,3,4\n")
    assert read(tmp_path / "a.csv", test_fraction=0).train.class_names.tolist() == ["10", "1_0"]


def test_csv_with_text_classes_has_no_header(tmp_path: Path) -> None:
    (tmp_path / "a_TRAIN.csv").write_text("dog,1,2\ncat,3,4\ncat,5\n")
    (tmp_path / "a_TEST.csv").write_text("cat,5,6\n")
    data = read(tmp_path / "a_TRAIN.csv")
    assert data.train.class_names.tolist() == ["cat", "dog"] and data.train.labels.tolist() == [1, 0, 0]
    assert data.train.inputs[2].tolist() == [[5, 5]]
    assert data.test is not None and data.test.inputs.tolist() == [[[5, 6]]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no series"),
        ("label,t0\n", "no series"),
        ("1,2,3\n2,x,4\n", "line 2, holds 'x'"),
        ("1,2,3\n2,,4\n", "line 2, holds a missing value"),
        ("1,2,3\n2,nan,4\n", "line 2, holds a missing value"),
        ("1,2,3\n2,inf,4\n", "line 2, holds an infinite value"),
        ("1,2,3\n2,,\n", "line 2, has a class but no values"),
        ("1;2;3\n2;4;5\n", "line 1, has a class but no values; the columns must be separated by commas"),
        ("1,2,3\n,2,3\n", "line 2, has no class"),
        ('1,2,3\n2,"4,5\n', "cannot be parsed"),
        ("1,2,3\n1,2,3\n", "only one class"),
    ],
)
def test_csv_that_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.csv")


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    for name in ("a.csv", "a.ts"):
        (tmp_path / name).write_bytes(b"\xff\xfe1")
        with pytest.raises(DataError, match="UTF-8"):
            read(tmp_path / name)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20), st.integers(1, 50))
def test_resampling_keeps_ends_and_range(values: list[float], length: int) -> None:
    series = np.array([values], np.float32)
    out = resample(series, length)
    assert out.shape == (1, length) and out[0, 0] == series[0, 0]
    assert series.min() <= out.min() and out.max() <= series.max()
    if length > 1:
        assert out[0, -1] == series[0, -1]
