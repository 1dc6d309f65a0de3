"""What a user may say of tables, arrays and gaps, what is found without it, and what is refused without it."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from antibackdoor.data.options import ReadOptions, known_options
from antibackdoor.data.reading import read, read_inputs, read_samples, write
from antibackdoor.data.samples import Samples
from antibackdoor.data.shapes import TrainedOn
from antibackdoor.errors import ConfigError, DataError

N, T = 24, 6
Y = np.arange(N) % 2
# Few values, as of a converter: neither is the first a class, nor is the last less than one.
X = np.round(np.random.default_rng(0).normal(5 + 3 * Y[:, None], 2, (N, T))).astype(int)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def table(path: Path, *columns: object, titles: str = "") -> Path:
    rows = zip(*[column if isinstance(column, list) else list(column) for column in columns], strict=True)  # type: ignore[call-overload]
    path.write_text((titles + "\n" if titles else "") + "".join(",".join(map(str, row)) + "\n" for row in rows))
    return path


def steps(first: int = 0) -> str:
    return ",".join(f"t{k}" for k in range(first, first + T))


WORDS = [["no", "yes"][label] for label in Y]
IDS = [f"p{row // 2}" for row in range(N)]


@pytest.mark.parametrize(
    ("titles", "columns", "note"),
    [
        (f"{steps()},label", [*X.T, Y], "class in 'label'"),
        (f"{steps()},Class", [*X.T, Y], "class in 'Class'"),
        (f"id,label,{steps()}", [IDS, Y, *X.T], "left out 'id'"),
        (f",label,{steps()}", [range(N), Y, *X.T], "left out ''"),
        (f"{steps()},state", [*X.T, Y], "class in 'state'"),  # the one title unlike the others
        (f"{steps()},state", [*X.T, WORDS], "class in 'state'"),
        ("", [*X.T, WORDS], "class in column 7"),  # the one column of words
        (",".join(map(str, range(T + 1))), [Y, *X.T], "class in '0'"),  # as pandas numbers columns
        ("", [WORDS, *X.T], ""),
        ("", [Y, *X.T], ""),
    ],
)
def test_the_class_is_found(titles: str, columns: list[object], note: str, tmp_path: Path) -> None:
    data = read(table(tmp_path / "a.csv", *columns, titles=titles), test_fraction=0)
    assert data.train.labels.tolist() == Y.tolist() and np.array_equal(data.train.inputs[:, 0], X)
    assert note in data.notes.get("table", "") and bool(note) == ("table" in data.notes)


@pytest.mark.parametrize(
    ("titles", "columns", "message"),
    [
        ("", [*X.T, Y], "the last only 2, so the last may be the class.*--label-column"),
        ("", [*(X + 0.5).T, Y], "different numbers, unlike a class.*--label-column"),
        ("", [range(N), *X.T], "different numbers, unlike a class.*--label-column"),
        (f"{steps()}", [*X.T], "has no column called 'label'.*--label-column"),
        (f"class,target,{steps()}", [Y, Y, *X.T], "several columns that may be the class"),
        ("", [WORDS, *X.T, IDS], "2 columns of words"),
        (f"label,age,{steps()}", [Y, Y + 40, *X.T], "do not seem to be values of the series.*'age'.*--id-column"),
    ],
)
def test_a_table_that_can_be_read_in_two_ways_is_refused(
    titles: str, columns: list[object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        read(table(tmp_path / "a.csv", *columns, titles=titles), test_fraction=0)


def test_columns_are_named_by_title_or_by_number(tmp_path: Path) -> None:
    ids = [f"p{row}" for row in range(N)]
    titled = table(tmp_path / "a.csv", ids, *X.T, Y, titles=f"patient,{steps()},sick")
    plain = table(tmp_path / "b.csv", ids, *X.T, Y)
    named = {"label_column": "sick", "id_column": "Patient"}
    for path, how in ((titled, named), (titled, {"label_column": "-1", "id_column": "1"}),
                      (plain, {"label_column": "8", "id_column": "1"}),
                      (plain, {"label_column": "-1", "id_column": "1"})):  # fmt: skip
        data = read(path, test_fraction=0, **how)
        assert data.train.ids.tolist() == ids and np.array_equal(data.train.inputs[:, 0], X), how
        assert data.options.chosen() == how
    for how, message in (
        ({"label_column": "ill"}, "no column 'ill' for --label-column: its columns are 'patient'"),
        ({"label_column": "12"}, "8 columns, so there is no --label-column 12"),
        ({"label_column": "0"}, "no column '0'"),
        ({"label_column": "none"}, "cannot be none"),
    ):
        with pytest.raises(DataError, match=message):
            read(titled, **how)
    with pytest.raises(ConfigError, match="both classes and ids"):
        read(titled, label_column="sick", id_column="sick")


def test_a_short_first_row_does_not_hide_the_class(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2,no\n" + "1,2,3,4,yes\n2,3,4,5,no\n" * 6)
    data = read(tmp_path / "a.csv", test_fraction=0, label_column="-1")
    assert data.train.class_names.tolist() == ["no", "yes"] and data.train.shape == (1, 4)


def test_a_first_row_without_a_class_is_no_header(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", ["", *Y[1:]], *X.T)
    with pytest.raises(DataError, match="line 1, has no class in its column 1"):
        read(path)
    assert [fault.id for fault in read(path, on_error="skip").skipped] == ["train/0"]


def test_unlabeled_tables_keep_all_of_their_values(tmp_path: Path) -> None:
    plain = table(tmp_path / "a.csv", *X.T)
    assert np.array_equal(read_inputs(plain, shape=(1, T))[0][:, 0], X)
    for path in (table(tmp_path / "b.csv", Y, *X.T), table(tmp_path / "c.csv", *X.T, WORDS),
                 table(tmp_path / "d.csv", *X.T, Y, titles=f"{steps()},label"),
                 table(tmp_path / "e.csv", *X.T, titles=steps())):  # fmt: skip
        assert np.array_equal(read_inputs(path, shape=(1, T))[0][:, 0], X), path
    with pytest.raises(DataError, match=r"6 columns of numbers and the model takes 9 steps.*--label-column none"):
        read_inputs(plain, shape=(1, 9))
    assert np.array_equal(read_inputs(plain, shape=(1, 9), label_column="none")[0][:, 0, [0, -1]], X[:, [0, -1]])
    # The layout of the training stands in for what is not said; where it is not there, nothing is dropped.
    recorded = ReadOptions(label_column="-1")
    assert np.array_equal(read_inputs(table(tmp_path / "f.csv", *X.T, Y), shape=(1, T), recorded=recorded)[0][:, 0], X)
    assert np.array_equal(read_inputs(plain, shape=(1, T), recorded=recorded)[0][:, 0], X)


def padded(n: int = 8, gap: bool = False) -> np.ndarray:
    x = np.arange(n * 5, dtype=np.float32).reshape(n, 1, 5)
    x[::2, 0, 3:] = np.nan
    if gap:
        x[1, 0, 1] = np.nan
    return x


def in_each_format(folder: Path, x: np.ndarray) -> list[Path]:
    y = np.arange(len(x)) % 2
    np.savez(folder / "a.npz", x_train=x, y_train=y)
    rows = [[str(label), *map(str, series[0])] for label, series in zip(y, x, strict=True)]
    (folder / "a.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    lines = "".join(f"{','.join(row[1:])}:{row[0]}\n".replace("nan", "?") for row in rows)
    (folder / "a.ts").write_text(f"@timeStamps false\n@classLabel true 0 1\n@data\n{lines}")
    return [folder / name for name in ("a.npz", "a.tsv", "a.ts")]


def test_padding_and_gaps_follow_one_rule_in_all_formats(tmp_path: Path) -> None:
    for path in in_each_format(tmp_path, padded()):
        data = read(path, test_fraction=0)
        assert data.train.inputs[0, 0].tolist() == [0, 0.5, 1, 1.5, 2] and "3 to 5" in data.notes["series_length"]
    for path in in_each_format(tmp_path, padded(gap=True)):
        with pytest.raises(DataError, match=r"missing value before its end.*--missing interpolate"):
            read(path, test_fraction=0)
        assert len(read(path, test_fraction=0, on_error="skip").train) == 7
        data = read(path, test_fraction=0, missing="interpolate")
        assert data.train.inputs[1, 0].tolist() == [5, 6, 7, 8, 9]
        assert data.notes["missing_values"] == "1 values in 1 series interpolated"
        assert any("1 values in 1 series" in line for line in data.told())
    everything = np.full((4, 1, 3), np.nan)
    np.savez(tmp_path / "b.npz", x_train=everything, y_train=[0, 1, 0, 1])
    with pytest.raises(DataError, match="no value at all"):
        read(tmp_path / "b.npz", missing="interpolate")


def npz(path: Path, x: np.ndarray, **more: object) -> Path:
    np.savez(path, x_train=x, y_train=np.arange(len(x)) % 2, **more)
    return path


FLOATS = np.random.default_rng(0).random((8, 12, 12)).astype(np.float32)


@pytest.mark.parametrize(
    ("x", "axes", "shape"),
    [
        (FLOATS[:, :, :3] * 9, "NTC", (3, 12)),
        (FLOATS, "NHW", (1, 12, 12)),
        (FLOATS, "NCT", (12, 12)),
        (FLOATS[:, :11], "NHW", (1, 11, 12)),  # less high than wide, but it may be pixels
        ((FLOATS * 255).astype(np.uint8).reshape(8, 2, 72), "NCT", (2, 72)),  # sound
        ((FLOATS * 255).astype(np.uint8).reshape(8, 144), "NT", (1, 144)),
        ((FLOATS * 255).astype(np.int64), "NHW", (1, 12, 12)),
    ],
)
def test_axes_of_two_readings_must_be_said(x: np.ndarray, axes: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", x)
    with pytest.raises(DataError, match=f"read in several ways: say --axes .*{axes}"):
        read(path, test_fraction=0)
    data = read(path, test_fraction=0, axes=axes)  # type: ignore[arg-type]
    assert data.train.shape == shape and "read as" in data.notes["axes"] and data.options.axes == axes
    expected = x.transpose(0, 2, 1) if axes == "NTC" else x
    assert np.array_equal(data.train.inputs.reshape(8, -1), expected.reshape(8, -1))
    assert read(npz(tmp_path / "b.npz", x, axes=np.array(axes)), test_fraction=0).train.shape == shape
    assert (
        read_samples(path, class_names=["0", "1"], shape=shape, recorded=known_options({"axes": axes})).shape == shape
    )


@pytest.mark.parametrize(
    ("x", "shape"),
    [
        ((FLOATS[:, :, :1] * 9), (1, 12)),  # one channel, last
        ((FLOATS * 99).astype(np.int16)[:, :3], (3, 12)),
        ((FLOATS * 99).astype(np.int32)[:, 0], (1, 12)),
        ((FLOATS * 9).astype(np.int64)[..., None], (1, 12, 12)),
    ],
)
def test_integers_and_a_last_channel_are_taken(x: np.ndarray, shape: tuple[int, ...], tmp_path: Path) -> None:
    assert read(npz(tmp_path / "a.npz", x), test_fraction=0).train.shape == shape


def test_axes_that_do_not_fit(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", FLOATS)
    for axes, message in (("NT", "has 3 axes .* names 2"), ("NHWC", "has 3 axes")):
        with pytest.raises(DataError, match=message):
            read(path, axes=axes)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="axes is 'NCHT'; choose one of NT, NCT"):
        read(path, axes="NCHT")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="must be one of NT"):
        read(npz(tmp_path / "b.npz", FLOATS, axes=np.array("TCN")))
    with pytest.raises(ConfigError, match="missing is 'zero'"):
        read(path, missing="zero")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"--label-column is for csv, .* and changes nothing"):
        read(path, label_column="y")


def test_what_is_written_is_read_again_whatever_its_shape(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((8, 30, 6)).astype(np.float32)  # more channels than steps
    samples = Samples(x, np.arange(8) % 2, np.arange(8).astype(np.str_), np.array(["a", "b"]))
    back = read(write(tmp_path / "a.npz", samples, format="npz").path, test_fraction=0)
    assert np.array_equal(back.train.inputs, x) and "axes" not in back.notes


def header(shape: str, descr: str = "<f4") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + (len(text) + 1).to_bytes(2, "little") + text + b"\n"


@pytest.mark.parametrize(
    ("shape", "descr"),
    [("(8, -1, -4)", "<f4"), ("(True, True, 4)", "<f4"), ("(-8,)", "<f4"), ("(9999999999999,)", "<U0")],
)
def test_headers_that_no_array_has(shape: str, descr: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x_train.npy", header(shape, descr) + bytes(128))
    with pytest.raises(DataError, match=r"x_train in .*(no array has|damaged header|size that its header)") as caught:
        read(tmp_path / "a.npz")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["y_train", "class_names"])
@pytest.mark.parametrize("point", [0x110000, 0xFFFFFFFF, 0xD800])
def test_strings_of_impossible_code_points(name: str, point: int, tmp_path: Path) -> None:
    def stored(array: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, array)
        return buffer.getvalue()

    points = np.array([65, point] * 4, np.uint32)
    arrays = {"x_train": stored(np.zeros((8, 1, 4), np.float32)), "y_train": stored(np.arange(8) % 2)}
    arrays[name] = (
        header("(8,)" if name == "y_train" else "(2,)", "<U1") + points[: 8 if name == "y_train" else 2].tobytes()
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for member, content in arrays.items():
            archive.writestr(f"{member}.npy", content)
    with pytest.raises(DataError, match=f"{name} in .* strings that are not valid text"):
        read(tmp_path / "a.npz")


def test_one_endless_series_does_not_stretch_all_others(tmp_path: Path) -> None:
    lines = ["0,1,2,3", "1,2,3,4"] * 10 + ["0," + ",".join("1" * 200)]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match="train/20 has 200 steps where half of the series have at most 3"):
        read(tmp_path / "a.csv", test_fraction=0)


def test_tables_are_read_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    x = np.random.default_rng(0).normal(size=(1000, 120))
    with (tmp_path / "a.csv").open("w") as file:
        file.writelines(f"{row % 2},{','.join(f'{v:.9f}' for v in series)}\n" for row, series in enumerate(x))
    tracemalloc.start()
    read(tmp_path / "a.csv", test_fraction=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * (tmp_path / "a.csv").stat().st_size, "the values alone are a third of the file, twice"


def test_inputs_unlike_those_trained_on_are_refused(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(20, 1, 30)).astype(np.float32)
    known = TrainedOn(1, (30, 30), (0.0,), (1.0,))

    def tried(values: np.ndarray, trained_on: TrainedOn = known) -> None:
        np.savez(tmp_path / "a.npz", x=values)
        read_inputs(tmp_path / "a.npz", shape=(values.shape[1], 30), trained_on=trained_on)

    tried(x)
    tried(x[:, :, :12])
    tried(x * 5 + 3)
    tried(np.full_like(x, 2))  # a sensor that stands still
    for values, message in (
        (x[:, :, :7], "have 7 steps, but those that the model was trained on have 30.*--accept-unlike"),
        (np.tile(x, 4), "have 120 steps"),
        (x * 1000, "channel 0 of .* has values around .*--accept-unlike"),
        (x + 50, "has values around 49.98"),
        (x / 1000, "has values around"),
    ):
        with pytest.raises(DataError, match=message):
            tried(values)


def test_pictures_unlike_those_trained_on_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    signs = rng.integers(0, 256, (6, 32, 32, 3), np.uint8)
    small = TrainedOn(1, (8, 8), (0.5,), (0.2,))
    for values, known, message in (
        (signs, small, "color images, but the model was trained on grey"),
        (signs[..., :1], small, "have 32 pixels on the shorter side, but those that the model was trained on have 8"),
        (signs[..., :1], TrainedOn(3, None, (), ()), "grey images, but the model was trained on color"),
        (signs[:, :8, :8], TrainedOn(3, (32, 64), (), ()), "have 8 pixels .* trained on have 32 to 64"),
    ):
        np.savez(tmp_path / "a.npz", x=values, x_train=values, y_train=np.arange(6) % 2)
        shape = (known.channels, 8, 8)
        with pytest.raises(DataError, match=message):
            read_inputs(tmp_path / "a.npz", shape=shape, trained_on=known)
        with pytest.raises(DataError, match=message):
            read_samples(tmp_path / "a.npz", class_names=["0", "1"], shape=shape, trained_on=known)
        assert read_inputs(tmp_path / "a.npz", shape=shape)[0].shape == (6, *shape)
