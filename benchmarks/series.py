"""Time series with and without a backdoor: spoken Arabic digits (13 channels), ECG5000 (500 samples), UWave (120).

    python benchmarks/series.py                                   all cells; goes on where it was stopped
    python benchmarks/series.py --cells 'arabicdigits/*/dual-head/*'   some of them

Needs `arabicdigits.npz`, `ecg5000.npz` and `uwavegesture.npz` in ANTIBACKDOOR_DATA.
"""

from __future__ import annotations

import cells

# With passes over the data (0: the package chooses) and poisoned share.
DATA = (("arabicdigits.npz", 12, 0.1), ("ecg5000.npz", 60, 0.1), ("uwavegesture.npz", 0, 0.2))


def main() -> None:
    """Parse, measure, print."""
    parser = cells.arguments("A static pattern in time series.", "series", seeds=3)
    parser.add_argument("--network", default="fcn")
    parser.add_argument("--attack", default="static")
    parser.add_argument("--rate", type=float, help="the same for all data")
    options = parser.parse_args()
    todo: list[cells.Cell] = []
    for seed in range(options.seeds):
        for data, epochs, rate in DATA:
            attacked = [(data, options.network, options.attack, options.rate or rate)]
            todo += cells.ordered(attacked, [seed], epochs=options.epochs or epochs, limit=options.limit)
    cells.run(todo, options)


if __name__ == "__main__":
    main()
