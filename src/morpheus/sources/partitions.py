"""Columns that stand in the folders' names: Hive's partitions, `user=ann/date=2024-05-31/`."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import unquote

import polars as pl

from morpheus.sources.files import Log
from morpheus.sources.flatten import flat

NOTHING = "__HIVE_DEFAULT_PARTITION__"
"""What a folder is called whose rows have no value."""


def partitions(path: Log, dropped: str = "") -> dict[str, str | None]:
    """The columns that a file's folders name, and its value in each.

    Args:
        path: The file.
        dropped: Characters left out of names.

    >>> from pathlib import Path
    >>> partitions(Path("lake/user=a%2Fb/date=2024-05-31/0.parquet"))
    {'user': 'a/b', 'date': '2024-05-31'}
    """
    cut = (folder.partition("=") for folder in path.parts[:-1] if "=" in folder)
    named = ((name, unquote(value)) for name, _, value in cut if name and value)
    return {flat(name, dropped): None if value == NOTHING else value for name, value in named}


def with_partitions(
    frame: pl.DataFrame, files: Sequence[tuple[Log, int]], dropped: str, *, add: bool
) -> pl.DataFrame:
    """Fill in what only folders tell.

    Args:
        frame: Rows of some files, one behind the other.
        files: The files, and how many of the rows each has.
        dropped: Characters left out of names.
        add: Also add columns that the rows do not have.
    """
    found = [(partitions(path, dropped), rows) for path, rows in files]
    for name in dict.fromkeys(name for values, _ in found for name in values):
        if add or name in frame.columns:
            told = [
                pl.repeat(values.get(name), n, dtype=pl.String, eager=True) for values, n in found
            ]
            frame = frame.with_columns(_first(frame, name, pl.concat(told)))
    return frame


def _first(frame: pl.DataFrame, name: str, told: pl.Series) -> pl.Series:
    """What rows say themselves, and else what their folders tell."""
    if name not in frame.columns:
        return told.alias(name)
    own = frame[name]
    return own.zip_with(own.is_not_null(), told).alias(name)
