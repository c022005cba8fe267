"""Events put in order, each once, and split by user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import polars as pl

from morpheus.columns import INDEX, ROW, TIME
from morpheus.features.dictionary import Dictionary, Excerpt
from morpheus.records import Events, Reading
from morpheus.sources.census import RANK, USER

COPY = "_copy_"
"""Which repetition of its file a row is; only there while events are gathered."""
UUID = "^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$"
"""Ids that no two events have. Others may be numbers that begin anew in each file."""
_REMEMBERED = 250_000
_AT = "_at_"
_KEY = "_key_"


@dataclass(frozen=True)
class Identity:
    """What tells whose event it is, and that two records are one event.

    Attributes:
        user: Column of the user.
        id: Column of the event's id; empty for none.
        accounts: Columns of the account in which the id is one; the first that has a value.
        pattern: What an id looks like; any other value is none.
    """

    user: str
    id: str
    accounts: tuple[str, ...] = ()
    pattern: str = UUID

    @property
    def columns(self) -> frozenset[str]:
        """All that is looked at."""
        return frozenset({self.user, self.id, COPY, TIME, *self.accounts})


@dataclass
class Memory:
    """The events seen lately, where the input goes on for ever, or comes in pieces.

    Attributes:
        suspects: Hashes of the keys that are worth remembering, all of them; None to remember the
            latest, whatever they are.
        keys: By time, those of the rounds before.
        fresh: Those of this round.
    """

    suspects: pl.Series | None = None
    keys: pl.DataFrame | None = None
    fresh: list[pl.DataFrame] = field(default_factory=list)

    def holds(self, keys: pl.Series) -> pl.Series:
        """Whether each was there in a round before."""
        if self.keys is None:
            return pl.repeat(False, len(keys), dtype=pl.Boolean, eager=True)  # noqa: FBT003 - polars' own order of arguments
        return keys.is_in(self.keys[_KEY].implode())

    def add(self, times: pl.Series, keys: pl.Series) -> None:
        """Remember some of this round."""
        fresh = pl.DataFrame({TIME: times, _KEY: keys}).drop_nulls()
        if self.suspects is not None:
            fresh = fresh.filter(pl.col(_KEY).hash().is_in(self.suspects.implode()))
        self.fresh.append(fresh)

    def end_round(self) -> None:
        """Remember this round in the next ones; the latest events only, so that it stays small."""
        fresh = self._kept(pl.concat(self.fresh).sort(TIME, _KEY)) if self.fresh else None
        self.fresh = []
        known = [frame for frame in (self.keys, fresh) if frame is not None]
        self.keys = self._kept(pl.concat(known)) if known else None

    def _kept(self, keys: pl.DataFrame) -> pl.DataFrame:
        return keys.tail(_REMEMBERED) if self.suspects is None else keys


@dataclass
class ByUser:
    """Events in order, to be taken user by user; an event without a user is of user None.

    Attributes:
        frame: The events.
        spans: The first of each user's rows, and how many there are.
        features: The columns that will be encoded.
    """

    frame: pl.DataFrame
    spans: dict[str | None, tuple[int, int]]
    features: Sequence[str] = ()

    @classmethod
    def of(
        cls,
        frame: pl.DataFrame,
        users: pl.DataFrame,
        identity: Identity,
        reading: Reading,
        memory: Memory | None = None,
    ) -> ByUser:
        """Order events by user, then time, then index, then what they say; each once.

        Args:
            frame: All events of some users, in any order.
            users: `USER` and `RANK` of each of these.
            identity: The columns that tell users and events apart.
            reading: Counts duplicates.
            memory: What counts as seen besides; None for nothing.
        """
        names = frame.select(pl.col(identity.user).alias(USER))
        ranks = names.join(users, on=USER, how="left", nulls_equal=True, maintain_order="left")
        frame = frame.with_columns(ranks[RANK])
        order = _in_order(frame, identity.id)
        again = _again(frame, order, identity, memory)
        if again is not None:
            reading.duplicates += int(again.sum())
            order = order.filter(~again)
        runs = frame[RANK].gather(order).rle().struct.unnest()
        ends = runs["len"].cum_sum()
        known = dict(users.select(RANK, USER).iter_rows())
        spans = {
            known[rank]: (end - length, length)
            for rank, end, length in zip(runs["value"], ends, runs["len"], strict=True)
        }
        return cls(frame.drop(RANK, COPY, strict=False)[order], spans)

    def take(self, user: str | None, start: int = 0) -> pl.DataFrame:
        """A user's events, numbered from `start`."""
        frame = self.frame.slice(*self.spans.get(user, (0, 0)))
        numbers = pl.int_range(start, start + frame.height, dtype=pl.Int64, eager=True)
        return frame.insert_column(0, numbers.alias(ROW))


