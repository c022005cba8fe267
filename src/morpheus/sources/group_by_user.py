"""Groups events by user: statistics, ranks, partitions, order, deduplication and batches.

`UserStats` counts who is in the events while they are read. `plan_partitions` ranks the users and
divides them into partitions that fit into memory. `UserGroups` sorts the events of a partition and
drops duplicates, and `iter_batches` yields them one user at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import polars as pl

from morpheus.columns import INDEX, ROW, TIME
from morpheus.core.batch import Events, ReadStats, Table
from morpheus.features.encoder import DictionaryEncoder, EncodedSlice, number_within
from morpheus.sources.seen_events import DedupWindow

USER, USER_RANK, PARTITION, NUM_EVENTS = "user", "_rank_", "part", "rows"
"""Columns of frames with one row per user."""
_USER_STATS_SCHEMA: dict[str, Any] = {
    USER: pl.String,
    "first": pl.Datetime("us", "UTC"),
    "index": pl.Int64,
    "last": pl.Datetime("us", "UTC"),
    NUM_EVENTS: pl.Int64,
}
_MAX_CHUNKS = 256
"""Number of parts of a frame above which another one takes long to add."""
_MAX_UNMERGED_ROWS = 1 << 18
"""Rows of user statistics above which the rows of one user are merged."""
FIRST_PARTITION_DIVISOR = 16
"""The first partition is smaller by this factor, so that the first output comes early."""


class UserStats(msgspec.Struct):
    """Statistics of the events read so far, by user.

    Attributes:
        users: One or more rows per user: time and index of the first event, time of the last event,
            number of events.
        headers: The distinct column lists of the frames.
        non_null_columns: Columns with at least one value, including values of events that were
            filtered out.
        other_users: Users in the files, if `--userid_filter` or `--skip_user` leaves some out.
        value_counts: Number of events with a value, by column.
        actor_pairs: Number of sampled events by user and actor, if the user is not the actor.
        shared_records: Records of requests that several accounts log; see `EventKey.select_shared`.
        copied_columns: Columns that are not replaced by pseudonyms, and have values of those that
            are.
    """

    users: pl.DataFrame
    headers: frozenset[tuple[str, ...]] = frozenset()
    non_null_columns: frozenset[str] = frozenset()
    other_users: frozenset[str] = frozenset()
    value_counts: Counter[str] = msgspec.field(default_factory=Counter)
    actor_pairs: Counter[tuple[str, str]] = msgspec.field(default_factory=Counter)
    shared_records: list[pl.DataFrame] = msgspec.field(default_factory=list)
    copied_columns: frozenset[str] = frozenset()

    @classmethod
    def empty(cls) -> UserStats:
        """Return the statistics of no events."""
        return cls(pl.DataFrame(schema=_USER_STATS_SCHEMA))

    @classmethod
    def from_frame(cls, frame: pl.DataFrame, user: str) -> UserStats:
        """Count the events of a frame.

        Args:
            frame: The events.
            user: Name of the user column.
        """
        seen = frame.select(pl.col(user).alias(USER), INDEX, TIME).sort(TIME, INDEX)
        users = seen.group_by(USER).agg(
            pl.col(TIME).first().alias("first"),
            pl.col(INDEX).first().alias("index"),
            pl.col(TIME).last().alias("last"),
            pl.len().cast(pl.Int64).alias(NUM_EVENTS),
        )
        counts = Counter({each.name: frame.height - each.null_count() for each in frame})
        filled = frozenset(name for name, count in counts.items() if count)
        return cls(users, frozenset([tuple(frame.columns)]), filled, value_counts=counts)

    def add(self, other: UserStats) -> None:
        """Add the statistics of other events."""
        self.users = pl.concat([self.users, other.users])
        self.headers |= other.headers
        self.non_null_columns |= other.non_null_columns
        self.other_users |= other.other_users
        self.copied_columns |= other.copied_columns
        self.value_counts.update(other.value_counts)
        self.actor_pairs.update(other.actor_pairs)
        self.shared_records += other.shared_records
        if self.users.height > _MAX_UNMERGED_ROWS:
            self.users = self.merge_users().rechunk()
        elif self.users.n_chunks() > _MAX_CHUNKS:
            self.users = self.users.rechunk()

    def merge_users(self) -> pl.DataFrame:
        """Return `users` with one row per user."""
        ordered = self.users.sort("first", "index")
        return ordered.group_by(USER, maintain_order=True).agg(
            pl.col("first", "index").first(), pl.col("last").max(), pl.col(NUM_EVENTS).sum()
        )

    @property
    def num_events(self) -> int:
        """Return the number of events."""
        return int(self.users[NUM_EVENTS].sum())

    @property
    def num_columns(self) -> int:
        """Return the number of columns with values, which take memory; at least one."""
        return max(1, len(self.non_null_columns))


def find_non_null_columns(frame: pl.DataFrame) -> frozenset[str]:
    """Return the columns that have a value."""
    return frozenset(column.name for column in frame if column.null_count() < frame.height)


def drop_null_columns(frame: pl.DataFrame, user: str) -> pl.DataFrame:
    """Drop columns without values, except those that are always needed.

    Args:
        frame: The events.
        user: Name of the user column.
    """
    kept = find_non_null_columns(frame) | {INDEX, TIME, user}
    return frame.select(name for name in frame.columns if name in kept)


def rank_users(
    events: UserStats, history: UserStats | None, *, include_history_only: bool
) -> pl.DataFrame:
    """Rank the users.

    The order is by time and index of the first event, then by name. Users who only have history
    come last, by name.

    Args:
        events: Statistics of the input.
        history: Statistics of the history; None for no history.
        include_history_only: Whether to include users who only have history.

    Returns:
        `USER`, `USER_RANK` and `NUM_EVENTS` (with history) of each user, by rank.
    """
    users = events.merge_users().sort("first", "index", USER).select(USER, NUM_EVENTS)
    if history is not None:
        past = history.merge_users().select(USER, past=NUM_EVENTS)
        history_only = past.join(users, on=USER, how="anti").sort(USER)
        users = users.join(past, on=USER, how="left", maintain_order="left")
        if include_history_only:
            users = pl.concat([users, history_only], how="diagonal")
        users = users.select(USER, pl.sum_horizontal(NUM_EVENTS, "past").alias(NUM_EVENTS))
    return users.with_row_index(USER_RANK).select(USER, USER_RANK, NUM_EVENTS)


def plan_partitions(
    events: UserStats, history: UserStats | None, max_cells: int, *, include_history_only: bool
) -> pl.DataFrame:
    """Rank the users, and divide them into partitions.

    Partitions follow the ranks, so that reading one after the other gives the users in order.

    Args:
        events: Statistics of the input.
        history: Statistics of the history; None for no history.
        max_cells: Maximum number of cells of a partition. The first one has a fraction of them. A
            user is in one partition; a user with more cells has a partition alone.
        include_history_only: Whether to include users who only have history.

    Returns:
        `USER`, `USER_RANK`, `NUM_EVENTS` and `PARTITION` of each user, by rank.
    """
    users = rank_users(events, history, include_history_only=include_history_only)
    width = max(events.num_columns, 1 if history is None else history.num_columns)
    size = max(1, max_cells // width)
    parts = bin_pack(
        users[NUM_EVENTS].to_list(), size, first_capacity=size // FIRST_PARTITION_DIVISOR
    )
    return users.with_columns(pl.Series(PARTITION, parts, dtype=pl.Int64))


def bin_pack(weights: Sequence[int], capacity: int, first_capacity: int | None = None) -> list[int]:
    """Pack weights into bins, in order (next-fit).

    Args:
        weights: The weights.
        capacity: Maximum weight of a bin. A single larger weight has a bin alone.
        first_capacity: Maximum weight of the first bin; None for the same.

    Returns:
        The bin of each weight.

    >>> bin_pack([5, 900, 7, 7, 1], capacity=14)
    [0, 1, 2, 2, 3]
    """
    bins, current, load = [], 0, 0
    limit = capacity if first_capacity is None else first_capacity
    for weight in weights:
        if load and load + weight > limit:
            current, load, limit = current + 1, 0, capacity
        load += weight
        bins.append(current)
    return bins


REPLAY_NO = "_copy_"
"""Column with the repetition of the file (`--repeat`), only while events are read."""
UUID_PATTERN = "^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$"
"""Pattern of globally unique ids. Other ids may be numbers that restart in each file."""
SHARED_ID, RANK = "shared", "_order_"
_POSITION = "_at_"
_EVENT_KEY, _FILLED = "_key_", "_filled_"


class RecordOrder(msgspec.Struct, frozen=True):
    """Order of the records of one event, of which the last counts.

    Attributes:
        column: Column that tells the records apart.
        values: Its values, in order. Records with other values come last.
        adds_outcome: Whether later records tell what happened later. Such a record counts even if
            an earlier run has had an earlier record of the event.
    """

    column: str
    values: tuple[str, ...]
    adds_outcome: bool = False

    def rank(self, frame: pl.DataFrame) -> pl.Series | None:
        """Return the position of each record in the order; None without the column."""
        if self.column not in frame.columns:
            return None
        positions = {value: at for at, value in enumerate(self.values)}
        return frame[self.column].replace_strict(
            positions, default=len(positions), return_dtype=pl.Int64
        )


@dataclass(frozen=True)
class EventKey:
    """Columns that identify the user and the event.

    Two records with the same id, account, user and repetition are one event.

    Attributes:
        user_column: Column of the user.
        id_column: Column of the event id; empty for none.
        account_columns: Columns of the account in which the id is unique. The first one with a
            value is used.
        id_pattern: Regular expression of valid ids. Other values are not ids.
        shared_id_column: Column of an id that records of one request share, whatever their own id
            and account; empty for none.
        record_order: Which of several records of an event counts; None for the first.
        other_views: Records to drop, because another user has the event: the id that they share and
            `USER`; see `find_other_views`. None for no records.
        ordered_by_content: Whether events at one time are ordered by content alone, because their
            positions in files depend on when they came.
    """

    user_column: str
    id_column: str
    account_columns: tuple[str, ...] = ()
    id_pattern: str = UUID_PATTERN
    shared_id_column: str = ""
    record_order: RecordOrder | None = None
    other_views: pl.DataFrame | None = field(default=None, compare=False, repr=False)
    ordered_by_content: bool = False

    @property
    def columns(self) -> frozenset[str]:
        """Return all columns that are needed."""
        ids = {self.id_column, self.shared_id_column}
        return frozenset({self.user_column, *ids, REPLAY_NO, TIME, *self.account_columns})

    def has_ids(self, frame: pl.DataFrame) -> bool:
        """Return whether a frame has a column of ids."""
        return not {self.id_column, self.shared_id_column}.isdisjoint(frame.columns)

    def select_shared(self, frame: pl.DataFrame) -> pl.DataFrame | None:
        """Return `SHARED_ID`, `USER` and `RANK` of records that share an id; None without one."""
        name = self.shared_id_column
        if name not in frame.columns or frame[name].null_count() == frame.height:
            return None
        shared = frame.filter(pl.col(name).is_not_null())
        ranks = None if self.record_order is None else self.record_order.rank(shared)
        if ranks is None:
            return None
        columns = {SHARED_ID: shared[name], USER: shared[self.user_column], RANK: ranks}
        return pl.DataFrame(columns).unique()


def find_other_views(shared: Sequence[pl.DataFrame], *, all_users: bool) -> pl.DataFrame | None:
    """Find records of requests that another user has, in a record that counts more.

    Args:
        shared: Records as `EventKey.select_shared` returns them.
        all_users: Whether a record of any user is such a view; else only those without a user.

    Returns:
        `SHARED_ID` and `USER` of each record to drop; None if there are none.
    """
    if not shared:
        return None
    best = pl.col(RANK).filter(pl.col(USER).is_not_null()).max().over(SHARED_ID)
    is_view = pl.col(RANK).max().over(SHARED_ID, USER) < best
    is_view &= pl.lit(all_users) | pl.col(USER).is_null()
    views = pl.concat(shared).unique().filter(is_view).select(SHARED_ID, USER)
    return views.unique() if views.height else None


class UserGroups(msgspec.Struct):
    """Events sorted by user and time. Events without a user belong to user None.

    Attributes:
        frame: The events.
        row_ranges: First row and number of rows of each user.
        feature_columns: Columns that will be encoded.
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
        """Sort events by user, time, index and content, and drop duplicates.

        Args:
            frame: All events of some users, in any order.
            users: `USER` and `USER_RANK` of these users.
            event_key: Columns that identify users and events.
            stats: Counts duplicates.
            dedup_windows: Events of earlier reads, which count as duplicates; updated.
        """
        names = frame.select(pl.col(event_key.user_column).alias(USER))
        ranks = names.join(users, on=USER, how="left", nulls_equal=True, maintain_order="left")
        frame = frame.with_columns(ranks[USER_RANK])
        rows = frame.with_columns(pl.lit(0).alias(INDEX)) if event_key.ordered_by_content else frame
        order = _sort_rows(rows, event_key.id_column)
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

    def take(self, user: str | None) -> pl.DataFrame:
        """Return the events of a user, with row numbers from 0 in `ROW`."""
        frame = self.frame.slice(*self.row_ranges.get(user, (0, 0)))
        numbers = pl.int_range(frame.height, dtype=pl.Int64, eager=True)
        return frame.insert_column(0, numbers.alias(ROW))

    def number_rows(self, row_offsets: Mapping[str | None, int]) -> pl.DataFrame:
        """Return the events of all users, with the row numbers of each user in `ROW`.

        Args:
            row_offsets: First number of each user.
        """
        numbers = np.arange(self.frame.height, dtype=np.int64)
        if self.row_ranges:
            starts, lengths = np.array(list(self.row_ranges.values()), dtype=np.int64).T
            first = np.array([row_offsets.get(user, 0) for user in self.row_ranges], np.int64)
            rows = np.repeat(starts, lengths) + number_within(lengths)
            numbers[rows] += np.repeat(first - starts, lengths)
        return self.frame.clone().insert_column(0, pl.Series(ROW, numbers))


