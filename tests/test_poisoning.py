"""Plans by hand-computed numbers, and the engine that joins a plan and a trigger."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from antibackdoor.attacks import (
    PLANS,
    SIG,
    AllToAll,
    AllToOne,
    BadNets,
    Blend,
    CleanLabel,
    Composite,
    MultiTarget,
    SourceSpecific,
    load_trigger,
    make_trigger,
    poison,
    read_truth,
    sample_numbers,
    save_trigger,
    stamp,
    trigger_test_set,
    write_truth,
)
from antibackdoor.data.samples import Samples
from antibackdoor.errors import ConfigError, DataError


def make_samples(per_class: int = 20, n_classes: int = 5, shape: tuple[int, ...] = (3, 8, 8)) -> Samples:
    rng = np.random.default_rng(7)
    n = per_class * n_classes
    inputs = rng.integers(0, 256, (n, *shape)).astype(np.uint8)
    labels = np.tile(np.arange(n_classes), per_class)
    ids = np.array([f"image_{i}.png" for i in range(n)])
    return Samples(inputs, labels, ids, np.array([f"class {i}" for i in range(n_classes)]))


def test_all_to_one_draws_from_the_other_classes() -> None:
    labels = make_samples().labels
    poisoned, covers = AllToOne(rate=0.25, target_label=2, cover_rate=0.1).draw(labels, seed=0)
    assert (len(poisoned), len(covers)) == (25, 10)
    assert 2 not in labels[poisoned] and 2 not in labels[covers]
    assert not set(poisoned) & set(covers)
    assert (np.diff(poisoned) > 0).all()


def test_all_to_one_with_the_target_class_included() -> None:
    labels = make_samples().labels
    poisoned, _ = AllToOne(rate=1.0, include_target=True).draw(labels, seed=0)
    assert len(poisoned) == 100
    assert AllToOne(include_target=True).eligible(labels).sum() == 80


def test_clean_label_rates() -> None:
    labels = make_samples().labels
    assert len(CleanLabel(rate=0.1, target_label=3).draw(labels, seed=0)[0]) == 10
    assert len(CleanLabel(rate=0.5, target_label=3).draw(labels, seed=0)[0]) == 20  # the whole class
    of_class = CleanLabel(rate=0.5, target_label=3, rate_of="target_class")
    assert len(of_class.draw(labels, seed=0)[0]) == 10
    assert set(labels[of_class.draw(labels, seed=0)[0]]) == {3}


def test_clean_label_changes_no_label() -> None:
    samples = make_samples()
    poisoned = poison(samples, SIG(), seed=0, target_label=4)
    assert (poisoned.samples.labels == samples.labels).all()
    assert poisoned.truth.is_poisoned.sum() == 10


def test_all_to_all() -> None:
    samples = make_samples()
    poisoned = poison(samples, BadNets(), seed=0, plan=AllToAll(rate=0.3))
    mask = poisoned.truth.is_poisoned
    assert mask.sum() == 30
    assert (poisoned.samples.labels[mask] == (samples.labels[mask] + 1) % 5).all()
    assert poisoned.plan.eligible(samples.labels).all()
    assert poisoned.plan == AllToAll(rate=0.3, n_classes=5)
    with pytest.raises(ConfigError, match="number of classes"):
        AllToAll().goal(samples.labels)


def test_source_specific() -> None:
    samples = make_samples()
    plan = SourceSpecific(rate=0.15, target_label=1, cover_rate=0.1, cover_labels=(3, 4))
    poisoned = poison(samples, BadNets(), seed=0, plan=plan)
    truth = poisoned.truth
    assert set(truth.true_labels[truth.is_poisoned]) == {0}
    assert set(poisoned.samples.labels[truth.is_poisoned]) == {1}
    assert set(truth.true_labels[truth.is_cover]) == {3, 4}
    assert (poisoned.samples.labels[truth.is_cover] == samples.labels[truth.is_cover]).all()
    assert (truth.is_poisoned.sum(), truth.is_cover.sum()) == (15, 10)
    assert (plan.eligible(samples.labels) == (samples.labels == 0)).all()
    assert len(SourceSpecific(rate=0.9, target_label=1).draw(samples.labels, seed=0)[0]) == 20


def test_multi_target_follows_the_class() -> None:
    labels = np.array([0, 1, 2, 3, 4])
    plan = MultiTarget(target_labels=(0, 3))
    assert plan.goal(labels).tolist() == [0, 3, 0, 3, 0]
    assert plan.eligible(labels).tolist() == [False, True, True, False, True]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (AllToOne(target_label=5), "target label 5 does not exist"),
        (AllToOne(target_label=-1), "target label -1"),
        (AllToOne(rate=1.5), "poisoning rate is 1.5"),
        (AllToOne(rate=-0.1), "poisoning rate"),
        (AllToOne(rate=float("nan")), "poisoning rate is nan"),
        (AllToOne(rate=0.9), "only 80 are available"),
        (AllToOne(rate=0.5, cover_rate=0.4), "cover rate asks for 40"),
        (AllToAll(n_classes=4), "plan is for 4 classes"),
        (CleanLabel(target_label=9), "target label 9"),
        (CleanLabel(rate_of="everything"), "rate_of"),  # type: ignore[arg-type]
        (SourceSpecific(source_label=0), "both 0"),
        (SourceSpecific(source_label=7), "source label 7"),
        (SourceSpecific(cover_labels=(0,)), "contain"),
        (Composite(source_labels=(0, 2)), "must all differ"),
        (Composite(target_label=8), "target label 8"),
        (MultiTarget(target_labels=()), "one or more"),
        (MultiTarget(target_labels=(1, 9)), "target label 9"),
    ],
)
def test_wrong_plans(plan: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        poison(make_samples(), BadNets(), seed=0, plan=plan)
    assert "\n" not in str(caught.value)


def test_what_a_plan_lacks_cannot_be_overridden() -> None:
    with pytest.raises(ConfigError, match="has no target_label"):
        poison(make_samples(), BadNets(), seed=0, plan=AllToAll(), target_label=1)
    with pytest.raises(ConfigError, match="seed"):
        poison(make_samples(), BadNets(), seed=-1)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(PLANS)), st.sampled_from([0.0, 0.01, 0.05, 0.137, 0.2, 1.0]), st.integers(0, 9))
def test_rows_that_are_not_drawn_stay_as_they_are(name: str, rate: float, seed: int) -> None:
    samples = make_samples()
    before = samples.inputs.copy()
    plan = PLANS[name](rate=rate)
    if rate == 1.0 and name in ("all_to_one", "multi_target"):
        with pytest.raises(ConfigError, match="available"):
            poison(samples, BadNets(), seed=seed, plan=plan)
        return
    result = poison(samples, BadNets(), seed=seed, plan=plan)
    touched = result.truth.is_poisoned | result.truth.is_cover
    assert (samples.inputs == before).all()
    assert (result.samples.inputs[~touched] == before[~touched]).all()
    assert (result.samples.labels[~result.truth.is_poisoned] == samples.labels[~result.truth.is_poisoned]).all()
    available = {"clean_label": 20, "source_specific": 20, "composite": 40}.get(name, 100)
    assert result.truth.is_poisoned.sum() == min(round(rate * 100), available)
    assert not (result.truth.is_poisoned & result.truth.is_cover).any()


def test_every_plan_goes_with_a_trigger_made_earlier() -> None:
    samples = make_samples()
    trigger = BadNets(pattern="white3_br").trigger(samples, seed=0)
    for kind in PLANS.values():
        result = poison(samples, BadNets(), seed=3, plan=kind(), trigger=trigger)
        assert (result.samples.inputs[result.truth.is_poisoned, :, -3:, -3:] == 255).all()


def test_the_trigger_alone_is_that_of_the_poisoned_data() -> None:
    samples = make_samples()
    trigger, plan = make_trigger(samples, Blend(), seed=3, rate=0.1, target_label=2)
    poisoned = poison(samples, Blend(), seed=3, rate=0.1, target_label=2)
    assert plan == poisoned.plan
    whole = sample_numbers(samples.ids)
    np.testing.assert_array_equal(stamp(samples.inputs, trigger, whole), stamp(samples.inputs, poisoned.trigger, whole))
    with pytest.raises(ConfigError, match="negative"):
        make_trigger(samples, Blend(), seed=-1)


def test_seed_decides_the_rows() -> None:
    samples = make_samples()
    rows = [poison(samples, BadNets(), seed=seed).truth.is_poisoned for seed in (0, 0, 1)]
    assert (rows[0] == rows[1]).all()
    assert (rows[0] != rows[2]).any()


def test_memmap_in_and_out(tmp_path: Path) -> None:
    samples = make_samples()
    np.save(tmp_path / "in.npy", samples.inputs)
    inputs = np.load(tmp_path / "in.npy", mmap_mode="r")
    on_disk = Samples(inputs, samples.labels, samples.ids, samples.class_names)
    out = np.lib.format.open_memmap(tmp_path / "out.npy", "w+", np.uint8, samples.inputs.shape)
    result = poison(on_disk, Blend(), seed=0, out=out)
    assert result.samples.inputs is out
    assert (out == poison(samples, Blend(), seed=0).samples.inputs).all()
    with pytest.raises(ConfigError, match="out is"):
        poison(samples, Blend(), seed=0, out=out[1:])


def test_stamp_places_rows() -> None:
    samples = make_samples()
    trigger = BadNets(pattern="white3_br").trigger(samples, seed=0)
    numbers = sample_numbers(samples.ids)
    rows = np.array([5, 2])
    picked = stamp(samples.inputs, trigger, numbers, rows=rows)
    assert (picked[0] == trigger.apply(samples.inputs[5:6], numbers[5:6])[0]).all()
    assert picked.shape == (2, 3, 8, 8)
    assert stamp(samples.inputs, trigger, numbers).shape == samples.inputs.shape


def test_trigger_test_set_holds_eligible_rows_with_true_labels() -> None:
    samples = make_samples()
    result = poison(samples, BadNets(), seed=0, target_label=3)
    test = trigger_test_set(samples, result.trigger, result.plan)
    assert len(test) == 80 and 3 not in test.labels
    assert (test.inputs[:, :, -1, -1] == 255).all()
    out = np.empty_like(test.inputs)
    assert trigger_test_set(samples, result.trigger, result.plan, out=out).inputs is out
    assert (out == test.inputs).all()
    with pytest.raises(ConfigError, match="out is"):
        trigger_test_set(samples, result.trigger, result.plan, out=out[1:])


def test_sample_numbers_do_not_depend_on_order_or_padding() -> None:
    numbers = sample_numbers(np.array(["a", "bb", "c"]))
    assert (sample_numbers(np.array(["c", "a"])) == numbers[[2, 0]]).all()
    assert (sample_numbers(np.array(["a", "a much longer id"]))[0]) == numbers[0]
    assert numbers.dtype == np.int64 and (numbers >= 0).all()
    assert len(sample_numbers(np.array([], dtype=np.str_))) == 0


def test_truth_round_trip(tmp_path: Path) -> None:
    samples = make_samples()
    truth = poison(samples, BadNets(), seed=0, plan=AllToOne(cover_rate=0.1)).truth
    write_truth(tmp_path / "truth.parquet", samples.ids, truth)
    ids, read = read_truth(tmp_path / "truth.parquet")
    assert (ids == samples.ids).all()
    for name in ("is_poisoned", "true_labels", "is_cover"):
        assert (getattr(read, name) == getattr(truth, name)).all()
        assert getattr(read, name).dtype == getattr(truth, name).dtype


def test_a_composite_has_two_true_labels(tmp_path: Path) -> None:
    samples = make_samples()
    truth = poison(samples, BadNets(), seed=0, plan=Composite(source_labels=(3, 1))).truth
    assert truth.also_true is not None and 0 < truth.is_poisoned.sum() == 10
    pairs = zip(truth.true_labels[truth.is_poisoned], truth.also_true[truth.is_poisoned], strict=True)
    assert {(int(first), int(second)) for first, second in pairs} == {(3, 1), (1, 3)}
    assert (truth.also_true == truth.true_labels)[~truth.is_poisoned].all()
    write_truth(tmp_path / "truth.parquet", samples.ids, truth)
    read = read_truth(tmp_path / "truth.parquet")[1].take(np.array([5, 1, 8]))
    assert read.also_true is not None and (read.also_true == truth.also_true[[5, 1, 8]]).all()
    write_truth(tmp_path / "truth.parquet", samples.ids, poison(samples, BadNets(), seed=0).truth)
    assert read_truth(tmp_path / "truth.parquet")[1].also_true is None, "as in files of earlier versions"
    write_truth(tmp_path / "truth.parquet", samples.ids, replace(truth, also_true=truth.also_true - 1))
    with pytest.raises(DataError, match="a label is negative"):
        read_truth(tmp_path / "truth.parquet")


def test_truth_that_is_missing_or_broken(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        read_truth(tmp_path / "none.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="not a table"):
        read_truth(tmp_path / "broken.parquet")


def test_trigger_folder_that_is_missing_or_broken(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no trigger\.json in it"):
        load_trigger(tmp_path)
    samples = make_samples()
    save_trigger(tmp_path, BadNets().trigger(samples, seed=0), AllToOne())
    text = (tmp_path / "trigger.json").read_text()
    for broken in (
        text.replace('"Patch"', '"Nonsense"'),
        text.replace('"all_to_one"', '"none"'),
        "[]",
        "{",
        "{}",
    ):
        (tmp_path / "trigger.json").write_text(broken)
        with pytest.raises(DataError):
            load_trigger(tmp_path)
    (tmp_path / "trigger.json").write_text(text.replace('"format": 1', '"format": 99'))
    with pytest.raises(DataError, match="format 99"):
        load_trigger(tmp_path)
    (tmp_path / "trigger.json").write_text(text)
    (tmp_path / "trigger.safetensors").write_bytes(b"xx")
    with pytest.raises(DataError, match="no usable trigger"):
        load_trigger(tmp_path)
