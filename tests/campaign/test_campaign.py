"""The driver finds every kind of fault; a seeded part of the campaign finds none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and looks into /proc")

REPOSITORY = Path(__file__).parents[2]
CASES = 146  # each generator at least once; the whole is 2,000


def campaign(tmp_path: Path, *words: object) -> tuple[int, str, list[list[str]]]:
    """Run it in a process of its own, whose children are forked from few threads: exit code, text, outcomes."""
    found = tmp_path / "outcomes.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.campaign", "--json", str(found), *map(str, words)],
        cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}, text=True,
        capture_output=True, timeout=600,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr, json.loads(found.read_text()) if found.exists() else []


def test_the_driver_finds_each_kind_of_fault(tmp_path: Path) -> None:
    from .outcomes import FAULTS
    from .planted import PLANTED

    n = len(PLANTED.hostile)
    code, text, outcomes = campaign(tmp_path, "--planted", "--cases", n, "--jobs", 4, "--seconds", 3)
    assert code == 1 and len(outcomes) == n, text
    wrong = [outcome for outcome in outcomes if outcome[1].split("/")[0] != outcome[2]]
    assert not wrong, wrong
    assert {outcome[2] for outcome in outcomes} == {*FAULTS, "ok", "refused"}


def test_a_seeded_part_of_the_campaign_finds_nothing(tmp_path: Path) -> None:
    code, text, outcomes = campaign(tmp_path, "--cases", CASES, "--seed", 1, "--jobs", 2)
    assert len(outcomes) == CASES, text
    assert code == 0, text
    kinds = [outcome[2] for outcome in outcomes]
    assert 0.1 < kinds.count("ok") / CASES < 0.8, "neither is everything refused, nor is nothing tried"


def test_half_of_the_cases_change_one_thing() -> None:
    from .generators import GENERATORS

    assert len(GENERATORS.one_change) + len(GENERATORS.hostile) >= 40
    names = [GENERATORS.of_case(number, 0)[0] for number in range(2000)]
    assert sum(name in GENERATORS.one_change for name in names) == 1000
    assert {*names} == {*GENERATORS.one_change, *GENERATORS.hostile}
    assert names == [GENERATORS.of_case(number, 0)[0] for number in range(2000)]
