"""CL: target-class images are made hard to recognize, then patched; their labels stay right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from antibackdoor.attacks.badnets import BadNets
from antibackdoor.attacks.plans import CleanLabel
from antibackdoor.attacks.stamps import Patch, Staged, require_fraction, require_kind, require_shape, to_pixels, white
from antibackdoor.attacks.surrogate import Surrogate, in_chunks, single_target, train_surrogate
from antibackdoor.data.samples import InputArray, IntArray, Samples
from antibackdoor.errors import ConfigError

if TYPE_CHECKING:
    from antibackdoor.protocols import Plan


@dataclass(frozen=True, eq=False)
class HardenedPatch:
    """Moves an image away from its label by projected gradient ascent on a surrogate, then stamps a patch.

    Attributes:
        surrogate: The attacker's network.
        patch: The trigger proper.
        label: The label of the images.
        epsilon: Largest change of a pixel, in [0, 1].
        step: Change of a pixel in one step, in [0, 1].
        n_steps: Number of steps.
    """

    surrogate: Surrogate
    patch: Patch
    label: int
    epsilon: float
    step: float
    n_steps: int

    def apply(self, inputs: InputArray, ids: IntArray) -> InputArray:
        """Change images `(B, C, H, W)`."""
        require_shape(inputs, self.surrogate.shape)
        network = self.surrogate.network()

        def harden(images: Tensor) -> Tensor:
            labels = torch.full((len(images),), self.label)
            moved = images
            for _ in range(self.n_steps):
                moved = moved.detach().requires_grad_(True)
                loss = F.cross_entropy(network(moved), labels, reduction="sum")
                (slope,) = torch.autograd.grad(loss, moved)
                change = moved.detach() + self.step * slope.sign() - images
                moved = (images + change.clamp(-self.epsilon, self.epsilon)).clamp(0, 1)
            return moved

        hardened = in_chunks(harden, inputs) * white(inputs)
        return self.patch.apply(to_pixels(hardened, inputs.dtype), ids)


def in_all_corners(patch: Patch) -> Patch:
    """The patch and its mirror images: whichever way an image is shifted or flipped, one of them stays whole."""
    height, width = patch.pattern.shape[1:]
    window = np.s_[:, patch.top : patch.top + height, patch.left : patch.left + width]
    corners = []
    for values in (patch.pattern, patch.opacity):
        whole = np.zeros((len(values), *patch.shape[1:]), dtype=np.float32)
        whole[window] = values
        rows = np.maximum(whole, whole[:, ::-1])
        corners.append(np.maximum(rows, rows[:, :, ::-1]))
    return Patch(corners[0], corners[1], 0, 0, patch.shape)


@dataclass(frozen=True)
class LabelConsistent:
    """Adversarial noise makes target-class images hard to recognize, so the network learns the patch.

    `x_{k+1} = Proj(x_k + step sign(grad CE(f(x_k), t)))` within `epsilon`, on a surrogate that is trained
    adversarially; then the patch of BadNets, mirrored into all corners. At test time only the patches are stamped.

    Attributes:
        corners: 4, as in the paper with augmentation, or 1, the bottom right. A victim's random crops keep one corner
            intact in a third of the views, but the noise in all of them, so one corner is hardly learned.
        epsilon: Largest change of a pixel, in [0, 1]; 16/255, 0.15 in NAD, 8/255 to 32/255 in the code of
            the paper.
        step: Change in one step, in [0, 1]; 1.5/255.
        n_steps: Number of steps, at least 1; 100.
        epochs: Epochs of the surrogate, at least 1.
        n_surrogate: Maximum number of samples for training the surrogate.
        robust_epsilon: Epsilon of the surrogate's adversarial training, in [0, 1]; 0 for plain training, whose noise
            transfers badly.

    Raises:
        ConfigError: If the samples are no images, a value is out of its range, or the plan has no single
            target.

    Differs from the paper: a three-layer surrogate by fast adversarial training.

    Reference: Turner, Tsipras and Madry, Label-Consistent Backdoor Attacks, 2019, arXiv 1912.02771.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    evidence: ClassVar[str] = "B"
    threat_model: ClassVar[str] = "P+M"

    corners: Literal[1, 4] = 4
    epsilon: float = 16 / 255
    step: float = 1.5 / 255
    n_steps: int = 100
    epochs: int = 10
    n_surrogate: int = 10_000
    robust_epsilon: float = 8 / 255

    def trigger(self, samples: Samples, *, seed: int, plan: Plan | None = None) -> Staged:
        """Train the surrogate and make the trigger."""
        require_kind(samples, "image", "LabelConsistent")
        for name in ("epsilon", "step", "robust_epsilon"):
            require_fraction(name, getattr(self, name))
        if self.n_steps < 1:
            raise ConfigError(f"n_steps is {self.n_steps}; at least 1 step is needed")
        if self.corners not in (1, 4):
            raise ConfigError(f"corners is {self.corners}; choose 1 or 4")
        label = single_target(self.plan() if plan is None else plan, "LabelConsistent")
        patch = BadNets().trigger(samples, seed=seed)
        patch = in_all_corners(patch) if self.corners == 4 else patch
        surrogate = train_surrogate(
            samples, seed=seed, epochs=self.epochs, limit=self.n_surrogate, robust_epsilon=self.robust_epsilon
        )
        hardened = HardenedPatch(surrogate, patch, label, self.epsilon, self.step, self.n_steps)
        return Staged(hardened, hardened, patch)

    def plan(self) -> CleanLabel:
        """Clean label at 10 % of the data set, at most the class (ABL, E2ABL; NAD 8 %)."""
        return CleanLabel(rate=0.1)
