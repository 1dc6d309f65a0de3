"""One training loop over indexed samples: every step knows which rows it saw and what each of them cost.

A `Session` holds the device, the precision and the other processes (Lightning Fabric); a `Feed` holds a data
set where batches can be cut from it quickly. All randomness is a function of the recipe's seed and of the
position in training, never of what ran before: that is what makes a killed run end as an unbroken one does.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from antibackdoor.augmentation import augment
from antibackdoor.batch_norm import synchronize_batch_norm
from antibackdoor.errors import ConfigError
from antibackdoor.history import Losses
from antibackdoor.samples import Batch, IntArray, Samples

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # slow to import, and `--help` needs none

EVALUATION_BATCH = 512

Network = TypeVar("Network", bound=nn.Module)


class Journal(Protocol):
    """Where a training writes what it did and from where it resumes."""

    def log(self, **fields: float | int | str | bool | None) -> None:
        """Write one line of measurements."""
        ...

    def save(self, state: dict[str, Any]) -> None:
        """Keep a checkpoint: nested dicts and lists of tensors, numbers and strings."""
        ...

    def load(self) -> dict[str, Any] | None:
        """The last checkpoint, or None."""
        ...


class NoJournal:
    """A journal that keeps nothing, for use from Python."""

    def log(self, **fields: float | int | str | bool | None) -> None:
        """Forget the line."""

    def save(self, state: dict[str, Any]) -> None:
        """Forget the checkpoint."""

    def load(self) -> dict[str, Any] | None:
        """Nothing was kept."""
        return None


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, whatever the defense.

    Attributes:
        epochs: Length of the training in passes over the data; 0 chooses by the size of the data (20 passes,
            more for small data so that at least 3,000 steps are taken, at most 200 passes).
        batch_size: Samples a step over all processes; 0 chooses 128, or 32 below 5,000 samples.
        learning_rate: Peak learning rate of SGD with Nesterov momentum; it rises over the first fifth of
            the training and then falls to zero on a straight line.
        momentum: Momentum of SGD.
        weight_decay: L2 penalty on all weights.
        augment: Names of augmentations, joined by commas: `crop`, `flip`, `cutout` for images, `jitter`,
            `scale`, `shift` for series, `none`; `auto` is crop for images from 16 pixels on, else none.
        precision: `bf16` (autocast), `fp32`, or `auto`: bf16 for images where the processor has it.
        device: `auto`, `cpu`, `cuda` or `mps`.
        devices: Processes that share every batch.
        seed: Seed of everything random.
        progress: Show progress bars on standard error, if that is a terminal.
    """

    epochs: int = 0
    batch_size: int = 0
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: str = "auto"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    device: str = "auto"
    devices: int = 1
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        for name, low in (("epochs", 0), ("batch_size", 0), ("devices", 1), ("seed", 0)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name} is {getattr(self, name)}; give a number from {low} on")
        if not 0 < self.learning_rate < 100:
            raise ConfigError(f"learning_rate is {self.learning_rate}; give a number above 0, such as 0.1")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum is {self.momentum}; give a number in [0, 1), such as 0.9")
        if not 0 <= self.weight_decay < 100:
            raise ConfigError(f"weight_decay is {self.weight_decay}; give 0 or more, such as 0.0005")
        if self.precision not in ("auto", "bf16", "fp32"):
            raise ConfigError(f"precision is {self.precision!r}; give auto, bf16 or fp32")

    def batch(self, n_samples: int) -> int:
        """Samples a step for a data set of this size."""
        chosen = self.batch_size or (128 if n_samples >= 5000 else 32)
        return min(chosen, n_samples)

    def passes(self, n_samples: int) -> int:
        """Passes over a data set of this size."""
        if self.epochs:
            return self.epochs
        return int(np.clip(math.ceil(3000 * self.batch(n_samples) / n_samples), 20, 200))


class Feed(NamedTuple):
    """A data set at hand: batches are cut from it by row."""

    inputs: Tensor  # (N, *shape) uint8 or float32, on the device or in (mapped) memory
    labels: Tensor  # (N,) int64
    n_classes: int
    augmentations: tuple[str, ...]


class Predictions(NamedTuple):
    """What a model says of every sample."""

    labels: IntArray  # (N,) the most probable class
    confidence: NDArray[np.float32]  # (N,) its probability
    losses: Losses  # (N,) cross-entropy against the given label


