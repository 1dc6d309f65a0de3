"""What the command line refuses in one line: numbers that fill the memory, code that a run does not need."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from conftest import pictures, write_folder

from antibackdoor.app.methods import TABLES
from antibackdoor.attacks import ATTACKS, BadNets, CleanLabel, poison
from antibackdoor.cli import app
from antibackdoor.cli.failures import LONGEST_WORD
from antibackdoor.cli.flags import flat_fields, made
from antibackdoor.cli.limits import MOST, MOST_OF
from antibackdoor.data.streams import Stream, stream
from antibackdoor.errors import ConfigError, ModelError, RunError, cannot, disk_is_full
from antibackdoor.runs import model_file
from antibackdoor.runs.atomic import replacing, write_json
from antibackdoor.runs.model_file import ModelSpec
from antibackdoor.training.recipe import Recipe

Call = Callable[..., tuple[int, str, str]]
# Passes over the data, steps of a training, and samples that are only counted: more of them takes time alone.
TAKES_TIME = {
    "epochs", "mask_epochs", "joint_epochs", "short_epochs", "round_epochs", "shaping_epochs", "removal_epochs",
    "isolation_epochs", "unlearning_epochs", "warmup_epochs", "recovery_delay", "relearn", "patience", "steps",
    "warmup_steps", "confusion_steps", "rounds", "generations", "least_recovered",
}  # fmt: skip


def whole_numbers() -> Iterator[tuple[type[Any], str]]:
    """Each flag of a whole number, with the class that it belongs to."""
    for kind in {*ATTACKS.values(), *(kind for table in TABLES for kind in table.values()), Recipe}:
        for name, (owner, _) in flat_fields(kind).items():
            if get_type_hints(owner)[name] in (int, int | None) and name != "seed":
                yield kind, name


def test_every_whole_number_has_a_limit() -> None:
    flags = list(whole_numbers())
    assert len(flags) > 60
    assert {name for _, name in flags} == set(MOST_OF) & {name for _, name in flags} | TAKES_TIME
    for kind, name in flags:
        most = MOST_OF.get(name, MOST)
        for value in (most + 1, 10**30, 10**20_000):
            settings = make_dataclass("Settings", [(name, int, field(default=value))])()
            with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} is .*give at most {most}"):
                made(kind, settings)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("poison", "--attack", "badnets", "--cell", "1000000000"), "--cell is 1000000000; give at most 1024"),
        (("poison", "--attack", "refool", "--n-reflections", "9" * 500), "--n-reflections is 99"),
        (("poison", "--seed=-1"), "seed is -1"),
        (("poison", "--seed", "1" * 30), "seed is 1111"),
        (("poison", "--attack", "x" * 100_000), "…"),
        (("poison", "--target-label", "\x1b[2J" * 1000), "\\x1b[2J"),
        (("train", "--defense", "e2abl", "--head-width", "99999999"), "--head-width is 99999999"),
        (("train", "--seed=-1"), "seed is -1"),
    ],
)
def test_one_line(call: Call, tmp_path: Path, command: tuple[str, ...], said: str) -> None:
    data = write_folder(pictures(24, 3), tmp_path / "data")
    code, _, err = call(command[0], data, "--out", tmp_path / "out", *command[1:])
    assert code == 2 and said in err, err
    assert err.startswith("antibackdoor: ") and err.count("\n") == 1 and err.strip().isprintable()
    assert len(err) < 3 * LONGEST_WORD


def test_a_stream_has_no_negative_seed() -> None:
    with pytest.raises(ConfigError, match="seed is -1"):
        stream(-1, Stream.ORDER)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError("Unable to allocate 3.6 TiB for an array"), "not enough memory (Unable to allocate 3.6 TiB"),
        (RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: you tried\nmore"), "not enough memory"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "the disk is full; free some space"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a/b"), "a/b: the disk is full"),
    ],
)
def test_no_memory_and_no_disk_are_told_in_words(
    call: Call, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def broken(_: object) -> None:
        raise error

    monkeypatch.setattr(app, "build_app", broken)
    monkeypatch.setattr("antibackdoor.cli.failures._drop_output", lambda: None)
    code, _, err = call("doctor")
    assert (code, err.count("\n")) == (2, 1) and said in err


def test_warnings_are_sentences(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "build_app", lambda _: lambda *_, **__: warnings.warn("a\x07 file\nis odd", stacklevel=1))
    assert call("doctor") == (0, "", "antibackdoor: note: a\\x07 file is odd\n")


def spec(backbone: str) -> ModelSpec:
    return ModelSpec(backbone, "image", (3, 8, 8), ("class0", "class1"), (0.5,) * 3, (0.5,) * 3, None, "none", "1")


def test_the_code_of_a_network_is_not_even_imported_for_a_run_that_needs_none(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ran.py").write_text("from pathlib import Path\nPath('it_ran').touch()\nfactory = print\n")
    run, data = tmp_path / "run", write_folder(pictures(24, 2), tmp_path / "data")
    run.mkdir()
    write_json(run / model_file.SPEC, spec("wrn-10-1").to_json())
    write_json(run / "config.json", {"settings": {"model": {"network": "wrn-10-1"}}})
    for arguments in (
        ("evaluate", run),
        ("predict", run, data, "--out", tmp_path / "p.csv"),
        ("purify", run, "--out", tmp_path / "out", "--clean", data),
        ("scan", data, "--out", tmp_path / "out", "--detector", "spectral", "--checkpoint", run),
    ):
        code, _, err = call(*arguments, "--model", "ran:factory")
        assert code == 2 and "leave --model out" in err, err
    code, _, err = call("train", data, "--out", run, "--resume", "--model", "ran:factory")
    assert code == 2 and "was started with the network wrn-10-1" in err
    for command in ("train", "scan"):
        code, _, err = call(command, data, "--out", tmp_path / "out", "--backbone", "ran:factory")
        assert code == 2 and "give it with --model" in err
    assert not (tmp_path / "it_ran").exists()


def test_a_rate_beyond_the_class_is_told() -> None:
    data = pictures(40, 4)
    with pytest.warns(UserWarning, match="asks for 20 of 40 samples, .*has only 10: all of them"):
        poison(data, BadNets(), plan=CleanLabel(rate=0.5), seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        poison(data, BadNets(), plan=CleanLabel(rate=0.25), seed=0)
        poison(data, BadNets(), plan=CleanLabel(rate=1.0, rate_of="target_class"), seed=0)


def test_the_rate_that_was_not_kept_is_on_terminal_and_card(call: Call, tmp_path: Path) -> None:
    data = write_folder(pictures(40, 4), tmp_path / "data")
    out = tmp_path / "out"
    code, _, err = call("poison", data, "--out", out, "--attack", "sig", "--rate", "0.5", "--target-label", "class1")
    assert code == 0 and "antibackdoor: note: the poisoning rate 0.5 asks for 16 of 32 samples" in err
    assert "50.0%, more than the classes hold" in (out / "card.html").read_text()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError("1000000 requested and 131056 written"),  # numpy
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),  # safetensors
    ],
)
def test_a_full_disk_is_known_whoever_says_it(tmp_path: Path, error: Exception) -> None:
    assert disk_is_full(error)
    with pytest.raises(RunError, match=r"cannot write .*: the disk is full; free"), replacing(tmp_path / "x"):
        raise error
    wrapped = ModelError("unexpected pos 704 vs 598")
    wrapped.__context__ = error
    assert "the disk is full" in cannot("write", "x" * 1000, wrapped)
    assert not disk_is_full(OSError(errno.EACCES, "Permission denied"))
    assert not list(tmp_path.iterdir())
