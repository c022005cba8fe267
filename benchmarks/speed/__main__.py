"""Measure morpheus beside its rivals: `python benchmarks/speed [--quick | --full] [--only PART]`.

Prints tables, and writes them into docs/benchmarks.md; parts that do not run keep theirs.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[0] = str(ROOT / "benchmarks")

from speed import machine  # noqa: E402 - the line above finds it
from speed.scale import Scale  # noqa: E402 - the same

PAGE = ROOT / "docs" / "benchmarks.md"
PARTS = {
    "training": "Training",
    "scoring": "Scoring",
    "growth": "How cost grows",
    "rhythm": "Rhythm",
    "stores": "Fingerprints on disk",
    "cold": "Cold starts",
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
    size.add_argument("--full", action="store_true", help="ten million events too")
    parser.add_argument("--into", type=Path, default=PAGE, help="page to write")
    given = parser.parse_args()
    sections = read(given.into)
    with tempfile.TemporaryDirectory() as scratch:
        scale = Scale(Path(scratch), given.quick, given.full)
        for part in given.only or PARTS:
            sections[part] = measured(part, scale)
            given.into.write_text(page(sections), encoding="utf-8")


def measured(part: str, scale: Scale) -> str:
    """Run a part; its section of the page."""
    kind = "Quick run: small sizes" if scale.quick else "Run"
    begin, texts = time.perf_counter(), []
    print(f"\n## {PARTS[part]}\n", flush=True)
    for table in importlib.import_module(f"speed.{part}").tables(scale):
        texts.append(table.markdown())
        print(texts[-1], flush=True)
    took = f"{kind}, {time.perf_counter() - begin:.0f} s, on {machine.described()}.\n"
    print(took, flush=True)
    return "\n".join([took, *texts])


def read(path: Path) -> dict[str, str]:
    """The sections that a page has."""
    if not path.exists():
        return {}
    parts = re.split(r"^## (.*)\n\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    names = {title: part for part, title in PARTS.items()}
    found = zip(parts[1::2], parts[2::2], strict=True)
    return {names[title]: text.rstrip("\n") + "\n" for title, text in found if title in names}


def page(sections: dict[str, str]) -> str:
    """The whole page."""
    texts = [f"## {PARTS[part]}\n\n{sections[part]}" for part in PARTS if part in sections]
    return "\n".join([HEAD, *texts])


if __name__ == "__main__":
    main()
