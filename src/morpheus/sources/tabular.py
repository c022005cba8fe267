"""Reads CSV, Parquet and data frames into tables of text, with the line number of each row.

Also adds columns from the names of Hive partition folders.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import chain, pairwise
from threading import RLock
from typing import Any, Self
from urllib.parse import unquote

import msgspec
import numpy as np
import polars as pl
from msgspec.structs import replace

from morpheus.columns import INDEX, ROW
from morpheus.errors import RecordError, UsageError
from morpheus.sources.compression import (
    DEFAULT_LIMITS,
    LogPath,
    ReadLimits,
    as_local_file,
    get_file_size,
    is_utf16,
    strip_padding,
    to_utf8,
)
from morpheus.sources.json_records import (
    TABLE_MISSING_TEXTS,
    ParseErrors,
    ValueTransform,
    clear_missing_texts,
    decode_cell,
    encode_json,
    flatten_name,
    is_type_name,
    iter_named_leaves,
    looks_like_object,
    normalize_name,
    replace_surrogates,
    to_text,
)
from morpheus.sources.log_format import LogFormat, prefix_number
from morpheus.text import decode_text, quote_backtick

logger = logging.getLogger(__name__)

PROBED_CELLS = 20
"""Number of cells that show whether a column holds objects or records."""
_SCAN_BYTES = 1 << 22
"""Bytes that are scanned for quotes at a time."""
_MAX_HEADER_BYTES = 1 << 20
_MAX_ROW_BYTES = 1 << 25
"""Bytes of a table after which a quote that is still open counts as not closed."""
_MAX_STATED_ROWS = 1 << 40
"""Number of lost rows above which what a damaged file states is not believed."""
_READ_BYTES, _MAX_READ_BLOCKS = 1 << 25, 1 << 8
"""Size in memory, and number, of the blocks that are read from Parquet at a time."""
_FEW_COLUMNS = 3
"""Number of columns up to which a line of text may have as many separators by chance."""
_MIN_SIMILAR_LINES = 3
_OPEN_QUOTE = "a quote is not closed; the rows after this line are read on their own"


class Table(msgspec.Struct, frozen=True):
    """The rows of one file.

    Attributes:
        frame: Text columns, with the names of the file without the dropped characters.
        row_index: Row numbers of the file, from an unnamed first column of integers; None if there
            is no such column.
        line_numbers: Line of each row, from 1.
        errors: Line and reason of each bad row.
        duplicate_columns: Original names of columns that have the same flat name.
    """

    frame: pl.DataFrame
    row_index: pl.Series | None
    line_numbers: Sequence[int]
    errors: ParseErrors = ()
    duplicate_columns: dict[str, list[str]] = msgspec.field(default_factory=dict)


def read_csv(
    data: bytes, path: LogPath, drop_characters: str = ".", limits: ReadLimits = DEFAULT_LIMITS
) -> Table:
    """Read CSV with a header. All values are text; empty cells and `null` are no value.

    Args:
        data: Contents of the file.
        path: The file, for messages.
        drop_characters: Characters removed from names.
        limits: Maximum number of columns.

    Raises:
        RecordError: The file has no header, or too many columns.
    """
    data = strip_padding(to_utf8(data))
    dialect, start = _read_preamble(data)
    table = _read_rows(data[start:] if start else data, dialect, path, drop_characters, limits)
    lines = data.count(b"\n", 0, start)
    return _shift_lines(table, lines) if lines else table


def _read_rows(
    data: bytes, dialect: Dialect, path: LogPath, drop_characters: str, limits: ReadLimits
) -> Table:
    """Read the header and the rows of a table."""
    try:
        header = _read_header(data, dialect)
    except csv.Error as error:
        raise RecordError(f"the header is not CSV ({error})", file=path, line=1) from error
    if not header:
        raise RecordError(
            "the file is empty; a CSV file needs a header with column names", file=path
        )
    limits.check_columns(len(header), path)
    frame, lines, errors = _read_fast(data, len(header), dialect) or _read_exactly(
        data, len(header), dialect
    )
    frame, lines = _drop_repeated_headers(frame, lines, header)
    frame = clear_missing_texts(frame, TABLE_MISSING_TEXTS)
    index, first = None, frame.to_series(0)
    if header[0] in {"", "Unnamed: 0"}:
        index = _to_integers(first)
        header[0] = "Unnamed: 0"
    if index is not None:
        header, frame = header[1:], frame.drop(first.name)
    return _flatten_names(Table(frame, index, lines, errors), header, drop_characters)


def read_csv_blocks(
    blocks: Iterable[bytes],
    path: LogPath,
    drop_characters: str = ".",
    limits: ReadLimits = DEFAULT_LIMITS,
) -> Iterator[Table]:
    """Read CSV in blocks, with the same result as `read_csv`."""
    blocks = iter(blocks)
    dialect, skipped, header, rest = _split_header(blocks)
    lines, rows = skipped, 0
    for block in chain(blocks, [None]):
        data = rest + (block or b"")
        end = len(data) if block is None else _find_last_row_end(data)
        if not end and len(data) > _MAX_ROW_BYTES:
            # A quote is not closed. The exact reader finds where, and goes on after it.
            end = data.rfind(b"\n") + 1
        data, rest = data[:end], data[end:]
        limits.check_record(len(rest), path, lines + data.count(b"\n") + 2)
        if data or (block is None and not rows):
            table = _read_rows(header + data, dialect, path, drop_characters, limits)
            yield _shift_rows(table, rows, lines)
            rows, lines = rows + table.frame.height, lines + data.count(b"\n")


def _split_header(blocks: Iterator[bytes]) -> tuple[Dialect, int, bytes, bytes]:
    """Read the beginning of a table.

    Returns:
        The dialect; the number of lines before the header; the header; the part of the first block
        after it.
    """
    data = next(blocks, b"")
    if is_utf16(data):
        data += b"".join(blocks)
    data = to_utf8(data)
    dialect, start = _read_preamble(data)
    end = data.find(b"\n", start)
    while end >= 0 and data.count(b'"', start, end) % 2:
        end = data.find(b"\n", end + 1)
    end = len(data) if end < 0 else end + 1
    return dialect, data.count(b"\n", 0, start), data[start:end], data[end:]


def _find_last_row_end(data: bytes) -> int:
    """Find the position after the last line break outside quotes; 0 if there is none."""
    quotes, end = data.count(b'"'), len(data)
    while (at := data.rfind(b"\n", 0, end)) >= 0:
        quotes -= data.count(b'"', at, end)
        if not quotes % 2:
            return at + 1
        # No line break between this one and the quote before it is outside quotes either.
        end = data.rfind(b'"', 0, at)
        quotes -= 1
    return 0


class Dialect(msgspec.Struct, frozen=True):
    """How a table separates its cells.

    Attributes:
        separator: Character between cells.
        skips_spaces: Whether a space after a separator is no part of the cell.
    """

    separator: str = ","
    skips_spaces: bool = False

    @property
    def csv_options(self) -> dict[str, Any]:
        """Return the options of the standard library's reader."""
        return {"delimiter": self.separator, "skipinitialspace": self.skips_spaces}


