"""Collects events in memory, spills them to disk, and sorts them by user.

`SpillBuffer` takes events until all files are read, and `SpilledDataset` is the result. Events on
disk are sorted into buckets of partitions (`BucketedSpill`), if they would be read too often.
`PartitionSlice` reads the events of some users. `LatenessBuffer` keeps events of an endless input
until those before them have come.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Self

import msgspec
import polars as pl

from morpheus.columns import INDEX, TIME
from morpheus.core.batch import MicroBatch, Partition, RunMetrics
from morpheus.errors import UsageError
from morpheus.runtime.pool import WorkerPool
from morpheus.sources.group_by_user import PARTITION, REPLAY_NO, USER, UserStats, drop_null_columns
from morpheus.sources.time_range import current_time
from morpheus.storage.spill import SpillDir, SpilledTable, delete_spilled, spill_to_disk

logger = logging.getLogger(__name__)


def coalesce_frames(frames: Iterable[pl.DataFrame], min_cells: int) -> Iterator[pl.DataFrame]:
    """Join small frames, so that each except the last has at least `min_cells` cells."""
    held: list[pl.DataFrame] = []
    cells = 0
    for frame in frames:
        held.append(frame)
        cells += frame.height * frame.width
        if cells >= min_cells:
            # Drop all references before the yield, so that the caller can free the memory.
            held, cells, joined = [], 0, [concat_frames(held)]
            yield joined.pop()
    if held:
        yield concat_frames(held)


def concat_frames(
    frames: list[pl.DataFrame], column_names: list[str] | None = None
) -> pl.DataFrame:
    """Concatenate frames vertically, in an order of columns that does not depend on theirs.

    Args:
        frames: The frames.
        column_names: Order of the columns; None to derive it.
    """
    column_names = column_names or _merge_headers(
        frozenset(tuple(frame.columns) for frame in frames)
    )
    if not frames:
        texts = {name: pl.String for name in column_names if name not in {INDEX, TIME}}
        return pl.DataFrame(schema={INDEX: pl.Int64, **texts, TIME: pl.Datetime("us", "UTC")})
    whole = pl.concat(frames, how="diagonal", rechunk=True)
    existing = set(whole.columns)
    absent = [pl.lit(None, pl.String).alias(n) for n in column_names if n not in existing]
    return whole.with_columns(absent).select(INDEX, *column_names, TIME, *({REPLAY_NO} & existing))


def list_columns(user_stats: UserStats, leading_columns: tuple[str, ...] = ()) -> list[str]:
    """List all columns: the leading ones, then the others by name, or in the order of the files."""
    names = _merge_headers(user_stats.headers)
    return list(dict.fromkeys([*leading_columns, *sorted(names)])) if leading_columns else names


def _merge_headers(headers: frozenset[tuple[str, ...]]) -> list[str]:
    """List the columns of the widest header, then the columns that other headers add."""
    ordered = sorted(headers, key=lambda header: (-len(header), header))
    names = dict.fromkeys(name for header in ordered for name in header)
    return [name for name in names if name not in {INDEX, TIME, REPLAY_NO}]


class BucketedSpill(msgspec.Struct, frozen=True):
    """Tables on disk, sorted into buckets of users.

    Attributes:
        user_buckets: The bucket, in `PARTITION`, of each `USER`.
        tables_by_bucket: The tables of each bucket.
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
        """Sort tables into buckets, and delete them.

        Args:
            spilled_tables: The tables.
            user: Name of the user column.
            user_buckets: The bucket, in `PARTITION`, of each `USER`.
            max_rows_in_memory: Maximum number of rows in memory, or those of one table.
            max_table_rows: Maximum number of rows of a sorted table.
            pool: Processes that sort.
            folder: Folder for the sorted tables.
        """
        tables: dict[int, list[SpilledTable]] = {
            bucket: [] for bucket in user_buckets[PARTITION].unique()
        }
        groups = list(_group_tables(spilled_tables, max_rows_in_memory))
        split = partial(_split_tables, user, user_buckets, folder)
        for group, parts in zip(groups, pool.map(split, groups), strict=True):
            delete_spilled(group)
            for bucket, table in parts:
                tables[bucket].append(table)
        return cls(user_buckets, _merge_buckets(tables, max_table_rows, pool, folder))

    def find_tables(self, users: pl.DataFrame) -> list[SpilledTable]:
        """Return the tables that contain the events of some users.

        Args:
            users: `USER` of each user.
        """
        found = self.user_buckets.join(users, on=USER, how="semi", nulls_equal=True)
        return [
            table
            for bucket in found[PARTITION].unique().sort()
            for table in self.tables_by_bucket[bucket]
        ]


