"""Takes a shortcut off the samples that carry one, as far as their difference from their like tells what it is."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from antibackdoor.data.samples import BoolArray, Samples
from antibackdoor.statistics.difference import Difference, difference

COMPARED = 2000  # carriers of each label that are compared; what chance makes of fewer is a pattern of its own
MOST_STRETCHED = 4.0  # a value that a trigger overwrote has no spread that could be restored


@dataclass(frozen=True, eq=False)
class Removal:
    """Changes some rows of a data set as their label's carriers differ from their like; leaves the others alone.

    Attributes:
        found: `(G, *shape)` float32, mean of each value over the carriers of G labels; images in [0, 1].
        like: `(G, *shape)` float32, the same over their like.
        stretch: `(G, *shape)` float32, spread of the like over spread of the carriers.
        change: `(N,)` int64, which of the G changes each row needs; -1 for rows that are left alone.
    """

    found: Tensor
    like: Tensor
    stretch: Tensor
    change: Tensor

    def only(self, rows: BoolArray) -> Removal:
        """The same for these rows, `(N,)` bool, and no others."""
        return replace(self, change=torch.where(torch.from_numpy(rows), self.change, -1))

    def __call__(self, inputs: Tensor, rows: Tensor) -> Tensor:
        """Inputs `(B, *shape)` of these rows of the data set, changed where they are to be."""
        change = self.change[rows.to(self.change.device)]
        at = change >= 0
        if not at.any():
            return inputs
        which, device = change[at], inputs.device
        found, like, stretch = (part[which].to(device) for part in (self.found, self.like, self.stretch))
        at = at.to(device)
        scale = 255.0 if inputs.dtype == torch.uint8 else 1.0
        moved = like + (inputs[at].float() / scale - found) * stretch
        if inputs.ndim == 4:
            moved = moved.clamp(0, 1)
        changed = inputs.clone()
        changed[at] = (moved * scale).round().to(inputs.dtype) if scale > 1 else moved
        return changed


def find_removal(samples: Samples, isolated: BoolArray, core: BoolArray) -> Removal | None:
    """What to undo in the isolated samples of each label with carriers.

    Args:
        samples: The data.
        isolated: `(N,)` bool, what is not trusted.
        core: `(N,)` bool, those of them that carry a shortcut.

    Returns:
        A removal for all isolated samples of those labels; None if there is nothing to compare.
    """
    changes: list[Difference] = []
    which = np.full(len(samples), -1, dtype=np.int64)
    for label in np.unique(samples.labels[core]).tolist():
        of_label = samples.labels == label
        change = difference(samples, core & of_label, ~isolated, compared=COMPARED)
        if change is not None:
            which[isolated & of_label] = len(changes)
            changes.append(change)
    if not changes:
        return None
    stretches = [np.minimum(c.spread_like / np.maximum(c.spread_found, 1e-6), MOST_STRETCHED) for c in changes]
    return Removal(
        torch.from_numpy(np.stack([c.found for c in changes])),
        torch.from_numpy(np.stack([c.like for c in changes])),
        torch.from_numpy(np.stack(stretches)),
        torch.from_numpy(which),
    )