def _sort_rows(frame: pl.DataFrame, event_id: str) -> pl.Series:
    """Return the positions of the rows in their total order."""
    keys = (
        frame.select(USER_RANK, TIME, INDEX).with_row_index(_POSITION).sort(USER_RANK, TIME, INDEX)
    )
    same = pl.all_horizontal(
        pl.col(name) == pl.col(name).shift() for name in (USER_RANK, TIME, INDEX)
    )
    repeated = keys.select(same.alias("repeated")).to_series().fill_null(value=False)
    order = keys[_POSITION]
    if not repeated.any():
        return order
    # Only tied rows are compared by content, which takes all columns.
    tied = (repeated | repeated.shift(-1, fill_value=False)).arg_true()
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
    """Return which rows, in the given order, are duplicates; None if there are none."""
    if not event_key.has_ids(frame):
        return None
    if not dedup_windows and event_key.other_views is None:
        # Distinct hashes mean distinct ids, and are faster to compare than keys.
        ids = frame.select(_make_id(frame, event_key)).to_series().drop_nulls()
        if ids.hash().n_unique() == len(ids):
            return None
    keys = compute_event_keys(frame, event_key).gather(order)
    ranks = None if event_key.record_order is None else event_key.record_order.rank(frame)
    ranks = None if ranks is None else ranks.gather(order)
    again = _find_other_records(keys, ranks, frame, order)
    if event_key.other_views is not None and event_key.shared_id_column in frame.columns:
        again |= _find_views(frame, event_key, event_key.other_views).gather(order)
    for window in dedup_windows:
        users, times = (frame[name].gather(order) for name in (event_key.user_column, TIME))
        remembered, better = keys, list[pl.Series]()
        if ranks is not None and window.possible_duplicates is None and _adds_outcome(event_key):
            remembered, better = _rank_keys(keys, ranks)
        again |= window.update(users, times, remembered.set(again, None), better)
    return again & keys.is_not_null()


