"""Poison that only a second search catches, once the main head has set it apart."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from watched_runs import RECIPE, Watched, assert_alike, builder, find_nothing, killed_and_resumed

from antibackdoor.attacks import BadNets, Poisoned, SourceSpecific, poison
from antibackdoor.defenses import E2ABL
from antibackdoor.demo import digits
from antibackdoor.protocols import Trained


class FromOneSource(NamedTuple):
    """Digits with poison from one class, and an unbroken training on them."""

    data: Poisoned
    trained: Trained
    journal: Watched


@pytest.fixture(scope="module")
def from_one_source() -> Iterator[FromOneSource]:
    data, journal = poison(digits(0).train, BadNets(), seed=0, plan=SourceSpecific(0.05, 4, 7, 0.02)), Watched()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("antibackdoor.defenses.e2abl.spring", find_nothing)
        yield FromOneSource(data, E2ABL().train(data.samples, builder(data.samples), RECIPE, journal=journal), journal)


def test_carriers_that_the_main_head_sets_apart_are_searched_for_once_more(from_one_source: FromOneSource) -> None:
    """Features cannot tell that poison from one source is wrong where it is; that it is a shortcut, the trap can."""
    data, trained, journal = from_one_source
    is_poisoned = data.truth.is_poisoned
    assert trained.backdoor_labels == (4,)
    assert (is_poisoned & ~trained.isolated).sum() <= 4
    assert (trained.isolated & ~is_poisoned & ~data.truth.is_cover).sum() <= 15
    assert trained.evidence is not None and trained.notes is not None
    assert set(trained.evidence[is_poisoned & trained.isolated]) == {"shortcut"}
    assert trained.notes["n_found_late"] == 0, "features speak against none of them"
    n = len(data.samples)
    assert journal.trained[0] == n and n - trained.isolated.sum() in journal.trained, "the training began anew"


def test_a_run_killed_around_the_second_search_ends_as_an_unbroken_one(
    tmp_path: Path, from_one_source: FromOneSource
) -> None:
    whole = from_one_source.trained
    assert whole.poisoned
    ends = (("found", 0), ("main", 3), ("found", 0), ("main", 2))
    assert_alike(killed_and_resumed(tmp_path / "run", from_one_source.data.samples, RECIPE, *ends), whole)
