"""What a table of a paper is: rows, columns, and the paper's own numbers.

Numbers are attack success and clean accuracy in percent, as printed; None is a blank. The tables themselves are in
`nad_tables`, `abl_tables`, `advrbd_tables` and `e2abl_tables`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Numbers = tuple[float | None, float | None]  # attack success, clean accuracy
Settings = Sequence[tuple[str, Any]]

CIFAR, GTSRB = "cifar10.zip", "gtsrb32.zip"
ARABIC_DIGITS, ECG, UWAVE = "arabicdigits.npz", "ecg5000.npz", "uwavegesture.npz"
# Left and right signs differ: GTSRB is not flipped.
SIGNS: dict[str, Any] = {"data": GTSRB, "augment": "crop,cutout"}
JPEG = "CIFAR-10 is stored as JPEG of quality 75 here, GTSRB as whole frames."


@dataclass(frozen=True)
class Method:
    """A column: a key of the tables of methods, with settings where they are not the defaults.

    Attributes:
        key: Of a defense, purifier or detector; `none` for no defense.
        label: What the column is called; empty for the key.
        settings: Fields of the method; with `none`, of the recipe.
        teacher: Backbone of a teacher that is trained on the clean samples alone; empty for the method's own.
        never_poisoned: Train on the data as they were before the attack: a control.
    """

    key: str
    label: str = ""
    settings: Settings = ()
    teacher: str = ""
    never_poisoned: bool = False

    @property
    def name(self) -> str:
        """What the column is called."""
        return self.label or self.key


@dataclass(frozen=True)
class Row:
    """An attack, and what the paper has for each column.

    Attributes:
        label: What the row is called.
        attack: A key of `ATTACKS`; empty for none.
        rate: Poisoning rate.
        paper: Attack success and clean accuracy by name of the column.
        settings: Fields of the attack.
        plan: Fields of its plan, such as the target label.
        recipe: Fields of the recipe, where these data or this attack need others than the preset's.
        augment: Of methods that augment by a field of their own, where their default does not fit the data.
        data: File of the data; the table's if empty.
    """

    label: str
    attack: str
    rate: float
    paper: Mapping[str, Numbers] = field(default_factory=dict)
    settings: Settings = ()
    plan: Settings = ()
    recipe: Settings = ()
    augment: str = ""
    data: str = ""


@dataclass(frozen=True)
class Table:
    """A table of a paper, on the data that are here.

    Attributes:
        title: What it is a table of.
        data: File of the data.
        backbone: The network.
        preset: How the attack model, and no defense, are trained: a key of `PRESETS`.
        methods: The columns; `none` first.
        rows: The attacks.
        grade: How well the method is defined by its paper: A text and code agree, B they differ, C gaps are filled.
        about: What differs from the paper.
        differences: Whether the paper prints changes, in points, instead of levels.
        relapse: Whether attack success is measured again after fine-tuning on five poisoned samples.
    """

    title: str
    data: str
    backbone: str
    preset: str
    methods: tuple[Method, ...]
    rows: tuple[Row, ...]
    grade: str
    about: str
    differences: bool = False
    relapse: bool = False


def rows(columns: Sequence[str], printed: str, *, prefix: str = "", **common: Any) -> tuple[Row, ...]:
    """Rows from lines of `label | attack | rate | ASR/CA of each column`; `-` is a blank.

    Args:
        columns: Names of the columns that the paper has.
        printed: The lines.
        prefix: Put before each label.
        common: Further fields that all of these rows have.

    >>> rows(("none", "nad"), "BadNets | badnets | 0.1 | 100/85.65 4.77/-")[0].paper["nad"]
    (4.77, None)
    """
    made = []
    for line in printed.strip().splitlines():
        label, attack, rate, pairs = (part.strip() for part in line.split("|"))
        numbers = [tuple(None if n == "-" else float(n) for n in pair.split("/")) for pair in pairs.split()]
        paper = {name: (pair[0], pair[1]) for name, pair in zip(columns, numbers, strict=False)}
        made.append(Row(prefix + label, attack, float(rate), paper, **common))
    return tuple(made)
