"""Measure speed: `python benchmarks/speed [--quick | --full] [--only PART] [--old TREE]`.

`--old` names the tree of an earlier version, such as a worktree of its commit. The parts `versions`
and `install` compare it.

Prints tables and writes them to docs/benchmarks.md. Sections of parts that do not run are kept.
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
    "alternatives": "Other detectors",
    "reference": "The reference model",
    "scoring": "Scoring",
    "reading": "Reading JSON",
    "growth": "How cost grows",
    "seasonality": "Time-series anomalies",
    "stores": "Fingerprints on disk",
    "versions": "Compared with the version before",
    "cold": "Cold starts",
    "install": "Install",
    "gpu": "On a GPU",
    "report": "The report page",
    "profiles": "Where the time goes",
}
HEAD = """# Benchmarks

What training, scoring and reading cost, compared with NVIDIA Morpheus, dfencoder and other
detectors, and with the version before.

`make bench` (`python benchmarks/speed`) writes this page. Every figure comes from a run of that
command, and every row stands next to its competitor in the same run. The logs are those of
made-up companies (`examples/make_fleet.py`). Each section names its machine, and its load before
the run: other work makes wall seconds longer, and CPU seconds too. `--old TREE`, with a worktree of
an earlier version, fills the comparison with it.
"""


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description="Measure morpheus next to its competitors.")
    parser.add_argument(
        "--only", choices=PARTS, action="append", help="part to run; can be repeated"
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="small sizes: about two minutes")
    size.add_argument(
        "--full", action="store_true", help="also the largest numbers of users and events"
    )
    parser.add_argument("--into", type=Path, default=PAGE, help="page to write")
    parser.add_argument("--old", type=Path, help="tree of an earlier version, to compare")
    parser.add_argument("--users", type=int, help="users of the large fleet; usually 1,000")
    parser.add_argument("--keep", type=Path, help="folder that keeps logs and fingerprints")
    given = parser.parse_args()
    page = Page(given.into, HEAD, PARTS)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = given.keep or Path(temporary)
        scale = Scale(scratch, given.quick, given.full, given.old, given.users)
        page.measure_each(given.only or PARTS, "speed", scale, quick=given.quick)


if __name__ == "__main__":
    main()
