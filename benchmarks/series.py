"""Time series with and without a backdoor: spoken Arabic digits (13 channels) and ECG5000 (500 training samples).

    python benchmarks/series.py                                   all cells; goes on where it was stopped
    python benchmarks/series.py --cells 'arabicdigits/*/e2abl/*'   some of them

Needs `arabicdigits.npz` and `ecg5000.npz` in ANTIBACKDOOR_DATA.
"""

from __future__ import annotations

import cells

DATA = (("arabicdigits.npz", 12), ("ecg5000.npz", 60))  # with passes over the data


def main() -> None:
    """Parse, measure, print."""
    parser = cells.arguments("A static pattern in time series.", "series", seeds=3)
    parser.add_argument("--network", default="fcn")
    parser.add_argument("--attack", default="static")
    parser.add_argument("--rate", type=float, default=0.1)
    options = parser.parse_args()
    todo: list[cells.Cell] = []
    for seed in range(options.seeds):
        for data, epochs in DATA:
            attacked = [(data, options.network, options.attack, options.rate)]
            todo += cells.ordered(attacked, [seed], epochs=options.epochs or epochs, limit=options.limit)
    cells.run(todo, options)


if __name__ == "__main__":
    main()
