"""CIFAR-10 with and without a backdoor, with and without a defense.

    python benchmarks/cifar10.py                                all cells; goes on where it was stopped
    python benchmarks/cifar10.py --cells 'cifar10/*/dual-head/0'     some of them
    python benchmarks/cifar10.py --table                        what is there

Needs `cifar10.zip` (class folders below `train` and `test`) in ANTIBACKDOOR_DATA.
"""

from __future__ import annotations

import cells

DATA = "cifar10.zip"
ATTACKS = (("badnets", 0.1), ("blend", 0.1), ("sig", 0.08), ("wanet", 0.1))


def main() -> None:
    """Parse, measure, print."""
    parser = cells.arguments("Attacks and defenses on CIFAR-10.", "cifar10", seeds=3)
    parser.add_argument("--network", default="resnet18-thin")
    parser.set_defaults(epochs=20)
    options = parser.parse_args()
    attacked = [(DATA, options.network, attack, rate) for attack, rate in ATTACKS]
    cells.run(cells.ordered(attacked, range(options.seeds), epochs=options.epochs, limit=options.limit), options)


if __name__ == "__main__":
    main()
