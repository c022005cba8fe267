"""Logs of made-up companies, written once per run."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import polars as pl

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from generator.fleet import Fleet
from make_fleet import Writer

from morpheus.columns import TIME
from morpheus.core.stage import read_lines

USER = "userIdentitysessionContextsessionIssueruserName"
COLUMNS = read_lines("columns_ae_cloudtrail.txt", option="--columns_file")


@dataclass(frozen=True)
class Logs:
    """A fleet on disk.

    Attributes:
        folder: Folder of the logs.
        training: Number of training events.
        scored: Number of events to score.
    """

    folder: Path
    training: int
    scored: int

    @cached_property
    def history(self) -> pl.DataFrame:
        """All training events, flattened, by time."""
        return read(self.folder / "parquet/training")

    @cached_property
    def later(self) -> pl.DataFrame:
        """All events to score, flattened, by time."""
        return read(self.folder / "parquet/scored")

    @cached_property
    def labels(self) -> dict[str, str]:
        """The kind of incident of each labelled event."""
        with (self.folder / "labels.csv").open(encoding="utf-8", newline="") as lines:
            return {row["eventID"]: row["kind"] for row in csv.DictReader(lines)}


def read(folder: Path) -> pl.DataFrame:
    """Return flattened events with their time."""
    frame = pl.read_parquet(folder / "*.parquet").sort("eventTime", maintain_order=True)
    return frame.with_columns(pl.col("eventTime").str.to_datetime(time_zone="UTC").alias(TIME))


@cache
def fleet(  # noqa: PLR0913 - what a fleet depends on
    scratch: Path,
    users: int,
    *,
    rate: float = 22.0,
    attacked: float = 0.2,
    copies: int = 1,
    forms: tuple[str, ...] = ("json", "parquet"),
) -> Logs:
    """Write a fleet, unless an earlier run has written it."""
    folder = scratch / f"fleet-{users}-{rate}-{attacked}-{copies}-{'-'.join(forms)}"
    counts = folder / "counts.json"
    if not counts.exists():
        writer = Writer(Fleet(users, rate=rate, attacked=attacked), folder, forms, copies)
        writer.write()
        counts.write_text(json.dumps(writer.events), encoding="utf-8")
    events = json.loads(counts.read_text(encoding="utf-8"))
    return Logs(folder, events["training"], events["scored"])