Objective = Callable[[Batch], tuple[Tensor, Tensor]]
"""`(weighted, recorded)`, each `(B,)`: the step descends the mean of the first; the second goes to the history."""


class Session:
    """The device, its precision and the processes that share the work.

    Args:
        recipe: Where and how precisely to compute.
        n_samples: Size of the data set, for the batch size.
        images: Whether the samples are images; bf16 pays off for them.

    Raises:
        ConfigError: If the device does not exist or cannot hold so many processes.
    """

    def __init__(self, recipe: Recipe, n_samples: int, *, images: bool) -> None:
        self.recipe = recipe
        self.batch_size = recipe.batch(n_samples)
        if self.batch_size % recipe.devices:
            raise ConfigError(
                f"batches of {self.batch_size} cannot be shared by {recipe.devices} devices: give a --batch-size "
                f"that is a multiple of {recipe.devices}"
            )
        accelerator = _accelerator(recipe.device)
        self.fabric = _fabric(accelerator, recipe.devices)
        self.device = self.fabric.device
        wants_bf16 = recipe.precision == "bf16" or (recipe.precision == "auto" and images)
        self.bf16 = wants_bf16 and (recipe.precision == "bf16" or has_fast_bf16(self.device))
        self.channels_last = images

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return bool(self.fabric.global_rank == 0)

    def feed(self, samples: Samples, labels: IntArray | None = None) -> Feed:
        """Make a data set ready for cutting batches; it moves to the device if that leaves room for training."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable.*")
            inputs = torch.from_numpy(samples.inputs)
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            if inputs.nbytes < free / 3:
                inputs = inputs.to(self.device)
        given = torch.from_numpy(samples.labels if labels is None else labels)
        names = augmentation_names(self.recipe.augment, samples)
        return Feed(inputs, given.to(inputs.device), samples.n_classes, names)

    def batch(self, feed: Feed, rows: IntArray | Tensor, *, augment_seed: int | None = None) -> Batch:
        """Cut rows out of a feed; with a seed, augmented."""
        index = torch.as_tensor(rows, device=feed.inputs.device)
        inputs = feed.inputs[index]
        if augment_seed is not None and feed.augmentations:
            inputs = augment(inputs, feed.augmentations, augment_seed)
        inputs = inputs.to(self.device, non_blocking=True)
        if inputs.dtype == torch.uint8:
            inputs = inputs.float().div_(255)
        if self.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        # Labels that a defense has changed may lie elsewhere than the inputs.
        labels = feed.labels[index.to(feed.labels.device)]
        return Batch(inputs, labels.to(self.device), index.to(self.device))

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Lower precision where it is faster."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def prepare(self, model: nn.Module) -> nn.Module:
        """Move a model here, in the memory layout that the convolutions like, alike in all processes."""
        model = model.to(self.device)
        if self.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.fabric.world_size > 1:
            model = synchronize_batch_norm(model)
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.data = self.fabric.broadcast(tensor.data, 0)
        return model

    def finished(self, model: nn.Module, build: Callable[[], nn.Module]) -> nn.Module:
        """The trained weights in a network as `build` makes it, on the CPU and in eval mode."""
        delivered = seeded(build, 0)
        delivered.load_state_dict({key: value.cpu() for key, value in model.state_dict().items()})
        return delivered.eval()

    def optimizer(self, parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.SGD:
        """SGD with the recipe's momentum and weight decay."""
        return torch.optim.SGD(
            [p for p in parameters if p.requires_grad],
            lr=learning_rate,
            momentum=self.recipe.momentum,
            weight_decay=self.recipe.weight_decay,
            nesterov=self.recipe.momentum > 0,
        )

    @contextlib.contextmanager
    def bar(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """A progress bar over `total` samples; calls with the number done move it."""
        if not (self.recipe.progress and self.first and sys.stderr.isatty()):
            yield lambda _n: None
            return
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        ) as progress:
            task = progress.add_task(title, total=total, rate="")

            def advance(n: int) -> None:
                progress.advance(task, n)
                speed = progress.tasks[0].speed
                if speed:
                    progress.update(task, rate=f"{speed:,.0f} samples/s")

            yield advance


def shuffled(n: int, *seed: int) -> IntArray:
    """A permutation of `0..n-1` that depends on the seeds alone."""
    return np.random.default_rng(seed).permutation(n).astype(np.int64)


