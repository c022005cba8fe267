"""Reads log files into frames with a time, and accounts for every record.

`Reader` turns files into frames. `ReadTask` also filters and counts events; it is all that a worker
needs to know. `read_into_buffer` reads files in parallel where that is faster.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial, reduce
from itertools import chain, islice
from operator import and_, or_
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
from msgspec.structs import replace
from numpy.typing import NDArray

from morpheus.columns import ACTOR, EXCLUDED, INDEX, ROW, TIME
from morpheus.core.batch import MAX_REFUSALS, FileSpan, ReadStats
from morpheus.core.stage import get_fields
from morpheus.errors import MorpheusError, RecordError, UsageError
from morpheus.runtime.pool import WorkerPool
from morpheus.sources.compression import (
    BLOCK_SIZE,
    COMPRESSED_SUFFIXES,
    DEFAULT_LIMITS,
    PARQUET_MAGIC,
    LargeFileError,
    LogPath,
    Prefetcher,
    ReadLimits,
    detect_file_type,
    get_file_size,
    is_large,
    read_blocks,
    read_bytes,
    to_utf8,
)
from morpheus.sources.cut_records import RawJson
from morpheus.sources.discovery import FileDiscovery
from morpheus.sources.envelopes import (
    Records,
    split_record_blocks,
    split_records,
)
from morpheus.sources.group_by_user import (
    REPLAY_NO,
    EventKey,
    UserStats,
    drop_null_columns,
    find_non_null_columns,
)
from morpheus.sources.json_records import Flattener, ParseErrors, flatten_name
from morpheus.sources.log_format import (
    LogFormat,
    collect_rule_columns,
    prefix_number,
    resolve_identities,
)
from morpheus.sources.pseudonyms import Pseudonymizer
from morpheus.sources.source_state import TakenPart
from morpheus.sources.spill_sort import SpillBuffer, coalesce_frames
from morpheus.sources.tabular import (
    FRAME_NAME,
    PROBED_CELLS,
    Table,
    add_partition_columns,
    expand_objects,
    read_csv,
    read_csv_blocks,
    read_frame,
    read_parquet,
    read_parquet_blocks,
    unify_booleans,
)
from morpheus.sources.time_range import (
    DEFAULT_TIME_FORMAT,
    PlausibleTimes,
    parse_times,
    suggest_time_formats,
)
from morpheus.storage.spill import SpilledTable, spill_to_disk
from morpheus.text import ask_for, find_similar

logger = logging.getLogger(__name__)

_FEW_VALUES = 4
"""Number of values, besides time and id, of a row that is a record for sure."""
_SAMPLE_BLOCK_SIZE = 1 << 19
"""Bytes of a file that are read at a time if only some of its records are wanted."""
_HOUR_US, _NO_TIME_US = 3_600_000_000, 1 << 62
_FLUSH_BYTES = 1 << 24
_FLUSH_RECORDS, _FLUSH_WIDE_RECORDS = 1 << 15, 1 << 12
"""Bytes and records of small files that are collected into one frame."""


class RecordChunk(msgspec.Struct, frozen=True):
    """Records of one file, undecoded or as a table.

    Attributes:
        path: The file.
        line_numbers: Line or number of each record, from 1.
        row_index: `INDEX_FILE` of each record.
        records: The JSON of each record; empty for a table.
        num_bytes: Size of the records, in bytes.
        errors: Parts of the file that could not be read.
        num_lost: Number of records in these parts, as far as it can be seen.
    """

    path: LogPath
    line_numbers: Sequence[int]
    row_index: Sequence[int] | pl.Series
    records: Sequence[RawJson] = ()
    num_bytes: int = 0
    errors: ParseErrors = ()
    num_lost: int = 0

    def slice(self, start: int, stop: int) -> RecordChunk:
        """Return a range of the records."""
        records = self.records[start:stop]
        return RecordChunk(
            self.path, self.line_numbers[start:stop], self.row_index[start:stop], records
        )


@dataclass
class Reader:
    """Reads files of one log format.

    Attributes:
        log_format: Format of the files.
        flattener: Flattens JSON records.
        user: Name of the user column, which every table must have.
        skip_bad_records: Whether to skip and count bad records; otherwise the first one fails.
        stats: Counts what happens to the records.
        one_frame_per_file: Whether each file gets its own frame; otherwise small files share one.
        wanted_columns: Columns to keep of JSON records; None for all.
        plausible_times: The times that events can have.
        limits: Maximum sizes of a file.
        compare_actors: Whether to compare the user column with the actors of some records.
        in_memory: Whether events come from a data frame, for messages.
        taken: Parts of files that earlier runs have taken, by name of the file; None if no run
            remembers them.
        ends: Offsets at which to stop reading, by name of the file: the last line is left.
    """

    log_format: LogFormat
    flattener: Flattener
    user: str
    skip_bad_records: bool
    stats: ReadStats
    one_frame_per_file: bool = False
    wanted_columns: tuple[str, ...] | None = None
    _shift: tuple[LogPath | None, int] = field(default=(None, 0), init=False)
    plausible_times: PlausibleTimes = field(default_factory=PlausibleTimes)
    limits: ReadLimits = DEFAULT_LIMITS
    compare_actors: bool = True
    in_memory: bool = False
    taken: Mapping[str, Sequence[TakenPart]] | None = None
    ends: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def actor_sampler(self) -> ActorSampler:
        """Compares the user column with the actors of some records."""
        return ActorSampler(self.log_format, self.user, enabled=self.compare_actors)

    def read_frames(self, paths: Sequence[LogPath], files: FileDiscovery) -> Iterator[pl.DataFrame]:
        """Read files, in order, into frames of `INDEX_FILE`, text columns and `TIME`.

        Raises:
            UsageError: A table lacks the user column, or access to a file is denied.
            RecordError: A record cannot be read, and bad records are not skipped.
        """
        whole = self.one_frame_per_file
        with Prefetcher(paths, self.limits, allow_large=whole) as prefetcher:
            yield from self._read_files(paths, files, prefetcher)

    def read_table(self, frame: pl.DataFrame) -> Iterator[pl.DataFrame]:
        """Read a data frame, with the same result as `read_frames`.

        Raises:
            RecordError: A row cannot be read, and bad records are not skipped.
        """
        log = self.log_format
        table = read_frame(frame, log, self._nested_columns)
        chunk, events = self._from_table(Path(FRAME_NAME), table, FRAME_NAME)
        if events is None:
            yield from self._flatten_chunks([chunk])
            return
        # Rows that were JSON records have all columns, as they have in files.
        was_json = any(
            flatten_name(name, log.drop_characters) != name or kind.is_nested() or kind == pl.Object
            for name, kind in frame.schema.items()
        )
        wanted = (self.wanted_columns or ()) if was_json else ()
        absent = [name for name in wanted if name not in {*events.columns, *log.derived_columns}]
        events = events.with_columns(pl.lit(None, pl.String).alias(name) for name in absent)
        yield self._add_timestamps(events, [chunk])

    def _read_files(
        self, paths: Sequence[LogPath], files: FileDiscovery, prefetcher: Prefetcher
    ) -> Iterator[pl.DataFrame]:
        pending: list[RecordChunk] = []
        for path in paths:
            rows = 0
            chunks = self._read_chunks(path, files.detect_type(path), prefetcher)
            for chunk, table in self._limit_records(chunks):
                rows += len(chunk.line_numbers) + len(chunk.errors)
                if table is not None or chunk.errors:
                    # Flatten earlier records first, so that the first error is reported first.
                    yield from self._flatten_chunks(pending)
                    pending = []
                    self._refuse_errors(chunk)
                if table is not None:
                    yield self._add_timestamps(table, [chunk])
                    continue
                pending.append(chunk)
                if self.one_frame_per_file or _flush_needed(pending):
                    yield from self._flatten_chunks(pending)
                    pending = []
            self.stats.files += 1
            self.stats.empty_files += not rows
        yield from self._flatten_chunks(pending)

    def _limit_records(
        self, chunks: Iterator[tuple[RecordChunk, pl.DataFrame | None]]
    ) -> Iterator[tuple[RecordChunk, pl.DataFrame | None]]:
        """Yield the chunks of a file, up to the maximum number of records."""
        left = self.limits.max_records
        if left is None:
            yield from chunks
            return
        for chunk, table in chunks:
            first = replace(chunk.slice(0, left), errors=chunk.errors, num_lost=chunk.num_lost)
            yield first, None if table is None else table.head(left)
            left -= len(first.line_numbers)
            if not left:
                return

    def _read_chunks(
        self, path: LogPath, file_type: str, prefetcher: Prefetcher
    ) -> Iterator[tuple[RecordChunk, pl.DataFrame | None]]:
        """Read the records of a file, whole or in blocks. A damaged file gives an error chunk."""
        try:
            if not self.one_frame_per_file and (
                self.limits.max_records is not None
                or _is_readable_in_parts(path, file_type)
                or is_large(path)
            ):
                yield from self._read_in_blocks(path, file_type)
            else:
                data = prefetcher.read(path)
                yield self._read_whole(path, file_type, data[: self.ends.get(str(path))])
        except LargeFileError:
            yield from self._read_large(path, file_type)
        except RecordError as error:
            yield _make_error_chunk(path, error), None

    def _read_large(
        self, path: LogPath, file_type: str
    ) -> Iterator[tuple[RecordChunk, pl.DataFrame | None]]:
        """Read a small file that unpacks to a large one."""
        try:
            yield from self._read_in_blocks(path, file_type)
        except RecordError as error:
            yield _make_error_chunk(path, error), None

    def _read_whole(
        self, path: LogPath, file_type: str, data: bytes
    ) -> tuple[RecordChunk, pl.DataFrame | None]:
        if file_type == "json":
            records = split_records(to_utf8(data), self.log_format.record_finder)
            _check_end(path, records)
            return _make_chunk(path, records, 0, len(data)), None
        drop = self.log_format.drop_characters
        if file_type == "csv":
            return self._from_table(path, read_csv(data, path, drop, self.limits), file_type)
        table = read_parquet(data, path, drop, self._nested_columns, self.limits)
        return self._from_table(path, table, file_type)

    def _read_in_blocks(
        self, path: LogPath, file_type: str
    ) -> Iterator[tuple[RecordChunk, pl.DataFrame | None]]:
        if file_type == "json":
            first_index = 0
            blocks = self._read_blocks(path)
            finder = self.log_format.record_finder
            for records in split_record_blocks(blocks, finder, path, self.limits):
                _check_end(path, records)
                yield _make_chunk(path, records, first_index, BLOCK_SIZE), None
                first_index += len(records.raw_records)
        elif file_type == "csv":
            blocks = self._read_blocks(path)
            drop = self.log_format.drop_characters
            for table in read_csv_blocks(blocks, path, drop, self.limits):
                yield self._from_table(path, table, file_type)
        elif path.suffix.lower() in COMPRESSED_SUFFIXES:
            yield self._read_whole(path, file_type, read_bytes(path, self.limits))
        else:
            drop, kept = self.log_format.drop_characters, self._nested_columns
            for table in read_parquet_blocks(path, _FLUSH_RECORDS, drop, kept, self.limits):
                yield self._from_table(path, table, file_type)

    def _read_blocks(self, path: LogPath) -> Iterator[bytes]:
        left = self.ends.get(str(path))
        for block in read_blocks(path, self._block_size, self.limits):
            yield block[:left]
            left = None if left is None else max(0, left - len(block))

    @property
    def _block_size(self) -> int:
        return BLOCK_SIZE if self.limits.max_records is None else _SAMPLE_BLOCK_SIZE

    @property
    def _nested_columns(self) -> tuple[str, ...] | None:
        """Return the columns to keep of nested tables, as of JSON records; None for all."""
        if self.wanted_columns is None:
            return None
        log, wanted = self.log_format, self.flattener.wanted_columns
        others = (name for name, column in log.other_names.items() if column in wanted)
        return (*wanted, *others, *log.embedded_json_columns)

    def _from_table(
        self, path: LogPath, table: Table, file_type: str
    ) -> tuple[RecordChunk, pl.DataFrame | None]:
        rows = range(table.frame.height)
        row_index = rows if table.row_index is None else table.row_index
        embedded = self._find_record_column(table.frame)
        if embedded is not None:
            records = [cell.encode() for cell in table.frame[embedded].fill_null("").to_list()]
            return RecordChunk(
                path, table.line_numbers, row_index, records, sum(map(len, records)), table.errors
            ), None
        files = [(path, table.frame.height)]
        frame = add_partition_columns(
            table.frame, files, self.log_format.drop_characters, add_missing=True
        )
        frame = self._fix_cells(frame, file_type)
        frame, refused = self._expand_objects(frame)
        frame = unify_booleans(frame, self.log_format.boolean_columns)
        self.actor_sampler.add_table(frame)
        frame = self.log_format.fill_fallbacks(frame, self.user, keep=self.wanted_columns or ())
        if self.in_memory and self.user not in frame.columns:
            frame = frame.with_columns(pl.lit(None, pl.String).alias(self.user))
        self._check_header(path, replace(table, frame=frame))
        chunk = RecordChunk(path, table.line_numbers, row_index, errors=table.errors)
        return self._refuse_rows(chunk, frame, refused)

    def _expand_objects(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, dict[int, str]]:
        """Name the columns of a table, and replace those of objects; see `expand_objects`."""
        log, wanted = self.log_format, self.flattener.wanted_columns
        # The name of an object can be the header of a column too: `user` is both in Duo's logs.
        frame, refused = expand_objects(frame, log, wanted, self.wanted_columns or ())
        frame = log.rename_columns(log.prefer_record(frame))
        frame, more = expand_objects(frame, log, wanted, self.wanted_columns or ())
        return frame, refused | more

    def _find_record_column(self, frame: pl.DataFrame) -> str | None:
        """Return the column of a table whose cells hold whole records as JSON, such as `_raw`."""
        finder = self.log_format.record_finder
        for column in frame:
            if column.name in self.log_format.embedded_json_columns:
                return column.name
        first_cells = frame.select(pl.col(pl.String).drop_nulls().head(PROBED_CELLS).implode())
        probes = (
            (column.name, cell) for column in first_cells for cell in column.item() if "{" in cell
        )
        found = (
            name for name, cell in islice(probes, _MAX_PROBES) if finder.has_record(cell.encode())
        )
        return next(found, None)

    def _refuse_rows(
        self, chunk: RecordChunk, frame: pl.DataFrame, refused: Mapping[int, str]
    ) -> tuple[RecordChunk, pl.DataFrame]:
        """Drop and count rows of a table that cannot be read."""
        if not refused:
            return chunk, frame
        named = sorted(refused.items())[: MAX_REFUSALS if self.skip_bad_records else 1]
        for row, reason in named:
            self._refuse(_locate_error(reason, [chunk], row), read=1)
        self.stats.read += len(refused) - len(named)
        self.stats.refused += len(refused) - len(named)
        kept = ~pl.int_range(frame.height, eager=True).is_in(list(refused))
        rows = kept.arg_true().to_list()
        index = pl.Series(chunk.row_index, dtype=pl.Int64)
        lines = [chunk.line_numbers[row] for row in rows]
        return replace(chunk, line_numbers=lines, row_index=index.filter(kept)), frame.filter(kept)

    def _check_header(self, path: LogPath, table: Table) -> None:
        for name, names in table.duplicate_columns.items():
            logger.warning(
                "%s: %s; the first value is used.", path, _describe_same_name(name, names)
            )
        names = table.frame.columns
        if self.log_format.time_column not in names and not self.skip_bad_records:
            time = self.log_format.time_column
            raise RecordError(
                f"the file has no column `{time}`{_list_names(time, names)}", file=path
            )
        if self.user not in names:
            raise missing_user_error(self.user, names, f"{path} has")

    def _fix_cells(self, frame: pl.DataFrame, file_type: str) -> pl.DataFrame:
        if file_type != "csv":
            return frame
        prefixes = self.log_format.number_prefixes.items()
        return frame.with_columns(
            prefix_number(pl.col(n), prefix).alias(n)
            for n, prefix in prefixes
            if n in frame.columns
        )

    def _flatten_chunks(self, chunks: list[RecordChunk]) -> Iterator[pl.DataFrame]:
        size = _FLUSH_WIDE_RECORDS if self.flattener.all_columns else _FLUSH_RECORDS
        whole = self.one_frame_per_file and chunks
        for group in [chunks] if whole else _regroup_chunks(chunks, size):
            records = [record for chunk in group for record in chunk.records]
            frame, refused = self.flattener.flatten(records)
            hollow: Mapping[int, str] = {}
            doubtful = self._find_doubtful(frame) | refused.keys()
            if doubtful or self._shift[1]:
                group = self._open_envelopes(group, doubtful)  # noqa: PLW2901 - the same records
                opened = [record for chunk in group for record in chunk.records]
                if opened != records:
                    records = opened
                    frame, refused = self.flattener.flatten(records)
                hollow = self._find_hollow(frame, records)
            self.actor_sampler.add_records(records)
            files = [(chunk.path, len(chunk.records)) for chunk in group]
            frame = add_partition_columns(
                unify_booleans(frame, self.log_format.boolean_columns),
                files,
                self.log_format.drop_characters,
                add_missing=self.wanted_columns is None,
            )
            frame = self.log_format.fill_fallbacks(
                frame, self.user, keep=self.flattener.wanted_columns
            )
            names = [*(self.wanted_columns or ()), *([ACTOR] if self.user == ACTOR else [])]
            names += [EXCLUDED] if self.log_format.row_filter is not None else []
            names = list(dict.fromkeys(names))  # the user column of a log can be `actor`
            if self.wanted_columns is not None and frame.columns != names:
                frame = frame.select(names)
            yield self._add_timestamps(frame, group, refused, records, hollow)

    def _find_doubtful(self, frame: pl.DataFrame) -> set[int]:
        """Find the rows that may be envelopes or no records of this log.

        Such a row has no time, neither id nor user, or hardly a value. All others are records for
        sure, so that looking for envelopes costs nothing in most files.
        """
        log, height = self.log_format, frame.height
        found = pl.repeat(True, height, dtype=pl.Boolean, eager=True)  # noqa: FBT003 - a value
        for name in log.time_columns:
            if name in frame.columns:
                found &= frame[name].is_null()
        for kind in log.excluded_kinds:
            if kind.values.keys() <= set(frame.columns):
                found |= reduce(and_, [frame[n].eq_missing(v) for n, v in kind.values.items()])
        names = (log.id_column, log.user_column if self.user == ACTOR else self.user)
        missing = [frame[name].is_null() for name in names if name in frame.columns]
        if any(column.any() for column in missing):
            values = frame.drop(*log.time_columns, log.id_column, strict=False)
            number = values.select(pl.sum_horizontal(pl.all().is_not_null())).to_series()
            few = number < _FEW_VALUES
            found |= reduce(and_, missing) | (reduce(or_, missing) & few)
        return set(found.arg_true())

    def _find_hollow(self, frame: pl.DataFrame, records: Sequence[RawJson]) -> dict[int, str]:
        """Find records that have a time and no other field of the log, with the reason to reject.

        Such a record is an envelope whose content is damaged, or belongs to another log.
        """
        log = self.log_format
        names = [n for n in self.flattener.wanted_columns if n not in log.time_columns]
        if not log.id_column or not names:
            return {}
        hollow = frame.select(pl.all_horizontal(pl.col(names).is_null())).to_series().arg_true()
        fields = {row: _list_field_names(records[row]) for row in hollow}
        return {
            row: f"the record has no field of a {log.name} event but a time; it has "
            f"{', '.join(found)}"
            for row, found in fields.items()
            if not log.record_finder.has_known_field(found)
        }

    def _open_envelopes(
        self, group: Sequence[RecordChunk], doubtful: Container[int]
    ) -> list[RecordChunk]:
        """Open envelopes among records, and leave out and count what is not this kind of log.

        Args:
            group: The records.
            doubtful: The records to examine, by number in the group.

        Returns:
            The records with their numbers in the files.
        """
        finder, opened, row = self.log_format.record_finder, list[RecordChunk](), 0
        for chunk in group:
            path, shift = self._shift
            shift = shift if path == chunk.path else 0
            numbered: list[tuple[RawJson, int, int]] = []
            for at, record in enumerate(chunk.records):
                found = finder.examine(record) if row + at in doubtful else [(record, "")]
                for number, (text, kind) in enumerate(found, chunk.row_index[at] + shift):
                    if kind:
                        self.stats.leave_out(kind)
                    else:
                        numbered.append((text, chunk.line_numbers[at], number))
                shift += len(found) - 1
            self._shift, row = (chunk.path, shift), row + len(chunk.records)
            texts, lines, index = zip(*numbered, strict=True) if numbered else ((), (), ())
            opened.append(replace(chunk, records=texts, line_numbers=lines, row_index=index))
        return opened

    def _add_timestamps(
        self,
        frame: pl.DataFrame,
        chunks: list[RecordChunk],
        refused: Mapping[int, str] | None = None,
        records: Sequence[RawJson] = (),
        hollow: Mapping[int, str] | None = None,
    ) -> pl.DataFrame:
        """Add `INDEX_FILE` and `TIME`, and drop rows without a time.

        Args:
            frame: The records.
            chunks: The chunks of the records.
            refused: Reasons for rejected records, by row.
            records: The JSON of the records; empty for a table.
            hollow: Reasons to reject records that have a time and nothing else.
        """
        self.stats.read += frame.height
        index = pl.concat([pl.Series(INDEX, chunk.row_index, dtype=pl.Int64) for chunk in chunks])
        texts = frame.get_column(self.log_format.time_column, default=None)
        if texts is None:
            texts = pl.Series(self.log_format.time_column, [None] * frame.height, dtype=pl.String)
        time = parse_times(texts, self.log_format.time_format)
        timed = {row: reason for row, reason in (hollow or {}).items() if time[row] is not None}
        if timed:
            rows = pl.int_range(frame.height, eager=True)
            time = time.set(rows.is_in(list(timed)), None)
        frame, keep = self._exclude_rows(frame)
        if keep is not None:
            time = time.set(~keep, None)
        bad = dict.fromkeys(time.is_null().arg_true(), "") | dict(refused or {}) | timed
        for row in () if keep is None else set(bad).intersection((~keep).arg_true()):
            del bad[row]
        self._refuse_times(bad, texts, records, chunks)
        reserved = [name for name in frame.columns if name in {ROW, INDEX, TIME}]
        events = frame.drop(reserved).with_columns(index, time.alias(TIME))
        keep = time.is_not_null() if bad or keep is not None else None
        implausible = self.plausible_times.find_implausible(time)
        if implausible is not None:
            self._leave_out(implausible, time, texts, chunks)
            keep = ~implausible if keep is None else keep & ~implausible
        if self.taken is not None:
            known = time if keep is None else time.set(~keep, None)
            again = self._find_taken(known, chunks, self.taken)
            self.stats.taken += int(again.sum())
            keep = ~again if keep is None else keep & ~again
        return events if keep is None else events.filter(keep)

    def _find_taken(
        self,
        times: pl.Series,
        chunks: Sequence[RecordChunk],
        taken: Mapping[str, Sequence[TakenPart]],
    ) -> pl.Series:
        """Note what each file has, and return which events earlier runs have taken.

        Args:
            times: The time of each event; null for a record that is left out.
            chunks: The chunks of the events.
            taken: What earlier runs have taken.
        """
        filled = [chunk for chunk in chunks if len(chunk.line_numbers)]
        sizes = [len(chunk.line_numbers) for chunk in filled]
        again = np.zeros(sum(sizes), bool)
        if not filled:
            return pl.Series(again)
        numbers = chain.from_iterable(chunk.line_numbers for chunk in filled)
        lines = np.fromiter(numbers, np.int64, len(again))
        known = times.is_not_null().to_numpy()
        moments = times.to_physical().fill_null(0).to_numpy()
        starts = np.cumsum([0, *sizes[:-1]])
        # All files at once, because many files have only a few events.
        spans = zip(
            np.maximum.reduceat(np.where(known, lines, -1), starts).tolist(),
            np.minimum.reduceat(np.where(known, moments, _NO_TIME_US), starts).tolist(),
            np.maximum.reduceat(np.where(known, moments, -_NO_TIME_US), starts).tolist(),
            strict=True,
        )
        for chunk, start, size, span in zip(filled, starts.tolist(), sizes, spans, strict=True):
            part = slice(start, start + size)
            if span[0] >= 0:
                seen = moments[part][known[part]]
                self.stats.note_file(str(chunk.path), FileSpan(*span, _list_hours(seen, span)))
            for each in taken.get(str(chunk.path), ()):
                inside = (moments[part] >= each.start) & (moments[part] < each.end)
                again[part] |= (lines[part] <= each.line) & inside & known[part]
        return pl.Series(again)

    def _refuse_times(
        self,
        bad: Mapping[int, str],
        texts: pl.Series,
        records: Sequence[RawJson],
        chunks: Sequence[RecordChunk],
    ) -> None:
        """Count records without a time, or fail. Only the first few get a message.

        Args:
            bad: The reasons, by row; an empty text if there is only no time.
            texts: The time of each record, as the log has it.
            records: The JSON of the records; empty for a table.
            chunks: The chunks of the records.
        """
        count = self.log_format.record_finder.count_times
        missing = texts.is_null().to_list() if bad and records else []
        for row, known_reason in sorted(bad.items()):
            number = count(records[row]) if missing and missing[row] else 1
            if not self._needs_reasons:
                self.stats.read += number - 1
                self.stats.refused += number
                continue
            reason = known_reason or self._missing_time_reason(texts[row], records[row : row + 1])
            if number > 1:
                reason += f"; it holds {number:,} events"
            self._refuse(_locate_error(reason, chunks, row), read=number - 1, number=number)

    @property
    def _needs_reasons(self) -> bool:
        """Whether the next bad record fails the run, or is named in the summary."""
        return not self.skip_bad_records or self.stats.needs_reasons

    def _exclude_rows(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series | None]:
        """Count the rows that the schema excludes, and return which are kept; None for all."""
        if EXCLUDED not in frame.columns:
            return frame, None
        excluded = frame[EXCLUDED]
        self.stats.unwanted_rows += int(excluded.sum())
        return frame.drop(EXCLUDED), ~excluded if excluded.any() else None

    def _leave_out(
        self,
        implausible: pl.Series,
        times: pl.Series,
        texts: pl.Series,
        chunks: Sequence[RecordChunk],
    ) -> None:
        """Count events with an implausible time, or fail.

        Args:
            implausible: Which events have an implausible time.
            times: The time of each event.
            texts: The time of each event, as the log has it.
            chunks: The chunks of the events.

        Raises:
            RecordError: Such events are not skipped.
        """
        limits, stats = self.plausible_times, self.stats
        stats.implausible += int(implausible.sum())
        if limits.latest is not None:
            stats.too_late += int((times > limits.latest).sum())
        for row in implausible.arg_true()[: MAX_EXAMPLES - len(stats.implausible_times)]:
            time = texts.name, texts[row], limits.describe(times[row])
            error = _locate_error("`{}` is {!r}, which {}".format(*time), chunks, row)
            if limits.action == "fail":
                hint = "use `--implausible_time` to skip and count such events, or to keep them"
                raise RecordError(f"{error.reason}; {hint}", file=error.file, line=error.line)
            stats.implausible_times = [*stats.implausible_times, str(error)]

    def _missing_time_reason(self, found: str | None, record: Sequence[RawJson]) -> str:
        name = self.log_format.time_column
        example = self.log_format.time_format or "2024-05-31T09:30:00Z"
        if found is not None:
            options = suggest_time_formats(found)
            if options and self.in_memory:
                return f"`{name}` is {found!r}: convert the column to datetimes"
            if options:
                several = " or ".join(f"`--time_format='{each}'`" for each in options)
                return f"`{name}` is {found!r}: add {several}, as the log writes day and month"
            return f"`{name}` is {found!r}, which is not a time like {example}"
        names = _list_field_names(record[0]) if record else []
        if name in names:
            return f"the record has no `{name}`: the field is there, but has no value"
        return f"the record has no `{name}`{_list_names(name, names) if names else ''}"

    def _refuse_errors(self, chunk: RecordChunk) -> None:
        lost = max(1, chunk.num_lost - len(chunk.errors) + 1)
        for line, reason in chunk.errors:
            self._refuse(RecordError(reason, file=chunk.path, line=line), read=lost, number=lost)
            lost = 1

    def _refuse(self, error: RecordError, read: int = 0, number: int = 1) -> None:
        """Count records that cannot be read, or fail.

        Args:
            error: The reason.
            read: How many of them are not counted as read yet.
            number: How many.
        """
        error = _explain_type(error)
        if not self.skip_bad_records:
            hint = (
                "correct or drop such rows"
                if self.in_memory
                else f"use `--bad_record skip` to skip and count such records{_hint_at_end(error)}"
            )
            raise RecordError(
                f"{error.reason}; {hint}", file=error.file, line=error.line
            ) from error
        self.stats.read += read
        self.stats.refuse(str(error), number)


_TYPE_NAMES = {"csv": "CSV", "json": "JSON", "parquet": "Parquet"}


def _explain_type(error: RecordError) -> RecordError:
    """Return an error that says so if a file is not what its suffix says; else the error."""
    path = Path(error.file)
    expected = detect_file_type(path)
    if error.line not in {None, 1} or expected is None:
        return error
    try:
        found = _guess_type(next(iter(read_blocks(path)), b"")) if path.is_file() else None
    except (OSError, MorpheusError):
        return error
    if found in {None, expected}:
        return error
    return RecordError(
        f"the file looks like {_TYPE_NAMES[found]}, and its suffix says {_TYPE_NAMES[expected]}; "
        f"rename it, or read it with `--file_type={found}`",
        file=error.file,
    )


def _guess_type(start: bytes) -> str | None:
    """Return the type of a file by its beginning; None if it is not clear.

    >>> _guess_type(b'[{"a": 1}]'), _guess_type(b"PAR1"), _guess_type(b"not a log")
    ('json', 'parquet', None)
    """
    if start.startswith(PARQUET_MAGIC):
        return "parquet"
    text = to_utf8(start).lstrip()
    if text[:1] in {b"{", b"["}:
        return "json"
    lines = text.splitlines()[:2]
    counts = [[line.count(separator) for line in lines] for separator in (b",", b";", b"\t")]
    # The header and the first row have the same number of cells, and no line is damaged JSON.
    is_table = any(len(each) == len(lines) == 2 and each[0] == each[1] > 1 for each in counts)  # noqa: PLR2004 - two lines
    return "csv" if is_table and b"{" not in lines[0] else None


_END_HINT = (
    "; if the file is still being written, run again when it is complete, or use `--state` and a "
    "time range: such runs leave what is not complete to the next one"
)


def _hint_at_end(error: RecordError) -> str:
    """Return what to do if a place that cannot be read is the end of a file; else nothing."""
    from morpheus.sources.watcher import is_cut  # noqa: PLC0415 - for failures

    path = Path(error.file)
    is_csv = ".csv" in (suffix.lower() for suffix in path.suffixes)
    try:
        return _END_HINT if path.is_file() and is_cut(path, error.line, is_csv=is_csv) else ""
    except OSError:
        return ""


def _make_error_chunk(path: LogPath, error: RecordError) -> RecordChunk:
    """Make the chunk for a file, or the rest of one, that cannot be read."""
    reason, lost = error.reason, error.records
    if lost is None:
        reason += "; the number of records that are lost is not known"
    elif lost > 1:
        reason += f"; {lost:,} records are lost"
    return RecordChunk(path, (), (), errors=[(error.line, reason)], num_lost=lost or 1)


def _list_names(name: str, names: Sequence[str]) -> str:
    """Return the names that a table or a record has, in place of one that is missing."""
    similar = " or ".join(f"`{each}`" for each in find_similar(name, names, 1))
    meant = f"; did you mean {similar}" if similar else ""
    return f"; it has {', '.join(names)}{meant}"


_MAX_PROBES = 1000
"""Maximum number of cells of a table that are searched for records."""
MAX_EXAMPLES = 5
"""Number of events with an implausible time that the summary names."""


def _locate_error(reason: str, chunks: Sequence[RecordChunk], row: int) -> RecordError:
    """Make the error for a row of the frame that some chunks become."""
    for chunk in chunks:
        if row < len(chunk.line_numbers):
            return RecordError(reason, file=chunk.path, line=chunk.line_numbers[row])
        row -= len(chunk.line_numbers)
    raise IndexError(row)


_SAMPLE_SIZES = (250, 250, 250, 250)
"""Numbers of records of the first tables whose actors are compared with the user column."""


@dataclass
class ActorSampler:
    """Compares the user column with the actors of some of the first records.

    Attributes:
        log_format: Format of the records.
        user: Name of the user column.
        enabled: Whether to sample any records.
        sizes: Number of records to sample of each of the next tables.
        records: Number of sampled records by the values of `columns`.
    """

    log_format: LogFormat
    user: str
    enabled: bool = True
    sizes: list[int] = field(default_factory=list, init=False)
    records: Counter[tuple[str | None, ...]] = field(default_factory=Counter, init=False)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Return the user column and the columns that actors depend on."""
        return tuple(dict.fromkeys([self.user, *collect_rule_columns(self.log_format.actor_rules)]))

    def __post_init__(self) -> None:
        # A single rule only repeats the user column.
        if self.enabled and self.user != ACTOR and len(self.log_format.actor_rules) > 1:
            self.sizes = list(_SAMPLE_SIZES)

    def add_records(self, records: Sequence[RawJson]) -> None:
        """Add some of the records of a file."""
        if not self.sizes or not records:
            return
        log, step = self.log_format, -(-len(records) // self.sizes[0])
        flattener = Flattener(
            log.columns_to_decode([self.user], ACTOR),
            log.paths,
            log.json_converters,
            log.drop_characters,
        )
        self.add_table(flattener.flatten(records[::step])[0])

    def add_table(self, frame: pl.DataFrame) -> None:
        """Add some of the rows of a table, which has all columns of the log."""
        if not self.sizes or not frame.height or self.user not in frame.columns:
            return
        needed = {*self.columns, *self.log_format.columns_to_decode([self.user], ACTOR)}
        existing = [name for name in frame.columns if name in needed]
        sample = frame.select(existing).gather_every(-(-frame.height // self.sizes.pop(0)))
        complete = self.log_format.fill_fallbacks(sample, self.user, keep=existing)
        absent = [name for name in self.columns if name not in complete.columns]
        complete = complete.with_columns(pl.lit(None, pl.String).alias(name) for name in absent)
        # Rows of Python: a small table would keep the memory of the whole file.
        self.records.update(complete.select(self.columns).iter_rows())

    def count_pairs(self) -> Counter[tuple[str, str]]:
        """Count the sampled records by user and actor. Records without either are left out.

        The actors of all tables are named at once, because matching the rules has a cost for each
        call.
        """
        pairs: Counter[tuple[str, str]] = Counter()
        if not self.records:
            return pairs
        schema = dict.fromkeys(self.columns, pl.String)
        records = pl.DataFrame(list(self.records), schema, orient="row")
        actors = resolve_identities(records, self.log_format.actor_rules)
        for user, actor, number in zip(
            records[self.user], actors, self.records.values(), strict=True
        ):
            if user is not None and actor is not None:
                pairs[user, actor] += number
        return pairs


def _is_readable_in_parts(path: LogPath, file_type: str) -> bool:
    """Return whether a file of any size can be read from disk in parts."""
    return file_type == "parquet" and isinstance(path, Path)


def _list_hours(moments: NDArray[np.int64], span: tuple[int, int, int]) -> tuple[int, ...]:
    """Return the hours in which there are events, as numbers since 1970.

    Args:
        moments: Times of the events, in microseconds since 1970, (events,).
        span: Last line, first time and last time.
    """
    _, first, last = span
    if first // _HOUR_US == last // _HOUR_US:
        return (first // _HOUR_US,)
    return tuple(np.unique(moments // _HOUR_US).tolist())


def _describe_same_name(name: str, originals: Sequence[str]) -> str:
    """Say that columns of a table have one name.

    >>> _describe_same_name("ab", ["a.b", "ab"]), _describe_same_name("", ["", ""])
    ('`a.b` and `ab` are one column `ab`', '2 columns have no name')
    """
    if len(set(originals)) > 1:
        return " and ".join(f"`{original}`" for original in originals) + f" are one column `{name}`"
    called = f"are called `{name}`" if name else "have no name"
    return f"{len(originals)} columns {called}"


def _check_end(path: LogPath, records: Records) -> None:
    if records.has_no_end and not records.errors:
        logger.warning(
            "%s: the list of events has no end, `]`. All events in it are read. If the file is "
            "truncated, download it again: others are missing.",
            path,
        )


def _make_chunk(path: LogPath, records: Records, first_index: int, num_bytes: int) -> RecordChunk:
    index = range(first_index, first_index + len(records.raw_records))
    return RecordChunk(
        path,
        records.line_numbers,
        index,
        records.raw_records,
        num_bytes,
        records.errors,
        records.num_lost,
    )


def _flush_needed(chunks: Sequence[RecordChunk]) -> bool:
    records = sum(len(chunk.records) for chunk in chunks)
    return records >= _FLUSH_RECORDS or sum(chunk.num_bytes for chunk in chunks) >= _FLUSH_BYTES


def _regroup_chunks(chunks: Iterable[RecordChunk], size: int) -> Iterator[list[RecordChunk]]:
    """Split and join chunks into groups of a number of records."""
    group: list[RecordChunk] = []
    free = size
    for chunk in chunks:
        start = 0
        while start < len(chunk.records):
            part = chunk.slice(start, start + free)
            group.append(part)
            start, free = start + len(part.records), free - len(part.records)
            if not free:
                yield group
                group, free = [], size
    if group:
        yield group


def _list_field_names(record: RawJson) -> list[str]:
    try:
        return list(msgspec.json.decode(record, type=dict[str, msgspec.Raw]))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ["fields that cannot be decoded"]


def missing_user_error(user: str, names: Iterable[str], where: str) -> UsageError:
    """Make the error for a missing user column, with similar names.

    Args:
        user: Name of the user column.
        names: The existing columns.
        where: What has no such column; begins the message.
    """
    names = list(names)
    close = find_similar(user, names, margin=1)
    return UsageError(
        f"{where} no user column `{user}`.{ask_for(close)} Give the user column with "
        f"`--userid_column_name={(close or ['NAME'])[0]}`."
    )


_MAX_OTHER_USERS = 20_000
"""Number of other users above which no more are remembered for a message."""
_COMPRESSION_RATIO = 8
"""Approximate compression ratio of log files."""


@dataclass(frozen=True)
class ReadTask:
    """How to read files into frames: everything that a worker needs to know.

    Attributes:
        log_format: Format of the files.
        files: File type and time range.
        user: Name of the user column.
        wanted_columns: Columns to keep of JSON records, in order.
        only_users: The users whose events are kept; empty for all users.
        skip_users: The users whose events are left out.
        require_user: Whether to skip events without a user.
        skip_bad_records: Whether to skip and count bad records.
        all_columns: Whether to keep all columns of JSON records.
        repeat: Number of times to read each file; see `replicate`.
        event_key: Columns that identify events; None if no records of one event are looked for.
        pseudonymizer: Replaces values by pseudonyms; None to keep them.
        plausible_times: The times that events can have.
        limits: Maximum sizes of a file.
        compare_actors: Whether to compare the user column with the actors of some records, for
            advice.
        frame: Events in memory, which are read in place of files; None to read files.
        taken: Parts of files that earlier runs have taken; see `Reader`.
        ends: Offsets at which to stop reading; see `Reader`.
    """

    log_format: LogFormat
    files: FileDiscovery
    user: str
    wanted_columns: tuple[str, ...]
    only_users: tuple[str, ...] = ()
    skip_users: tuple[str, ...] = ()
    require_user: bool = False
    skip_bad_records: bool = False
    all_columns: bool = False
    repeat: int = 1
    event_key: EventKey | None = None
    pseudonymizer: Pseudonymizer | None = None
    plausible_times: PlausibleTimes = field(default_factory=PlausibleTimes)
    limits: ReadLimits = DEFAULT_LIMITS
    compare_actors: bool = True
    frame: pl.DataFrame | None = field(default=None, compare=False, repr=False)
    taken: Mapping[str, Sequence[TakenPart]] | None = field(default=None, repr=False)
    ends: Mapping[str, int] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, object]:
        """Return what goes to another process."""
        return get_fields(self)

    @cached_property
    def _flattener(self) -> Flattener:
        """Knows parts of the records that all files repeat, so each process has one."""
        log_format = self.log_format
        return Flattener(
            log_format.columns_to_decode(self.wanted_columns, self.user),
            log_format.paths,
            log_format.json_converters,
            log_format.drop_characters,
            all_columns=self.all_columns,
            other_names=log_format.other_names,
            first_names=log_format.record_aliases,
            objects=log_format.objects,
            max_fields=self.limits.max_columns,
        )

    def read_frames(
        self, paths: Sequence[LogPath], stats: ReadStats, user_stats: UserStats
    ) -> Iterator[pl.DataFrame]:
        """Read files, in order, into frames of `INDEX_FILE`, text columns and `TIME`.

        Args:
            paths: The files.
            stats: Counts what happens to the records.
            user_stats: Gets the columns that have values.
        """
        reader = Reader(
            self.log_format,
            self._flattener,
            self.user,
            self.skip_bad_records,
            stats,
            one_frame_per_file=self.repeat > 1,
            wanted_columns=None if self.all_columns else self.wanted_columns,
            plausible_times=self.plausible_times,
            limits=self.limits,
            compare_actors=self.compare_actors,
            in_memory=self.frame is not None,
            taken=self.taken,
            ends=self.ends,
        )
        in_memory = self.frame
        for frame in (
            reader.read_frames(paths, self.files)
            if in_memory is None
            else reader.read_table(in_memory)
        ):
            user_stats.non_null_columns |= find_non_null_columns(frame)
            kept = self._filter_events(
                self._replicate(self._filter_time_range(frame, stats), stats), stats
            )
            self._note_users(frame, user_stats)
            shared = None if self.event_key is None else self.event_key.select_shared(kept)
            user_stats.shared_records += [] if shared is None else [shared]
            yield kept
        user_stats.actor_pairs.update(reader.actor_sampler.count_pairs())

    def _filter_time_range(self, frame: pl.DataFrame, stats: ReadStats) -> pl.DataFrame:
        """Skip and count events outside the time range."""
        if self.files.time_range is None:
            return frame
        kept = self.files.time_range.filter(frame)
        stats.outside_range += frame.height - kept.height
        return kept

    def _note_users(self, frame: pl.DataFrame, user_stats: UserStats) -> None:
        """Remember users that may be left out, for messages about a name that none has."""
        pseudonymizer = self.pseudonymizer
        if pseudonymizer is not None:
            user_stats.copied_columns |= pseudonymizer.find_copies(frame)
        full = len(user_stats.other_users) >= _MAX_OTHER_USERS
        if full or not (self.only_users or self.skip_users):
            return
        users = frame[self.user].drop_nulls().unique().head(_MAX_OTHER_USERS)
        known = users if pseudonymizer is None else pseudonymizer.replace(users)
        user_stats.other_users |= frozenset(known)

    def _replicate(self, frame: pl.DataFrame, stats: ReadStats) -> pl.DataFrame:
        if self.repeat == 1:
            return frame
        copies = replicate(frame, self.repeat, self.log_format.time_column)
        stats.read += copies.height - frame.height
        return copies

    def _filter_events(self, frame: pl.DataFrame, stats: ReadStats) -> pl.DataFrame:
        user = pl.col(self.user)
        for kind in self.log_format.excluded_kinds:
            if kind.values.keys() <= set(frame.columns) and not kind.fields:
                is_other = pl.all_horizontal(pl.col(n) == text for n, text in kind.values.items())
                kept = frame.filter(~is_other.fill_null(value=False))
                if kept.height < frame.height:
                    stats.leave_out(kind.name, frame.height - kept.height, read=0)
                    frame = kept
        if (
            self.log_format.event_class_filter is not None
            and self.log_format.event_class_filter[0] in frame.columns
        ):
            column, wanted = self.log_format.event_class_filter
            kept = frame.filter(
                pl.col(column).str.strip_suffix(".0").is_in(wanted) | pl.col(column).is_null()
            )
            stats.other_classes += frame.height - kept.height
            frame = kept
        if self.pseudonymizer is not None:
            frame = self.pseudonymizer.apply(frame)
        if self.only_users:
            kept = frame.filter(user.is_in(self.only_users))
            stats.other_users += frame.height - kept.height
            frame = kept
        if self.skip_users:
            kept = frame.filter(user.is_in(self.skip_users).not_() | user.is_null())
            stats.skipped_users += frame.height - kept.height
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
    """Read files into a buffer, in parallel if there is much to read.

    Args:
        buffer: Gets the events.
        read_task: How to read the files.
        paths: The files.
        stats: Counts what happens to the records.
        pool: Processes that read.

    Raises:
        UsageError: A table lacks the user column, or access to a file is denied.
        RecordError: A record cannot be read, and bad records are not skipped. It is the first one
            in the order of the files.
        TransientError: The disk is full, or a worker was killed.
    """
    budget = buffer.memory_budget
    sizes = [estimate_text_bytes(path) for path in paths]
    if pool.parallelism == 1 or sum(sizes) < budget.serial_threshold_bytes:
        for frame in read_task.read_frames(paths, stats, buffer.user_stats):
            buffer.add(frame)
        return
    read = partial(_read_and_spill, read_task, budget.spill_table_cells, buffer.spill_dir.folder)
    groups = group_files(paths, sizes, budget.min_task_bytes)
    for tables, user_stats, task_stats in pool.map(read, groups):
        stats.add(task_stats)
        buffer.add_spilled(tables, user_stats)


def estimate_text_bytes(path: LogPath) -> int:
    """Return the approximate size of a file as text, in bytes."""
    size = get_file_size(path)
    is_compressed = path.suffix.lower() in {*COMPRESSED_SUFFIXES, ".parquet"}
    return size * _COMPRESSION_RATIO if is_compressed else size


def group_files(
    paths: Sequence[LogPath], sizes: Sequence[int], min_bytes: int
) -> Iterator[list[LogPath]]:
    """Group files, in order, into groups of at least `min_bytes` bytes, except the last."""
    group: list[LogPath] = []
    total = 0
    for path, size in zip(paths, sizes, strict=True):
        group.append(path)
        total += size
        if total >= min_bytes:
            yield group
            group, total = [], 0
    if group:
        yield group


def _read_and_spill(
    read_task: ReadTask, table_cells: int, folder: Path, paths: Sequence[LogPath]
) -> tuple[list[SpilledTable], UserStats, ReadStats]:
    stats, user_stats = ReadStats(), UserStats.empty()
    frames = coalesce_frames(read_with_stats(read_task, paths, stats, user_stats), table_cells)
    return spill_to_disk(folder, frames), user_stats, stats


def read_with_stats(
    read_task: ReadTask, paths: Sequence[LogPath], stats: ReadStats, user_stats: UserStats
) -> Iterator[pl.DataFrame]:
    """Read files into frames of the columns with values, and count records and users."""
    for frame in read_task.read_frames(paths, stats, user_stats):
        user_stats.add(UserStats.from_frame(frame, read_task.user))
        yield drop_null_columns(frame, read_task.user)


def replicate(frame: pl.DataFrame, count: int, time_column: str) -> pl.DataFrame:
    """Repeat the events of a file, each repetition shifted by the time span of the file.

    Args:
        frame: Events with `TIME` and the time as text.
        count: Number of repetitions, including the original.
        time_column: Column with the time as text, which is rewritten in the repetitions.
    """
    span = pl.col(TIME).max() - pl.col(TIME).min()
    repetitions = [frame.with_columns(pl.lit(0).alias(REPLAY_NO))]
    for number in range(1, count):
        shifted = frame.with_columns(pl.col(TIME) + span * number, pl.lit(number).alias(REPLAY_NO))
        repetitions.append(
            shifted.with_columns(pl.col(TIME).dt.strftime(DEFAULT_TIME_FORMAT).alias(time_column))
        )
    return pl.concat(repetitions)
