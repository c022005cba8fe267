"""Where events lie from when they were read until they are handed out: memory, and the disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import polars as pl

from morpheus.processes import WorkerPool
from morpheus.records import Partition, ReadStats
from morpheus.scratch import SpillDir
from morpheus.sources.by_user import EventKey
from morpheus.sources.census import FIRST_PARTITION_DIVISOR, PARTITION, NUM_EVENTS, plan_partitions
from morpheus.sources.deriving import DerivedFeatures
from morpheus.sources.files import LogPath
from morpheus.sources.gathering import SpilledDataset, SpillBuffer, MemoryBudget, PartitionSlice
from morpheus.sources.portion import UserPartition
from morpheus.sources.survey import HasUserStats, SampleSpec
from morpheus.sources.work import ReadTask, read_into_buffer

DatasetT = TypeVar("DatasetT", bound=HasUserStats)
PartitionT = TypeVar("PartitionT", bound=Partition)


class PartitionStore(Protocol[DatasetT, PartitionT]):
    """Where events lie from when they were read until they are handed out."""

    def read(self, read_task: ReadTask, paths: Sequence[LogPath], stats: ReadStats) -> DatasetT:
        """Read files, and see who is in them."""

    def partition_users(self, events: DatasetT, training: DatasetT | None, *, unbounded: bool) -> list[PartitionT]:
        """Rank the users, and divide them into portions.

        Args:
            events: What is to be scored.
            training: What is to be learnt from; None for nothing.
            unbounded: Whether it is to be learnt from again with other events.
        """

    def sample(self, dataset: DatasetT, columns: Sequence[str], *, is_training: bool) -> pl.DataFrame:
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
        self, users: pl.DataFrame, event_slice: PartitionSlice, history_slice: PartitionSlice | None, chunk_rows: int | None = None
    ) -> UserPartition:
        """A portion of some users."""
        rows, features = self.batch_size, self.feature_columns
        return UserPartition(
            users, event_slice, history_slice, self.event_key, self.derived_features, rows, chunk_rows, features
        )


def iter_derived(partition: UserPartition) -> Iterator[pl.DataFrame]:
    """All events of a portion, with their derived columns."""
    known = partition.create_state()
    for piece in partition.iter_chunks(ReadStats(), known):
        yield known.derived_features.add(piece.frame)


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

    def read(self, read_task: ReadTask, paths: Sequence[LogPath], stats: ReadStats) -> SpilledDataset:
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
            whole = plan_partitions(training.user_stats, None, self._count_partition_cells(training), include_history_only=True) if unbounded else users
            self._sort_into_buckets(training, whole)
        return [
            self._make_partition(some, events, training, None if unbounded else room)
            for some in users.partition_by(PARTITION, maintain_order=True)
        ]

    def sample(self, dataset: SpilledDataset, columns: Sequence[str], *, is_training: bool) -> pl.DataFrame:  # noqa: ARG002 - they lie apart here
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
        self, users: pl.DataFrame, events: SpilledDataset, training: SpilledDataset | None, max_cells: int | None
    ) -> UserPartition:
        """Some users; one who is larger than half the room comes in pieces of that size.

        Pieces as large as parts would take more memory, and no less time: `benchmarks/speed --only
        growth`.
        """
        piece = None if max_cells is None else max(1, max_cells // (2 * (events.user_stats.num_columns or 1)))
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
        return FIRST_PARTITION_DIVISOR * (cells + 1) if cells <= self.memory_budget.max_cells_in_memory else self.memory_budget.partition_cells
