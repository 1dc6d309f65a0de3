"""`checksums.json`: what the large files of a finished run were when it ended, so that damage is noticed."""

from __future__ import annotations

import hashlib
from pathlib import Path

from antibackdoor.data.regular_files import regular_file
from antibackdoor.errors import AntibackdoorError, RunError
from antibackdoor.runs.atomic import cannot, read_json, write_json

CHECKSUMS = "checksums.json"
# What is written once and read by programs only; the rest is text, which a person may edit.
SUMMED = (
    "model.safetensors",
    "history.safetensors",
    "samples.parquet",
    "midway.parquet",
    "gallery.npz",
    "attention.npz",
)
_DIGEST_BYTES = 16


def write_checksums(run: Path) -> None:
    """Write `checksums.json` over those of the files that are there; none if there are none.

    Raises:
        RunError: A file cannot be read, or the folder cannot be written.
    """
    sums = {name: file_digest(run / name, RunError) for name in SUMMED if (run / name).exists()}
    if sums:
        write_json(run / CHECKSUMS, {"algorithm": f"blake2b-{8 * _DIGEST_BYTES}", "files": sums})


def check(run: Path, name: str, kind: type[AntibackdoorError] = RunError) -> None:
    """Compare a file with its checksum; runs of older versions, and unfinished ones, have none.

    Raises:
        AntibackdoorError: Of the given kind, if the file is missing, no regular file or not what it was.
    """
    found = file_digest(run / name, kind)
    if not (run / CHECKSUMS).exists():
        return
    files = read_json(run / CHECKSUMS, kind).get("files")
    if not isinstance(files, dict):
        raise kind(f"{run / CHECKSUMS} is damaged: 'files' is missing")
    if name in files and files[name] != found:
        raise kind(
            f"{run / name} is damaged or was changed: its checksum is not the one in {CHECKSUMS}; get the run folder "
            "again"
        )


def file_digest(path: Path, kind: type[AntibackdoorError], *, digest_bytes: int = _DIGEST_BYTES) -> str:
    """Hash of the content of a regular file (blake2b), in hex digits.

    Raises:
        AntibackdoorError: Of the given kind, if it cannot be read.
    """
    try:
        with regular_file(path) as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=digest_bytes)).hexdigest()
    except OSError as error:
        raise kind(cannot("read", path, error)) from error
