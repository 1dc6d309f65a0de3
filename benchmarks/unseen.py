"""What the search isolates under triggers that the package does not have: whether it knows more than its attacks.

    python benchmarks/unseen.py                                 all cells; goes on where it was stopped
    python benchmarks/unseen.py --cells '*/tint/*' --seeds 1    some of them

The triggers are those of `triggers.py`. `benchmarks/soft.py` trains with some of them to the end.
"""

from __future__ import annotations

from collections.abc import Iterable

import isolation
import triggers

# The rate of each.
PICTURES = {
    "digits": 0.05,
    "mnist": 0.05,
    "shapes": 0.05,
    "characters": 0.05,
    "cifar10-2000": 0.1,
    "cifar10-10000": 0.05,
}
SERIES = {
    "control-charts": 0.1,
    "two-patterns": 0.1,
    "cylinders": 0.1,
    "japanesevowels-all": 0.1,
    "italypowerdemand-all": 0.1,
    "arabicdigits": 0.1,
    "ecg5000-all": 0.1,
}
GRAY = ("digits", "mnist", "characters")


def all_cells(n_seeds: int) -> Iterable[isolation.Cell]:
    """Small data first."""
    for rates, changes in ((SERIES, triggers.OF_SERIES), (PICTURES, triggers.OF_PICTURES)):
        for data, rate in rates.items():
            for seed in range(n_seeds):
                names = [name for name in changes if data not in GRAY or name not in triggers.COLORED]
                yield from (isolation.Cell(data, name, rate, seed) for name in names)


if __name__ == "__main__":
    isolation.run(__doc__ or "", "unseen", all_cells, isolation.measure, isolation.table)
