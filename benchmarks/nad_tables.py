"""Tables of NAD: Li et al., "Neural Attention Distillation", ICLR 2021, arXiv 2101.05930."""

from __future__ import annotations

from paper_tables import CIFAR, JPEG, SIGNS, Method, Row, Table, rows

NONE, FT, FP, MCR, NAD = (Method(key) for key in ("none", "fine-tune", "fine-prune", "mcr", "nad"))
# NAD does not print the learning rate of its curve; all that it trains otherwise begins with 0.1.
MCR_FAST = Method("mcr", "mcr, B-B, rate 0.1", (("learning_rate", 0.1),))

NAD_1 = Table(
    "NAD, Table 1: erasing a given model with 5% of clean data",
    CIFAR,
    "wrn-16-1",
    "nad",
    (NONE, FT, FP, MCR, NAD),
    (
        *rows(
            ("none", "fine-tune", "fine-prune", "mcr", "nad"),
            """
            BadNets | badnets | 0.1 | 100/85.65 17.18/81.22 99.73/81.14 4.65/80.94 4.77/81.17
            SIG | sig | 0.08 | 99.91/84.36 9.18/81.28 74.26/81.6 1.62/80.94 2.52/81.95
            Blend | blend | 0.1 | 99.97/84.95 36.6/81.22 93.62/81.13 64.33/80.34 4.04/81.68
            Trojan | trojan | 0.05 | 100/81.24 71.76/77.88 41/78.17 41.25/78.76 19.63/79.16
            CL | label_consistent | 0.08 | 99.21/82.43 75.08/81.73 29.88/79.32 32.95/79.04 9.18/80.34
            """,
        ),
        *rows(
            ("none", "fine-tune", "fine-prune", "mcr", "nad"),
            "Refool | refool | 0.08 | 95.16/82.38 14.38/80.34 63.49/80.64 8.76/78.84 3.18/80.73",
            **SIGNS,
        ),
    ),
    "B",
    f"{JPEG} Purifiers get 5% of the whole training set at each scale: with 500 images (5% of 10,000) the steps of an "
    "epoch are a fifth of the paper's, fine-tuning and NAD lose ten points of accuracy, and MCR does not move.",
)

NAD_2 = Table(
    "NAD, Table 2: teachers of another architecture, trained on the clean data alone",
    CIFAR,
    "wrn-16-1",
    "nad",
    (
        NONE,
        *(
            Method("nad", f"nad, {name}", (("pair", "C-B"),), teacher=name)
            for name in ("wrn-10-2", "wrn-16-1", "wrn-16-2", "wrn-40-1", "wrn-40-2")
        ),
    ),
    rows(
        ("none", "nad, wrn-10-2", "nad, wrn-16-1", "nad, wrn-16-2", "nad, wrn-40-1", "nad, wrn-40-2"),
        "BadNets | badnets | 0.1 | 100/85.65 4.68/78.36 4.55/74.53 3.04/78.68 2.95/78.87 3.74/79.07",
    ),
    "B",
    JPEG,
)

NAD_4 = Table(
    "NAD, Table 4: fine-tuning with Mixup or Cutout against distillation",
    CIFAR,
    "wrn-16-1",
    "nad",
    (
        NONE,
        Method("fine-tune", "mixup", (("augment", "mixup"),)),
        Method("fine-tune", "cutout", (("augment", "none"), ("hole", 3))),
        NAD,
    ),
    rows(
        ("none", "mixup", "cutout", "nad"),
        """
        BadNets | badnets | 0.1 | 100/85.65 68.22/80.27 28.17/82.73 3.81/81.85
        SIG | sig | 0.08 | 99.91/84.36 52.11/79.94 99.95/82.77 2.52/81.95
        Blend | blend | 0.1 | 99.97/84.95 99.11/80.51 15.3/81.78 3.04/81.68
        Trojan | trojan | 0.05 | 100/81.24 96.2/71.83 50.22/80.13 19.63/79.16
        CL | label_consistent | 0.08 | 99.21/82.43 93.77/77.13 73.33/81.34 9.18/80.34
        """,
    ),
    "B",
    f"{JPEG} The table's printed average is that of Table 1; its rows give 6.89/80.95.",
)

