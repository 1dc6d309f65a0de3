"""`purify` as a user meets it: any model file, before and after, resume, and every mistake in one line."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from conftest import pictures, waves
from safetensors.torch import load_file, save_file
from test_report import HOSTILE, audit

from antibackdoor.app.evaluation import fingerprints
from antibackdoor.app.methods import TABLES
from antibackdoor.attacks import ATTACKS
from antibackdoor.cli import main
from antibackdoor.cli.flags import flat_fields
from antibackdoor.cli.lists import LISTS
from antibackdoor.data.reading import write
from antibackdoor.data.samples import Samples
from antibackdoor.errors import RunError
from antibackdoor.models.backbones import build_backbone
from antibackdoor.purifiers import PURIFIERS
from antibackdoor.report import Attention, save_attention, write_report
from antibackdoor.report.attention import ATTENTION, cubehelix, load_attention
from antibackdoor.report.purified import class_tables, purified_facts, purified_numbers, purified_verdict
from antibackdoor.runs.artifacts import read_classes, write_classes
from antibackdoor.runs.run_folder import RunFolder

Call = Callable[..., tuple[int, str, str]]
CPU = ["--device", "cpu", "--precision", "fp32"]
TUNE = [*CPU, "--method", "fine-tune", "--epochs", "2", "--learning-rate", "0.02", "--augment", "none"]


def said(arguments: list[str]) -> None:
    """Run a command that must succeed."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not ended.value.code


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Poisoned data (`dirty`), an undefended model of them (`attacked`), clean samples and test samples."""
    home = tmp_path_factory.mktemp("bench")
    for name, samples in (
        ("data", pictures(300, 3)),
        ("clean", pictures(60, 3, seed=1)),
        ("test", pictures(60, 3, seed=2)),
    ):
        write(home / f"{name}.npz", samples, format="npz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        said(["poison", f"{home}/data.npz", "--out", f"{home}/dirty", "--rate", "0.2", "--target-label", "class1"])
        network = ["--backbone", "wrn-10-1", "--epochs", "10", *CPU]
        said(["train", f"{home}/dirty", "--out", f"{home}/attacked", "--defense", "none", *network])
    return home


def facts_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text())


def one_line(call: Call, *arguments: object) -> str:
    """The message of a command that a user got wrong."""
    code, _, err = call(*arguments)
    assert code == 2 and err.count("\n") == 1, err
    return err


# --------------------------------------------------------------------------- from a run to a purified run


def test_before_and_after(call: Call, bench: Path, tmp_path: Path) -> None:
    run, test = tmp_path / "tuned", bench / "test.npz"
    given = ["--clean", bench / "clean.npz", "--test", test, "--measure-trigger", bench / "dirty"]
    code, out, err = call("purify", bench / "attacked", "--out", run, *TUNE, *given)
    assert (code, err) == (0, "") and "Report:" in out
    facts = facts_of(run)
    assert facts["purified_from"] == "none" and facts["method"] == "fine-tune" and facts["n_clean"] == 60
    assert facts["attack_success_rate_before"] > 0.9 and facts["clean_accuracy_before"] > 0.9
    assert facts["clean_accuracy_low"] <= facts["clean_accuracy"] and facts["n_triggered"] == 40
    assert facts["clean_accuracy_nontarget_before"] > 0.9 and facts["clean_accuracy_nontarget"] > 0.5
    assert "poisoned" not in facts and not (run / "samples.parquet").exists()
    names, columns = read_classes(run)
    assert names == ["class0", "class1", "class2"]
    assert columns["clean_accuracy_n"] == [20, 20, 20] and columns["attack_success_rate_before"][1] is None
    assert np.mean(columns["clean_accuracy_before"]) == pytest.approx(facts["clean_accuracy_before"])

    text = " ".join(" ".join(audit(run / "report.html").text).split())
    for phrase in (
        "Attack success",
        "correctly before and",
        "Class by class",
        "Where the networks look",
        "with trigger",
        "n_clean",
    ):
        assert phrase in text, phrase
    assert "most suspicious" not in text and "samples.parquet" not in text and "given label" not in text

    before = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    assert call("report", run)[0] == 0 and (run / "report.html").read_bytes() == before
    assert call("predict", run, test, "--out", tmp_path / "said.csv", *CPU[:2])[0] == 0
    assert len((tmp_path / "said.csv").read_text().splitlines()) == 61


def test_evaluate_keeps_what_can_be_compared(call: Call, bench: Path, tmp_path: Path) -> None:
    run, test, trigger = tmp_path / "tuned", bench / "test.npz", bench / "dirty"
    given = ["--clean", bench / "clean.npz", "--test", test, "--measure-trigger", trigger]
    assert call("purify", bench / "attacked", "--out", run, *TUNE, *given)[0] == 0
    once, columns = facts_of(run), read_classes(run)
    assert call("evaluate", run, "--data", test, "--trigger", trigger, "--device", "cpu")[0] == 0
    assert facts_of(run) == once and read_classes(run) == columns
    assert call("evaluate", run, "--data", bench / "data.npz", "--trigger", trigger, "--device", "cpu")[0] == 0
    again = facts_of(run)
    assert again["n_test"] == 300 and "clean_accuracy_before" not in again
    assert "clean_accuracy_before" not in read_classes(run)[1]
    message = one_line(call, "evaluate", run, "--data", bench / "clean.npz", "--device", "cpu")
    assert "purified with these very data" in message
    assert "leave --truth out" in one_line(call, "evaluate", run, "--truth", trigger / "truth.parquet")


def test_without_test_data_nothing_is_claimed(call: Call, bench: Path, tmp_path: Path) -> None:
    run = tmp_path / "tuned"
    assert call("purify", bench / "attacked", "--out", run, *TUNE, "--clean", bench / "clean.npz")[0] == 0
    text = (run / "report.html").read_text()
    assert "whether it had a backdoor is unknown" in text and "no test data were given" in text
    assert not (run / ATTENTION).exists()
    assert "clean_accuracy" not in facts_of(run)
    assert call("evaluate", run, "--data", bench / "test.npz", "--trigger", bench / "dirty", "--device", "cpu")[0] == 0
    assert "after the purification" in (run / "report.html").read_text()


def test_the_teacher_of_nad_is_shown(call: Call, bench: Path, tmp_path: Path) -> None:
    run = tmp_path / "nad"
    given = ["--clean", bench / "clean.npz", "--test", bench / "test.npz", "--method", "nad", "--epochs", "1", *CPU]
    assert call("purify", bench / "attacked", "--out", run, *given)[0] == 0
    attention = load_attention(run)
    assert attention is not None and attention.maps.shape == (6, 3, 8, 8) and not attention.triggered.any()
    assert (attention.maps.reshape(18, -1).max(1) > 100).all(), "each map has its own scale"
    assert attention.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert "Teacher" in (run / "report.html").read_text()


def test_series(call: Call, tmp_path: Path) -> None:
    data = write(tmp_path / "data.npz", waves(60, 3, channels=2, length=32), format="npz").path
    run = tmp_path / "run"
    network = ["--backbone", "fcn", "--epochs", "2", *CPU]
    assert call("train", data, "--out", run, "--defense", "none", *network)[0] == 0
    tuned = tmp_path / "tuned"
    assert call("purify", run, "--out", tuned, *TUNE, "--clean", data, "--test", data)[0] == 0
    attention = load_attention(tuned)
    assert attention is not None and attention.maps.shape == (6, 2, 32)
    assert audit(tuned / "report.html") and 'class="strip"' in (tuned / "report.html").read_text()


def test_suspicious_data_are_enough_for_self_clean(call: Call, bench: Path, tmp_path: Path) -> None:
    if "self-clean" not in PURIFIERS:
        pytest.skip("self-clean is not in the table yet")
    scan, run = tmp_path / "scan", tmp_path / "cleaned"
    scanned = ["--detector", "loss-drop", "--checkpoint", bench / "attacked", *CPU]
    assert call("scan", bench / "dirty", "--out", scan, *scanned)[0] == 0
    given = ["--suspicious", bench / "dirty", "--verdict", scan, "--test", bench / "test.npz"]
    code, _, err = call(
        "purify", bench / "attacked", "--out", run, "--method", "self-clean", *given, "--epochs", "2", *CPU
    )
    assert (code, err) == (0, ""), err
    assert "verdict" in json.loads((run / "config.json").read_text())["settings"]["given"]


# --------------------------------------------------------------------------- bare files


def weights(bench: Path, path: Path, *, shuffled: bool = False) -> Path:
    """The attacked model's weights as somebody else might have stored them."""
    state = load_file(bench / "attacked" / "model.safetensors")
    if shuffled:
        generator = torch.Generator().manual_seed(0)
        for value in state.values():
            if value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=generator).abs() + 0.1)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"epoch": 10, "state_dict": state}, path)
    return path


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_a_bare_file(call: Call, bench: Path, tmp_path: Path, ending: str) -> None:
    file, run = weights(bench, tmp_path / f"model{ending}"), tmp_path / "run"
    given = ["--clean", bench / "clean.npz", "--test", bench / "test.npz", "--backbone", "wrn-10-1"]
    code, _, err = call("purify", file, "--out", run, *TUNE, *given)
    assert (code, err) == (0, "")
    facts = facts_of(run)
    assert facts["purified_from"] == "given" and facts["accuracy_as_given"] > 0.9 and not facts["classes_reordered"]
    assert "from a weights file" in (run / "report.html").read_text()
    assert call("evaluate", run, "--data", bench / "test.npz", "--device", "cpu")[0] == 0
    assert "--backbone or --model" in one_line(call, "purify", file, "--out", tmp_path / "x", *TUNE, *given[:4])


