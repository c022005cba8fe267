"""Events below each other, of files that do not all have the same columns."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Self

import polars as pl

from morpheus.columns import INDEX, TIME
from morpheus.runtime.pool import WorkerPool
from morpheus.sources.group_by_user import PARTITION, REPLAY_NO, USER, UserStats, drop_null_columns
from morpheus.storage.spill import SpillDir, SpilledTable, delete_spilled, spill_to_disk


def coalesce_frames(frames: Iterable[pl.DataFrame], min_cells: int) -> Iterator[pl.DataFrame]:
    """Join small frames, so that each is of so many cells at least, but for the last."""
    held: list[pl.DataFrame] = []
    for frame in frames:
        held.append(frame)
        if sum(one.height * one.width for one in held) >= min_cells:
            # What is yielded is held no longer here.
            held, joined = [], [concat_frames(held)]
            yield joined.pop()
    if held:
        yield concat_frames(held)


def concat_frames(
    frames: list[pl.DataFrame], column_names: list[str] | None = None
) -> pl.DataFrame:
    """Put frames below each other, in an order of columns that does not depend on theirs."""
    column_names = column_names or _merge_headers(
        frozenset(tuple(frame.columns) for frame in frames)
    )
    if not frames:
        texts = {name: pl.String for name in column_names if name not in {INDEX, TIME}}
        return pl.DataFrame(schema={INDEX: pl.Int64, **texts, TIME: pl.Datetime("us", "UTC")})
    whole = pl.concat(frames, how="diagonal", rechunk=True)
    there = set(whole.columns)
    absent = [pl.lit(None, pl.String).alias(n) for n in column_names if n not in there]
    copy = {REPLAY_NO} & there
    return whole.with_columns(absent).select(INDEX, *column_names, TIME, *copy)


def list_columns(user_stats: UserStats, leading_columns: tuple[str, ...] = ()) -> list[str]:
    """All columns; those that come first, then the others by name, or as the files have them."""
    names = _merge_headers(user_stats.headers)
    return list(dict.fromkeys([*leading_columns, *sorted(names)])) if leading_columns else names


def _merge_headers(headers: frozenset[tuple[str, ...]]) -> list[str]:
    """Those of the widest header, in its order, then those that others add."""
    known = sorted(headers, key=lambda header: (-len(header), header))
    names = dict.fromkeys(name for header in known for name in header)
    return [name for name in names if name not in {INDEX, TIME, REPLAY_NO}]


@dataclass(frozen=True)
class BucketedSpill:
    """Tables on disk, sorted by user.

    Attributes:
        user_buckets: The place, `MIN_CONTEXT_SHARE`, of each `USER`.
        tables_by_bucket: What lies in each place.
    """

    user_buckets: pl.DataFrame
    tables_by_bucket: Mapping[int, list[SpilledTable]]

    @classmethod
    def partition_by_bucket(  # noqa: PLR0913 - what is sorted, and with what
        cls,
        spilled_tables: list[SpilledTable],
        user: str,
        user_buckets: pl.DataFrame,
        *,
        max_rows_in_memory: int,
        max_table_rows: int,
        pool: WorkerPool,
        folder: Path,
    ) -> Self:
        """Sort tables, which go.

        Args:
            spilled_tables: The tables.
            user: Column of the user.
            user_buckets: The place, `MIN_CONTEXT_SHARE`, of each `USER`.
            max_rows_in_memory: Rows that are in memory together, at most, or those of one table.
            max_table_rows: Rows of a sorted table, at most.
            pool: Processes that help.
            folder: Where the sorted tables are written.
        """
        tables: dict[int, list[SpilledTable]] = {
            place: [] for place in user_buckets[PARTITION].unique()
        }
        jobs = list(_group_tables(spilled_tables, max_rows_in_memory))
        sort = partial(_split_tables, user, user_buckets, folder)
        for job, pieces in zip(jobs, pool.map(sort, jobs), strict=True):
            delete_spilled(job)
            for place, piece in pieces:
                tables[place].append(piece)
        return cls(user_buckets, _merge_buckets(tables, max_table_rows, pool, folder))

    def find_tables(self, users: pl.DataFrame) -> list[SpilledTable]:
        """The tables in which some users' events are, each `USER` of whom is known."""
        mine = self.user_buckets.join(users, on=USER, how="semi", nulls_equal=True)
        return [
            table
            for place in mine[PARTITION].unique().sort()
            for table in self.tables_by_bucket[place]
        ]