_SEPARATORS = (",", ";", "\t", "|")
_SEPARATOR_LINE = re.compile(rb'"?sep=(.)"?[,;\t]*\r?\n', re.IGNORECASE)
"""First line for Excel, which names the separator."""
_TYPE_LINE = re.compile(rb'"?#TYPE [^\r\n]*\r?\n')
"""First line of PowerShell's `Export-Csv`."""


def _read_preamble(data: bytes) -> tuple[Dialect, int]:
    """Return the dialect of a table, and the position of its header."""
    start, separator = 0, ""
    while True:
        start += len(data[start : start + 4096]) - len(data[start : start + 4096].lstrip(b"\r\n"))
        if found := _SEPARATOR_LINE.match(data, start):
            separator = decode_text(found[1])
        elif not (found := _TYPE_LINE.match(data, start)):
            break
        start = found.end()
    if not separator:
        line = data[start : start + _MAX_HEADER_BYTES].partition(b"\n")[0]
        names = re.sub(rb'"[^"]*"', b"", line)
        counts = {each: names.count(each.encode()) for each in _SEPARATORS}
        separator = max(counts, key=lambda each: counts[each])
    header = decode_text(data[start : start + _MAX_HEADER_BYTES].partition(b"\n")[0])
    spaced = header.count(f"{separator} ")
    return Dialect(separator, spaced > 0 and spaced == header.count(separator)), start


def _drop_repeated_headers(
    frame: pl.DataFrame, lines: Sequence[int], header: Sequence[str]
) -> tuple[pl.DataFrame, Sequence[int]]:
    """Drop rows that repeat the header, as in several tables that were joined into one file."""
    repeated = frame.to_series(0) == header[0]
    if not repeated.any():
        return frame, lines
    for column, name in zip(frame, header, strict=True):
        repeated &= (column if name else column.fill_null("")) == name
    kept = ~repeated.fill_null(value=False)
    if kept.all():
        return frame, lines
    return frame.filter(kept), [line for line, is_row in zip(lines, kept, strict=True) if is_row]


def _shift_lines(table: Table, lines: int) -> Table:
    """Shift the line numbers of a table that begins after some lines."""
    errors = [(None if line is None else line + lines, reason) for line, reason in table.errors]
    return replace(table, line_numbers=[line + lines for line in table.line_numbers], errors=errors)


def _shift_rows(table: Table, rows: int, lines: int) -> Table:
    """Shift row and line numbers of a table that is not at the start of its file."""
    numbers = pl.int_range(rows, rows + table.frame.height, eager=True)
    index = numbers if table.row_index is None else table.row_index
    return replace(_shift_lines(table, lines), row_index=index)


def read_parquet_blocks(
    path: LogPath,
    rows: int,
    drop_characters: str = ".",
    wanted_columns: Sequence[str] | None = None,
    limits: ReadLimits = DEFAULT_LIMITS,
) -> Iterator[Table]:
    """Read Parquet in blocks of rows, with the same result as `read_parquet`.

    Raises:
        RecordError: The file is not Parquet, or is damaged.
    """
    start, stated = 0, None
    try:
        with as_local_file(path) as local:
            whole = pl.scan_parquet(local, glob=False)
            limits.check_columns(_count_leaves(whole), path)
            stated, stored, size = _count_stated_rows(whole), get_file_size(local), 0
            limits.check_rows(stated, stored, path)
            scan = _select_wanted(whole, wanted_columns)
            for frame in _collect_blocks(scan, rows, stated):
                size += _count_text_bytes(frame)
                if size > limits.max_table(stored):
                    raise limits.make_error(path, limits.max_table(stored), stated - start)
                yield _shift_rows(
                    _from_parquet(frame, drop_characters, wanted_columns), start, start
                )
                start += frame.height
            if start != stated:
                raise _wrong_row_number(start, stated)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _parquet_error(error, path, start, stated) from error


