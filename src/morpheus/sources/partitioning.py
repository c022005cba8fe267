"""Divides events into partitions of users, on this machine or on a Dask cluster.

`UserPartition` has all events of some users, and any process can read it. `LocalPartitionStore`
and `DistributedPartitionStore` read files, rank the users and make the partitions. `SampleSpec`
draws a sample of all users for the population model.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from hashlib import blake2b
from itertools import chain, pairwise
from pathlib import Path
from sys import getsizeof
from typing import Any, Protocol, TypeVar

import numpy as np
import polars as pl

from morpheus.columns import INDEX, POPULATION_USER, TIME
from morpheus.core.batch import Events, Partition, ReadStats, RunMetrics
from morpheus.errors import UsageError
from morpheus.runtime.dask_cluster import Cluster, Future
from morpheus.runtime.pool import WorkerPool
from morpheus.sources.compression import LogPath
from morpheus.sources.group_by_user import (
    FIRST_PARTITION_DIVISOR,
    NUM_EVENTS,
    PARTITION,
    USER,
    USER_RANK,
    DedupWindow,
    EventKey,
    UserGroups,
    UserStats,
    bin_pack,
    compute_event_keys,
    iter_batches,
    plan_partitions,
    rank_users,
)
from morpheus.sources.log_format import DerivedFeatures, RecentRows
from morpheus.sources.reader import (
    ReadTask,
    estimate_text_bytes,
    group_files,
    read_into_buffer,
    read_with_stats,
)
from morpheus.sources.source_state import PartitionState
from morpheus.sources.spill_sort import (
    MemoryBudget,
    PartitionSlice,
    SpillBuffer,
    SpilledDataset,
    coalesce_frames,
    list_columns,
    split_by_partition,
)
from morpheus.storage.spill import SpillDir, SpilledTable, spill_to_memory

_HASH, _CHUNK = "_hash_", "_piece_"


@dataclass(frozen=True)
class UserPartition:
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
    """

    users: pl.DataFrame
    event_slice: PartitionSlice
    history_slice: PartitionSlice | None
    event_key: EventKey
    derived_features: DerivedFeatures
    batch_size: int
    chunk_rows: int | None = None
    feature_columns: tuple[str, ...] = ()

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
            now.frame = self.derived_features.add(now.frame, history, state.recent_rows)
            if past is not None:
                past.frame = self.derived_features.add(past.frame)
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


@dataclass(frozen=True)
class TimeSplits:
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
    if event_key.id_column not in table.columns:
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


@dataclass(frozen=True)
class SampleSpec:
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


@dataclass(frozen=True)
class StratifiedSampler:
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
        merged, pending = pl.DataFrame(schema=_SAMPLE_SCHEMA), list[pl.DataFrame]()
        for sample in samples:
            pending.append(sample)
            # Merge once the pending events double the sample: merging each table would be slow.
            if sum(frame.height for frame in pending) >= max(merged.height, MIN_MERGE_EVENTS):
                merged, pending = self._keep_lowest([merged, *pending]), []
        return self._keep_lowest([merged, *pending])

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
    """Stores events between reading files and reading partitions."""

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


@dataclass(frozen=True)
class PartitionSpec:
    """What all partitions have in common; see `UserPartition` for the attributes."""

    event_key: EventKey
    derived_features: DerivedFeatures
    batch_size: int
    feature_columns: tuple[str, ...]

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
        )


def iter_derived(partition: UserPartition) -> Iterator[pl.DataFrame]:
    """Read all events of a partition, with their derived columns."""
    state = partition.create_state()
    for chunk in partition.iter_chunks(ReadStats(), state):
        yield partition.derived_features.add(chunk.frame, recent=state.recent_rows)


@dataclass
class LocalPartitionStore:
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


ResultT = TypeVar("ResultT")
ShuffleBlock = tuple[bool, list[SpilledTable]] | None
"""Tables of one partition from one read task, and whether they are history; None for no tables."""

USER_OVERHEAD = 1_000
"""Fixed cost of a user, in events: every user needs a network to be trained."""
MIN_PARTITION_EVENTS, MAX_PARTITION_EVENTS = 20_000, 200_000
"""Minimum and maximum weight of a partition of several users, in events."""
PARTITIONS_PER_WORKER = 6
"""Number of partitions per worker, so that workers finish at about the same time."""
MIN_TASK_BYTES = 2_000_000
"""Minimum bytes of text of a read task."""


@dataclass(frozen=True)
class ReadResult:
    """Result of a read task.

    Attributes:
        tables: The events, compressed.
        user_stats: Statistics of the users.
        stats: Counts of the records.
    """

    tables: list[SpilledTable] = field(repr=False)
    user_stats: UserStats
    stats: ReadStats

    def __sizeof__(self) -> int:
        """Return the size in bytes, for the memory management of Dask."""
        return object.__sizeof__(self) + sum(map(getsizeof, self.tables))


@dataclass
class DistributedDataset:
    """Events of one set of files, on the workers that read them.

    Attributes:
        user: Name of the user column.
        user_stats: Statistics of the users.
        column_names: All columns, in order.
        read_futures: Futures of the read tasks.
    """

    user: str
    user_stats: UserStats
    column_names: list[str]
    read_futures: list[Future[ReadResult]]


