"""Show it happening: learn two users, score their newer events, say what is unusual and why.

Runs the command of `000_all_users.ipynb` on the data beside this file, saves the fingerprints as
well, has `explain` say which columns made the most unusual events so, and writes a report.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Table
from rich.text import Text

from morpheus.columns import SCORE
from morpheus.text import escape_control

HERE = Path(__file__).resolve().parent
OUTPUT, MODELS = "data/output/output.csv", "data/output/models"
REPORT = "data/output/report.html"
USER = "userIdentitysessionContextsessionIssueruserName"
SHOWN = 10
WIDTH = 100
GROUPS = "^(userIdentity|requestParameters|responseElements|tlsDetails)"

COMMAND = f"""\
morpheus run --num_threads=1
  pipeline-ae --userid_column_name={USER}
  from-cloudtrail --input_glob="data/input-data/*.csv"
  train-ae --train_data_glob="data/training-data/*.csv" --seed 42
           --models_output_filename="{MODELS}"
  preprocess
  inf-pytorch
  add-scores --label=ae_anomaly_score --label=risk --label=pvalue
  explain
  timeseries --resolution=10m --zscore_threshold=8.0
  serialize
  to-report --filename="{REPORT}" --overwrite --alerts_per_day=1
  to-file --filename="{OUTPUT}" --overwrite"""


def main() -> None:
    """Run the lesson's command, then show what it found."""
    console = Console(width=WIDTH, highlight=False)
    console.print(Text(f"$ {COMMAND}", style="bold"), "")
    sys.stdout.flush()
    done = subprocess.run([program(), *shlex.split(COMMAND)[1:]], cwd=HERE, check=False)  # noqa: S603 - our own command
    if done.returncode:
        sys.exit(done.returncode)
    events = with_z(pl.read_csv(HERE / OUTPUT, infer_schema=False))
    worst = unusual(events)
    console.print(
        "", table(worst), "", Text(escape_control(f"The first: {worst['reason'][0]}")), ""
    )
    console.print(Text(closing(events)))


def program() -> str:
    """The `morpheus` that is installed beside this Python."""
    return str(Path(sys.executable).with_name("morpheus"))


def with_z(events: pl.DataFrame) -> pl.DataFrame:
    """Add how many standard deviations each event lies above its own user's mean."""
    score = pl.col(SCORE).cast(pl.Float64)
    z = (score - score.mean().over(USER)) / score.std().over(USER)
    return events.with_columns(score, z.alias("z"))


def unusual(events: pl.DataFrame) -> pl.DataFrame:
    """The most unusual events, whoever they belong to."""
    return events.sort("z", descending=True, nulls_last=True, maintain_order=True).head(SHOWN)


def table(events: pl.DataFrame) -> Table:
    """Draw events with the columns that made them so."""
    drawn = Table(title="The most unusual events", title_justify="left", box=None, padding=(0, 1))
    for name in ("user", "time (UTC)", "event"):
        drawn.add_column(name)
    for name in ("z", "score"):
        drawn.add_column(name, justify="right")
    drawn.add_column("strangest columns")
    for event in events.iter_rows(named=True):
        drawn.add_row(*(Text(escape_control(cell)) for cell in cells(event)))
    return drawn


def cells(event: dict[str, Any]) -> Sequence[str]:
    """Say who, when, what, how unusual, and why.

    The groups that CloudTrail puts columns into are left out: `userAgent`, but `accessKeyId`
    for `userIdentityaccessKeyId`.
    """
    columns = (event["top_columns"] or "").split(", ")
    return (
        event[USER],
        event["eventTime"][:16].replace("T", " "),
        event["eventName"],
        f"{event['z']:.1f}",
        f"{event[SCORE]:.2f}",
        ", ".join(re.sub(GROUPS, "", name) for name in columns),
    )


def closing(events: pl.DataFrame) -> str:
    """Where everything lies, and what to do next."""
    flagged = events.filter(pl.col("ts_anomaly") == "True")
    who = ", ".join(sorted(set(flagged[USER])))
    return escape_control(
        f"Out of rhythm: {len(flagged)} events ({who or 'nobody'}).\n"
        f"All events with their scores: examples/{OUTPUT}\n"
        f"The fingerprints:             examples/{MODELS}\n"
        f"To look at in a browser:      examples/{REPORT}\n"
        "Next: read examples/000_all_users.ipynb, or point the command at your own logs:\n"
        "  --input_glob and --train_data_glob take CloudTrail's own .json.gz files too.",
        keep="\n",
    )


if __name__ == "__main__":
    main()