def read_parquet(
    data: bytes,
    path: LogPath,
    drop_characters: str = ".",
    wanted_columns: Sequence[str] | None = None,
    limits: ReadLimits = DEFAULT_LIMITS,
) -> Table:
    """Read Parquet. Nested columns are flattened like JSON.

    Args:
        data: Contents of the file.
        path: The file, for messages.
        drop_characters: Characters removed from names.
        wanted_columns: Names of the columns to read, if any column is nested; None for all.
        limits: Maximum number of columns.

    Raises:
        RecordError: The file is not Parquet, is damaged, or has too many columns.
    """
    stated = None
    try:
        whole = pl.scan_parquet(io.BytesIO(data))
        limits.check_columns(_count_leaves(whole), path)
        stated = _count_stated_rows(whole)
        limits.check_rows(stated, len(data), path)
        scan = _select_wanted(whole, wanted_columns)
        with _catch_panics():
            frame = scan.collect()
        if _count_text_bytes(frame) > limits.max_table(len(data)):
            raise limits.make_error(path, limits.max_table(len(data)), stated)
        if frame.height != stated:
            raise _wrong_row_number(frame.height, stated)
        return _from_parquet(frame, drop_characters, wanted_columns)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _parquet_error(error, path, 0, stated) from error


def _count_leaves(scan: pl.LazyFrame) -> int:
    """Return the number of columns, with those inside nested ones."""
    with _catch_panics():
        kinds: list[object] = [*scan.collect_schema().dtypes()]
    leaves = 0
    while kinds:
        kind = kinds.pop()
        leaves += not isinstance(kind, pl.Struct)
        if isinstance(kind, pl.Struct):
            kinds += [inner.dtype for inner in kind.fields]
    return leaves


def _count_stated_rows(scan: pl.LazyFrame) -> int:
    """Return the number of rows that the end of a Parquet file states."""
    with _catch_panics():
        return int(scan.select(pl.len()).collect().item())


def _count_text_bytes(frame: pl.DataFrame) -> int:
    """Return the size of a table. Equal texts share memory, and count each time."""
    sizes = (
        column.str.len_bytes().sum() if column.dtype == pl.String else column.estimated_size()
        for column in frame
    )
    return sum(map(int, sizes))


def _collect_blocks(scan: pl.LazyFrame, rows: int, stated: int) -> Iterator[pl.DataFrame]:
    """Collect a table in blocks. It may end early, without an error, where a file is damaged.

    Each call to Polars ends before a block is returned: threads of `LazyFrame.collect_batches`
    would read ahead, and report panics while nothing hides their reports. Several blocks are read
    at a time, because a row group is decoded from its start each time.
    """
    start, size = 0, rows
    while True:
        with _catch_panics():
            frame = scan.slice(start, size).collect()
            if frame.height < min(size, stated - start):
                time.sleep(_WAIT_SECONDS)  # a thread that panics may not have reported it yet
        yield from frame.iter_slices(rows) if frame.height or start else [frame]
        start += frame.height
        if frame.height < size:
            return
        blocks = _READ_BYTES * frame.height // max(1, int(frame.estimated_size())) // rows
        size = rows * max(1, min(blocks, _MAX_READ_BLOCKS))


_STDERR_LOCK = RLock()
_MAX_WAITS, _WAIT_SECONDS = 20, 0.05
_PANIC_REPORT = re.compile(
    rb"\n?thread '[^\n]*' (?:\(\d+\) )?panicked at [^\n]*\n"  # and the message in the next line
    rb"[^\n]*(?:\n(?:[ \t]*(?:\d+|at|left|right):? |note: |stack backtrace:)[^\n]*)*\n?"
)


@contextmanager
def _catch_panics() -> Iterator[None]:
    """Turn panics of Polars, which damaged files cause, into errors, and hide their reports.

    The reports go to the file descriptor of stderr, past Python.

    Raises:
        ComputeError: Polars panicked.
    """
    try:
        with _STDERR_LOCK, _hide_panic_reports():
            yield
    except pl.exceptions.PanicException as panic:
        raise pl.exceptions.ComputeError(_first_line(panic)) from None


@contextmanager
def _hide_panic_reports() -> Iterator[None]:
    """Collect what is written to stderr, and write it at the end without reports of panics."""
    try:
        saved = os.dup(2)
    except OSError:  # stderr is closed
        yield
        return
    with tempfile.TemporaryFile() as held, os.fdopen(saved, "wb", buffering=0) as stderr:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            _wait_for_reports(held.fileno())
            raise
        finally:
            os.dup2(stderr.fileno(), 2)
            if text := _PANIC_REPORT.sub(b"", _read_all(held.fileno())):
                stderr.write(text)


def _wait_for_reports(file: int) -> None:
    """Wait until no thread adds a report of a panic. Several may report the same one.

    Args:
        file: Descriptor of the file with the reports.
    """
    before = None
    for _ in range(_MAX_WAITS):
        text = _read_all(file)
        if text == before or b"panicked at" not in text:
            return
        before = text
        time.sleep(_WAIT_SECONDS)


def _read_all(file: int) -> bytes:
    """Read a file, and keep its position, at which the next report is written."""
    return os.pread(file, os.fstat(file).st_size, 0)


