"""The two users of the notebooks, and the eight calls of the intruder."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from quality import fleet
from quality.trial import EVENT, Trial

DATA = Path(__file__).parents[2] / "examples" / "data"
USERS = ("user123", "role-g")
INTRUDER = range(314, 322)
"""Rows of user123's input that are the intruder's, from 0."""


def trial() -> Trial:
    """Read the data of the notebooks."""
    history, scored = (
        pl.concat([read(DATA / part / f"{user}.csv") for user in USERS], how="diagonal")
        for part in ("training-data", "input-data")
    )
    intruder = scored.filter(pl.col(fleet.USER) == USERS[0])[EVENT][INTRUDER]
    columns = tuple(name for name in fleet.COLUMNS if name in history.columns)
    incidents = dict.fromkeys(intruder.to_list(), 0)
    return Trial("lessons", fleet.USER, columns, history, scored, incidents, {0: "intruder"})


def read(path: Path) -> pl.DataFrame:
    """Return a user's events, named after the user, because each file has its own numbers."""
    frame = pl.read_csv(path, infer_schema=False).drop("")
    return frame.with_columns(pl.format("{}-{}", pl.lit(path.stem), EVENT).alias(EVENT))
