"""The package as it is written in Python: arrays, tables and other libraries' data sets in, tables and masks out."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import antibackdoor
from antibackdoor.errors import ConfigError, DataError, ModelError
from antibackdoor.training.recipe import Recipe

QUICK: dict[str, Any] = {"epochs": 1, "device": "cpu", "progress": False}


def small(input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """A network that takes milliseconds."""
    convolution = nn.Conv1d if len(input_shape) == 2 else nn.Conv2d
    pool = nn.AdaptiveAvgPool1d(1) if len(input_shape) == 2 else nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(convolution(input_shape[0], 4, 3), nn.ReLU(), pool, nn.Flatten(), nn.Linear(4, n_classes))


def series(n: int = 40, length: int = 12) -> tuple[Any, Any]:
    """Sines of two frequencies and their labels."""
    y = np.arange(n) % 2
    return np.sin((1 + y)[:, None] * np.linspace(0, 6, length) + np.arange(n)[:, None]), y


def pixels(n: int = 12, side: int = 8) -> Any:
    return np.random.default_rng(0).integers(0, 255, (n, side, side, 3)).astype(np.uint8)


# --------------------------------------------------------------------------- data


@pytest.mark.parametrize(
    ("X", "shape"),
    [
        (series()[0], (1, 12)),
        (series()[0].tolist(), (1, 12)),
        (torch.rand(40, 3, 16), (3, 16)),
        ([np.zeros((2, 9 + row)) for row in range(40)], (2, 48)),
        (pixels(40), (3, 8, 8)),
        (np.moveaxis(pixels(40) / 255, 3, 1), (3, 8, 8)),
        ([pixels(1, 16 + row % 2)[0] for row in range(40)], (3, 16, 16)),
    ],
)
def test_arrays_of_all_kinds(X: Any, shape: tuple[int, ...]) -> None:
    data = antibackdoor.from_arrays(X, np.arange(40) % 2)
    assert data.train.shape == shape and len(data.train) == 32 and data.test is not None and len(data.test) == 8
    assert data.rows is not None and data.train.ids.tolist() == [f"train/{row}" for row in data.rows]
    assert data.train.labels.tolist() == (data.rows % 2).tolist() and data.n_given == 40


def test_labels_are_names_numbers_or_positions() -> None:
    X, y = series(20)
    assert antibackdoor.from_arrays(X, np.where(y, "up", "down")).train.class_names.tolist() == ["down", "up"]
    assert antibackdoor.from_arrays(X, y.astype(float) * 10 - 1).train.class_names.tolist() == ["-1", "9"]
    data = antibackdoor.from_arrays(X, y, class_names=["up", "down"], X_test=X[:4], y_test=y[:4])
    assert data.train.class_names.tolist() == ["up", "down"] and data.notes["test"] == "given" and len(data.train) == 20


def test_values_do_not_change() -> None:
    images, y = pixels(12), np.arange(12) % 2
    frame = pd.DataFrame({"label": y, "image": [Image.fromarray(one) for one in images]})
    tensors = TensorDataset(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(y))
    for data in (
        antibackdoor.from_arrays(images, y, test_fraction=0),
        antibackdoor.from_dataframe(frame, test_fraction=0),
        antibackdoor.from_torch(tensors, test_fraction=0),
    ):
        assert (data.train.inputs == np.moveaxis(images, 3, 1)).all() and (data.train.labels == y).all()


def test_tables_of_pandas(tmp_path: Path) -> None:
    X, y = series(20)
    frame = pd.DataFrame(X, index=[f"patient {row}" for row in range(20)])
    frame["class"] = pd.Categorical(np.where(y, "a", "z"), categories=["z", "a", "never"])
    data = antibackdoor.from_dataframe(frame, test_fraction=0)
    assert data.train.shape == (1, 12) and data.train.class_names.tolist() == ["z", "a"]
    assert data.train.ids[3] == "patient 3"
    for row, image in enumerate(pixels(6)):
        Image.fromarray(image).save(tmp_path / f"{row}.png")
    paths = pd.DataFrame({"file": [f"{row}.png" for row in range(6)], "y": [0, 1] * 3, "name": list("abcdef")})
    data = antibackdoor.from_dataframe(paths, inputs="file", id="name", folder=tmp_path, test_fraction=0)
    assert (data.train.inputs == np.moveaxis(pixels(6), 3, 1)).all() and data.train.ids.tolist() == list("abcdef")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda X, y: antibackdoor.from_arrays(5, y), "X is of type int; give an array"),
        (lambda X, y: antibackdoor.from_arrays(X, y[:3]), "X has 40 samples, y has 3 labels"),
        (lambda X, y: antibackdoor.from_arrays(X, np.eye(40)), r"y.argmax\(axis=1\)"),
        (lambda X, y: antibackdoor.from_arrays(X, [None, *y[1:]]), r"y\[0\] is None; give each sample a label"),
        (lambda X, y: antibackdoor.from_arrays(X, y / 3), r"classes are whole numbers or names, not measurements"),
        (lambda X, y: antibackdoor.from_arrays(X, y, X_test=X), "y_test is missing"),
        (lambda X, y: antibackdoor.from_arrays(X, y, ids=["a"] * 40), "two samples with the id 'a'"),
        (lambda X, y: antibackdoor.from_arrays(np.zeros((40, 12, 12)), y), "say axes='NTC' if the channels"),
        (
            lambda X, y: antibackdoor.from_arrays(np.full((40, 3, 8, 8), 2.0), y),
            r"outside of \[0, 1\].* on_error='skip'",
        ),
        (lambda X, y: antibackdoor.from_torch(torch.rand(4, 5)), r"dataset\[0\] is a Tensor; expected a pair"),
        (lambda X, y: antibackdoor.from_dataframe({"a": [1]}), "frame is of type dict; give a pandas.DataFrame"),
        (lambda X, y: antibackdoor.from_dataframe(pd.DataFrame(X)), "no column of frame may hold the class"),
        (lambda X, y: antibackdoor.from_huggingface([1]), "give a datasets.Dataset that is not a stream"),
        (lambda X, y: antibackdoor.train(5), "data is of type int; give a path, arrays with their labels"),
        (lambda X, y: antibackdoor.train(X), "y is missing; give the labels with the arrays"),
        (lambda X, y: antibackdoor.train(X, "run"), r"y is 'run'; give one label per sample \(a folder to write to"),
        (lambda X, y: antibackdoor.train(X, y, epochs="3"), r"epochs is '3' \(of type str\); give a whole number"),
        (lambda X, y: antibackdoor.train(X, y, epochs=True), r"epochs is True \(of type bool\)"),
        (lambda X, y: antibackdoor.train(X, y, defense="best"), "defense is 'best'; give one of abl, "),
        (lambda X, y: antibackdoor.train(X, y, defense=5), "defense is of type int; give a name such as 'abl'"),
        (lambda X, y: antibackdoor.train(X, y, defense="abl", schedule="step"), "schedule changes nothing with this"),
        (lambda X, y: antibackdoor.train(X, y, out=5), "out is of type int; give the path of a folder"),
        (lambda X, y: antibackdoor.scan("nowhere"), "there is no file or folder nowhere"),
        (lambda X, y: antibackdoor.purify(5), "checkpoint is of type int; give a run folder"),
    ],
)
def test_mistakes_are_told_in_the_words_of_python(
    call: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ConfigError, DataError), match=message) as caught:
        call(*series())
    assert "--" not in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------- work


def test_train_takes_arrays_a_folder_a_name_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    X, y = series()
    result = antibackdoor.train(X, y, defense="none", model=small, **QUICK)
    assert result is not None and result.run == Path("run") and result.metrics["epochs"] == 1
    antibackdoor.write("data.npz", result.data.train, result.data.test, format="npz")
    other = antibackdoor.train("data.npz", defense="none", model=small, **QUICK)
    assert other is not None and other.run == Path("run-2")
    assert other.metrics["clean_accuracy"] == result.metrics["clean_accuracy"]
    again = antibackdoor.train(X, y, "run", defense="none", model=small, resume=True, **QUICK)
    assert again is not None and all(again.metrics[key] == value for key, value in result.metrics.items())
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, result.model.state_dict()[name])
    mixed = antibackdoor.train(result.data, defense="cutmix", model=small, **QUICK)  # a defense that owns its epochs
    assert mixed is not None and mixed.metrics["epochs"] == 1


def test_a_scan_gives_its_table_and_what_to_keep(tmp_path: Path) -> None:
    X, y = series(60)
    X[:4, :3] = 5.0
    tensors = TensorDataset(torch.from_numpy(X).float(), torch.from_numpy(y))
    spectral = antibackdoor.SpectralSignatures(expected_rate=0.1)
    found = antibackdoor.scan(tensors, out=tmp_path / "scan", detector=spectral, model=small, **QUICK)
    assert len(found.table) == 60 and found.suspects.tolist() == found.table.ids[found.table.isolated].tolist()
    assert found.keep.dtype == bool and (~found.keep).sum() == found.table.isolated.sum() > 0
    kept = found.subset(tensors)
    assert len(kept) == found.keep.sum() and len(next(iter(DataLoader(kept, batch_size=8)))[0]) == 8
    with pytest.raises(ConfigError, match="dataset has 3 samples, but 60 were judged"):
        found.subset(TensorDataset(torch.zeros(3)))
    trained = antibackdoor.train(tensors, out=tmp_path / "run", defense="none", model=small, **QUICK)
    assert trained is not None and len(trained.subset(tensors)) == len(trained.data.train) == 48


def test_purify_takes_what_train_returned(tmp_path: Path) -> None:
    X, y = series()
    trained = antibackdoor.train(X, y, tmp_path / "run", defense="none", model=small, **QUICK)
    assert trained is not None
    clean = (X[:8], y[:8])  # too few to say that the model is near chance
    purified = antibackdoor.purify(trained, clean, tmp_path / "pure", test=(X, y), model=small, **QUICK)
    assert purified.metrics["method"] == "fine-tune" and "clean_accuracy_before" in purified.metrics
    assert purified.model(torch.zeros(2, 1, 12)).shape == (2, 2)
    with pytest.raises(ModelError, match="is near chance on the clean samples"):
        antibackdoor.purify(trained, (X, y), tmp_path / "not", model=small, **QUICK)
    with pytest.raises(ConfigError, match=r"which knows its network.*: leave mean out"):
        antibackdoor.purify(trained, clean, tmp_path / "not", model=small, mean=0.5, std=1, **QUICK)
    with pytest.raises(ConfigError, match="use method='self-clean'"):
        antibackdoor.purify(trained, suspicious=(X, y), method="nad", model=small, **QUICK)
    own = antibackdoor.purify(
        trained, suspicious=(X, y), out=tmp_path / "own", model=small, **{**QUICK, "epochs": None}
    )
    assert own.metrics["method"] == "self-clean"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights of a network that tells flat images of three gray levels apart, with another mean than these have."""
    network = small((1, 8, 8), 3)
    with torch.no_grad():
        for value in network.parameters():
            value.zero_()
        network[0].weight[:, :, 1, 1] = torch.tensor([[-1.0], [1.0], [1.0], [0.0]])
        network[4].weight[0, 0] = network[4].weight[2, 1] = 1.0
        network[4].bias[1] = 0.2
    torch.save({"state_dict": network.state_dict()}, tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def grays(n: int = 60) -> tuple[Any, Any]:
    """Dark, medium and bright images, almost flat."""
    levels = np.arange(n) % 3
    noise = np.random.default_rng(n).integers(0, 9, (n, 8, 8))
    return (levels[:, None, None] * 100 + 24 + noise).astype(np.uint8), np.array(["a", "b", "c"])[levels]


def test_purify_takes_a_file_of_weights(tmp_path: Path, weights: Path) -> None:
    said: dict[str, Any] = {"model": small, "mean": [0.5], "std": 1, **QUICK, "learning_rate": 1e-4}
    purified = antibackdoor.purify(weights, grays(), tmp_path / "pure", test=grays(30), **said)
    assert purified.metrics["accuracy_as_given"] == 1 and purified.metrics["normalization"] == "given"
    assert purified.metrics["clean_accuracy_before"] == 1 and purified.metrics["purified_from"] == "given"
    data = antibackdoor.from_arrays(*grays())
    with pytest.raises(ModelError, match=r"near chance .* the order of classes \(classes\)"):
        antibackdoor.purify(str(weights), data, tmp_path / "wrong", classes=["c", "b", "a"], **said)
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    named = antibackdoor.purify(weights, data, tmp_path / "named", classes=tmp_path / "names.txt", **said)
    assert not named.metrics["classes_reordered"]
    for wrong, message in (
        ({"std": ()}, "mean is given without std: give both or neither"),
        ({"mean": "x"}, "mean is 'x'; give one number per channel"),
        ({"model": ""}, "backbone or model"),
        ({"classes": tmp_path / "none.txt"}, "classes .*none.txt is not a file"),
        ({"teacher_model": small}, "teacher_model needs a teacher: give teacher"),
        ({"image_size": 8}, "give clean in that size"),
    ):
        with pytest.raises(ConfigError, match=message):
            antibackdoor.purify(weights, grays(), tmp_path / "wrong", **{**said, **wrong})
    taught = {**said, "method": antibackdoor.PURIFIERS["nad"](pair="C-B", layers=("network.1",))}
    nad = antibackdoor.purify(weights, grays(), tmp_path / "nad", teacher=weights, **taught)
    assert nad.metrics["method"] == "nad"


def test_a_comparison_is_a_table(tmp_path: Path) -> None:
    X, y = series()
    found = antibackdoor.compare(X, y, tmp_path / "all", methods="none, spectral", model=small, seeds=2, **QUICK)
    assert [(run.method, run.seed) for run in found.runs] == [
        ("none", 0), ("none", 1), ("spectral", 0), ("spectral", 1),
    ]  # fmt: skip
    assert "clean_accuracy" in found.runs[0].metrics and (found.folder / "report.html").exists()
    assert "spectral" in str(found) and repr(found).startswith("Comparison(4 runs, ")
    again = antibackdoor.compare(
        X, y, tmp_path / "all", methods=["none", "spectral"], model=small, seeds=2, resume=True, **QUICK
    )
    assert [run.metrics for run in again.runs] == [run.metrics for run in found.runs]
    with pytest.raises(ConfigError, match="give clean, or leave the method out"):
        antibackdoor.compare(X, y, methods=["nad"], model=small, **QUICK)
    with pytest.raises(ConfigError, match="methods is of type int; give names"):
        antibackdoor.compare(X, y, methods=3, model=small, **QUICK)  # type: ignore[arg-type]


def test_tables_name_classes_beside_their_numbers(tmp_path: Path) -> None:
    X, y = series()
    names = np.where(y, "up", "down")
    antibackdoor.train(X, names, tmp_path / "run", defense="none", model=small, **QUICK)
    table = antibackdoor.SamplesTable.load(tmp_path / "run")
    frame = table.to_pandas()
    assert frame["given_class"].tolist() == [table.class_names[label] for label in frame["given_label"]]
    assert frame["predicted_class"].tolist() == [table.class_names[label] for label in frame["prediction"]]
    assert set(frame["status"]) == {"kept"} and frame["id"][0] == table.ids[0] and frame.shape == (32, 11)
    assert table.to_arrow().num_rows == 32


def test_results_are_shown_in_one_short_line(tmp_path: Path) -> None:
    X, y = series()
    result = antibackdoor.train(X, y, tmp_path / "run", defense="none", model=small, **QUICK)
    assert result is not None
    purified = antibackdoor.Purified(result.model)
    shown = [result, result.data, result.data.train, result.table, result.table.verdict, result.trained, purified]
    shown += [
        result.trained.history,
        antibackdoor.Given(model=result.model),
        antibackdoor.Detection(result.table.verdict),
    ]
    for value in shown:
        assert len(repr(value)) < 200 and "\n" not in repr(value) and repr(value).startswith(type(value).__name__)
    assert repr(result.table) == "SamplesTable(32 samples, 0 isolated, not judged)"


def test_all_settings_of_a_recipe_are_arguments() -> None:
    named = {part.name for part in fields(Recipe)}
    assert named <= set(inspect.signature(antibackdoor.train).parameters)
    for call in (antibackdoor.scan, antibackdoor.purify, antibackdoor.compare):  # which run on one device
        assert named - {"devices"} <= set(inspect.signature(call).parameters)


def test_what_is_not_used_is_not_imported() -> None:
    code = (
        "import antibackdoor, sys; assert not {'torch', 'sklearn', 'pandas', 'numpy'} & set(sys.modules);"
        "antibackdoor.read; assert not {'torch', 'pandas', 'datasets'} & set(sys.modules);"
        "assert antibackdoor.sklearn.PoisonDetector"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
