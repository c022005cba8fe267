"""Measure how far it goes: `python benchmarks/scale [--quick] [--only PART]`.

All parts take some twenty minutes on two cores that nobody else uses, quick ones four.

Prints tables, and writes them into docs/scaling.md; parts that do not run keep theirs.
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
    "costs": "What a user and an event cost",
    "equal": "One machine beside a cluster",
    "giant": "A giant among others",
    "tiny": "Users who hardly do anything",
}
HEAD = (Path(__file__).parent / "head.md").read_text(encoding="utf-8")


def main() -> None:
    """Read the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description="Measure how far it goes.")
    parser.add_argument("--only", choices=PARTS, action="append", help="repeat for more parts")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that all runs")
    parser.add_argument("--into", type=Path, default=PAGE, help="page to write")
    given = parser.parse_args()
    page = Page(given.into, HEAD, PARTS)
    with tempfile.TemporaryDirectory() as scratch:
        size = Size(Path(scratch), given.quick)
        page.measure_each(given.only or PARTS, "scale", size, quick=given.quick)


if __name__ == "__main__":
    main()
