"""Outputs of earlier runs, read again piece by piece."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import IO, cast

import msgspec
import polars as pl
import zstandard
from polars.exceptions import PolarsError

from morpheus.columns import ROW, TIME
from morpheus.errors import RecordError, UsageError
from morpheus.sources.time_range import UTC_DATETIME, parse_times

TIME_COLUMNS = (TIME, "eventTime", "createdDateTime", "time", "isotimestamp")
"""Columns that hold the time, the first that there is."""
_BATCH_ROWS = 1 << 15
_ROW_COLUMNS = ("Unnamed: 0",)
_READ_ERRORS = (PolarsError, OSError, EOFError, ValueError, zstandard.ZstdError)


def read_results(path: Path) -> Iterator[pl.DataFrame]:
    """Read what `to-file` wrote: CSV, JSON lines or Parquet, text plain or packed.

    Yields:
        Rows in the file's order, each with `TIME`; other columns as they are, CSV's as text.

    Raises:
        UsageError: There is no such file, or it cannot be read.
        BadRecord: A row has no time.
    """
    if path.is_dir():
        raise UsageError(f"`{path}` is a folder. Give the files in it, as `{path}/*.parquet`.")
    if not path.is_file():
        raise UsageError(f"There is no file `{path}`. Give the output of an earlier `to-file`.")
    row = 2 if ".csv" in path.suffixes else 1
    try:
        for frame in _iter_frames(path):
            yield _add_time(frame.rename(dict.fromkeys(_ROW_COLUMNS, ROW), strict=False), path, row)
            row += frame.height
    except _READ_ERRORS as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"`{path}` cannot be read: {reason}. Give CSV, JSON lines or Parquet, as `to-file` "
            "writes it."
        ) from error


def _iter_frames(path: Path) -> Iterator[pl.DataFrame]:
    kind = next((s for s in reversed(path.suffixes) if s not in {".gz", ".zst"}), "")
    if kind == ".parquet":
        yield from pl.scan_parquet(path).collect_batches(
            chunk_size=_BATCH_ROWS, maintain_order=True
        )
    elif kind == ".csv":
        lazy = pl.scan_csv(path, infer_schema=False)
        yield from lazy.collect_batches(chunk_size=_BATCH_ROWS, maintain_order=True)
    else:
        with closing(_open_decompressed(path)) as lines:
            while some := list(islice(lines, _BATCH_ROWS)):
                yield _decode_lines(some)


def _open_decompressed(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast("IO[bytes]", gzip.open(path))
    if path.suffix == ".zst":
        reader = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), closefd=True)
        return io.BufferedReader(cast("io.RawIOBase", reader))
    return path.open("rb")


def _decode_lines(lines: Sequence[bytes]) -> pl.DataFrame:
    """Lines of JSON; where a column's type changes from line to line, everything is text."""
    try:
        return pl.read_ndjson(b"".join(lines), infer_schema_length=None)
    except PolarsError:
        rows = [msgspec.json.decode(line) for line in lines if line.strip()]
        names = dict.fromkeys(name for row in rows for name in row)
        return pl.DataFrame({name: [_to_text(row.get(name)) for row in rows] for name in names})


def _to_text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return msgspec.json.encode(value).decode()


def _add_time(frame: pl.DataFrame, path: Path, row: int) -> pl.DataFrame:
    """Rows with their time, which must be known of each."""
    name = next((name for name in TIME_COLUMNS if name in frame.columns), None)
    if name is None:
        raise UsageError(
            f"`{path}` has no column of times: none of {', '.join(TIME_COLUMNS)}. Let `serialize` keep "
            f"`{TIME}`."
        )
    column = frame[name]
    temporal = isinstance(column.dtype, pl.Datetime)
    moments = column.cast(UTC_DATETIME) if temporal else parse_times(column.cast(pl.String))
    missing = moments.is_null().arg_true()
    if len(missing):
        at = int(missing[0])
        raise RecordError(f"`{name}` is {column[at]!r}, which is no time", file=path, line=row + at)
    return frame.with_columns(moments.alias(TIME))