def _merge_buckets(
    tables_by_bucket: Mapping[int, list[SpilledTable]],
    max_rows: int,
    pool: WorkerPool,
    folder: Path,
) -> dict[int, list[SpilledTable]]:
    """Join small tables of a place: to open one takes longer than to pass over its few rows."""
    jobs = {
        place: list(_group_tables(blobs, max_rows)) for place, blobs in tables_by_bucket.items()
    }
    made = pool.map(partial(_merge_tables, folder), [job for some in jobs.values() for job in some])
    return {place: [next(made) for _ in some] for place, some in jobs.items()}


def _merge_tables(folder: Path, tables: Sequence[SpilledTable]) -> SpilledTable:
    if len(tables) == 1:
        return tables[0]
    [blob] = spill_to_disk(folder, [concat_frames([blob.read() for blob in tables])])
    delete_spilled(tables)
    return blob


def _group_tables(tables: list[SpilledTable], max_rows: int) -> Iterator[list[SpilledTable]]:
    """Tables that are taken together, in their order: of so many rows at most, or one alone."""
    job: list[SpilledTable] = []
    for blob in tables:
        if job and sum(one.num_rows for one in job) + blob.num_rows > max_rows:
            yield job
            job = []
        job.append(blob)
    if job:
        yield job


def _split_tables(
    user: str, user_buckets: pl.DataFrame, folder: Path, tables: list[SpilledTable]
) -> list[tuple[int, SpilledTable]]:
    frame = concat_frames([blob.read() for blob in tables])
    parts, pieces = split_by_partition(frame, user, user_buckets)
    return list(zip(parts, spill_to_disk(folder, pieces), strict=True))


def split_by_partition(
    frame: pl.DataFrame, user: str, user_partitions: pl.DataFrame
) -> tuple[list[int], Iterator[pl.DataFrame]]:
    """Divide events by the `MIN_CONTEXT_SHARE` of each `USER`: which parts there are, and what is of each."""
    names = frame.select(pl.col(user).alias(USER))
    parts = names.join(
        user_partitions, on=USER, how="left", nulls_equal=True, maintain_order="left"
    )[PARTITION]
    order = parts.arg_sort()
    frame, runs = frame[order], parts.gather(order).rle().struct.unnest()
    starts = runs["len"].cum_sum() - runs["len"]
    pieces = (frame.slice(at, length) for at, length in zip(starts, runs["len"], strict=True))
    return runs["value"].to_list(), pieces


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
        if self.num_cells > (
            self.memory_budget.spill_table_cells
            if self.spilled_tables
            else self.memory_budget.max_cells_in_memory
        ):
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
        if (
            self.spilled_tables
            and self.user_stats.num_events * self.user_stats.num_columns
            <= self.memory_budget.max_cells_in_memory
        ):
            self.frames_in_memory += [blob.read() for blob in self.spilled_tables]
            delete_spilled(self.spilled_tables)
            self.spilled_tables = []
        if self.spilled_tables and self.frames_in_memory:
            self._spill()
        names = list_columns(self.user_stats, leading_columns)
        done = SpilledDataset(
            self.user, self.user_stats, names, self.frames_in_memory, self.spilled_tables
        )
        self.user_stats, self.frames_in_memory, self.spilled_tables, self.num_cells = (
            UserStats.empty(),
            [],
            [],
            0,
        )
        return done

    def _spill(self) -> None:
        pieces = [
            frame.slice(start, step)
            for frame in self.frames_in_memory
            for step in [max(1, self.memory_budget.spill_table_cells // frame.width)]
            for start in range(0, frame.height, step)
        ]
        self.spilled_tables += spill_to_disk(
            self.spill_dir.folder, coalesce_frames(pieces, self.memory_budget.spill_table_cells)
        )
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

    def sort_into_buckets(
        self, plan: pl.DataFrame, pool: WorkerPool, memory_budget: MemoryBudget, folder: Path
    ) -> None:
        """Sort what is on disk, given the `MIN_CONTEXT_SHARE` of each `USER`, unless it is read but a few times.

        To read it over and over, for some users each time, is quicker than to write it once more.
        So it is sorted into few places only, of as many parts as are worth it.
        """
        if not self.spilled_tables or plan[PARTITION].n_unique() <= memory_budget.max_scan_passes:
            return
        places = plan.select(USER, pl.col(PARTITION) // memory_budget.partitions_per_bucket)
        blobs, self.spilled_tables = self.spilled_tables, []
        held, table = (
            max(1, cells // self.user_stats.num_columns)
            for cells in (memory_budget.partition_cells, memory_budget.spill_table_cells)
        )
        self.buckets = BucketedSpill.partition_by_bucket(
            blobs,
            self.user,
            places,
            max_rows_in_memory=held,
            max_table_rows=table,
            pool=pool,
            folder=folder,
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
