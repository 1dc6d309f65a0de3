"""`checkpoint.pt`: the state of an unfinished run, with a hash of its content. Nothing in it is run."""

from __future__ import annotations

import hashlib
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from antibackdoor.data.regular_files import regular_file, regular_name
from antibackdoor.errors import RunError
from antibackdoor.runs.atomic import cannot, one_line, replacing

CHECKPOINT = "checkpoint.pt"
CHECKPOINT_VERSION = 3  # of the fields below; another version is refused


def write_checkpoint(run: Path, state: Mapping[str, Any], *, log_bytes: int, seconds: float) -> None:
    """Replace the checkpoint: nested dicts, lists and tuples of tensors, arrays, numbers, strings, None.

    Args:
        run: The run folder.
        state: What `read_checkpoint` gives back, with arrays as CPU tensors.
        log_bytes: How long the log is now.
        seconds: How long the run has taken.

    Raises:
        RunError: The state holds another type, or the file cannot be written.
    """
    kept = _tensors(state, "state")
    checkpoint = {
        "version": CHECKPOINT_VERSION,
        "log_bytes": log_bytes,
        "seconds": seconds,
        "digest": _digest([log_bytes, seconds, kept]),
        "state": kept,
    }
    path = run / CHECKPOINT
    # An open file: for a path torch does not say why it cannot write.
    with replacing(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:  # torch wraps a full disk in its own error
            raise RunError(cannot("write", path, error)) from error


def read_checkpoint_file(run: Path, *, mmap: bool = False) -> dict[str, Any] | None:
    """The checkpoint: `log_bytes` (int), `seconds` (float) and `state` (dict); None if there is none.

    Raises:
        RunError: It is damaged, changed, of another version, or no regular file.
    """
    path = run / CHECKPOINT
    try:
        _check_archive(path)
        with regular_name(path) as name:
            checkpoint = torch.load(name, map_location="cpu", weights_only=True, mmap=mmap)
        version = _check(checkpoint)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(cannot("read", path, error)) from error
    except Exception as error:  # torch raises a dozen kinds for a damaged file
        raise RunError(f"{path} is damaged ({one_line(error, 80)}); delete it to start over") from error
    if version != CHECKPOINT_VERSION:
        raise RunError(
            f"{path} has version {one_line(repr(version), 20)} of checkpoints, this program writes "
            f"{CHECKPOINT_VERSION}: continue with the antibackdoor version that started it, or choose another folder"
        )
    return dict(checkpoint)


def read_checkpoint(run: Path) -> dict[str, Any] | None:
    """The state last saved in a run folder, without holding the folder; None if there is none.

    For processes that help another one, which alone writes.

    Raises:
        RunError: The checkpoint is damaged.
    """
    checkpoint = read_checkpoint_file(run)
    return None if checkpoint is None else checkpoint["state"]


def _check_archive(path: Path) -> None:
    """A zip as torch writes it: whole, and with nothing compressed, so that no small file fills the memory."""
    with regular_file(path) as file, zipfile.ZipFile(file) as parts:
        entries = parts.infolist()
        size = os.fstat(file.fileno()).st_size
        if any(e.compress_type != zipfile.ZIP_STORED for e in entries) or sum(e.file_size for e in entries) > size:
            raise ValueError("it is compressed, unlike a file of torch.save")
        if parts.testzip() is not None:  # torch does not look at the checksums that it writes
            raise ValueError("a checksum is wrong")


def _check(checkpoint: Any) -> object:
    """The version of what was loaded, which is whole if it is of this version."""
    kinds: dict[str, type[Any]] = {"log_bytes": int, "seconds": float, "state": dict}  # in every version
    if not (isinstance(checkpoint, dict) and all(type(checkpoint.get(key)) is kinds[key] for key in kinds)):
        raise TypeError("it is not a checkpoint of this package")
    version = checkpoint.get("version", 1)
    if version == CHECKPOINT_VERSION:
        log_bytes, seconds = checkpoint["log_bytes"], checkpoint["seconds"]
        if checkpoint.get("digest") != _digest([log_bytes, seconds, checkpoint["state"]]):
            raise ValueError("its content is not what was saved")
        if log_bytes < 0 or not 0 <= seconds < math.inf:
            raise ValueError("its log or its time is negative")
    return version


def _digest(value: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    _hash_into(digest, value)
    return digest.hexdigest()


def _hash_into(digest: Any, value: Any) -> None:
    """Feed a nest of plain values and tensors to a hash: kinds, keys, types, shapes and values."""
    if isinstance(value, Mapping):
        digest.update(f"{{{len(value)}".encode())
        for key, part in value.items():
            _hash_into(digest, key)
            _hash_into(digest, part)
    elif isinstance(value, list | tuple):
        digest.update(f"{type(value).__name__}{len(value)}".encode())
        for part in value:
            _hash_into(digest, part)
    elif isinstance(value, torch.Tensor):
        if value.nbytes > value.untyped_storage().nbytes():
            raise ValueError("it holds a tensor that is larger than its values")
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    elif value is None or type(value) in (bool, int, float, str):
        digest.update(f"{type(value).__name__}{value!r};".encode("utf-8", "surrogatepass"))
    else:
        raise TypeError(f"it holds a {type(value).__name__}")


def _tensors(value: Any, where: str) -> Any:
    """The same nest with arrays as tensors and numpy scalars as numbers: what `weights_only` can load."""
    if isinstance(value, Mapping):
        return {key: _tensors(part, f"{where}[{key!r}]") for key, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [_tensors(part, f"{where}[{i}]") for i, part in enumerate(value)]
        return parts if isinstance(value, list) else tuple(parts)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(np.require(value, requirements=["C", "W"]))
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        # torch.save would write all of the storage that a view looks into.
        return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise RunError(f"a checkpoint cannot hold {where}: it is a {type(value).__name__}")