def _merge_buckets(
    tables_by_bucket: Mapping[int, list[SpilledTable]],
    max_rows: int,
    pool: WorkerPool,
    folder: Path,
) -> dict[int, list[SpilledTable]]:
    """Merge small tables of a bucket: opening a table takes longer than reading a few rows."""
    groups = {
        bucket: list(_group_tables(tables, max_rows)) for bucket, tables in tables_by_bucket.items()
    }
    merged = pool.map(
        partial(_merge_tables, folder), [g for parts in groups.values() for g in parts]
    )
    return {bucket: [next(merged) for _ in parts] for bucket, parts in groups.items()}


def _merge_tables(folder: Path, tables: Sequence[SpilledTable]) -> SpilledTable:
    if len(tables) == 1:
        return tables[0]
    [merged] = spill_to_disk(folder, [concat_frames([table.read() for table in tables])])
    delete_spilled(tables)
    return merged


def _group_tables(tables: list[SpilledTable], max_rows: int) -> Iterator[list[SpilledTable]]:
    """Group tables, in order, up to `max_rows` rows; a larger table is a group alone."""
    group: list[SpilledTable] = []
    for table in tables:
        if group and sum(t.num_rows for t in group) + table.num_rows > max_rows:
            yield group
            group = []
        group.append(table)
    if group:
        yield group


def _split_tables(
    user: str, user_buckets: pl.DataFrame, folder: Path, tables: list[SpilledTable]
) -> list[tuple[int, SpilledTable]]:
    frame = concat_frames([table.read() for table in tables])
    buckets, frames = split_by_partition(frame, user, user_buckets)
    return list(zip(buckets, spill_to_disk(folder, frames), strict=True))


def split_by_partition(
    frame: pl.DataFrame, user: str, user_partitions: pl.DataFrame
) -> tuple[list[int], Iterator[pl.DataFrame]]:
    """Split events by partition.

    Args:
        frame: The events.
        user: Name of the user column.
        user_partitions: `PARTITION` of each `USER`.

    Returns:
        The partitions that have events, and the events of each.
    """
    names = frame.select(pl.col(user).alias(USER))
    partitions = names.join(
        user_partitions, on=USER, how="left", nulls_equal=True, maintain_order="left"
    )[PARTITION]
    order = partitions.arg_sort()
    frame, runs = frame[order], partitions.gather(order).rle().struct.unnest()
    starts = runs["len"].cum_sum() - runs["len"]
    frames = (frame.slice(start, length) for start, length in zip(starts, runs["len"], strict=True))
    return runs["value"].to_list(), frames


_BYTES_PER_CELL = 36
"""Average size of a cell that shares its text with no other."""


class MemoryBudget(msgspec.Struct, frozen=True):
    """Limits of what is in memory. Does not affect results.

    Attributes:
        max_cells_in_memory: Maximum number of cells before events are spilled to disk. Cells that
            share their text with others count less.
        partition_cells: Approximate number of cells of a partition.
        spill_table_cells: Approximate number of cells of a table on disk.
        max_scan_passes: Maximum number of partitions for which all tables on disk are scanned once
            per partition. With more partitions, the tables are sorted into buckets first.
        partitions_per_bucket: Number of partitions per bucket.
        min_task_bytes: Minimum bytes of text that a worker reads at a time.
        serial_threshold_bytes: Bytes of text up to which reading serially is faster than starting
            workers.
    """

    max_cells_in_memory: int = 8_000_000
    partition_cells: int = 3_000_000
    spill_table_cells: int = 1_600_000
    max_scan_passes: int = 24
    partitions_per_bucket: int = 8
    min_task_bytes: int = 32_000_000
    serial_threshold_bytes: int = 100_000_000


_SMALL_ROWS, _MAX_SMALL = 1 << 12, 1 << 10
"""Rows below which a frame counts as small, and number of small frames that wait to be joined."""


