"""Play the engineer: `python benchmarks/engineer [--users N] [--seeds S ...]`, or `make engineer`.

Installs the wheel into a fresh environment, runs `morpheus detect` on generated buckets, and prints
the seconds and how many of the planted incidents the terminal shows. It takes a few minutes. pip
downloads what is not in its cache.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[0] = str(ROOT / "benchmarks")

from figures.machine import described  # noqa: E402 - the line above finds it
from figures.table import Table  # noqa: E402 - the same

from engineer.journey import Bucket, Detected, Installation  # noqa: E402 - the same

SEEDS = (1, 2, 3, 5, 42)
MAX_TOTAL, MAX_DETECT, MIN_FOUND = 180, 10, 9
"""Aims: seconds from `pip install` to the first incident, seconds of `detect`, incidents found."""


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description="Play the engineer.")
    parser.add_argument("--users", type=int, default=50, help="users of a bucket")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="one bucket each")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print(measure(Path(scratch), given.users, given.seeds).markdown())
    print(f"{described()}. Mean load in the last minute: {os.getloadavg()[0]:.1f}.")


def measure(scratch: Path, users: int, seeds: list[int]) -> Table:
    """Install once, and run `detect` on the bucket of each seed."""
    installation = Installation.make(scratch)
    table = Table(
        f"From `pip install` to the first incident: buckets of {users} users",
        [
            "seed",
            "venv and pip install, s",
            "detect, s",
            "detect, CPU s",
            "together, s",
            "incidents in the terminal",
            "planted ones among them",
            "planted",
        ],
        note=f"Aims: together under {MAX_TOTAL} s, `detect` under {MAX_DETECT} s, and at least "
        f"{MIN_FOUND} of ten planted incidents. The environment is installed once.",
    )
    for seed in seeds:
        folder = scratch / f"bucket-{seed}"
        bucket = Bucket.generate(folder, users, seed)
        detected = Detected.run(installation, bucket, scratch / f"results-{seed}")
        install, detect = installation.cost, detected.cost
        table.add(
            *(seed, install.wall, detect.wall, detect.cpu, install.wall + detect.wall),
            *(len(detected.shown), len(detected.found), len(set(bucket.planted.values()))),
        )
    return table


if __name__ == "__main__":
    main()