def _wrong_row_number(found: int, stated: int) -> pl.exceptions.ComputeError:
    return pl.exceptions.ComputeError(f"it states {stated:,} rows, but {found:,} can be read")


def _parquet_error(error: Exception, path: LogPath, rows: int, stated: int | None) -> RecordError:
    """Make the error for a damaged file.

    Args:
        error: What happened.
        path: The file.
        rows: Number of rows that were read.
        stated: Number of rows that the file states; None if that cannot be read.
    """
    reason = f"not a complete Parquet file ({_first_line(error)}); download it again"
    lost = None if stated is None else max(1, min(stated - rows, _MAX_STATED_ROWS))
    return RecordError(reason, file=path, records=lost)


def _select_wanted(scan: pl.LazyFrame, wanted_columns: Sequence[str] | None) -> pl.LazyFrame:
    """Select the columns that may contain wanted columns."""
    schema = scan.collect_schema()
    if wanted_columns is None or not any(kind.is_nested() for kind in schema.dtypes()):
        return scan
    wanted = frozenset(map(normalize_name, wanted_columns))
    return scan.select(name for name in schema.names() if _is_prefix(name, wanted))


def _is_prefix(name: str, wanted: Iterable[str]) -> bool:
    """Return whether a column is, or contains, one of some normalized names."""
    prefix = normalize_name(name)
    return any(each.startswith(prefix) for each in wanted)


class FrameInput(msgspec.Struct, frozen=True):
    """Events in memory, in place of files.

    Attributes:
        events: The events, one row each.
        history: Training events; None for those among `events`.
        keeps_rows: Every row is an event: equal rows are not treated as duplicates.
        warns_empty: Warn about features without a value: the caller has chosen the features.
        any_format: The events fit fingerprints of every log format. Only the names of users are
            compared.
    """

    events: pl.DataFrame
    history: pl.DataFrame | None = None
    keeps_rows: bool = False
    warns_empty: bool = False
    any_format: bool = False


FRAME_NAME = "frame"
"""Name of a frame in messages, where those about files have the file."""
RESERVED_COLUMNS = frozenset({ROW, INDEX, "Unnamed: 0"})
"""Columns of row numbers, which do not describe the event."""


def read_frame(
    frame: pl.DataFrame, log: LogFormat, wanted_columns: Sequence[str] | None = None
) -> Table:
    """Read a data frame. Nested columns are flattened like JSON.

    Args:
        frame: The rows. Columns of row numbers are left out.
        log: Format of the log.
        wanted_columns: As in `read_parquet`.
    """
    kept = frame.select(name for name in frame.columns if name not in RESERVED_COLUMNS)
    columns = select_wanted(to_text_columns(kept), kept, wanted_columns)
    cells = [_convert_lists(column, log.json_converters, log.drop_characters) for column in columns]
    cells = _prefix_numbers(cells, kept, log)
    names = [column.name for column in cells]
    numbered = [column.alias(str(n)) for n, column in enumerate(cells)]
    texts = clear_missing_texts(pl.DataFrame(numbered))
    lines = range(1, frame.height + 1)
    return _flatten_names(Table(texts, None, lines), names, log.drop_characters)


def _prefix_numbers(cells: list[pl.Series], frame: pl.DataFrame, log: LogFormat) -> list[pl.Series]:
    """Put prefixes in front of numbers, as in CSV: a library that reads CSV makes numbers of ids.

    Args:
        cells: The columns of a data frame as text.
        frame: The same columns, as they were. Text gets no prefix, as in JSON.
        log: Format of the log.
    """
    prefixes = {
        name: log.number_prefixes.get(flatten_name(name, log.drop_characters))
        for name, kind in frame.schema.items()
        if kind.is_numeric()
    }
    return [
        cell.to_frame()
        .select(prefix_number(pl.col(cell.name), prefix).alias(cell.name))
        .to_series()
        if (prefix := prefixes.get(cell.name))
        else cell
        for cell in cells
    ]


MAX_UNNESTED = 1000
"""Maximum number of fields of the objects in one column of a log of unknown kind."""


def unnest_objects(frame: pl.DataFrame) -> pl.DataFrame:
    """Replace columns of Python dictionaries with a column for each value inside them.

    Raises:
        UsageError: The dictionaries have too many different fields.

    >>> cells = pl.Series("a", [{"b": 1, "c": {"d": [2]}}, None], dtype=pl.Object)
    >>> unnest_objects(cells.to_frame()).to_dict(as_series=False)
    {'a.b': ['1', None], 'a.c.d': ['[2]', None]}
    """
    columns: list[pl.Series] = []
    for column in frame:
        columns += _unnest_column(column) if column.dtype == pl.Object else [column]
    return pl.DataFrame(columns)


def _unnest_column(column: pl.Series) -> list[pl.Series]:
    cells = column.to_list()
    rows = [{} if cell is None else dict(_iter_leaves(column.name, cell)) for cell in cells]
    names = dict.fromkeys(name for row in rows for name in row)
    if len(names) > MAX_UNNESTED:
        raise UsageError(
            f"frame: the objects in {quote_backtick(column.name)} have {len(names):,} different "
            f"fields, more than {MAX_UNNESTED:,}. Put the fields that matter into columns of their "
            "own, and drop this one."
        )
    return [
        pl.Series(name, [row.get(name) for row in rows], dtype=pl.String)
        for name in names or [column.name]
    ]


