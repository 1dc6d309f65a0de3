"""Residual networks for images and series.

Reference: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from antibackdoor.models.layers import CONV, NORM, global_pool, initialize_he

SMALL_IMAGE = 64 * 64  # pixels; up to here the CIFAR stem, above the ImageNet stem


def conv_norm(
    dims: int, in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution (odd kernel, "same" padding, no bias) and batch norm."""
    conv = CONV[dims](in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, NORM[dims](out_channels))


class BasicBlock(nn.Module):
    """Two convolutions of kernel 3, the first with the stride."""

    expansion = 1

    def __init__(self, dims: int, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv_norm(dims, in_channels, channels, 3, stride=stride)
        self.conv2 = conv_norm(dims, channels, channels, 3)
        self.shortcut = _shortcut(dims, in_channels, channels, stride)
        self.relu1 = nn.ReLU()
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv2(self.relu1(self.conv1(x)))
        out: Tensor = self.relu2(residual + self.shortcut(x))
        return out


class Bottleneck(nn.Module):
    """Convolutions of kernel 1, 3 (with the stride) and 1; four times as many channels at the end."""

    expansion = 4

    def __init__(self, dims: int, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv_norm(dims, in_channels, channels, 1)
        self.conv2 = conv_norm(dims, channels, channels, 3, stride=stride)
        self.conv3 = conv_norm(dims, channels, 4 * channels, 1)
        self.shortcut = _shortcut(dims, in_channels, 4 * channels, stride)
        self.relu1 = nn.ReLU()
        self.relu2 = nn.ReLU()
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv3(self.relu2(self.conv2(self.relu1(self.conv1(x)))))
        out: Tensor = self.relu3(residual + self.shortcut(x))
        return out


def _shortcut(dims: int, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return conv_norm(dims, in_channels, out_channels, 1, stride=stride)


class ResNet(nn.Module):
    """Stem, `stage1`, `stage2`, … (all but the first double the width and halve the size), head.

    Args:
        stem: `(B, C, *spatial)` to `(B, width, *spatial)`.
        block: `BasicBlock` or `Bottleneck`.
        dims: Number of spatial axes: 1 for series, 2 for images.
        n_blocks: Blocks in each stage.
        width: Channels of the first stage, before the expansion of a bottleneck.
        n_classes: K.
    """

    def __init__(
        self,
        stem: nn.Module,
        block: type[BasicBlock] | type[Bottleneck],
        *,
        dims: int,
        n_blocks: Sequence[int],
        width: int,
        n_classes: int,
    ) -> None:
        super().__init__()
        self.stem = stem
        in_channels = width
        self.n_stages = len(n_blocks)
        for index, n in enumerate(n_blocks):
            channels = width * 2**index
            blocks = nn.Sequential()
            for position in range(n):
                stride = 2 if index > 0 and position == 0 else 1
                blocks.append(block(dims, in_channels, channels, stride))
                in_channels = channels * block.expansion
            self.add_module(f"stage{index + 1}", blocks)
        self.pool = global_pool(dims)
        self.fc = nn.Linear(in_channels, n_classes)
        initialize_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, K)` of `(B, C, *spatial)`."""
        x = self.stem(x)
        for index in range(self.n_stages):
            x = self.get_submodule(f"stage{index + 1}")(x)
        logits: Tensor = self.fc(self.pool(x))
        return logits


def image_stem(input_shape: Sequence[int], width: int) -> nn.Sequential:
    """CIFAR stem (kernel 3) up to 64×64 pixels, else ImageNet stem (kernel 7, stride 2, max-pooling)."""
    channels, height, image_width = input_shape
    if height * image_width <= SMALL_IMAGE:
        return nn.Sequential(conv_norm(2, channels, width, 3), nn.ReLU())
    return nn.Sequential(conv_norm(2, channels, width, 7, stride=2), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1))


def image_resnet(
    input_shape: Sequence[int],
    n_classes: int,
    *,
    block: type[BasicBlock] | type[Bottleneck] = BasicBlock,
    n_blocks: Sequence[int],
    width: int = 64,
) -> nn.Module:
    """A residual network for images `(C, H, W)`."""
    stem = image_stem(input_shape, width)
    return ResNet(stem, block, dims=2, n_blocks=n_blocks, width=width, n_classes=n_classes)


def series_resnet_1d(
    input_shape: Sequence[int], n_classes: int, *, n_blocks: Sequence[int], stem_kernel: int = 3
) -> nn.Module:
    """The image network of the same depth with one spatial axis, for series `(C, T)`; stem with stride 1."""
    stem = nn.Sequential(conv_norm(1, input_shape[0], 64, stem_kernel), nn.ReLU())
    return ResNet(stem, BasicBlock, dims=1, n_blocks=n_blocks, width=64, n_classes=n_classes)
