"""Measure streams: `python benchmarks/stream [--quick] [--only PART] [--users N]`; see --help.

Prints tables. A part is a module of this package with a function `tables`, which takes a `Scale`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[0] = str(ROOT / "benchmarks")

from figures import machine  # noqa: E402 - the line above finds it

from stream.scale import Scale  # noqa: E402 - the same

PARTS = {
    "rate": "A stream of Kafka: rate, latency, memory, checkpoints, restart",
    "bundles": "Micro-batches with few events of many users: the cost of a user's batch",
    "users": "Many users known, few active: memory and state",
    "models": "The model store: publish, roll back, open, one damaged fingerprint",
    "days": "Runs of one day each, with a state file, against one run",
}


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description="Measure streams.")
    parser.add_argument(
        "--only", choices=PARTS, action="append", help="part to run; can be repeated"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: about two minutes")
    parser.add_argument("--events", type=int, help="events of the stream (default: 5,000,000)")
    parser.add_argument("--old", type=Path, help="another tree, which `bundles` measures too")
    parser.add_argument(
        "--users", type=int, help="users of the stream (default: 10,000), or active ones of `users`"
    )
    parser.add_argument("--known", type=int, help="known users of `users` (default: 50 per active)")
    parser.add_argument("--evidence", type=Path, help="folder to keep all files in")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.evidence or Path(scratch)
        scale = Scale(
            folder, given.quick, given.events, given.users, given.old, given_known=given.known
        )
        for part in given.only or PARTS:
            print(f"\n## {PARTS[part]}\n", flush=True)
            begin = time.perf_counter()
            for table in importlib.import_module(f"stream.{part}").tables(scale):
                print(table.markdown(), flush=True)
            print(f"{time.perf_counter() - begin:.0f} s, on {machine.described()}.", flush=True)


if __name__ == "__main__":
    main()
