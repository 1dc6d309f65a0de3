"""Tables of ABL: Li et al., "Anti-Backdoor Learning", NeurIPS 2021, arXiv 2110.11571."""

from __future__ import annotations

from dataclasses import replace

from nad_tables import FP, MCR, NAD, NONE
from paper_tables import CIFAR, JPEG, SIGNS, Method, Row, Table, rows

ABL = Method("abl")
# The paper trains its attack models without augmentation, "since it hinders the trigger", and its defenses with it.
AUGMENTED = Method("none", "none, augmented", (("augment", "crop,flip,cutout"),))
CLEAN = "Purifiers get 5% of the whole training set as clean samples at each scale; defenses get none."
_COLUMNS = ("none", "abl", "fine-prune", "mcr", "nad")

ABL_1 = Table(
    "ABL, Table 1: training on poisoned data",
    CIFAR,
    "wrn-16-1",
    "abl",
    (NONE, AUGMENTED, ABL, FP, MCR, NAD),
    (
        *rows(
            _COLUMNS,
            """
            BadNets | badnets | 0.1 | 100/85.43 3.04/86.11 99.98/82.14 3.32/78.49 3.56/82.18
            SIG | sig | 0.08 | 99.46/84.16 0.09/88.27 76.32/81.12 0.14/78.65 1.92/82.01
            Blend | blend | 0.1 | 100/84.51 16.23/84.06 85.62/81.33 31.85/76.53 4.56/82.04
            Trojan | trojan | 0.1 | 100/82.14 3.81/87.46 66.93/80.17 23.88/76.47 18.16/80.23
            none |  | 0 | 0/89.12 0/88.41 0/85.14 0/87.49 0/88.18
            Dynamic | dynamic | 0.1 | 100/83.88 18.46/85.34 87.18/80.37 26.86/70.36 22.5/74.95
            CL | label_consistent | 0.08 | 99.83/83.43 0/89.03 54.95/81.53 19.86/77.36 16.11/80.73
            FC | feature_collision | 0.1 | 88.52/83.32 0.08/82.36 69.89/80.51 44.43/77.57 58.68/81.23
            DFST | dfst | 0.1 | 99.76/82.5 5.33/79.78 78.11/80.23 39.22/75.34 35.21/78.4
            LBA | lba | 0.1 | 99.13/81.37 0.06/80.52 54.43/79.67 15.52/78.51 10.16/79.52
            CBA | cba | 0.1 | -/- 29.81/84.66 77.33/- 38.76/- 33.11/-
            """,
        ),
        # Its text says 10% as well as "the settings of NAD".
        Row("SIG 10%", "sig", 0.1),
        Row("CL 10%", "label_consistent", 0.1),
        Row("Trojan 5%", "trojan", 0.05),
        *rows(
            _COLUMNS,
            """
            none |  | 0 | 0/97.87 0/96.41 0/90.14 0/95.49 0/95.18
            BadNets | badnets | 0.1 | 100/97.38 0.03/96.01 99.57/88.61 1/93.45 0.19/89.52
            Trojan | trojan | 0.1 | 99.8/96.27 0.36/94.95 93.54/84.22 2.76/92.98 0.37/90.02
            Blend | blend | 0.1 | 100/95.97 24.59/93.14 99.5/86.67 6.83/92.91 8.1/89.37
            Dynamic | dynamic | 0.1 | 100/97.27 6.24/95.8 99.84/88.38 64.82/43.91 68.71/76.93
            SIG | sig | 0.08 | 97.13/97.13 5.13/96.33 79.28/90.5 33.98/91.83 4.64/89.36
            """,
            **SIGNS,
            prefix="GTSRB, ",
        ),
    ),
    "B",
    f"{JPEG} {CLEAN}",
)

ABL_2 = Table(
    "ABL, Table 2: high poisoning rates",
    CIFAR,
    "wrn-16-1",
    "abl",
    (NONE, ABL),
    rows(
        ("none", "abl"),
        """
        BadNets 50% | badnets | 0.5 | 100/75.31 4.98/70.52
        Blend 50% | blend | 0.5 | 100/69.49 27.28/64.19
        Trojan 50% | trojan | 0.5 | 100/70.44 16.11/68.56
        Dynamic 50% | dynamic | 0.5 | 100/66.15 25.74/61.32
        BadNets 70% | badnets | 0.7 | -/- 5.02/70.11
        Blend 70% | blend | 0.7 | -/67.32 62.28/64.43
        Trojan 70% | trojan | 0.7 | -/- 29.29/68.79
        Dynamic 70% | dynamic | 0.7 | -/- 69.36/62.09
        """,
    ),
    "B",
    JPEG,
)

