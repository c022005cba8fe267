"""Read the results of earlier runs: CSV, JSON lines or Parquet, as sinks write them.

The one reader of our own outputs. `read_results` reads a file of events with their times,
`read_frames` any file of rows. `parse_csv` and `parse_json_lines` read text that is still growing.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import IO, cast

import msgspec
import polars as pl
import zstandard
from polars._typing import PolarsDataType
from polars.exceptions import PolarsError

from morpheus.columns import ROW, TIME
from morpheus.errors import RecordError, UsageError
from morpheus.sources.compression import detect_file_type
from morpheus.sources.time_range import UTC_DATETIME, parse_times

TIME_COLUMNS = (TIME, "eventTime", "createdDateTime", "time", "isotimestamp")
"""Columns that can hold the time. The first one in the file is used."""
READ_ERRORS = (PolarsError, OSError, EOFError, ValueError, zstandard.ZstdError)
"""What `read_frames` raises for a file that cannot be read."""
_BATCH_ROWS = 1 << 15
_PARQUET_ROW_NAMES = ("Unnamed: 0",)


def read_results(path: Path) -> Iterator[pl.DataFrame]:
    """Read a file that `to-file` wrote.

    Yields:
        Rows in the order of the file, with their time in `TIME`. Other columns as in the file.

    Raises:
        UsageError: The file does not exist or cannot be read.
        RecordError: A row has no valid time.
    """
    if path.is_dir():
        raise UsageError(f"`{path}` is a folder. Give the files in it, as `{path}/*.parquet`.")
    if not path.is_file():
        raise UsageError(f"There is no file `{path}`. Give the output of an earlier `to-file`.")
    row = 2 if detect_file_type(path) == "csv" else 1
    try:
        for frame in read_frames(path):
            renamed = frame.rename(dict.fromkeys(_PARQUET_ROW_NAMES, ROW), strict=False)
            yield _add_time(renamed, path, row)
            row += frame.height
    except READ_ERRORS as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"`{path}` cannot be read: {reason}. Give CSV, JSON lines or Parquet, as `to-file` "
            "writes it."
        ) from error


def read_frames(path: Path) -> Iterator[pl.DataFrame]:
    """Read a file of rows, in parts. The suffix tells the format; without one, it is JSON lines.

    Yields:
        Rows in the order of the file. Columns of CSV are text. Columns of JSON lines are in order
        of first appearance, and text where their type changes.

    Raises:
        OSError: The file does not exist.
        Exception: One of `READ_ERRORS`: the file cannot be read.
    """
    file_type = detect_file_type(path) or "json"
    if file_type == "json":
        with closing(_open_decompressed(path)) as lines:
            while part := list(islice(lines, _BATCH_ROWS)):
                yield _infer_json_lines(part)
        return
    is_csv = file_type == "csv"
    scan = pl.scan_csv(path, infer_schema=False) if is_csv else pl.scan_parquet(path)
    yield from scan.collect_batches(chunk_size=_BATCH_ROWS, maintain_order=True)


def parse_csv(data: bytes) -> pl.DataFrame:
    """Parse CSV with its header. All columns are text.

    Raises:
        PolarsError: It is not CSV.
    """
    return pl.read_csv(io.BytesIO(data), infer_schema=False)


def parse_json_lines(lines: Iterable[bytes]) -> tuple[pl.DataFrame, int]:
    """Parse lines of JSON objects. All columns are text, in order of first appearance.

    Returns:
        The rows, and the number of lines that are not JSON objects, which are skipped. Strings are
        unescaped. Other values are text as in the file.
    """
    rows, num_unreadable = [], 0
    for line in lines:
        try:
            rows.append(_decode_object(line))
        except msgspec.DecodeError:
            num_unreadable += bool(line.strip())
    return _to_text_frame(rows), num_unreadable


def _open_decompressed(path: Path) -> IO[bytes]:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast("IO[bytes]", gzip.open(path))
    if suffix == ".zst":
        reader = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), closefd=True)
        return io.BufferedReader(cast("io.RawIOBase", reader))
    return path.open("rb")


def _infer_json_lines(lines: Sequence[bytes]) -> pl.DataFrame:
    """Parse lines of JSON objects with the types of their values, in a fixed order of columns."""
    rows = [_decode_object(line) for line in lines if line.strip()]
    names = dict.fromkeys(name for row in rows for name in row)
    data = b"".join(lines)
    try:
        inferred = pl.read_ndjson(data, infer_schema_length=None)
        # Polars infers in parallel: the order of columns and fields depends on the timing of its
        # threads. Read again with an order of our own where fields may be affected.
        schema = {name: _sort_fields(inferred.schema[name]) for name in names}
        if any(kind.is_nested() for kind in schema.values()):
            return pl.read_ndjson(data, schema=schema)
    except PolarsError:
        return _to_text_frame([_remove_white_space(row) for row in rows])
    return inferred.select(list(names))


def _sort_fields(kind: PolarsDataType) -> PolarsDataType:
    """Return a type with the fields of its structs in alphabetical order."""
    if isinstance(kind, pl.Struct):
        fields = sorted(kind.to_schema().items())
        return pl.Struct({name: _sort_fields(field) for name, field in fields})
    if isinstance(kind, pl.List):
        return pl.List(_sort_fields(kind.inner))
    return kind


def _decode_object(line: bytes) -> dict[str, msgspec.Raw]:
    return msgspec.json.decode(line, type=dict[str, msgspec.Raw])


def _remove_white_space(row: dict[str, msgspec.Raw]) -> dict[str, msgspec.Raw]:
    return {n: msgspec.Raw(msgspec.json.format(bytes(raw), indent=-1)) for n, raw in row.items()}


def _to_text_frame(rows: Sequence[dict[str, msgspec.Raw]]) -> pl.DataFrame:
    names = dict.fromkeys(name for row in rows for name in row)
    return pl.DataFrame(
        {name: [_to_text(row.get(name)) for row in rows] for name in names},
        schema_overrides=dict.fromkeys(names, pl.String),
    )


def _to_text(raw: msgspec.Raw | None) -> str | None:
    if raw is None or bytes(raw) == b"null":
        return None
    if bytes(raw).startswith(b'"'):
        return msgspec.json.decode(raw, type=str)
    return bytes(raw).decode()


def _add_time(frame: pl.DataFrame, path: Path, row: int) -> pl.DataFrame:
    """Add the time of each row. `row` is the line number of the first row."""
    name = next((name for name in TIME_COLUMNS if name in frame.columns), None)
    if name is None:
        raise UsageError(
            f"`{path}` has no time column: none of {', '.join(TIME_COLUMNS)}. Let `serialize` keep "
            f"`{TIME}`."
        )
    column = frame[name]
    is_time = isinstance(column.dtype, pl.Datetime)
    times = column.cast(UTC_DATETIME) if is_time else parse_times(column.cast(pl.String))
    missing = times.is_null().arg_true()
    if len(missing):
        at = int(missing[0])
        raise RecordError(
            f"`{name}` is {column[at]!r}, which is not a valid time", file=path, line=row + at
        )
    return frame.with_columns(times.alias(TIME))
