"""A made-up company: fifty members, sixty days, nine kinds of incidents in the last eighteen."""

from __future__ import annotations

import csv
import sys
import tempfile
from pathlib import Path

import polars as pl

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from generator.fleet import Fleet
from make_fleet import Writer

from morpheus.core.stage import read_lines
from quality.trial import EVENT, WHEN, Trial

USER = "userIdentitysessionContextsessionIssueruserName"
COLUMNS = read_lines("columns_ae_cloudtrail.txt", option="--columns_file")
CHOOSING, PRINTED = range(1, 6), range(11, 16)
"""Seeds of the companies for choosing settings, and of those in the tables."""


def trial(seed: int, users: int = 50, **options: float) -> Trial:
    """Generate a company.

    Args:
        seed: Random seed.
        users: Number of members.
        options: Other fields of `generator.fleet.Fleet`: `days`, `training`, `rate`, `attacked`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        Writer(Fleet(users, seed=seed, **options), folder, ("parquet",)).write()  # type: ignore[arg-type]  # days are integers
        history, scored = (read(folder / "parquet" / part) for part in ("training", "scored"))
        with (folder / "labels.csv").open(encoding="utf-8", newline="") as lines:
            labels = list(csv.DictReader(lines))
    incidents = {row["eventID"]: int(row["incident"]) for row in labels}
    kinds = {int(row["incident"]): row["kind"] for row in labels}
    columns = tuple(name for name in COLUMNS if name in history.columns)
    return Trial(f"fleet {seed}", USER, columns, history, scored, incidents, kinds)


def read(folder: Path) -> pl.DataFrame:
    """Return flattened events, by user, then time."""
    return pl.read_parquet(folder / "*.parquet").sort(USER, WHEN, EVENT, maintain_order=True)
