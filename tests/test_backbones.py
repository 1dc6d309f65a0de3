"""Backbones: parameter counts of the papers, any size, readable stages."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from antibackdoor.errors import ModelError
from antibackdoor.models.backbones import BACKBONES, build_backbone, default_backbone
from antibackdoor.models.hooks import trunk_features
from antibackdoor.models.mobilenet import mobilenet_v2
from antibackdoor.models.resnet import series_resnet_1d
from antibackdoor.models.series import wang_resnet

CIFAR, IMAGENET = (3, 32, 32), (3, 224, 224)
IMAGE_COUNTS = {
    "resnet18": {10: 11_173_962, 43: 11_190_891, 100: 11_220_132, 200: 11_271_432},
    "resnet34": {10: 21_282_122, 43: 21_299_051, 100: 21_328_292, 200: 21_379_592},
    "resnet50": {10: 23_520_842, 43: 23_588_459, 100: 23_705_252, 200: 23_910_152},
    "mobilenetv2": {10: 2_296_922, 100: 2_412_212, 200: 2_540_312},
    "wrn-10-1": {10: 77_850},
    "wrn-10-2": {10: 303_706},
    "wrn-16-1": {10: 175_066, 43: 177_211},
    "wrn-16-2": {10: 691_674},
    "wrn-40-1": {10: 563_930},
    "wrn-40-2": {10: 2_243_546},
    "resnet32-thin": {10: 466_906},
}
# Channels and classes of ArabicDigits, ECG, UWave, ECG5000.
SERIES_DATA = ((13, 10), (2, 2), (3, 8), (1, 5))
SERIES_COUNTS = {
    "series-resnet": (512_202, 504_834, 506_184, 504_645),
    "fcn": (278_282, 265_986, 267_784, 265_349),
    "series-resnet18": (3_851_082, 3_844_866, 3_848_136, 3_846_213),
    "series-resnet34": (7_225_418, 7_219_202, 7_222_472, 7_220_549),
}
VARIANT_COUNTS = (
    (partial(wang_resnet, bias=False), (511_050, 503_682, 505_032, 503_493)),
    (
        partial(series_resnet_1d, n_blocks=(3, 4, 6, 3), stem_kernel=7),
        (7_228_746, 7_219_714, 7_223_240, 7_220_805),
    ),
)
# The library most people compare with; 1,000 classes at 224×224.
TORCHVISION_COUNTS = {"resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032}


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def on_meta(build, shape, n_classes):
    with torch.device("meta"):  # no memory, no initialization: counts only
        return build(shape, n_classes)


@pytest.mark.parametrize(
    ("name", "n_classes", "expected"),
    [(name, k, n) for name, counts in IMAGE_COUNTS.items() for k, n in counts.items()],
)
def test_image_parameter_counts(name, n_classes, expected):
    assert count(on_meta(BACKBONES[name].build, CIFAR, n_classes)) == expected


@pytest.mark.parametrize(("name", "expected"), TORCHVISION_COUNTS.items())
def test_large_images_get_the_imagenet_stem(name, expected):
    assert count(on_meta(BACKBONES[name].build, IMAGENET, 1000)) == expected


@pytest.mark.parametrize(
    ("shape", "n_classes", "expected"),
    [(CIFAR, 10, 2_236_682), (CIFAR, 100, 2_351_972), (CIFAR, 200, 2_480_072), (IMAGENET, 1000, 3_504_872)],
)
def test_mobilenet_with_identity_shortcuts(shape, n_classes, expected):
    build = partial(mobilenet_v2, shortcuts="identity")
    assert count(on_meta(build, shape, n_classes)) == expected


@pytest.mark.parametrize(
    ("build", "counts"), [(BACKBONES[name].build, c) for name, c in SERIES_COUNTS.items()] + [*VARIANT_COUNTS]
)
def test_series_parameter_counts(build, counts):
    for (channels, n_classes), expected in zip(SERIES_DATA, counts, strict=True):
        assert count(on_meta(build, (channels, 50), n_classes)) == expected


def test_thin_resnet_has_widths_16_to_128():
    network = on_meta(BACKBONES["resnet18-thin"].build, CIFAR, 10)
    assert network.fc.in_features == 128
    assert network.stage1[0].conv1[0].out_channels == 16


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.data())
def test_any_size_and_channels(data):
    name = data.draw(st.sampled_from([n for n in BACKBONES if n not in ("resnet34", "resnet50", "wrn-40-2")]))
    channels = data.draw(st.integers(1, 5))
    size = st.integers(8, 40)
    dims = 2 if BACKBONES[name].kind == "image" else 1
    shape = (channels, *(data.draw(size) for _ in range(dims)))
    network = build_backbone(name, shape, 3).train()
    logits = network(torch.rand(2, *shape))
    assert logits.shape == (2, 3)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("size", [8, 65, 224])
def test_smallest_and_large_sizes(name, size):
    shape = (2, size, size) if BACKBONES[name].kind == "image" else (2, size)
    with torch.device("meta"):
        network = BACKBONES[name].build(shape, 4)
        assert network(torch.rand(2, *shape)).shape == (2, 4)


@pytest.mark.parametrize("name", BACKBONES)
def test_stages_are_named(name):
    shape = CIFAR if BACKBONES[name].kind == "image" else (3, 32)
    layers = dict(on_meta(BACKBONES[name].build, shape, 4).named_children())
    assert {"stage1", "stage2", "stage3", "pool", "fc"} <= set(layers)


@pytest.mark.parametrize(
    ("stage", "shape"),
    [("stage1", (64, 32)), ("stage2", (128, 16)), ("stage3", (256, 8)), ("stage4", (512, 4))],
)
def test_resnet34_stage_shapes(stage, shape):
    with torch.device("meta"):
        features = trunk_features(BACKBONES["resnet34"].build(CIFAR, 10), stage, torch.rand(1, *CIFAR))
    assert features.shape == (1, shape[0], shape[1], shape[1])


def test_initialization_is_he_fan_out():
    torch.manual_seed(0)
    network = build_backbone("resnet18", CIFAR, 10)
    weight = network.stage2[1].conv1[0].weight
    assert weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    assert all(
        (m.weight == 1).all() and (m.bias == 0).all() for m in network.modules() if isinstance(m, nn.BatchNorm2d)
    )


def test_even_kernels_pad_one_more_on_the_right():
    pad = build_backbone("fcn", (1, 20), 2).stage1[0][0]
    assert tuple(pad.padding) == (3, 4)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("resnet81", CIFAR, "resnet18"),
        ("fcn", CIFAR, "is for series data"),
        ("resnet18", (3, 7, 32), "at least 8 pixels"),
        ("fcn", (3, 5), "at least 8 time steps"),
    ],
)
def test_refusals_say_what_to_do(name, shape, words):
    with pytest.raises(ModelError, match=words):
        build_backbone(name, shape, 10)


def test_default_backbone_fits_machine_and_data():
    assert default_backbone("image", CIFAR, 50_000, True) == "resnet18"
    assert default_backbone("image", CIFAR, 50_000, False) == "resnet18-thin"
    assert default_backbone("image", CIFAR, 300, True) == "resnet18-thin"
    assert default_backbone("image", (1, 8, 8), 1_500, False) == "wrn-16-1"
    assert default_backbone("series", (3, 100), 200, False) == "series-resnet"
