"""Files of one kind of log, read into tables with a time, every record accounted for."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import msgspec
import polars as pl

from morpheus.columns import ACTOR, INDEX, TIME
from morpheus.core.batch import ReadStats
from morpheus.errors import RecordError, UsageError
from morpheus.runtime.pool import WorkerPool
from morpheus.sources.compression import (
    BLOCK_SIZE,
    COMPRESSED_SUFFIXES,
    LogPath,
    Prefetcher,
    get_file_size,
    is_large,
    read_blocks,
    to_utf8,
)
from morpheus.sources.discovery import FileDiscovery
from morpheus.sources.group_by_user import (
    REPLAY_NO,
    UserStats,
    drop_null_columns,
    find_non_null_columns,
)
from morpheus.sources.json_records import (
    Flattener,
    ParseErrors,
    RawJson,
    Records,
    split_record_blocks,
    split_records,
)
from morpheus.sources.log_format import LogFormat
from morpheus.sources.spill_sort import SpillBuffer, coalesce_frames
from morpheus.sources.tabular import (
    Table,
    add_partition_columns,
    read_csv,
    read_csv_blocks,
    read_parquet,
    read_parquet_blocks,
)
from morpheus.sources.time_range import DEFAULT_TIME_FORMAT, parse_times
from morpheus.storage.spill import SpilledTable, spill_to_disk

logger = logging.getLogger(__name__)

_FLUSH_BYTES = 1 << 24
_FLUSH_RECORDS = 1 << 15


@dataclass(frozen=True)
class RecordChunk:
    """Records of one file: undecoded, or as a table."""

    path: LogPath
    line_numbers: Sequence[int]
    row_index: Sequence[int] | pl.Series
    records: Sequence[RawJson] = ()
    num_bytes: int = 0
    errors: ParseErrors = ()

    def slice(self, start: int, stop: int) -> RecordChunk:
        """Some of its records."""
        records = self.records[start:stop]
        return RecordChunk(
            self.path, self.line_numbers[start:stop], self.row_index[start:stop], records
        )


@dataclass
class Reader:
    """Reads files of one kind of log.

    Args:
        log_format: Of which kind.
        flattener: Flattens its JSON records.
        user: The column that every table must have.
        wanted_columns: The columns that pass from JSON; None for all.
        skip_bad_records: Leave bad records out, and count them; else the first ends the run.
        stats: Counted into.
        one_frame_per_file: Give each file a frame of its own; else small files share one.
    """

    log_format: LogFormat
    flattener: Flattener
    user: str
    skip_bad_records: bool
    stats: ReadStats
    one_frame_per_file: bool = False
    wanted_columns: tuple[str, ...] | None = None

    def read_frames(self, paths: Sequence[LogPath], files: FileDiscovery) -> Iterator[pl.DataFrame]:
        """Read files, in their order, into frames of `INDEX_FILE`, text columns and `TIME`.

        Raises:
            UsageError: A table lacks the user's column, or a file must not be read.
            BadRecord: A record cannot be read, and bad ones are not left out.
        """
        with Prefetcher(paths) as fetching:
            yield from self._read_files(paths, files, fetching)

    def _read_files(
        self, paths: Sequence[LogPath], files: FileDiscovery, prefetcher: Prefetcher
    ) -> Iterator[pl.DataFrame]:
        held: list[RecordChunk] = []
        for path in paths:
            self.stats.files += 1
            for part, table in self._read_chunks(path, files.detect_type(path), prefetcher):
                if table is not None or part.errors:
                    # What comes first is refused first.
                    yield from self._flatten_chunks(held)
                    held = []
                    self._refuse_errors(part)
                if table is not None:
                    yield self._add_timestamps(table, [part])
                    continue
                held.append(part)
                if self.one_frame_per_file or _flush_needed(held):
                    yield from self._flatten_chunks(held)
                    held = []
        yield from self._flatten_chunks(held)

    def _read_chunks(
        self, path: LogPath, file_type: str, prefetcher: Prefetcher
    ) -> Iterator[tuple[RecordChunk, pl.DataFrame | None]]:
        """The records of a file, in one piece or block by block; it may turn out to be broken."""
        try:
            if not self.one_frame_per_file and (
                _is_readable_in_parts(path, file_type) or is_large(path)
            ):
                yield from self._read_in_blocks(path, file_type, prefetcher)
            else:
                yield self._read_whole(path, file_type, prefetcher)
        except RecordError as error:
            yield RecordChunk(path, (), (), errors=[(error.line, error.reason)]), None

    def _read_whole(
        self, path: LogPath, file_type: str, prefetcher: Prefetcher
    ) -> tuple[RecordChunk, pl.DataFrame | None]:
        data = prefetcher.read(path)
        if file_type == "json":
            return _make_chunk(
                path, split_records(to_utf8(data), self.log_format.unwrap), 0, len(data)
            ), None
        dropped = self.log_format.drop_characters
        if file_type == "csv":
            return self._from_table(path, read_csv(data, path, dropped), file_type)
        return self._from_table(
            path, read_parquet(data, path, dropped, self._nested_columns), file_type
        )

    def _read_in_blocks(
        self, path: LogPath, file_type: str, prefetcher: Prefetcher
    ) -> Iterator[tuple[RecordChunk, pl.DataFrame | None]]:
        if file_type == "json":
            before = 0
            for records in split_record_blocks(read_blocks(path), self.log_format.unwrap):
                yield _make_chunk(path, records, before, BLOCK_SIZE), None
                before += len(records.raw_records)
        elif file_type == "csv":
            for table in read_csv_blocks(read_blocks(path), path, self.log_format.drop_characters):
                yield self._from_table(path, table, file_type)
        elif path.suffix.lower() in COMPRESSED_SUFFIXES:
            yield self._read_whole(path, file_type, prefetcher)
        else:
            dropped = self.log_format.drop_characters
            for table in read_parquet_blocks(path, _FLUSH_RECORDS, dropped, self._nested_columns):
                yield self._from_table(path, table, file_type)

    @property
    def _nested_columns(self) -> tuple[str, ...] | None:
        """The columns wanted of nested tables, which are those wanted of JSON."""
        return None if self.wanted_columns is None else self.flattener.wanted_columns

    def _from_table(
        self, path: LogPath, table: Table, file_type: str
    ) -> tuple[RecordChunk, pl.DataFrame | None]:
        rows = range(table.frame.height)
        numbers = rows if table.row_index is None else table.row_index
        text = next(
            (n for n in self.log_format.embedded_json_columns if n in table.frame.columns), None
        )
        if text is not None:
            texts = [cell.encode() for cell in table.frame[text].fill_null("").to_list()]
            return RecordChunk(
                path, table.line_numbers, numbers, texts, sum(map(len, texts)), table.errors
            ), None
        files = [(path, table.frame.height)]
        whole = add_partition_columns(
            table.frame, files, self.log_format.drop_characters, add_missing=True
        )
        frame = self._fix_cells(self.log_format.rename_columns(whole), file_type)
        frame = self.log_format.fill_fallbacks(frame, self.user, keep=self.wanted_columns or ())
        self._check_header(path, replace(table, frame=frame))
        return RecordChunk(path, table.line_numbers, numbers, errors=table.errors), frame

    def _check_header(self, path: LogPath, table: Table) -> None:
        for name, names in table.duplicate_columns.items():
            both = " and ".join(f"`{double}`" for double in names)
            logger.warning("%s: %s are one column `%s`; the first value is kept.", path, both, name)
        names = table.frame.columns
        if self.log_format.time_column not in names and not self.skip_bad_records:
            reason = (
                f"the file has no column `{self.log_format.time_column}`; it has {', '.join(names)}"
            )
            raise RecordError(reason, file=path)
        if self.user not in names:
            raise missing_user_error(self.user, names, f"{path} has")

    def _fix_cells(self, frame: pl.DataFrame, file_type: str) -> pl.DataFrame:
        if file_type != "csv":
            return frame
        cells = self.log_format.csv_converters.items()
        return frame.with_columns(
            mend(pl.col(n)).alias(n) for n, mend in cells if n in frame.columns
        )

    def _flatten_chunks(self, chunks: list[RecordChunk]) -> Iterator[pl.DataFrame]:
        for chunk in [chunks] if self.one_frame_per_file and chunks else _regroup_chunks(chunks):
            records = [record for part in chunk for record in part.records]
            frame, refused = self.flattener.flatten(records)
            files = [(part.path, len(part.records)) for part in chunk]
            frame = add_partition_columns(
                frame,
                files,
                self.log_format.drop_characters,
                add_missing=self.wanted_columns is None,
            )
            frame = self.log_format.fill_fallbacks(
                frame, self.user, keep=self.flattener.wanted_columns
            )
            names = [*(self.wanted_columns or ()), *([ACTOR] if self.user == ACTOR else [])]
            if self.wanted_columns is not None and frame.columns != names:
                frame = frame.select(names)
            yield self._add_timestamps(frame, chunk, refused, records)

    def _add_timestamps(
        self,
        frame: pl.DataFrame,
        chunks: list[RecordChunk],
        refused: Mapping[int, str] | None = None,
        records: Sequence[RawJson] = (),
    ) -> pl.DataFrame:
        """Add `INDEX_FILE` and `TIME`, and refuse the rows that have none."""
        self.stats.read += frame.height
        index = pl.concat([pl.Series(INDEX, part.row_index, dtype=pl.Int64) for part in chunks])
        texts = frame.get_column(self.log_format.time_column, default=None)
        if texts is None:
            texts = pl.Series(self.log_format.time_column, [None] * frame.height, dtype=pl.String)
        time = parse_times(texts, self.log_format.time_format)
        bad = dict.fromkeys(time.is_null().arg_true(), "") | dict(refused or {})
        starts = [0]
        for part in chunks:
            starts.append(starts[-1] + len(part.line_numbers))
        for row, why in sorted(bad.items()):
            at = bisect_right(starts, row) - 1
            reason = why or self._missing_time_reason(texts[row], records[row : row + 1])
            place = chunks[at].line_numbers[row - starts[at]]
            self._refuse(RecordError(reason, file=chunks[at].path, line=place))
        ours = [name for name in frame.columns if name in {INDEX, TIME}]
        timed = frame.drop(ours).with_columns(index, time.alias(TIME))
        return timed.filter(time.is_not_null()) if bad else timed

    def _missing_time_reason(self, found: str | None, record: Sequence[RawJson]) -> str:
        name, usual = (
            self.log_format.time_column,
            self.log_format.time_format or "2024-05-31T09:30:00Z",
        )
        if found is not None:
            return f"`{name}` is {found!r}, which is not a time like {usual}"
        has = f"; it has {', '.join(_list_field_names(record[0]))}" if record else ""
        return f"the record has no `{name}`{has}"

    def _refuse_errors(self, chunk: RecordChunk) -> None:
        for place, reason in chunk.errors:
            self._refuse(RecordError(reason, file=chunk.path, line=place), read=1)

    def _refuse(self, error: RecordError, read: int = 0) -> None:
        if not self.skip_bad_records:
            hint = "to leave such records out, counted, give `--bad_record skip`"
            raise RecordError(
                f"{error.reason}; {hint}", file=error.file, line=error.line
            ) from error
        self.stats.read += read
        self.stats.refuse(str(error))


def _is_readable_in_parts(path: LogPath, file_type: str) -> bool:
    """Whether a file can be read from the disk in parts, whatever its size."""
    return file_type == "parquet" and isinstance(path, Path)


def _make_chunk(path: LogPath, records: Records, first_index: int, num_bytes: int) -> RecordChunk:
    index = range(first_index, first_index + len(records.raw_records))
    return RecordChunk(
        path, records.line_numbers, index, records.raw_records, num_bytes, records.errors
    )


def _flush_needed(chunks: Sequence[RecordChunk]) -> bool:
    records = sum(len(part.records) for part in chunks)
    return records >= _FLUSH_RECORDS or sum(part.num_bytes for part in chunks) >= _FLUSH_BYTES


def _regroup_chunks(chunks: Iterable[RecordChunk]) -> Iterator[list[RecordChunk]]:
    """Cut and join parts, so that a frame is neither small nor large."""
    chunk: list[RecordChunk] = []
    room = _FLUSH_RECORDS
    for part in chunks:
        start = 0
        while start < len(part.records):
            piece = part.slice(start, start + room)
            chunk.append(piece)
            start, room = start + len(piece.records), room - len(piece.records)
            if not room:
                yield chunk
                chunk, room = [], _FLUSH_RECORDS
    if chunk:
        yield chunk


def _list_field_names(record: RawJson) -> list[str]:
    try:
        return list(msgspec.json.decode(record, type=dict[str, msgspec.Raw]))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return ["what cannot be decoded"]


def missing_user_error(user: str, names: Iterable[str], where: str) -> UsageError:
    """Say that nothing has the user's column, and which one may be meant."""
    close = get_close_matches(user.replace(".", ""), names, n=3, cutoff=0.5)
    meant = f"Is it {' or '.join(f'`{name}`' for name in close)}? " if close else ""
    type_it = (
        f"Give the column that names the user, as `--userid_column_name={(close or ['NAME'])[0]}`."
    )
    return UsageError(
        f"{where} no column `{user}`, which is to say whose event it is. {meant}{type_it}"
    )


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
        flattener = Flattener(
            names, form.paths, form.json_converters, form.drop_characters, all_columns=everything
        )
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
            yield self._filter_events(
                self._replicate(self._filter_time_range(frame, stats), stats), stats
            )

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
        if (
            self.log_format.event_class_filter is not None
            and self.log_format.event_class_filter[0] in frame.columns
        ):
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
    buffer: SpillBuffer,
    read_task: ReadTask,
    paths: Sequence[LogPath],
    stats: ReadStats,
    pool: WorkerPool,
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


def group_files(
    paths: Sequence[LogPath], sizes: Sequence[int], min_bytes: int
) -> Iterator[list[LogPath]]:
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
    blobs = spill_to_disk(
        folder, coalesce_frames(read_with_stats(read_task, paths, reading, census), table_cells)
    )
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
        copies.append(
            later.with_columns(pl.col(TIME).dt.strftime(DEFAULT_TIME_FORMAT).alias(time_column))
        )
    return pl.concat(copies)
