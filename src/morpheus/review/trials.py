"""What `morpheus tools replay` wrote of each trial, read again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl
from polars.exceptions import PolarsError

from morpheus.errors import UsageError
from morpheus.report.rehearsed import Rehearsed

COLUMNS = ("technique", "user", "grade", "caught")


def rehearsed(path: Path) -> Mapping[str | None, Rehearsed]:
    """Read trials, by user.

    Raises:
        UsageError: It is no such file.
    """
    try:
        trials = _read(path).select(COLUMNS).cast(pl.String)
    except (PolarsError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise UsageError(
            f"--replay: `{path}` cannot be read: {reason}. Give the file that "
            "`morpheus tools replay --filename=trials.csv` wrote."
        ) from error
    placed = trials.filter(pl.col("caught").is_not_null())
    return {user: _of_user(rows) for (user,), rows in placed.group_by("user", maintain_order=True)}


def _read(path: Path) -> pl.DataFrame:
    if path.suffix.lower() == ".json":
        return pl.read_ndjson(path, infer_schema_length=None)
    return pl.read_csv(path, infer_schema=False)


def _of_user(trials: pl.DataFrame) -> Rehearsed:
    missed: dict[str, list[str]] = {}
    for technique, _, grade, caught in trials.iter_rows():
        if caught.lower() != "true":
            missed.setdefault(technique, []).append(grade)
    tried = trials["technique"].n_unique()
    return Rehearsed(tried, {technique: tuple(grades) for technique, grades in missed.items()})
