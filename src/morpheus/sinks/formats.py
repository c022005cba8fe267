"""Writers of rows as CSV, JSON lines and Parquet.

The bytes do not depend on how rows are cut into batches. Text of logs is hostile: CSV cells that a
spreadsheet would run as a formula are escaped. In CSV, what rows have in common is formatted once.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import IO, BinaryIO, Protocol, Self, cast

import msgspec
import polars as pl
import polars.selectors as cs
import zstandard
from isal import isal_zlib

from morpheus.columns import ROW
from morpheus.core.batch import RowBuffer, Table
from morpheus.storage.atomic import TempFolder

FORMAT_BY_EXTENSION = {
    ".csv": "csv",
    ".json": "json",
    ".jsonlines": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
}
COMPRESSED_SUFFIXES = (".gz", ".zst")
PARQUET_ROW_NAME = "Unnamed: 0"
"""Name of the unnamed first column in Parquet, where columns need names.

Pandas gives it the same name when it reads a CSV file, so that the same code reads both."""

_TEXT = (pl.String, pl.Categorical, pl.Enum)
_MAX_DISTINCT_SHARE = 0.5  # share of distinct rows up to which they are formatted apart
ENCODE_CHUNK_ROWS = 1 << 15  # rows from which batches are encoded, together
_MAX_CHUNK_ROWS = 1 << 16  # maximum number of rows encoded at a time
_GZIP_BLOCK = 1 << 20  # bytes of text in a member of a gzip file
_GZIP_LEVEL = 2  # isal's: an eighth larger than zlib's level 6, in a ninth of the time
_COPY_BYTES = 1 << 18  # bytes copied at a time
_SENDFILE_BYTES = 1 << 30  # maximum number of bytes that the kernel copies at a time
_SPILL_ROWS = 1 << 17  # rows in memory before a part of a Parquet file is spilled
_ROW_GROUP_SIZE = 1 << 16  # fixed, so that the bytes do not depend on threads

# Text that spreadsheets take for a formula (OWASP, "CSV Injection"), after blanks that some of them
# skip. Regular expressions are slow: `_starts_with_symbol` first finds the few columns to check.
_FORMULA_PATTERN = r"^[\s\x00-\x1f\u{a0}\u{feff}\u{200b}]*[=+\-@＝＋－＠]|^[\t\r\n]"  # noqa: RUF001 - full-width characters are intended
_NUMBER_PATTERN = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"


RowEncoder = Callable[[Table, IO[bytes]], None]
"""Writes rows to a file in a text format."""


class RowWriter(Protocol):
    """Writes rows in a format. Its `with` block releases everything but the file."""

    def write(self, table: Table) -> None:
        """Write rows. The first call, with rows or without, decides the columns."""

    def append(self, path: Path) -> None:
        """Append a file of encoded rows, and remove it."""

    def flush(self) -> None:
        """Pass all rows so far to the operating system."""

    def finish(self) -> None:
        """Write buffered rows. The file stays open."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *about: object) -> None: ...


