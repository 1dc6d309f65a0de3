"""Where and how precisely to compute: the device, its precision and the processes that share every batch.

A `Session` holds these (Lightning Fabric starts the processes); a `Feed` holds a data set where batches can be cut
from it quickly.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from antibackdoor.data.augmentation import augment
from antibackdoor.data.samples import IntArray, Samples
from antibackdoor.errors import ConfigError
from antibackdoor.models.batch_norm import synchronize_batch_norm
from antibackdoor.training.recipe import Recipe, augmentation_names

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # slow to import, and `--help` needs none

Network = TypeVar("Network", bound=nn.Module)


class Batch(NamedTuple):
    """Some samples on a device."""

    inputs: Tensor  # (B, C, H, W) or (B, C, T) float32; images in [0, 1]
    labels: Tensor  # (B,) int64, or (B, K) float32 soft labels
    rows: Tensor  # (B,) int64, position in the Samples
    seed: int = 0  # of this step, in this process, for objectives that draw


class Feed(NamedTuple):
    """A data set at hand: batches are cut from it by row."""

    inputs: Tensor  # (N, *shape) uint8 or float32, on the device or in (mapped) memory
    labels: Tensor  # (N,) int64, or (N, K) float32 soft labels
    n_classes: int
    augmentations: tuple[str, ...]
    change: Callable[[Tensor, Tensor], Tensor] | None = None  # (inputs, rows) to inputs, before augmentation


class Session:
    """The device, its precision and the processes that share the work.

    Args:
        recipe: Where and how precisely to compute.
        n_samples: Size of the data set, for the batch size.
        images: Whether the samples are images; their networks like another memory layout.

    Raises:
        ConfigError: If the device does not exist or cannot hold so many processes.
    """

    def __init__(self, recipe: Recipe, n_samples: int, *, images: bool) -> None:
        self.recipe = recipe
        self.batch_size = recipe.batch(n_samples)
        if self.batch_size % recipe.devices:
            raise ConfigError(
                f"batches of {self.batch_size} cannot be split across {recipe.devices} devices: give a --batch-size "
                f"that is a multiple of {recipe.devices}"
            )
        accelerator = _accelerator(recipe.device)
        self.fabric = _fabric(accelerator, recipe.devices)
        self.device = self.fabric.device
        self.bf16 = recipe.precision == "bf16" or (recipe.precision == "auto" and has_fast_bf16(self.device))
        self.channels_last = images
        # Small enough for a processor's cache: half as fast again as 512 there.
        self.evaluation_batch = 128 if self.device.type == "cpu" else 512
        self.told_at = time.monotonic()  # when the last line of progress was printed

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return bool(self.fabric.global_rank == 0)

    def feed(self, samples: Samples) -> Feed:
        """Make a data set ready for cutting batches; it moves to the device if that leaves room for training."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable.*")
            inputs = torch.from_numpy(samples.inputs)
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            if inputs.nbytes < free / 3:
                inputs = inputs.to(self.device)
        given = torch.from_numpy(samples.labels)
        names = augmentation_names(self.recipe.augment, samples)
        return Feed(inputs, given.to(inputs.device), samples.n_classes, names)

    def batch(self, feed: Feed, rows: IntArray | Tensor, *, augment_seed: int | None = None) -> Batch:
        """Cut rows out of a feed; with a seed, augmented."""
        index = torch.as_tensor(rows, device=feed.inputs.device)
        inputs = feed.inputs[index]
        if feed.change is not None:
            inputs = feed.change(inputs, index)
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

    @torch.no_grad()
    def evaluate(
        self,
        feed: Feed,
        forward: Callable[[Tensor], Tensor],
        reduce: Callable[[Tensor, Tensor], Tensor],
        rows: IntArray | None = None,
        *,
        title: str = "evaluating",
    ) -> NDArray[np.float32]:
        """Apply a network in eval mode to rows of a feed.

        Args:
            feed: The data.
            forward: Inputs to logits `(B, K)`; its network must be in eval mode.
            reduce: Logits (float32) and given labels to `(B, ...)`, the part that is kept.
            rows: Rows to visit; all by default.
            title: Name in the progress bar.

        Returns:
            `(len(rows), ...)` float32 in the order of the rows, alike in all processes.
        """
        rows = np.arange(len(feed.labels), dtype=np.int64) if rows is None else rows
        world, rank = self.fabric.world_size, self.fabric.global_rank
        parts: list[Tensor] = []
        with self.bar(title, len(rows)) as advance:
            for start in range(0, len(rows), self.evaluation_batch * world):
                chunk = rows[start : start + self.evaluation_batch * world]
                # Every process takes the same number of rows (the last are repeated), so that all can be gathered.
                share = math.ceil(len(chunk) / world)
                own = chunk[np.minimum(np.arange(rank * share, (rank + 1) * share), len(chunk) - 1)]
                batch = self.batch(feed, own)
                with self.autocast():
                    logits = forward(batch.inputs)
                part = reduce(logits.float(), batch.labels)
                if world > 1:
                    part = _gather(part, world)[: len(chunk)]
                parts.append(part.cpu())
                advance(len(chunk))
        if not parts:
            return np.zeros(0, dtype=np.float32)
        return torch.cat(parts).numpy()

    @contextlib.contextmanager
    def full_precision(self, wanted: bool = True) -> Iterator[None]:
        """No lower precision within, unless the recipe asks for it by name."""
        before = self.bf16
        self.bf16 = before and not (wanted and self.recipe.precision == "auto")
        try:
            yield
        finally:
            self.bf16 = before

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
        delivered = seeded(build, 0)  # the weights are replaced; torch's own random state is left alone
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
        if not (self.recipe.progress and self.first):
            yield lambda _n: None
            return
        if not sys.stderr.isatty():
            yield _Ticker(self, title, total)
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


class _Ticker:
    """Progress where there is no terminal: one line a minute on standard error, so that nobody takes it for dead."""

    EVERY = 60.0  # seconds

    def __init__(self, session: Session, title: str, total: int) -> None:
        self.session, self.title, self.total, self.done = session, title, total, 0

    def __call__(self, n: int) -> None:
        self.done += n
        if time.monotonic() - self.session.told_at >= self.EVERY:
            self.session.told_at = time.monotonic()
            share = f" ({self.done / self.total:.0%})" if self.total else ""
            print(f"{time.strftime('%H:%M')} {self.title}{share}", file=sys.stderr, flush=True)


def _gather(part: Tensor, n_processes: int) -> Tensor:
    """The parts of all processes, one after the other."""
    parts = [torch.empty_like(part) for _ in range(n_processes)]
    torch.distributed.all_gather(parts, part.contiguous())
    return torch.cat(parts)


def seeded(build: Callable[[], Network], seed: int) -> Network:
    """A network whose first weights depend on the seed alone; torch's own random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


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
        # At the end of Python a thread of the group that still lets go of a tensor would abort the process.
        atexit.register(_leave_group)
    return fabric


def _leave_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
