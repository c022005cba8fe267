"""Files of one kind of log, read into tables with a time, every record accounted for."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

import msgspec
import polars as pl

from morpheus.columns import ACTOR, INDEX, TIME
from morpheus.errors import RecordError, UsageError
from morpheus.records import ReadStats
from morpheus.sources import times
from morpheus.sources.documents import ParseErrors, Records, RawJson, split_records, split_record_blocks
from morpheus.sources.fetching import Prefetcher
from morpheus.sources.files import BLOCK_SIZE, COMPRESSED_SUFFIXES, LogPath, is_large, read_blocks, to_utf8
from morpheus.sources.flatten import Flattener
from morpheus.sources.log_files import FileDiscovery
from morpheus.sources.log_format import LogFormat
from morpheus.sources.partitions import add_partition_columns
from morpheus.sources.tables import Table, read_csv_blocks, read_parquet_blocks, read_csv, read_parquet

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
        return RecordChunk(self.path, self.line_numbers[start:stop], self.row_index[start:stop], records)


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
            if not self.one_frame_per_file and (_is_readable_in_parts(path, file_type) or is_large(path)):
                yield from self._read_in_blocks(path, file_type, prefetcher)
            else:
                yield self._read_whole(path, file_type, prefetcher)
        except RecordError as error:
            yield RecordChunk(path, (), (), errors=[(error.line, error.reason)]), None

    def _read_whole(self, path: LogPath, file_type: str, prefetcher: Prefetcher) -> tuple[RecordChunk, pl.DataFrame | None]:
        data = prefetcher.read(path)
        if file_type == "json":
            return _make_chunk(path, split_records(to_utf8(data), self.log_format.unwrap), 0, len(data)), None
        dropped = self.log_format.drop_characters
        if file_type == "csv":
            return self._from_table(path, read_csv(data, path, dropped), file_type)
        return self._from_table(path, read_parquet(data, path, dropped, self._nested_columns), file_type)

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

    def _from_table(self, path: LogPath, table: Table, file_type: str) -> tuple[RecordChunk, pl.DataFrame | None]:
        rows = range(table.frame.height)
        numbers = rows if table.row_index is None else table.row_index
        text = next((n for n in self.log_format.embedded_json_columns if n in table.frame.columns), None)
        if text is not None:
            texts = [cell.encode() for cell in table.frame[text].fill_null("").to_list()]
            return RecordChunk(
                path, table.line_numbers, numbers, texts, sum(map(len, texts)), table.errors
            ), None
        files = [(path, table.frame.height)]
        whole = add_partition_columns(table.frame, files, self.log_format.drop_characters, add_missing=True)
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
            reason = f"the file has no column `{self.log_format.time_column}`; it has {', '.join(names)}"
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
            frame = add_partition_columns(frame, files, self.log_format.drop_characters, add_missing=self.wanted_columns is None)
            frame = self.log_format.fill_fallbacks(frame, self.user, keep=self.flattener.wanted_columns)
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
        time = times.parse_times(texts, self.log_format.time_format)
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
        name, usual = self.log_format.time_column, self.log_format.time_format or "2024-05-31T09:30:00Z"
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
            raise RecordError(f"{error.reason}; {hint}", file=error.file, line=error.line) from error
        self.stats.read += read
        self.stats.refuse(str(error))


def _is_readable_in_parts(path: LogPath, file_type: str) -> bool:
    """Whether a file can be read from the disk in parts, whatever its size."""
    return file_type == "parquet" and isinstance(path, Path)


def _make_chunk(path: LogPath, records: Records, first_index: int, num_bytes: int) -> RecordChunk:
    index = range(first_index, first_index + len(records.raw_records))
    return RecordChunk(path, records.line_numbers, index, records.raw_records, num_bytes, records.errors)


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