def test_a_model_near_chance_is_refused(call: Call, bench: Path, tmp_path: Path) -> None:
    file = weights(bench, tmp_path / "noise.safetensors", shuffled=True)
    given = ["--clean", bench / "clean.npz", "--backbone", "wrn-10-1"]
    message = one_line(call, "purify", file, "--out", tmp_path / "run", *TUNE, *given)
    assert "near chance" in message and not (tmp_path / "run").exists()


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("stored", ["pickle", "torch"])
def test_a_pickle_that_runs_code_is_refused(call: Call, bench: Path, tmp_path: Path, stored: str) -> None:
    file, sign = tmp_path / "model.pt", tmp_path / "executed"
    if stored == "pickle":
        file.write_bytes(pickle.dumps({"state_dict": _Bomb(sign)}))
    else:
        torch.save({"state_dict": _Bomb(sign)}, file)
    given = ["--clean", bench / "clean.npz", "--backbone", "wrn-10-1"]
    one_line(call, "purify", file, "--out", tmp_path / "run", *TUNE, *given)
    assert not sign.exists() and not (tmp_path / "run").exists()


# --------------------------------------------------------------------------- stopped, and mistakes


def test_a_stopped_purification_ends_the_same(
    call: Call, bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["--clean", bench / "clean.npz", "--test", bench / "test.npz"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert call("purify", bench / "attacked", "--out", whole, *TUNE, *given)[0] == 0
    save = RunFolder.save
    saves = []

    def dies(run: RunFolder, state: dict[str, Any]) -> None:
        save(run, state)
        saves.append(1)
        if len(saves) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", dies)
        code, _, err = call("purify", bench / "attacked", "--out", stopped, *TUNE, *given)
    assert code == 130 and "--resume" in err and (stopped / "checkpoint.pt").exists()
    assert "--resume" in one_line(call, "purify", bench / "attacked", "--out", stopped, *TUNE, *given)
    other = tmp_path / "other"
    shutil.copytree(bench / "attacked", other)
    state = load_file(other / "model.safetensors")
    moved = {name: value + 1e-4 if value.is_floating_point() else value for name, value in state.items()}
    save_file(moved, other / "model.safetensors")
    assert "checksum" in one_line(call, "purify", other, "--out", stopped, *TUNE, *given, "--resume")
    (other / "checksums.json").unlink()
    message = one_line(call, "purify", other, "--out", stopped, *TUNE, *given, "--resume")
    assert "model.weights" in message
    assert call("purify", bench / "attacked", "--out", stopped, *TUNE, *given, "--resume")[0] == 0
    assert (stopped / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert {**facts_of(stopped), "seconds": 0} == {**facts_of(whole), "seconds": 0}
    assert call("purify", bench / "attacked", "--out", stopped, *TUNE, *given, "--resume")[0] == 0  # nothing left to do


def test_mistakes_end_in_one_line(call: Call, bench: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "run", *TUNE]
    clean, test, attacked = bench / "clean.npz", bench / "test.npz", bench / "attacked"
    waves_file = write(tmp_path / "waves.npz", waves(30, 3), format="npz").path
    renamed = pictures(30, 3)
    renamed = Samples(renamed.inputs, renamed.labels, renamed.ids, np.array(["x", "y", "z"]))
    others = write(tmp_path / "others.npz", renamed, format="npz").path
    color = Samples(renamed.inputs.repeat(3, axis=1), renamed.labels, renamed.ids, pictures(3, 3).class_names)
    colored = write(tmp_path / "colored.npz", color, format="npz").path
    assert "needs clean" in one_line(call, "purify", attacked, *out)
    assert "there is no" in one_line(call, "purify", tmp_path / "nothing", *out, "--clean", clean)
    assert "takes image data" in one_line(call, "purify", attacked, *out, "--clean", waves_file)
    assert "class" in one_line(call, "purify", attacked, *out, "--clean", others)
    file = weights(bench, tmp_path / "model.safetensors")
    one_line(call, "purify", file, *out, "--clean", colored, "--backbone", "wrn-10-1")
    one_line(call, "purify", file, *out, "--clean", clean, "--backbone", "wrn-16-2")
    trigger = ["--measure-trigger", bench / "dirty"]
    assert "give --test" in one_line(call, "purify", attacked, *out, "--clean", clean, *trigger)
    empty = ["--measure-trigger", tmp_path]
    assert "holds no trigger" in one_line(call, "purify", attacked, *out, "--clean", clean, "--test", test, *empty)
    both = ["--suspicious", bench / "dirty"]
    assert "cannot use suspicious" in one_line(call, "purify", attacked, *out, "--clean", clean, *both)
    about = ["--verdict", attacked]
    assert "--suspicious" in one_line(call, "purify", attacked, *out, *about)
    assert not (tmp_path / "run" / "config.json").exists()


# --------------------------------------------------------------------------- words and pictures


def test_words_of_a_purification() -> None:
    facts = {"purified_from": "none", "method": "nad", "clean_accuracy": 0.9, "n_clean": 5, "layers": ["a", "b"]}
    assert purified_verdict(facts).title == "A model was purified; whether it had a backdoor is unknown."
    measured = {**facts, "attack_success_rate_before": 0.998, "attack_success_rate": 0.031, "n_triggered": 9000}
    assert purified_verdict(measured).title == "Attack success 99.8% before, 3.1% after."
    assert purified_numbers({**measured, "clean_accuracy_before": 1})[0].value == "100% → 90.0%"
    assert purified_facts(facts) == [("n_clean", "5"), ("layers", "a, b")]
    for junk in ("text", None, True, [], [1]):
        odd = dict.fromkeys((*measured, "clean_accuracy_before", "seconds", "n_test", "robust_accuracy"), junk)
        purified_verdict(odd), purified_numbers(odd), purified_facts(odd)


def test_many_classes_become_a_short_table(tmp_path: Path) -> None:
    names = np.array([f"class {k}" for k in range(200)])
    after = [1.0 if k != 150 else 0.25 for k in range(200)]
    write_classes(
        tmp_path, names, {"clean_accuracy_n": [10] * 200, "clean_accuracy": after, "clean_accuracy_before": [1.0] * 200}
    )
    (table,) = class_tables(tmp_path)
    assert len(table.rows) == 30 and table.rows[-1].numbers == "100% → 100% of 1,710"
    assert [row.numbers for row in table.rows if row.name == "class 150"] == ["100% → 25.0% of 10"]
    (tmp_path / "classes.csv").write_text("class,clean_accuracy\na,zero\n")
    with pytest.raises(RunError, match="damaged"):
        class_tables(tmp_path)


def test_hostile_names_and_damaged_pictures(call: Call, bench: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(bench / "attacked", run)
    spec = json.loads((run / "model.json").read_text())
    for name in HOSTILE:
        hostile = name.replace("\x00", "")
        (run / "model.json").write_text(json.dumps({**spec, "class_names": [hostile, "b", "c"], "method": hostile}))
        facts = {"purified_from": hostile, "method": hostile, hostile: hostile, "clean_accuracy": 0.5}
        (run / "metrics.json").write_text(json.dumps({"schema_version": 2, **facts}))
        columns = {"clean_accuracy_n": [1, 1, 1], "clean_accuracy": [0.5, None, 1.0]}
        write_classes(run, np.array([hostile, "b", "c"]), columns)
        maps = np.zeros((2, 2, 8, 8), dtype=np.uint8)
        zeros = np.zeros((2, 2), dtype=np.int64)
        save_attention(run, Attention(pictures(2).inputs, maps, zeros, zeros[0], np.array([True, False])))
        html = write_report(run).read_text(encoding="utf-8")
        audit(run / "report.html")
        assert "\u202e" not in html and "x" * 2000 not in html
    for damage in (b"", b"PK nonsense", b"\x80\x02K\x01."):
        (run / ATTENTION).write_bytes(damage)
        with pytest.raises(RunError, match="damaged"):
            load_attention(run)


def test_colors_are_ordered_by_lightness() -> None:
    ramp = cubehelix(np.arange(256, dtype=np.uint8)[None])[:, 0].astype(float)
    luminance = np.array([0.299, 0.587, 0.114]) @ ramp  # the weights that the scale is made for
    assert (np.diff(luminance) > -1).all() and luminance[0] == 0 and luminance[-1] == pytest.approx(255)
    assert np.abs(luminance - np.arange(256)).max() < 12


def test_fingerprints_tell_data_and_triggers_apart(bench: Path) -> None:
    one = fingerprints(pictures(20), bench / "dirty", None)
    assert set(one) == {"test_fingerprint", "trigger_fingerprint"}
    assert one["test_fingerprint"] != fingerprints(pictures(20, seed=1), None, None)["test_fingerprint"]


# --------------------------------------------------------------------------- what is given of a model


def test_suspicious_data_alone_are_enough(call: Call, bench: Path, tmp_path: Path) -> None:
    run, dirty = tmp_path / "cleaned", ["--suspicious", bench / "dirty"]
    quick = ["--epochs", "1", "--confusion-steps", "2", "--warmup-steps", "2", *CPU]
    code, _, err = call("purify", bench / "attacked", "--out", run, *dirty, *quick)
    assert (code, err) == (0, "") and facts_of(run)["method"] == "self-clean"
    message = one_line(call, "purify", bench / "attacked", "--out", tmp_path / "x", *dirty, "--method", "nad")
    assert "--method nad needs clean samples: give --clean, or use --method self-clean" in message
    message = one_line(call, "purify", bench / "attacked", "--out", tmp_path / "x", "--method", "unlearn")
    assert "--method unlearn needs suspicious: give --suspicious" in message


def test_a_run_near_chance_is_refused_where_the_samples_can_tell(call: Call, bench: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "noise", ["--out", tmp_path / "x", *TUNE]
    shutil.copytree(bench / "attacked", run)
    weights(bench, run / "model.safetensors", shuffled=True)
    (run / "checksums.json").unlink()
    message = one_line(call, "purify", run, *out, "--clean", bench / "clean.npz")
    assert f"{run} is near chance on the clean samples" in message and not (tmp_path / "x").exists()
    few = write(tmp_path / "few.npz", pictures(6, 3), format="npz").path
    assert call("purify", run, *out, "--clean", few)[0] == 0, "six samples tell nothing"


@pytest.mark.parametrize("flag", ["--mean", "--std", "--classes", "--image-size", "--backbone"])
def test_what_a_run_folder_knows_is_not_said(call: Call, bench: Path, tmp_path: Path, flag: str) -> None:
    names = tmp_path / "names.txt"
    names.write_text("class0\nclass1\nclass2\n")
    value = {"--classes": names, "--backbone": "wrn-10-1", "--image-size": "8"}.get(flag, "0.5")
    given = ["--out", tmp_path / "x", *TUNE, "--clean", bench / "clean.npz", flag, value]
    assert f"is a run folder, which knows its network, normalization and classes: leave {flag} out" in one_line(
        call, "purify", bench / "attacked", *given
    )


def test_lists_are_said_in_three_ways(call: Call, bench: Path, tmp_path: Path) -> None:
    file = weights(bench, tmp_path / "model.safetensors")
    given = ["--clean", bench / "clean.npz", "--backbone", "wrn-10-1", *TUNE]
    for number, said in enumerate((["--mean", "0.5", "--std", "0.25"], ["--mean=0.5", "--std=.25"])):
        assert call("purify", file, "--out", tmp_path / str(number), *given, *said)[0] == 0
        assert facts_of(tmp_path / str(number))["normalization"] == "given"
        assert json.loads((tmp_path / str(number) / "model.json").read_text())["mean"] == [0.5]
    out = ["--out", tmp_path / "x"]
    for three in (["0.4,0.5,.6"], ["0.4", "0.5", "0.6"], ["0.4", "--mean", "0.5", "--mean=0.6"]):
        message = one_line(call, "purify", file, *out, *given, "--std", "1", "--mean", *three)
        assert "--mean has 3 values, the inputs have 1 channels" in message
    alone = one_line(call, "purify", file, *out, *given, "--mean", "0.5")
    assert "--mean is given without --std: give both or neither" in alone
    assert "above 0" in one_line(call, "purify", file, *out, *given, "--mean", "0", "--std", "0")
    assert "--mean" in one_line(call, "purify", file, *out, *given, "--mean", "0.5,x", "--std", "1")
    betas = ["--method", "nad", "--epochs", "1", *CPU, "--betas", "1,0.5", "--layers", "network.stage2,network.stage3"]
    code, _, err = call("purify", bench / "attacked", "--out", tmp_path / "nad", *given[:2], *betas)
    assert (code, err) == (0, "")
    settings = json.loads((tmp_path / "nad" / "config.json").read_text())["settings"]["hyper_parameters"]
    assert settings["betas"] == [1.0, 0.5] and settings["layers"] == ["network.stage2", "network.stage3"]
    again = ["--config", tmp_path / "nad" / "run.toml", *given[:2]]
    assert call("purify", bench / "attacked", "--out", tmp_path / "again", *again)[0] == 0
    assert json.loads((tmp_path / "again" / "config.json").read_text())["settings"]["hyper_parameters"] == settings


def test_every_flag_of_several_values_is_known_as_one() -> None:
    for table in (*TABLES, ATTACKS):
        for kind in table.values():
            for name, (owner, _) in flat_fields(kind).items():
                is_list = get_origin(get_type_hints(owner)[name]) is tuple
                assert (f"--{name.replace('_', '-')}" in LISTS) is is_list, f"{kind.__name__}.{name}"


def test_a_teacher_of_its_own(call: Call, bench: Path, tmp_path: Path) -> None:
    file = weights(bench, tmp_path / "teacher.pt")
    nad = ["--clean", bench / "clean.npz", "--method", "nad", "--pair", "C-B", "--epochs", "1", *CPU]

    def purified(name: str, *given: object) -> bytes:
        code, _, err = call("purify", bench / "attacked", "--out", tmp_path / name, *nad, *given)
        assert (code, err) == (0, ""), err
        return (tmp_path / name / "model.safetensors").read_bytes()

    of_a_run = purified("run", "--teacher", bench / "attacked")
    assert purified("file", "--teacher", file) == of_a_run, "read as the network of the model"
    assert purified("named", "--teacher", file, "--teacher-backbone", "wrn-10-1") == of_a_run
    out = ["purify", bench / "attacked", "--out", tmp_path / "x", *nad]
    other = tmp_path / "other.pt"
    knows_nothing = build_backbone("wrn-16-1", (1, 8, 8), 3)
    for parameter in list(knows_nothing.parameters())[-2:]:  # of the classifier; an untrained one may be lucky
        torch.nn.init.zeros_(parameter)
    torch.save(knows_nothing.state_dict(), other)
    assert "--teacher-backbone" in one_line(call, *out, "--teacher", other)
    message = one_line(call, *out, "--teacher", other, "--teacher-backbone", "wrn-16-1")
    assert "other.pt is near chance" in message or "near chance" in message
    assert "--mean" not in message and "--classes" not in message, "which say nothing of a teacher"
    message = one_line(call, *out, "--teacher", bench / "attacked", "--teacher-backbone", "wrn-10-1")
    assert "leave --teacher-backbone out" in message
    assert "give --teacher" in one_line(call, *out, "--teacher-backbone", "wrn-10-1")
    assert "there is no" in one_line(call, *out, "--teacher", tmp_path / "none.pt")


def test_clp_needs_no_data(call: Call, bench: Path, tmp_path: Path) -> None:
    whole = weights(bench, tmp_path / "whole.safetensors")  # with its normalization
    state = load_file(whole)
    bare = tmp_path / "bare.safetensors"
    save_file({name: value for name, value in state.items() if "normalize" not in name}, bare)
    clp = ["--backbone", "wrn-10-1", "--method", "clp", "--u", "1"]
    names = tmp_path / "names.txt"
    names.write_text("class0\nclass1\nclass2\n")

    def purified(name: str, *given: object) -> dict[str, torch.Tensor]:
        code, _, err = call("purify", *given, "--out", tmp_path / name, *clp)
        assert (code, err) == (0, ""), err
        return load_file(tmp_path / name / "model.safetensors")

    of_data = purified("data", whole, "--clean", bench / "clean.npz")
    spec = json.loads((tmp_path / "data" / "model.json").read_text())
    said = ["--mean", str(spec["mean"][0]), "--std", str(spec["std"][0])]
    for name, given in (("whole", [whole]), ("bare", [bare, *said]), ("named", [bare, *said, "--classes", names])):
        found = purified(name, *given, "--image-size", "8")
        assert all(torch.equal(value, found[key]) for key, value in of_data.items()), name
        told = json.loads((tmp_path / name / "model.json").read_text())
        assert told["input_shape"] == [1, 8, 8] and told["mean"] == pytest.approx(spec["mean"])
        assert told["class_names"] == (["class0", "class1", "class2"] if name == "named" else ["0", "1", "2"])
    assert call("evaluate", tmp_path / "named", "--data", bench / "test.npz", "--device", "cpu")[0] == 0
    out = ["--out", tmp_path / "x", *clp]
    assert "--image-size, --mean and --std" in one_line(call, "purify", bare, *out)
    assert "holds no normalization: give --mean and --std" in one_line(call, "purify", bare, *out, "--image-size", "8")
    size = ["--image-size", "8", *said]
    names.write_text("class0\nclass1\n")
    assert "another shape" in one_line(call, "purify", bare, *out, *size, "--classes", names)
    names.write_text("")
    assert "is empty" in one_line(call, "purify", bare, *out, *size, "--classes", names)
    assert "give 1 to 1024" in one_line(call, "purify", bare, *out, *said, "--image-size", "1000000")
    fcn = ["--out", tmp_path / "x", "--backbone", "fcn", "--method", "clp"]
    assert "for series" in one_line(call, "purify", bare, *fcn, *size)
    tune = ["--out", tmp_path / "x", "--backbone", "wrn-10-1", "--method", "fine-tune"]
    assert "needs clean samples" in one_line(call, "purify", bare, *tune, *size)
