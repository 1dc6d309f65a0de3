"""What the evidence is worth: rate, interval, and the probability of a false alarm."""

from __future__ import annotations

import numpy as np

from antibackdoor.trap import Caught
from antibackdoor.verdict import evidence, false_alarm_probability, judge


def caught(
    depths: list[float],
    gains: list[float] | None = None,
    labels: tuple[int, ...] = (),
    n: int = 1000,
    core: int = 0,
    near: int = 0,
) -> Caught:
    rows = np.arange(n)
    return Caught(
        isolated=rows < core + near,
        core=rows < core,
        content=np.zeros(n, dtype=bool),
        margins=np.zeros(n),
        removable=np.zeros(n, dtype=bool),
        depths=np.array(depths),
        gains=np.full(len(depths), np.nan) if gains is None else np.array(gains),
        labels=labels,
        steps=0,
    )


def test_the_rate_lies_in_its_interval() -> None:
    facts = judge(caught([0.9] * 9 + [6.0], labels=(9,), core=100, near=20))
    assert facts["estimated_poisoning_rate"] == 0.1
    low, high = facts["estimated_poisoning_rate_low"], facts["estimated_poisoning_rate_high"]
    assert low is not None and high is not None
    assert 0.08 < low < 0.1 < 0.12 < high < 0.145


def test_nothing_found_has_no_interval() -> None:
    facts = judge(caught([0.9] * 10))
    assert facts["estimated_poisoning_rate"] == 0
    assert facts["estimated_poisoning_rate_low"] is None and facts["estimated_poisoning_rate_high"] is None


def test_strong_evidence_is_rare_among_clean_data() -> None:
    strong = false_alarm_probability(caught([0.9, 0.92, 0.88, 0.9, 0.91, 0.9, 0.9, 30.0], labels=(7,)))
    weak = false_alarm_probability(caught([0.9, 1.1, 0.8, 0.9, 0.95, 1.2], labels=(5,)))
    assert strong is not None and weak is not None
    assert strong < 0.001 < 0.5 < weak


def test_either_kind_of_evidence_counts() -> None:
    flat, gains = [0.9] * 6, [0.0, 1.0, 2.0, 0.5, 0.0, 300.0]
    refused = false_alarm_probability(caught(flat, gains))
    assert refused is not None and refused > 0.1, "a gain that the search did not accept is no evidence"
    accepted = caught(flat, gains, labels=(5,), core=50)
    accepted.content[:50] = True
    by_gain = false_alarm_probability(accepted)
    by_depth = false_alarm_probability(caught([*flat[:5], 90.0], gains, labels=(5,)))
    assert by_gain is not None and by_gain < 1e-3
    assert by_depth is not None and by_depth < 1e-2


def test_too_few_labels_give_no_probability() -> None:
    assert false_alarm_probability(caught([0.9, 6.0], labels=(1,))) is None
    assert false_alarm_probability(caught([np.nan] * 5)) is None


def test_it_is_calibrated_where_its_assumption_holds() -> None:
    """Labels with log-normal depths and no backdoor: a probability below p must not come more often than p."""
    rng = np.random.default_rng(0)
    found = [false_alarm_probability(caught(np.exp(rng.normal(0, 0.3, 10)).tolist())) for _ in range(400)]
    values = np.array(found, dtype=np.float64)
    assert (values < 0.05).mean() < 0.06 and (values < 0.5).mean() > 0.02


def test_evidence_names_what_spoke() -> None:
    found = caught([0.9] * 4, core=3, near=2, n=8)
    found.content[0] = True
    assert evidence(found).tolist() == ["content", "shortcut", "shortcut", "near", "near", "", "", ""]
