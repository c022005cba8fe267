"""Events put in order, each once, and split by user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import polars as pl

from morpheus.columns import INDEX, ROW, TIME
from morpheus.records import Events, Reading

COPY = "_copy_"
"""Which repetition of its file a row is; only there while events are gathered."""

_UUID = "^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$"
_REMEMBERED = 250_000
_AT = "_at_"
_RANK = "_rank_"


@dataclass(frozen=True)
class Identity:
    """What tells whose event it is, and that two records are one event.

    Attributes:
        user: Column of the user.
        id: Column of the event's id; only a UUID is one.
        accounts: Columns of the account in which the id is one; the first that has a value.
    """

    user: str
    id: str
    accounts: tuple[str, ...] = ()


@dataclass
class Gathered:
    """Events in order, to be taken user by user; an event without a user is of user None."""

    frame: pl.DataFrame
    spans: dict[str | None, tuple[int, int]]

    def take(self, user: str | None) -> pl.DataFrame:
        """Hand out a user's events, once."""
        return self.frame.slice(*self.spans.pop(user, (0, 0)))

    def like(self, names: list[str]) -> Gathered:
        """The same events with these columns, missing ones as null; taken from here as well."""
        absent = [pl.lit(None, pl.String).alias(n) for n in names if n not in self.frame.columns]
        return Gathered(self.frame.with_columns(absent).select(names), self.spans)


@dataclass
class Gathering:
    """Frames of one run, or of one round of a run, until all are there.

    It holds them in memory. Whatever takes its place has to keep the order: a user's events by
    time, then by their index, then by what they say; users by their first event. Nothing depends on
    the order in which frames are added.

    Args:
        identity: The columns that tell users and events apart.
        only: Keep the events of this user; None for all.
        reading: Counts duplicates and events of other users.
    """

    identity: Identity
    only: str | None
    reading: Reading
    frames: list[pl.DataFrame] = field(default_factory=list)
    remembered: pl.Series = field(default_factory=lambda: pl.Series(dtype=pl.String))

    def add(self, frame: pl.DataFrame) -> None:
        """Add events: `INDEX`, text columns, `TIME`, in any order of columns and rows."""
        if self.only is not None:
            kept = frame.filter(pl.col(self.identity.user) == self.only)
            self.reading.other_users += frame.height - kept.height
            frame = kept
        self.frames.append(frame)

    def gather(self) -> Gathered:
        """Order and split all that was added, and begin anew."""
        frame = join(self.frames)
        self.frames = []
        if frame.is_empty():
            return Gathered(frame.drop(COPY, strict=False), {})
        order = self._distinct(frame, _in_order(frame, self.identity.id))
        ranks, spans = _by_user(frame[self.identity.user].gather(order))
        rows = order.gather(ranks)
        return Gathered(frame.drop(COPY, strict=False)[rows], spans)

    def _distinct(self, frame: pl.DataFrame, order: pl.Series) -> pl.Series:
        """Leave out events seen before: in this round, or lately."""
        if self.identity.id not in frame.columns:
            return order
        keys = _keys(frame, self.identity).gather(order)
        again = keys.is_not_null() & (
            ~keys.is_first_distinct() | keys.is_in(self.remembered.implode())
        )
        self.reading.duplicates += int(again.sum())
        self.remembered = pl.concat([self.remembered, keys.drop_nulls()]).tail(_REMEMBERED)
        return order.filter(~again)


def join(frames: list[pl.DataFrame]) -> pl.DataFrame:
    """Put frames below each other, in an order of columns that does not depend on theirs.

    The columns of the widest come first, in its order, then those that others add.
    """
    if not frames:
        return pl.DataFrame(schema={INDEX: pl.Int64, TIME: pl.Datetime("us", "UTC")})
    names = _texts([frame.columns for frame in frames])
    whole = pl.concat(frames, how="diagonal", rechunk=True)
    return whole.select(
        INDEX, *names, TIME, *({COPY} & {name for frame in frames for name in frame.columns})
    )