def _find_views(frame: pl.DataFrame, event_key: EventKey, views: pl.DataFrame) -> pl.Series:
    names = {event_key.shared_id_column: SHARED_ID, event_key.user_column: USER}
    rows = frame.select(list(names)).rename(names).with_row_index(_POSITION)
    found = rows.join(views, on=[SHARED_ID, USER], how="semi", nulls_equal=True)[_POSITION]
    none = pl.repeat(False, frame.height, dtype=pl.Boolean, eager=True)  # noqa: FBT003 - polars' own order of arguments
    return none.scatter(found, True)  # noqa: FBT003 - as above


def _find_other_records(
    keys: pl.Series, ranks: pl.Series | None, frame: pl.DataFrame, order: pl.Series
) -> pl.Series:
    """Return which records are not the one that counts of their event.

    Of records with equal ranks, the one with the most values counts.
    """
    first = keys.is_first_distinct()
    if ranks is None or first.all():
        return ~first
    filled = frame.select(pl.sum_horizontal(pl.all().is_not_null())).to_series().gather(order)
    records = pl.DataFrame({_EVENT_KEY: keys, RANK: ranks, _FILLED: filled})
    for name in (RANK, _FILLED):
        is_best = pl.col(name) == pl.col(name).max().over(_EVENT_KEY)
        records = records.with_columns(pl.when(is_best).then(_EVENT_KEY).alias(_EVENT_KEY))
    best = records[_EVENT_KEY]
    return ~(best.is_not_null() & best.is_first_distinct())


