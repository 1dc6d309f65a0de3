"""Wide residual networks: three groups of pre-activation blocks.

Differs from the code of ABL and NAD in the pooling only: global instead of 8×8, so that images of any size
fit. The same at 32×32.

Reference: Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016, arXiv:1605.07146.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from antibackdoor.models.layers import global_pool, initialize_he


class PreActivationBlock(nn.Module):
    """BN-ReLU-conv-BN-ReLU-conv; a shortcut that changes the width starts behind the first BN-ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        changes = in_channels != channels
        self.shortcut = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.norm1(x))
        residual: Tensor = self.conv2(self.relu2(self.norm2(self.conv1(active))))
        return residual + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """Stem of width 16, `stage1` to `stage3` of widths 16k, 32k, 64k (raw outputs: NAD's taps), head."""

    def __init__(self, channels: int, n_classes: int, *, depth: int, widening: int) -> None:
        super().__init__()
        n_blocks = (depth - 4) // 6
        self.stem = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.stage1 = _stage(16, 16 * widening, n_blocks, stride=1)
        self.stage2 = _stage(16 * widening, 32 * widening, n_blocks, stride=2)
        self.stage3 = _stage(32 * widening, 64 * widening, n_blocks, stride=2)
        self.norm = nn.BatchNorm2d(64 * widening)
        self.relu = nn.ReLU()
        self.pool = global_pool(2)
        self.fc = nn.Linear(64 * widening, n_classes)
        initialize_he(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, K)` of `(B, C, H, W)`."""
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        logits: Tensor = self.fc(self.pool(self.relu(self.norm(x))))
        return logits


def _stage(in_channels: int, channels: int, n_blocks: int, *, stride: int) -> nn.Sequential:
    rest = [PreActivationBlock(channels, channels, 1) for _ in range(n_blocks - 1)]
    return nn.Sequential(PreActivationBlock(in_channels, channels, stride), *rest)


def wide_resnet(input_shape: Sequence[int], n_classes: int, *, depth: int, widening: int) -> nn.Module:
    """WRN-depth-widening for images `(C, H, W)`; the depth is 6n + 4. Dropout 0."""
    return WideResNet(input_shape[0], n_classes, depth=depth, widening=widening)
