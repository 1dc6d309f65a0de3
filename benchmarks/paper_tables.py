"""The papers' tables as they are measured here: rows, methods, and the papers' own numbers.

Numbers are attack success and clean accuracy in percent, as printed: NAD (Li et al., ICLR 2021), ABL (Li et al.,
NeurIPS 2021), E2ABL (Jiang et al., arXiv 2401.03215), AdvrBD (Pu et al., arXiv 2405.12719). None is a blank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Numbers = tuple[float | None, float | None]  # attack success, clean accuracy
Settings = Sequence[tuple[str, Any]]


@dataclass(frozen=True)
class Method:
    """A column: a key of the tables of methods, with settings where they are not the defaults."""

    key: str
    label: str = ""
    settings: Settings = ()

    @property
    def name(self) -> str:
        """What the column is called."""
        return self.label or self.key


@dataclass(frozen=True)
class Row:
    """An attack, and what the paper has for each column."""

    label: str
    attack: str
    rate: float
    paper: Mapping[str, Numbers] = field(default_factory=dict)
    settings: Settings = ()
    data: str = ""  # the table's, if empty


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
    """

    title: str
    data: str
    backbone: str
    preset: str
    methods: tuple[Method, ...]
    rows: tuple[Row, ...]
    grade: str
    about: str


NONE, FT, FP, MCR, NAD = (Method(key) for key in ("none", "fine-tune", "fine-prune", "mcr", "nad"))
ABL = Method("abl")
CIFAR = "cifar10.zip"
JPEG = "CIFAR-10 is stored as JPEG of quality 75 here."


def numbers(methods: Sequence[str], printed: str) -> dict[str, Numbers]:
    """`ASR/CA` for each column, in the order of the methods.

    >>> numbers(("none", "nad"), "100/85.65 4.77/81.17")["nad"]
    (4.77, 81.17)
    """
    pairs = [tuple(map(float, pair.split("/"))) for pair in printed.split()]
    return {method: (pair[0], pair[1]) for method, pair in zip(methods, pairs, strict=True)}


_NAD = ("none", "fine-tune", "fine-prune", "mcr", "nad")
_ABL = ("none", "fine-prune", "mcr", "nad", "abl")
_E2ABL = ("none", "fine-prune", "nad", "abl", "e2abl")
_ADVRBD = ("none", "fine-tune", "fine-prune", "cutmix", "clp", "dbr", "scan-ft", "abl", "advrbd")

NAD_1 = Table(
    "NAD, Table 1: erasing a given model with 5% of clean data",
    CIFAR,
    "wrn-16-1",
    "nad",
    (NONE, FT, FP, MCR, NAD),
    (
        Row("BadNets", "badnets", 0.1, numbers(_NAD, "100/85.65 17.18/81.22 99.73/81.14 4.65/80.94 4.77/81.17")),
        Row("SIG", "sig", 0.08, numbers(_NAD, "99.91/84.36 9.18/81.28 74.26/81.6 1.62/80.94 2.52/81.95")),
        Row("Blend", "blend", 0.1, numbers(_NAD, "99.97/84.95 36.6/81.22 93.62/81.13 64.33/80.34 4.04/81.68")),
        Row("Trojan", "trojan", 0.05, numbers(_NAD, "100/81.24 71.76/77.88 41.0/78.17 41.25/78.76 19.63/79.16")),
        Row(
            "CL",
            "label_consistent",
            0.08,
            numbers(_NAD, "99.21/82.43 75.08/81.73 29.88/79.32 32.95/79.04 9.18/80.34"),
        ),
    ),
    "B",
    JPEG,
)

NAD_8 = Table(
    "NAD, Table 8: attention maps against the activations of all channels",
    CIFAR,
    "wrn-16-1",
    "nad",
    (NONE, NAD, Method("nad", "nad, activations", (("maps", "activation"),))),
    (Row("BadNets", "badnets", 0.1, {"nad": (3.81, 81.85), "nad, activations": (98.44, 82.66)}),),
    "B",
    JPEG,
)

