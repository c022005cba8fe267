"""Rows as text or Parquet: what a cell looks like in each format."""

from __future__ import annotations

import csv
import gzip
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, BinaryIO, Protocol, Self, cast

import polars as pl
import polars.selectors as cs
import zstandard

from morpheus.columns import ROW

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
"""Name of the unnamed first column in Parquet, where columns need one: pandas' name for it in a
CSV file, so that the same code reads both."""

ENCODE_CHUNK_ROWS = 1 << 15  # rows turned into text at a time
_COPY_BYTES = 1 << 18  # bytes copied at a time
_SENDFILE_BYTES = 1 << 30  # bytes that the kernel copies at a time, at most
_SPILL_ROWS = 1 << 17  # rows held before a part of a Parquet file goes to disk
_ROW_GROUP_SIZE = 1 << 16  # fixed, so that the bytes do not depend on threads

# What spreadsheets take for a formula (OWASP, "CSV Injection"), behind any blanks that some of them
# skip. Regular expressions cost; the comparison finds the few columns that need one.
_FORMULA_PATTERN = r"^[\s\x00-\x1f\u{a0}\u{feff}\u{200b}]*[=+\-@＝＋－＠]|^[\t\r\n]"  # noqa: RUF001 - full-width signs are meant
_NUMBER_PATTERN = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"


