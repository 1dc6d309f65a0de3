"""MobileNetV2: inverted residual blocks with depthwise convolutions.

Strides of 1 in the stem and the second stage for small images, as in the CIFAR code that backdoor papers use.

Reference: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018,
    arXiv:1801.04381.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from antibackdoor.models.layers import global_pool, initialize_he
from antibackdoor.models.resnet import SMALL_IMAGE, conv_norm

Shortcuts = Literal["projection", "identity"]

STAGES = (  # expansion, channels, blocks, stride
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """Expand (1×1), filter (3×3 depthwise), project (1×1, linear).

    With `"projection"` shortcuts a block of stride 1 that changes the width gets a 1×1 convolution around it,
    and expansion 1 keeps its expanding convolution; with `"identity"` neither (the paper's form).
    """

    def __init__(self, in_channels: int, channels: int, *, expansion: int, stride: int, shortcuts: Shortcuts) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion > 1 or shortcuts == "projection":
            layers += [conv_norm(2, in_channels, hidden, 1), nn.ReLU6()]
        layers += [conv_norm(2, hidden, hidden, 3, stride=stride, groups=hidden), nn.ReLU6()]
        self.residual = nn.Sequential(*layers, conv_norm(2, hidden, channels, 1))
        self.shortcut: nn.Module | None = None
        if stride == 1 and in_channels == channels:
            self.shortcut = nn.Identity()
        elif stride == 1 and shortcuts == "projection":
            self.shortcut = conv_norm(2, in_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.residual(x)
        return out if self.shortcut is None else out + self.shortcut(x)


class MobileNetV2(nn.Module):
    """Stem, `stage1` to `stage7`, a last 1×1 convolution to 1,280 channels, head."""

    def __init__(self, input_shape: Sequence[int], n_classes: int, shortcuts: Shortcuts) -> None:
        super().__init__()
        channels, height, width = input_shape
        small = height * width <= SMALL_IMAGE
        self.stem = nn.Sequential(conv_norm(2, channels, 32, 3, stride=1 if small else 2), nn.ReLU6())
        in_channels = 32
        for index, (expansion, out_channels, n_blocks, stage_stride) in enumerate(STAGES, start=1):
            blocks = nn.Sequential()
            for position in range(n_blocks):
                stride = 1 if position > 0 or (small and index == 2) else stage_stride
                blocks.append(
                    InvertedResidual(in_channels, out_channels, expansion=expansion, stride=stride, shortcuts=shortcuts)
                )
                in_channels = out_channels
            self.add_module(f"stage{index}", blocks)
        self.last = nn.Sequential(conv_norm(2, in_channels, 1280, 1), nn.ReLU6())
        self.pool = global_pool(2)
        self.fc = nn.Linear(1280, n_classes)
        initialize_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, K)` of `(B, C, H, W)`."""
        x = self.stem(x)
        for index in range(1, len(STAGES) + 1):
            x = self.get_submodule(f"stage{index}")(x)
        logits: Tensor = self.fc(self.pool(self.last(x)))
        return logits


def mobilenet_v2(input_shape: Sequence[int], n_classes: int, *, shortcuts: Shortcuts = "projection") -> nn.Module:
    """MobileNetV2 for images `(C, H, W)`; CIFAR strides up to 64×64 pixels, the paper's above."""
    return MobileNetV2(input_shape, n_classes, shortcuts)