def _iter_leaves(name: str, value: object) -> Iterator[tuple[str, str | None]]:
    """Yield the dotted name and the text of each value inside an object."""
    pending: list[tuple[str, object]] = [(name, value)]
    while pending:
        name, value = pending.pop()
        if isinstance(value, Mapping):
            pending += [(f"{name}.{key}", inner) for key, inner in [*value.items()][::-1]]
        else:
            yield name, cell_to_text(value)


_MAX_EXACT = 1 << 53
"""Absolute value above which a float may not be the whole number that was meant."""


def cell_to_text(value: object) -> str | None:
    """Convert a Python value to the text that a log would have; None for no value.

    >>> [cell_to_text(value) for value in ("a", 200.0, 1.5, True, None, {"b": (1, 2)})]
    ['a', '200', '1.5', 'True', None, '{"b":[1,2]}']
    """
    value = value.tolist() if hasattr(value, "tolist") else value  # of NumPy
    if value is None or isinstance(value, bool):
        return to_text(value)
    if isinstance(value, float):
        is_whole = value.is_integer() and abs(value) < _MAX_EXACT
        return str(int(value)) if is_whole else to_text(float(value))
    if isinstance(value, datetime):
        moment = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        return moment.isoformat().replace("+00:00", "Z")
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        return _encode_object(value)
    return (
        _bytes_to_text(value) if isinstance(value, bytes) else str(replace_surrogates(str(value)))
    )


def _encode_object(value: object) -> str:
    """Encode an object as JSON. What JSON does not know becomes text."""

    def encode_other(other: object) -> object:
        return other.tolist() if hasattr(other, "tolist") else str(other)

    encoder = msgspec.json.Encoder(enc_hook=encode_other, order="deterministic")
    try:
        return encoder.encode(value).decode()
    except (TypeError, ValueError, OverflowError):  # keys or numbers that JSON does not know
        return str(value)


def _convert_lists(
    column: pl.Series, converters: Mapping[str, ValueTransform], drop_characters: str
) -> pl.Series:
    """Apply the conversion of a log format to cells that hold lists or objects as text."""
    convert = converters.get(flatten_name(column.name, drop_characters))
    if convert is None or column.dtype != pl.String:
        return column
    texts = column.filter(column.str.contains(r"^[\[{]").fill_null(value=False)).unique()
    changed = {}
    for text in texts:
        try:
            changed[text] = to_text(convert(msgspec.json.decode(text)))
        except (msgspec.DecodeError, RecursionError):
            continue
    return column.replace(list(changed), list(changed.values())) if changed else column


def select_wanted(
    columns: list[pl.Series], frame: pl.DataFrame, wanted_columns: Sequence[str] | None
) -> list[pl.Series]:
    """Return the wanted ones among the columns of a frame, if any column is nested.

    Args:
        columns: The columns as text, without nesting.
        frame: The same columns, as they were.
        wanted_columns: Names of the columns to keep; None for all.
    """
    if wanted_columns is None or not any(kind.is_nested() for kind in frame.dtypes):
        return columns
    wanted = frozenset(map(normalize_name, wanted_columns))
    # Text may hold an object with wanted columns.
    kinds = {pl.String, pl.Binary, pl.Object}
    texts = {name for name, kind in frame.schema.items() if kind in kinds}
    return [
        column
        for column in columns
        if normalize_name(column.name) in wanted
        or (column.name in texts and _is_prefix(column.name, wanted))
    ]


def _from_parquet(
    frame: pl.DataFrame, drop_characters: str, wanted_columns: Sequence[str] | None = None
) -> Table:
    columns = select_wanted(to_text_columns(frame), frame, wanted_columns)
    names = [column.name for column in columns]
    numbered = [column.alias(str(n)) for n, column in enumerate(columns)]
    index = None
    if names and names[0] in {"", "Unnamed: 0", "__index_level_0__"}:
        index = _to_integers(columns[0])
    if index is not None:
        names, numbered = names[1:], numbered[1:]
    lines = range(1, frame.height + 1)
    cells = clear_missing_texts(pl.DataFrame(numbered))
    return _flatten_names(Table(cells, index, lines), names, drop_characters)


def to_text_columns(frame: pl.DataFrame) -> list[pl.Series]:
    """Convert columns to text. Nested columns become one column per leaf, with a dotted name.

    Floats that are whole numbers have no decimals: data frames, and Parquet files that are made of
    them, turn whole numbers into floats where a column has gaps.

    >>> [column.name for column in to_text_columns(pl.DataFrame({"a": [{"b": 1}], "c": [True]}))]
    ['a.b', 'c']
    """
    return [_to_text_column(leaf) for column in frame for leaf in _iter_leaf_columns(column)]


def _write_whole_numbers(column: pl.Series) -> pl.Series:
    """Convert floats to text, whole numbers without decimals.

    >>> _write_whole_numbers(pl.Series([200.0, 1.5, float("nan"), 1e300])).to_list()
    ['200', '1.5', None, '1e+300']
    """
    name, value = column.name, pl.col(column.name)
    is_whole = value.is_finite() & (value == value.floor()) & (value.abs() < _MAX_EXACT)
    whole = pl.when(is_whole).then(value).cast(pl.Int64).cast(pl.String)
    texts = pl.coalesce(whole, value.fill_nan(None).cast(pl.String)).alias(name)
    return column.to_frame().select(texts).to_series()


def _read_header(data: bytes, dialect: Dialect) -> list[str]:
    # A quoted name may contain a line break, so the header may have several lines.
    head = io.StringIO(decode_text(data[:_MAX_HEADER_BYTES]), newline="")
    return next((row for row in csv.reader(head, **dialect.csv_options) if row), [])


