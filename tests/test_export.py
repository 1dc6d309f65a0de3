"""`export`, `explain` and `cache`: what a run decided, in the hands of other tools."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import pictures, waves, write_folder

from antibackdoor.app.onnx_file import write_onnx
from antibackdoor.app.pipeline import Job, train
from antibackdoor.data.reading import read, write
from antibackdoor.defenses import Retrain
from antibackdoor.errors import ConfigError, ModelError
from antibackdoor.models.backbones import BACKBONES, build_backbone
from antibackdoor.models.normalization import normalized
from antibackdoor.runs.decisions import Decision, write_decisions
from antibackdoor.runs.model_file import ModelSpec
from antibackdoor.runs.samples_table import read_samples_table
from antibackdoor.statistics.culprits import likely, similarity
from antibackdoor.training.recipe import Recipe

Call = Callable[..., tuple[int, str, str]]
RECIPE = Recipe(epochs=1, device="cpu", augment="none", progress=False)


def trained(folder: Path, *, series: bool = False) -> tuple[Path, Path]:
    """Data and a run that isolated a quarter of them; a fifth was held out."""
    samples = waves(60) if series else pictures(60)
    data = write(folder / "data.npz", samples, format="npz").path if series else write_folder(samples, folder / "data")
    job = Job(Retrain(drop_rate=0.25), RECIPE, "fcn" if series else "wrn-10-1")
    train(read(data, cache=folder / "cache"), job, folder / "run", command=["antibackdoor", "train"])
    return data, folder / "run"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return trained(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return trained(tmp_path_factory.mktemp("series"), series=True)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_kept_samples_are_copied_byte_by_byte(call: Call, images: tuple[Path, Path], tmp_path: Path) -> None:
    data, run = images
    before, table = files_of(data), read_samples_table(run)
    lists = ["--keep", tmp_path / "keep.txt", "--quarantine", tmp_path / "quarantine.txt"]
    code, out, err = call("export", run, *lists, "--to", tmp_path / "kept", "--data", data)
    assert code == 0 and "36 of 48 samples are kept, 12 are in quarantine" in out, err
    assert "12 more in the data were not judged" in err
    kept = (tmp_path / "keep.txt").read_text().splitlines()
    assert sorted(kept) == sorted(table.ids[~table.isolated].tolist())
    assert sorted((tmp_path / "quarantine.txt").read_text().splitlines()) == sorted(table.ids[table.isolated].tolist())
    assert files_of(tmp_path / "kept") == {name: before[name] for name in kept}
    assert call("export", run, "--to", tmp_path / "linked", "--data", data, "--link")[0] == 0
    assert (tmp_path / "linked" / kept[0]).stat().st_ino == (data / kept[0]).stat().st_ino
    assert files_of(data) == before, "the source never changes"
    assert len(read(tmp_path / "linked", test_fraction=0, cache=tmp_path / "cache").train) == 36


def test_decisions_win_over_the_run(call: Call, images: tuple[Path, Path], tmp_path: Path) -> None:
    run = images[1]
    table = read_samples_table(run)
    good, bad = str(table.ids[table.isolated][0]), str(table.ids[~table.isolated][0])
    try:
        write_decisions(run / "decisions.csv", {good: Decision("accepted"), bad: Decision("rejected")})
        code, out, _ = call("export", run, "--keep", tmp_path / "keep.txt")
    finally:
        (run / "decisions.csv").unlink()
    kept = (tmp_path / "keep.txt").read_text().splitlines()
    assert code == 0 and good in kept and bad not in kept and "decisions.csv was used" in out


def test_layouts_of_other_tools(call: Call, images: tuple[Path, Path], tmp_path: Path) -> None:
    data, run = images
    table = read_samples_table(run)
    for name, suffix in (("csv", "csv"), ("parquet", "parquet"), ("cleanlab", "csv")):
        assert call("export", run, "--format", name, "--to", tmp_path / f"{name}.{suffix}")[0] == 0
    with (tmp_path / "csv.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == table.ids.tolist()
    assert [row["kept"] == "False" for row in rows] == table.isolated.tolist()
    assert pq.read_table(tmp_path / "parquet.parquet").column("given_label").to_pylist()[0].startswith("class")
    with (tmp_path / "cleanlab.csv").open(newline="") as file:
        issues = list(csv.DictReader(file))
    quality = np.array([float(row["label_quality"]) for row in issues])
    wrong = np.array([row["is_label_issue"] == "True" for row in issues])
    assert wrong.sum() == 12 and quality[wrong].max() < quality[~wrong].min()
    for name in ("huggingface", "fiftyone"):
        assert call("export", run, "--format", name, "--to", tmp_path / name, "--data", data)[0] == 0
    lines = (tmp_path / "huggingface" / "train" / "metadata.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        assert (tmp_path / "huggingface" / "train" / line["file_name"]).is_file()
        assert line["file_name"].startswith(line["label"] + "/")
    about = json.loads((tmp_path / "fiftyone" / "labels.json").read_text())
    assert len(lines) == len(about["labels"]) == 36 and about["classes"] == ["class0", "class1"]
    for key, label in about["labels"].items():
        assert (tmp_path / "fiftyone" / "data" / f"{key}.png").is_file() and key.startswith(f"class{label}/")


def test_series_are_written_in_their_format(call: Call, series: tuple[Path, Path], tmp_path: Path) -> None:
    data, run = series
    code, _, err = call("export", run, "--to", tmp_path / "kept", "--data", data)
    assert code == 0, err
    copy, table = read(tmp_path / "kept", test_fraction=0).train, read_samples_table(run)
    source = read(data, test_fraction=0).train
    rows = [int(name.split("/")[1]) for name in table.ids[~table.isolated].tolist()]
    assert (copy.inputs == source.inputs[rows]).all() and (copy.labels == source.labels[rows]).all()
    assert call("export", run, "--format", "huggingface", "--to", tmp_path / "hf", "--data", data)[0] == 0
    found = pq.read_table(tmp_path / "hf" / "train" / "data.parquet")
    assert np.array_equal(np.array(found.column("series").to_pylist(), np.float32), copy.inputs)


def test_wrong_exports_end_in_one_line_and_leave_nothing(call: Call, images: tuple[Path, Path], tmp_path: Path) -> None:
    data, run = images
    (tmp_path / "there").mkdir()
    for arguments, words in [
        ([], "say what to export"),
        (["--to", tmp_path / "x"], "give --data"),
        (["--to", tmp_path / "there", "--data", data], "exists already"),
        (["--to", data / "x", "--data", data], "lies in the data"),
        (["--to", tmp_path / "x", "--data", tmp_path / "nowhere"], "no file or folder"),
        (["--format", "csv"], "give --to"),
        (["--keep", tmp_path / "k", "--data", data], "give --to FOLDER"),
    ]:
        code, _, err = call("export", run, *arguments)
        assert code == 2 and words in err and err.count("\n") == 1, err
    changed = write_folder(pictures(60, seed=1), tmp_path / "changed")
    code, _, err = call("export", run, "--to", tmp_path / "x", "--data", changed)
    assert code == 2 and "48 samples of" in err and "have changed since" in err
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["changed", "there"]


def spec_of(name: str, shape: tuple[int, ...]) -> ModelSpec:
    kind = BACKBONES[name].kind
    return ModelSpec(name, kind, shape, ("a", "b", "c"), (0.4,) * shape[0], (0.2,) * shape[0], None, "none", "0")


@pytest.mark.parametrize("name", ["wrn-10-1", "fcn"])
def test_onnx_computes_the_same(name: str, tmp_path: Path) -> None:
    """One of each kind; `benchmarks/onnx_parity.py` looks at all of them."""
    pytest.importorskip("onnx", reason="pip install 'antibackdoor[onnx]'")
    pytest.importorskip("onnxruntime", reason="pip install 'antibackdoor[onnx]'")
    spec = spec_of(name, (3, 16, 16) if BACKBONES[name].kind == "image" else (2, 24))
    torch.manual_seed(0)
    model = normalized(build_backbone(name, spec.input_shape, 3), spec.mean, spec.std)
    assert write_onnx(tmp_path / "model.onnx", model, spec) < 1e-4
    with pytest.raises(ConfigError, match="exists already"):
        write_onnx(tmp_path / "model.onnx", model, spec)


class Halves(torch.nn.Module):
    """What its trace computes depends on the example: the size of the batch stands in it as a number."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.flatten(1)[:, :3] * len(inputs)


