"""Images that lie in files, decoded by several threads."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from antibackdoor.data.images import decode, look_at
from antibackdoor.data.layout import Layout, arrange, is_image
from antibackdoor.data.parallel import in_order, progress_bar
from antibackdoor.data.samples import InputArray, IntArray
from antibackdoor.data.source import CANNOT_OPEN, Block, Faults, Kind, Listed, Source, Survey

MAX_FILE_BYTES = 256 * 2**20  # no training image is larger; a declared size beyond this is an attack or a mistake
_BLOCK_BYTES = 4 * 2**20


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """The images of one split.

    Attributes:
        where: The folder or archive, for messages.
        identity: What tells this folder from another with the same listing; "" where stamps suffice.
        ids: Paths as the user sees them.
        keys: What `fetch` takes for each.
        stamps: Change whenever the file does: size with modification time or checksum.
        fetch: Opens one file.
    """

    where: str
    identity: str
    ids: tuple[str, ...]
    keys: tuple[str, ...]
    stamps: tuple[str, ...]
    fetch: Callable[[str], BinaryIO]

    @property
    def kind(self) -> Kind:
        """These are images."""
        return "image"

    @property
    def dtype(self) -> type[Any]:
        """Pixels are bytes."""
        return np.uint8

    @property
    def in_memory(self) -> bool:
        """They are decoded once, into the cache."""
        return False

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: IntArray) -> ImageFiles:
        """Only these rows."""
        chosen = rows.tolist()
        return replace(
            self,
            ids=tuple(self.ids[i] for i in chosen),
            keys=tuple(self.keys[i] for i in chosen),
            stamps=tuple(self.stamps[i] for i in chosen),
        )

    def fingerprint(self) -> str:
        """A digest of names and stamps."""
        digest = hashlib.sha256(self.identity.encode("utf-8", "surrogateescape"))
        for key, stamp in zip(self.keys, self.stamps, strict=True):
            digest.update(f"\0{key}\0{stamp}".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def survey(self, progress: bool) -> Survey:
        """Sizes from the headers; one channel only if every image is grey."""
        sizes: Counter[tuple[int, ...]] = Counter()
        all_grey = True
        with (
            warnings.catch_warnings(),
            progress_bar("Looking at images", len(self), show=progress) as advance,
        ):
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            for part in in_order(self._look_at_all, _chunks(len(self), 256)):
                for found in part:
                    if found is not None:
                        sizes[found[0]] += 1
                        all_grey &= found[1]
                advance(len(part))
        return Survey(sizes, 1 if all_grey and sizes else 3)

    def _look_at_all(self, rows: range) -> list[tuple[tuple[int, int], bool] | None]:
        return [self._look_at(row) for row in rows]

    def _look_at(self, row: int) -> tuple[tuple[int, int], bool] | None:
        try:
            with self.fetch(self.keys[row]) as file:
                return look_at(file)
        except Exception:  # decoders fail in any way on damaged bytes; `blocks` reports it
            return None

    def blocks(self, shape: tuple[int, ...], faults: Faults) -> Iterator[Block]:
        """Decoded images in order."""
        size = max(1, min(128, _BLOCK_BYTES // int(np.prod(shape))))
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            for block, failed in in_order(lambda rows: self._decode(rows, shape), _chunks(len(self), size)):
                for row, reason in failed:
                    faults.report(self.ids[row], f"{self.ids[row]} in {self.where} {reason}")
                yield block

    def _decode(self, rows: range, shape: tuple[int, ...]) -> tuple[Block, list[tuple[int, str]]]:
        inputs: InputArray = np.empty((len(rows), *shape), np.uint8)
        kept: list[int] = []
        failed: list[tuple[int, str]] = []
        for row in rows:
            try:
                with self.fetch(self.keys[row]) as file:
                    inputs[len(kept)] = decode(file, shape)
                kept.append(row)
            except Exception as error:  # decoders fail in any way on damaged bytes
                failed.append((row, _why(error, int(self.stamps[row].split()[0]))))
        return Block(np.array(kept, np.int64), inputs[: len(kept)]), failed


def _chunks(n: int, size: int) -> Iterator[range]:
    for start in range(0, n, size):
        yield range(start, min(n, start + size))


def _why(error: Exception, n_bytes: int) -> str:
    if n_bytes == 0:
        return "is empty (0 bytes)"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"is too large an image ({error})"
    if isinstance(error, UnidentifiedImageError):
        return "is not an image in a format that can be read"
    if isinstance(error, FileNotFoundError | PermissionError):
        return f"{CANNOT_OPEN} ({error.strerror})"
    return f"cannot be read as an image ({type(error).__name__}: {error})"


def layout_of(found: dict[str, str], where: str, *, labelled: bool) -> Layout:
    """Splits and classes of the images among the files `found`; one split without classes if unlabelled."""
    paths = [path for path in found if is_image(path)]
    if labelled:
        return arrange(paths, where)
    return Layout({"train": [(path, "") for path in sorted(paths)]}, "", ())


def list_images(
    layout: Layout, found: dict[str, str], where: str, identity: str, fetch: Callable[[str], BinaryIO]
) -> Source:
    """A source from `found`, which maps the path of each file to its stamp (size and time or checksum)."""
    splits: dict[str, Listed] = {}
    for split, members in layout.splits.items():
        ids = tuple(_as_text(path) for path, _ in members)
        keys = tuple(layout.wrapper + path for path, _ in members)
        content = ImageFiles(where, identity, ids, keys, tuple(found[key] for key in keys), fetch)
        splits[split] = Listed(ids, tuple(_as_text(name) for _, name in members), content)
    notes: dict[str, Any] = {"left_out": ", ".join(layout.left_out)} if layout.left_out else {}
    return Source(splits, None, notes)


def _as_text(name: str) -> str:
    """A file name that is not UTF-8 with its odd bytes escaped, since tables and reports hold text."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