def batches(rows: IntArray, size: int) -> list[IntArray]:
    """Rows cut into batches; a last batch too small for batch statistics joins the one before."""
    cuts = [rows[i : i + size] for i in range(0, len(rows), size)]
    if len(cuts) > 1 and len(cuts[-1]) < max(2, size // 4):
        cuts[-2:] = [np.concatenate(cuts[-2:])]
    return cuts


def seeded(build: Callable[[], Network], seed: int) -> Network:
    """A network whose first weights depend on the seed alone; torch's own random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def on_triangle(peak: float, epoch: int, n_epochs: int) -> Callable[[float], float]:
    """The learning rate within one epoch of a schedule that rises over a fifth of all epochs, then falls to zero.

    Args:
        peak: Largest learning rate.
        epoch: The epoch, from 0.
        n_epochs: Length of the schedule.

    Returns:
        Learning rate as a function of the done share of the epoch in [0, 1).
    """

    def rate(done: float) -> float:
        progress = (epoch + done) / n_epochs
        return peak * max(min(progress / 0.2, (1 - progress) / 0.8), 0.0)

    return rate


def classify(forward: Callable[[Tensor], Tensor]) -> Objective:
    """Plain classification: every sample counts with its cross-entropy."""

    def objective(batch: Batch) -> tuple[Tensor, Tensor]:
        losses = cross_entropy(forward(batch.inputs), batch.labels)
        return losses, losses

    return objective


def train_epoch(
    session: Session,
    feed: Feed,
    plan: list[IntArray],
    model: nn.Module,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    *,
    seed: tuple[int, ...],
    learning_rate: Callable[[float], float] | None = None,
    augmented: bool = True,
    title: str = "training",
) -> Losses:
    """Take one optimizer step for each batch of the plan.

    Args:
        session: Device, precision, processes.
        feed: The data.
        plan: Rows of each batch.
        model: The network in training; its gradients are averaged over the processes.
        objective: Per-sample objective and per-sample loss of a batch.
        optimizer: Its steps are taken.
        seed: Seeds the augmentation, together with the number of the batch.
        learning_rate: Learning rate as a function of the done share of the plan in [0, 1).
        augmented: Whether the feed's augmentations apply.
        title: Name in the progress bar.

    Returns:
        `(N,)` float32: the recorded loss of every row, nan for rows that the plan leaves out.
    """
    model.train()
    recorded = torch.full((len(feed.labels),), float("nan"), device=session.device)
    world, rank = session.fabric.world_size, session.fabric.global_rank
    stream = np.random.default_rng(seed)
    with session.bar(title, sum(len(rows) for rows in plan)) as advance:
        for step, rows in enumerate(plan):
            if learning_rate is not None:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step / len(plan))
            augment_seed = int(stream.integers(2**62)) + rank if augmented else None
            batch = session.batch(feed, rows[rank::world], augment_seed=augment_seed)
            with session.autocast():
                weighted, losses = objective(batch)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(weighted.float().sum() * (world / len(rows)))
            if world > 1:
                _average_gradients(session.fabric, model)
            optimizer.step()
            recorded[batch.rows] = losses.detach().float()
            advance(len(rows))
    if world > 1:
        recorded = _merge(session.fabric, recorded)
    return recorded.cpu().numpy()


@torch.no_grad()
def evaluate(
    session: Session,
    feed: Feed,
    forward: Callable[[Tensor], Tensor],
    reduce: Callable[[Tensor, Tensor], Tensor],
    rows: IntArray | None = None,
    *,
    title: str = "evaluating",
) -> NDArray[np.float32]:
    """Apply a network in eval mode to rows of a feed.

    Args:
        session: Device, precision, processes.
        feed: The data.
        forward: Inputs to logits `(B, K)`; its network must be in eval mode.
        reduce: Logits (float32) and given labels to `(B, ...)`, the part that is kept.
        rows: Rows to visit; all by default.
        title: Name in the progress bar.

    Returns:
        `(len(rows), ...)` float32 in the order of the rows, alike in all processes.
    """
    rows = np.arange(len(feed.labels), dtype=np.int64) if rows is None else rows
    world, rank = session.fabric.world_size, session.fabric.global_rank
    parts: list[Tensor] = []
    with session.bar(title, len(rows)) as advance:
        for start in range(0, len(rows), EVALUATION_BATCH * world):
            chunk = rows[start : start + EVALUATION_BATCH * world]
            # Every process takes the same number of rows (the last are repeated), so that all can be gathered.
            share = math.ceil(len(chunk) / world)
            own = chunk[np.minimum(np.arange(rank * share, (rank + 1) * share), len(chunk) - 1)]
            batch = session.batch(feed, own)
            with session.autocast():
                logits = forward(batch.inputs)
            part = reduce(logits.float(), batch.labels)
            if world > 1:
                part = _gather(part, world)[: len(chunk)]
            parts.append(part.cpu())
            advance(len(chunk))
    if not parts:
        return np.zeros(0, dtype=np.float32)
    return torch.cat(parts).numpy()


def predict(session: Session, model: nn.Module, samples: Samples) -> Predictions:
    """Class, confidence and loss of every sample under a model."""
    was_training = model.training
    model.eval()
    values = evaluate(session, session.feed(samples), model, _summary, title="predicting")
    model.train(was_training)
    values = values.reshape(-1, 3)
    return Predictions(values[:, 0].astype(np.int64), values[:, 1], values[:, 2])


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each sample `(B,)`, in float32."""
    return F.cross_entropy(logits.float(), labels, reduction="none")


def augmentation_names(setting: str, samples: Samples) -> tuple[str, ...]:
    """The augmentations that a recipe's setting means for these samples.

    Raises:
        ConfigError: If a name is unknown or belongs to the other kind of data.
    """
    known = ("crop", "flip", "cutout") if samples.kind == "image" else ("jitter", "scale", "shift")
    if setting == "auto":
        return ("crop",) if samples.kind == "image" and min(samples.shape[1:]) >= 16 else ()
    names = tuple(name for name in setting.replace(" ", "").split(",") if name not in ("", "none"))
    for name in names:
        if name not in known:
            raise ConfigError(
                f"augmentation '{name}' does not exist for {samples.kind} data: choose among {', '.join(known)}, none"
            )
    return names


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is faster than float32 here."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        capability = torch.backends.cpu.get_cpu_capability()
        flags = _processor_flags()
        return "AVX512" in capability and ("avx512_bf16" in flags or "amx_bf16" in flags)
    return False


def _processor_flags() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            return next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return ""


def _accelerator(device: str) -> str:
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if available[name])
    if device not in available:
        raise ConfigError(f"device '{device}' is unknown: choose auto, cpu, cuda or mps")
    if not available[device]:
        raise ConfigError(f"device '{device}' is not available here: choose --device auto or cpu")
    return device


