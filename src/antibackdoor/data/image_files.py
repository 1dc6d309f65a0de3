"""Images that lie in files, decoded by several threads."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from antibackdoor.data.depth import MOST_SCALED
from antibackdoor.data.image_formats import MissingDecoder, has_image_suffix, holds_image, is_litter, why_litter
from antibackdoor.data.images import Look, decode, look_at
from antibackdoor.data.layout import Layout, arrange
from antibackdoor.data.parallel import in_order, progress_bar
from antibackdoor.data.samples import InputArray, IntArray
from antibackdoor.data.source import CANNOT_OPEN, OWN_FILES, Block, Faults, Kind, Listed, Source, Survey, as_text

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
        bits: What images of 16 bits a channel are scaled by; None if no image of the training was one.
    """

    where: str
    identity: str
    ids: tuple[str, ...]
    keys: tuple[str, ...]
    stamps: tuple[str, ...]
    fetch: Callable[[str], BinaryIO]
    bits: int | None = None

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
        if self.bits is not None:
            digest.update(f"\0\0{self.bits}".encode())
        return digest.hexdigest()

    def survey(self, progress: bool) -> Survey:
        """Sizes from the headers; one channel only if every image is grey. Images of 16 bits a channel are decoded."""
        sizes: Counter[tuple[int, ...]] = Counter()
        all_grey = True
        deep_bits = n_deep = n_dim = 0
        with (
            warnings.catch_warnings(),
            progress_bar("Looking at images", len(self), show=progress) as advance,
        ):
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            for part in in_order(self._look_at_all, _chunks(len(self), 256)):
                for found in part:
                    if found is not None:
                        sizes[found.size] += 1
                        all_grey &= found.is_grey
                        deep_bits = max(deep_bits, found.deep_bits)
                        n_deep += found.deep_bits > 0
                        n_dim += 0 < found.deep_bits <= MOST_SCALED
                advance(len(part))
        return Survey(sizes, 1 if all_grey and sizes else 3, deep_bits, n_deep, n_dim)

    def _look_at_all(self, rows: range) -> list[Look | None]:
        return [self._look_at(row) for row in rows]

    def _look_at(self, row: int) -> Look | None:
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
                if int(self.stamps[row].split()[0]) > MAX_FILE_BYTES:
                    raise ValueError(f"larger than {MAX_FILE_BYTES} bytes")
                with self.fetch(self.keys[row]) as file:
                    inputs[len(kept)] = decode(file, shape, self.bits)
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
    if isinstance(error, MissingDecoder):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return "is not an image in a supported format"
    if isinstance(error, FileNotFoundError | PermissionError):
        return f"{CANNOT_OPEN} ({error.strerror})"
    return f"cannot be read as an image ({type(error).__name__}: {error})"


@dataclass(frozen=True)
class Found:
    """The images of a folder or archive.

    Attributes:
        stamps: Path of each image -> what changes whenever it does: size with time of change or checksum.
        where: The folder or archive, for messages.
        identity: See `ImageFiles`.
        fetch: Opens one file.
    """

    stamps: dict[str, str]
    where: str
    identity: str
    fetch: Callable[[str], BinaryIO]


def sift(stamps: dict[str, str], peek: Callable[[str], BinaryIO], faults: Faults) -> dict[str, str]:
    """The images among all files; the others go to `faults` as not looked at, each with the reason.

    A file is opened only if its name does not say what it is.

    Args:
        stamps: Path of each file -> size in bytes, a space, and more.
        peek: Opens one file for a look at its first bytes.
        faults: Is told of what is no image.
    """
    reasons: dict[str, str] = {path: why_litter(path) for path in stamps}
    unclear = [path for path in stamps if not reasons[path] and not has_image_suffix(path)]

    def look(part: range) -> list[str]:
        return [_why_no_image(unclear[i], stamps, peek) for i in part]

    with warnings.catch_warnings():  # here, since the filters are those of all threads
        warnings.simplefilter("ignore")
        for part, found in zip(_chunks(len(unclear), 256), in_order(look, _chunks(len(unclear), 256)), strict=True):
            reasons.update(zip((unclear[i] for i in part), found, strict=True))
    images: dict[str, str] = {}
    for path in sorted(stamps):
        if reasons[path]:
            if path in OWN_FILES:
                continue
            faults.pass_over(as_text(path), reasons[path])
        else:
            images[path] = stamps[path]
    return images


def _why_no_image(path: str, stamps: dict[str, str], peek: Callable[[str], BinaryIO]) -> str:
    if stamps[path].split()[0] == "0":
        return "is empty"
    try:
        with peek(path) as file:
            return "" if holds_image(file) else "is not an image in a supported format"
    except OSError as error:
        return f"{CANNOT_OPEN} ({error.strerror or error})"
    except Exception as error:  # a damaged member of an archive fails in any way
        return f"cannot be read ({type(error).__name__}: {error})"


def list_images(found: Found, faults: Faults, *, labelled: bool) -> tuple[Source, Layout]:
    """Sort images into splits and classes; one split without classes if unlabelled.

    Raises:
        DataError: See `arrange`.
    """
    if labelled:
        layout = arrange(found.stamps, found.where)
    else:
        layout = Layout({"train": [(path, "") for path in sorted(found.stamps)]}, "", {})
    splits: dict[str, Listed] = {}
    for split, members in layout.splits.items():
        ids = tuple(as_text(path) for path, _ in members)
        keys = tuple(layout.wrapper + path for path, _ in members)
        stamps = tuple(found.stamps[key] for key in keys)
        content = ImageFiles(found.where, found.identity, ids, keys, stamps, found.fetch)
        splits[split] = Listed(ids, tuple(as_text(name) for _, name in members), content)
    notes: dict[str, Any] = dict(layout.notes)
    if layout.unused:
        notes["left_out"] = ", ".join(sorted(layout.unused))
    for folder, paths in layout.unused.items():
        for path in paths:
            faults.pass_over(as_text(path), f"lies in the split {folder!r}, which is not used beside the test split")
    return Source(splits, None, notes), layout


def report_empty_classes(layout: Layout, folders: Iterable[str], found: Found, faults: Faults) -> None:
    """An empty class folder is most often a failed copy, so it is not passed over in silence."""
    parents = {parent.rstrip("/") for parent in layout.parents}
    filled = {path[:end] for path in found.stamps for end, sign in enumerate(path) if sign == "/"}
    for folder in sorted(folders):
        parent, _, name = folder.rpartition("/")
        if parent in parents and folder not in filled and not is_litter(name):
            faults.report(name, f"the class folder {found.where}/{folder} holds no images")


def scaled_by(listed: Listed, bits: int | None) -> Listed:
    """The same samples with images of 16 bits a channel scaled by so many of them."""
    if isinstance(listed.content, ImageFiles):
        return replace(listed, content=replace(listed.content, bits=bits))
    return listed
