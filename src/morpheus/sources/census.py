"""Who is in the events read so far: enough to plan by, and small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from morpheus.columns import INDEX, TIME

USER, RANK, PART, ROWS = "user", "_rank_", "part", "rows"
_SCHEMA: dict[str, Any] = {
    USER: pl.String,
    "first": pl.Datetime("us", "UTC"),
    "index": pl.Int64,
    "last": pl.Datetime("us", "UTC"),
    ROWS: pl.Int64,
}
_MANY = 1 << 18
FIRST = 16
"""The first part is so many times smaller than the others."""


@dataclass
class Census:
    """What is known of the events read so far.

    Attributes:
        users: A row a user: time and index of the first event, time of the last, and how many.
        headers: The different lists of columns that they came in.
        filled: The columns in which any event has a value, be it one that was not kept.
    """

    users: pl.DataFrame
    headers: frozenset[tuple[str, ...]] = frozenset()
    filled: frozenset[str] = frozenset()

    @classmethod
    def nobody(cls) -> Census:
        """Before the first event."""
        return cls(pl.DataFrame(schema=_SCHEMA))

    @classmethod
    def of(cls, frame: pl.DataFrame, user: str) -> Census:
        """Look at some events."""
        seen = frame.select(pl.col(user).alias(USER), INDEX, TIME).sort(TIME, INDEX)
        users = seen.group_by(USER).agg(
            pl.col(TIME).first().alias("first"),
            pl.col(INDEX).first().alias("index"),
            pl.col(TIME).last().alias("last"),
            pl.len().cast(pl.Int64).alias(ROWS),
        )
        return cls(users, frozenset([tuple(frame.columns)]), filled(frame))

    def add(self, other: Census) -> None:
        """Add what is known of other events."""
        self.users = pl.concat([self.users, other.users])
        self.headers |= other.headers
        self.filled |= other.filled
        if self.users.height > _MANY:
            self.users = self.merged().rechunk()

    def merged(self) -> pl.DataFrame:
        """One row a user."""
        ordered = self.users.sort("first", "index")
        return ordered.group_by(USER, maintain_order=True).agg(
            pl.col("first", "index").first(), pl.col("last").max(), pl.col(ROWS).sum()
        )

    @property
    def rows(self) -> int:
        """How many events."""
        return int(self.users[ROWS].sum())

    @property
    def width(self) -> int:
        """The columns that have a value, which are what takes room; at least one."""
        return max(1, len(self.filled))


def filled(frame: pl.DataFrame) -> frozenset[str]:
    """The columns that have a value."""
    return frozenset(column.name for column in frame if column.null_count() < frame.height)


def with_values(frame: pl.DataFrame, user: str) -> pl.DataFrame:
    """Some events without the columns that have no value; those that are always asked for stay."""
    kept = filled(frame) | {INDEX, TIME, user}
    return frame.select(name for name in frame.columns if name in kept)


def ranked(events: Census, history: Census | None, *, last: bool) -> pl.DataFrame:
    """Give each user a rank.

    Users come by the time and index of their first event, then by name; then, by name, those who
    only have history.

    Args:
        events: Whose events come.
        history: Whose history there is.
        last: Whether users who only have history come too.

    Returns:
        `USER`, `RANK` and `ROWS`, history included, of each, in the order of ranks.
    """
    users = events.merged().sort("first", "index", USER).select(USER, ROWS)
    if history is not None:
        past = history.merged().select(USER, past=ROWS)
        others = past.join(users, on=USER, how="anti").sort(USER)
        users = users.join(past, on=USER, how="left", maintain_order="left")
        users = pl.concat([users, others] if last else [users], how="diagonal")
        users = users.select(USER, pl.sum_horizontal(ROWS, "past").alias(ROWS))
    return users.with_row_index(RANK).select(USER, RANK, ROWS)


def plan(events: Census, history: Census | None, room: int, *, last: bool) -> pl.DataFrame:
    """Give each user a rank, and a part of the events that is handled at once.

    Parts follow the ranks, so that one part after the other gives the users in order.

    Args:
        events: Whose events come.
        history: Whose history there is.
        room: Cells that a part has at most, and the first a fraction of them, so that something
            comes out soon; a user is in one part, and one who has more cells is alone in it.
        last: Whether users who only have history come too.

    Returns:
        `USER`, `RANK`, `PART` and `ROWS` of each, in the order of ranks.
    """
    users = ranked(events, history, last=last)
    width = max(events.width, 1 if history is None else history.width)
    size = max(1, room // width)
    parts = parted(users[ROWS].to_list(), size, first=size // FIRST)
    return users.with_columns(pl.Series(PART, parts, dtype=pl.Int64))


def parted(weights: Sequence[int], room: int, first: int | None = None) -> list[int]:
    """The part of each of some weights, in their order.

    Args:
        weights: What each weighs.
        room: What a part weighs at most, but for a weight that is larger alone.
        first: What the first part weighs at most, if less.

    >>> parted([5, 900, 7, 7, 1], room=14)
    [0, 1, 2, 2, 3]
    """
    parts, part, load = [], 0, 0
    most = room if first is None else first
    for weight in weights:
        if load and load + weight > most:
            part, load, most = part + 1, 0, room
        load += weight
        parts.append(part)
    return parts
