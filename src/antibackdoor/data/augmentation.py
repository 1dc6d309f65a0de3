"""Augmentations of a whole batch at once, each a function of a seed."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


def augment(inputs: Tensor, names: tuple[str, ...], seed: int) -> Tensor:
    """Apply augmentations one after the other.

    Args:
        inputs: `(B, C, H, W)` images (uint8, or float in [0, 1]) or `(B, C, T)` series.
        names: Keys of `AUGMENTATIONS`.
        seed: The same seed gives the same result.

    Returns:
        A new tensor of the same shape and type.
    """
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        inputs = AUGMENTATIONS[name](inputs, generator)
    return inputs


def crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by up to an eighth of its size, with zeros (black) where nothing is left."""
    n, _, height, width = images.shape
    pad_y, pad_x = max(1, height // 8), max(1, width // 8)
    padded = F.pad(images, (pad_x, pad_x, pad_y, pad_y))
    top = torch.randint(2 * pad_y + 1, (n, 1), generator=generator)
    left = torch.randint(2 * pad_x + 1, (n, 1), generator=generator)
    ys = (top + torch.arange(height)).to(images.device)
    xs = (left + torch.arange(width)).to(images.device)
    index = torch.arange(n, device=images.device)
    # Advanced indices around a slice put the channels last, the layout that convolutions like.
    return padded[index[:, None, None], :, ys[:, :, None], xs[:, None, :]].permute(0, 3, 1, 2)


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability one half."""
    chosen = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
    return torch.where(chosen[:, None, None, None], images.flip(3), images)


def cutout(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blacken a square of a quarter of the image's side at a random place (DeVries and Taylor, 2017)."""
    n, _, height, width = images.shape
    inside_y, inside_x = (_spans(n, side, generator).to(images.device) for side in (height, width))
    return images * ~(inside_y[:, None, :, None] & inside_x[:, None, None, :])


def _spans(n: int, side: int, generator: torch.Generator) -> Tensor:
    """Where a quarter of a side about a random place lies, `(n, side)` bool; what lies outside is cut off."""
    half = max(1, side // 8)
    offsets = torch.arange(side) - torch.randint(side, (n, 1), generator=generator)
    return (offsets >= -half) & (offsets < half)


def jitter(series: Tensor, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise of 3% of each channel's standard deviation in the batch."""
    noise = torch.randn(series.shape, generator=generator).to(series.device)
    return series + 0.03 * series.std(dim=(0, 2), keepdim=True) * noise


def scale(series: Tensor, generator: torch.Generator) -> Tensor:
    """Multiply each series by a factor drawn from N(1, 0.1)."""
    factor = 1 + 0.1 * torch.randn(len(series), 1, 1, generator=generator)
    return series * factor.to(series.device)


def shift(series: Tensor, generator: torch.Generator) -> Tensor:
    """Move each series by up to a twentieth of its length; the first or last value fills the gap."""
    n, _, length = series.shape
    most = max(1, length // 20)
    offsets = torch.randint(-most, most + 1, (n, 1), generator=generator)
    steps = (torch.arange(length) + offsets).clamp(0, length - 1).to(series.device)
    return series.gather(2, steps[:, None, :].expand_as(series))


def physical_transforms(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random flip, brightness and contrast +-20 %, rotation +-10 degrees, shift +-10 %, scale 0.8 to 0.9.

    Args:
        images: `(B, C, H, W)` float in [0, 1], poisoned and clean alike.
        generator: Randomness, on the CPU.

    Returns:
        New images of the same shape in [0, 1]; what is moved in from outside is black.
    """

    def uniform(low: float, high: float) -> Tensor:
        draws = torch.rand(len(images), generator=generator) * (high - low) + low
        return draws.to(images.device, images.dtype)

    brightness, contrast = (uniform(0.8, 1.2)[:, None, None, None] for _ in range(2))
    lit = (images * brightness).clamp(0, 1)
    mean = lit.mean(dim=(1, 2, 3), keepdim=True)
    lit = (mean + contrast * (lit - mean)).clamp(0, 1)

    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    angle, scale = uniform(-10, 10).deg2rad(), uniform(0.8, 0.9)
    ratio = images.shape[-2] / images.shape[-1]
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    # affine_grid maps output to input in units of half the width and height, hence the ratio.
    across = torch.stack((flip * cos, flip * sin * ratio, uniform(-0.2, 0.2)), dim=1)
    down = torch.stack((-sin / ratio, cos, uniform(-0.2, 0.2)), dim=1)
    grid = F.affine_grid(torch.stack((across, down), dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(lit, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def physical(images: Tensor, generator: torch.Generator) -> Tensor:
    """`physical_transforms` of images of either type; bytes are computed as floats and rounded."""
    if images.dtype != torch.uint8:
        return physical_transforms(images, generator)
    return physical_transforms(images.float() / 255, generator).mul(255).round().to(torch.uint8)


AUGMENTATIONS: dict[str, Augmentation] = {
    "crop": crop,
    "flip": flip,
    "cutout": cutout,
    "physical": physical,
    "jitter": jitter,
    "scale": scale,
    "shift": shift,
}
