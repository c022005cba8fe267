"""Divides events into partitions of users.

`UserPartition` has all events of some users, and any process can read it. `LocalPartitionStore`
reads files, ranks the users and makes the partitions on this machine; `cluster_partitioning` does
so on a Dask cluster. `SampleSpec` draws a sample of all users for the population model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime
from hashlib import blake2b
from itertools import chain, pairwise
from typing import Any, Protocol, TypeVar

import msgspec
import numpy as np
import polars as pl

from morpheus.columns import INDEX, LATE, POPULATION_USER, TIME
from morpheus.core.batch import Events, Partition, ReadStats, RowBuffer, RunMetrics
from morpheus.runtime.pool import WorkerPool
from morpheus.sources.compression import LogPath
from morpheus.sources.group_by_user import (
    FIRST_PARTITION_DIVISOR,
    NUM_EVENTS,
    PARTITION,
    USER,
    EventKey,
    UserGroups,
    UserStats,
    compute_event_keys,
    iter_batches,
    plan_partitions,
)
from morpheus.sources.log_format import DerivedFeatures, RecentRows
from morpheus.sources.reader import (
    ReadTask,
    read_into_buffer,
)
from morpheus.sources.seen_events import DedupWindow
from morpheus.sources.source_state import PartitionState
from morpheus.sources.spill_sort import (
    MemoryBudget,
    PartitionSlice,
    SpillBuffer,
    SpilledDataset,
)
from morpheus.storage.spill import SpillDir

_HASH, _CHUNK = "_hash_", "_piece_"


class LateEvents(msgspec.Struct, frozen=True):
    """Which events of a run or micro-batch are late.

    Attributes:
        before: Events before this time are late; None if no event is.
        marks: Whether events have the column `LATE`.
    """

    before: datetime | None = None
    marks: bool = False

    def mark(self, events: pl.DataFrame, stats: ReadStats) -> pl.DataFrame:
        """Count the late events, and mark them."""
        is_late = pl.repeat(False, events.height, dtype=pl.Boolean, eager=True)  # noqa: FBT003 - polars' own order of arguments
        if self.before is not None:
            is_late = events[TIME] < self.before
            stats.late += int(is_late.sum())
        # A log can have a column of this name: an output file that is read as a log.
        return events.with_columns(is_late.alias(LATE)) if self.marks else events


class UserPartition(msgspec.Struct, frozen=True):
    """The events and the history of some users.

    Attributes:
        users: `USER` and `USER_RANK` of the users, in order.
        event_slice: Location of the events.
        history_slice: Location of the history; None for no history.
        event_key: Columns that identify users and events.
        derived_features: Computes the derived columns.
        batch_size: Maximum number of rows of a batch.
        chunk_rows: Approximate number of events to read at a time; None to read all at once.
            Only a partition of one user is read in chunks.
        feature_columns: Columns that will be encoded.
        late: Which events are late.
    """

    users: pl.DataFrame
    event_slice: PartitionSlice
    history_slice: PartitionSlice | None
    event_key: EventKey
    derived_features: DerivedFeatures
    batch_size: int
    chunk_rows: int | None = None
    feature_columns: tuple[str, ...] = ()
    late: LateEvents = LateEvents()

    def user_names(self) -> list[str | None]:
        """Name the users, in order; None for events without a user."""
        return self.users[USER].to_list()

    def events(self, metrics: RunMetrics, state: PartitionState | None = None) -> Iterator[Events]:
        """Read the events, one user at a time.

        Args:
            metrics: Counts duplicates.
            state: What is remembered of the users' earlier events; updated. None for nothing.
        """
        state = state or self.create_state()
        past: UserGroups | None = None
        for number, now in enumerate(self.iter_chunks(metrics.input, state)):
            if self.history_slice is not None and not number:
                before = _select_or_add_columns(
                    self.history_slice.read(self.users), now.frame.columns
                )
                past = self._group_by_user(before, metrics.training)
            history = None if past is None else past.frame
            events = self.derived_features.add(now.frame, history, state.recent_rows)
            now.frame = self.late.mark(events, metrics.input)
            if past is not None:
                events = self.derived_features.add(past.frame)
                past.frame = LateEvents(marks=self.late.marks).mark(events, metrics.training)
            now.feature_columns = self.feature_columns
            yield from iter_batches(
                self.users,
                now,
                past,
                batch_size=self.batch_size,
                row_offsets=state.row_offsets,
                history_given=state.history_given,
            )
            past = None

    def create_state(self) -> PartitionState:
        """Make an empty state that only keeps what one chunk needs to know about another."""
        return PartitionState(None if self.chunk_rows is None else RecentRows())

    def iter_chunks(self, stats: ReadStats, state: PartitionState) -> Iterator[UserGroups]:
        """Read the events, without derived columns, in chunks by time.

        Args:
            stats: Counts duplicates.
            state: Recognises events of earlier reads; updated.
        """
        windows = [] if state.dedup_window is None else [state.dedup_window]
        if self.chunk_rows is None:
            yield self._group_by_user(self.event_slice.read(self.users), stats, windows)
            return
        splits = TimeSplits.from_partition(self, self.chunk_rows)
        if len(splits.possible_duplicates):
            windows.append(DedupWindow(splits.possible_duplicates))
        for start, end in pairwise([None, *splits.starts, None]):
            yield self._group_by_user(self.event_slice.read(self.users, start, end), stats, windows)

    def _group_by_user(
        self, frame: pl.DataFrame, stats: ReadStats, dedup_windows: Sequence[DedupWindow] = ()
    ) -> UserGroups:
        return UserGroups.from_frame(frame, self.users, self.event_key, stats, dedup_windows)


class TimeSplits(msgspec.Struct, frozen=True):
    """Times at which a user's events are split into chunks that fit into memory.

    Attributes:
        starts: Start of each chunk except the first. Events with the same time are never split.
        possible_duplicates: Hashes of event keys that occur in several chunks; see `DedupWindow`.
            Normally none, because two deliveries of an event have the same time.
    """

    starts: list[datetime]
    possible_duplicates: pl.Series

    @classmethod
    def from_partition(cls, partition: UserPartition, chunk_rows: int) -> TimeSplits:
        """Find the splits from the time and the key hash of each event, 16 bytes per event."""
        tables = partition.event_slice.iter_frames(
            partition.users, columns=partition.event_key.columns
        )
        empty = pl.DataFrame(schema={TIME: pl.Datetime("us", "UTC"), _HASH: pl.UInt64})
        events = pl.concat([empty, *(_hash_events(table, partition.event_key) for table in tables)])
        starts = events[TIME].sort().gather_every(chunk_rows).unique().sort()[1:]
        equal = events.drop_nulls().filter(pl.col(_HASH).is_duplicated())
        chunks = equal.select(_HASH, starts.search_sorted(equal[TIME], side="right").alias(_CHUNK))
        split = chunks.group_by(_HASH).agg(pl.col(_CHUNK).n_unique() > 1).filter(_CHUNK)
        return cls(starts.to_list(), split[_HASH])


def _hash_events(table: pl.DataFrame, event_key: EventKey) -> pl.DataFrame:
    if not event_key.has_ids(table):
        return table.select(TIME, pl.lit(None, pl.UInt64).alias(_HASH))
    keys = compute_event_keys(table, event_key).to_frame(_HASH)
    hashes = keys.select(pl.when(pl.col(_HASH).is_not_null()).then(pl.col(_HASH).hash()))
    return table.select(TIME).hstack(hashes)


def _select_or_add_columns(frame: pl.DataFrame, names: list[str]) -> pl.DataFrame:
    """Select columns, and add missing ones: history and input may have different columns."""
    existing = set(frame.columns)
    absent = [pl.lit(None, pl.String).alias(name) for name in names if name not in existing]
    return frame.with_columns(absent).select(names)


MIN_MERGE_EVENTS = 10_000
"""Minimum number of sampled events to merge at a time."""
_SAMPLE_KEY = "_key_"
_SAMPLE_SCHEMA: dict[str, Any] = {
    POPULATION_USER: pl.String,
    INDEX: pl.Int64,
    TIME: pl.Datetime("us", "UTC"),
    _SAMPLE_KEY: pl.UInt64,
}
_HASH_MULTIPLIERS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F)


class SampleSpec(msgspec.Struct, frozen=True):
    """Size of the population sample. The sample does not depend on how events were read.

    Users and events are drawn by the lowest hash (bottom-k sampling), stratified by user.

    Attributes:
        max_users: Maximum number of users.
        target_events: Approximate number of events.
        min_events_per_user: Minimum number of events per user, if the user has that many.
    """

    max_users: int = 2000
    target_events: int = 50_000
    min_events_per_user: int = 25

    def take_sample(
        self,
        dataset: SpilledDataset,
        columns: Sequence[str],
        *,
        derived_columns: Collection[str] = (),
        frames: Iterable[pl.DataFrame] | None = None,
    ) -> pl.DataFrame:
        """Draw a sample.

        Args:
            dataset: All events.
            columns: The feature columns.
            derived_columns: Those of them that are not in the log.
            frames: All events with the derived columns; None for the events of the dataset.

        Returns:
            `POPULATION_USER`, `TIME` and the feature columns, sorted by user, then time.
        """
        sampler = self.make_sampler(dataset, columns, derived_columns=derived_columns)
        frames = _iter_all_frames(dataset) if frames is None else frames
        return sampler.finish(sampler.sample(frames))

    def make_sampler(
        self,
        dataset: HasUserStats,
        columns: Sequence[str],
        *,
        derived_columns: Collection[str] = (),
    ) -> StratifiedSampler:
        """Choose the users, and make a sampler; see `take_sample`."""
        users = self._choose_users(dataset.user_stats)
        per_user = max(self.min_events_per_user, self.target_events // max(1, len(users)))
        known = {*dataset.column_names, *derived_columns}
        existing = [name for name in dict.fromkeys(columns) if name in known]
        return StratifiedSampler(dataset.user, users, per_user, existing)

    def _choose_users(self, user_stats: UserStats) -> list[str]:
        users = user_stats.users[USER].unique().drop_nulls().to_list()
        return sorted(users, key=lambda user: blake2b(user.encode(), digest_size=8).digest())[
            : self.max_users
        ]


class HasUserStats(Protocol):
    """Events with known users and columns."""

    user: str
    column_names: list[str]
    user_stats: UserStats


class StratifiedSampler(msgspec.Struct, frozen=True):
    """Draws events of chosen users, frame by frame.

    Attributes:
        user: Name of the user column.
        users: The chosen users.
        events_per_user: Maximum number of events per user.
        columns: Columns of the sample.
    """

    user: str
    users: list[str]
    events_per_user: int
    columns: list[str]

    def sample(self, frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
        """Draw a sample of some events."""
        return self.merge(
            _sample_frame(frame, self.user, self.users, self.columns) for frame in frames
        )

    def merge(self, samples: Iterable[pl.DataFrame]) -> pl.DataFrame:
        """Merge samples of different events into a sample of all of them."""
        merged, pending = pl.DataFrame(schema=_SAMPLE_SCHEMA), RowBuffer[pl.DataFrame]()
        for sample in samples:
            # Merge once the pending events double the sample: merging each table would be slow.
            pending.add(sample, sample.height)
            if pending.rows >= max(merged.height, MIN_MERGE_EVENTS):
                merged = self._keep_lowest([merged, *pending.take()])
        return self._keep_lowest([merged, *pending.take()])

    def _keep_lowest(self, samples: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """Keep the events of each user with the lowest keys."""
        events = pl.concat(samples, how="diagonal")
        return events.filter(
            pl.col(_SAMPLE_KEY).rank("min").over(POPULATION_USER) <= self.events_per_user
        )

    def finish(self, sample: pl.DataFrame) -> pl.DataFrame:
        """Return the columns of the sample, once it is merged."""
        names = (POPULATION_USER, TIME, *self.columns)
        # If every record was rejected, no frame had the columns.
        absent = [pl.lit(None, pl.String).alias(n) for n in names if n not in sample.columns]
        return sample.with_columns(absent).select(names).sort(names, nulls_last=True)


def _iter_all_frames(dataset: SpilledDataset) -> Iterator[pl.DataFrame]:
    yield from dataset.frames_in_memory
    sorted_ = () if dataset.buckets is None else chain(*dataset.buckets.tables_by_bucket.values())
    yield from (table.read() for table in (*dataset.spilled_tables, *sorted_))


def _sample_frame(
    frame: pl.DataFrame, user: str, users: list[str], columns: list[str]
) -> pl.DataFrame:
    existing = [name for name in columns if name in frame.columns]
    events = frame.filter(pl.col(user).is_in(users)).select(
        pl.col(user).alias(POPULATION_USER),
        INDEX,
        TIME,
        *(name for name in existing if name != POPULATION_USER),
    )
    return events.with_columns(pl.Series(_SAMPLE_KEY, _compute_sample_keys(events)))


def _compute_sample_keys(frame: pl.DataFrame) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """Hash time and index of each event, to pseudo-random but reproducible keys, (rows,)."""
    parts = (frame[TIME].to_physical(), frame[INDEX])
    times, indices = (part.fill_null(0).to_numpy().astype(np.uint64) for part in parts)
    mixed = (times * np.uint64(_HASH_MULTIPLIERS[0])) ^ (indices * np.uint64(_HASH_MULTIPLIERS[1]))
    return np.asarray(
        (mixed ^ (mixed >> np.uint64(29))) * np.uint64(_HASH_MULTIPLIERS[0]), dtype=np.uint64
    )


DatasetT = TypeVar("DatasetT", bound=HasUserStats)
PartitionT = TypeVar("PartitionT", bound=Partition)


class PartitionStore(Protocol[DatasetT, PartitionT]):
    """Stores events between reading files and reading partitions.

    Attributes:
        partition_spec: What all partitions have in common.
    """

    partition_spec: PartitionSpec

    def read(self, read_task: ReadTask, paths: Sequence[LogPath], stats: ReadStats) -> DatasetT:
        """Read files, and count the users in them."""

    def partition_users(
        self, events: DatasetT, training: DatasetT | None, *, unbounded: bool
    ) -> list[PartitionT]:
        """Rank the users, and divide them into partitions.

        Args:
            events: The input.
            training: The history; None for no history.
            unbounded: Whether more input follows, so that the history is used again.
        """

    def sample(
        self, dataset: DatasetT, columns: Sequence[str], *, is_training: bool
    ) -> pl.DataFrame:
        """Draw a sample of all users; see `SampleSpec`.

        Args:
            dataset: The events.
            columns: The feature columns.
            is_training: Whether the events are the history, not the input.
        """


class PartitionSpec(msgspec.Struct, frozen=True):
    """What all partitions have in common; see `UserPartition` for the attributes."""

    event_key: EventKey
    derived_features: DerivedFeatures
    batch_size: int
    feature_columns: tuple[str, ...]
    late: LateEvents = LateEvents()

    def make_partition(
        self,
        users: pl.DataFrame,
        event_slice: PartitionSlice,
        history_slice: PartitionSlice | None,
        chunk_rows: int | None = None,
    ) -> UserPartition:
        """Make a partition of some users."""
        return UserPartition(
            users,
            event_slice,
            history_slice,
            self.event_key,
            self.derived_features,
            self.batch_size,
            chunk_rows,
            self.feature_columns,
            self.late,
        )


def iter_derived(partition: UserPartition) -> Iterator[pl.DataFrame]:
    """Read all events of a partition, with their derived columns."""
    state = partition.create_state()
    for chunk in partition.iter_chunks(ReadStats(), state):
        yield partition.derived_features.add(chunk.frame, recent=state.recent_rows)


class LocalPartitionStore(msgspec.Struct):
    """Stores events on this machine: in memory up to the budget, and else on disk.

    Attributes:
        partition_spec: What all partitions have in common.
        memory_budget: Limits of what is in memory.
        sample_spec: Size of the population sample.
        spill_dir: Folder for events on disk.
        pool: Processes that read and sort files.
    """

    partition_spec: PartitionSpec
    memory_budget: MemoryBudget
    sample_spec: SampleSpec
    spill_dir: SpillDir
    pool: WorkerPool

    def read(
        self, read_task: ReadTask, paths: Sequence[LogPath], stats: ReadStats
    ) -> SpilledDataset:
        """Read files, and spill to disk what does not fit into memory."""
        buffer = SpillBuffer(read_task.user, self.memory_budget, self.spill_dir)
        read_into_buffer(buffer, read_task, paths, stats, self.pool)
        return buffer.finish(read_task.wanted_columns if read_task.all_columns else ())

    def partition_users(
        self, events: SpilledDataset, training: SpilledDataset | None, *, unbounded: bool
    ) -> list[UserPartition]:
        """Rank and divide the users, and sort events on disk by partition."""
        history = None if training is None else training.user_stats
        max_cells = self._count_partition_cells(events, training)
        users = plan_partitions(
            events.user_stats, history, max_cells, include_history_only=not unbounded
        )
        self._sort_into_buckets(events, users)
        if training is not None:
            training_users = (
                plan_partitions(
                    training.user_stats,
                    None,
                    self._count_partition_cells(training),
                    include_history_only=True,
                )
                if unbounded
                else users
            )
            self._sort_into_buckets(training, training_users)
        return [
            self._make_partition(part, events, training, None if unbounded else max_cells)
            for part in users.partition_by(PARTITION, maintain_order=True)
        ]

    def sample(
        self,
        dataset: SpilledDataset,
        columns: Sequence[str],
        *,
        is_training: bool,  # noqa: ARG002 - a dataset of its own here
    ) -> pl.DataFrame:
        """Draw a sample of all users; see `PartitionStore.sample`."""
        names = self.partition_spec.derived_features.derived_columns
        frames = self._iter_derived(dataset) if names else None
        return self.sample_spec.take_sample(dataset, columns, derived_columns=names, frames=frames)

    def _iter_derived(self, dataset: SpilledDataset) -> Iterator[pl.DataFrame]:
        """Read all events with their derived columns, one partition at a time."""
        max_cells = self._count_partition_cells(dataset)
        users = plan_partitions(dataset.user_stats, None, max_cells, include_history_only=True)
        for part in users.partition_by(PARTITION, maintain_order=True):
            yield from iter_derived(self._make_partition(part, dataset, None, max_cells))

    def _make_partition(
        self,
        users: pl.DataFrame,
        events: SpilledDataset,
        training: SpilledDataset | None,
        max_cells: int | None,
    ) -> UserPartition:
        """Make a partition. A single user with more than half of `max_cells` is read in chunks.

        Larger chunks take more memory and no less time: `benchmarks/speed --only growth`.
        """
        chunk_rows = (
            None
            if max_cells is None
            else max(1, max_cells // (2 * (events.user_stats.num_columns or 1)))
        )
        if chunk_rows is not None and (users.height > 1 or users[NUM_EVENTS].sum() <= chunk_rows):
            chunk_rows = None
        history = None if training is None else training.slice_users(users)
        return self.partition_spec.make_partition(
            users, events.slice_users(users), history, chunk_rows
        )

    def _sort_into_buckets(self, dataset: SpilledDataset, users: pl.DataFrame) -> None:
        if dataset.spilled_tables:
            dataset.sort_into_buckets(users, self.pool, self.memory_budget, self.spill_dir.folder)

    def _count_partition_cells(self, *datasets: SpilledDataset | None) -> int:
        """Return the maximum number of cells of a partition: all cells, if they fit."""
        cells = sum(dataset.num_cells for dataset in datasets if dataset is not None)
        return (
            FIRST_PARTITION_DIVISOR * (cells + 1)
            if cells <= self.memory_budget.max_cells_in_memory
            else self.memory_budget.partition_cells
        )
