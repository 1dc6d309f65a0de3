"""Which format data are of, and what they list.

A format is one module with `SUFFIXES`, `open_source` and `write`, and one line in `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from antibackdoor.data import (
    csv_file,
    folder,
    labels_csv,
    npz,
    parquet_file,
    saved_dataset,
    ts,
    webdataset,
    zip_file,
)
from antibackdoor.data.image_formats import is_image
from antibackdoor.data.options import Request
from antibackdoor.data.source import OWN_FILES, Faults, Format, Source, in_one_form, one_line
from antibackdoor.errors import DataError

FORMATS: dict[str, Format] = {
    "folder": folder,
    "zip": zip_file,
    "npz": npz,
    "ts": ts,
    "csv": csv_file,
    "parquet": parquet_file,
    "huggingface": saved_dataset,
    "webdataset": webdataset,
    "labels-csv": labels_csv,
}

# Folders that are no folders of class folders; the first that fits counts.
_KINDS_OF_FOLDER: dict[str, Callable[[Path], bool]] = {
    "huggingface": saved_dataset.is_saved_dataset,
    "labels-csv": labels_csv.is_labelled_folder,
    "webdataset": webdataset.is_folder_of_shards,
    "parquet": parquet_file.is_folder_of_shards,
}


def open_data(path: str | Path, faults: Faults, request: Request) -> tuple[str, Source]:
    """The format of some data, a key of `FORMATS`, and what they hold.

    Raises:
        DataError: If there is nothing, it is of no known format, or its format cannot read it.
        ConfigError: If an option says nothing about this format.
    """
    given, path = Path(path), _only_file(Path(path))
    if path != given:
        _tell_of_others(given, path, faults)
    if not path.exists():
        raise DataError(f"there is no file or folder {one_line(str(path))}; check the path")
    kind = _kind_of_folder(path)
    for name, format_ in FORMATS.items():
        is_named = path.is_file() and path.suffix.lower() in format_.SUFFIXES
        if is_named or name == kind:
            try:
                return name, in_one_form(format_.open_source(path, faults, request.of(name)))
            except OSError as error:
                raise DataError(f"{path} cannot be read ({error.strerror or error}); check its permissions") from error
    if not request.labelled and path.is_file() and folder.is_image_file(path):
        request.of("folder")
        return "folder", folder.open_image_file(path)
    raise DataError(
        f"{one_line(str(path))} has an unknown format; give a folder or .zip of class folders, .npz, .ts, .csv, .tsv, "
        ".parquet or .tar"
    )


def _kind_of_folder(path: Path) -> str:
    """Which format a folder is of; "" if it is none."""
    if not path.is_dir():
        return ""
    try:
        return next((name for name, is_one in _KINDS_OF_FOLDER.items() if is_one(path)), "folder")
    except OSError:  # opening it will say why
        return "folder"


def _only_file(path: Path) -> Path:
    """The data file in a folder as archives of series ship it or as `poison` writes it, or the path itself."""
    if not path.is_dir():
        return path
    try:
        entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    except OSError:  # opening the folder will say why
        return path
    suffixes = {suffix for format_ in FORMATS.values() for suffix in format_.SUFFIXES}
    files = [entry for entry in entries if entry.suffix.lower() in suffixes and entry.is_file()]
    files = [file for file in files if file.name not in OWN_FILES]
    in_pairs = {*ts.SUFFIXES, *csv_file.SUFFIXES, *parquet_file.SUFFIXES, *webdataset.SUFFIXES}
    training = [file for file in files if file.suffix.lower() in in_pairs and file.stem.lower().endswith("_train")]
    if len(training) == 1:
        return training[0]
    if _kind_of_folder(path) != "folder":
        return path
    holds_images = any(entry.is_dir() or is_image(entry.name) for entry in entries)
    return files[0] if len(files) == 1 and not holds_images else path


def _tell_of_others(folder: Path, chosen: Path, faults: Faults) -> None:
    """What lies beside the one data file of a folder is not passed over in silence."""
    pair = {chosen.name.lower(), chosen.name.lower().replace("_train", "_test")}
    for entry in sorted(folder.iterdir()):
        if entry.name.lower() not in pair and entry.name not in OWN_FILES:
            faults.pass_over(entry.name, f"is next to {chosen.name}, which was read as the data")
