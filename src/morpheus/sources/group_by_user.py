"""Who is in the events read so far: enough to plan by, and small."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import polars as pl

from morpheus.columns import INDEX, ROW, TIME
from morpheus.core.batch import Events, ReadStats
from morpheus.features.encoder import DictionaryEncoder, EncodedSlice

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


def rank_users(
    events: UserStats, history: UserStats | None, *, include_history_only: bool
) -> pl.DataFrame:
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


def plan_partitions(
    events: UserStats, history: UserStats | None, max_cells: int, *, include_history_only: bool
) -> pl.DataFrame:
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
    parts = bin_pack(
        users[NUM_EVENTS].to_list(), size, first_capacity=size // FIRST_PARTITION_DIVISOR
    )
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


REPLAY_NO = "_copy_"
"""Which repetition of its file a row is; only there while events are gathered."""
UUID_PATTERN = "^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$"
"""Ids that no two events have. Others may be numbers that begin anew in each file."""
_MAX_SEEN_KEYS = 250_000
"""Event keys that are remembered of a user."""
DIGEST, DIGEST_SIZE = "digest", 16
_POSITION = "_at_"
_EVENT_KEY = "_key_"


@dataclass(frozen=True)
class EventKey:
    """What tells whose event it is, and that two records are one event.

    Attributes:
        user_column: Column of the user.
        id_column: Column of the event's id; empty for none.
        account_columns: Columns of the account in which the id is one; the first that has a value.
        id_pattern: What an id looks like; any other value is none.
    """

    user_column: str
    id_column: str
    account_columns: tuple[str, ...] = ()
    id_pattern: str = UUID_PATTERN

    @property
    def columns(self) -> frozenset[str]:
        """All that is looked at."""
        return frozenset({self.user_column, self.id_column, REPLAY_NO, TIME, *self.account_columns})


@dataclass
class DedupWindow:
    """The events of earlier reads, by which a later delivery of one is recognised.

    It keeps 16-byte digests, not the keys themselves, so that it can be saved.

    Attributes:
        possible_duplicates: Hashes of the keys to remember, all of them; None to remember every
            key, at most the latest 250,000 of each user.
        seen_events: `USER`, `TIME` and `DIGEST` of each event; None before the first.
    """

    possible_duplicates: pl.Series | None = None
    seen_events: pl.DataFrame | None = None

    def update(self, users: pl.Series, times: pl.Series, keys: pl.Series) -> pl.Series:
        """Find events of earlier calls, and remember the others.

        Args:
            users: The user of each event.
            times: The time of each event.
            keys: The key of each event; null for an event that has none.

        Returns:
            Whether an earlier call had the event.
        """
        keyed = keys.is_not_null()
        if self.possible_duplicates is not None:
            hashes = keys.hash()
            keyed &= hashes.is_in(self.possible_duplicates.implode())
        rows = keyed.arg_true()
        events = pl.DataFrame(
            {
                USER: users.gather(rows),
                TIME: times.gather(rows),
                DIGEST: _compute_digests(keys.gather(rows)),
            }
        )
        seen = pl.repeat(False, len(keys), dtype=pl.Boolean, eager=True)  # noqa: FBT003 - polars' own order of arguments
        if self.seen_events is not None:
            known = events[DIGEST].is_in(self.seen_events[DIGEST].implode())
            seen = seen.scatter(rows.filter(known), True)  # noqa: FBT003 - as above
            events = events.filter(~known)
        self._remember(events.unique(DIGEST, keep="first", maintain_order=True))
        return seen

    def _remember(self, events: pl.DataFrame) -> None:
        known = events if self.seen_events is None else pl.concat([self.seen_events, events])
        if self.possible_duplicates is None and known.height > _MAX_SEEN_KEYS:
            known = known.sort(USER, TIME, DIGEST)
            later = pl.int_range(pl.len()).reverse().over(USER)
            known = known.filter(later < _MAX_SEEN_KEYS)
        self.seen_events = known


def _compute_digests(keys: pl.Series) -> pl.Series:
    # Stable from release to release, which the hash of Polars is not.
    digests = [blake2b(key.encode(), digest_size=DIGEST_SIZE).digest() for key in keys]
    return pl.Series(DIGEST, digests, dtype=pl.Binary)


@dataclass
class UserGroups:
    """Events in order, to be taken user by user; an event without a user is of user None.

    Attributes:
        frame: The events.
        row_ranges: The first of each user's rows, and how many there are.
        feature_columns: The columns that will be encoded.
    """

    frame: pl.DataFrame
    row_ranges: dict[str | None, tuple[int, int]]
    feature_columns: Sequence[str] = ()

    @classmethod
    def from_frame(
        cls,
        frame: pl.DataFrame,
        users: pl.DataFrame,
        event_key: EventKey,
        stats: ReadStats,
        dedup_windows: Sequence[DedupWindow] = (),
    ) -> UserGroups:
        """Order events by user, then time, then index, then what they say; each once.

        Args:
            frame: All events of some users, in any order.
            users: `USER` and `USER_RANK` of each of these.
            event_key: The columns that tell users and events apart.
            stats: Counts duplicates.
            dedup_windows: Events of earlier reads, which count as duplicates; updated.
        """
        names = frame.select(pl.col(event_key.user_column).alias(USER))
        ranks = names.join(users, on=USER, how="left", nulls_equal=True, maintain_order="left")
        frame = frame.with_columns(ranks[USER_RANK])
        order = _sort_rows(frame, event_key.id_column)
        again = _find_duplicates(frame, order, event_key, dedup_windows)
        if again is not None:
            stats.duplicates += int(again.sum())
            order = order.filter(~again)
        runs = frame[USER_RANK].gather(order).rle().struct.unnest()
        ends = runs["len"].cum_sum()
        known = dict(users.select(USER_RANK, USER).iter_rows())
        spans = {
            known[rank]: (end - length, length)
            for rank, end, length in zip(runs["value"], ends, runs["len"], strict=True)
        }
        return cls(frame.drop(USER_RANK, REPLAY_NO, strict=False)[order], spans)

    def take(self, user: str | None, first_row: int = 0) -> pl.DataFrame:
        """A user's events, numbered from `start`."""
        frame = self.frame.slice(*self.row_ranges.get(user, (0, 0)))
        numbers = pl.int_range(first_row, first_row + frame.height, dtype=pl.Int64, eager=True)
        return frame.insert_column(0, numbers.alias(ROW))


