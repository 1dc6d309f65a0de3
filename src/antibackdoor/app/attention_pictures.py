"""Where a model looks before and after a purification: attention maps of a few test samples, for the report.

Neural attention distillation shows its effect by such maps (Li et al., ICLR 2021, arXiv 2101.05930): a backdoored
network attends to the trigger, a purified one to the object.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from antibackdoor.attacks import SavedTrigger, trigger_test_set
from antibackdoor.data.samples import IntArray, Samples
from antibackdoor.errors import ModelError
from antibackdoor.models.features import outputs_and_maps
from antibackdoor.models.hooks import evaluation_mode
from antibackdoor.purifiers.attention import align, attention_map
from antibackdoor.report import Attention, save_attention, small_inputs

PAIRS, CLEAN_ROWS = 4, 6  # samples that are shown with and without the trigger; samples if there is no trigger


def save_attention_of(
    out: Path,
    given: nn.Module,
    teacher: nn.Module | None,
    purified: nn.Module,
    test: Samples,
    saved: SavedTrigger | None,
) -> None:
    """Write `attention.npz`; nothing for networks without a layer that has places to attend to.

    Args:
        out: The run folder.
        given: The model before, on the CPU.
        teacher: The network that taught the purified one, if there is one.
        purified: The model after.
        test: Clean labelled samples; a few are shown, as many classes as possible.
        saved: A known trigger, to show samples with it as well.
    """
    networks = [given, purified] if teacher is None else [given, teacher, purified]
    samples, triggered = _shown(test, saved)
    small = small_inputs(samples.inputs)
    inputs = torch.from_numpy(np.ascontiguousarray(samples.inputs))
    inputs = inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs
    try:
        seen = [_looked(network, given, inputs, small.shape[2:]) for network in networks]
    except ModelError:  # a network of one's own may have no such layer: then there is nothing to show
        return
    maps = np.stack([places for places, _ in seen], axis=1)
    answers = np.stack([said for _, said in seen], axis=1)
    save_attention(out, Attention(small, maps, answers, samples.labels, triggered))


def _shown(test: Samples, saved: SavedTrigger | None) -> tuple[Samples, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """Test samples to show, and which of them carry the trigger: each after itself without it."""
    usable = np.ones(len(test), dtype=bool) if saved is None else saved.plan.eligible(test.labels)
    rows = _of_many_classes(test.labels, np.flatnonzero(usable), CLEAN_ROWS if saved is None else PAIRS)
    clean = test.take(rows)
    if saved is None:
        return clean, np.zeros(len(clean), dtype=bool)
    stamped = trigger_test_set(clean, saved.trigger, saved.plan)
    order = np.arange(2 * len(clean)).reshape(2, -1).T.ravel()
    both = Samples(
        np.concatenate([clean.inputs, stamped.inputs])[order],
        np.concatenate([clean.labels, stamped.labels])[order],
        np.concatenate([clean.ids, stamped.ids])[order],
        clean.class_names,
    )
    return both, order >= len(clean)


def _of_many_classes(labels: IntArray, rows: IntArray, most: int) -> IntArray:
    """The first row of each class, then the second of each, until there are enough."""
    by_class = rows[np.argsort(labels[rows], kind="stable")]
    chosen = labels[by_class]
    turn = np.arange(len(chosen)) - np.searchsorted(chosen, chosen)
    return np.asarray(by_class[np.lexsort((chosen, turn))][:most], dtype=np.int64)


def _looked(
    network: nn.Module, given: nn.Module, inputs: Tensor, places: tuple[int, ...]
) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.uint8]], IntArray]:
    """Maps `(n, *places)` of the end of the last stage, and the answers `(n,)`."""
    layer = align(given, network, inputs[:2], layers=(), betas=(1.0,), kind="attention").teacher[0]
    with torch.no_grad(), evaluation_mode(network):
        logits, found = outputs_and_maps(network, inputs, [layer])
    attention = attention_map(found[layer])
    highest = attention.flatten(1).amax(1).clamp_min(torch.finfo(torch.float32).tiny)
    scaled = attention / highest.view(-1, *[1] * (attention.ndim - 1))
    mode = "bilinear" if scaled.ndim == 3 else "linear"
    large = F.interpolate(scaled[:, None], size=places, mode=mode, align_corners=False)[:, 0]
    return large.mul(255).round().to(torch.uint8).numpy(), logits.argmax(1).numpy().astype(np.int64)
