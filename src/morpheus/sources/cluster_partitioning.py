"""Divides events into partitions of users on a Dask cluster.

`DistributedPartitionStore` reads files on the workers, ranks the users, and moves the events of
each partition to one worker.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from sys import getsizeof
from typing import Any, TypeVar

import msgspec
import polars as pl
from msgspec.structs import replace

from morpheus.core.batch import Events, ReadStats, RunMetrics
from morpheus.errors import UsageError
from morpheus.runtime.dask_cluster import Cluster, Future
from morpheus.sources.compression import LogPath
from morpheus.sources.group_by_user import (
    NUM_EVENTS,
    PARTITION,
    USER,
    USER_RANK,
    UserStats,
    bin_pack,
    rank_users,
)
from morpheus.sources.partitioning import (
    PartitionSpec,
    SampleSpec,
    StratifiedSampler,
    UserPartition,
    iter_derived,
)
from morpheus.sources.reader import ReadTask, estimate_text_bytes, group_files, read_with_stats
from morpheus.sources.source_state import PartitionState
from morpheus.sources.spill_sort import (
    MemoryBudget,
    PartitionSlice,
    coalesce_frames,
    list_columns,
    split_by_partition,
)
from morpheus.storage.spill import SpilledTable, spill_to_memory

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


class DistributedDataset(msgspec.Struct):
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


class DistributedPartition(msgspec.Struct, frozen=True):
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