def _sort_rows(frame: pl.DataFrame, event_id: str) -> pl.Series:
    """Positions of the rows in their total order."""
    keys = (
        frame.select(USER_RANK, TIME, INDEX).with_row_index(_POSITION).sort(USER_RANK, TIME, INDEX)
    )
    same = pl.all_horizontal(
        pl.col(name) == pl.col(name).shift() for name in (USER_RANK, TIME, INDEX)
    )
    after = keys.select(same.alias("after")).to_series().fill_null(value=False)
    order = keys[_POSITION]
    if not after.any():
        return order
    tied = (after | after.shift(-1, fill_value=False)).arg_true()
    rows = order.gather(tied)
    names = sorted(frame.columns, key=lambda name: (name != event_id, name))
    rest = [name for name in names if name not in {USER_RANK, TIME, INDEX}]
    sorted_rows = frame[rows].with_columns(rows).sort(USER_RANK, TIME, INDEX, *rest)[_POSITION]
    return order.scatter(tied, sorted_rows)


def _find_duplicates(
    frame: pl.DataFrame,
    order: pl.Series,
    event_key: EventKey,
    dedup_windows: Sequence[DedupWindow],
) -> pl.Series | None:
    """Which rows, in that order, are events seen before; None for none."""
    if event_key.id_column not in frame.columns:
        return None
    if not dedup_windows:
        # Where all hashes differ, so do all ids; this is quicker to see.
        ids = frame[event_key.id_column].drop_nulls()
        if ids.hash().n_unique() == len(ids):
            return None
    keys = compute_event_keys(frame, event_key).gather(order)
    again = ~keys.is_first_distinct()
    for window in dedup_windows:
        users, times = (frame[name].gather(order) for name in (event_key.user_column, TIME))
        again |= window.update(users, times, keys)
    return again & keys.is_not_null()


def compute_event_keys(frame: pl.DataFrame, event_key: EventKey) -> pl.Series:
    """What is equal for two deliveries of one event; null for an event without an id of its own."""
    accounts = [pl.col(name) for name in event_key.account_columns if name in frame.columns]
    account = pl.coalesce([*accounts, pl.lit("")])
    copy = pl.col(REPLAY_NO).cast(pl.String) if REPLAY_NO in frame.columns else pl.lit("0")
    user = pl.coalesce(pl.lit("=") + pl.col(event_key.user_column), pl.lit("-"))
    own = pl.col(event_key.id_column).str.contains(event_key.id_pattern)
    key = pl.concat_str(event_key.id_column, account, copy, user, separator=" ")
    return frame.select(pl.when(own).then(key).alias(_EVENT_KEY)).to_series()


def iter_batches(
    users: pl.DataFrame,
    events: UserGroups,
    history: UserGroups | None,
    *,
    batch_size: int,
    row_offsets: Counter[str | None] | None = None,
    history_given: set[str | None] | None = None,
) -> Iterator[Events]:
    """Hand out events user after user, with the history of each.

    Args:
        users: `USER` of each, in order.
        events: What is to be scored.
        history: What is to be learnt from, with the same columns; None for nothing.
        batch_size: Rows of a batch, at most.
        row_offsets: Rows handed out so far, by user; counted on. None for no rows yet.
        history_given: Users whose history was handed out before; added to. None for nobody.
    """
    row_offsets = Counter() if row_offsets is None else row_offsets
    history_given = set() if history_given is None else history_given
    dictionary = DictionaryEncoder(events.frame, events.feature_columns)
    for user in users[USER]:
        past = None
        if history is not None:
            past = history.take(None if user in history_given else user)
            history_given.add(user)
        frame = events.take(user, row_offsets[user])
        row_offsets[user] += frame.height
        if not frame.height and not (past is not None and past.height):
            continue
        begin, _ = events.row_ranges.get(user, (0, 0))
        for start in range(0, frame.height or 1, batch_size):
            batch = frame if frame.height <= batch_size else frame.slice(start, batch_size)
            excerpt = EncodedSlice(batch, dictionary, begin + start)
            yield Events(user=user, frame=batch, history=past, dict_codes=excerpt)
            past = None
