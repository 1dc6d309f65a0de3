"""Hold-out by group: what belongs together is never both trained on and tested."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from antibackdoor.data.held_out import hold_out
from antibackdoor.data.reading import read, read_samples
from antibackdoor.errors import ConfigError, DataError

NAMES = np.array(["a", "b", "c"])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 11)), min_size=12, max_size=80), st.integers(0, 9))
def test_groups_stay_together(rows: list[tuple[int, int]], seed: int) -> None:
    labels = np.array([label for label, _ in rows])
    groups = tuple(f"p{group}" for _, group in rows)
    try:
        kept, held = hold_out(labels, NAMES, 0.25, seed=seed, groups=groups)
    except DataError:
        return
    assert sorted([*kept, *held]) == list(range(len(rows)))
    assert not {groups[row] for row in kept} & {groups[row] for row in held}
    assert {*labels[kept]} == {*labels[held]} == {*labels}


def test_the_shares_are_about_those_asked_for() -> None:
    labels = np.repeat([0, 1, 2], 200)
    groups = tuple(f"p{row % 40}" for row in range(600))
    _, held = hold_out(labels, NAMES, 0.2, seed=1, groups=groups)
    assert np.bincount(labels[held]).tolist() == [40, 40, 40], "8 of 40 equal groups"


def test_a_class_of_one_group_is_refused() -> None:
    with pytest.raises(DataError, match=r"class 'b' are in 1 group, .* another --group-by"):
        hold_out(np.array([0, 0, 1, 1]), NAMES[:2], 0.5, seed=0, groups=("p", "q", "r", "r"))


def frames(root: Path, names: list[str], side: int = 8) -> Path:
    rng = np.random.default_rng(0)
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(root / name)
    return root


def test_a_pattern_on_paths(tmp_path: Path) -> None:
    names = [f"{label}/cam{camera}_{i}.png" for label in ("cat", "dog") for camera in range(4) for i in range(3)]
    data = read(frames(tmp_path / "data", names), group_by=r"cam(\d)", test_fraction=0.25, cache=tmp_path / "cache")
    assert data.test is not None and len(data.test) == 6
    cameras = [{name.split("cam")[1][0] for name in part.ids.tolist()} for part in (data.train, data.test)]
    assert not cameras[0] & cameras[1]
    assert data.notes["test"] == "held out 25%" and "1 of 4" in data.notes["groups"]
    with pytest.raises(DataError, match="finds no group in 24 of 24 ids"):
        read(tmp_path / "data", group_by="patient", cache=tmp_path / "cache")
    with pytest.raises(ConfigError, match="not a valid regular expression"):
        read(tmp_path / "data", group_by="(", cache=tmp_path / "cache")
    with pytest.raises(ConfigError, match="nothing is held out"):
        read(tmp_path / "data", group_by=r"cam(\d)", test_fraction=0, cache=tmp_path / "cache")
    with pytest.raises(ConfigError, match="nothing is split here"):
        read_samples(tmp_path / "data", class_names=["cat", "dog"], shape=(3, 8, 8), group_by=r"cam(\d)")


def test_a_given_test_split_shares_no_group(tmp_path: Path) -> None:
    names = [f"{split}/{label}/cam{camera}.png" for split, cameras in (("train", (0, 1)), ("test", (1, 2)))
             for label in ("cat", "dog") for camera in cameras]  # fmt: skip
    data = frames(tmp_path / "data", names)
    assert read(data, cache=tmp_path / "cache").test is not None
    with pytest.raises(DataError, match="1 groups have samples in the training data and in the test data, such as '1'"):
        read(data, group_by=r"cam(\d)", cache=tmp_path / "cache")


def test_a_column_of_a_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [f"{k % 2},p{k % 10},{','.join(f'{v:.3f}' for v in rng.normal(0, 1, 6))}" for k in range(60)]
    path = tmp_path / "walks.csv"
    path.write_text("\n".join(["class,patient,t0,t1,t2,t3,t4,t5", *rows]))
    data = read(path, group_by="patient", test_fraction=0.2, cache=tmp_path / "cache")
    assert data.train.shape == (1, 6), "the patient is no step of the series"
    assert data.test is not None and len(data.test) == 12
    patients = [{int(name.split("/")[1]) % 10 for name in part.ids.tolist()} for part in (data.train, data.test)]
    assert not patients[0] & patients[1]
    assert "groups in 'patient'" in data.notes["table"]
    again = read_samples(path, class_names=["0", "1"], shape=(1, 6), split="all", recorded=data.options)
    assert len(again) == 60, "what a run recorded leaves the column out as well"
