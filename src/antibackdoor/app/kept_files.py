"""The kept samples of a run, copied out of its data; the data themselves are never touched."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from antibackdoor.app.exporting import Selection, refuse_existing
from antibackdoor.app.run_data import RunData, data_of
from antibackdoor.data import folder, zip_file
from antibackdoor.data.image_files import ImageFiles
from antibackdoor.data.options import Request, known_options
from antibackdoor.data.output import complete_or_absent
from antibackdoor.data.reading import write
from antibackdoor.data.samples import Samples
from antibackdoor.data.source import Faults
from antibackdoor.errors import ConfigError, DataError, cannot
from antibackdoor.runs.run_folder import read_config

FILES = ("folder", "zip")  # formats whose samples are files


@dataclass(frozen=True, eq=False)
class KeptFiles:
    """The kept samples, to be copied.

    Attributes:
        selection: Which they are.
        data: Where the data are.
        cache: Where decoded images are kept.
        link: Whether files are hard links to those of the data, which take no space.
    """

    selection: Selection
    data: Path
    cache: Path | None = None
    link: bool = False

    def copy_to(self, to: Path) -> str:
        """Write a new folder with the kept samples, under the paths that they have in the data; whole or absent.

        Images in files are copied byte by byte. Arrays and series are written in the format of the data, with the
        values that the run was given.

        Returns:
            What was written, in one sentence.

        Raises:
            ConfigError: If the folder exists or lies in the data, or what is no file, or on another disk, is to be
                linked.
            DataError: If the data cannot be read, or have changed since the run.
        """
        found, format_ = self._found(to)
        with _new_folder(to) as temporary:
            if format_ in FILES:
                temporary.mkdir()
                for name, files, place in self._files(found, format_):
                    self._put(files, place, temporary / name, format_)
            else:
                temporary.mkdir()
                name = self.data.name if self.data.is_file() else f"kept.{format_}"
                write(temporary / name, self._samples(found), format=format_)
        return self._told(to, found)

    def as_hugging_face(self, to: Path) -> str:
        """Write what `datasets.load_dataset(FOLDER)` reads: images with `metadata.jsonl`, or a Parquet file of series.

        The label stands in the column `label`, as text. Raises as `copy_to`.

        Reference: https://huggingface.co/docs/datasets/image_dataset (ImageFolder with metadata).
        """
        found, format_ = self._found(to)
        with _new_folder(to) as temporary:
            (temporary / "train").mkdir(parents=True)
            samples = self._samples(found)
            labels = samples.class_names[samples.labels].tolist()
            if samples.kind == "series":
                columns = {"id": samples.ids.tolist(), "series": samples.inputs.tolist(), "label": labels}
                pq.write_table(pa.table(columns), temporary / "train" / "data.parquet")
            else:
                names = self._images(found, format_, temporary / "train")
                rows = [{"file_name": name, "label": label} for name, label in zip(names, labels, strict=True)]
                _write_lines(temporary / "train" / "metadata.jsonl", rows)
        return self._told(to, found)

    def as_fiftyone(self, to: Path) -> str:
        """Write FiftyOne's `FiftyOneImageClassificationDataset`: `data/` and `labels.json`. Raises as `copy_to`.

        Reference: https://docs.voxel51.com/user_guide/import_datasets.html
        """
        found, format_ = self._found(to)
        samples = self._samples(found)
        if samples.kind != "image":
            raise ConfigError("--format fiftyone is for images: choose csv, parquet or huggingface for series")
        with _new_folder(to) as temporary:
            names = self._images(found, format_, temporary / "data")
            keys = [str(PurePosixPath(name).with_suffix("")) for name in names]
            if len(set(keys)) < len(keys):
                raise ConfigError("FiftyOne cannot take two images that differ only in their suffix: use huggingface")
            labels = dict(zip(keys, samples.labels.tolist(), strict=True))
            about = {"classes": samples.class_names.tolist(), "labels": labels}
            (temporary / "labels.json").write_text(json.dumps(about), encoding="utf-8")
        return self._told(to, found)

    def _found(self, to: Path) -> tuple[RunData, str]:
        refuse_existing(to)
        if self.data.is_dir() and self.data.resolve() in to.resolve().parents:
            raise ConfigError(f"--to {to} lies in the data {self.data}; choose a folder outside of them")
        format_ = str(self._about("data").get("format", ""))
        if self.link and format_ != "folder":
            raise ConfigError(f"samples of a {format_} are not files and cannot be linked: leave --link out")
        if not self.selection.kept.any():
            raise ConfigError(f"{self.selection.run} keeps no sample: there is nothing to export")
        return data_of(self.selection.run, self.selection.table, self.data, cache=self.cache), format_

    def _about(self, part: str) -> dict[str, Any]:
        about = read_config(self.selection.run)["settings"].get(part)
        return about if isinstance(about, dict) else {}

    def _samples(self, found: RunData) -> Samples:
        return found.samples.take(found.rows[self.selection.kept])

    def _files(self, found: RunData, format_: str) -> Iterator[tuple[str, ImageFiles, int]]:
        """Path in the data, all files, and the place among them, of each kept sample."""
        request = Request(known_options(self._about("reading"))).of(format_)
        reader = folder if format_ == "folder" else zip_file
        content = reader.open_source(self.data, Faults("skip"), request).splits["train"].content
        if not isinstance(content, ImageFiles):
            raise DataError(f"{self.data} holds no images in files: give the data of the run")
        place = {name: number for number, name in enumerate(content.ids)}
        for name in found.samples.ids[found.rows[self.selection.kept]].tolist():
            yield name, content, place[name]

    def _images(self, found: RunData, format_: str, to: Path) -> list[str]:
        """Write the kept images below a folder; returns their paths in it."""
        if format_ not in FILES:
            return [str(name) for name in write(to, self._samples(found), format="folder").train_ids.tolist()]
        to.mkdir(parents=True, exist_ok=True)
        names = []
        for name, files, place in self._files(found, format_):
            self._put(files, place, to / name, format_)
            names.append(name)
        return names

    def _put(self, files: ImageFiles, place: int, target: Path, format_: str) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not self.link:
            with files.fetch(files.keys[place]) as source, target.open("xb") as copy:
                shutil.copyfileobj(source, copy)
            return
        original = self.data / files.keys[place]
        try:
            os.link(original.resolve(), target)
        except OSError as error:
            raise ConfigError(f"{cannot('link', original, error)}: leave --link out to copy instead") from error

    def _told(self, to: Path, found: RunData) -> str:
        left = f"; {found.n_unjudged:,} more in the data were not judged and not copied" if found.n_unjudged else ""
        return f"{int(self.selection.kept.sum()):,} samples in {to}{left}"


@contextmanager
def _new_folder(to: Path) -> Iterator[Path]:
    """A path that becomes `to` if the block succeeds, and vanishes if not."""
    try:
        with complete_or_absent(to) as temporary:
            yield temporary
    except OSError as error:
        raise DataError(cannot("write", to, error)) from error


def _write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
