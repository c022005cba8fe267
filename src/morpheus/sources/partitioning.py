"""A portion of what was gathered: all events of some users, which any process can read."""

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

    def user_names(self) -> list[str | None]:
        """Name the users, in order; None for events without a user."""
        return self.users[USER].to_list()

    def events(self, metrics: RunMetrics, state: PartitionState | None = None) -> Iterator[Events]:
        """Read the users' events, all at once, or one time piece after the other.

        Args:
            metrics: Counts duplicates.
            state: What is remembered of earlier events; updated. None where there are no others.
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
        """Remember nothing yet, and later only what one piece has to know of another."""
        return PartitionState(None if self.chunk_rows is None else RecentRows())

    def iter_chunks(self, stats: ReadStats, state: PartitionState) -> Iterator[UserGroups]:
        """The events as they were logged, in pieces of their time.

        Args:
            stats: Counts duplicates.
            state: Recognises events of earlier reads; updated.
        """
        windows = [] if state.dedup_window is None else [state.dedup_window]
        if self.chunk_rows is None:
            yield self._group_by_user(self.event_slice.read(self.users), stats, windows)
            return
        cuts = TimeSplits.from_partition(self, self.chunk_rows)
        if len(cuts.possible_duplicates):
            windows.append(DedupWindow(cuts.possible_duplicates))
        for since, until in pairwise([None, *cuts.starts, None]):
            yield self._group_by_user(
                self.event_slice.read(self.users, since, until), stats, windows
            )

    def _group_by_user(
        self, frame: pl.DataFrame, stats: ReadStats, dedup_windows: Sequence[DedupWindow] = ()
    ) -> UserGroups:
        return UserGroups.from_frame(frame, self.users, self.event_key, stats, dedup_windows)


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
        tables = partition.event_slice.iter_frames(
            partition.users, columns=partition.event_key.columns
        )
        nothing = pl.DataFrame(schema={TIME: pl.Datetime("us", "UTC"), _HASH: pl.UInt64})
        marks = pl.concat(
            [nothing, *(_hash_events(table, partition.event_key) for table in tables)]
        )
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


MIN_MERGE_EVENTS = 10_000
"""Events that are drawn of together, at least."""
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
    """How large a sample is. No result hangs on how its events were read.

    Attributes:
        max_users: Users that it is of, at most.
        target_events: Events in it, about.
        min_events_per_user: Events of each user, at least, where there are so many.
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
        """Take a sample: `POPULATION_USER`, `TIME` and the feature columns, by owner, then time.

        Args:
            dataset: All events.
            columns: The feature columns.
            derived_columns: Those of them that are not in the log.
            frames: All events once more, with these; by default as they were gathered.
        """
        draw = self.make_sampler(dataset, columns, derived_columns=derived_columns)
        return draw.finish(draw.sample(_iter_all_frames(dataset) if frames is None else frames))

    def make_sampler(
        self,
        dataset: HasUserStats,
        columns: Sequence[str],
        *,
        derived_columns: Collection[str] = (),
    ) -> StratifiedSampler:
        """Decide what is drawn; see `of`."""
        chosen = self._choose_users(dataset.user_stats)
        each = max(self.min_events_per_user, self.target_events // max(1, len(chosen)))
        known = {*dataset.column_names, *derived_columns}
        there = [name for name in dict.fromkeys(columns) if name in known]
        return StratifiedSampler(dataset.user, chosen, each, there)

    def _choose_users(self, user_stats: UserStats) -> list[str]:
        users = user_stats.users[USER].unique().drop_nulls().to_list()
        return sorted(users, key=lambda user: blake2b(user.encode(), digest_size=8).digest())[
            : self.max_users
        ]


class HasUserStats(Protocol):
    """Events of which it is known who is in them, and which columns there are."""

    user: str
    column_names: list[str]
    user_stats: UserStats


@dataclass(frozen=True)
class StratifiedSampler:
    """What of each frame of events is in a sample.

    Attributes:
        user: Column of the user.
        users: Users that it is of.
        events_per_user: Events of each user.
        columns: Columns of these.
    """

    user: str
    users: list[str]
    events_per_user: int
    columns: list[str]

    def sample(self, frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
        """Draw of these events alone."""
        return self.merge(
            _sample_frame(frame, self.user, self.users, self.columns) for frame in frames
        )

    def merge(self, samples: Iterable[pl.DataFrame]) -> pl.DataFrame:
        """Join what was drawn of some events and of others."""
        sample, more = pl.DataFrame(schema=_SAMPLE_SCHEMA), list[pl.DataFrame]()
        for some in samples:
            more.append(some)
            # As much again: of many small tables, most would pass without a change.
            if sum(each.height for each in more) >= max(sample.height, MIN_MERGE_EVENTS):
                sample, more = self._keep_lowest([sample, *more]), []
        return self._keep_lowest([sample, *more])

    def _keep_lowest(self, samples: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """Of each user those events whose numbers are the lowest."""
        whole = pl.concat(samples, how="diagonal")
        return whole.filter(
            pl.col(_SAMPLE_KEY).rank("min").over(POPULATION_USER) <= self.events_per_user
        )

    def finish(self, sample: pl.DataFrame) -> pl.DataFrame:
        """The sample, once all events have been drawn of."""
        names = (POPULATION_USER, TIME, *self.columns)
        # Where every record was refused, there was no frame to bring the columns.
        absent = [pl.lit(None, pl.String).alias(n) for n in names if n not in sample.columns]
        return sample.with_columns(absent).select(names).sort(names, nulls_last=True)


def _iter_all_frames(dataset: SpilledDataset) -> Iterator[pl.DataFrame]:
    yield from dataset.frames_in_memory
    sorted_ = () if dataset.buckets is None else chain(*dataset.buckets.tables_by_bucket.values())
    yield from (blob.read() for blob in (*dataset.spilled_tables, *sorted_))


def _sample_frame(
    frame: pl.DataFrame, user: str, users: list[str], columns: list[str]
) -> pl.DataFrame:
    there = [name for name in columns if name in frame.columns]
    some = frame.filter(pl.col(user).is_in(users)).select(
        pl.col(user).alias(POPULATION_USER),
        INDEX,
        TIME,
        *(name for name in there if name != POPULATION_USER),
    )
    return some.with_columns(pl.Series(_SAMPLE_KEY, _compute_sample_keys(some)))


def _compute_sample_keys(frame: pl.DataFrame) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """Numbers that scatter events at random, and the same ones every time."""
    parts = (frame[TIME].to_physical(), frame[INDEX])
    times, places = (part.fill_null(0).to_numpy().astype(np.uint64) for part in parts)
    mixed = (times * np.uint64(_HASH_MULTIPLIERS[0])) ^ (places * np.uint64(_HASH_MULTIPLIERS[1]))
    return np.asarray(
        (mixed ^ (mixed >> np.uint64(29))) * np.uint64(_HASH_MULTIPLIERS[0]), dtype=np.uint64
    )


DatasetT = TypeVar("DatasetT", bound=HasUserStats)
PartitionT = TypeVar("PartitionT", bound=Partition)


class PartitionStore(Protocol[DatasetT, PartitionT]):
    """Where events lie from when they were read until they are handed out."""

    def read(self, read_task: ReadTask, paths: Sequence[LogPath], stats: ReadStats) -> DatasetT:
        """Read files, and see who is in them."""

    def partition_users(
        self, events: DatasetT, training: DatasetT | None, *, unbounded: bool
    ) -> list[PartitionT]:
        """Rank the users, and divide them into portions.

        Args:
            events: What is to be scored.
            training: What is to be learnt from; None for nothing.
            unbounded: Whether it is to be learnt from again with other events.
        """

    def sample(
        self, dataset: DatasetT, columns: Sequence[str], *, is_training: bool
    ) -> pl.DataFrame:
        """Take a sample of everybody; see `SampleSpec`.

        Args:
            dataset: Of which events.
            columns: The feature columns.
            is_training: Whether these are to be learnt from, not to be scored.
        """


@dataclass(frozen=True)
class PartitionSpec:
    """What portions have in common; see `UserPartition`."""

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
        """A portion of some users."""
        rows, features = self.batch_size, self.feature_columns
        return UserPartition(
            users,
            event_slice,
            history_slice,
            self.event_key,
            self.derived_features,
            rows,
            chunk_rows,
            features,
        )


def iter_derived(partition: UserPartition) -> Iterator[pl.DataFrame]:
    """All events of a portion, with their derived columns."""
    known = partition.create_state()
    for piece in partition.iter_chunks(ReadStats(), known):
        yield partition.derived_features.add(piece.frame, recent=known.recent_rows)


@dataclass
class LocalPartitionStore:
    """This machine: few events stay in memory, many are laid aside on disk.

    Attributes:
        partition_spec: What portions have in common.
        memory_budget: How much is held.
        sample_spec: How large a sample of everybody is.
        spill_dir: Where the rest is laid aside.
        pool: Processes that help.
    """

    partition_spec: PartitionSpec
    memory_budget: MemoryBudget
    sample_spec: SampleSpec
    spill_dir: SpillDir
    pool: WorkerPool

    def read(
        self, read_task: ReadTask, paths: Sequence[LogPath], stats: ReadStats
    ) -> SpilledDataset:
        """Read files, and lay aside what does not fit."""
        gathering = SpillBuffer(read_task.user, self.memory_budget, self.spill_dir)
        read_into_buffer(gathering, read_task, paths, stats, self.pool)
        return gathering.finish(read_task.wanted_columns if read_task.all_columns else ())

    def partition_users(
        self, events: SpilledDataset, training: SpilledDataset | None, *, unbounded: bool
    ) -> list[UserPartition]:
        """Rank and divide the users, and lay what is on disk down accordingly."""
        past = None if training is None else training.user_stats
        room = self._count_partition_cells(events, training)
        users = plan_partitions(events.user_stats, past, room, include_history_only=not unbounded)
        self._sort_into_buckets(events, users)
        if training is not None:
            whole = (
                plan_partitions(
                    training.user_stats,
                    None,
                    self._count_partition_cells(training),
                    include_history_only=True,
                )
                if unbounded
                else users
            )
            self._sort_into_buckets(training, whole)
        return [
            self._make_partition(some, events, training, None if unbounded else room)
            for some in users.partition_by(PARTITION, maintain_order=True)
        ]

    def sample(
        self, dataset: SpilledDataset, columns: Sequence[str], *, is_training: bool
    ) -> pl.DataFrame:
        """Draw it of all events, wherever they lie."""
        names = self.partition_spec.derived_features.derived_columns
        frames = self._iter_derived(dataset) if names else None
        return self.sample_spec.take_sample(dataset, columns, derived_columns=names, frames=frames)

    def _iter_derived(self, dataset: SpilledDataset) -> Iterator[pl.DataFrame]:
        """All events with their derived columns, some users after the others."""
        room = self._count_partition_cells(dataset)
        users = plan_partitions(dataset.user_stats, None, room, include_history_only=True)
        for some in users.partition_by(PARTITION, maintain_order=True):
            yield from iter_derived(self._make_partition(some, dataset, None, room))

    def _make_partition(
        self,
        users: pl.DataFrame,
        events: SpilledDataset,
        training: SpilledDataset | None,
        max_cells: int | None,
    ) -> UserPartition:
        """Some users; one who is larger than half the room comes in pieces of that size.

        Pieces as large as parts would take more memory, and no less time: `benchmarks/speed --only
        growth`.
        """
        piece = (
            None
            if max_cells is None
            else max(1, max_cells // (2 * (events.user_stats.num_columns or 1)))
        )
        if piece is not None and (users.height > 1 or users[NUM_EVENTS].sum() <= piece):
            piece = None
        past = None if training is None else training.slice_users(users)
        return self.partition_spec.make_partition(users, events.slice_users(users), past, piece)

    def _sort_into_buckets(self, dataset: SpilledDataset, users: pl.DataFrame) -> None:
        if dataset.spilled_tables:
            dataset.sort_into_buckets(users, self.pool, self.memory_budget, self.spill_dir.folder)

    def _count_partition_cells(self, *datasets: SpilledDataset | None) -> int:
        """Cells of a part; all of them where they fit."""
        cells = sum(one.num_cells for one in datasets if one is not None)
        return (
            FIRST_PARTITION_DIVISOR * (cells + 1)
            if cells <= self.memory_budget.max_cells_in_memory
            else self.memory_budget.partition_cells
        )


ResultT = TypeVar("ResultT")
ShuffleBlock = tuple[bool, list[SpilledTable]] | None
"""Tables of one part that one job of files has, and whether they are history; None for none."""

USER_OVERHEAD = 1_000
"""A user costs as much as so many events: a network is trained, however few they are."""
MIN_PARTITION_EVENTS, MAX_PARTITION_EVENTS = 20_000, 200_000
"""What a part of several users weighs, at least and at most, in events."""
PARTITIONS_PER_WORKER = 6
"""Parts for each worker: the last ones to be done should be small beside the whole."""
MIN_TASK_BYTES = 2_000_000
"""Bytes of text that are worth a task."""


@dataclass(frozen=True)
class ReadResult:
    """What a job of files has become: tables, packed."""

    tables: list[SpilledTable] = field(repr=False)
    user_stats: UserStats
    stats: ReadStats

    def __sizeof__(self) -> int:
        """Bytes, for the worker that holds it."""
        return object.__sizeof__(self) + sum(map(getsizeof, self.tables))


@dataclass
class DistributedDataset:
    """Events of one set of files, on the workers that have read them.

    Attributes:
        user: Column of the user.
        user_stats: Who is in them.
        column_names: All columns, in order.
        read_futures: The tasks that read them.
    """

    user: str
    user_stats: UserStats
    column_names: list[str]
    read_futures: list[Future[ReadResult]]


@dataclass(frozen=True)
class DistributedPartition:
    """All events of some users, on the worker where Dask's shuffle has brought them together.

    Attributes:
        cluster: The workers.
        partition: The users, and what is done with their events.
        blocks: The events, an array of `ColumnValue`.
        weight: How much work it is, in events.
    """

    cluster: Cluster
    partition: UserPartition
    blocks: Future[Any]
    weight: int

    def submit(
        self,
        work: Callable[..., ResultT],
        *needs: object,
        resources: Mapping[str, float] | None = None,
    ) -> Future[ResultT]:
        """Begin a task on the portion, where it lies; see `Cluster.submit`."""
        there, weight = partial(_run_on_partition, work, self.partition), self.weight
        return self.cluster.submit(there, self.blocks, *needs, priority=weight, resources=resources)

    def user_names(self) -> list[str | None]:
        """Name the users, in order; None for events without a user."""
        return self.partition.user_names()

    def events(self, metrics: RunMetrics, state: PartitionState | None = None) -> Iterator[Events]:
        """Fetch the events, for stages that have to see everybody's."""
        for whole in self.cluster.results([self.submit(_identity)]):
            yield from whole.events(metrics, state)


@dataclass
class DistributedPartitionStore:
    """The workers of a cluster, as a place where events lie.

    Attributes:
        partition_spec: What portions have in common.
        memory_budget: How much is in memory at a time.
        sample_spec: How large a sample of everybody is.
        cluster: The workers.
        partitions: What the users were divided into.
    """

    partition_spec: PartitionSpec
    memory_budget: MemoryBudget
    sample_spec: SampleSpec
    cluster: Cluster
    partitions: list[DistributedPartition] = field(default_factory=list, init=False)

    def read(
        self, read_task: ReadTask, paths: Sequence[LogPath], stats: ReadStats
    ) -> DistributedDataset:
        """Read files, each job by whatever worker is free."""
        sizes = [estimate_text_bytes(path) for path in paths]
        least = min(
            self.memory_budget.min_task_bytes,
            max(MIN_TASK_BYTES, sum(sizes) // (2 * self.cluster.parallelism)),
        )
        places = [path.absolute() if isinstance(path, Path) else path for path in paths]
        task = partial(run_read_task, read_task, self.memory_budget.spill_table_cells)
        jobs = [self.cluster.submit(task, job) for job in group_files(places, sizes, least)]
        census = UserStats.empty()
        for seen, became in self.cluster.results(
            [self.cluster.submit(_get_read_stats, one) for one in jobs]
        ):
            census.add(seen)
            stats.add(became)
        first = read_task.wanted_columns if read_task.all_columns else ()
        return DistributedDataset(read_task.user, census, list_columns(census, first), jobs)

    def partition_users(
        self,
        events: DistributedDataset,
        training: DistributedDataset | None,
        *,
        unbounded: bool,  # noqa: ARG002 - a cluster reads what ends
    ) -> list[DistributedPartition]:
        """Rank the users, pack them into parts, and bring each part together."""
        past = None if training is None else training.user_stats
        users = rank_users(events.user_stats, past, include_history_only=True)
        users = users.with_columns(
            assign_partitions(users[NUM_EVENTS].to_list(), self.cluster.parallelism)
        )
        columns = self._shuffle(events, training, users.select(USER, PARTITION))
        for some, cells in zip(
            users.partition_by(PARTITION, maintain_order=True), columns, strict=True
        ):
            present = PartitionSlice(events.user, events.column_names, [], [])
            before = (
                None
                if training is None
                else PartitionSlice(training.user, training.column_names, [], [])
            )
            piece = self._get_chunk_rows(some, events.user_stats.num_columns)
            portion = self.partition_spec.make_partition(
                some.select(USER, USER_RANK), present, before, piece
            )
            weight = int(some[NUM_EVENTS].sum()) + USER_OVERHEAD * some.height
            self.partitions.append(DistributedPartition(self.cluster, portion, cells, weight))
        return self.partitions

    def sample(
        self, dataset: DistributedDataset, columns: Sequence[str], *, is_training: bool
    ) -> pl.DataFrame:
        """Draw it of each portion, where it lies."""
        names = self.partition_spec.derived_features.derived_columns
        draw = self.sample_spec.make_sampler(dataset, columns, derived_columns=names)
        task = partial(_sample_partition, draw, is_training, bool(names))
        samples = self.cluster.results([portion.submit(task) for portion in self.partitions])
        return draw.finish(draw.merge(samples))

    def _get_chunk_rows(self, users: pl.DataFrame, num_columns: int) -> int | None:
        """Events at a time, of a user who is larger than the room; None for all."""
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
        """The cells of each part."""
        number = user_partitions[PARTITION].n_unique()
        if not number:
            return []
        plan = self.cluster.scatter(user_partitions)
        both = [(events, False), *([] if training is None else [(training, True)])]
        rows = [
            self.cluster.submit(_split_into_blocks, one, plan, known.user, number, history)
            for known, history in both
            for one in known.read_futures
        ]
        for known, _ in both:
            known.read_futures.clear()
        return self.cluster.shuffle(rows, number)


def assign_partitions(event_counts: Sequence[int], workers: int) -> pl.Series:
    """The part of each user: a user too heavy for company has one alone.

    >>> assign_partitions([5, 900_000, 7, 7], workers=2).to_list()
    [0, 1, 2, 2]
    """
    weights = [USER_OVERHEAD + each for each in event_counts]
    room = min(
        MAX_PARTITION_EVENTS,
        max(MIN_PARTITION_EVENTS, sum(weights) // (PARTITIONS_PER_WORKER * workers)),
    )
    return pl.Series(PARTITION, bin_pack(weights, room), dtype=pl.Int64)


def run_read_task(read_task: ReadTask, table_cells: int, paths: Sequence[LogPath]) -> ReadResult:
    """Read the files of a job, and keep what is in them.

    Args:
        read_task: How.
        table_cells: Cells of a table, about.
        paths: The files.

    Raises:
        UsageError: One of them is not seen here.
    """
    gone = next((one for one in paths if isinstance(one, Path) and not one.exists()), None)
    if gone is not None:
        raise UsageError(
            f"--engine dask: `{gone}` is here, but not on worker {platform.node()}. Put the files "
            "where all machines see them under the same path."
        )
    reading, census = ReadStats(), UserStats.empty()
    made = [
        spill_to_memory(frame)
        for frame in coalesce_frames(
            read_with_stats(read_task, paths, reading, census), table_cells
        )
    ]
    return ReadResult(made, census, reading)


def _get_read_stats(result: ReadResult) -> tuple[UserStats, ReadStats]:
    return result.user_stats, result.stats


def _split_into_blocks(
    result: ReadResult,
    user_partitions: pl.DataFrame,
    user: str,
    num_partitions: int,
    is_history: bool,  # noqa: FBT001 - a task's needs
) -> list[ShuffleBlock]:
    """The cells of one job's events, one a part."""
    cells: list[list[SpilledTable]] = [[] for _ in range(num_partitions)]
    for table in result.tables:
        for part, piece in zip(
            *split_by_partition(table.read(), user, user_partitions), strict=True
        ):
            cells[part].append(spill_to_memory(piece))
    return [(is_history, made) if made else None for made in cells]


def _run_on_partition(
    func: Callable[..., ResultT],
    partition: UserPartition,
    blocks: Any,  # noqa: ANN401 - a numpy array of cells
    *args: object,
) -> ResultT:
    """Do something with a portion whose events are there."""
    there: Mapping[bool, list[SpilledTable]] = {True: [], False: []}
    for history, made in filter(None, blocks.flat):
        there[history] += made
    present, past = (
        _attach_tables(partition.event_slice, there[False], partition),
        partition.history_slice,
    )
    past = None if past is None else _attach_tables(past, there[True], partition)
    return func(replace(partition, event_slice=present, history_slice=past), *args)


def _attach_tables(
    partition_slice: PartitionSlice, tables: list[SpilledTable], partition: UserPartition
) -> PartitionSlice:
    """Unpack all there is, or nothing yet of a user who comes in pieces."""
    if partition.chunk_rows is not None:
        return replace(partition_slice, spilled_tables=tables)
    return replace(partition_slice, frames_in_memory=[blob.read() for blob in tables])


def _sample_partition(
    sampler: StratifiedSampler, is_training: bool, with_derived: bool, partition: UserPartition
) -> pl.DataFrame:
    """What a sample has of a portion, of its history or of its events."""
    where = partition.history_slice if is_training else partition.event_slice
    assert where is not None  # noqa: S101 - there is history where history is asked for
    whole = replace(partition, event_slice=where, history_slice=None)
    lying = chain(where.frames_in_memory, (blob.read() for blob in where.spilled_tables))
    return sampler.sample(iter_derived(whole) if with_derived else lying)


def _identity(partition: UserPartition) -> UserPartition:
    return partition
