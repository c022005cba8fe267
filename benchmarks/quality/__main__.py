"""Measure detection quality: `python benchmarks/quality [--quick] [--only PART]`.

Prints tables and writes them to docs/quality.md. Sections of parts that do not run are kept.
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
from quality.sets import KINDS  # noqa: E402 - the same

PAGE = ROOT / "docs" / "quality.md"
TITLES = {
    "protocol": "All sets: ranks of all scores",
    "commits": "Commits: from a date on, a colleague commits as the user",
    "console": "Console sessions: recorded techniques at three evasion levels",
    "fleet": "Made-up companies: incidents of nine kinds",
    "lessons": "The lessons' data: one intruder in one night",
    "reference": "The reference autoencoder",
    "alerts": "The alert budget: expected and actual alerts",
    "bursts": "Bursts: what `timeseries` finds",
    "reasons": "Explanations of detected incidents",
    "risk": "What each part of `risk` contributes",
    "poison": "Slow poisoners: rules of retraining",
}
HEAD = """# Detection quality

How well each score finds labelled incidents, compared with other detectors. Then: how good the
explanations and the alert budget are.

## Which score to use

| you want | use |
| --- | --- |
| one list of all users' events, most unusual first | `risk` |
| few alerts | `filter --alerts_per_day`: user-days by their highest `risk` |
| to rank or colour user-days | `incident_score`, or `severity` from 0 to 100 |
| a probability | `pvalue`: how many usual days of the user have such a risk |
| what the lessons show; one user; a log without days | `ae_anomaly_score` |
| bursts of usual events | `timeseries --detector=rate`, before `filter` |

**What is not seen.** Usual actions at usual hours from usual places, also if somebody else does
them. A single event that differs in nothing but its time, unless an hour is among the features. A
change on the first day of a user. Silence.

**Where we lose.** On the commits, an impostor who stays for weeks is learned in part; counting
frequencies with held-out z-scores ranks these events better. On the console sessions, one user
with nobody to compare with, the mean of a session by naive Bayes ranks events better; at one
alert a week, `incident_score` finds more. Days of the console sessions have low p-values too
often. In companies, summed frequencies rank days as well.

`make quality` (`python benchmarks/quality`) writes this page. Every detector gets the same rows
and columns, trains on the history only, and is evaluated by the same code. Settings were chosen on
other seeds: [how `risk` is computed](decisions/005-risk.md) says on which.

How to read the tables: figures are means over the seeds, ± their standard deviation. Without ±,
all seeds give the same figure. The best figure of a column is bold. The last row, "ahead of the
best rival", is our first score minus that of the best other detector in that column, seed by seed.

"""


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = make_parser()
    given = parser.parse_args()
    if wrong := foreign(Path(morpheus.__file__).parent):
        parser.error(wrong)
    rivals = [word.strip() for word in given.rivals.split(",") if word.strip()]
    if unknown := set(rivals) - set(RIVALS):
        words = ", ".join(RIVALS)
        parser.error(f"--rivals: unknown: {', '.join(sorted(unknown))}; choose from {words}")
    run = Run(
        given.data,
        given.seeds,
        given.quick,
        rivals,
        threads=given.threads,
        fleets=given.fleets,
        sets=given.sets or KINDS,
    )
    page = Page(given.into, HEAD + meanings(), TITLES)
    kind = f"{'Quick run' if given.quick else 'Run'}, {given.seeds} seeds"
    for part in given.only or PARTS:
        page.measure(part, partial(PARTS[part], run), kind)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description="Measure detection quality next to competitors.")
    parser.add_argument(
        "--only", choices=PARTS, action="append", help="part to run; can be repeated"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few users: about a minute")
    words = ", ".join(RIVALS)
    quick = ", ".join(word for word in RIVALS if word != "dfencoder")
    rivals_help = (
        f"comma-separated, of {words}; default: all except the slow one, which has its own part"
    )
    parser.add_argument("--rivals", default=quick, help=rivals_help)
    parser.add_argument("--threads", type=int, default=1, help="users trained in parallel")
    parser.add_argument(
        "--fleets", type=int, default=12, help="generated benign fleets of the part `alerts`"
    )
    parser.add_argument(
        "--sets",
        choices=KINDS,
        action="append",
        help="kind of data of the part `protocol`; can be repeated; default: all",
    )
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data", help="public logs")
    parser.add_argument("--into", type=Path, default=PAGE, help="page to write")
    return parser


def foreign(package: Path) -> str | None:
    """Return why this package cannot be measured; None if it is this checkout's."""
    if package.is_relative_to(ROOT):
        return None
    return (
        f"morpheus is that of `{package}`, not of this checkout, whose figures these would be. "
        "Set PYTHONPATH to this checkout's `src`."
    )


def meanings() -> str:
    """Return how to read the figures."""
    return "".join(f"- **{name}**: {meaning}.\n" for name, meaning in FIGURES.items())


if __name__ == "__main__":
    main()
