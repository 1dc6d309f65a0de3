"""Neural attention distillation."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import nn

from antibackdoor.errors import ConfigError
from antibackdoor.protocols import FLAGS, Given, Purified
from antibackdoor.purifiers.attention import Alignment, Comparison, Distance, Kind, align, distilling
from antibackdoor.purifiers.clean import accuracy, clean_samples, hold_back, working_copy
from antibackdoor.purifiers.tuning import NAD_CODE, NAD_PAPER, Tuning, tune
from antibackdoor.training.journal import Journal
from antibackdoor.training.loop import classify
from antibackdoor.training.objectives import with_hole
from antibackdoor.training.ranges import check_choices, check_ranges
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.trainer import Trainer

MOST_DOUBLINGS = 7  # 500 becomes 64,000; at 50,000 NAD's accuracy had fallen by more than 50 points
CODE_HOLE = 2  # what the code of NAD cuts out where it asks for a length of 3
PRESETS = {"paper": (NAD_PAPER, 0), "code": (NAD_CODE, CODE_HOLE)}


@dataclass(frozen=True)
class DistillationFacts:
    """What the distillation did.

    Attributes:
        n_clean: Clean samples that were given.
        n_held_out: Those of them that nothing was trained on.
        accuracy_before: Share of the held-out ones that the given model classifies correctly, in [0, 1]; of all clean
            ones if none is held out.
        accuracy_after: The same for the purified model; an estimate for new data only if samples were held out.
        n_epochs: Epochs of the distillation that is delivered.
        beta_factor: By how much the betas were multiplied; 1 without a search.
        layers: Layers of the student whose maps were aligned, joined by `, `.
        teacher_layers: Those of the teacher.
    """

    n_clean: int
    n_held_out: int
    accuracy_before: float
    accuracy_after: float
    n_epochs: int
    beta_factor: float
    layers: str
    teacher_layers: str


@dataclass(frozen=True)
class NAD:
    """Fine-tunes the model while its attention maps are pulled to those of a teacher, its fine-tuned copy.

    `L = CE + sum over layers l of beta_l * distance(unit A(T_l), unit A(S_l))` with `A(F) = sum over channels |F_c|^p`
    and `unit A = A / (||A||_2 + 1e-6)`, for each sample over its places. The teacher stays fixed in eval mode. Divided
    by its norm, a sum over channels is the same as a mean over them, so there is no choice between the two (the paper's
    Table 7 has both; they differ by noise).

    Attributes:
        preset: `paper`: 10 epochs, learning rate 0.1, a tenth of it after every second epoch, momentum 0.9, weight
            decay 1e-4, batches of 64, crop, flip and cutout (jitter, scale and shift for series, our choice). `code`:
            20 epochs, 0.1 for two epochs and then 0.01, Nesterov momentum, crop, flip and a hole of 2 pixels (cut into
            series as well). The teacher is fine-tuned in the same way. The fields from `epochs` on override single
            values.
        pair: Teacher and student: `BF-B`: the fine-tuned copy teaches the given model (the paper's choice); `B-BF`: the
            reverse; `BF-BF`: the fine-tuned copy teaches itself; `C-B`: `given.teacher`, possibly of another
            architecture, teaches the given model.
        layers: Layer names, shallowest first; empty for the ends of the last stages, at most as many as there are
            betas. If the teacher has no layer of that name, its own last stages are used, paired from the deepest.
        betas: Weight of each layer, >= 0, shallowest first: the code's 500, 1000, 1000. A single beta applies to all
            layers; if there are more betas than layers, the last ones count. The paper's betas (10,000 in appendix K)
            refer to `mse`. They fit images of 32 pixels: for smaller images, lower them in proportion, since a mean
            over fewer positions weights each one more.
        maps: `attention`, or `activation`: the raw channels (the paper's Table 8; works far worse).
        power: Exponent p of the attention maps, >= 1. The paper compares 1 and 2; 2 is best.
        distance: `mse`: mean squared difference over positions (the code). `l2`: norm of the difference (Equation 2);
            start with betas of 1.
        held_out: Share of the clean samples of each class held out from training, in [0, 1). Required by the next two.
        beta_search: Double all betas until the held-out accuracy falls by more than this below the given model's, in
            [0, 1), and deliver the last model before that; 0 for no search. At most 7 times.
        patience: Stop the distillation after this many epochs without better held-out accuracy; 0 for never. The
            paper's best models come at about epoch 5.
        epochs: Passes over the clean samples, >= 1; None for the preset's value.
        learning_rate: Initial learning rate, in (0, 100); None for the preset's value.
        momentum: Momentum of SGD, in [0, 1); None for the preset's value.
        weight_decay: L2 penalty, in [0, 100); None for the preset's value.
        batch_size: Samples per step; None for the preset's value.
        augment: Augmentations, as in the recipe; None for the preset's value.

    Differs from the code, which keeps the checkpoint that does best on test data: here the last epoch is delivered.

    References: Li et al., "Neural Attention Distillation: Erasing Backdoor Triggers from Deep Neural Networks", ICLR
    2021, arXiv 2101.05930; Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, arXiv 1612.03928.

    >>> NAD(betas=(1.0,), distance="l2").pair
    'BF-B'
    """

    needs: ClassVar[tuple[str, ...]] = ("clean",)
    takes: ClassVar[tuple[str, ...]] = ("teacher",)
    unused: ClassVar[tuple[str, ...]] = ("schedule",)

    preset: Literal["paper", "code"] = "paper"
    pair: Literal["BF-B", "B-BF", "BF-BF", "C-B"] = "BF-B"
    layers: tuple[str, ...] = ()
    betas: tuple[float, ...] = (500.0, 1000.0, 1000.0)
    maps: Kind = "attention"
    power: float = 2.0
    distance: Distance = "mse"
    held_out: float = 0.0
    beta_search: float = 0.0
    patience: int = 0
    epochs: int | None = None
    learning_rate: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    batch_size: int | None = None
    augment: str | None = None

    def purify(self, model: nn.Module, given: Given, recipe: Recipe, *, journal: Journal | None = None) -> Purified:
        """Distill a copy of the model on `given.clean`.

        Args:
            model: The model, on the CPU; left as it is.
            given: `clean` is needed; `teacher` by the pair `C-B`, and by no other.
            recipe: Device, precision, seed.
            journal: Keeps checkpoints; nothing is kept by default.

        Raises:
            ConfigError: If something is missing or useless, or a hyper-parameter is out of range.
            DataError: If the clean samples do not fit the model.
            ModelError: If a layer does not exist, or has nothing to align.
        """
        clean = clean_samples(self, model, given)
        tuning, hole = self._checked(given)
        teaching = model if given.teacher is None else given.teacher  # the fine-tuned copy is built like the model
        example = torch.zeros(2, *clean.shape)
        alignment = align(model, teaching, example, layers=self.layers, betas=self.betas, kind=self.maps)
        trainer = Trainer(clean, tuning.recipe(recipe, clean), journal, mixes=True)
        return _Distillation(self, trainer, tuning, hole, alignment).purified(model, given)

    def _checked(self, given: Given) -> tuple[Tuning, int]:
        """How to train and the side of the hole, once all that was set makes sense."""
        check_choices(self)
        check_ranges(self, power="[1, inf)", held_out="[0, 1)", beta_search="[0, 1)", patience="[0, inf)")
        if not self.betas or not all(0 <= beta < float("inf") for beta in self.betas):
            raise ConfigError(f"betas are {self.betas}; give one or more numbers of 0 or more, such as 500, 1000, 1000")
        if 1 < len(self.betas) < len(self.layers):
            raise ConfigError(f"{len(self.layers)} layers and {len(self.betas)} betas: give one beta, or one per layer")
        for name in ("beta_search", "patience"):
            if getattr(self, name) and not self.held_out:
                raise ConfigError(f"{name} needs held-out samples: give held_out, such as 0.2")
        if self.pair == "C-B" and given.teacher is None:
            raise ConfigError(f"the pair C-B needs teacher: give {FLAGS['teacher']} (from Python, Given(teacher=...))")
        if self.pair != "C-B" and given.teacher is not None:
            raise ConfigError(
                f"the pair {self.pair} cannot use teacher: leave {FLAGS['teacher']} out, or give pair C-B"
            )
        preset, hole = PRESETS[self.preset]
        tuning = preset.of(self)
        check_ranges(tuning, epochs="[1, inf)")
        return tuning, hole


class _Distillation:
    """One run: what does not change while the student is trained."""

    def __init__(self, method: NAD, trainer: Trainer, tuning: Tuning, hole: int, alignment: Alignment) -> None:
        self.method, self.trainer, self.tuning, self.hole, self.alignment = method, trainer, tuning, hole, alignment
        self.session = trainer.session
        self.kept, held = hold_back(trainer.samples, method.held_out, seed=trainer.recipe.seed)
        self.held = held if len(held) else None

    def purified(self, model: nn.Module, given: Given) -> Purified:
        """Teach, distill, deliver."""
        trainer = self.trainer
        untouched = self.session.prepare(deepcopy(model))
        before = self._accuracy(untouched)
        teacher, first = untouched, untouched
        if given.teacher is not None:
            teacher = self.session.prepare(deepcopy(given.teacher))
        else:
            tuned = trainer.network(lambda: working_copy(model))
            objective = with_hole(classify(tuned), self.hole)
            tune(trainer, tuned, self.tuning, objective, name="teacher", rows=self.kept)
            teacher = tuned if self.method.pair in ("BF-B", "BF-BF") else untouched
            first = tuned if self.method.pair in ("B-BF", "BF-BF") else untouched
        student, n_epochs, factor = self._distilled(first, teacher.eval(), before)
        facts = DistillationFacts(
            n_clean=len(trainer.samples),
            n_held_out=0 if self.held is None else len(self.held),
            accuracy_before=before,
            accuracy_after=self._accuracy(student),
            n_epochs=n_epochs,
            beta_factor=factor,
            layers=", ".join(self.alignment.student),
            teacher_layers=", ".join(self.alignment.teacher),
        )
        taught_by = None if teacher is untouched or given.teacher is not None else teacher
        return Purified(
            trainer.delivered(student, lambda: deepcopy(model)),
            facts,
            teacher=None if taught_by is None else trainer.delivered(taught_by, lambda: deepcopy(model)),
        )

    def _distilled(self, first: nn.Module, teacher: nn.Module, before: float) -> tuple[nn.Module, int, float]:
        """The student, for how many epochs it was trained, and by how much its betas were multiplied."""
        student = self.trainer.network(lambda: working_copy(first))
        if not self.method.beta_search:
            return student, self._distill(student, first, teacher, 1.0, "fine-tuning"), 1.0
        best, least = self.trainer.network(lambda: working_copy(first)), before - self.method.beta_search
        kept = (0, 1.0)
        for doubling in range(MOST_DOUBLINGS + 1):
            factor = 2.0**doubling
            n_epochs = self._distill(student, first, teacher, factor, f"fine-tuning, betas times {factor:g}")

            def keep(_place: int, _reached: float, forced: bool = doubling == 0) -> float:
                reached = self._accuracy(student)
                if forced or reached >= least:
                    best.load_state_dict(student.state_dict())
                return reached

            reached = self.trainer.fold(f"judging betas times {factor:g}", 1, 0.0, keep)
            if doubling == 0 or reached >= least:
                kept = (n_epochs, factor)
            if reached < least:
                break
        return best, *kept

    def _distill(self, student: nn.Module, first: nn.Module, teacher: nn.Module, factor: float, name: str) -> int:
        """Train the student from its first weights; for how many epochs."""
        method = self.method
        betas = tuple(factor * beta for beta in self.alignment.betas)
        compare = Comparison(method.maps, method.power, method.distance)
        objective = distilling(student, teacher, replace(self.alignment, betas=betas), compare)
        reached = tune(
            self.trainer,
            student,
            self.tuning,
            with_hole(objective, self.hole),
            name=name,
            rows=self.kept,
            held=self.held,
            patience=method.patience,
            start=first.state_dict(),
        )
        return len(reached)

    def _accuracy(self, model: nn.Module) -> float:
        return accuracy(self.session, self.trainer.feed, model, self.held)
