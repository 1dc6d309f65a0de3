"""Several processes share every batch and end where one would have."""

from __future__ import annotations

import atexit
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import CLI, pictures, write_folder
from torch import nn

from antibackdoor.data.samples import Samples
from antibackdoor.data.streams import Stream
from antibackdoor.defenses import E2ABL, DualHead
from antibackdoor.detectors import ConfusionTraining
from antibackdoor.models.backbones import build_backbone
from antibackdoor.models.batch_norm import CrossProcessBatchNorm, synchronize_batch_norm
from antibackdoor.training.loop import classify, predict, train_epoch
from antibackdoor.training.recipe import Recipe
from antibackdoor.training.session import Session

Start = Callable[..., subprocess.Popen[str]]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kills processes and looks them up in /proc")

SCRIPT = [str(Path(sys.executable).with_name("antibackdoor"))]
PLAIN: list[object] = ["--defense", "none", "--backbone", "wrn-10-1", "--device", "cpu", "--precision", "fp32"]
RECIPE = Recipe(epochs=4, device="cpu", precision="fp32", batch_size=32)
SEARCH = ConfusionTraining(power=False, warmup_steps=150, by_parts=False, across_labels=False, in_the_rest=False)
SHORT = DualHead(search=SEARCH)


def poisoned_pictures() -> tuple[Samples, np.ndarray]:
    """Every tenth picture has a bright corner and the label 0, whatever it shows."""
    samples = pictures(400, 4, size=8)
    dirty = (np.arange(400) % 10 == 3) & (samples.labels != 0)
    inputs, labels = samples.inputs.copy(), samples.labels.copy()
    inputs[dirty, :, 5:, 5:] = np.array([[0, 255, 0], [255, 0, 255], [0, 255, 255]], dtype=np.uint8)
    labels[dirty] = 0
    return Samples(inputs, labels, samples.ids, samples.class_names), dirty