def _read_fast(
    data: bytes, width: int, dialect: Dialect
) -> tuple[pl.DataFrame, Sequence[int], ParseErrors] | None:
    """Read with Polars; None if Polars fails, or if it would lose rows or fill short ones."""
    if dialect.skips_spaces:
        return None
    try:
        frame = pl.read_csv(data, infer_schema=False, separator=dialect.separator)
    except pl.exceptions.PolarsError:
        return None
    rows = frame.height + 1
    separators, breaks = _count_separators(data, dialect.separator.encode())
    if frame.width != width or (separators, breaks) != (rows * (width - 1), rows):
        return None
    one_line_each = rows <= data.count(b"\n") + 1 <= rows + 1
    if one_line_each:
        return frame, range(2, rows + 1), []
    lines = _find_line_numbers(data)
    if _swallows_any_row(data, lines, width, dialect):
        return None
    return frame, lines[: frame.height], []


def _swallows_any_row(data: bytes, ends: Sequence[int], width: int, dialect: Dialect) -> bool:
    """Return whether a quote that is not closed makes several rows look like one.

    Args:
        data: The table.
        ends: Number of the line after each row, header first.
        width: Number of columns.
        dialect: How cells are separated.
    """
    texts = data.split(b"\n")
    for begin, end in pairwise(ends):
        if end - begin > 1:
            lines = [decode_text(text) for text in texts[begin - 1 : end - 1]]
            if _swallows_rows(lines, width, dialect):
                return True
    return False


_WORD, _NUMBER = re.compile(r"[A-Za-z]+"), re.compile(r"\d+")


def _swallows_rows(lines: Sequence[str], width: int, dialect: Dialect) -> bool:
    """Return whether the lines of one row look like several rows.

    Half of the lines between the first and the last must have as many cells as the header. In a
    table of few columns these must be several lines, and their first cells must be written like
    that of the first line.
    """
    if width < 2:  # noqa: PLR2004 - rows of one cell cannot be told from lines of text
        return False
    shape = _get_shape(lines[0], dialect)
    inner, is_wide = lines[1:-1], width > _FEW_COLUMNS
    similar = sum(
        line.count(dialect.separator) >= width - 1
        and _count_cells(line, dialect) == width
        and (is_wide or _get_shape(line, dialect) == shape)
        for line in inner
    )
    return similar >= (1 if is_wide else _MIN_SIMILAR_LINES) and 2 * similar >= len(inner)


def _get_shape(line: str, dialect: Dialect) -> str:
    """Return the first cell of a line with all words and numbers alike."""
    cell = line.partition(dialect.separator)[0].strip('"\r\n')
    return _NUMBER.sub("0", _WORD.sub("a", cell))


def _count_cells(line: str, dialect: Dialect) -> int:
    """Return the number of cells of a line; 0 if it is no row of its own."""
    try:
        return len(next(csv.reader([line], strict=True, **dialect.csv_options), []))
    except csv.Error:
        return 0


def _find_line_numbers(data: bytes) -> list[int]:
    """Return the number of the line after each line break outside quotes."""
    found: list[int] = []
    quotes, line = 0, 1
    for start in range(0, len(data), _SCAN_BYTES):
        block = np.frombuffer(data, np.uint8, min(_SCAN_BYTES, len(data) - start), start)
        quoted = (np.cumsum(block == ord('"'), dtype=np.int32) + quotes) & 1
        breaks = block == ord("\n")
        lines = np.cumsum(breaks, dtype=np.int32) + line
        found += lines[breaks & (quoted == 0)].tolist()
        quotes, line = int(quoted[-1]), int(lines[-1])
    return found


def _count_separators(data: bytes, separator: bytes) -> tuple[int, int]:
    """Count separators and lines outside quotes."""
    ends = int(not data.endswith(b"\n"))
    if b'"' not in data:
        return data.count(separator), data.count(b"\n") + ends
    separators = lines = quotes = 0
    for start in range(0, len(data), _SCAN_BYTES):
        block = np.frombuffer(data, np.uint8, min(_SCAN_BYTES, len(data) - start), start)
        quoted = (np.cumsum(block == ord('"'), dtype=np.int32) + quotes) & 1
        outside = block[quoted == 0]
        separators += int(np.count_nonzero(outside == ord(separator)))
        lines += int(np.count_nonzero(outside == ord("\n")))
        quotes = int(quoted[-1])
    return separators, lines + ends


def _read_exactly(
    data: bytes, width: int, dialect: Dialect
) -> tuple[pl.DataFrame, Sequence[int], ParseErrors]:
    """Read row by row with the standard library, to separate good rows from bad ones."""
    rows: list[list[str]] = []
    lines: list[int] = []
    errors: list[tuple[int | None, str]] = []
    numbered = _iter_rows(data, width, dialect)
    next(numbered)
    for line, row in numbered:
        if isinstance(row, str):
            errors.append((line, row))
        elif len(row) != width:
            errors.append((line, f"the row has {len(row)} cells, and the header has {width}"))
        else:
            rows.append(row)
            lines.append(line)
    schema = {str(n): pl.String for n in range(width)}
    return pl.DataFrame(rows, schema=schema, orient="row"), lines, errors


