"""One trigger that leads to several labels, or works on one class only: what the search makes of it.

    python benchmarks/plans.py                                    all cells; goes on where it was stopped
    python benchmarks/plans.py --cells '*/badnets-all_to_all/*'   some of them
    python benchmarks/plans.py --table                            what is there

10,000 images of CIFAR-10, 20 epochs, and ArabicDigits, 12 epochs; minutes a cell. Needs `cifar10.zip` and
`arabicdigits.npz` in ANTIBACKDOOR_DATA.
"""

from __future__ import annotations

import cells

# File, network, passes over the data, most samples, trigger.
DATA = (
    ("cifar10.zip", "resnet18-thin", 20, 10_000, "badnets"),
    ("cifar10.zip", "resnet18-thin", 20, 10_000, "blend"),
    ("arabicdigits.npz", "fcn", 12, 0, "static"),
)
PLANS = (("all_to_all", 0.1), ("multi_target", 0.1), ("source_specific", 0.05))
DEFENSES = ("dual-head", "none", cells.CLEAN_PART)


def main() -> None:
    """Parse, measure, print."""
    parser = cells.arguments("One trigger, several targets or one source.", "plans", seeds=1)
    options = parser.parse_args()
    todo = [
        cells.Cell(
            data, network, trigger, rate, defense, seed, options.epochs or epochs, options.limit or limit, plan=plan
        )
        for seed in range(options.seeds)
        for defense in DEFENSES
        for plan, rate in PLANS
        for data, network, epochs, limit, trigger in DATA
    ]
    cells.run(todo, options)


if __name__ == "__main__":
    main()
