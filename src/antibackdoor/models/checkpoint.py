"""A model file from a stranger: read without running it, and fill a network with its weights, or say why not."""

from __future__ import annotations

import io
import os
import re
import stat
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from antibackdoor.errors import ModelError, spelled_out
from antibackdoor.models.checkpoint_layouts import LAYOUTS, OPTIONAL, Attempt, Target, by_names, spell
from antibackdoor.models.checkpoint_order import by_order, order_of_use
from antibackdoor.models.normalization import Normalize

__all__ = ["SUFFIXES", "LoadedCheckpoint", "largest_file", "load_checkpoint", "read_state_dict"]

SUFFIXES = (".safetensors", ".pt", ".pth", ".tar")
WRAPPERS = ("state_dict", "model_state_dict", "model", "model_state", "net", "network", "weights", "params")
MOST_PROBLEMS = 20  # listed in one message

# The weights, what the greediest optimizer keeps of each (AMSGrad: two moments and a maximum), a moving average,
# and a second network such as NAD's teacher: 6 values for each of the network's, in float64 at most.
BYTES_PER_VALUE = 6 * 8
OTHER_BYTES = 16 * 2**20  # names, settings, curves of losses

_INSTEAD = "ask for the weights alone, as .safetensors or from torch.save(model.state_dict(), path)"


@dataclass(frozen=True)
class LoadedCheckpoint:
    """How a file filled a network.

    Attributes:
        by: What tensors were found by: "names", the name of a known layout, or "order of use".
        n_tensors: How many were filled.
        has_normalization: Whether the file held the network's `Normalize` layer, too. If not, that layer is as
            it was, and `clean_check.best_normalization` finds out what the model expects.
    """

    by: str
    n_tensors: int
    has_normalization: bool


def largest_file(network: nn.Module) -> int:
    """Bytes beyond which a file cannot be a checkpoint of this network: 48 for each of its values, and 16 MiB.

    48 are six float64: the weight, three states of AMSGrad, a moving average and a second network.
    """
    return BYTES_PER_VALUE * sum(tensor.numel() for tensor in _tensors(network).values()) + OTHER_BYTES


def read_state_dict(path: str | Path, *, max_bytes: int) -> dict[str, Tensor]:
    """The tensors of a model file by their names, in the file's order; nothing in the file is run.

    A `.safetensors` file holds tensors only. Others are read by `torch.load(weights_only=True)`: anything beside
    tensors and plain values is refused; NumPy's numbers are passed over. The weights may lie in a dictionary, as
    `"state_dict"`, `"model"` or the like, beside an optimizer's state, which is left out.

    Args:
        path: A regular file that ends in one of `SUFFIXES`.
        max_bytes: Larger files are refused unread, also those that only unpack to more; see `largest_file`.

    Raises:
        ModelError: If the file is of another kind, too large, damaged, or holds more than tensors and plain
            values; or if none, or several, of its dictionaries hold weights.

    Reference: "torch.load", in the documentation of PyTorch, on `weights_only`; safetensors.
    """
    path = Path(path)
    data = _regular_file(path, max_bytes)
    if path.suffix.lower() == ".safetensors":
        try:
            return dict(safetensors.torch.load(data))
        except (SafetensorError, ValueError, KeyError) as error:
            reason = _first_line(error)
            raise ModelError(f"{_name(path)} is damaged or not a .safetensors file ({reason}); get it again") from error
    _check_archive(path, data, max_bytes)
    weights = _weights(path, _unpickled(path, data))
    if odd := [key for key, value in weights.items() if not _is_plain(value)]:
        raise ModelError(f"{_name(path)} holds tensors that are not dense numbers: {_listed(odd)}; {_INSTEAD}")
    return weights