def _adds_outcome(event_key: EventKey) -> bool:
    return event_key.record_order is not None and event_key.record_order.adds_outcome


def _rank_keys(keys: pl.Series, ranks: pl.Series) -> tuple[pl.Series, list[pl.Series]]:
    """Return keys of records, and the keys of each later record of the same event."""
    parts = pl.DataFrame({_EVENT_KEY: keys, RANK: ranks})
    key, rank = pl.col(_EVENT_KEY), pl.col(RANK)
    last = int(ranks.max() or 0)  # type: ignore[arg-type]
    own = parts.select(pl.concat_str(key, rank, separator=" ")).to_series()
    later = [
        parts.select(pl.when(rank < at).then(pl.concat_str(key, pl.lit(f" {at}")))).to_series()
        for at in range(1, last + 1)
    ]
    return own, later


def _make_id(frame: pl.DataFrame, event_key: EventKey) -> pl.Expr:
    """Return the id of each event; the id of its request, if records share one."""
    own = pl.col(event_key.id_column) if event_key.id_column in frame.columns else pl.lit(None)
    if event_key.shared_id_column not in frame.columns:
        return own
    return pl.coalesce(event_key.shared_id_column, own)


def compute_event_keys(frame: pl.DataFrame, event_key: EventKey) -> pl.Series:
    """Return a key that is equal for two deliveries of one event; null without a valid id."""
    accounts = [pl.col(name) for name in event_key.account_columns if name in frame.columns]
    account = pl.coalesce([*accounts, pl.lit("")])
    is_valid = pl.lit(value=False)
    if event_key.id_column in frame.columns:
        is_valid = pl.col(event_key.id_column).str.contains(event_key.id_pattern)
    if event_key.shared_id_column in frame.columns:
        is_shared = pl.col(event_key.shared_id_column).is_not_null()
        account = pl.when(is_shared).then(pl.lit("")).otherwise(account)
        is_valid |= is_shared
    repetition = pl.col(REPLAY_NO).cast(pl.String) if REPLAY_NO in frame.columns else pl.lit("0")
    user = pl.coalesce(pl.lit("=") + pl.col(event_key.user_column), pl.lit("-"))
    key = pl.concat_str(_make_id(frame, event_key), account, repetition, user, separator=" ")
    return frame.select(pl.when(is_valid).then(key).alias(_EVENT_KEY)).to_series()


