"""Demonstration: train a model per user, score new events, and explain the most unusual ones.

Runs the command of `000_all_users.ipynb` on the data in this folder. In addition, it saves the
fingerprints, explains the events with `explain`, and writes a report.
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
NUM_SHOWN = 10
WIDTH = 100
GROUP_PREFIX = "^(userIdentity|requestParameters|responseElements|tlsDetails)"

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
    """Run the first notebook's command, then show the result."""
    console = Console(width=WIDTH, highlight=False)
    console.print(Text(f"$ {COMMAND}", style="bold"), "")
    sys.stdout.flush()
    process = subprocess.run([morpheus_path(), *shlex.split(COMMAND)[1:]], cwd=HERE, check=False)  # noqa: S603 - our own command
    if process.returncode:
        sys.exit(process.returncode)
    events = add_zscore(pl.read_csv(HERE / OUTPUT, infer_schema=False))
    worst = most_unusual(events)
    console.print(
        "",
        make_table(worst),
        "",
        Text(escape_control(f"Reason for the first: {worst['reason'][0]}")),
        "",
    )
    console.print(Text(summarise(events)))


def morpheus_path() -> str:
    """Return the path of the `morpheus` command in the folder of this Python."""
    return str(Path(sys.executable).with_name("morpheus"))


def add_zscore(events: pl.DataFrame) -> pl.DataFrame:
    """Add the z-score: standard deviations above the mean of the event's own user."""
    score = pl.col(SCORE).cast(pl.Float64)
    z = (score - score.mean().over(USER)) / score.std().over(USER)
    return events.with_columns(score, z.alias("z"))


def most_unusual(events: pl.DataFrame) -> pl.DataFrame:
    """Return the most unusual events of all users."""
    return events.sort("z", descending=True, nulls_last=True, maintain_order=True).head(NUM_SHOWN)


def make_table(events: pl.DataFrame) -> Table:
    """Make a table of events and the columns that explain them."""
    result = Table(title="The most unusual events", title_justify="left", box=None, padding=(0, 1))
    for name in ("user", "time (UTC)", "event"):
        result.add_column(name)
    for name in ("z", "score"):
        result.add_column(name, justify="right")
    result.add_column("most unusual columns")
    for event in events.iter_rows(named=True):
        result.add_row(*(Text(escape_control(cell)) for cell in make_cells(event)))
    return result


def make_cells(event: dict[str, Any]) -> Sequence[str]:
    """Return the user, time, event name, z-score, score and columns.

    Prefixes of CloudTrail's groups are removed: `accessKeyId` for `userIdentityaccessKeyId`.
    """
    columns = (event["top_columns"] or "").split(", ")
    return (
        event[USER],
        event["eventTime"][:16].replace("T", " "),
        event["eventName"],
        f"{event['z']:.1f}",
        f"{event[SCORE]:.2f}",
        ", ".join(re.sub(GROUP_PREFIX, "", name) for name in columns),
    )


def summarise(events: pl.DataFrame) -> str:
    """Return where the output files are, and what to do next."""
    flagged = events.filter(pl.col("ts_anomaly") == "True")
    users = ", ".join(sorted(set(flagged[USER])))
    return escape_control(
        f"Time-series anomalies: {len(flagged)} events ({users or 'no user'}).\n"
        f"All events with their scores: examples/{OUTPUT}\n"
        f"Fingerprints:                 examples/{MODELS}\n"
        f"Report, for a browser:        examples/{REPORT}\n"
        "Next: read examples/000_all_users.ipynb, or run the command on your own logs.\n"
        "--input_glob and --train_data_glob also accept CloudTrail's .json.gz files.",
        keep="\n",
    )


if __name__ == "__main__":
    main()