ABL_1 = Table(
    "ABL, Table 1: training on poisoned data",
    CIFAR,
    "wrn-16-1",
    "abl",
    (NONE, ABL, FP, MCR, NAD),
    (
        Row("BadNets", "badnets", 0.1, numbers(_ABL, "100/85.43 99.98/82.14 3.32/78.49 3.56/82.18 3.04/86.11")),
        Row("SIG", "sig", 0.08, numbers(_ABL, "99.46/84.16 76.32/81.12 0.14/78.65 1.92/82.01 0.09/88.27")),
        Row("Blend", "blend", 0.1, numbers(_ABL, "100/84.51 85.62/81.33 31.85/76.53 4.56/82.04 16.23/84.06")),
        Row("Trojan", "trojan", 0.1, numbers(_ABL, "100/82.14 66.93/80.17 23.88/76.47 18.16/80.23 3.81/87.46")),
        Row("none", "", 0.0, numbers(_ABL, "0/89.12 0/85.14 0/87.49 0/88.18 0/88.41")),
    ),
    "B",
    JPEG,
)

ABL_2 = Table(
    "ABL, Table 2: high poisoning rates",
    CIFAR,
    "wrn-16-1",
    "abl",
    (NONE, ABL),
    (
        Row("BadNets 50%", "badnets", 0.5, {"abl": (4.98, None)}),
        Row("BadNets 70%", "badnets", 0.7),
        Row("Blend 50%", "blend", 0.5),
        Row("Blend 70%", "blend", 0.7, {"abl": (62.28, None)}),
    ),
    "B",
    JPEG,
)

_UNLEARNING = (
    ("pixel-noise", 57.54, 82.33),
    ("gradient-noise", 47.65, 82.62),
    ("label-shuffling", 30.23, 83.76),
    ("label-uniform", 75.12, 83.47),
    ("label-smoothing", 99.80, 83.17),
    ("self-learning", 21.26, 84.38),
    ("finetune-all", 99.12, 83.64),
    ("finetune-last", 22.33, 77.65),
    ("retrain", 11.21, 86.02),
)
ABL_3 = Table(
    "ABL, Table 3: other ways to unlearn what was isolated (20% of the data)",
    CIFAR,
    "wrn-16-1",
    "abl",
    (
        NONE,
        ABL,
        *(Method("abl", name, (("unlearning", name), ("isolation_rate", 0.2))) for name, _, _ in _UNLEARNING),
    ),
    (
        Row(
            "BadNets",
            "badnets",
            0.1,
            {"none": (100, 85.43), "abl": (3.04, 86.11), **{name: (asr, ca) for name, asr, ca in _UNLEARNING}},
        ),
    ),
    "C",
    f"{JPEG} The paper's tenth way begins with ImageNet's weights, which are not here.",
)

ABL_ISOLATION = Table(
    "ABL, Figure 4 and Section 4.3: precision of the 1% that are isolated",
    CIFAR,
    "wrn-16-1",
    "abl",
    (
        Method("low-loss", "gamma 0.5"),
        Method("low-loss", "gamma 0", (("gamma", 0.0),)),
        Method("label-smoothing-confidence"),
        Method("activation-clustering"),
        Method("spectral"),
    ),
    (Row("BadNets", "badnets", 0.1), Row("Trojan", "trojan", 0.1), Row("Blend", "blend", 0.1)),
    "A",
    JPEG,
)