def load_checkpoint(path: str | Path, network: nn.Module, *, example: Tensor) -> LoadedCheckpoint:
    """Fill a network with a stranger's weights, in place.

    Tensors are found by their names without prefixes that all share (`module.`); else by the names that known
    code uses for ResNets and wide ResNets; else, if the file keeps an order, layer by layer in the order of use,
    where shapes, kinds, numbers and shortcuts must agree throughout. Ways that disagree are refused. Every
    tensor must be filled exactly once with finite values. On an error the network is as it was. A whole number that
    belongs to no layer is passed over, such as `n_averaged` of `torch.optim.swa_utils.AveragedModel`.

    Equal tensors do not make equal networks: strides, activations and what a shortcut starts from are not in
    the file. Look at the accuracy on clean data next (`clean_check.is_near_chance`).

    Args:
        path: See `read_state_dict`.
        network: With or without its `Normalize` layer, which keeps its values unless the file has them.
        example: `(B, *shape)` inputs on the network's device.

    Raises:
        ModelError: If the file cannot be read, or does not fit; at most 20 tensors are listed.
    """
    path = Path(path)
    state = read_state_dict(path, max_bytes=largest_file(network))
    tensors = _tensors(network)
    normalization = _normalization(state, network)
    beside = {*normalization.values(), *_counters(state, tensors)}
    file = {key: tuple(value.shape) for key, value in state.items() if key not in beside}
    optional = {name for name in tensors if name in _normalization_names(network)}
    first = {id(tensor): name for name, tensor in reversed(tensors.items())}
    own = {
        name: Target(tuple(tensor.shape), first[id(tensor)]) for name, tensor in tensors.items() if name not in optional
    }
    # Files of safetensors are sorted by name, and may have been written on in another format.
    is_ordered = path.suffix.lower() != ".safetensors" and list(file) != sorted(file)
    attempt = _fitting(path, file, own, network, example if is_ordered else None)
    sources = attempt.sources | normalization
    _fill(path, {name: state[key] for name, key in sources.items()}, tensors, sources)
    return LoadedCheckpoint(attempt.by, len(sources), bool(normalization))


# --------------------------------------------------------------------------- reading


