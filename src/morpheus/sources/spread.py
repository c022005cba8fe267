"""Events spread over the workers of a cluster: read where they lie, then brought together by user.

Each job of files is read by a task, which tells who is in them; the events stay where they were
read. Once all is known, the users are ranked as on one machine, and packed into parts of like
weight. Then each job's events are divided by part, and Dask's shuffle brings each part together.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from sys import getsizeof
from typing import Any, TypeVar

import polars as pl

from morpheus.cluster.workers import Cluster, Future
from morpheus.errors import UsageError
from morpheus.records import Events, ReadStats, RunMetrics
from morpheus.sources.census import PARTITION, USER_RANK, NUM_EVENTS, USER, UserStats, bin_pack, rank_users
from morpheus.sources.files import LogPath
from morpheus.sources.gathering import MemoryBudget, PartitionSlice
from morpheus.sources.ground import PartitionSpec, iter_derived
from morpheus.sources.portion import UserPartition
from morpheus.sources.shelves import split_by_partition
from morpheus.sources.survey import StratifiedSampler, SampleSpec
from morpheus.sources.union import list_columns, coalesce_frames
from morpheus.sources.work import ReadTask, read_with_stats, group_files, estimate_text_bytes
from morpheus.spill import SpilledTable, spill_to_memory

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

    def events(self, metrics: RunMetrics) -> Iterator[Events]:
        """Fetch the events, for stages that have to see everybody's."""
        for whole in self.cluster.results([self.submit(_identity)]):
            yield from whole.events(metrics)


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

    def read(self, read_task: ReadTask, paths: Sequence[LogPath], stats: ReadStats) -> DistributedDataset:
        """Read files, each job by whatever worker is free."""
        sizes = [estimate_text_bytes(path) for path in paths]
        least = min(self.memory_budget.min_task_bytes, max(MIN_TASK_BYTES, sum(sizes) // (2 * self.cluster.parallelism)))
        places = [path.absolute() if isinstance(path, Path) else path for path in paths]
        task = partial(run_read_task, read_task, self.memory_budget.spill_table_cells)
        jobs = [self.cluster.submit(task, job) for job in group_files(places, sizes, least)]
        census = UserStats.empty()
        for seen, became in self.cluster.results([self.cluster.submit(_get_read_stats, one) for one in jobs]):
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
        users = users.with_columns(assign_partitions(users[NUM_EVENTS].to_list(), self.cluster.parallelism))
        columns = self._shuffle(events, training, users.select(USER, PARTITION))
        for some, cells in zip(users.partition_by(PARTITION, maintain_order=True), columns, strict=True):
            present = PartitionSlice(events.user, events.column_names, [], [])
            before = None if training is None else PartitionSlice(training.user, training.column_names, [], [])
            piece = self._get_chunk_rows(some, events.user_stats.num_columns)
            portion = self.partition_spec.make_partition(some.select(USER, USER_RANK), present, before, piece)
            weight = int(some[NUM_EVENTS].sum()) + USER_OVERHEAD * some.height
            self.partitions.append(DistributedPartition(self.cluster, portion, cells, weight))
        return self.partitions

    def sample(self, dataset: DistributedDataset, columns: Sequence[str], *, is_training: bool) -> pl.DataFrame:
        """Draw it of each portion, where it lies."""
        names = self.partition_spec.derived_features.derived_columns
        draw = self.sample_spec.make_sampler(dataset, columns, derived_columns=names)
        task = partial(_sample_partition, draw, is_training, bool(names))
        samples = self.cluster.results([portion.submit(task) for portion in self.partitions])
        return draw.finish(draw.merge(samples))

    def _get_chunk_rows(self, users: pl.DataFrame, num_columns: int) -> int | None:
        """Events at a time, of a user who is larger than the room; None for all."""
        fits = users.height > 1 or users[NUM_EVENTS].sum() * num_columns <= self.memory_budget.max_cells_in_memory
        return None if fits else max(1, self.memory_budget.partition_cells // num_columns)

    def _shuffle(
        self, events: DistributedDataset, training: DistributedDataset | None, user_partitions: pl.DataFrame
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
    room = min(MAX_PARTITION_EVENTS, max(MIN_PARTITION_EVENTS, sum(weights) // (PARTITIONS_PER_WORKER * workers)))
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
    made = [spill_to_memory(frame) for frame in coalesce_frames(read_with_stats(read_task, paths, reading, census), table_cells)]
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
        for part, piece in zip(*split_by_partition(table.read(), user, user_partitions), strict=True):
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
    for history, made in filter(None, blocks.flatten_name):
        there[history] += made
    present, past = _attach_tables(partition.event_slice, there[False], partition), partition.history_slice
    past = None if past is None else _attach_tables(past, there[True], partition)
    return func(replace(partition, event_slice=present, history_slice=past), *args)


def _attach_tables(partition_slice: PartitionSlice, tables: list[SpilledTable], partition: UserPartition) -> PartitionSlice:
    """Unpack all there is, or nothing yet of a user who comes in pieces."""
    if partition.chunk_rows is not None:
        return replace(partition_slice, spilled_tables=tables)
    return replace(partition_slice, frames_in_memory=[blob.read() for blob in tables])


def _sample_partition(sampler: StratifiedSampler, is_training: bool, with_derived: bool, partition: UserPartition) -> pl.DataFrame:  # noqa: FBT001 - as above
    """What a sample has of a portion, of its history or of its events."""
    where = partition.history_slice if is_training else partition.event_slice
    assert where is not None  # noqa: S101 - there is history where history is asked for
    whole = replace(partition, event_slice=where, history_slice=None)
    lying = chain(where.frames_in_memory, (blob.read() for blob in where.spilled_tables))
    return sampler.sample(iter_derived(whole) if with_derived else lying)


def _identity(partition: UserPartition) -> UserPartition:
    return partition
