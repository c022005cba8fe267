"""Events put in order, each once, and split by user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import polars as pl

from morpheus.columns import INDEX, ROW, TIME
from morpheus.features.dictionary import DictionaryEncoder, EncodedSlice
from morpheus.records import Events, ReadStats
from morpheus.sources.census import USER_RANK, USER

REPLAY_NO = "_copy_"
"""Which repetition of its file a row is; only there while events are gathered."""
UUID_PATTERN = "^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$"
"""Ids that no two events have. Others may be numbers that begin anew in each file."""
_MAX_SEEN_KEYS = 250_000
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
    """The events seen lately, where the input goes on for ever, or comes in pieces.

    Attributes:
        possible_duplicates: Hashes of the keys that are worth remembering, all of them; None to remember the
            latest, whatever they are.
        seen_keys: By time, those of the rounds before.
        new_keys: Those of this round.
    """

    possible_duplicates: pl.Series | None = None
    seen_keys: pl.DataFrame | None = None
    new_keys: list[pl.DataFrame] = field(default_factory=list)

    def contains(self, keys: pl.Series) -> pl.Series:
        """Whether each was there in a round before."""
        if self.seen_keys is None:
            return pl.repeat(False, len(keys), dtype=pl.Boolean, eager=True)  # noqa: FBT003 - polars' own order of arguments
        return keys.is_in(self.seen_keys[_EVENT_KEY].implode())

    def add(self, times: pl.Series, keys: pl.Series) -> None:
        """Remember some of this round."""
        fresh = pl.DataFrame({TIME: times, _EVENT_KEY: keys}).drop_nulls()
        if self.possible_duplicates is not None:
            fresh = fresh.filter(pl.col(_EVENT_KEY).hash().is_in(self.possible_duplicates.implode()))
        self.new_keys.append(fresh)

    def commit(self) -> None:
        """Remember this round in the next ones; the latest events only, so that it stays small."""
        fresh = self._trim(pl.concat(self.new_keys).sort(TIME, _EVENT_KEY)) if self.new_keys else None
        self.new_keys = []
        known = [frame for frame in (self.seen_keys, fresh) if frame is not None]
        self.seen_keys = self._trim(pl.concat(known)) if known else None

    def _trim(self, keys: pl.DataFrame) -> pl.DataFrame:
        return keys.tail(_MAX_SEEN_KEYS) if self.possible_duplicates is None else keys


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
        dedup_window: DedupWindow | None = None,
    ) -> UserGroups:
        """Order events by user, then time, then index, then what they say; each once.

        Args:
            frame: All events of some users, in any order.
            users: `USER` and `USER_RANK` of each of these.
            event_key: The columns that tell users and events apart.
            stats: Counts duplicates.
            dedup_window: What counts as seen besides; None for nothing.
        """
        names = frame.select(pl.col(event_key.user_column).alias(USER))
        ranks = names.join(users, on=USER, how="left", nulls_equal=True, maintain_order="left")
        frame = frame.with_columns(ranks[USER_RANK])
        order = _sort_rows(frame, event_key.id_column)
        again = _find_duplicates(frame, order, event_key, dedup_window)
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
    keys = frame.select(USER_RANK, TIME, INDEX).with_row_index(_POSITION).sort(USER_RANK, TIME, INDEX)
    same = pl.all_horizontal(pl.col(name) == pl.col(name).shift() for name in (USER_RANK, TIME, INDEX))
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
    frame: pl.DataFrame, order: pl.Series, event_key: EventKey, dedup_window: DedupWindow | None
) -> pl.Series | None:
    """Which rows, in that order, are events seen before; None for none."""
    if event_key.id_column not in frame.columns:
        return None
    if dedup_window is None:
        # Where all hashes differ, so do all ids; this is quicker to see.
        ids = frame[event_key.id_column].drop_nulls()
        if ids.hash().n_unique() == len(ids):
            return None
    keys = compute_event_keys(frame, event_key).gather(order)
    again = ~keys.is_first_distinct()
    if dedup_window is not None:
        again |= dedup_window.contains(keys)
        dedup_window.add(frame[TIME].gather(order), keys)
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
    row_offsets: Counter[str | None],
) -> Iterator[Events]:
    """Hand out events user after user, with the history of each.

    Args:
        users: `USER` of each, in order.
        events: What is to be scored.
        history: What is to be learnt from, with the same columns; None for nothing.
        batch_size: Rows of a batch, at most.
        row_offsets: Rows handed out so far, by user; counted on. Who is in it has had the history.
    """
    dictionary = DictionaryEncoder(events.frame, events.feature_columns)
    for user in users[USER]:
        past = None
        if history is not None:
            past = history.take(None if user in row_offsets else user)
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