class _Lines:
    """The lines of a text, from which reading can start again at any line.

    Args:
        text: The text.

    Attributes:
        at: Index of the next line.
    """

    def __init__(self, text: str) -> None:
        self.lines = list(io.StringIO(text, newline=""))
        self.at = 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        if self.at >= len(self.lines):
            raise StopIteration
        self.at += 1
        return self.lines[self.at - 1]


def _iter_rows(data: bytes, width: int, dialect: Dialect) -> Iterator[tuple[int, list[str] | str]]:
    """Yield the first line of each row that is not blank, and its cells or an error.

    A quote that is not closed only costs the line in which it is opened.
    """
    source = _Lines(decode_text(data))
    reader = csv.reader(source, strict=True, **dialect.csv_options)
    in_header = True
    while True:
        start = source.at
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            unclosed = source.at - start > 1 or "unexpected end" in str(error)
            yield start + 1, _OPEN_QUOTE if unclosed else f"not CSV ({error})"
            source.at = start + 1
            continue
        lines = source.lines[start : source.at]
        if not in_header and len(lines) > 1 and _swallows_rows(lines, width, dialect):
            yield start + 1, _OPEN_QUOTE
            source.at = start + 1
        elif row:
            yield start + 1, row
            in_header = False


def _to_integers(column: pl.Series) -> pl.Series | None:
    numbers = column.cast(pl.Int64, strict=False)
    return None if numbers.null_count() else numbers


def _flatten_names(table: Table, names: list[str], drop_characters: str) -> Table:
    """Rename columns to their flat names. Of columns with one name the first value counts."""
    originals: dict[str, list[str]] = {}
    columns: dict[str, pl.Series] = {}
    for name, column in zip(names, table.frame, strict=True):
        joined = flatten_name(name, drop_characters)
        originals.setdefault(joined, []).append(name)
        kept = columns.get(joined)
        columns[joined] = column if kept is None else kept.zip_with(kept.is_not_null(), column)
    duplicates = {joined: several for joined, several in originals.items() if len(several) > 1}
    frame = pl.DataFrame([column.alias(joined) for joined, column in columns.items()])
    return replace(table, frame=frame, duplicate_columns=duplicates)


def _iter_leaf_columns(column: pl.Series) -> Iterator[pl.Series]:
    if not isinstance(column.dtype, pl.Struct):
        yield column
        return
    for inner in column.struct.unnest():
        yield from _iter_leaf_columns(inner.alias(f"{column.name}.{inner.name}"))


def _to_text_column(column: pl.Series) -> pl.Series:
    kind = column.dtype
    if isinstance(kind, pl.Datetime):
        zoned = column if kind.time_zone is None else column.dt.convert_time_zone("UTC")
        return zoned.dt.strftime("%Y-%m-%dT%H:%M:%S%.fZ")
    if kind == pl.Boolean:
        return column.cast(pl.String).str.to_titlecase()
    if kind.is_float():
        return _write_whole_numbers(column)
    if kind in {pl.Binary, pl.Object} or kind.is_nested():
        convert: Callable[[Any], str | None] = _cell_to_json if kind.is_nested() else cell_to_text
        return pl.Series(column.name, map(convert, column.to_list()), dtype=pl.String)
    return column.dt.to_string("iso") if kind == pl.Duration else column.cast(pl.String)


def _cell_to_json(cell: object) -> str | None:
    return None if cell is None else encode_json(cell).decode()


_NO_TEXT = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
"""Characters that text does not contain."""


def _bytes_to_text(cell: bytes) -> str:
    """Convert a cell of bytes. Hive, Impala and Spark write text so; other bytes become base64.

    >>> _bytes_to_text("Zoë".encode()), _bytes_to_text(bytes([0, 255]))
    ('Zoë', '"AP8="')
    """
    try:
        text = cell.decode()
    except UnicodeDecodeError:
        return encode_json(cell).decode()
    return encode_json(cell).decode() if _NO_TEXT.search(text) else text


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]


def expand_objects(
    frame: pl.DataFrame, log: LogFormat, wanted_columns: Sequence[str], keep: Container[str]
) -> tuple[pl.DataFrame, dict[int, str]]:
    """Replace columns that hold whole objects as text with the columns inside them.

    Args:
        frame: The rows of a table.
        log: Format of the log.
        wanted_columns: Flat names of the columns to take out of objects.
        keep: Columns that stay as they are, too.

    Returns:
        The rows; and the rows with an object that is cut off, with the reason.
    """
    names = {normalize_name(name): name for name in wanted_columns}
    names |= {name: each for name, each in log.other_names.items() if each in wanted_columns}
    refused: dict[int, str] = {}
    for column in frame:
        prefix = normalize_name(column.name)
        if column.dtype != pl.String or prefix not in log.objects:
            continue
        objects = _decode_objects(column)
        if not objects:
            continue
        broken = [cell for cell, value in objects.items() if value is None and _is_cut_off(cell)]
        rows = column.is_in(broken).fill_null(value=False).arg_true() if broken else ()
        refused |= dict.fromkeys(rows, f"`{column.name}` is not a complete object")
        for inner in _take_columns(column, objects, prefix, log.objects, names):
            whole = _coalesce(frame, inner) if inner.name in frame.columns else inner
            frame = frame.with_columns(whole)
        if column.name not in keep:
            rest = column.set(column.is_in(list(objects)), None)
            frame = frame.drop(column.name) if rest.is_null().all() else frame.with_columns(rest)
    return frame, refused


