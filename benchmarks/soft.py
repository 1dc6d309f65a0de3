"""Attacks that are hard to see: most of them the search misses or may miss, one has several triggers.

    python benchmarks/soft.py                                   all cells; goes on where it was stopped
    python benchmarks/soft.py --cells '*/wanet/*/0'             some of them
    python benchmarks/soft.py --table                           what is there

The last four are not in the package but in `unseen.py`.

10,000 images of CIFAR-10, 20 epochs; minutes to a quarter of an hour a cell. Needs `cifar10.zip` in ANTIBACKDOOR_DATA.
"""

from __future__ import annotations

import cells

ATTACKED = (
    ("cifar10.zip", "resnet18-thin", "adaptive_blend", 0.05),
    ("cifar10.zip", "resnet18-thin", "wanet", 0.1),
    ("cifar10.zip", "resnet18-thin", "tact", 0.05),
    ("cifar10.zip", "resnet18-thin", "cba", 0.05),
    ("cifar10.zip", "resnet18-thin", "adaptive_patch", 0.05),
    ("cifar10.zip", "resnet18-thin", "dfst", 0.05),
    *(("cifar10.zip", "resnet18-thin", name, 0.05) for name in ("smooth_noise", "sharpening", "blur", "rotation")),
)


def main() -> None:
    """Parse, measure, print."""
    parser = cells.arguments("Attacks that are hard to see.", "soft", seeds=2)
    parser.set_defaults(epochs=20, limit=10_000)
    options = parser.parse_args()
    chosen = cells.ordered(
        ATTACKED,
        range(options.seeds),
        defenses=("dual-head", "none", cells.CLEAN_PART),
        epochs=options.epochs,
        limit=options.limit,
    )
    cells.run(chosen, options)


if __name__ == "__main__":
    main()
