"""Tables of AdvrBD: Pu et al., arXiv 2405.12719; and of purifying without clean data, which no paper has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from abl_tables import ABL
from nad_tables import NONE
from paper_tables import CIFAR, JPEG, Method, Row, Settings, Table, rows

# Ten passes are our choice: the paper does not say.
ADVRBD, RELEARN = Method("advrbd"), Method("advrbd", "advrbd, relearn", (("relearn", 10),))
NETWORK = "The paper's network is ResNet-18, its numbers are of about 910 test images."
# AdvrBD's Table 1: the target is class 1; drawn pictures stand in for Hello Kitty and the Firefox logo.
_TARGET = ("target_label", 1)
_ATTACKS: dict[str, tuple[str, Settings, Settings, Settings]] = {  # label: attack, its fields, its plan's, the recipe's
    "BadNets": ("badnets", (("pattern", "white3_br"),), (_TARGET,), ()),
    "Blend": ("blend", (("pattern", "cartoon"),), (_TARGET,), ()),
    "SIG": ("sig", (), (_TARGET,), ()),
    "WaNet": ("wanet", (), (_TARGET, ("cover_rate", 0.05)), ()),
    "Physical": ("physical", (), (_TARGET,), (("augment", "physical"),)),
    "TaCT": ("tact", (), (), ()),
    "Adaptive-Blend": ("adaptive_blend", (("alpha", 0.2),), (_TARGET, ("cover_rate", 0.01)), ()),
    "Adaptive-Patch": ("adaptive_patch", (), (_TARGET, ("cover_rate", 0.01)), ()),
}
# A trigger that the short training has not learned is taken for clean: this one is as long as the last training.
_LONGER = Method("advrbd", "advrbd, 30 short epochs", (("short_epochs", 30),))
# The baselines as AdvrBD runs them: small learning rates, and repairs of a given model.
_FT = Method("fine-tune", "fine-tune", (("preset", "practical"),))
_FP = Method("fine-prune", "fine-prune", (("layer", "network.stage2"), ("rate", 0.2), ("epochs", 0)))
_CUTMIX = Method("fine-tune", "cutmix", (("preset", "practical"), ("augment", "cutmix")))


def _rows(columns: Sequence[str], printed: str) -> tuple[Row, ...]:
    """Rows whose attacks are those of AdvrBD; a label may go on with a rate."""
    return tuple(
        replace(row, attack=attack, settings=settings, plan=plan, recipe=recipe)
        for row in rows(columns, printed)
        for attack, settings, plan, recipe in [_ATTACKS.get(row.label.split()[0], ("", (), (), ()))]
    )


ADVRBD_2 = Table(
    "AdvrBD, Tables 2 and 3: one configuration for all attacks",
    CIFAR,
    "wrn-16-1",
    "practical",
    (NONE, ADVRBD, _LONGER, _FT, _FP, _CUTMIX, *map(Method, ("clp", "dbr", "scan-ft")), ABL),
    _rows(
        ("none", "fine-tune", "fine-prune", "cutmix", "clp", "dbr", "scan-ft", "abl", "advrbd"),
        """
        BadNets | badnets | 0.05 | 95.2/92 96.81/83.3 93.19/75.05 83.3/81.21 0.55/34.18 1.21/67.47 2.09/69.89 0/71.98 0/85.72
        Blend | blend | 0.05 | 99.9/84.5 100/84.62 98.79/79.23 99.67/80.44 3.52/51 98.46/37.03 1.43/78.57 5.71/82.2 0/85.71
        SIG | sig | 0.05 | 95.4/84.7 95.93/82.31 90.11/80.88 99.12/79.12 71.97/37.47 93.52/38.57 3.63/66.92 48.35/85.93 2.64/87.69
        TaCT | tact | 0.05 | 63.2/82.1 65.71/82.63 65.71/75.05 41.43/78.68 3.08/37.91 63.19/77.58 62.2/72.42 48.02/85.16 0/82.42
        Adaptive-Blend | adaptive_blend | 0.05 | 53.3/84 66.48/82.09 54.4/80.88 49.12/74.95 5.49/49.45 12.09/45.27 0.22/78.9 3.41/88.68 0/83.3
        WaNet | wanet | 0.05 | 51.3/82.8 70.33/83.41 61.65/79.78 31.1/76.7 78.02/12.75 6.15/26.7 60.77/56.7 88.57/83.74 0/83.63
        none |  | 0 | -/87.86 -/- -/- -/- -/- -/- -/- -/- -/86.04
        Physical | physical | 0.05 | 100/91.6 100/86.04 49.78/80.11 79.23/85.38 0/27.47 5.71/30.55 0.33/79.01 0.99/87.14 0/82.97
        Adaptive-Patch | adaptive_patch | 0.05 | 37.3/84.8 49.78/84.07 0.11/82.42 6.48/61.65 2.09/70.33 25.27/80.22 0/72.64 99.34/83.3 0/82.86
        """,  # noqa: E501
    ),
    "C",
    f"{JPEG} {NETWORK} Baselines have AdvrBD's settings where it tells them; CLP is not followed by a repair. "
    "Purifiers get 5% of the whole training set as clean samples.",
)

ADVRBD_4 = replace(
    ADVRBD_2,
    title="AdvrBD, Table 4: without and with relearning",
    methods=(NONE, ADVRBD, RELEARN),
    rows=_rows(
        ("none", "advrbd", "advrbd, relearn"),
        """
        BadNets | badnets | 0.05 | 95.2/92 0/85.72 0/86.81
        Blend | blend | 0.05 | 99.9/84.5 0/85.71 0/87.03
        SIG | sig | 0.05 | 95.4/84.7 2.64/87.69 0.22/86.59
        WaNet | wanet | 0.05 | 51.3/82.8 0/83.63 0/86.92
        Physical | physical | 0.05 | 100/91.6 0/82.97 0/83.52
        TaCT | tact | 0.05 | 63.2/82.1 0/82.42 0/86.92
        Adaptive-Blend | adaptive_blend | 0.05 | 53.3/84 0/83.3 0/89.12
        Adaptive-Patch | adaptive_patch | 0.05 | 37.3/84.8 0/82.86 0/86.26
        """,
    ),
)

ADVRBD_5 = replace(
    ADVRBD_2,
    title="AdvrBD, Table 5: poisoning rates",
    methods=(NONE, ADVRBD),
    rows=_rows(
        ("advrbd",),
        """
        BadNets 10% | badnets | 0.1 | 0/85.82
        BadNets 15% | badnets | 0.15 | 0/85.38
        BadNets 20% | badnets | 0.2 | 0/82.2
        Blend 10% | blend | 0.1 | 0/82
        Blend 15% | blend | 0.15 | 0/83.3
        Blend 20% | blend | 0.2 | 0/82.2
        WaNet 10% | wanet | 0.1 | 0/83.74
        WaNet 15% | wanet | 0.15 | 0/85.05
        WaNet 20% | wanet | 0.2 | 0/82.42
        """,
    ),
)

_RESNET34 = (88.35, 88.35, 89.56, 88.35, 87.69, 89.45, 89.01, 88.9)
_MOBILENET = (80.3, 81.76, 82.31, 81.2, 80.21, 82.63, 80.22, 84.07)
ADVRBD_6, ADVRBD_6_MOBILE = (
    replace(
        ADVRBD_2,
        title=f"AdvrBD, Table 6: {backbone}",
        backbone=backbone,
        methods=(NONE, ADVRBD),
        rows=tuple(
            Row(label, attack, 0.05, {"advrbd": (0.0, accuracy)}, settings, plan, recipe)
            for (label, (attack, settings, plan, recipe)), accuracy in zip(_ATTACKS.items(), accuracies, strict=True)
        ),
        about=f"{JPEG} The paper's numbers are of about 910 test images.",
    )
    for backbone, accuracies in (("resnet34", _RESNET34), ("mobilenetv2", _MOBILENET))
)

ADVRBD_PARTITION = replace(
    ADVRBD_2,
    title="AdvrBD: the share that each round unlearns",
    methods=(
        NONE,
        *(Method("advrbd", f"partition {rate:g}", (("partition_rate", rate),)) for rate in (0.01, 0.05, 0.1)),
    ),
    rows=tuple(row for row in ADVRBD_2.rows if row.label in ("BadNets", "Blend")),
    about=f"{JPEG} The paper shows curves.",
)

SUSPICIOUS = Table(
    "Purifying without clean data: what was trained on, searched",
    CIFAR,
    "wrn-16-1",
    "practical",
    (
        NONE,
        Method("self-clean"),
        Method("nad", "nad, 5% clean"),
        Method("none", "never poisoned", never_poisoned=True),
    ),
    (
        Row("BadNets", "badnets", 0.1),
        Row("Blend", "blend", 0.1),
        Row("SIG", "sig", 0.1),
        Row("WaNet", "wanet", 0.1),
    ),
    "-",
    f"{JPEG} No paper has this table. SIG at 10% poisons the whole target class. "
    '"After five" is the attack success after fine-tuning on the clean 5%, five of '
    "which are poisoned; a network that was never poisoned is the control.",
    relapse=True,
)

TABLES = {
    "advrbd-2": ADVRBD_2,
    "advrbd-4": ADVRBD_4,
    "advrbd-5": ADVRBD_5,
    "advrbd-6-resnet34": ADVRBD_6,
    "advrbd-6-mobilenetv2": ADVRBD_6_MOBILE,
    "advrbd-partition": ADVRBD_PARTITION,
    "suspicious": SUSPICIOUS,
}
