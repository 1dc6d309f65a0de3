"""How data are to be read where they do not say it themselves: options of tables, arrays and series."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from antibackdoor.errors import ConfigError

Axes = Literal["", "NT", "NCT", "NTC", "NHW", "NHWC", "NCHW"]
Missing = Literal["refuse", "interpolate"]
NO_COLUMN = "none"

_TABLES = ("parquet", "huggingface", "labels-csv")
_USED_BY = {
    "label_column": ("csv", *_TABLES),
    "id_column": ("csv", *_TABLES),
    "axes": ("npz", "parquet", "huggingface", "webdataset"),
    "missing": ("npz", "ts", "csv", "parquet", "huggingface", "webdataset"),
    "follow_links": ("folder",),
    "group_by": ("folder", "zip", "npz", "ts", "csv", "webdataset", *_TABLES),
}


@dataclass(frozen=True)
class ReadOptions:
    """What a user may say about the data.

    Attributes:
        label_column: Class column of a .csv or .tsv: its title, its number from 1 (-1 is the last), or none. By default
            found by its title, else the first column.
        id_column: Column of a .csv or .tsv with the sample names, likewise; it is not part of the series.
        axes: Axis order of arrays in an .npz, such as NTC: N samples, C channels, T time steps, H rows, W columns.
        missing: How to treat missing values inside a series: refuse them, or interpolate between their neighbors.
            Missing values at the end are dropped: the series is shorter.
        follow_links: Follow links that lead out of the image folder. Never taken from a recorded run.
        group_by: Groups of samples, such as a patient or a camera, to be held out as a whole. The title of a .csv or
            .tsv column, or a regular expression on ids (paths) whose first capture group names the group.

    Raises:
        ConfigError: If there is no such order of axes, or no such way.
    """

    label_column: str = ""
    id_column: str = ""
    axes: Axes = ""
    missing: Missing = "refuse"
    follow_links: bool = False
    group_by: str = ""

    def __post_init__(self) -> None:
        if self.axes not in get_args(Axes):
            raise ConfigError(f"axes is {self.axes!r:.40}; choose one of {', '.join(get_args(Axes)[1:])}")
        if self.missing not in get_args(Missing):
            raise ConfigError(f"missing is {self.missing!r:.40}; choose 'refuse' or 'interpolate'")
        if self.id_column and self.id_column == self.label_column:
            raise ConfigError(f"the column {self.id_column!r:.40} cannot hold both classes and ids: name another one")

    def chosen(self) -> dict[str, Any]:
        """What differs from the defaults."""
        return {part.name: value for part in fields(self) if (value := getattr(self, part.name)) != part.default}


def known_options(values: object) -> ReadOptions:
    """Options from a record, such as that of a run; what it should not hold is left out.

    >>> known_options({"axes": "NTC", "missing": 3}).chosen()
    {'axes': 'NTC'}
    """
    found = ReadOptions()
    if isinstance(values, Mapping):
        for part in fields(ReadOptions):
            value: Any = values.get(part.name)
            if type(value) is type(part.default) and part.name != "follow_links":
                try:
                    found = ReadOptions(**{**found.chosen(), part.name: value})
                except ConfigError:
                    continue
    return found


@dataclass(frozen=True)
class Request:
    """What a format is asked for.

    Attributes:
        options: What the user said; options that do not concern the format are refused.
        recorded: What was said when the model was trained; it stands in for what the user leaves open.
        labelled: Whether classes are needed.
        shape: Of one input of the model that is to read them; None without a model.
    """

    options: ReadOptions = field(default_factory=ReadOptions)
    recorded: ReadOptions = field(default_factory=ReadOptions)
    labelled: bool = True
    shape: tuple[int, ...] | None = None

    def of(self, format: str) -> Request:
        """The request to one format.

        Raises:
            ConfigError: If an option that the user gave says nothing about this format.
        """
        for name in self.options.chosen():
            if format not in _USED_BY[name]:
                flag = f"--{name.replace('_', '-')}"
                wanted = ", ".join(_USED_BY[name])
                raise ConfigError(f"{flag} is for {wanted} and changes nothing about a {format}: leave it out")
        if self.options.group_by and self.shape is not None and format != "csv":
            raise ConfigError("--group-by splits training data, and nothing is split here: leave it out")
        usable = {name: value for name, value in self.recorded.chosen().items() if format in _USED_BY[name]}
        return replace(self, recorded=ReadOptions(**usable))

    @property
    def all_options(self) -> ReadOptions:
        """What the user said, and what is recorded where the user said nothing."""
        return ReadOptions(**{**self.recorded.chosen(), **self.options.chosen()})