def _texts(headers: list[list[str]]) -> list[str]:
    known = sorted({tuple(header) for header in headers}, key=lambda header: (-len(header), header))
    names = dict.fromkeys(name for header in known for name in header)
    return [name for name in names if name not in {INDEX, TIME, COPY}]


def _in_order(frame: pl.DataFrame, event_id: str) -> pl.Series:
    """Positions of the rows in their total order."""
    keys = frame.select(TIME, INDEX).with_row_index(_AT).sort(TIME, INDEX)
    same = pl.struct(TIME, INDEX)
    after = keys.select(same == same.shift()).to_series().fill_null(value=False)
    order = keys[_AT]
    if not after.any():
        return order
    tied = (after | after.shift(-1, fill_value=False)).arg_true()
    rows = order.gather(tied)
    names = sorted(frame.columns, key=lambda name: (name != event_id, name in {TIME, INDEX}))
    sorted_rows = frame[rows].with_columns(rows).sort(TIME, INDEX, *names)[_AT]
    return order.scatter(tied, sorted_rows)


def _keys(frame: pl.DataFrame, identity: Identity) -> pl.Series:
    """What is equal for two deliveries of one event; null for an event without an id of its own."""
    accounts = [pl.col(name) for name in identity.accounts if name in frame.columns]
    account = pl.coalesce([*accounts, pl.lit("")])
    copy = pl.col(COPY).cast(pl.String) if COPY in frame.columns else pl.lit("0")
    own = pl.col(identity.id).str.contains(_UUID)
    key = pl.concat_str(identity.id, account, copy, separator=" ")
    return frame.select(pl.when(own).then(key).alias("key")).to_series()


def _by_user(users: pl.Series) -> tuple[pl.Series, dict[str | None, tuple[int, int]]]:
    """Positions that bring each user's rows together, and the span of each."""
    rows = pl.DataFrame({"user": users})
    counted = rows.group_by("user", maintain_order=True).len().with_row_index(_RANK)
    ranked = rows.join(counted, on="user", how="left", nulls_equal=True, maintain_order="left")
    together = ranked.select(_RANK).with_row_index(_AT).sort(_RANK, _AT)[_AT]
    ends = counted["len"].cum_sum().to_list()
    spans = zip([0, *ends], counted["len"].to_list(), strict=False)
    return together, dict(zip(counted["user"].to_list(), spans, strict=True))


def hand_out(
    events: Gathered,
    history: Gathered | None,
    *,
    rows: int,
    numbered: Counter[str | None],
    last: bool = True,
) -> Iterator[Events]:
    """Hand out events user after user, with the history of each.

    Args:
        events: What is to be scored.
        history: What is to be learnt from, with the same columns; None for nothing.
        rows: Rows of a batch, at most.
        numbered: Rows handed out so far, by user; counted on.
        last: Whether no more events come, so that users who only have history are handed out too.
    """
    if history is not None:
        read = events.frame if events.frame.width > len((INDEX, TIME)) else history.frame
        history = history.like(read.columns)
    for user in list(events.spans):
        past = None if history is None else _numbered(history.take(user), 0)
        frame = _numbered(events.take(user), numbered[user])
        numbered[user] += frame.height
        for start in range(0, frame.height, rows):
            batch = frame if frame.height <= rows else frame.slice(start, rows)
            yield Events(user=user, frame=batch, history=past)
            past = None
    if history is not None and last:
        none = _numbered(history.frame.clear(), 0)
        for user in sorted(user for user in history.spans if user is not None):
            yield Events(user=user, frame=none, history=_numbered(history.take(user), 0))


def _numbered(frame: pl.DataFrame, start: int) -> pl.DataFrame:
    numbers = pl.int_range(start, start + frame.height, dtype=pl.Int64, eager=True)
    return frame.insert_column(0, numbers.alias(ROW))
