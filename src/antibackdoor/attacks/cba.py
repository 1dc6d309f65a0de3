"""CBA: the trigger is the joint presence of two classes in one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from antibackdoor.attacks.plans import Composite
from antibackdoor.attacks.poisoning import sample_numbers
from antibackdoor.attacks.stamps import Staged, require_kind, require_shape, sample_generator
from antibackdoor.data.samples import InputArray, IntArray, Samples
from antibackdoor.data.streams import Stream, stream
from antibackdoor.errors import ConfigError

if TYPE_CHECKING:
    from antibackdoor.protocols import Plan


@dataclass(frozen=True, eq=False)
class HalfMixer:
    """Puts a window of the image beside a window of a partner, picked by the number of the sample.

    Attributes:
        partners: `(P, C, H, W)` of the type of the data.
        partner_labels: `(P,)` int64, their classes.
        known_ids: `(M,)` int64, sorted numbers of samples that need partners of a certain class.
        wanted: `(M,)` int64, that class; samples that are not known get the class `default`.
        default: Class of the partners of unknown samples.
        jitter: Largest shift of the border from the middle, in pixels.
        seed: Together with the number of a sample it decides partner, border and windows.
        shape: `(C, H, W)` of the images.
    """

    partners: InputArray
    partner_labels: IntArray
    known_ids: IntArray
    wanted: IntArray
    default: int
    jitter: int
    seed: int
    shape: tuple[int, ...]

    def apply(self, inputs: InputArray, ids: IntArray) -> InputArray:
        """Compose images `(B, C, H, W)`."""
        require_shape(inputs, self.shape)
        if inputs.dtype != self.partners.dtype:
            raise ConfigError(f"the partners are {self.partners.dtype}, the inputs {inputs.dtype}; use one type")
        composed = np.array(inputs)
        place = np.searchsorted(self.known_ids, ids).clip(0, max(0, len(self.known_ids) - 1))
        for position, number in enumerate(ids):
            known = len(self.known_ids) > 0 and self.known_ids[place[position]] == number
            label = self.wanted[place[position]] if known else self.default
            rng = sample_generator(self.seed, int(number))
            partner = self.partners[rng.choice(np.flatnonzero(self.partner_labels == label))]
            composed[position] = _compose(inputs[position], partner, self.jitter, rng)
        return composed


@dataclass(frozen=True)
class CBA:
    """Joins half an image of class A with half of class B, and labels the composite as a third class C.

    Each image loses half its area and nothing is resized. As many mixes of two images of one class keep
    their label and teach that a composition as such means nothing.

    Attributes:
        n_partners: Maximum number of partner images per class that the trigger stores, at least 1.
        jitter: Maximum shift of the border from the middle, in pixels, >= 0; 3 in the release.

    Raises:
        ConfigError: If the samples are no images, are smaller than 8 pixels, or lack class A or B.

    Differs from the release: a fixed data set, so neither weighted losses nor the contrastive term;
    composites replace samples of A and B; at test time images of A meet kept *training* images of B.
    The true label of a composite is undefined: count either class as right.

    Reference: Lin et al., Composite Backdoor Attack for Deep Neural Network by Mixing Existing Benign
    Features, CCS 2020.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    evidence: ClassVar[str] = "C"
    threat_model: ClassVar[str] = "P"

    n_partners: int = 64
    jitter: int = 3

    def trigger(self, samples: Samples, *, seed: int, plan: Plan | None = None) -> Staged:
        """The mixers, with partners taken from the samples; they know the labels of these samples."""
        require_kind(samples, "image", "CBA")
        if self.n_partners < 1:
            raise ConfigError(f"n_partners is {self.n_partners}; a class needs at least 1")
        if not 0 <= self.jitter < min(samples.shape[1:]) // 2:
            limit = min(samples.shape[1:]) // 2 - 1
            raise ConfigError(f"jitter is {self.jitter} pixels; these images allow 0 to {limit}")
        fitted = self.plan() if plan is None else plan
        if not isinstance(fitted, Composite):
            raise ConfigError(f"CBA needs the plan Composite, not {type(fitted).__name__}")
        first, second = fitted.source_labels
        for label in fitted.source_labels:
            if not (samples.labels == label).any():
                raise ConfigError(f"CBA needs samples of class {label}, and there are none")
        numbers = sample_numbers(samples.ids)
        other = np.where(samples.labels == first, second, first)
        planted = self._mixer(samples, (first, second), numbers, other, second, seed)
        classes = tuple(int(label) for label in np.unique(samples.labels))
        cover = self._mixer(samples, classes, numbers, samples.labels, second, seed)
        nobody = np.array([], dtype=np.int64)
        shown = self._mixer(samples, (second,), nobody, nobody, second, seed)
        return Staged(planted, cover, shown)

    def _mixer(
        self,
        samples: Samples,
        classes: tuple[int, ...],
        numbers: IntArray,
        wanted: IntArray,
        default: int,
        seed: int,
    ) -> HalfMixer:
        rng = stream(seed, Stream.COMPOSITION)
        rows = [rng.permutation(np.flatnonzero(samples.labels == label))[: self.n_partners] for label in classes]
        chosen = np.sort(np.concatenate(rows))
        order = np.argsort(numbers)
        return HalfMixer(
            np.array(samples.inputs[chosen]),
            samples.labels[chosen],
            numbers[order],
            wanted[order],
            default,
            self.jitter,
            seed,
            samples.shape,
        )

    def plan(self) -> Composite:
        """Classes 0 and 1 to class 2 at 10 %, with as many mixes of one class (ABL, E2ABL)."""
        return Composite()


def _compose(image: InputArray, partner: InputArray, jitter: int, rng: np.random.Generator) -> InputArray:
    first, second = (partner, image) if rng.random() < 0.5 else (image, partner)
    axis = 1 if rng.random() < 0.5 else 2
    length = image.shape[axis]
    border = length // 2 + int(rng.integers(-jitter, jitter + 1))
    parts = []
    for source, width in ((first, border), (second, length - border)):
        start = int(rng.integers(length - width))
        parts.append(source.take(range(start, start + width), axis=axis))
    return np.concatenate(parts, axis=axis)