def _in_order(frame: pl.DataFrame, event_id: str) -> pl.Series:
    """Positions of the rows in their total order."""
    keys = frame.select(RANK, TIME, INDEX).with_row_index(_AT).sort(RANK, TIME, INDEX)
    same = pl.all_horizontal(pl.col(name) == pl.col(name).shift() for name in (RANK, TIME, INDEX))
    after = keys.select(same.alias("after")).to_series().fill_null(value=False)
    order = keys[_AT]
    if not after.any():
        return order
    tied = (after | after.shift(-1, fill_value=False)).arg_true()
    rows = order.gather(tied)
    names = sorted(frame.columns, key=lambda name: (name != event_id, name))
    rest = [name for name in names if name not in {RANK, TIME, INDEX}]
    sorted_rows = frame[rows].with_columns(rows).sort(RANK, TIME, INDEX, *rest)[_AT]
    return order.scatter(tied, sorted_rows)


def _again(
    frame: pl.DataFrame, order: pl.Series, identity: Identity, memory: Memory | None
) -> pl.Series | None:
    """Which rows, in that order, are events seen before; None for none."""
    if identity.id not in frame.columns:
        return None
    if memory is None:
        # Where all hashes differ, so do all ids; this is quicker to see.
        ids = frame[identity.id].drop_nulls()
        if ids.hash().n_unique() == len(ids):
            return None
    keys = keys_of(frame, identity).gather(order)
    again = ~keys.is_first_distinct()
    if memory is not None:
        again |= memory.holds(keys)
        memory.add(frame[TIME].gather(order), keys)
    return again & keys.is_not_null()


def keys_of(frame: pl.DataFrame, identity: Identity) -> pl.Series:
    """What is equal for two deliveries of one event; null for an event without an id of its own."""
    accounts = [pl.col(name) for name in identity.accounts if name in frame.columns]
    account = pl.coalesce([*accounts, pl.lit("")])
    copy = pl.col(COPY).cast(pl.String) if COPY in frame.columns else pl.lit("0")
    user = pl.coalesce(pl.lit("=") + pl.col(identity.user), pl.lit("-"))
    own = pl.col(identity.id).str.contains(identity.pattern)
    key = pl.concat_str(identity.id, account, copy, user, separator=" ")
    return frame.select(pl.when(own).then(key).alias(_KEY)).to_series()


def hand_out(
    users: pl.DataFrame,
    events: ByUser,
    history: ByUser | None,
    *,
    rows: int,
    numbered: Counter[str | None],
) -> Iterator[Events]:
    """Hand out events user after user, with the history of each.

    Args:
        users: `USER` of each, in order.
        events: What is to be scored.
        history: What is to be learnt from, with the same columns; None for nothing.
        rows: Rows of a batch, at most.
        numbered: Rows handed out so far, by user; counted on. Who is in it has had the history.
    """
    dictionary = Dictionary(events.frame, events.features)
    for user in users[USER]:
        past = None
        if history is not None:
            past = history.take(None if user in numbered else user)
        frame = events.take(user, numbered[user])
        numbered[user] += frame.height
        if not frame.height and not (past is not None and past.height):
            continue
        begin, _ = events.spans.get(user, (0, 0))
        for start in range(0, frame.height or 1, rows):
            batch = frame if frame.height <= rows else frame.slice(start, rows)
            excerpt = Excerpt(batch, dictionary, begin + start)
            yield Events(user=user, frame=batch, history=past, excerpt=excerpt)
            past = None
