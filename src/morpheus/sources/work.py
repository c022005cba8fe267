"""The work of reading files, divided among worker processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import polars as pl

from morpheus.columns import TIME
from morpheus.processes import WorkerPool
from morpheus.records import ReadStats
from morpheus.sources import times
from morpheus.sources.by_user import REPLAY_NO
from morpheus.sources.census import UserStats, find_non_null_columns, drop_null_columns
from morpheus.sources.files import COMPRESSED_SUFFIXES, LogPath, get_file_size
from morpheus.sources.flatten import Flattener
from morpheus.sources.gathering import SpillBuffer
from morpheus.sources.log_files import FileDiscovery
from morpheus.sources.log_format import LogFormat
from morpheus.sources.reader import Reader
from morpheus.sources.union import coalesce_frames
from morpheus.spill import SpilledTable, spill_to_disk

_COMPRESSION_RATIO = 8
"""What compression saves, about; what is not that small is only read in larger pieces."""


@dataclass(frozen=True)
class ReadTask:
    """How files become frames: all that a worker has to know.

    Attributes:
        log_format: Of which kind of log they are.
        files: How each is read.
        user: Column of the user.
        wanted_columns: The columns that pass from JSON, in order.
        only_user: Keep the events of this user; None for all.
        require_user: Keep only events that have a user.
        skip_bad_records: Leave bad records out, and count them.
        all_columns: Pass on all columns of JSON.
        repeat: How often each file is read, later each time; see `replicate`.
    """

    log_format: LogFormat
    files: FileDiscovery
    user: str
    wanted_columns: tuple[str, ...]
    only_user: str | None = None
    require_user: bool = False
    skip_bad_records: bool = False
    all_columns: bool = False
    repeat: int = 1

    def read_frames(
        self, paths: Sequence[LogPath], stats: ReadStats, user_stats: UserStats
    ) -> Iterator[pl.DataFrame]:
        """Read files, in their order, into frames of `INDEX_FILE`, text columns and `TIME`.

        Args:
            paths: The files.
            stats: Counts what becomes of the records.
            user_stats: Told which columns have values.
        """
        form = self.log_format
        names, everything = form.columns_to_decode(self.wanted_columns, self.user), self.all_columns
        flattener = Flattener(names, form.paths, form.json_converters, form.drop_characters, all_columns=everything)
        reader = Reader(
            form,
            flattener,
            self.user,
            self.skip_bad_records,
            stats,
            one_frame_per_file=self.repeat > 1,
            wanted_columns=None if everything else self.wanted_columns,
        )
        for frame in reader.read_frames(paths, self.files):
            user_stats.non_null_columns |= find_non_null_columns(frame)
            yield self._filter_events(self._replicate(self._filter_time_range(frame, stats), stats), stats)

    def _filter_time_range(self, frame: pl.DataFrame, stats: ReadStats) -> pl.DataFrame:
        """Leave out, and count, what is outside the period."""
        if self.files.time_range is None:
            return frame
        kept = self.files.time_range.filter(frame)
        stats.outside_range += frame.height - kept.height
        return kept

    def _replicate(self, frame: pl.DataFrame, stats: ReadStats) -> pl.DataFrame:
        if self.repeat == 1:
            return frame
        copies = replicate(frame, self.repeat, self.log_format.time_column)
        stats.read += copies.height - frame.height
        return copies

    def _filter_events(self, frame: pl.DataFrame, stats: ReadStats) -> pl.DataFrame:
        user = pl.col(self.user)
        if self.log_format.event_class_filter is not None and self.log_format.event_class_filter[0] in frame.columns:
            column, wanted = self.log_format.event_class_filter
            kept = frame.filter(pl.col(column).is_in(wanted) | pl.col(column).is_null())
            stats.other_classes += frame.height - kept.height
            frame = kept
        if self.only_user is not None:
            kept = frame.filter(user == self.only_user)
            stats.other_users += frame.height - kept.height
            frame = kept
        if self.require_user:
            kept = frame.filter(user.is_not_null())
            stats.no_user += frame.height - kept.height
            frame = kept
        return frame


def read_into_buffer(
    buffer: SpillBuffer, read_task: ReadTask, paths: Sequence[LogPath], stats: ReadStats, pool: WorkerPool
) -> None:
    """Read files into a gathering, by workers where there is much to read.

    Raises:
        UsageError: A table lacks the user's column, or a file must not be read.
        BadRecord: A record cannot be read, and bad ones are not left out; the first in the order
            of files.
        Unavailable: The disk is full, or a worker was killed.
    """
    room = buffer.memory_budget
    sizes = [estimate_text_bytes(path) for path in paths]
    if pool.parallelism == 1 or sum(sizes) < room.serial_threshold_bytes:
        for frame in read_task.read_frames(paths, stats, buffer.user_stats):
            buffer.add(frame)
        return
    read = partial(_read_and_spill, read_task, room.spill_table_cells, buffer.spill_dir.folder)
    for blobs, census, counted in pool.map(read, group_files(paths, sizes, room.min_task_bytes)):
        stats.add(counted)
        buffer.add_spilled(blobs, census)


def estimate_text_bytes(path: LogPath) -> int:
    """Bytes of text that a file holds, about."""
    size = get_file_size(path)
    packed = path.suffix.lower() in {*COMPRESSED_SUFFIXES, ".parquet"}
    return size * _COMPRESSION_RATIO if packed else size


def group_files(paths: Sequence[LogPath], sizes: Sequence[int], min_bytes: int) -> Iterator[list[LogPath]]:
    """Put files together until they hold so many bytes."""
    job: list[LogPath] = []
    total = 0
    for path, size in zip(paths, sizes, strict=True):
        job.append(path)
        total += size
        if total >= min_bytes:
            yield job
            job, total = [], 0
    if job:
        yield job


def _read_and_spill(
    read_task: ReadTask, table_cells: int, folder: Path, paths: Sequence[LogPath]
) -> tuple[list[SpilledTable], UserStats, ReadStats]:
    reading, census = ReadStats(), UserStats.empty()
    blobs = spill_to_disk(folder, coalesce_frames(read_with_stats(read_task, paths, reading, census), table_cells))
    return blobs, census, reading


def read_with_stats(
    read_task: ReadTask, paths: Sequence[LogPath], stats: ReadStats, user_stats: UserStats
) -> Iterator[pl.DataFrame]:
    """Read files into frames, of the columns with values; and add who is in them to a census."""
    for frame in read_task.read_frames(paths, stats, user_stats):
        user_stats.add(UserStats.from_frame(frame, read_task.user))
        yield drop_null_columns(frame, read_task.user)


def replicate(frame: pl.DataFrame, count: int, time_column: str) -> pl.DataFrame:
    """Put later copies below the events of a file, each as long after the last as the file lasts.

    Args:
        frame: Events with `TIME` and, as text, the time as logged.
        count: How often the events are there in the end.
        time_column: Column of the time as logged, rewritten in the copies.
    """
    span = pl.col(TIME).max() - pl.col(TIME).min()
    copies = [frame.with_columns(pl.lit(0).alias(REPLAY_NO))]
    for copy in range(1, count):
        later = frame.with_columns(pl.col(TIME) + span * copy, pl.lit(copy).alias(REPLAY_NO))
        copies.append(later.with_columns(pl.col(TIME).dt.strftime(times.DEFAULT_TIME_FORMAT).alias(time_column)))
    return pl.concat(copies)