def test_a_wrong_onnx_file_is_not_written(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="pip install 'antibackdoor[onnx]'")
    pytest.importorskip("onnxruntime", reason="pip install 'antibackdoor[onnx]'")
    with pytest.raises(ModelError, match="it was not written"):
        write_onnx(tmp_path / "model.onnx", Halves(), spec_of("wrn-10-1", (1, 8, 8)))
    assert not list(tmp_path.iterdir())


def test_what_is_not_installed_is_named(
    call: Call, images: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package, flag, place in (("onnx", "--onnx", "m.onnx"), ("mlflow", "--mlflow", "uri")):
        monkeypatch.setitem(sys.modules, package, None)
        code, _, err = call("export", images[1], flag, tmp_path / place)
        assert code == 2 and f"pip install 'antibackdoor[{package}]'" in err, err


def test_the_log_goes_to_tensorboard(call: Call, images: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="pip install 'antibackdoor[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    code, _, err = call("export", images[1], "--tensorboard", tmp_path / "events")
    assert code == 0, err
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert {"training/loss", "retraining/loss", "metrics/n_isolated"} <= {*events.Tags()["scalars"]}
    assert events.Scalars("metrics/n_isolated")[0].value == 12


def test_the_log_goes_to_mlflow(
    call: Call, images: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # else MLflow 3 wants a server or a database
    mlflow = pytest.importorskip("mlflow", reason="pip install 'antibackdoor[mlflow]'")
    uri = (tmp_path / "tracking").as_uri()
    code, out, err = call("export", images[1], "--mlflow", uri)
    assert code == 0, err
    run = mlflow.tracking.MlflowClient(uri).get_run(out.split()[-1])
    assert run.data.metrics["metrics/n_isolated"] == 12 and run.data.params["method"] == "retrain"


def test_explain_a_sample(call: Call, images: tuple[Path, Path], tmp_path: Path) -> None:
    data, run = images
    table = read_samples_table(run)
    name = str(table.ids[table.isolated][0])
    code, out, err = call("explain", run, name, "--data", data, "--top", "3", "--device", "cpu")
    assert code == 0, err
    assert f"sample           {name}" in out and "status           isolated" in out
    kept, isolated = out.split("nearest kept:")[1].split("nearest isolated:")
    assert kept.count(" kept ") == 3 and isolated.count(" isolated ") == 3 and name not in kept + isolated
    assert "give --data" in call("explain", run, name)[1]
    for arguments, words in (
        ([name[:-5]], "did you mean"),
        ([], "either the ID of a sample or --input"),
        ([name, "--input", data], "either the ID of a sample or --input"),
        (["--input", data], "--data"),
        ([name, "--data", data, "--top", "0"], "give 1 or more"),
    ):
        code, _, err = call("explain", run, *arguments)
        assert code == 2 and words in err and err.count("\n") == 1, err


def test_explain_an_input(call: Call, images: tuple[Path, Path]) -> None:
    data, run = images
    table = read_samples_table(run)
    row = int(np.flatnonzero(table.prediction == table.given_label)[0])
    name = str(table.ids[row])
    code, out, err = call("explain", run, "--input", data / name, "--data", data, "--top", "2", "--device", "cpu")
    assert code == 0, err
    assert f"the model says {table.class_names[table.given_label[row]]}" in out
    first = next(line for line in out.splitlines() if line.startswith("   1.000"))
    assert first.endswith(name), "an input is most like itself"


def test_similarity_passes_over_what_all_share() -> None:
    rng = np.random.default_rng(0)
    known = rng.standard_normal((60, 8)).astype(np.float32) * 0.1 + 5
    known[:20, :6] += 2
    asked = rng.standard_normal((1, 8)).astype(np.float32) * 0.1 + 5
    asked[0, :6] += 2
    alike = similarity([known, np.ones((60, 2), np.float32)], [asked, np.ones((1, 2), np.float32)])[0]
    assert alike[:20].min() > alike[20:].max() and np.isfinite(alike).all()
    assert likely(alike)[:20].all() and not likely(alike)[20:].any()
    assert likely(np.zeros(1)).tolist() == [True] and likely(np.zeros(3)).tolist() == [False] * 3


def test_the_cache_is_told_and_cleared(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    assert call("cache", "--cache", folder)[1].endswith("0 entries, 0 bytes\n")
    read(write_folder(pictures(8), tmp_path / "data"), cache=folder)
    (folder / "images-of-my-own").mkdir()
    (folder / "survey-x.json").write_text("{}")
    code, out, _ = call("cache", "--cache", folder)
    assert code == 0 and str(folder) in out and " entries, " in out and "--clear" in out
    assert call("cache", "--cache", folder, "--clear")[1].startswith("Deleted ")
    assert sorted(path.name for path in folder.iterdir()) == ["images-of-my-own", "survey-x.json"]


def test_a_name_with_a_line_break_is_in_no_list(tmp_path: Path) -> None:
    from antibackdoor.app.exporting import columns_of, selection_of, write_list, write_table
    from antibackdoor.protocols import Verdict
    from antibackdoor.runs.samples_table import SamplesTable, write_samples_table

    samples = pictures(2)
    samples = replace(samples, ids=np.array(["a\nb", "=1+1"]))
    table = SamplesTable(samples.ids, samples.labels, samples.class_names, Verdict.ranking(np.zeros(2), samples))
    write_samples_table(tmp_path, table)
    selection = selection_of(tmp_path)
    with pytest.raises(ConfigError, match="line break"):
        write_list(tmp_path / "keep.txt", selection.table.ids)
    write_table(tmp_path / "table.csv", columns_of(selection), parquet=False)
    assert "'=1+1" in (tmp_path / "table.csv").read_text() and not (tmp_path / "keep.txt").exists()
