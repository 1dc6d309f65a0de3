"""Neural attention distillation: its formulas by hand, its pairs, its search and its early end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import pictures, waves
from torch import Tensor, nn

from antibackdoor.errors import ConfigError, ModelError
from antibackdoor.models.backbones import build_backbone
from antibackdoor.protocols import Given
from antibackdoor.purifiers import NAD, FineTuning
from antibackdoor.purifiers.attention import Comparison, align, attention_map, distilling, unit
from antibackdoor.training.loop import cross_entropy
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.session import Batch

RECIPE = Recipe(device="cpu", precision="fp32", seed=1, progress=False)
SHORT: dict[str, Any] = {"epochs": 2, "learning_rate": 0.01}


def model(name: str = "wrn-10-1", shape: tuple[int, ...] = (1, 16, 16), n_classes: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return build_backbone(name, shape, n_classes).eval()


def clean(n: int = 32) -> Given:
    return Given(clean=pictures(n, size=16))


def weights(network: nn.Module) -> bytes:
    return b"".join(value.numpy().tobytes() for value in network.state_dict().values())


def test_attention_by_hand() -> None:
    features = torch.tensor([[[[1.0, -2.0]], [[3.0, 0.0]]]])  # (1, 2, 1, 2)
    assert attention_map(features, 1.0).tolist() == [[[4.0, 2.0]]]
    assert attention_map(features, 2.0).tolist() == [[[10.0, 4.0]]]
    torch.testing.assert_close(unit(torch.tensor([[3.0, 4.0]])), torch.tensor([[0.6, 0.8]]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", [(4, 6, 5, 7), (4, 6, 9)])
def test_a_unit_map_knows_no_scale_and_sum_is_mean(shape: tuple[int, ...]) -> None:
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    map_ = unit(attention_map(features))
    torch.testing.assert_close(map_, unit(attention_map(7 * features)), rtol=1e-5, atol=1e-6)
    mean = features.abs().square().mean(1)
    torch.testing.assert_close(map_, unit(mean), rtol=1e-5, atol=1e-5)


def test_distances_by_hand() -> None:
    student, teacher = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 2.0]]])  # unit maps (1, 0) and (0, 1)
    assert Comparison(distance="mse")(student, teacher).tolist() == pytest.approx([1.0], rel=1e-5)
    assert Comparison(distance="l2")(student, teacher).tolist() == pytest.approx([2**0.5], rel=1e-5)
    assert Comparison()(student, 3 * student).tolist() == pytest.approx([0.0], abs=1e-9)
    two = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # activations keep the channels apart, attention does not
    swapped = two.flip(1)
    assert Comparison()(two, swapped).tolist() == pytest.approx([0.0], abs=1e-9)
    assert Comparison(kind="activation")(two, swapped).tolist() == pytest.approx([4 * 0.5 / 4], rel=1e-5)


def test_equal_maps_have_a_finite_gradient() -> None:
    features = torch.ones(2, 3, 4, requires_grad=True)
    for distance in ("mse", "l2"):
        loss = Comparison(distance=distance)(features, features.detach()).sum()  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(loss, features)
        assert gradient.isfinite().all()


def test_a_larger_map_of_the_teacher_is_pooled() -> None:
    teacher = torch.ones(1, 8, 4, 4)
    teacher[..., :2, :2] = 3.0
    student = torch.ones(1, 2, 2, 2)
    student[..., 0, 0] = 3.0
    assert Comparison()(student, teacher).tolist() == pytest.approx([0.0], abs=1e-9)


def test_the_loss_by_hand() -> None:
    student, teacher = model(), model("wrn-10-2")
    alignment = align(student, teacher, torch.zeros(2, 1, 16, 16), layers=(), betas=(500, 1000, 1000), kind="attention")
    assert alignment.student == alignment.teacher == ("stage1", "stage2", "stage3")
    batch = Batch(torch.rand(3, 1, 16, 16), torch.tensor([0, 1, 0]), torch.arange(3))
    weighted, recorded = distilling(student, teacher, alignment, Comparison())(batch)
    torch.testing.assert_close(recorded, cross_entropy(student(batch.inputs), batch.labels))
    expected = recorded.clone()
    for beta, stage in zip((500, 1000, 1000), alignment.student, strict=True):
        ours, theirs = (_output(network, stage, batch.inputs).square().sum(1) for network in (student, teacher))
        ours, theirs = (map_ / (map_.flatten(1).norm(dim=1) + 1e-6)[:, None, None] for map_ in (ours, theirs))
        expected = expected + beta * (ours - theirs).square().mean((1, 2))
    torch.testing.assert_close(weighted, expected)


def _output(network: nn.Module, upto: str, x: Tensor) -> Tensor:
    for name, part in network.named_children():
        x = part(x)
        if name == upto:
            return x
    raise AssertionError(upto)


def test_with_betas_of_zero_it_is_fine_tuning_bit_for_bit() -> None:
    student = NAD(betas=(0.0,), epochs=3).purify(model(), clean(), RECIPE)
    tuned = FineTuning(epochs=3).purify(model(), clean(), RECIPE)
    assert weights(student.model) == weights(tuned.model)
    pulled = NAD(betas=(1e-3,), epochs=3).purify(model(), clean(), RECIPE)
    assert weights(pulled.model) != weights(tuned.model)


def test_the_pairs_differ_and_the_teacher_is_delivered() -> None:
    ends = {}
    for pair in ("BF-B", "B-BF", "BF-BF"):
        result = NAD(pair=pair, **SHORT).purify(model(), clean(), RECIPE)  # type: ignore[arg-type]
        ends[pair] = weights(result.model)
        assert (result.teacher is None) == (pair == "B-BF")
    assert len(set(ends.values())) == 3
    tuned = FineTuning(**SHORT).purify(model(), clean(), RECIPE).model
    taught_by = NAD(**SHORT).purify(model(), clean(), RECIPE).teacher
    assert taught_by is not None and not taught_by.training
    # Another phase, so other batches, but the same recipe: much nearer to each other than to the given model.
    given = model().state_dict()
    distance = [
        sum(float((a - b).square().sum()) for a, b in zip(one.state_dict().values(), two, strict=True))
        for one, two in ((tuned, taught_by.state_dict().values()), (tuned, given.values()))
    ]
    assert distance[0] < distance[1]


def test_a_teacher_of_another_architecture() -> None:
    teacher = model("resnet18-thin")  # four stages, other widths; the last has 2 x 2 places
    given = Given(clean=pictures(24, size=16), teacher=teacher)
    before = weights(teacher)
    result = NAD(pair="C-B", **SHORT).purify(model(), given, RECIPE)
    assert result.facts.layers == "stage1, stage2, stage3" and result.facts.teacher_layers == "stage1, stage2, stage3"
    assert weights(teacher) == before and result.teacher is None
    with pytest.raises(ConfigError, match="the pair C-B needs teacher: give --teacher"):
        NAD(pair="C-B").purify(model(), clean(), RECIPE)
    with pytest.raises(ConfigError, match="leave --teacher out"):
        NAD().purify(model(), given, RECIPE)


def test_layers_of_the_teacher_are_paired_from_the_deepest() -> None:
    student, teacher = model(), model("resnet18-thin", (1, 32, 32))
    found = align(student, teacher, torch.zeros(2, 1, 32, 32), layers=("stem", "stage3"), betas=(5,), kind="attention")
    assert (found.student, found.teacher, found.betas) == (("stem", "stage3"), ("stem", "stage3"), (5, 5))
    other = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6272, 2)
    )
    found = align(student, other, torch.zeros(2, 1, 32, 32), layers=(), betas=(1, 2, 3), kind="attention")
    assert found.student == ("stage2", "stage3") and found.betas == (2, 3)
    assert len(found.teacher) == 2


@pytest.mark.parametrize("maps", ["attention", "activation"])
def test_series(maps: Any) -> None:
    given = Given(clean=waves(24, length=32))
    result = NAD(maps=maps, betas=(1.0,), distance="l2", **SHORT).purify(model("fcn", (1, 32)), given, RECIPE)
    assert result.facts.layers == "stage3"


def test_layers_without_places_are_refused_by_name_and_left_out_by_default() -> None:
    small = Given(clean=pictures(24, size=8))
    deep = model("resnet18-thin", (1, 8, 8))  # its last stage has one place
    assert NAD(**SHORT).purify(deep, small, RECIPE).facts.layers == "stage1, stage2, stage3"
    with pytest.raises(ModelError, match="layer 'stage4' has no positions for an attention map"):
        NAD(layers=("stage4",)).purify(deep, small, RECIPE)
    with pytest.raises(ModelError, match="nowhere"):
        NAD(layers=("nowhere",)).purify(deep, small, RECIPE)
    with pytest.raises(ConfigError, match="3 layers and 2 betas"):
        NAD(layers=("stage1", "stage2", "stage3"), betas=(1.0, 1.0)).purify(deep, small, RECIPE)


def test_patience_ends_it_early_and_search_stops_before_accuracy_falls() -> None:
    calm: dict[str, Any] = {"augment": "none", "learning_rate": 1e-3}
    learned = FineTuning(epochs=8, batch_size=16, augment="none").purify(model(), clean(64), RECIPE).model
    with pytest.raises(ConfigError, match="patience needs held-out samples"):
        NAD(patience=2).purify(learned, clean(), RECIPE)
    early = NAD(held_out=0.25, patience=2, betas=(0.0,), epochs=8, **calm).purify(learned, clean(64), RECIPE)
    assert early.facts.n_epochs == 3 and early.facts.n_held_out == 16  # it cannot become better than at first
    search = NAD(held_out=0.25, beta_search=0.2, betas=(1.0,), epochs=2, **calm)
    result = search.purify(learned, clean(64), RECIPE)
    assert 1 <= result.facts.beta_factor <= 128
    assert result.facts.accuracy_after >= result.facts.accuracy_before - 0.2 or result.facts.beta_factor == 1


def test_the_presets_differ() -> None:
    paper = NAD(epochs=1, learning_rate=0.01).purify(model(), clean(), RECIPE)
    code = NAD(preset="code", epochs=1, learning_rate=0.01).purify(model(), clean(), RECIPE)
    assert weights(paper.model) != weights(code.model)