_UNLEARNING = {
    "pixel-noise": (57.54, 82.33),
    "gradient-noise": (47.65, 82.62),
    "label-shuffling": (30.23, 83.76),
    "label-uniform": (75.12, 83.47),
    "label-smoothing": (99.80, 83.17),
    "self-learning": (21.26, 84.38),
    "finetune-all": (99.12, 83.64),
    "finetune-last": (22.33, 77.65),
    "retrain": (11.21, 86.02),
}
ABL_3 = Table(
    "ABL, Table 3: other ways to unlearn what was isolated (20% of the data)",
    CIFAR,
    "wrn-16-1",
    "abl",
    (
        NONE,
        ABL,
        *(Method("abl", name, (("unlearning", name), ("isolation_rate", 0.2))) for name in _UNLEARNING),
    ),
    (Row("BadNets", "badnets", 0.1, {"none": (100, 85.43), "abl": (3.04, 86.11), **_UNLEARNING}),),
    "C",
    f"{JPEG} The paper's tenth way begins with ImageNet's weights, which are not here. ABL isolates 1%, as in Table 1.",
)

ABL_ISOLATION = Table(
    "ABL, Figure 4 and Section 4.3: precision of the 1% that are isolated",
    CIFAR,
    "wrn-16-1",
    "abl",
    (
        Method("low-loss", "gamma 0.5"),
        Method("low-loss", "gamma 0", (("gamma", 0.0),)),
        Method("low-loss", "gamma 1", (("gamma", 1.0),)),
        Method("low-loss", "gamma 1.5", (("gamma", 1.5),)),
        Method("flooding"),
        Method("label-smoothing-confidence"),
        Method("activation-clustering"),
        Method("spectral"),
    ),
    (Row("BadNets", "badnets", 0.1), Row("Trojan", "trojan", 0.1), Row("Blend", "blend", 0.1)),
    "B",
    f"{JPEG} Low-loss trains 20 epochs at a constant rate, flooding and label smoothing the whole recipe: flooding "
    "descends what low-loss at 0.5 does, so that the two differ by the training alone.",
)

_ONE_ATTACK = (Row("BadNets", "badnets", 0.1), Row("SIG", "sig", 0.08), Row("Blend", "blend", 0.1))
ABL_P = replace(
    ABL_1,
    title="ABL, Figure 5: the share that is isolated",
    methods=(NONE, *(Method("abl", f"p {p:g}", (("isolation_rate", p),)) for p in (0.01, 0.05, 0.1, 0.2))),
    rows=_ONE_ATTACK,
    about=f"{JPEG} The paper shows curves.",
)
ABL_TURNING = replace(
    ABL_1,
    title="ABL, Table 7: the epoch at which the isolation ends",
    methods=(NONE, *(Method("abl", f"T_te {n}", (("isolation_epochs", n),)) for n in (10, 20, 30, 40))),
    rows=_ONE_ATTACK,
    about=f"{JPEG} The paper's epochs have 50,000 images.",
)
ABL_GAMMA = replace(
    ABL_1,
    title="ABL, Section 4.3: the loss that the isolation holds",
    methods=(NONE, *(Method("abl", f"gamma {gamma:g}", (("gamma", gamma),)) for gamma in (0.0, 0.5, 1.0, 1.5))),
    rows=_ONE_ATTACK,
    about=JPEG,
)
ABL_GIVEN = replace(
    ABL_1,
    title="ABL, Section 4.3: unlearning a given model, whose trigger is recovered",
    preset="nad",
    methods=(NONE, Method("neural-cleanse-unlearn"), NAD),
    rows=(Row("BadNets", "badnets", 0.1),),
    grade="C",
    about=f"{JPEG} The paper's numbers are in an appendix that is not at hand.",
)

TABLES = {
    "abl-1": ABL_1,
    "abl-2": ABL_2,
    "abl-3": ABL_3,
    "abl-isolation": ABL_ISOLATION,
    "abl-p": ABL_P,
    "abl-turning": ABL_TURNING,
    "abl-gamma": ABL_GAMMA,
    "abl-given": ABL_GIVEN,
}