@dataclass(frozen=True)
class DistributedPartition:
    """All events of some users, on the worker to which Dask's shuffle moved them.

    Attributes:
        cluster: The cluster.
        partition: The users, without their events.
        blocks: Future of the events, an array of `ShuffleBlock`.
        weight: Amount of work, in events; the priority of its tasks.
    """

    cluster: Cluster
    partition: UserPartition
    blocks: Future[Any]
    weight: int

    def submit(
        self,
        func: Callable[..., ResultT],
        *args: object,
        resources: Mapping[str, float] | None = None,
    ) -> Future[ResultT]:
        """Start a task on the worker that has the partition; see `Cluster.submit`.

        Args:
            func: Called with the partition and `args`.
            *args: More arguments, which may be futures.
            resources: Resources that the task needs.
        """
        task = partial(_run_on_partition, func, self.partition)
        return self.cluster.submit(
            task, self.blocks, *args, priority=self.weight, resources=resources
        )

    def user_names(self) -> list[str | None]:
        """Name the users, in order; None for events without a user."""
        return self.partition.user_names()

    def events(self, metrics: RunMetrics, state: PartitionState | None = None) -> Iterator[Events]:
        """Fetch the events to this process, for stages that need the events of all users."""
        for partition in self.cluster.results([self.submit(_identity)]):
            yield from partition.events(metrics, state)