class TextWriter:
    """Writes CSV or JSON lines, plain or compressed.

    Args:
        file: File to write to. It stays open.
        compression: `.gz`, `.zst`, or empty.
        write_rows: Encodes rows.
        encode_header: Encodes the column names; by default there is no header.
        empty: What a file without rows and header holds.
    """

    def __init__(
        self,
        file: BinaryIO,
        compression: str,
        *,
        write_rows: RowEncoder,
        encode_header: Callable[[list[str]], bytes] = lambda _: b"",
        empty: bytes = b"",
    ) -> None:
        self._file, self._output = file, open_compressed(file, compression)
        self._write_rows, self._encode_header = write_rows, encode_header
        self._header_written = False
        self._empty = empty
        self._buffer = RowBuffer[Table]()

    def write(self, table: Table) -> None:
        """Write rows, after the header the first time. Small batches are joined, for speed."""
        if not self._header_written:
            header = self._encode_header(table.names)
            self._output.write(header)
            self._header_written = True
            self._empty = b"" if header else self._empty
        waiting = self._buffer.items
        if waiting and waiting[0].schema_key != table.schema_key:
            # Joining batches of different schemas would change how rows are encoded.
            self._write_buffer()
        self._buffer.add(table, table.height)
        if self._buffer.has(ENCODE_CHUNK_ROWS):
            self._write_buffer()

    def append(self, path: Path) -> None:
        """Append a file of encoded rows, and remove it."""
        self._write_buffer()
        self._empty = b""
        if self._output is self._file and sys.platform == "linux" and self._file.seekable():
            _sendfile_append(path, self._file)
        else:
            with path.open("rb") as rows:
                shutil.copyfileobj(rows, self._output, _COPY_BYTES)
        path.unlink()

    def flush(self) -> None:
        """Pass all rows so far to the operating system."""
        self._write_buffer()
        self._output.flush()
        self._file.flush()

    def finish(self) -> None:
        """Write buffered rows, and end the compressed stream."""
        self._write_buffer()
        if self._empty:
            self._output.write(self._empty)
            self._empty = b""
        if self._output is not self._file:
            self._output.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *about: object) -> None:
        # After a failure the compressor still writes its end, into a file that is discarded.
        self._buffer.take()
        self._empty = b""
        with suppress(OSError):
            self.finish()

    def _write_buffer(self) -> None:
        if not self._buffer.items:
            return
        for chunk in iter_chunks(Table.concat(self._buffer.items)):
            self._empty = b""
            if self._output is self._file:
                self._write_rows(chunk, self._file)
            else:
                # polars flushes after each chunk, which would make a compressed file larger.
                text = io.BytesIO()
                self._write_rows(chunk, text)
                self._output.write(text.getbuffer())
        self._buffer.take()


def _sendfile_append(path: Path, file: BinaryIO) -> None:
    """Append a file to another inside the kernel, in less than half the time of a copy."""
    file.flush()
    with path.open("rb") as rows:
        while os.sendfile(file.fileno(), rows.fileno(), None, _SENDFILE_BYTES):
            pass
    file.seek(0, os.SEEK_END)
    # Start writing to disk while the next rows are computed, not at the end.
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def empty_json(filename: str) -> bytes:
    r"""Return what a JSON file without rows holds: an empty list in `.json`, else an empty line.

    >>> empty_json("alerts.json.gz"), empty_json("alerts.jsonl")
    (b'[]\n', b'\n')
    """
    suffixes = Path(filename).suffixes[-2:]
    return b"[]\n" if ".json" in (suffix.lower() for suffix in suffixes) else b"\n"


