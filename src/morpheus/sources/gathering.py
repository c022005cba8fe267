"""Events of many files brought together, however many: in memory while they are few, else on disk.

What does not fit is laid aside as it is read, together with a census of its users. Once all is
read, the users are ranked and divided into parts that fit, and what was laid aside is sorted into
these parts. Then part after part is read back, put in order, and handed out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import polars as pl

from morpheus.columns import TIME
from morpheus.processes import WorkerPool
from morpheus.scratch import SpillDir
from morpheus.sources.census import PARTITION, USER, UserStats, drop_null_columns
from morpheus.sources.shelves import BucketedSpill
from morpheus.sources.union import list_columns, coalesce_frames, concat_frames
from morpheus.spill import SpilledTable, delete_spilled, spill_to_disk


@dataclass(frozen=True)
class MemoryBudget:
    """How much is in memory at a time. No result depends on it.

    Attributes:
        max_cells_in_memory: Cells of events that are held before the first are laid aside.
        partition_cells: Cells of the users that are handed out together, about, or sorted together.
        spill_table_cells: Cells of a table on disk, about.
        max_scan_passes: Parts up to which all that is on disk is passed over for each.
        partitions_per_bucket: Parts whose events are sorted into one place, where there are more.
        min_task_bytes: Bytes of text that a worker reads in one go, at least.
        serial_threshold_bytes: Bytes of text that are read before workers would have started.
    """

    max_cells_in_memory: int = 8_000_000
    partition_cells: int = 3_000_000
    spill_table_cells: int = 1_600_000
    max_scan_passes: int = 24
    partitions_per_bucket: int = 8
    min_task_bytes: int = 32_000_000
    serial_threshold_bytes: int = 100_000_000


@dataclass
class SpillBuffer:
    """Events of one run, or of one round of a run, until all are there.

    Nothing depends on the order in which they are added. Columns without a value, of which logs
    have many, are left out until the events are handed out: the census knows their names.

    Args:
        user: Column of the user.
        memory_budget: How much is held.
        spill_dir: Where the rest is laid aside.
    """

    user: str
    memory_budget: MemoryBudget
    spill_dir: SpillDir
    user_stats: UserStats = field(default_factory=UserStats.empty)
    frames_in_memory: list[pl.DataFrame] = field(default_factory=list)
    spilled_tables: list[SpilledTable] = field(default_factory=list)
    num_cells: int = 0

    def add(self, frame: pl.DataFrame) -> None:
        """Add events: `INDEX_FILE`, text columns, `TIME`, in any order of columns and rows."""
        self.user_stats.add(UserStats.from_frame(frame, self.user))
        frame = drop_null_columns(frame, self.user)
        self.frames_in_memory.append(frame)
        self.num_cells += frame.height * frame.width
        if self.num_cells > (self.memory_budget.spill_table_cells if self.spilled_tables else self.memory_budget.max_cells_in_memory):
            self._spill()

    def add_spilled(self, tables: Iterable[SpilledTable], user_stats: UserStats) -> None:
        """Add events that lie on disk."""
        self.user_stats.add(user_stats)
        self.spilled_tables += tables

    def finish(self, leading_columns: tuple[str, ...] = ()) -> SpilledDataset:
        """All that was added; begins anew.

        Args:
            leading_columns: Columns that come first, all others then by name; none to keep the files' order.
        """
        if self.spilled_tables and self.user_stats.num_events * self.user_stats.num_columns <= self.memory_budget.max_cells_in_memory:
            self.frames_in_memory += [blob.read() for blob in self.spilled_tables]
            delete_spilled(self.spilled_tables)
            self.spilled_tables = []
        if self.spilled_tables and self.frames_in_memory:
            self._spill()
        names = list_columns(self.user_stats, leading_columns)
        done = SpilledDataset(self.user, self.user_stats, names, self.frames_in_memory, self.spilled_tables)
        self.user_stats, self.frames_in_memory, self.spilled_tables, self.num_cells = UserStats.empty(), [], [], 0
        return done

    def _spill(self) -> None:
        pieces = [
            frame.slice(start, step)
            for frame in self.frames_in_memory
            for step in [max(1, self.memory_budget.spill_table_cells // frame.width)]
            for start in range(0, frame.height, step)
        ]
        self.spilled_tables += spill_to_disk(self.spill_dir.folder, coalesce_frames(pieces, self.memory_budget.spill_table_cells))
        self.frames_in_memory, self.num_cells = [], 0


@dataclass
class SpilledDataset:
    """Events that are all there, of which those of some users can be had.

    Attributes:
        user: Column of the user.
        user_stats: Who is in them.
        column_names: All columns, in order.
        frames_in_memory: Events in memory.
        spilled_tables: Events on disk.
        buckets: What was on disk, once it is sorted.
    """

    user: str
    user_stats: UserStats
    column_names: list[str]
    frames_in_memory: list[pl.DataFrame]
    spilled_tables: list[SpilledTable]
    buckets: BucketedSpill | None = None

    @property
    def num_cells(self) -> int:
        """Size, in cells."""
        return self.user_stats.num_events * self.user_stats.num_columns

    def sort_into_buckets(self, plan: pl.DataFrame, pool: WorkerPool, memory_budget: MemoryBudget, folder: Path) -> None:
        """Sort what is on disk, given the `MIN_CONTEXT_SHARE` of each `USER`, unless it is read but a few times.

        To read it over and over, for some users each time, is quicker than to write it once more.
        So it is sorted into few places only, of as many parts as are worth it.
        """
        if not self.spilled_tables or plan[PARTITION].n_unique() <= memory_budget.max_scan_passes:
            return
        places = plan.select(USER, pl.col(PARTITION) // memory_budget.partitions_per_bucket)
        blobs, self.spilled_tables = self.spilled_tables, []
        held, table = (max(1, cells // self.user_stats.num_columns) for cells in (memory_budget.partition_cells, memory_budget.spill_table_cells))
        self.buckets = BucketedSpill.partition_by_bucket(
            blobs, self.user, places, max_rows_in_memory=held, max_table_rows=table, pool=pool, folder=folder
        )

    def slice_users(self, users: pl.DataFrame) -> PartitionSlice:
        """Where the events of these users are."""
        blobs = self.spilled_tables if self.buckets is None else self.buckets.find_tables(users)
        return PartitionSlice(self.user, self.column_names, self.frames_in_memory, blobs)


@dataclass(frozen=True)
class PartitionSlice:
    """Where events of some users are, and of others beside them; see `SpilledDataset`."""

    user: str
    column_names: list[str]
    frames_in_memory: list[pl.DataFrame]
    spilled_tables: list[SpilledTable]

    def read(
        self, users: pl.DataFrame, start: datetime | None = None, end: datetime | None = None
    ) -> pl.DataFrame:
        """The events of these users, in no order; from a time on, and before another, if given."""
        return concat_frames(list(self.iter_frames(users, start, end)), self.column_names)

    def iter_frames(
        self,
        users: pl.DataFrame,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        columns: Collection[str] | None = None,
    ) -> Iterator[pl.DataFrame]:
        """The same, or some columns of it, table after table as they lie."""
        wanted = pl.col(self.user).is_in(users[USER].implode(), nulls_equal=True)
        if start is not None:
            wanted &= pl.col(TIME) >= start
        if end is not None:
            wanted &= pl.col(TIME) < end
        for frame in self.frames_in_memory:
            some = _filter_rows(frame, wanted)
            yield some.select(n for n in some.columns if columns is None or n in columns)
        for blob in self.spilled_tables:
            if blob.overlaps(start, end):
                yield blob.read(wanted, columns)


def _filter_rows(frame: pl.DataFrame, wanted: pl.Expr) -> pl.DataFrame:
    rows = frame.select(wanted).to_series()
    return frame if rows.all() else frame.filter(rows)
