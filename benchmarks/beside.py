"""How long two trainings take that begin at the same time, with and without giving up threads for each other.

    python benchmarks/beside.py                     seconds of two passes over the digits, WRN-16-1, three times
    OMP_NUM_THREADS=4 python benchmarks/beside.py   with so many threads

Nothing else should run meanwhile; digits need no files.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import cells

PASSES = 2
LONGEST = 600  # seconds after which a training is given up
CASES = {  # trainings at the same time, and whether they watch their cores
    "one alone": (1, True),
    "two, threads given up under pressure": (2, True),
    "two, all threads kept": (2, False),
}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=cells.RESULTS / "beside.json")
    parser.add_argument("--worker", choices=("watched", "unwatched"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(train(options.worker == "watched")))
        return
    found: dict[str, list[float]] = {title: [] for title in CASES}
    threads = 0
    for _ in range(options.repeats):
        for title, (n, watched) in CASES.items():
            seconds, threads = at_once(n, watched)
            found[title].append(seconds)
            print(f"{title}: {seconds} s, {threads} threads each", file=sys.stderr, flush=True)
    result = {"passes": PASSES, "threads": threads, "seconds": found}
    cells.write(options.out, {**result, **cells.provenance(), "command": cells.command()})


def at_once(n: int, watched: bool) -> tuple[float, int]:
    """Seconds that the slowest of n trainings took, and the threads that each began with."""
    command = [sys.executable, __file__, "--worker", "watched" if watched else "unwatched"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(n)]
    try:
        told = [json.loads(process.communicate(timeout=LONGEST)[0].splitlines()[-1]) for process in running]
    finally:
        for process in running:
            process.kill()  # if another one broke; nothing happens to those that have ended
    return max(seconds for seconds, _ in told), told[0][1]


def train(watched: bool) -> tuple[float, int]:
    """Seconds, and threads."""
    import torch

    from antibackdoor import cores
    from antibackdoor.defenses import DEFENSES
    from antibackdoor.demo import digits
    from antibackdoor.pipeline import Job, builder, describe_model
    from antibackdoor.recipe import Recipe

    if not watched:
        cores.PRESSED = float("inf")
    method, recipe, data = DEFENSES["none"](), Recipe(epochs=PASSES), digits(0).train
    build = builder(describe_model(data, Job(method, recipe, backbone="wrn-16-1"), None))
    started = time.perf_counter()
    method.train(data, build, recipe)
    return round(time.perf_counter() - started, 1), torch.get_num_threads()


if __name__ == "__main__":
    main()
