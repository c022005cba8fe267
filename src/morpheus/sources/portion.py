"""A portion of what was gathered: all events of some users, which any process can read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise

import polars as pl

from morpheus.columns import TIME
from morpheus.records import Events, ReadStats, RunMetrics
from morpheus.sources.by_user import UserGroups, EventKey, DedupWindow, iter_batches, compute_event_keys
from morpheus.sources.deriving import DerivedFeatures
from morpheus.sources.gathering import PartitionSlice

_HASH, _CHUNK = "_hash_", "_piece_"


@dataclass
class PartitionState:
    """What is remembered from portion to portion, where the same users come again.

    Attributes:
        derived_features: Derives columns, from earlier events too.
        dedup_window: What counts as seen besides; None for nothing.
        row_offsets: Rows handed out before, by user.
    """

    derived_features: DerivedFeatures
    dedup_window: DedupWindow | None = None
    row_offsets: Counter[str | None] = field(default_factory=Counter)

    def commit(self) -> None:
        """All portions of a round are read."""
        if self.dedup_window is not None:
            self.dedup_window.commit()


@dataclass(frozen=True)
class UserPartition:
    """The events of some users, and their history.

    Attributes:
        users: `USER` and `USER_RANK` of each, in order.
        event_slice: Where their events are.
        history_slice: Where their history is; None for no history.
        event_key: The columns that tell users and events apart.
        derived_features: Derives the columns that are derived.
        batch_size: Rows of a batch, at most.
        chunk_rows: Events in memory at a time, about; None for all.
        feature_columns: The columns that will be encoded.
    """

    users: pl.DataFrame
    event_slice: PartitionSlice
    history_slice: PartitionSlice | None
    event_key: EventKey
    derived_features: DerivedFeatures
    batch_size: int
    chunk_rows: int | None = None
    feature_columns: tuple[str, ...] = ()

    def events(self, metrics: RunMetrics, state: PartitionState | None = None) -> Iterator[Events]:
        """Read the users' events, which are in memory meanwhile, or piece by piece.

        Args:
            metrics: Counts duplicates.
            state: What was before; None for nothing.
        """
        known = state or self.create_state()
        past: UserGroups | None = None
        for number, now in enumerate(self.iter_chunks(metrics.input, known)):
            if self.history_slice is not None and not number:
                before = _select_or_add_columns(self.history_slice.read(self.users), now.frame.columns)
                past = self._group_by_user(before, metrics.training, None)
            now.frame = known.derived_features.add(now.frame, None if past is None else past.frame)
            if past is not None:
                past.frame = self.derived_features.add(past.frame)
            now.feature_columns = self.feature_columns
            yield from iter_batches(self.users, now, past, batch_size=self.batch_size, row_offsets=known.row_offsets)
            past = None

    def create_state(self) -> PartitionState:
        """Nothing is remembered yet, but from piece to piece."""
        return PartitionState(replace(self.derived_features, unbounded=self.chunk_rows is not None))

    def iter_chunks(self, stats: ReadStats, state: PartitionState) -> Iterator[UserGroups]:
        """The events as they were logged, in pieces of their time.

        Args:
            stats: Counts duplicates.
            state: What was before.
        """
        if self.chunk_rows is None:
            yield self._group_by_user(self.event_slice.read(self.users), stats, state.dedup_window)
            return
        cuts = TimeSplits.from_partition(self, self.chunk_rows)
        memory = DedupWindow(cuts.possible_duplicates) if len(cuts.possible_duplicates) else None
        for since, until in pairwise([None, *cuts.starts, None]):
            yield self._group_by_user(self.event_slice.read(self.users, since, until), stats, memory)
            if memory is not None:
                memory.commit()

    def _group_by_user(self, frame: pl.DataFrame, stats: ReadStats, dedup_window: DedupWindow | None) -> UserGroups:
        return UserGroups.from_frame(frame, self.users, self.event_key, stats, dedup_window)


@dataclass(frozen=True)
class TimeSplits:
    """Where a user's events are cut into pieces that fit into memory.

    Attributes:
        starts: The first time of each piece but the first; events of one time are never cut apart.
        possible_duplicates: Hashes of what may be one event on both sides of a cut; see `DedupWindow`. One event
            has one time, and so this is nothing in logs as they should be.
    """

    starts: list[datetime]
    possible_duplicates: pl.Series

    @classmethod
    def from_partition(cls, partition: UserPartition, chunk_rows: int) -> TimeSplits:
        """Look at the time and the identity of each event: some 16 bytes of it are held."""
        tables = partition.event_slice.iter_frames(partition.users, columns=partition.event_key.columns)
        nothing = pl.DataFrame(schema={TIME: pl.Datetime("us", "UTC"), _HASH: pl.UInt64})
        marks = pl.concat([nothing, *(_hash_events(table, partition.event_key) for table in tables)])
        starts = marks[TIME].sort().gather_every(chunk_rows).unique().sort()[1:]
        twice = marks.drop_nulls().filter(pl.col(_HASH).is_duplicated())
        piece = twice.select(_HASH, starts.search_sorted(twice[TIME], side="right").alias(_CHUNK))
        apart = piece.group_by(_HASH).agg(pl.col(_CHUNK).n_unique() > 1).filter(_CHUNK)
        return cls(starts.to_list(), apart[_HASH])


def _hash_events(table: pl.DataFrame, event_key: EventKey) -> pl.DataFrame:
    if event_key.id_column not in table.columns:
        return table.select(TIME, pl.lit(None, pl.UInt64).alias(_HASH))
    keys = compute_event_keys(table, event_key).to_frame(_HASH)
    hashes = keys.select(pl.when(pl.col(_HASH).is_not_null()).then(pl.col(_HASH).hash()))
    return table.select(TIME).hstack(hashes)


def _select_or_add_columns(frame: pl.DataFrame, names: list[str]) -> pl.DataFrame:
    """Exactly these columns; what is learnt from need not be written as the events are."""
    there = set(frame.columns)
    absent = [pl.lit(None, pl.String).alias(name) for name in names if name not in there]
    return frame.with_columns(absent).select(names)
