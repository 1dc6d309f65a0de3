"""Whole trainings on data that are drawn by rule.

    python benchmarks/drawn.py                              all cells; goes on where it was stopped
    python benchmarks/drawn.py --cells 'shapes/*' --seeds 1

The data are those of `synthetic.py`; `benchmarks/isolation.py` and `benchmarks/unseen.py` search them as well.
"""

from __future__ import annotations

import cells
import synthetic

# What was worst when it was first tried, and clean data.
TRAINED = (
    ("shapes", "badnets", 0.05),
    ("characters", "wanet", 0.1),
    ("control-charts", "powerline", 0.05),
    ("two-patterns", "powerline", 0.05),
    ("cylinders", "powerline", 0.05),
    ("two-patterns", "", 0.0),
    ("shapes", "", 0.0),
)


def main() -> None:
    """Parse, measure, print."""
    options = cells.arguments("Whole trainings on drawn data.", "drawn", seeds=3).parse_args()
    todo = [
        cells.Cell(
            data,
            synthetic.KINDS[data].network,
            attack,
            rate,
            defense,
            seed,
            options.epochs,
            options.limit,
        )
        for seed in range(options.seeds)
        for data, attack, rate in TRAINED
        for defense in ("dual-head", "none")
    ]
    cells.run(todo, options)


if __name__ == "__main__":
    main()
