"""A portion of what was gathered: all events of some users, which any process can read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise

import polars as pl

from morpheus.columns import TIME
from morpheus.records import Events, Reading, Summary
from morpheus.sources.by_user import ByUser, Identity, Memory, hand_out, keys_of
from morpheus.sources.deriving import Deriving
from morpheus.sources.gathering import Where

_HASH, _PIECE = "_hash_", "_piece_"


@dataclass
class Remembered:
    """What is remembered from portion to portion, where the same users come again.

    Attributes:
        deriving: Derives columns, from earlier events too.
        memory: What counts as seen besides; None for nothing.
        numbered: Rows handed out before, by user.
    """

    deriving: Deriving
    memory: Memory | None = None
    numbered: Counter[str | None] = field(default_factory=Counter)

    def end_round(self) -> None:
        """All portions of a round are read."""
        if self.memory is not None:
            self.memory.end_round()


@dataclass(frozen=True)
class GatheredPortion:
    """The events of some users, and their history.

    Attributes:
        users: `USER` and `RANK` of each, in order.
        present: Where their events are.
        past: Where their history is; None for no history.
        identity: The columns that tell users and events apart.
        deriving: Derives the columns that are derived.
        rows: Rows of a batch, at most.
        piece: Events in memory at a time, about; None for all.
        features: The columns that will be encoded.
    """

    users: pl.DataFrame
    present: Where
    past: Where | None
    identity: Identity
    deriving: Deriving
    rows: int
    piece: int | None = None
    features: tuple[str, ...] = ()

    def events(self, summary: Summary, remembered: Remembered | None = None) -> Iterator[Events]:
        """Read the users' events, which are in memory meanwhile, or piece by piece.

        Args:
            summary: Counts duplicates.
            remembered: What was before; None for nothing.
        """
        known = remembered or self.afresh()
        past: ByUser | None = None
        for number, now in enumerate(self.pieces(summary.input, known)):
            if self.past is not None and not number:
                before = _with_columns(self.past.of(self.users), now.frame.columns)
                past = self._by_user(before, summary.training, None)
            now.frame = known.deriving.add(now.frame, None if past is None else past.frame)
            if past is not None:
                past.frame = self.deriving.add(past.frame)
            now.features = self.features
            yield from hand_out(self.users, now, past, rows=self.rows, numbered=known.numbered)
            past = None

    def afresh(self) -> Remembered:
        """Nothing is remembered yet, but from piece to piece."""
        return Remembered(replace(self.deriving, endless=self.piece is not None))

    def pieces(self, reading: Reading, known: Remembered) -> Iterator[ByUser]:
        """The events as they were logged, in pieces of their time.

        Args:
            reading: Counts duplicates.
            known: What was before.
        """
        if self.piece is None:
            yield self._by_user(self.present.of(self.users), reading, known.memory)
            return
        cuts = Cuts.of(self, self.piece)
        memory = Memory(cuts.suspects) if len(cuts.suspects) else None
        for since, until in pairwise([None, *cuts.times, None]):
            yield self._by_user(self.present.of(self.users, since, until), reading, memory)
            if memory is not None:
                memory.end_round()

    def _by_user(self, frame: pl.DataFrame, reading: Reading, memory: Memory | None) -> ByUser:
        return ByUser.of(frame, self.users, self.identity, reading, memory)


@dataclass(frozen=True)
class Cuts:
    """Where a user's events are cut into pieces that fit into memory.

    Attributes:
        times: The first time of each piece but the first; events of one time are never cut apart.
        suspects: Hashes of what may be one event on both sides of a cut; see `Memory`. One event
            has one time, and so this is nothing in logs as they should be.
    """

    times: list[datetime]
    suspects: pl.Series

    @classmethod
    def of(cls, portion: GatheredPortion, rows: int) -> Cuts:
        """Look at the time and the identity of each event: some 16 bytes of it are held."""
        tables = portion.present.frames(portion.users, columns=portion.identity.columns)
        nothing = pl.DataFrame(schema={TIME: pl.Datetime("us", "UTC"), _HASH: pl.UInt64})
        marks = pl.concat([nothing, *(_marks(table, portion.identity) for table in tables)])
        starts = marks[TIME].sort().gather_every(rows).unique().sort()[1:]
        twice = marks.drop_nulls().filter(pl.col(_HASH).is_duplicated())
        piece = twice.select(_HASH, starts.search_sorted(twice[TIME], side="right").alias(_PIECE))
        apart = piece.group_by(_HASH).agg(pl.col(_PIECE).n_unique() > 1).filter(_PIECE)
        return cls(starts.to_list(), apart[_HASH])


def _marks(table: pl.DataFrame, identity: Identity) -> pl.DataFrame:
    if identity.id not in table.columns:
        return table.select(TIME, pl.lit(None, pl.UInt64).alias(_HASH))
    keys = keys_of(table, identity).to_frame(_HASH)
    hashes = keys.select(pl.when(pl.col(_HASH).is_not_null()).then(pl.col(_HASH).hash()))
    return table.select(TIME).hstack(hashes)


def _with_columns(frame: pl.DataFrame, names: list[str]) -> pl.DataFrame:
    """Exactly these columns; what is learnt from need not be written as the events are."""
    there = set(frame.columns)
    absent = [pl.lit(None, pl.String).alias(name) for name in names if name not in there]
    return frame.with_columns(absent).select(names)
