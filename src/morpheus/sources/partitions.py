"""Columns that stand in the folders' names: Hive's partitions, `user=ann/date=2024-05-31/`."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import unquote

import polars as pl

from morpheus.sources.files import LogPath
from morpheus.sources.flatten import flatten_name

HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
"""What a folder is called whose rows have no value."""


def parse_hive_partitions(path: LogPath, drop_characters: str = "") -> dict[str, str | None]:
    """The columns that a file's folders name, and its value in each.

    Args:
        path: The file.
        drop_characters: Characters left out of names.

    >>> from pathlib import Path
    >>> parse_hive_partitions(Path("lake/user=a%2Fb/date=2024-05-31/0.parquet"))
    {'user': 'a/b', 'date': '2024-05-31'}
    """
    cut = (folder.partition("=") for folder in path.parts[:-1] if "=" in folder)
    named = ((name, unquote(value)) for name, _, value in cut if name and value)
    return {flatten_name(name, drop_characters): None if value == HIVE_NULL else value for name, value in named}


def add_partition_columns(
    frame: pl.DataFrame, files: Sequence[tuple[LogPath, int]], drop_characters: str, *, add_missing: bool
) -> pl.DataFrame:
    """Fill in what only folders tell.

    Args:
        frame: Rows of some files, one behind the other.
        files: The files, and how many of the rows each has.
        drop_characters: Characters left out of names.
        add_missing: Also add columns that the rows do not have.
    """
    found = [(parse_hive_partitions(path, drop_characters), rows) for path, rows in files]
    for name in dict.fromkeys(name for values, _ in found for name in values):
        if add_missing or name in frame.columns:
            told = [
                pl.repeat(values.get(name), n, dtype=pl.String, eager=True) for values, n in found
            ]
            frame = frame.with_columns(_fill_from_partition(frame, name, pl.concat(told)))
    return frame


def _fill_from_partition(frame: pl.DataFrame, name: str, partition_values: pl.Series) -> pl.Series:
    """What rows say themselves, and else what their folders tell."""
    if name not in frame.columns:
        return partition_values.alias(name)
    own = frame[name]
    return own.zip_with(own.is_not_null(), partition_values).alias(name)