def unify_booleans(frame: pl.DataFrame, names: Container[str]) -> pl.DataFrame:
    """Write `true` and `false` in some columns as JSON booleans are written in other files.

    Args:
        frame: The rows of a table.
        names: Columns to change.

    >>> unify_booleans(pl.DataFrame({"a": [None, "true"], "b": ["x", "true"]}), ["a"]).rows()
    [(None, 'x'), ('True', 'true')]
    """
    changed = []
    for column in frame:
        if column.name not in names or column.dtype != pl.String:
            continue
        if column.is_in(["true", "false"]).any():
            changed.append(column.replace({"true": "True", "false": "False"}))
    return frame.with_columns(changed) if changed else frame


def _is_cut_off(cell: str) -> bool:
    """Return whether an object lacks its end, as in a spreadsheet's cell of limited length."""
    is_complete = cell.rstrip().endswith(("}", '"')) and cell.count("{") == cell.count("}")
    return not is_complete


def _decode_objects(column: pl.Series) -> dict[str, Mapping[str, Any] | None]:
    """Decode the distinct cells of a column that are objects.

    Returns:
        The objects by cell; None for an object that is cut off, or of another form. Cells that only
        name a type are objects without values.
    """
    cells = column.drop_nulls().unique(maintain_order=True)
    if not any(looks_like_object(cell) or is_type_name(cell) for cell in cells[:PROBED_CELLS]):
        return {}
    objects: dict[str, Mapping[str, Any] | None] = {}
    for cell in cells:
        if looks_like_object(cell):
            objects[cell] = decode_cell(cell)
        elif is_type_name(cell):
            objects[cell] = {}
    unclear = next((cell for cell, value in objects.items() if value is None), None)
    if unclear is not None:
        logger.warning(
            "Cells of `%s` are not objects of a known form, so their values are not read: %s",
            column.name,
            quote_backtick(unclear[:80]),
        )
    type_name = next((cell for cell in cells if is_type_name(cell)), None)
    if type_name is not None:
        logger.warning(
            "Cells of `%s` only name the type of objects, such as %s: the export has lost their "
            "values. Export as JSON, or select single properties.",
            column.name,
            type_name,
        )
    return objects


def _take_columns(
    column: pl.Series,
    objects: Mapping[str, Mapping[str, Any] | None],
    prefix: str,
    inner_objects: Container[str],
    names: Mapping[str, str],
) -> list[pl.Series]:
    """Take columns out of the objects of a column.

    Args:
        column: The objects as text.
        objects: The decoded objects, by text; None for objects of another form.
        prefix: Normalized name of the column.
        inner_objects: Normalized paths at which text may be an object.
        names: Flat columns to take, by normalized path.
    """
    rows: dict[str, dict[str, str | None]] = {}
    for cell, value in objects.items():
        leaves = iter_named_leaves(value or {}, inner_objects, prefix)
        rows[cell] = {names[name]: to_text(leaf) for name, leaf in leaves if name in names}
    found = dict.fromkeys(name for row in rows.values() for name in row)
    distinct = pl.DataFrame(
        {"": list(rows)} | {name: [row.get(name) for row in rows.values()] for name in found},
        schema=dict.fromkeys(["", *found], pl.String),
    )
    joined = column.alias("").to_frame().join(distinct, on="", how="left", maintain_order="left")
    return [clear_missing_texts(joined)[name] for name in found]


def _coalesce(frame: pl.DataFrame, column: pl.Series) -> pl.Series:
    """Fill the missing values of a column of a frame."""
    own = frame[column.name]
    return own.zip_with(own.is_not_null(), column)


HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
"""Name of a partition folder for missing values."""


def parse_hive_partitions(path: LogPath, drop_characters: str = "") -> dict[str, str | None]:
    """Return the columns and values in the folder names of a file.

    Args:
        path: The file.
        drop_characters: Characters removed from names.

    >>> from pathlib import Path
    >>> parse_hive_partitions(Path("lake/user=a%2Fb/date=2024-05-31/0.parquet"))
    {'user': 'a/b', 'date': '2024-05-31'}
    """
    pairs = (folder.partition("=") for folder in path.parts[:-1] if "=" in folder)
    values = ((name, unquote(value)) for name, _, value in pairs if name and value)
    return {
        flatten_name(name, drop_characters): None if value == HIVE_NULL else value
        for name, value in values
    }


def add_partition_columns(
    frame: pl.DataFrame,
    files: Sequence[tuple[LogPath, int]],
    drop_characters: str,
    *,
    add_missing: bool,
) -> pl.DataFrame:
    """Fill missing values from the names of partition folders.

    Args:
        frame: Rows of some files, one file after the other.
        files: The files, and the number of rows of each.
        drop_characters: Characters removed from names.
        add_missing: Also add columns that the rows do not have.
    """
    found = [(parse_hive_partitions(path, drop_characters), rows) for path, rows in files]
    for name in dict.fromkeys(name for values, _ in found for name in values):
        if add_missing or name in frame.columns:
            parts = [
                pl.repeat(values.get(name), n, dtype=pl.String, eager=True) for values, n in found
            ]
            frame = frame.with_columns(_fill_from_partition(frame, name, pl.concat(parts)))
    return frame


def _fill_from_partition(frame: pl.DataFrame, name: str, partition_values: pl.Series) -> pl.Series:
    """Return the values of a column, filled with the values of the folders."""
    if name not in frame.columns:
        return partition_values.alias(name)
    own = frame[name]
    return own.zip_with(own.is_not_null(), partition_values).alias(name)