def iter_chunks(table: Table) -> list[Table]:
    """Cut rows into parts of similar size that are encoded at a time."""
    number = -(-table.height // _MAX_CHUNK_ROWS)
    return table.split((table.height + i) // number for i in range(number))


def open_compressed(file: BinaryIO, compression: str) -> BinaryIO:
    """Open a compressing file. Its bytes do not depend on the size of the writes, or on threads."""
    threads = count_cores()
    if compression == ".gz":
        return cast("BinaryIO", GzipWriter(file, threads))
    if compression == ".zst":
        compressor = zstandard.ZstdCompressor(threads=threads)
        return cast("BinaryIO", compressor.stream_writer(file, closefd=False))
    return file


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class GzipWriter:
    """Compresses blocks of a fixed size in threads, each as a member of the file.

    Programs read the members one after the other, as one text.

    Args:
        file: File to write to. It stays open.
        threads: Number of threads.
    """

    def __init__(self, file: BinaryIO, threads: int) -> None:
        self._file, self._threads = file, threads
        self._buffer = bytearray()
        self._pending: deque[Future[bytes]] = deque()
        self._pool: ThreadPoolExecutor | None = None
        self._is_empty, self._closed = True, False

    def write(self, data: bytes | memoryview) -> int:
        """Add to the text."""
        self._buffer += data
        while len(self._buffer) >= _GZIP_BLOCK:
            self._compress(bytes(self._buffer[:_GZIP_BLOCK]))
            del self._buffer[:_GZIP_BLOCK]
        return len(data)

    def flush(self) -> None:
        """Write all text so far. What comes next is a member of its own."""
        if self._buffer:
            self._compress(bytes(self._buffer))
            self._buffer.clear()
        self._write_members(0)
        self._file.flush()

    def close(self) -> None:
        """Write the rest, and stop the threads. A second call does nothing, whatever failed."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._is_empty and not self._buffer:
                self._compress(b"")  # a file without a member is no gzip file
            self.flush()
        finally:
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)

    def _compress(self, block: bytes) -> None:
        self._is_empty = False
        if self._pool is None and len(block) < _GZIP_BLOCK:  # all of a small file
            self._file.write(isal_zlib.compress(block, _GZIP_LEVEL, wbits=31))
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, "gzip")
        self._pending.append(self._pool.submit(isal_zlib.compress, block, _GZIP_LEVEL, wbits=31))
        self._write_members(2 * self._threads)

    def _write_members(self, most: int) -> None:
        """Write finished members, until no more than `most` are left."""
        while len(self._pending) > most:
            self._file.write(self._pending.popleft().result())


def encode_csv_header(columns: list[str]) -> bytes:
    r"""Return the header of a CSV file. The row number has no name, as in pandas.

    >>> encode_csv_header(["", "_index_", "a,b", "=c"]).decode()
    ',_index_,"a,b",\'=c\n'
    """
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(
        escape_formulas(pl.Series(columns, dtype=pl.String))
    )
    return line.getvalue().encode()


def write_csv_rows(frame: pl.DataFrame, file: IO[bytes], *, line_end: str = "\n") -> None:
    """Write rows as CSV, in the format of pandas.

    Booleans are True and False; null and NaN are empty; times look like
    `2021-10-09 06:00:00+00:00`. Text that a spreadsheet would run as a formula is prefixed with
    `'`; numbers, negative ones included, are not.
    """
    _show_in_csv(frame).write_csv(file, include_header=False, line_terminator=line_end)


def _show_in_csv(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the cells as they are in CSV, except quotes."""
    shown = frame.with_columns(map(_show_column, frame))
    escaped = [escape_formulas(shown[name]) for name in _columns_to_escape(shown)]
    return shown.with_columns(escaped) if escaped else shown


def _show_column(column: pl.Series) -> pl.Series:
    """Return the cells of a column as they are in CSV, except quotes and formulas."""
    kind = column.dtype
    if kind.is_float():
        return column.fill_nan(None)
    if kind == pl.Boolean:
        return column.replace_strict({True: "True", False: "False"}, return_dtype=pl.String)
    if kind == pl.Datetime:
        return _format_times(column)
    return column.cast(pl.String) if kind != pl.String and kind in _TEXT else column


def write_csv(table: Table, file: IO[bytes]) -> None:
    """Write what `write_csv_rows` writes. What rows have in common is formatted once."""
    common = CommonCells.find(table)
    parts = None if common is None else _format_csv_parts(common)
    if parts is None:
        write_csv_rows(table.to_frame(), file)
    else:
        _join_parts(parts, file)


def _format_csv_parts(common: CommonCells) -> list[pl.Series] | None:
    """Return the cells, quotes included; None if a text has the end of `_format_csv_lines`."""
    own = _show_in_csv(common.own)
    quoted = {name: _format_csv_lines(common.own.select(name)) for name in _find_quoted(own)}
    parts = list[pl.Series | None]()
    for is_common, names in common.runs:
        if is_common:
            lines = _format_csv_lines(common.distinct.select(names))
            parts.append(None if lines is None else lines.gather(common.groups))
        else:
            parts += [quoted[name] if name in quoted else own[name] for name in names]
    formatted = [part for part in parts if part is not None]
    return formatted if len(formatted) == len(parts) else None


def _find_quoted(frame: pl.DataFrame) -> list[str]:
    """Return the columns of which polars may quote a cell."""
    texts = [column for column in frame if column.dtype == pl.String]
    is_quoted = pl.all().str.contains(r'[",\r\n]') | (pl.all() == "")
    flags = pl.DataFrame(texts).select(is_quoted.any())
    plain = {column.name for column in flags if not column[0]}
    return [
        column.name
        for column in frame
        if column.name not in plain and not column.dtype.is_numeric() and column.dtype != pl.Null
    ]


_CSV_LINE_START, _CSV_LINE_END = "0,", "\x1e\n"


def _format_csv_lines(frame: pl.DataFrame) -> pl.Series | None:
    """Return each row as `write_csv_rows` writes it; None if a text has the end of a line."""
    text = io.BytesIO()
    # A row of one empty cell would be quoted, which it is not among other cells.
    start = pl.repeat(0, frame.height, eager=True).alias(_CSV_LINE_START)
    rows = pl.DataFrame([start, *(column.alias(f"_{column.name}") for column in frame)])
    write_csv_rows(rows, text, line_end=_CSV_LINE_END)
    lines = text.getvalue().decode().removeprefix(_CSV_LINE_START).removesuffix(_CSV_LINE_END)
    cells = lines.split(_CSV_LINE_END + _CSV_LINE_START)
    return pl.Series(cells, dtype=pl.String) if len(cells) == frame.height else None


class CommonCells(msgspec.Struct, frozen=True):
    """What rows have in common: the cells of columns in which many rows are equal.

    Attributes:
        distinct: The distinct rows of these columns.
        groups: Which of them each row has, shape (rows,).
        own: The other columns of the rows.
        runs: Consecutive columns of the rows, and whether they are of `distinct`.
    """

    distinct: pl.DataFrame
    groups: pl.Series
    own: pl.DataFrame
    runs: list[tuple[bool, list[str]]]

    @classmethod
    def find(cls, table: Table) -> CommonCells | None:
        """Return what rows have in common; None if it is too little, or not known."""
        frame, equal = table.to_frame(), table.equal_rows
        if equal is None or len(frame.columns) == 1:
            return None
        texts = {column.name for column in frame if column.dtype in _TEXT}
        common = [name for name in frame.columns if name in equal.names and name in texts]
        if not common:
            return None
        distinct, groups = equal.distinct(common)
        if distinct.height > frame.height * _MAX_DISTINCT_SHARE:
            return None
        runs = groupby(frame.columns, common.__contains__)
        return cls(
            distinct,
            pl.Series(groups),
            frame.drop(common),
            [(is_common, list(names)) for is_common, names in runs],
        )


def _join_parts(parts: Iterable[pl.Series], file: IO[bytes]) -> None:
    """Write formatted cells, with commas in between."""
    columns = [part.alias(str(number)) for number, part in enumerate(parts)]
    pl.DataFrame(columns).write_csv(file, include_header=False, quote_style="never")


def escape_formulas(text: pl.Series) -> pl.Series:
    """Prefix text that a spreadsheet would run as a formula with `'`.

    >>> escape_formulas(pl.Series(["=1+1", "-5", " @sum", "a=b"])).to_list()
    ["'=1+1", '-5', "' @sum", 'a=b']
    """
    candidates = (
        text.to_frame("")
        .select(pl.first().filter(_starts_with_symbol(pl.first())).unique())
        .to_series()
    )
    is_formula = candidates.str.contains(_FORMULA_PATTERN) & ~candidates.str.contains(
        _NUMBER_PATTERN
    )
    formulas = candidates.filter(is_formula)
    return text if formulas.is_empty() else text.replace(formulas, "'" + formulas)


def _starts_with_symbol(text: pl.Expr) -> pl.Expr:
    """Return whether a text starts with anything but a letter, a digit or common punctuation.

    Compares whole strings by code point: "A" to DEL, and "." to "<". This is much faster than a
    regular expression, and `_FORMULA_PATTERN` checks what it finds.
    """
    letter = text.is_between(pl.lit("A"), pl.lit("\x7f"))
    digit = text.is_between(pl.lit("."), pl.lit("="), closed="left")
    return ~(letter | digit) & (text != pl.lit(""))


def _columns_to_escape(frame: pl.DataFrame) -> list[str]:
    """Return the text columns in which a text starts with a symbol."""
    # Many columns of a log are empty for hours; skipping them is free.
    texts = [column for column in frame if column.dtype == pl.String]
    filled = [text for text in texts if text.null_count() < len(text)]
    flags = pl.DataFrame(filled).select(_starts_with_symbol(pl.all()).any())
    return [column.name for column in flags if column[0]]


def _format_times(times: pl.Series) -> pl.Series:
    """Format times as pandas does: microseconds only if there are any."""
    zone = "%:z" if getattr(times.dtype, "time_zone", None) else ""
    if times.dtype == pl.Datetime(time_zone="UTC"):
        # Takes two thirds of the time.
        zone, times = "+00:00", times.dt.replace_time_zone(None)
    whole = times.dt.strftime(f"%Y-%m-%d %H:%M:%S{zone}")
    fractional = times.dt.nanosecond() != 0
    if not fractional.any():
        return whole
    return whole.zip_with(~fractional, times.dt.strftime(f"%Y-%m-%d %H:%M:%S%.6f{zone}"))


ISO_TIMES, EPOCH_TIMES = "iso", "epoch_ms"
TIME_FORMATS = (ISO_TIMES, EPOCH_TIMES)
"""Formats of times in JSON: ISO 8601, or milliseconds since 1970, as NVIDIA Morpheus writes."""


def write_json_rows(frame: pl.DataFrame, file: IO[bytes], *, times: str = ISO_TIMES) -> None:
    """Write a JSON object per row: null for NaN, no row number.

    Args:
        frame: The rows.
        file: File to write to.
        times: Format of times; one of `TIME_FORMATS`.
    """
    floats = cs.float()
    rows = frame.select(cs.exclude(ROW) if ROW in frame.columns else cs.all())
    columns = rows.select(cs.datetime())
    shown = [
        column.dt.epoch("ms") if times == EPOCH_TIMES else format_iso_times(column)
        for column in columns
    ]
    rows.with_columns(*shown, pl.when(floats.is_finite()).then(floats)).write_ndjson(file)


def format_iso_times(times: pl.Series) -> pl.Series:
    """Format times as ISO 8601, with microseconds only if there are any.

    >>> from datetime import UTC, datetime
    >>> format_iso_times(pl.Series([datetime(2024, 5, 31, 9, 30, tzinfo=UTC), None])).to_list()
    ['2024-05-31T09:30:00Z', None]
    """
    zone = "" if getattr(times.dtype, "time_zone", None) is None else "Z"
    if zone:
        times = times.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    whole = times.dt.strftime(f"%Y-%m-%dT%H:%M:%S{zone}")
    fractional = times.dt.nanosecond() != 0
    if not fractional.any():
        return whole
    return whole.zip_with(~fractional, times.dt.strftime(f"%Y-%m-%dT%H:%M:%S%.6f{zone}"))


class ParquetWriter:
    """Writes Parquet in bounded memory: parts are spilled, and joined at the end.

    Args:
        path: File to write. It must exist; `finish` replaces its content.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._spill_dir = TempFolder(path.parent)
        self._schema: dict[str, pl.DataType] | None = None
        self._buffer = RowBuffer[pl.DataFrame]()
        self._spilled_files: list[Path] = []

    def write(self, table: Table) -> None:
        """Buffer rows until there are enough for a part."""
        frame = table.to_frame()
        if self._schema is None:
            text = pl.String()
            types = frame.schema.items()
            self._schema = {n: text if t == pl.Null else t for n, t in types}
        frame = frame.cast(pl.Schema(self._schema)).rename({ROW: PARQUET_ROW_NAME}, strict=False)
        self._buffer.add(frame, frame.height)
        if self._buffer.rows >= _SPILL_ROWS:
            self._spill()
        elif self._buffer.has(_SPILL_ROWS):
            joined = pl.concat(self._buffer.take(), rechunk=True)
            self._buffer.add(joined, joined.height)

    def append(self, path: Path) -> None:
        """Not supported: `ToFile.encoder` returns None for Parquet."""
        raise NotImplementedError

    def flush(self) -> None:
        """Do nothing: a Parquet file can be read only when it is complete."""

    def finish(self) -> None:
        """Join the parts."""
        self._spill()
        if not self._spilled_files:
            pl.DataFrame().write_parquet(self._path)  # no stage has given columns
            return
        rows = pl.scan_ipc(self._spilled_files)
        rows.sink_parquet(self._path, row_group_size=_ROW_GROUP_SIZE, maintain_order=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *about: object) -> None:
        self._spill_dir.close()

    def _spill(self) -> None:
        if self._buffer.items:
            part = Path(self._spill_dir.path, f"{len(self._spilled_files):09}.arrow")
            pl.concat(self._buffer.take()).write_ipc(part)
            self._spilled_files.append(part)
