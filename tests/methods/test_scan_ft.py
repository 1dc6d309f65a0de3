"""SCAnFT: what SCAn flags is unlearned, and stays so while the model is fine-tuned."""

from __future__ import annotations

from dataclasses import replace

import pytest
from backdoored import RECIPE, Ledger, scene, weights

from antibackdoor.detectors import SCAn
from antibackdoor.errors import ConfigError
from antibackdoor.protocols import Given
from antibackdoor.purifiers import SCAnFT


@pytest.mark.parametrize("kind", ["image", "series"])
def test_a_backdoor_is_found_and_forgotten(kind: str) -> None:
    here = scene(kind)
    given = Given(suspicious=here.samples, clean=here.clean)
    purified = SCAnFT(epochs=6).purify(here.model, given, RECIPE)
    accuracy, success = here.measured(purified.model)
    assert accuracy > 0.9 and success < 0.1
    facts = purified.facts
    assert abs(facts.n_isolated - here.is_poisoned.sum()) < 5 and facts.n_labels_flagged == 1
    assert facts.isolated_accuracy_before > 0.95 and facts.isolated_accuracy_after < 0.1


def test_nothing_flagged_nothing_changed() -> None:
    here = scene("image")
    given = Given(suspicious=here.samples, clean=here.clean)
    purified = SCAnFT(SCAn(threshold=1e9)).purify(here.model, given, RECIPE)
    assert weights(purified.model) == weights(here.model)
    assert purified.facts.n_isolated == 0 and purified.facts.largest_anomaly > 0


def test_without_fine_tuning_the_ascent_stands_alone() -> None:
    here = scene("image")
    given = Given(suspicious=here.samples, clean=here.clean)
    alone = SCAnFT(epochs=0, unlearning_rate=0.02).purify(here.model, given, RECIPE)
    assert alone.facts.isolated_accuracy_after < 0.9
    tuned = SCAnFT(epochs=1, unlearning_rate=0.02).purify(here.model, given, RECIPE)
    assert tuned.facts.isolated_accuracy_before == alone.facts.isolated_accuracy_before
    assert weights(tuned.model) != weights(alone.model)


def test_the_ascent_has_a_batch_of_its_own() -> None:
    """One step a pass or several, whatever the recipe's batch is; the fine-tuning takes the recipe's."""
    here = scene("image")
    given = Given(suspicious=here.samples, clean=here.clean)
    told = {
        (own, batch): weights(
            SCAnFT(unlearning_batch_size=own, unlearning_epochs=1, epochs=0)
            .purify(here.model, given, replace(RECIPE, batch_size=batch))
            .model
        )
        for own, batch in ((64, 16), (64, 32), (8, 32))
    }
    assert told[64, 16] == told[64, 32] != told[8, 32]
    with pytest.raises(ConfigError, match="unlearning_batch_size is 1"):
        SCAnFT(unlearning_batch_size=1).purify(here.model, given, RECIPE)


def test_resumed_at_every_checkpoint_it_ends_the_same() -> None:
    here, whole, method = scene("series"), Ledger(), SCAnFT(unlearning_epochs=2, epochs=2)
    given = Given(suspicious=here.samples, clean=here.clean)
    unbroken = method.purify(here.model, given, RECIPE, journal=whole)
    for stop in range(1, whole.n_saved + 1):
        broken = Ledger(stop_after=stop)
        with pytest.raises(KeyboardInterrupt):
            method.purify(here.model, given, RECIPE, journal=broken)
        resumed = method.purify(here.model, given, RECIPE, journal=Ledger(broken.kept))
        assert weights(resumed.model) == weights(unbroken.model) and resumed.facts == unbroken.facts, stop


def test_both_data_sets_are_needed() -> None:
    here = scene("image")
    for given in (Given(suspicious=here.samples), Given(clean=here.clean)):
        with pytest.raises(ConfigError, match="SCAnFT needs"):
            SCAnFT().purify(here.model, given, RECIPE)