NAD_5 = Table(
    "NAD, Table 5: the ends of MCR's curve",
    CIFAR,
    "wrn-16-1",
    "nad",
    (NONE, Method("mcr", "mcr, B-B"), MCR_FAST, Method("mcr", "mcr, B-BF", (("endpoints", "B-BF"),)), NAD),
    rows(
        ("none", "mcr, B-B", "mcr, B-BF", "nad"),
        """
        BadNets | badnets | 0.1 | 100/85.65 4.65/80.94 6/80.56 4.77/81.17
        SIG | sig | 0.08 | 99.91/84.36 1.62/80.94 7.32/81.12 2.52/81.95
        Blend | blend | 0.1 | 99.97/84.95 64.33/80.34 70.65/80.51 4.04/81.68
        Trojan | trojan | 0.05 | 100/81.24 41.25/78.76 53.31/78.31 19.63/79.16
        CL | label_consistent | 0.08 | 99.21/82.43 32.95/79.04 42.66/80.31 9.18/80.34
        """,
    ),
    "B",
    JPEG,
)

NAD_6 = Table(
    "NAD, Table 6: retraining with the recovered or the original trigger",
    CIFAR,
    "wrn-16-1",
    "nad",
    (
        NONE,
        Method(
            "neural-cleanse-unlearn",
            "recovered trigger",
            (("repair", "retrain"), ("learning_rate", 0.1), ("epochs", 10), ("share", 0.2)),
        ),
        Method("trigger-retrain", "original trigger"),
        NAD,
    ),
    rows(
        ("none", "recovered trigger", "original trigger", "nad"),
        """
        BadNets | badnets | 0.1 | 100/85.65 4.96/81.23 3.91/82.14 4.77/81.17
        CL | label_consistent | 0.08 | 99.21/82.43 31.23/79.12 25.23/79.57 9.18/80.34
        """,
    ),
    "C",
    f"{JPEG} The paper recovers triggers with MESA, a generative model; here it is Neural Cleanse, whose retraining "
    "has a constant learning rate and no augmentation.",
)

_PAIRS = ("BF-B", "B-BF", "BF-BF")
NAD_FIGURE_4 = Table(
    "NAD, Figure 4: teacher and student (B backdoored, BF fine-tuned, C trained on the clean data)",
    CIFAR,
    "wrn-16-1",
    "nad",
    (
        NONE,
        *(Method("nad", f"nad, {pair}", (("pair", pair),)) for pair in _PAIRS),
        Method("nad", "nad, C-B", (("pair", "C-B"),), teacher="wrn-16-1"),
    ),
    (Row("BadNets", "badnets", 0.1),),
    "B",
    f"{JPEG} The paper shows bars without numbers. A pair's first network is the teacher.",
)

NAD_7 = Table(
    "NAD, Table 7: how the channels of an attention map are joined, after five epochs",
    CIFAR,
    "wrn-16-1",
    "nad",
    (
        NONE,
        Method("nad", "sum of F", (("power", 1.0), ("epochs", 5))),
        Method("nad", "sum of F squared", (("power", 2.0), ("epochs", 5))),
    ),
    rows(
        ("none", "sum of F", "sum of F squared"),
        "BadNets | badnets | 0.1 | 100/85.86 6.89/81.46 4.21/81.55",
    ),
    "B",
    f"{JPEG} Means over channels are the same maps as sums once they have length 1 (a test holds it to 1e-5), so that "
    "they are no columns.",
)

NAD_8 = Table(
    "NAD, Table 8: attention maps against the activations of all channels",
    CIFAR,
    "wrn-16-1",
    "nad",
    (NONE, NAD, Method("nad", "nad, activations", (("maps", "activation"),))),
    rows(("none", "nad", "nad, activations"), "BadNets | badnets | 0.1 | 100/85.65 3.81/81.85 98.44/82.66"),
    "B",
    JPEG,
)

TABLES = {
    "nad-1": NAD_1,
    "nad-2": NAD_2,
    "nad-4": NAD_4,
    "nad-5": NAD_5,
    "nad-6": NAD_6,
    "nad-7": NAD_7,
    "nad-8": NAD_8,
    "nad-figure-4": NAD_FIGURE_4,
}