ADVRBD_2 = Table(
    "AdvrBD, Tables 2 and 3: one configuration for all attacks",
    CIFAR,
    "wrn-16-1",
    "practical",
    (
        NONE,
        Method("advrbd"),
        FT,
        FP,
        Method("cutmix"),
        Method("clp"),
        Method("dbr"),
        Method("scan-ft"),
        ABL,
        Method("advrbd", "advrbd, relearn", (("relearn", True),)),
    ),
    (
        Row(
            "BadNets",
            "badnets",
            0.05,
            numbers(
                _ADVRBD, "95.2/92 96.81/83.3 93.19/75.05 83.3/81.21 0.55/34.18 1.21/67.47 2.09/69.89 0/71.98 0/85.72"
            ),
        ),
        Row(
            "Blend",
            "blend",
            0.05,
            numbers(
                _ADVRBD,
                "99.9/84.5 100/84.62 98.79/79.23 99.67/80.44 3.52/51.0 98.46/37.03 1.43/78.57 5.71/82.2 0/85.71",
            ),
        ),
        Row(
            "SIG",
            "sig",
            0.05,
            numbers(
                _ADVRBD,
                "95.4/84.7 95.93/82.31 90.11/80.88 99.12/79.12 71.97/37.47 93.52/38.57 3.63/66.92 48.35/85.93 "
                "2.64/87.69",
            ),
        ),
        Row("TaCT", "tact", 0.05),
        Row("Adaptive-Blend", "adaptive_blend", 0.05),
        Row("WaNet", "wanet", 0.05),
        Row("none", "", 0.0, {"none": (None, 87.86), "advrbd": (None, 86.04)}),
    ),
    "C",
    f"{JPEG} The paper's network is ResNet-18, its numbers are of about 910 test images.",
)

E2ABL_1 = Table(
    "E2ABL, Tables 1 and 2: the published algorithm",
    CIFAR,
    "resnet18-thin",
    "e2abl",
    (
        NONE,
        Method("e2abl"),
        Method("e2abl", "e2abl, augmented", (("augment", "crop,flip,cutout"),)),
        Method("dual-head", "default (dual-head)"),
        ABL,
        NAD,
    ),
    (
        Row("BadNets", "badnets", 0.1, numbers(_E2ABL, "100/87.51 99.87/82.9 3.48/84.11 3.18/86.44 0.17/87.96")),
        Row("Blend", "blend", 0.1, numbers(_E2ABL, "100/85.64 86.4/82.16 4.97/83.11 16.85/84.93 8.95/85.21")),
        Row("SIG", "sig", 0.1, numbers(_E2ABL, "99.45/84.58 74.81/83.04 2.37/82.18 0.08/88.44 0.25/88.92")),
    ),
    "C",
    f"{JPEG} The paper's network is ResNet-34.",
)

SUSPICIOUS = Table(
    "Purifying without clean data: what was trained on, searched",
    CIFAR,
    "wrn-16-1",
    "practical",
    (NONE, Method("self-clean")),
    (
        Row("BadNets", "badnets", 0.1),
        Row("Blend", "blend", 0.1),
        Row("SIG", "sig", 0.1),
        Row("WaNet", "wanet", 0.1),
    ),
    "-",
    f"{JPEG} No paper has this table.",
)

_SERIES = tuple(
    Row(f"{name}, {attack}", attack, 0.1, data=file)
    for name, file in (("ArabicDigits", "arabicdigits.npz"), ("UWave", "uwavegesture.npz"))
    for attack in ("static", "powerline", "timetrojan_fgsm")
)
SERIES = Table(
    "Series, as in E2ABL's Table 1",
    "arabicdigits.npz",
    "fcn",
    "e2abl",
    (NONE, Method("e2abl"), FP, NAD, ABL, FT, Method("activation-clustering"), Method("spectral")),
    _SERIES,
    "C",
    "The network is FCN in place of a 1-D ResNet-34; E2ABL's rows of ArabicDigits and ECG5000 look exchanged.",
)

TABLES: dict[str, Table] = {
    "nad-1": NAD_1,
    "abl-1": ABL_1,
    "abl-isolation": ABL_ISOLATION,
    "abl-3": ABL_3,
    "nad-8": NAD_8,
    "advrbd-2": ADVRBD_2,
    "suspicious": SUSPICIOUS,
    "e2abl-1": E2ABL_1,
    "series": SERIES,
    "abl-2": ABL_2,
}
