"""Whether data are what they were: every sample counts, for runs that resume and for decoded images in the cache."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import pictures

from antibackdoor.app.evaluation import never_trained_on
from antibackdoor.app.fingerprints import fingerprint, is_same
from antibackdoor.app.finished import finished_message
from antibackdoor.app.pipeline import Job, train, verdict_table
from antibackdoor.data.reading import DataSet, read, write
from antibackdoor.data.samples import Samples
from antibackdoor.defenses import Undefended
from antibackdoor.errors import DataError, RunError
from antibackdoor.protocols import Verdict
from antibackdoor.runs.atomic import write_bytes
from antibackdoor.runs.run_folder import RunFolder
from antibackdoor.runs.samples_table import write_samples_table
from antibackdoor.training.recipe import Recipe


def with_one_changed(samples: Samples, row: int) -> Samples:
    inputs = samples.inputs.copy()
    inputs[row, 0, 3, 3] ^= 1
    return replace(samples, inputs=inputs)


def settings(samples: Samples) -> dict[str, object]:
    return {"data": {"n_train": len(samples), "fingerprint": fingerprint(samples)}}


def begun(path: Path, samples: Samples, kept: Samples | None = None) -> Path:
    codes = np.zeros(len(samples), np.uint8)
    with RunFolder.create(path, settings(samples)) as run:
        verdict = Verdict(np.zeros(len(samples)), codes, samples.labels, codes)
        write_samples_table(path, verdict_table(kept or samples, verdict))
        run.log(epoch=1)
    return path


def test_no_sample_is_passed_over() -> None:
    """The fingerprint looked at 256 rows."""
    samples = pictures(600)
    known = fingerprint(samples)
    assert known == fingerprint(pictures(600)) and len(known) == 32
    others = [with_one_changed(samples, row) for row in range(0, 600, 7)]
    others += [samples.relabel(1 - samples.labels), replace(samples, class_names=np.array(["a", "b"]))]
    others += [replace(samples, ids=np.roll(samples.ids, 1)), samples.take(np.arange(599))]
    assert known not in {fingerprint(other) for other in others}
    rows = np.arange(5, 300)
    assert fingerprint(samples, rows) == fingerprint(samples.take(rows))


def test_fingerprints_of_earlier_versions_are_known() -> None:
    assert is_same("aa83b7df3fcfc065", pictures(600)) and not is_same(
        "aa83b7df3fcfc065", pictures(599)
    )  # as version 0.1.0 made it
    assert not is_same(None, pictures(6)) and is_same(fingerprint(pictures(6)), pictures(6))


def test_a_run_is_not_resumed_on_other_data(tmp_path: Path) -> None:
    samples = pictures(300)
    run = begun(tmp_path / "run", samples)
    with pytest.raises(RunError, match="the data have changed since it was started"):
        RunFolder.create(run, settings(with_one_changed(samples, 151)), resume=True)
    with pytest.raises(RunError, match=r"'data.n_train' was 300 and is now 299"):
        RunFolder.create(run, settings(samples.take(np.arange(299))), resume=True)
    old = {"data": {"n_train": 300, "fingerprint": "0" * 16}}
    with pytest.raises(RunError, match="started by an earlier version"):
        RunFolder.create(begun_of(tmp_path / "old", old), settings(samples), resume=True)
    with pytest.raises(RunError, match="its inputs have changed since it was started \\(verdict\\)"):
        RunFolder.create(
            begun_of(tmp_path / "g", {"given": {"verdict": "a"}}), {"given": {"verdict": "b"}}, resume=True
        )


def begun_of(path: Path, given: dict[str, object]) -> Path:
    RunFolder.create(path, given).close()
    return path


def test_what_was_trained_on_is_not_taken_for_new_because_a_part_has_changed(tmp_path: Path) -> None:
    samples = pictures(60)
    run = begun(tmp_path / "run", samples.take(np.arange(40)))
    assert len(never_trained_on(run, samples)) == 20
    with pytest.raises(DataError, match=r"1 of the 40 samples .* are not what they were"):
        never_trained_on(run, with_one_changed(samples, 3))
    other = replace(pictures(60, seed=9), ids=samples.ids)
    assert len(never_trained_on(run, other)) == 60


def test_a_finished_run_says_so(tmp_path: Path) -> None:
    samples = pictures(20)
    run = begun(tmp_path / "run", samples)
    with RunFolder.create(run, settings(samples), resume=True) as again:
        again.finish({"test_fingerprint": fingerprint(pictures(8))})
    assert finished_message(run, pictures(8)).endswith("nothing was computed again.")
    assert "for other test data" in finished_message(run, pictures(9))


def test_an_unfinished_run_says_that_its_test_data_have_changed(tmp_path: Path) -> None:
    job = Job(Undefended(), Recipe(epochs=1, progress=False), "wrn-10-1")
    original = DataSet(pictures(20), pictures(8), "arrays", (), {})
    for test, said in ((pictures(8), []), (with_one_changed(pictures(8), 3), [True])):
        run, told = tmp_path / f"run{len(said)}", list[str]()

        def stop(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Undefended, "train", stop)
            train(original, job, run)
        train(replace(original, test=test), job, run, resume=True, tell=told.append)
        assert ["test data have changed" in message for message in told] == said


# --------------------------------------------------------------------------- decoded images


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[12:40] = b"{" * 28
    path.write_bytes(data)


def linked(path: Path) -> None:
    shutil.move(path, path.with_name("outside"))
    path.symlink_to(path.with_name("outside"))


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.skipif(os.name != "posix", reason="links and pipes")
@pytest.mark.parametrize("spoil", [torn, header, linked, piped])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    data = write(tmp_path / "data.npz", pictures(20), format="npz").path
    first = read(data, test_fraction=0, cache=tmp_path / "cache").train
    expected = np.array(first.inputs)
    (entry,) = (tmp_path / "cache").glob("images-*")
    for name in ("index.json", "rows.npy", "inputs.npy"):
        spoil(entry / name)
        again = read(data, test_fraction=0, cache=tmp_path / "cache").train
        np.testing.assert_array_equal(again.inputs, expected)
        assert (entry / name).is_file() and not (entry / name).is_symlink()
    survey = next((tmp_path / "cache").glob("survey-*"), None)
    if survey is not None:
        spoil(survey)
        assert len(read(data, test_fraction=0, cache=tmp_path / "cache").train) == 20


@pytest.mark.skipif(os.name != "posix", reason="locks")
def test_leftovers_go_where_nobody_writes_any_more(tmp_path: Path) -> None:
    import fcntl

    out = tmp_path / "answers.csv"
    abandoned, busy = (tmp_path / f".writing-{token}-answers.csv" for token in ("00000000", "11111111"))
    other = tmp_path / ".writing-00000000-answers.csv.csv"
    for path in (abandoned, busy, other):
        path.write_text("half")
    with busy.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        write_bytes(out, b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([busy.name, other.name, out.name])
