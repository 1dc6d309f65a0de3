"""`run.toml` and `--config`: a run can be repeated from its folder."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import pictures, write_folder

from antibackdoor.errors import ConfigError
from antibackdoor.runs.options_file import as_flags, options_of, read_options, write_options
from antibackdoor.runs.run_folder import read_config
from antibackdoor.runs.samples_table import read_samples_table

Call = Callable[..., tuple[int, str, str]]


def test_a_run_is_repeated_from_its_options(call: Call, tmp_path: Path) -> None:
    data = write_folder(pictures(24), tmp_path / "data")
    given = ["--defense", "none", "--backbone", "wrn-10-1", "--epochs", "1", "--augment", "none", "--device", "cpu"]
    given += ["--learning-rate", "0.05", "--no-progress", "--seed", "3"]
    assert call("train", data, "--out", tmp_path / "first", *given)[0] == 0
    options = tmp_path / "first" / "run.toml"
    assert str(tmp_path) not in options.read_text(), "a run folder is passed on: no absolute paths"
    code, _, err = call("train", data, "--out", tmp_path / "second", "--config", options)
    assert (code, err) == (0, "")
    first, second = (read_config(tmp_path / name) for name in ("first", "second"))
    assert first["settings"] == second["settings"] and first["settings"]["recipe"]["seed"] == 3
    tables = [read_samples_table(tmp_path / name) for name in ("first", "second")]
    assert (tables[0].confidence == tables[1].confidence).all(), "same options, same bytes"
    assert tomllib.loads((tmp_path / "second" / "run.toml").read_text()) == tomllib.loads(options.read_text())
    # A flag wins over the file, and the recorded options say what was run.
    code, _, _ = call("train", data, f"--config={options}", "--seed=4", "--out", tmp_path / "third")
    assert code == 0 and read_config(tmp_path / "third")["settings"]["recipe"]["seed"] == 4
    assert tomllib.loads((tmp_path / "third" / "run.toml").read_text())["seed"] == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epochs = ", "not a TOML file"),
        ('command = "scan"', "is for scan, not for train"),
        ("[recipe]\nepochs = 3", "recipe is not a plain value"),
        ('"--epochs" = 3', "is not an option"),
        ("no_such_thing = 3", "no-such-thing"),
        ('epochs = "many"', "many"),
    ],
)
def test_a_wrong_file_of_options_ends_in_one_line(call: Call, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    code, _, err = call("train", tmp_path, "--out", tmp_path / "run", "--config", tmp_path / "mine.toml")
    assert code == 2 and words in err and err.count("\n") == 1, err
    assert call("train", tmp_path, "--out", tmp_path / "run", "--config", tmp_path / "none.toml")[0] == 2


def test_options_survive_the_file(tmp_path: Path) -> None:
    said = ["d", "--a", "05", "--b", "1e-3", "--c=-7", "--no-d", "--e", "--f=0.1", "--f=0.2", "--g", 'q"\\ \x7f é']
    write_options(tmp_path, ["antibackdoor", "train", *said, "--out", "x", "--resume"])
    options = read_options(tmp_path / "run.toml", "train")
    assert options == options_of(said)
    assert options == {"a": "05", "b": "1e-3", "c": -7, "d": False, "e": True, "f": [0.1, 0.2], "g": 'q"\\ \x7f é'}
    flags = [flag for name, value in options.items() for flag in as_flags(name, value)]
    assert options_of(flags) == options
    rng = np.random.default_rng(0)
    for value in rng.random(50).tolist():
        assert options_of([f"--x={value}"]) == {"x": value}
    with pytest.raises(ConfigError, match="plain value"):
        (tmp_path / "bad.toml").write_text("x = 2020-01-01")
        read_options(tmp_path / "bad.toml", "train")