def iter_batches(  # noqa: PLR0913 - two of them are state, which is optional
    users: pl.DataFrame,
    events: UserGroups,
    history: UserGroups | None,
    *,
    batch_size: int,
    row_offsets: Counter[str | None] | None = None,
    history_given: set[str | None] | None = None,
) -> Iterator[Events]:
    """Yield batches of events, one user at a time, the first batch with the user's history.

    Args:
        users: `USER` of each user, in order.
        events: The input.
        history: The history, with the same columns; None for no history.
        batch_size: Maximum number of rows of a batch.
        row_offsets: Number of rows yielded before, by user; updated. None for no rows.
        history_given: Users whose history was yielded before; updated. None for no users.
    """
    row_offsets = Counter() if row_offsets is None else row_offsets
    history_given = set() if history_given is None else history_given
    dictionary = DictionaryEncoder(events.frame, events.feature_columns)
    numbered = events.number_rows(row_offsets)
    for user in users[USER]:
        past = None
        if history is not None:
            past = Table(history.take(None if user in history_given else user))
            if user in history.row_ranges:
                history_given.add(user)
        first_row, height = events.row_ranges.get(user, (0, 0))
        row_offsets[user] += height
        if not height and not (past is not None and past.height):
            continue
        for start in range(first_row, first_row + (height or 1), batch_size):
            rows = max(min(batch_size, first_row + height - start), 0)
            table = Table(numbered, start, rows)
            codes = EncodedSlice(table, dictionary, start)
            yield Events(user=user, table=table, history=past, dict_codes=codes)
            past = None
