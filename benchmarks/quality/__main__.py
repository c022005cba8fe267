"""Measure detection beside rivals: `python benchmarks/quality [--quick] [--only PART]`.

Prints tables, and writes them into docs/quality.md; parts that do not run keep theirs.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[0] = str(ROOT / "benchmarks")

from figures.page import Page  # noqa: E402 - the line above finds it

import morpheus  # noqa: E402 - the line above comes first
from quality.judge import FIGURES  # noqa: E402 - the same
from quality.parts import PARTS, Run  # noqa: E402 - the same
from quality.scorers import RIVALS  # noqa: E402 - the same

PAGE = ROOT / "docs" / "quality.md"
TITLES = {
    "commits": "Commits: a peer commits as the user, from a date on",
    "console": "Console sessions: recorded techniques at three grades of hiding",
    "fleet": "Made-up companies: incidents of nine kinds",
    "lessons": "The lessons' data: one intruder, one night",
    "reference": "The reference autoencoder",
    "alerts": "The alert budget: stated beside realised",
    "reasons": "Explanations of incidents caught",
    "risk": "What each part of `risk` is worth",
    "epochs": "How long to train",
}
HEAD = """# Detection

Written by `make quality` (`python benchmarks/quality`). Every scorer gets the same rows and
columns, learns from the history alone, and is judged by the same code. Figures are means over the
seeds, ± their standard deviation; without ± there is no difference between seeds. The best of a
column is bold. The last row of a table is our first score less the rival that is best in that
column, seed by seed.

"""


def main() -> None:
    """Read the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description="Measure detection beside rivals.")
    parser.add_argument("--only", choices=PARTS, action="append", help="repeat for more parts")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few users: about a minute")
    words = ", ".join(RIVALS)
    quick = ", ".join(word for word in RIVALS if word != "dfencoder")
    told = f"of {words}; by default all but the slow one, which has a part of its own"
    parser.add_argument("--rivals", default=quick, help=told)
    parser.add_argument("--threads", type=int, default=1, help="users learnt side by side")
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data", help="public logs")
    parser.add_argument("--into", type=Path, default=PAGE, help="page to write")
    given = parser.parse_args()
    if wrong := foreign(Path(morpheus.__file__).parent):
        parser.error(wrong)
    rivals = [word.strip() for word in given.rivals.split(",") if word.strip()]
    if unknown := set(rivals) - set(RIVALS):
        parser.error(f"--rivals: there is no {', '.join(sorted(unknown))}; there are {words}")
    run = Run(given.data, given.seeds, given.quick, rivals, given.threads)
    page = Page(given.into, HEAD + meanings(), TITLES)
    kind = f"{'Quick run' if given.quick else 'Run'}, {given.seeds} seeds"
    for part in given.only or PARTS:
        page.measure(part, partial(PARTS[part], run), kind)


def foreign(package: Path) -> str | None:
    """Why a package must not be measured here; None for this checkout's own."""
    if package.is_relative_to(ROOT):
        return None
    return (
        f"morpheus is that of `{package}`, not of this checkout, whose figures these would be. "
        "Set PYTHONPATH to this checkout's `src`."
    )


def meanings() -> str:
    """What the figures mean."""
    return "".join(f"- **{name}**: {meaning}.\n" for name, meaning in FIGURES.items())


if __name__ == "__main__":
    main()
