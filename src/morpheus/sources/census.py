"""Who is in the events read so far: enough to plan by, and small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from morpheus.columns import INDEX, TIME

USER, USER_RANK, PARTITION, NUM_EVENTS = "user", "_rank_", "part", "rows"
_USER_STATS_SCHEMA: dict[str, Any] = {
    USER: pl.String,
    "first": pl.Datetime("us", "UTC"),
    "index": pl.Int64,
    "last": pl.Datetime("us", "UTC"),
    NUM_EVENTS: pl.Int64,
}
_MAX_UNMERGED_ROWS = 1 << 18
FIRST_PARTITION_DIVISOR = 16
"""The first part is so many times smaller than the others."""


@dataclass
class UserStats:
    """What is known of the events read so far.

    Attributes:
        users: A row a user: time and index of the first event, time of the last, and how many.
        headers: The different lists of columns that they came in.
        non_null_columns: The columns in which any event has a value, be it one that was not kept.
    """

    users: pl.DataFrame
    headers: frozenset[tuple[str, ...]] = frozenset()
    non_null_columns: frozenset[str] = frozenset()

    @classmethod
    def empty(cls) -> UserStats:
        """Before the first event."""
        return cls(pl.DataFrame(schema=_USER_STATS_SCHEMA))

    @classmethod
    def from_frame(cls, frame: pl.DataFrame, user: str) -> UserStats:
        """Look at some events."""
        seen = frame.select(pl.col(user).alias(USER), INDEX, TIME).sort(TIME, INDEX)
        users = seen.group_by(USER).agg(
            pl.col(TIME).first().alias("first"),
            pl.col(INDEX).first().alias("index"),
            pl.col(TIME).last().alias("last"),
            pl.len().cast(pl.Int64).alias(NUM_EVENTS),
        )
        return cls(users, frozenset([tuple(frame.columns)]), find_non_null_columns(frame))

    def add(self, other: UserStats) -> None:
        """Add what is known of other events."""
        self.users = pl.concat([self.users, other.users])
        self.headers |= other.headers
        self.non_null_columns |= other.non_null_columns
        if self.users.height > _MAX_UNMERGED_ROWS:
            self.users = self.merge_users().rechunk()

    def merge_users(self) -> pl.DataFrame:
        """One row a user."""
        ordered = self.users.sort("first", "index")
        return ordered.group_by(USER, maintain_order=True).agg(
            pl.col("first", "index").first(), pl.col("last").max(), pl.col(NUM_EVENTS).sum()
        )

    @property
    def num_events(self) -> int:
        """How many events."""
        return int(self.users[NUM_EVENTS].sum())

    @property
    def num_columns(self) -> int:
        """The columns that have a value, which are what takes room; at least one."""
        return max(1, len(self.non_null_columns))


def find_non_null_columns(frame: pl.DataFrame) -> frozenset[str]:
    """The columns that have a value."""
    return frozenset(column.name for column in frame if column.null_count() < frame.height)


def drop_null_columns(frame: pl.DataFrame, user: str) -> pl.DataFrame:
    """Some events without the columns that have no value; those that are always asked for stay."""
    kept = find_non_null_columns(frame) | {INDEX, TIME, user}
    return frame.select(name for name in frame.columns if name in kept)


def rank_users(events: UserStats, history: UserStats | None, *, include_history_only: bool) -> pl.DataFrame:
    """Give each user a rank.

    Users come by the time and index of their first event, then by name; then, by name, those who
    only have history.

    Args:
        events: Whose events come.
        history: Whose history there is.
        include_history_only: Whether users who only have history come too.

    Returns:
        `USER`, `USER_RANK` and `NUM_EVENTS`, history included, of each, in the order of ranks.
    """
    users = events.merge_users().sort("first", "index", USER).select(USER, NUM_EVENTS)
    if history is not None:
        past = history.merge_users().select(USER, past=NUM_EVENTS)
        others = past.join(users, on=USER, how="anti").sort(USER)
        users = users.join(past, on=USER, how="left", maintain_order="left")
        users = pl.concat([users, others] if include_history_only else [users], how="diagonal")
        users = users.select(USER, pl.sum_horizontal(NUM_EVENTS, "past").alias(NUM_EVENTS))
    return users.with_row_index(USER_RANK).select(USER, USER_RANK, NUM_EVENTS)


def plan_partitions(events: UserStats, history: UserStats | None, max_cells: int, *, include_history_only: bool) -> pl.DataFrame:
    """Give each user a rank, and a part of the events that is handled at once.

    Parts follow the ranks, so that one part after the other gives the users in order.

    Args:
        events: Whose events come.
        history: Whose history there is.
        max_cells: Cells that a part has at most, and the first a fraction of them, so that something
            comes out soon; a user is in one part, and one who has more cells is alone in it.
        include_history_only: Whether users who only have history come too.

    Returns:
        `USER`, `USER_RANK`, `MIN_CONTEXT_SHARE` and `NUM_EVENTS` of each, in the order of ranks.
    """
    users = rank_users(events, history, include_history_only=include_history_only)
    width = max(events.num_columns, 1 if history is None else history.num_columns)
    size = max(1, max_cells // width)
    parts = bin_pack(users[NUM_EVENTS].to_list(), size, first_capacity=size // FIRST_PARTITION_DIVISOR)
    return users.with_columns(pl.Series(PARTITION, parts, dtype=pl.Int64))


def bin_pack(weights: Sequence[int], capacity: int, first_capacity: int | None = None) -> list[int]:
    """The part of each of some weights, in their order.

    Args:
        weights: What each weighs.
        capacity: What a part weighs at most, but for a weight that is larger alone.
        first_capacity: What the first part weighs at most, if less.

    >>> bin_pack([5, 900, 7, 7, 1], room=14)
    [0, 1, 2, 2, 3]
    """
    parts, part, load = [], 0, 0
    most = capacity if first_capacity is None else first_capacity
    for weight in weights:
        if load and load + weight > most:
            part, load, most = part + 1, 0, capacity
        load += weight
        parts.append(part)
    return parts