class RowWriter(Protocol):
    """A format being written; its `with` block lets go of all that it holds but the file."""

    def write(self, frame: pl.DataFrame) -> None:
        """Write rows; the first call, with rows or without, decides the columns."""

    def append(self, path: Path) -> None:
        """Take over a file of rows that are spelt already."""

    def flush(self) -> None:
        """Hand all rows so far to the operating system."""

    def finish(self) -> None:
        """Write what is left; the file below stays open."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *about: object) -> None: ...


class TextWriter:
    """CSV or JSON lines, plain or packed.

    Args:
        file: Written to, and left open.
        packing: `.gz`, `.zst`, or nothing.
        rows: Turns a few rows into bytes.
        head: Turns the columns into the bytes before the first row.
    """

    def __init__(
        self,
        file: BinaryIO,
        compression: str,
        *,
        write_rows: Callable[[pl.DataFrame, IO[bytes]], None],
        encode_header: Callable[[list[str]], bytes] = lambda _: b"",
    ) -> None:
        self._file, self._output = file, open_compressed(file, compression)
        self._write_rows, self._encode_header = write_rows, encode_header
        self._header_written = False
        self._buffer: list[pl.DataFrame] = []

    def write(self, frame: pl.DataFrame) -> None:
        """Write rows, after the head the first time; small batches are joined, which is faster."""
        if not self._header_written:
            self._output.write(self._encode_header(frame.columns))
            self._header_written = True
        if self._buffer and schema_key(self._buffer[0]) != schema_key(frame):
            # What rows look like does not depend on those beside them.
            self._write_buffer()
        self._buffer.append(frame)
        if sum(each.height for each in self._buffer) >= ENCODE_CHUNK_ROWS:
            self._write_buffer()

    def append(self, path: Path) -> None:
        """Take over a file of rows that are spelt already."""
        self._write_buffer()
        if self._output is self._file and sys.platform == "linux":
            _sendfile_append(path, self._file)
        else:
            with path.open("rb") as rows:
                shutil.copyfileobj(rows, self._output, _COPY_BYTES)
        path.unlink()

    def flush(self) -> None:
        """Hand all rows so far to the operating system."""
        self._write_buffer()
        self._output.flush()
        self._file.flush()

    def finish(self) -> None:
        """Write what is held, and end the packing."""
        self._write_buffer()
        if self._output is not self._file:
            self._output.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *about: object) -> None:
        # After a failure the packing still wants to write its end, into a file that is to go.
        self._buffer = []
        with suppress(OSError):
            self.finish()

    def _write_buffer(self) -> None:
        if not self._buffer:
            return
        for some in pl.concat(self._buffer).iter_slices(ENCODE_CHUNK_ROWS):
            if self._output is self._file:
                self._write_rows(some, self._file)
            else:
                # polars would end each piece with a flush, which makes a packed file larger.
                text = io.BytesIO()
                self._write_rows(some, text)
                self._output.write(text.getbuffer())
        self._buffer = []


def _sendfile_append(path: Path, file: BinaryIO) -> None:
    """Append a file to another within the kernel, in less than half the time of a copy."""
    file.flush()
    with path.open("rb") as rows:
        while os.sendfile(file.fileno(), rows.fileno(), None, _SENDFILE_BYTES):
            pass
    file.seek(0, os.SEEK_END)
    # It begins to go to the disk while the next rows are made, not when the last are there.
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def schema_key(frame: pl.DataFrame) -> tuple[list[str], list[pl.DataType]]:
    """Columns and types of rows; a fraction of what a polars schema costs."""
    return frame.columns, frame.dtypes


def open_compressed(file: BinaryIO, compression: str) -> BinaryIO:
    """A file that packs what is written to it; the same bytes whatever the size of the writes."""
    if compression == ".gz":
        # Neither name nor time: the same rows are the same bytes.
        return cast("BinaryIO", gzip.GzipFile("", "wb", 6, file, mtime=0))
    if compression == ".zst":
        return cast("BinaryIO", zstandard.ZstdCompressor().stream_writer(file, closefd=False))
    return file


def encode_csv_header(columns: list[str]) -> bytes:
    r"""Head of a CSV file; the row number has no name there, as pandas writes it.

    >>> encode_csv_header(["", "_index_", "a,b", "=c"]).decode()
    ',_index_,"a,b",\'=c\n'
    """
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(
        escape_formulas(pl.Series(columns, dtype=pl.String))
    )
    return line.getvalue().encode()


def write_csv_rows(frame: pl.DataFrame, file: IO[bytes]) -> None:
    """Rows as CSV, as pandas writes them.

    True and False; empty for null and NaN; times like `2021-10-09 06:00:00+00:00`. Text that a
    spreadsheet would run as a formula gets a `'` before it; numbers, negative ones too, do not.
    """
    frame = frame.with_columns(cs.by_dtype(pl.Categorical, pl.Enum).cast(pl.String))
    shown = frame.with_columns(
        cs.float().fill_nan(None),
        cs.boolean().replace_strict({True: "True", False: "False"}, return_dtype=pl.String),
        *(_format_times(times) for times in frame.select(cs.datetime())),
        *(escape_formulas(frame[name]) for name in _columns_to_escape(frame)),
    )
    shown.write_csv(file, include_header=False)


def escape_formulas(text: pl.Series) -> pl.Series:
    """Text with a `'` before it where a spreadsheet would run it.

    >>> escape_formulas(pl.Series(["=1+1", "-5", " @sum", "a=b"])).to_list()
    ["'=1+1", '-5', "' @sum", 'a=b']
    """
    odd = (
        text.to_frame("")
        .select(pl.first().filter(_starts_with_symbol(pl.first())).unique())
        .to_series()
    )
    formulas = odd.filter(odd.str.contains(_FORMULA_PATTERN) & ~odd.str.contains(_NUMBER_PATTERN))
    return text if formulas.is_empty() else text.replace(formulas, "'" + formulas)


def _starts_with_symbol(text: pl.Expr) -> pl.Expr:
    """Whether a text begins with something else than a letter, a digit, `.` or `/`."""
    word = text.is_between(pl.lit("A"), pl.lit("\x7f"))
    number = text.is_between(pl.lit("."), pl.lit("="), closed="left")
    return ~(word | number) & (text != pl.lit(""))


def _columns_to_escape(frame: pl.DataFrame) -> list[str]:
    """Text columns with such a text."""
    # Many columns of a log are empty for hours; these cost nothing.
    filled = [text for text in frame.select(cs.string()) if text.null_count() < len(text)]
    found = pl.DataFrame(filled).select(_starts_with_symbol(pl.all()).any())
    return [column.name for column in found if column[0]]


def _format_times(times: pl.Series) -> pl.Series:
    """Times as pandas writes them: microseconds only where there are any."""
    zone = "%:z" if getattr(times.dtype, "time_zone", None) else ""
    if times.dtype == pl.Datetime(time_zone="UTC"):
        # In two thirds of the time.
        zone, times = "+00:00", times.dt.replace_time_zone(None)
    whole = times.dt.strftime(f"%Y-%m-%d %H:%M:%S{zone}")
    broken = times.dt.nanosecond() != 0
    if not broken.any():
        return whole
    return whole.zip_with(~broken, times.dt.strftime(f"%Y-%m-%d %H:%M:%S%.6f{zone}"))


def write_json_rows(frame: pl.DataFrame, file: IO[bytes]) -> None:
    """One object a row: times as milliseconds since 1970, null for NaN; no row number."""
    floats = cs.float()
    frame.select(cs.exclude(ROW) if ROW in frame.columns else cs.all()).with_columns(
        cs.datetime().dt.epoch("ms"),
        pl.when(floats.is_finite()).then(floats),
    ).write_ndjson(file)


class ParquetWriter:
    """Parquet, in bounded memory: parts on disk, joined at the end.

    Args:
        path: Replaced as a whole by `finish`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._spill_dir = tempfile.TemporaryDirectory(
            prefix=f"{path.stem}.", suffix=".parts", dir=path.parent
        )
        self._schema: dict[str, pl.DataType] | None = None
        self._buffer: list[pl.DataFrame] = []
        self._spilled_files: list[Path] = []

    def write(self, frame: pl.DataFrame) -> None:
        """Hold rows until there are enough for a part."""
        if self._schema is None:
            text = pl.String()
            types = frame.schema.items()
            self._schema = {n: text if t == pl.Null else t for n, t in types}
        self._buffer.append(
            frame.cast(pl.Schema(self._schema)).rename({ROW: PARQUET_ROW_NAME}, strict=False)
        )
        if sum(each.height for each in self._buffer) >= _SPILL_ROWS:
            self._spill()

    def append(self, path: Path) -> None:
        """Nothing can be appended: see `ToFile.beforehand`."""
        raise NotImplementedError

    def flush(self) -> None:
        """Nothing: a Parquet file is read from its end."""

    def finish(self) -> None:
        """Join the parts."""
        self._spill()
        if not self._spilled_files:
            pl.DataFrame().write_parquet(self._path)
            return
        rows = pl.scan_ipc(self._spilled_files)
        rows.sink_parquet(self._path, row_group_size=_ROW_GROUP_SIZE, maintain_order=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *about: object) -> None:
        self._spill_dir.cleanup()

    def _spill(self) -> None:
        if self._buffer:
            part = Path(self._spill_dir.name, f"{len(self._spilled_files):09}.arrow")
            pl.concat(self._buffer).write_ipc(part)
            self._spilled_files.append(part)
            self._buffer = []