@dataclass
class DistributedPartitionStore:
    """Stores events on the workers of a cluster.

    Attributes:
        partition_spec: What all partitions have in common.
        memory_budget: Limits of what is in memory.
        sample_spec: Size of the population sample.
        cluster: The cluster.
        partitions: The partitions, once `partition_users` has made them.
    """

    partition_spec: PartitionSpec
    memory_budget: MemoryBudget
    sample_spec: SampleSpec
    cluster: Cluster
    partitions: list[DistributedPartition] = field(default_factory=list, init=False)

    def read(
        self, read_task: ReadTask, paths: Sequence[LogPath], stats: ReadStats
    ) -> DistributedDataset:
        """Read files on the workers."""
        sizes = [estimate_text_bytes(path) for path in paths]
        min_bytes = min(
            self.memory_budget.min_task_bytes,
            max(MIN_TASK_BYTES, sum(sizes) // (2 * self.cluster.parallelism)),
        )
        absolute = [path.absolute() if isinstance(path, Path) else path for path in paths]
        task = partial(run_read_task, read_task, self.memory_budget.spill_table_cells)
        futures = [
            self.cluster.submit(task, group) for group in group_files(absolute, sizes, min_bytes)
        ]
        user_stats = UserStats.empty()
        for task_users, task_stats in self.cluster.results(
            [self.cluster.submit(_get_read_stats, future) for future in futures]
        ):
            user_stats.add(task_users)
            stats.add(task_stats)
        first = read_task.wanted_columns if read_task.all_columns else ()
        columns = list_columns(user_stats, first)
        return DistributedDataset(read_task.user, user_stats, columns, futures)

    def partition_users(
        self,
        events: DistributedDataset,
        training: DistributedDataset | None,
        *,
        unbounded: bool,  # noqa: ARG002 - a cluster reads what ends
    ) -> list[DistributedPartition]:
        """Rank the users, assign them to partitions, and shuffle the events."""
        history = None if training is None else training.user_stats
        users = rank_users(events.user_stats, history, include_history_only=True)
        users = users.with_columns(
            assign_partitions(users[NUM_EVENTS].to_list(), self.cluster.parallelism)
        )
        columns = self._shuffle(events, training, users.select(USER, PARTITION))
        for part, blocks in zip(
            users.partition_by(PARTITION, maintain_order=True), columns, strict=True
        ):
            event_slice = PartitionSlice(events.user, events.column_names, [], [])
            history_slice = (
                None
                if training is None
                else PartitionSlice(training.user, training.column_names, [], [])
            )
            partition = self.partition_spec.make_partition(
                part.select(USER, USER_RANK),
                event_slice,
                history_slice,
                self._get_chunk_rows(part, events.user_stats.num_columns),
            )
            weight = int(part[NUM_EVENTS].sum()) + USER_OVERHEAD * part.height
            self.partitions.append(DistributedPartition(self.cluster, partition, blocks, weight))
        return self.partitions

    def sample(
        self, dataset: DistributedDataset, columns: Sequence[str], *, is_training: bool
    ) -> pl.DataFrame:
        """Draw a sample of all users; see `PartitionStore.sample`."""
        names = self.partition_spec.derived_features.derived_columns
        sampler = self.sample_spec.make_sampler(dataset, columns, derived_columns=names)
        task = partial(
            _sample_partition, sampler, is_training=is_training, with_derived=bool(names)
        )
        samples = self.cluster.results([partition.submit(task) for partition in self.partitions])
        return sampler.finish(sampler.merge(samples))

    def _get_chunk_rows(self, users: pl.DataFrame, num_columns: int) -> int | None:
        """Return the events per chunk for a user who does not fit into memory; None for all."""
        fits = (
            users.height > 1
            or users[NUM_EVENTS].sum() * num_columns <= self.memory_budget.max_cells_in_memory
        )
        return None if fits else max(1, self.memory_budget.partition_cells // num_columns)

    def _shuffle(
        self,
        events: DistributedDataset,
        training: DistributedDataset | None,
        user_partitions: pl.DataFrame,
    ) -> list[Future[Any]]:
        """Move the events of each partition to one worker."""
        num_partitions = user_partitions[PARTITION].n_unique()
        if not num_partitions:
            return []
        plan = self.cluster.scatter(user_partitions)
        datasets = [(events, False), *([] if training is None else [(training, True)])]
        rows = [
            self.cluster.submit(
                _split_into_blocks, future, plan, dataset.user, num_partitions, is_history
            )
            for dataset, is_history in datasets
            for future in dataset.read_futures
        ]
        for dataset, _ in datasets:
            dataset.read_futures.clear()
        return self.cluster.shuffle(rows, num_partitions)


def assign_partitions(event_counts: Sequence[int], workers: int) -> pl.Series:
    """Assign users to partitions; a user with many events has a partition alone.

    Args:
        event_counts: Number of events of each user.
        workers: Number of workers.

    Returns:
        The partition of each user.

    >>> assign_partitions([5, 900_000, 7, 7], workers=2).to_list()
    [0, 1, 2, 2]
    """
    weights = [USER_OVERHEAD + count for count in event_counts]
    capacity = min(
        MAX_PARTITION_EVENTS,
        max(MIN_PARTITION_EVENTS, sum(weights) // (PARTITIONS_PER_WORKER * workers)),
    )
    return pl.Series(PARTITION, bin_pack(weights, capacity), dtype=pl.Int64)


def run_read_task(read_task: ReadTask, table_cells: int, paths: Sequence[LogPath]) -> ReadResult:
    """Read files on a worker.

    Args:
        read_task: How to read them.
        table_cells: Approximate number of cells of a table.
        paths: The files.

    Raises:
        UsageError: A file does not exist on this worker.
    """
    missing = next((path for path in paths if isinstance(path, Path) and not path.exists()), None)
    if missing is not None:
        raise UsageError(
            f"--engine dask: `{missing}` does not exist on worker {platform.node()}. Put the files "
            "where all machines can read them under the same path."
        )
    stats, user_stats = ReadStats(), UserStats.empty()
    frames = coalesce_frames(read_with_stats(read_task, paths, stats, user_stats), table_cells)
    tables = [spill_to_memory(frame) for frame in frames]
    return ReadResult(tables, user_stats, stats)


def _get_read_stats(result: ReadResult) -> tuple[UserStats, ReadStats]:
    return result.user_stats, result.stats


def _split_into_blocks(
    result: ReadResult,
    user_partitions: pl.DataFrame,
    user: str,
    num_partitions: int,
    is_history: bool,  # noqa: FBT001 - a task's needs
) -> list[ShuffleBlock]:
    """Split the events of a read task into one block per partition."""
    blocks: list[list[SpilledTable]] = [[] for _ in range(num_partitions)]
    for table in result.tables:
        for partition, frame in zip(
            *split_by_partition(table.read(), user, user_partitions), strict=True
        ):
            blocks[partition].append(spill_to_memory(frame))
    return [(is_history, tables) if tables else None for tables in blocks]


def _run_on_partition(
    func: Callable[..., ResultT],
    partition: UserPartition,
    blocks: Any,  # noqa: ANN401 - a numpy array of cells
    *args: object,
) -> ResultT:
    """Call a function with a partition and its events."""
    tables: Mapping[bool, list[SpilledTable]] = {True: [], False: []}
    for is_history, block in filter(None, blocks.flat):
        tables[is_history] += block
    events = _attach_tables(partition.event_slice, tables[False], partition)
    history = partition.history_slice
    history = None if history is None else _attach_tables(history, tables[True], partition)
    return func(replace(partition, event_slice=events, history_slice=history), *args)


def _attach_tables(
    partition_slice: PartitionSlice, tables: list[SpilledTable], partition: UserPartition
) -> PartitionSlice:
    """Add tables to a slice, decompressed unless they are read in chunks."""
    if partition.chunk_rows is not None:
        return replace(partition_slice, spilled_tables=tables)
    return replace(partition_slice, frames_in_memory=[table.read() for table in tables])


def _sample_partition(
    sampler: StratifiedSampler,
    partition: UserPartition,
    *,
    is_training: bool,
    with_derived: bool,
) -> pl.DataFrame:
    """Sample the history or the events of a partition."""
    events = partition.history_slice if is_training else partition.event_slice
    assert events is not None  # noqa: S101 - a partition has history if the dataset is training
    frames = chain(events.frames_in_memory, (table.read() for table in events.spilled_tables))
    if with_derived:
        return sampler.sample(
            iter_derived(replace(partition, event_slice=events, history_slice=None))
        )
    return sampler.sample(frames)


def _identity(partition: UserPartition) -> UserPartition:
    return partition