def _regular_file(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file; a device or a pipe is refused by its kind, not opened."""
    if path.suffix.lower() not in SUFFIXES:
        raise ModelError(f"{_name(path)} is not a model file: its name must end in one of {', '.join(SUFFIXES)}")
    try:
        kind = path.stat().st_mode
        if not stat.S_ISREG(kind):
            what = "a folder" if stat.S_ISDIR(kind) else "a device, pipe or socket"
            raise ModelError(f"{_name(path)} is {what}; give a regular file")
        # It may have become a pipe meanwhile: without waiting for one, ask again what has been opened.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            opened = os.fstat(file.fileno())
            if not stat.S_ISREG(opened.st_mode):
                raise ModelError(f"{_name(path)} is no longer a regular file; give one")
            size = opened.st_size
            data = file.read(max_bytes + 1) if size <= max_bytes else b""
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"cannot read {_name(path)} ({reason}); check the path") from error
    if max(size, len(data)) > max_bytes:
        raise ModelError(
            f"{_name(path)} has {size:,} bytes; {max_bytes:,} are the most that this network, an optimizer's state and "
            "a second network could need: give the right network, or a file with the weights alone"
        )
    return data


def _check_archive(path: Path, data: bytes, max_bytes: int) -> None:
    """A zip as torch writes it: nothing compressed, so that no small file fills the memory."""
    if not data.startswith(b"PK\x03\x04"):
        return  # the format before torch 1.6
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError) as error:
        raise ModelError(f"{_name(path)} is damaged ({_first_line(error)}); get it again") from error
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise ModelError(f"{_name(path)} is a TorchScript program, not weights: {_INSTEAD}")
    size = sum(entry.file_size for entry in entries)
    if size > max_bytes or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ModelError(f"{_name(path)} is compressed, unlike a file of torch.save, to {size:,} bytes: {_INSTEAD}")


class _PassedOver:
    """Takes the place of NumPy's numbers and their types, so that none of NumPy's code runs on a stranger's data."""

    def __init__(self, *_arguments: object) -> None: ...

    def __setstate__(self, _state: object) -> None: ...


# How torch names what it refuses; its advice, to allow it, is not passed on.
_FORBIDDEN = re.compile(r"GLOBAL (\S{1,200})|(?:function|got) <(?:class|built-in function|function) '?([\w.]{1,200})")
_NUMPY_NUMBERS = ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")


@contextmanager
def _only_numpy_numbers() -> Iterator[None]:
    """Beside torch's own, only NumPy's numbers may be read; what other code of this process allows comes back after."""
    allowed = torch.serialization.get_safe_globals()
    stand_ins: list[Any] = [(_PassedOver, name) for name in _NUMPY_NUMBERS]
    torch.serialization.clear_safe_globals()
    try:
        with torch.serialization.safe_globals(stand_ins):
            yield
    finally:
        torch.serialization.add_safe_globals(allowed)


def _unpickled(path: Path, data: bytes) -> Any:
    """What `torch.save` wrote, of tensors and plain values."""
    try:
        with _only_numpy_numbers():
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file or its author can bring about
        reason = str(error)
        if found := re.search(
            r"GLOBAL (\S{1,200})|(?:function|got) <[^']*?(?:class|function) '?([\w.]{1,200})", reason
        ):
            what = spelled_out(found[1] or found[2])
            raise ModelError(
                f"{_name(path)} holds '{what}', which is neither a tensor nor a plain value and could run code when "
                f"loaded: nothing was run; {_INSTEAD}"
            ) from error
        raise ModelError(
            f"{_name(path)} cannot be read as tensors and plain values; it is damaged or was not written by "
            f"torch.save: {_INSTEAD}"
        ) from error


def _weights(path: Path, loaded: Any) -> dict[str, Tensor]:
    """The one dictionary of named tensors in what was loaded; optimizers keep theirs deeper, under numbers."""
    if not isinstance(loaded, dict):
        raise ModelError(f"{_name(path)} holds a {type(loaded).__name__}, not a dictionary of weights: {_INSTEAD}")
    top, own = _entries(loaded), _named_tensors(loaded)
    wrapped = {key: _deepest(top[key]) for key in WRAPPERS if key in top}
    others = {str(key): tensors for key, value in top.items() if len(tensors := _named_tensors(value)) > len(own)}
    found = {key: tensors for key, tensors in wrapped.items() if tensors} or others or ({"": own} if own else {})
    if len(found) == 1:
        return next(iter(found.values()))
    keys = spelled_out(", ".join(map(str, list(found or top)[:8])))[:200]
    if found:
        raise ModelError(f"{_name(path)} holds several sets of weights ({keys}); save one of them in its own file")
    raise ModelError(f"{_name(path)} holds no dictionary of weights; its keys: {keys or 'none'}")


def _deepest(value: Any) -> dict[str, Tensor]:
    """Weights in a dictionary, or one more wrapper inside."""
    inner = [tensors for key in WRAPPERS if (tensors := _named_tensors(_entries(value).get(key)))]
    return inner[0] if len(inner) == 1 else _named_tensors(value)


def _entries(value: Any) -> dict[Any, Any]:
    """The entries of a dictionary, by `dict`'s own methods: a file may have put attributes over an object's."""
    return dict(dict.items(value)) if isinstance(value, dict) else {}


def _named_tensors(value: Any) -> dict[str, Tensor]:
    """The entries that are tensors under a name, with no Parameter and no attributes around them."""
    entries = _entries(value)
    return {
        key: Tensor.detach(entry)
        for key, entry in entries.items()
        if isinstance(key, str) and isinstance(entry, Tensor)
    }


def _is_plain(value: Tensor) -> bool:
    return not (value.is_nested or value.is_quantized or value.is_meta) and value.layout == torch.strided


# --------------------------------------------------------------------------- fitting


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers as in the state dict: themselves, so that tied ones are the same object."""
    state = network.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def _counters(state: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> set[str]:
    """Keys of single whole numbers of no layer, which nothing was trained to: they count steps."""
    free = [key for key in state if "." not in key and key not in tensors and key != OPTIONAL]
    return {key for key in free if state[key].numel() == 1 and state[key].dtype in _WHOLE}


def _normalization_names(network: nn.Module) -> tuple[str, ...]:
    layers = [name for name, module in network.named_modules() if isinstance(module, Normalize)]
    return tuple(f"{name}.{tensor}".removeprefix(".") for name in layers for tensor in ("mean", "std"))


def _normalization(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, str]:
    """Names of the network's normalization to keys of the file; empty unless it has all of them in their shapes."""
    shapes = {name: tensor.shape for name, tensor in _tensors(network).items()}
    found = {
        name: key
        for name in _normalization_names(network)
        for key in state
        if (key == name or key.endswith(f".{name}")) and state[key].shape == shapes[name]
    }
    return found if len(found) == len(_normalization_names(network)) else {}


def _fitting(
    path: Path,
    file: Mapping[str, tuple[int, ...]],
    own: Mapping[str, Target],
    network: nn.Module,
    example: Tensor | None,
) -> Attempt:
    """The way to fill the network in which every tensor has its place; without an example order counts for nothing."""
    same = by_names(file, own)
    if not same.problems:
        return same
    named = [same, *(by_names(file, own, layout) for layout in LAYOUTS)]
    ordered = [] if example is None else [by_order(file, own, order_of_use(network, example))]
    complete = [attempt for attempt in (*named, *ordered) if not attempt.problems]
    if not complete:
        closest = min(named, key=lambda attempt: len(attempt.problems))
        # With hardly a name in common all would be listed twice; which layers differ in sequence says more.
        if ordered and 2 * len(closest.sources) < len(own):
            closest = ordered[0]
        raise ModelError(f"{_name(path)} does not fit the network: {_listed(closest.problems)}")
    first = complete[0]
    for other in complete[1:]:
        if different := list(_differences(first, other)):
            raise ModelError(
                f"{_name(path)} fits the network in two ways, by {first.by} and by {other.by}: {_listed(different)}; "
                "name the tensors as the network does"
            )
    return first


def _differences(first: Attempt, other: Attempt) -> Iterator[str]:
    for name, key in first.sources.items():
        if other.sources.get(name, key) != key:
            yield f"{name} is {key} or {other.sources[name]}"


def _fill(path: Path, values: Mapping[str, Tensor], tensors: Mapping[str, Tensor], sources: Mapping[str, str]) -> None:
    """Copy all values, once all of them are known to be good."""
    problems: list[str] = []
    ready: dict[int, Tensor] = {}
    for name, value in values.items():
        target, label = tensors[name], spell(sources[name], value.shape)
        if value.is_floating_point() != target.is_floating_point() or value.is_complex():
            problems.append(f"{label} is {value.dtype}, but {name} is {target.dtype}")
            continue
        plain = value.to(target.device, target.dtype)  # shapes agree, so this is no larger than the network
        if not bool(torch.isfinite(plain).all()):
            problems.append(f"{label} holds NaN or infinite values")
        elif name.endswith("running_var") and bool((plain < 0).any()):
            problems.append(f"{label} holds negative variances")
        elif not torch.equal(ready.setdefault(id(target), plain), plain):
            problems.append(f"{label} differs from the tensor with which the network shares its weights")
    if problems:
        raise ModelError(f"{_name(path)} cannot be used: {_listed(problems)}")
    with torch.no_grad():
        for name in values:
            tensors[name].copy_(ready[id(tensors[name])])


def _listed(problems: tuple[str, ...] | list[str]) -> str:
    more = f"; and {len(problems) - MOST_PROBLEMS} more" if len(problems) > MOST_PROBLEMS else ""
    return spelled_out("; ".join(problem[:300] for problem in problems[:MOST_PROBLEMS])) + more


def _name(path: Path) -> str:
    return spelled_out(str(path))


def _first_line(error: BaseException) -> str:
    return spelled_out((str(error).strip().splitlines() or ["no message"])[0])[:200]