def _fabric(accelerator: str, devices: int) -> Fabric:
    from lightning_fabric import Fabric

    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    if accelerator == "cuda" and devices > torch.cuda.device_count():
        raise ConfigError(f"{devices} devices wanted, {torch.cuda.device_count()} found: lower --devices")
    fabric = Fabric(accelerator=accelerator, devices=devices, strategy="ddp" if devices > 1 else "auto")
    if devices > 1:
        fabric.launch()
    return fabric


def _sum(fabric: Fabric, values: Tensor) -> Tensor:
    """The sum over all processes."""
    total: Any = fabric.all_reduce(values, reduce_op="sum")
    return torch.as_tensor(total)


def _gather(part: Tensor, n_processes: int) -> Tensor:
    """The parts of all processes, one after the other."""
    parts = [torch.empty_like(part) for _ in range(n_processes)]
    torch.distributed.all_gather(parts, part.contiguous())
    return torch.cat(parts)


def _average_gradients(fabric: Fabric, model: nn.Module) -> None:
    """One message for all gradients; a parameter that no process used in this step keeps none."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    used = torch.tensor([float(p.grad is not None) for p in parameters], device=flat.device)
    total = _sum(fabric, torch.cat([flat / fabric.world_size, used]))
    start = 0
    for parameter, n_users in zip(parameters, total[len(flat) :].tolist(), strict=True):
        end = start + parameter.numel()
        parameter.grad = total[start:end].view_as(parameter) if n_users else None
        start = end


def _merge(fabric: Fabric, recorded: Tensor) -> Tensor:
    """The losses of all processes; 0 / 0 is nan, for a row that no process saw."""
    seen = (~recorded.isnan()).float()
    return _sum(fabric, recorded.nan_to_num(0.0)) / _sum(fabric, seen)


def _summary(logits: Tensor, labels: Tensor) -> Tensor:
    """`(B, 3)`: class, its probability, loss. Classes stay exact in float32 up to 16 million."""
    probability, predicted = logits.softmax(1).max(1)
    return torch.stack([predicted.float(), probability, cross_entropy(logits, labels)], dim=1)
