"""Measure morpheus beside its rivals: `python benchmarks/speed [--quick | --full] [--only PART]`.

Prints tables, and writes them into docs/benchmarks.md; parts that do not run keep theirs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[0] = str(ROOT / "benchmarks")

from figures.page import Page  # noqa: E402 - the line above finds it

from speed.scale import Scale  # noqa: E402 - the same

PAGE = ROOT / "docs" / "benchmarks.md"
PARTS = {
    "training": "Training",
    "reference": "The reference preset",
    "scoring": "Scoring",
    "growth": "How cost grows",
    "rhythm": "Rhythm",
    "stores": "Fingerprints on disk",
    "cold": "Cold starts",
    "gpu": "On a GPU",
    "report": "The report's page",
    "profiles": "Where the time goes",
}
HEAD = """# Benchmarks

Written by `make bench` (`python benchmarks/speed`); every figure is of one run of that command, and
every row stands beside its rival of the same run. The logs are those of made-up companies
(`examples/make_fleet.py`).
"""


def main() -> None:
    """Read the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description="Measure morpheus beside its rivals.")
    parser.add_argument("--only", choices=PARTS, action="append", help="repeat for more parts")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="small sizes: about two minutes")
    size.add_argument("--full", action="store_true", help="ten thousand users, too")
    parser.add_argument("--into", type=Path, default=PAGE, help="page to write")
    given = parser.parse_args()
    page = Page(given.into, HEAD, PARTS)
    with tempfile.TemporaryDirectory() as scratch:
        scale = Scale(Path(scratch), given.quick, given.full)
        page.measure_each(given.only or PARTS, "speed", scale, quick=given.quick)


if __name__ == "__main__":
    main()
