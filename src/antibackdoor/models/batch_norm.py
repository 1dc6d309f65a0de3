"""Batch normalization over all processes, also on the CPU, where torch's own refuses to work."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; so is the gradient, since every process uses the sum."""

    @staticmethod
    def forward(_context: Any, values: Tensor) -> Tensor:
        total = values.detach().clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        torch.distributed.all_reduce(total)
        return total


class CrossProcessBatchNorm(_BatchNorm):
    """Normalizes with the mean and variance of the whole batch, whatever the part of it in this process."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions from (B, C) on."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `(B, C, ...)`; batch statistics in training, running ones in evaluation."""
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        channels = x.shape[1]
        axes = [axis for axis in range(x.ndim) if axis != 1]
        values = x.float()
        count = values.new_tensor([x.numel() / channels])
        own = torch.cat([values.sum(axes), values.square().sum(axes), count])
        sums: Tensor = _SumOverProcesses.apply(own)  # type: ignore[no-untyped-call]
        n = sums[-1].clamp_min(1)  # a head may get no rows at all
        mean = sums[:channels] / n
        variance = (sums[channels:-1] / n - mean.square()).clamp_min(0)
        if n > 1:  # the same in all processes; one value a channel has no variance
            self._update_running(mean.detach(), (variance * n / (n - 1)).detach())
        shape = [1, -1] + [1] * (x.ndim - 2)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        normalized: Tensor = values * scale.view(shape) + (self.bias - mean * scale).view(shape)
        return normalized.to(x.dtype)

    def _update_running(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


def synchronize_batch_norm(model: nn.Module) -> nn.Module:
    """Replace every batch normalization in a model by one over all processes; weights are shared, not copied."""
    if isinstance(model, _BatchNorm) and not isinstance(model, CrossProcessBatchNorm) and model.affine:
        synced = CrossProcessBatchNorm(
            model.num_features, model.eps, model.momentum, model.affine, model.track_running_stats
        )
        synced.weight, synced.bias = model.weight, model.bias
        synced.running_mean, synced.running_var = model.running_mean, model.running_var
        synced.num_batches_tracked = model.num_batches_tracked
        return synced
    for name, child in model.named_children():
        setattr(model, name, synchronize_batch_norm(child))
    return model