def normed(x: torch.Tensor, norm: nn.Module, upstream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    y = norm(x)
    (y * upstream).sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad


def make_norm() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(3)
    norm.weight.data, norm.bias.data = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([0.1, 0.2, 0.3])
    return norm


def norm_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 3 + 2 * torch.randn(10, 3, 4, 4, generator=generator), torch.randn(10, 3, 4, 4, generator=generator)


def run_all(recipe: Recipe, rank: int) -> dict[str, Any]:
    """What both one process and two of them compute."""
    samples, _ = poisoned_pictures()
    session = Session(recipe, len(samples), images=True)
    feed = session.feed(samples)
    torch.manual_seed(0)
    net = session.prepare(build_backbone("wrn-10-1", samples.shape, 4))
    plan = [np.arange(32), np.arange(40, 73), np.array([100, 101, 102])]
    optimizer = session.optimizer(net.parameters(), 0.01)
    losses = train_epoch(session, feed, plan, net, classify(net), optimizer, seed=(0, Stream.STEP))
    net.eval()
    order = np.arange(0, 399, 2, dtype=np.int64)[::-1].copy()
    met = session.evaluate(feed, net, lambda logits, labels: torch.stack([logits[:, 0], labels.float()], 1), order)
    said = predict(session, net, samples)

    def build() -> nn.Module:
        return build_backbone("wrn-10-1", samples.shape, 4)

    trap = SHORT.train(samples, build, recipe)
    # Batches of two a process: often a process has no clean row, or one, for its main head.
    tiny = replace(recipe, epochs=2, batch_size=4)
    published = E2ABL(warmup_epochs=1).train(samples.take(np.arange(120)), build, tiny)
    results = {
        "losses": losses,
        "met": met,
        "said": said.labels,
        "isolated": trap.verdict.isolated,
        "published_losses": published.history.losses[1],
        "published_weights": torch.cat([p.flatten() for p in published.model.parameters()]).detach().numpy(),
        "weights": torch.cat([p.detach().flatten() for p in net.parameters()]).numpy(),
        "types": np.array([type(trap.model).__name__, str(any(isinstance(m, CrossProcessBatchNorm)
                                                              for m in trap.model.modules()))]),
    }  # fmt: skip
    if session.fabric.world_size > 1:
        x, upstream = norm_inputs()
        norm = synchronize_batch_norm(make_norm())
        own = slice(0, 7) if rank == 0 else slice(7, 10)  # unequal parts
        y, gradient = normed(x[own], norm, upstream[own])
        results |= {"y": y.numpy(), "gradient": gradient.numpy(), "weight_gradient": norm.weight.grad.numpy().copy()}
        normed(x[:0] if rank else x[own], norm, upstream[:0] if rank else upstream[own])  # no rows in one process
        assert not norm.running_mean.requires_grad and not norm.running_var.requires_grad
        results |= {"mean": norm.running_mean.numpy(), "variance": norm.running_var.numpy()}
    return results


def worker(rank: int, port: int, folder: str) -> None:
    # What is registered first is called last: after the package has left its group.
    atexit.register(lambda: (Path(folder) / f"{rank}.txt").write_text(str(torch.distributed.is_initialized())))
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    np.savez(Path(folder) / f"{rank}.npz", **run_all(replace(RECIPE, devices=2), rank))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of one process alone, and of each of two."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(worker, (port, str(folder)), nprocs=2)
    ends = {"in_group_at_end": [(folder / f"{rank}.txt").read_text() for rank in (0, 1)]}
    return [run_all(RECIPE, 0) | ends, *(dict(np.load(folder / f"{rank}.npz")) for rank in (0, 1))]


def test_both_processes_know_the_same(results: list[dict[str, Any]]) -> None:
    _, first, second = results
    for name in ("losses", "met", "said", "isolated", "weights", "published_losses", "published_weights"):
        assert first[name].tobytes() == second[name].tobytes(), name


def test_processes_leave_their_group_before_python_ends(results: list[dict[str, Any]]) -> None:
    assert results[0]["in_group_at_end"] == ["False", "False"]


def test_two_processes_train_as_one(results: list[dict[str, Any]]) -> None:
    alone, shared, _ = results
    seen = ~np.isnan(alone["losses"])
    assert (np.flatnonzero(seen) == [*range(32), *range(40, 73), 100, 101, 102]).all()
    assert np.allclose(alone["losses"], shared["losses"], atol=1e-4, equal_nan=True)
    assert np.allclose(alone["weights"], shared["weights"], atol=1e-4)
    assert np.allclose(alone["met"], shared["met"], atol=1e-3)
    assert (alone["met"][:, 1] == shared["met"][:, 1]).all()
    assert (alone["said"] == shared["said"]).mean() > 0.98
    # Batches of four amplify rounding, so the published form is compared by its outcome.
    assert shared["published_losses"].mean() < 1 and alone["published_losses"].mean() < 1
    assert np.isfinite(shared["published_weights"]).all()


def test_two_processes_isolate_the_same(results: list[dict[str, Any]]) -> None:
    alone, shared, _ = results
    _, dirty = poisoned_pictures()
    assert alone["isolated"][dirty].mean() > 0.9 and alone["isolated"][~dirty].mean() < 0.1
    assert (alone["isolated"] != shared["isolated"]).sum() <= 2
    assert shared["types"][1] == "False"  # the delivered model needs no other process


def test_batch_norm_over_processes(results: list[dict[str, Any]]) -> None:
    _, first, second = results
    x, upstream = norm_inputs()
    norm = make_norm()
    y, gradient = normed(x, norm, upstream)
    assert np.allclose(np.concatenate([first["y"], second["y"]]), y, atol=1e-5)
    assert np.allclose(np.concatenate([first["gradient"], second["gradient"]]), gradient, atol=1e-5)
    # Each process holds its part of the weights' gradient; the parts are averaged over processes later.
    assert norm.weight.grad is not None
    assert np.allclose(first["weight_gradient"] + second["weight_gradient"], norm.weight.grad, atol=1e-4)
    normed(x[:7], norm, upstream[:7])
    for result in (first, second):
        assert np.allclose(result["mean"], norm.running_mean, atol=1e-5)
        assert np.allclose(result["variance"], norm.running_var, atol=1e-4)


def helper_of(process: subprocess.Popen[str]) -> int:
    """The process that the first one started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(children[0])


def wait_for_lines(process: subprocess.Popen[str], run: Path, n_lines: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        log = run / "log.jsonl"
        if log.exists() and log.read_bytes().count(b"\n") >= n_lines:
            return
        time.sleep(0.01)


def ended(pid: int) -> bool:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_console_script_on_two_devices(start: Start, tmp_path: Path) -> None:
    data, run = write_folder(pictures(120, 3), tmp_path / "data"), tmp_path / "run"
    process = start("train", data, "--out", run, *PLAIN, "--epochs", "3", "--devices", "2", command=SCRIPT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert out.count("Report:") == 1 and len(re.findall(r"^clean_accuracy ", out, re.MULTILINE)) == 1
    assert len((run / "log.jsonl").read_text().splitlines()) == 3
    assert len(pq.read_table(run / "samples.parquet")) == 96


def test_a_mistake_on_two_devices_is_one_line(start: Start, tmp_path: Path) -> None:
    data = write_folder(pictures(120, 3), tmp_path / "data")
    settings = ["--attach", "nowhere", "--epochs", "1", "--device", "cpu", "--devices", "2"]
    process = start("train", data, "--out", tmp_path / "run", *settings, command=CLI)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert err.startswith("antibackdoor: ") and "nowhere" in err and err.count("\n") == 1


@pytest.mark.parametrize("which", ["helper", "first", "interrupt"])
def test_no_process_outlives_the_other(start: Start, tmp_path: Path, which: str) -> None:
    data, run = write_folder(pictures(120, 3), tmp_path / "data"), tmp_path / "run"
    process = start("train", data, "--out", run, *PLAIN, "--epochs", "100000", "--devices", "2")
    wait_for_lines(process, run, 2)
    helper = helper_of(process)
    if which == "interrupt":
        os.killpg(process.pid, signal.SIGINT)
    else:
        os.kill(helper if which == "helper" else process.pid, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert ended(helper)
    assert process.returncode != 0
    if which == "interrupt":
        assert process.returncode == 130, err
        assert "--resume" in err and "Traceback" not in err
