"""Convolutional networks for time series `(C, T)`, without strides.

Reference: Wang, Yan and Oates, "Time Series Classification from Scratch with Deep Neural Networks: A Strong
Baseline", IJCNN 2017, arXiv:1611.06455.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from antibackdoor.models.layers import global_pool, initialize_he


def _conv_norm(in_channels: int, out_channels: int, kernel: int, *, bias: bool) -> nn.Sequential:
    # "same" padding with an even kernel: one more on the right, as Keras does it in the reference code.
    return nn.Sequential(
        nn.ZeroPad1d(((kernel - 1) // 2, kernel // 2)),
        nn.Conv1d(in_channels, out_channels, kernel, bias=bias),
        nn.BatchNorm1d(out_channels),
    )


class WangBlock(nn.Module):
    """Convolutions of kernels 8, 5 and 3 with a shortcut around them."""

    def __init__(self, in_channels: int, channels: int, *, project: bool, bias: bool) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            _conv_norm(in_channels, channels, 8, bias=bias),
            nn.ReLU(),
            _conv_norm(channels, channels, 5, bias=bias),
            nn.ReLU(),
            _conv_norm(channels, channels, 3, bias=bias),
        )
        self.shortcut = _conv_norm(in_channels, channels, 1, bias=bias) if project else nn.BatchNorm1d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.residual(x) + self.shortcut(x))
        return out


class SeriesNetwork(nn.Module):
    """Three stages, global average pooling over time, one linear layer."""

    def __init__(self, stages: Sequence[nn.Module], width: int, n_classes: int) -> None:
        super().__init__()
        self.stage1, self.stage2, self.stage3 = stages
        self.pool = global_pool(1)
        self.fc = nn.Linear(width, n_classes)
        initialize_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, K)` of `(B, C, T)`."""
        logits: Tensor = self.fc(self.pool(self.stage3(self.stage2(self.stage1(x)))))
        return logits


def wang_resnet(input_shape: Sequence[int], n_classes: int, *, bias: bool = True) -> nn.Module:
    """Residual network of three blocks of widths 64, 128, 128; convolutions have a `bias` in its code."""
    widths = (64, 128, 128)
    inputs = (input_shape[0], *widths[:-1])
    project = (True, True, False)  # the third block keeps its width
    stages = [WangBlock(a, b, project=p, bias=bias) for a, b, p in zip(inputs, widths, project, strict=True)]
    return SeriesNetwork(stages, widths[-1], n_classes)


def fully_convolutional(input_shape: Sequence[int], n_classes: int) -> nn.Module:
    """FCN: convolutions of kernels 8, 5, 3 and widths 128, 256, 128, each with batch norm and ReLU."""
    widths = (128, 256, 128)
    inputs = (input_shape[0], *widths[:-1])
    stages = [
        nn.Sequential(_conv_norm(a, b, kernel, bias=True), nn.ReLU())
        for a, b, kernel in zip(inputs, widths, (8, 5, 3), strict=True)
    ]
    return SeriesNetwork(stages, widths[-1], n_classes)
