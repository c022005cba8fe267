"""Measure how it scales: `python benchmarks/scale [--quick] [--only PART]`.

All parts take about twenty minutes on two idle cores; quick sizes take four.

Prints tables and writes them to docs/scaling.md. Sections of parts that do not run are kept.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[0] = str(ROOT / "benchmarks")

from figures.page import Page  # noqa: E402 - the line above finds it

from scale.runs import Size  # noqa: E402 - the same

PAGE = ROOT / "docs" / "scaling.md"
PARTS = {
    "costs": "Cost per user and per event",
    "equal": "One machine and a cluster",
    "giant": "One very large user among others",
    "tiny": "Many users with few events",
}
HEAD = (Path(__file__).parent / "head.md").read_text(encoding="utf-8")


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description="Measure how it scales.")
    parser.add_argument("--only", choices=PARTS, action="append", help="repeat for more parts")
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, to check that every part runs"
    )
    parser.add_argument("--into", type=Path, default=PAGE, help="page to write")
    given = parser.parse_args()
    page = Page(given.into, HEAD, PARTS)
    with tempfile.TemporaryDirectory() as scratch:
        size = Size(Path(scratch), given.quick)
        page.measure_each(given.only or PARTS, "scale", size, quick=given.quick)


if __name__ == "__main__":
    main()