class SpillBuffer(msgspec.Struct):
    """Collects the events of one run or micro-batch.

    The order in which events are added does not matter. Columns without values, of which logs have
    many, are dropped and restored when the events are read: `user_stats` has their names.

    Attributes:
        user: Name of the user column.
        memory_budget: Limits of what is in memory.
        spill_dir: Folder for events on disk.
        user_stats: Statistics of the users.
        frames_in_memory: Events in memory.
        spilled_tables: Events on disk.
        num_cells: Size of the events in memory, in cells that share no text.
        num_small: Number of frames in memory with few rows.
    """

    user: str
    memory_budget: MemoryBudget
    spill_dir: SpillDir
    user_stats: UserStats = msgspec.field(default_factory=UserStats.empty)
    frames_in_memory: list[pl.DataFrame] = msgspec.field(default_factory=list)
    spilled_tables: list[SpilledTable] = msgspec.field(default_factory=list)
    num_cells: int = 0
    num_small: int = 0

    def add(self, frame: pl.DataFrame) -> None:
        """Add events: `INDEX_FILE`, text columns and `TIME`, in any order."""
        self.user_stats.add(UserStats.from_frame(frame, self.user))
        frame = drop_null_columns(frame, self.user)
        self.frames_in_memory.append(frame)
        self.num_small += frame.height < _SMALL_ROWS
        if self.num_small > _MAX_SMALL:
            self._join_small()
        self.num_cells += int(frame.estimated_size()) // _BYTES_PER_CELL
        if self.num_cells > (
            self.memory_budget.spill_table_cells
            if self.spilled_tables
            else self.memory_budget.max_cells_in_memory
        ):
            self._spill()

    def add_spilled(self, tables: Iterable[SpilledTable], user_stats: UserStats) -> None:
        """Add events that are on disk."""
        self.user_stats.add(user_stats)
        self.spilled_tables += tables

    def finish(self, leading_columns: tuple[str, ...] = ()) -> SpilledDataset:
        """Return all events, and reset the buffer.

        Args:
            leading_columns: Columns that come first; the others follow by name. Empty to keep the
                order of the files.
        """
        if (
            self.spilled_tables
            and self.user_stats.num_events * self.user_stats.num_columns
            <= self.memory_budget.max_cells_in_memory
        ):
            self.frames_in_memory += [table.read() for table in self.spilled_tables]
            delete_spilled(self.spilled_tables)
            self.spilled_tables = []
        if self.spilled_tables and self.frames_in_memory:
            self._spill()
        names = list_columns(self.user_stats, leading_columns)
        dataset = SpilledDataset(
            self.user, self.user_stats, names, self.frames_in_memory, self.spilled_tables
        )
        self.user_stats, self.frames_in_memory, self.spilled_tables = UserStats.empty(), [], []
        self.num_cells = self.num_small = 0
        return dataset

    def _join_small(self) -> None:
        """Join frames with few rows: of tens of thousands, columns take more memory than rows."""
        small = [frame for frame in self.frames_in_memory if frame.height < _SMALL_ROWS]
        others = [frame for frame in self.frames_in_memory if frame.height >= _SMALL_ROWS]
        self.frames_in_memory, self.num_small = [*others, concat_frames(small)], 0

    def _spill(self) -> None:
        slices = [
            frame.slice(start, step)
            for frame in self.frames_in_memory
            for step in [max(1, self.memory_budget.spill_table_cells // frame.width)]
            for start in range(0, frame.height, step)
        ]
        self.spilled_tables += spill_to_disk(
            self.spill_dir.folder, coalesce_frames(slices, self.memory_budget.spill_table_cells)
        )
        self.frames_in_memory, self.num_cells, self.num_small = [], 0, 0


class SpilledDataset(msgspec.Struct):
    """All events of a run or micro-batch.

    Attributes:
        user: Name of the user column.
        user_stats: Statistics of the users.
        column_names: All columns, in order.
        frames_in_memory: Events in memory.
        spilled_tables: Events on disk.
        buckets: Events on disk, sorted; None if they are not sorted.
    """

    user: str
    user_stats: UserStats
    column_names: list[str]
    frames_in_memory: list[pl.DataFrame]
    spilled_tables: list[SpilledTable]
    buckets: BucketedSpill | None = None

    @property
    def num_cells(self) -> int:
        """Return the number of cells with values."""
        return self.user_stats.num_events * self.user_stats.num_columns

    def take_frames(self) -> Iterator[pl.DataFrame]:
        """Yield all events, and remove them."""
        frames, tables = self.frames_in_memory, self.spilled_tables
        self.frames_in_memory, self.spilled_tables = [], []
        yield from frames
        for table in tables:
            yield table.read()
        delete_spilled(tables)

    def sort_into_buckets(
        self, plan: pl.DataFrame, pool: WorkerPool, memory_budget: MemoryBudget, folder: Path
    ) -> None:
        """Sort the tables on disk into buckets, unless there are few partitions.

        Scanning all tables for each of a few partitions is faster than writing them again. For the
        same reason a bucket has several partitions.

        Args:
            plan: `PARTITION` of each `USER`.
            pool: Processes that sort.
            memory_budget: Limits of what is in memory.
            folder: Folder for the sorted tables.
        """
        if not self.spilled_tables or plan[PARTITION].n_unique() <= memory_budget.max_scan_passes:
            return
        user_buckets = plan.select(USER, pl.col(PARTITION) // memory_budget.partitions_per_bucket)
        tables, self.spilled_tables = self.spilled_tables, []
        rows_in_memory, table_rows = (
            max(1, cells // self.user_stats.num_columns)
            for cells in (memory_budget.partition_cells, memory_budget.spill_table_cells)
        )
        self.buckets = BucketedSpill.partition_by_bucket(
            tables,
            self.user,
            user_buckets,
            max_rows_in_memory=rows_in_memory,
            max_table_rows=table_rows,
            pool=pool,
            folder=folder,
        )

    def slice_users(self, users: pl.DataFrame) -> PartitionSlice:
        """Return the location of the events of some users.

        Args:
            users: `USER` of each user.
        """
        tables = self.spilled_tables if self.buckets is None else self.buckets.find_tables(users)
        return PartitionSlice(self.user, self.column_names, self.frames_in_memory, tables)


class PartitionSlice(msgspec.Struct, frozen=True):
    """Location of the events of some users, among those of others.

    See `SpilledDataset` for the attributes.
    """

    user: str
    column_names: list[str]
    frames_in_memory: list[pl.DataFrame]
    spilled_tables: list[SpilledTable]

    def read(
        self, users: pl.DataFrame, start: datetime | None = None, end: datetime | None = None
    ) -> pl.DataFrame:
        """Read the events of some users, in no particular order.

        Args:
            users: `USER` of each user.
            start: First time, inclusive; None for no limit.
            end: Last time, exclusive; None for no limit.
        """
        return concat_frames(list(self.iter_frames(users, start, end)), self.column_names)

    def iter_frames(
        self,
        users: pl.DataFrame,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        columns: Collection[str] | None = None,
    ) -> Iterator[pl.DataFrame]:
        """Read the same events, optionally only some columns, one table at a time."""
        wanted = pl.col(self.user).is_in(users[USER].implode(), nulls_equal=True)
        if start is not None:
            wanted &= pl.col(TIME) >= start
        if end is not None:
            wanted &= pl.col(TIME) < end
        for frame in self.frames_in_memory:
            events = _filter_rows(frame, wanted)
            yield events.select(n for n in events.columns if columns is None or n in columns)
        for table in self.spilled_tables:
            if table.overlaps(start, end):
                yield table.read(wanted, columns)


def _filter_rows(frame: pl.DataFrame, wanted: pl.Expr) -> pl.DataFrame:
    rows = frame.select(wanted).to_series()
    return frame if rows.all() else frame.filter(rows)


_BUFFER, HELD_EVENTS = "lateness", "lateness/"
"""Names of the offsets of a `LatenessBuffer`: of its state, and of the events that it holds."""
_MIN_IDLE_SECONDS = 10.0
"""Minimum number of seconds without an event after which a partition of the source is idle."""
_MAX_HELD_BYTES = 1 << 28
_MAX_SEGMENTS = 64
_MAX_SOURCE_PARTITIONS = 10_000
_BEFORE_ALL = -(1 << 62)


class _BufferState(msgspec.Struct):
    """What a buffer must know after a restart, beside the events that it holds.

    Attributes:
        released: Events before this time have been released, in microseconds since 1970.
        latest: Time of the latest event of each partition of the source.
        headers: The distinct column lists of the events.
        number: Number of the next segment.
    """

    released: int = _BEFORE_ALL
    latest: dict[str, int] = {}
    headers: list[list[str]] = []
    number: int = 0


class LatenessBuffer(msgspec.Struct):
    """Holds the events of an endless input until those before them have come.

    The watermark of a partition of the source is the time of its latest event, less the allowance.
    Events before the lowest watermark are released. A partition without events for a while does not
    count; one that has events, but was not read yet, does. If none has events, all are released. An
    event before the latest released one is late: it is passed on at once.

    Without an allowance, it passes on what an earlier run has held, and all other events as they
    come.

    What is held is part of the checkpoint: as segments, which do not change. A restart drops what
    was released of them.

    Attributes:
        allowance: How much earlier than the latest event an event may be.
        max_bytes: Maximum size of what is held. Above it, the earliest half is released.
        clock: Returns a time in seconds, to know how long no event has come.
        state: What a restart must know.
        segments: The events that are held, by the name of their offset.
        read_nothing: Makes partitions of what is released while no event comes; None before the
            source has read anything.
    """

    allowance: timedelta
    max_bytes: int = _MAX_HELD_BYTES
    clock: Callable[[], float] = time.monotonic
    state: _BufferState = msgspec.field(default_factory=_BufferState)
    segments: dict[str, pl.DataFrame] = msgspec.field(default_factory=dict)
    read_nothing: Callable[[], Sequence[Partition]] | None = None
    _heard: dict[str, float] = msgspec.field(default_factory=dict)
    _changed: dict[str, bytes] = msgspec.field(default_factory=dict)

    @staticmethod
    def is_in(offsets: Iterable[str]) -> bool:
        """Return whether a checkpoint is of a run that had an allowance."""
        return any(name.startswith(_BUFFER) for name in offsets)

    def restore(self, offsets: Mapping[str, bytes]) -> dict[str, bytes]:
        """Continue after a checkpoint, and return the offsets of the source itself.

        Raises:
            UsageError: The offsets are damaged.
        """
        mine = {name: data for name, data in offsets.items() if name.startswith(_BUFFER)}
        try:
            if _BUFFER in mine:
                self.state = msgspec.msgpack.decode(mine.pop(_BUFFER), type=_BufferState)
            for name, data in sorted(mine.items()):
                frame = pl.read_ipc(io.BytesIO(data))
                self.segments[name] = frame.filter(_microseconds() >= self.state.released)
        except (msgspec.MsgspecError, pl.exceptions.PolarsError, OSError) as error:
            raise UsageError(
                f"--state: the events that wait for earlier ones cannot be read: {error}. Delete "
                "the state file to start from the first input."
            ) from error
        self._heard = dict.fromkeys(self.state.latest, self.clock())
        return {name: data for name, data in offsets.items() if not name.startswith(_BUFFER)}

    def expect(self, names: Iterable[str]) -> None:
        """Wait for events of partitions of the source that have some, and have not been read."""
        for name in names:
            if name not in self.state.latest:
                self.state.latest[name] = _BEFORE_ALL
                self._heard[name] = self.clock()

    def complete(
        self, micro_batches: Iterable[MicroBatch], metrics: RunMetrics
    ) -> Iterator[MicroBatch]:
        """Add what the buffer releases while no event comes, and its offsets, to micro-batches.

        Args:
            micro_batches: What the source reads. Its events pass the buffer before.
            metrics: Shows the watermarks, and the number of late events.
        """
        for micro_batch in micro_batches:
            partitions = micro_batch.partitions
            if not partitions and self._is_waiting_for_nothing() and self.read_nothing is not None:
                partitions = self.read_nothing()
            yield self._extend(micro_batch, partitions)
            if metrics.stream is not None:
                latest = self.state.latest.items()
                known = {name: at / 1e6 for name, at in latest if at != _BEFORE_ALL}
                metrics.stream.watermarks = known
                metrics.stream.late = metrics.input.late
        if self.segments and self.read_nothing is not None:
            self._heard = {}
            yield self._extend(MicroBatch(), self.read_nothing())

    def exchange(
        self,
        dataset: SpilledDataset,
        latest: Mapping[str, int],
        pass_on: Callable[[pl.DataFrame], None],
    ) -> datetime | None:
        """Take events, and pass on those that are released.

        Args:
            dataset: The events that were read.
            latest: Time of the latest of them, by partition of the source, in microseconds.
            pass_on: Takes the released events, in any order.

        Returns:
            The time before which they are late; None if none can be.
        """
        before = self.state.released
        self._note(dataset, latest)
        if not self.allowance:
            self._pass_all(dataset, pass_on)
            return None
        self._release(self._find_watermark(), dataset, pass_on)
        size = sum(segment.estimated_size() for segment in self.segments.values())
        if size > self.max_bytes:
            logger.warning(
                "--allowed_lateness: %d MB of events wait for earlier ones. The earliest half is "
                "passed on. Give a shorter time.",
                int(size) >> 20,
            )
            held = [segment.select(_microseconds()) for segment in self.segments.values()]
            middle = pl.concat(held).to_series().median()
            self._release(int(middle or 0), None, pass_on)  # type: ignore[arg-type] # a number
        if len(self.segments) > _MAX_SEGMENTS:
            self._join_segments()
        self._changed[_BUFFER] = msgspec.msgpack.encode(self.state)
        return None if before == _BEFORE_ALL else _EPOCH + timedelta(microseconds=before)

    @property
    def num_held(self) -> int:
        """Number of events that wait for earlier ones."""
        return sum(segment.height for segment in self.segments.values())

    @property
    def headers(self) -> set[tuple[str, ...]]:
        """The distinct column lists of all events so far."""
        return {tuple(header) for header in self.state.headers}

    def _extend(self, micro_batch: MicroBatch, partitions: Sequence[Partition]) -> MicroBatch:
        changed, self._changed = self._changed, {}
        offsets = {**micro_batch.offsets, **changed}
        return MicroBatch(partitions, offsets, micro_batch.acknowledge)

    def _note(self, dataset: SpilledDataset, latest: Mapping[str, int]) -> None:
        """Remember how far each partition of the source has come."""
        clock_time = (current_time() - _EPOCH) // timedelta(microseconds=1)
        for name, at in latest.items():
            # An event after the clock comes from a wrong one, and makes no other late.
            known = self.state.latest.pop(name, _BEFORE_ALL)
            self.state.latest[name] = max(known, min(at, clock_time))
            self._heard[name] = self.clock()
        for name in list(self.state.latest)[:-_MAX_SOURCE_PARTITIONS]:
            del self.state.latest[name]
        headers = self.headers | dataset.user_stats.headers
        self.state.headers = [list(header) for header in sorted(headers)]

    def _find_watermark(self) -> int:
        latest = self.state.latest
        active = [at for name, at in latest.items() if not self._is_idle(name)]
        if active:
            allowance = self.allowance // timedelta(microseconds=1)
            return max(self.state.released, min(active) - allowance)
        return max([self.state.released, *(at + 1 for at in latest.values())])

    def _is_idle(self, name: str) -> bool:
        limit = max(_MIN_IDLE_SECONDS, self.allowance.total_seconds())
        return self.clock() - self._heard.get(name, float("-inf")) > limit

    def _is_waiting_for_nothing(self) -> bool:
        """Return whether events are held although a partition that they wait for is idle."""
        return bool(self.segments) and self._find_watermark() > self.state.released

    def _release(
        self,
        watermark: int,
        dataset: SpilledDataset | None,
        pass_on: Callable[[pl.DataFrame], None],
    ) -> None:
        """Pass on the events before a watermark: of the segments, and of what was read."""
        is_before, held = _microseconds() < watermark, list[pl.DataFrame]()
        for frame in () if dataset is None else dataset.take_frames():
            held.append(frame.filter(~is_before))
            pass_on(frame.filter(is_before))
        for name, segment in list(self.segments.items()):
            ready = segment.filter(is_before)
            if ready.height:
                pass_on(ready)
                self.segments[name] = segment.filter(~is_before)
            if ready.height == segment.height:
                del self.segments[name]
                self._changed[name] = b""
        self.state.released = watermark
        self._hold([frame for frame in held if frame.height])

    def _pass_all(self, dataset: SpilledDataset, pass_on: Callable[[pl.DataFrame], None]) -> None:
        """Pass on all events, and forget in the checkpoint that some were held."""
        for frame in [*self.segments.values(), *dataset.take_frames()]:
            pass_on(frame)
        self._changed |= dict.fromkeys([*self.segments, _BUFFER], b"")
        self.segments = {}

    def _hold(self, frames: Sequence[pl.DataFrame]) -> None:
        if not frames:
            return
        name = f"{HELD_EVENTS}{self.state.number:012}"
        self.state.number += 1
        self.segments[name] = pl.concat(frames, how="diagonal", rechunk=True)
        data = io.BytesIO()
        self.segments[name].write_ipc(data, compression="zstd")
        self._changed[name] = data.getvalue()

    def _join_segments(self) -> None:
        frames = list(self.segments.values())
        self._changed.update(dict.fromkeys(self.segments, b""))
        self.segments = {}
        self._hold(frames)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _microseconds() -> pl.Expr:
    return pl.col(TIME).dt.epoch("us")
