"""Reads CSV and Parquet files into tables of text, with the line number of each row.

Also adds columns from the names of Hive partition folders.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from urllib.parse import unquote

import numpy as np
import polars as pl

from morpheus.errors import RecordError
from morpheus.sources.compression import LogPath, as_local_file, is_utf16, to_utf8
from morpheus.sources.json_records import ParseErrors, encode_json, flatten_name

_SCAN_BYTES = 1 << 22
"""Bytes that are scanned for quotes at a time."""


@dataclass(frozen=True)
class Table:
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
    duplicate_columns: dict[str, list[str]] = field(default_factory=dict)


def read_csv(data: bytes, path: LogPath, drop_characters: str = ".") -> Table:
    """Read CSV with a header. Empty cells are null, and all values are text.

    Args:
        data: Contents of the file.
        path: The file, for messages.
        drop_characters: Characters removed from names.

    Raises:
        RecordError: The file has no header.
    """
    data = to_utf8(data)
    header = _read_header(data)
    if not header:
        raise RecordError(
            "the file is empty; a CSV file needs a header with column names", file=path
        )
    frame, lines, errors = _read_fast(data, len(header)) or _read_exactly(data, len(header))
    frame = frame.with_columns(pl.all().replace("", None))
    index, first = None, frame.to_series(0)
    if header[0] in {"", "Unnamed: 0"}:
        index = _to_integers(first)
        header[0] = "Unnamed: 0"
    if index is not None:
        header, frame = header[1:], frame.drop(first.name)
    return _flatten_names(Table(frame, index, lines, errors), header, drop_characters)


def read_csv_blocks(
    blocks: Iterable[bytes], path: LogPath, drop_characters: str = "."
) -> Iterator[Table]:
    """Read CSV in blocks, with the same result as `read_csv`."""
    blocks = iter(blocks)
    header, rest = _split_header(blocks)
    lines, rows = 0, 0
    for block in chain(blocks, [None]):
        data = rest + (block or b"")
        end = len(data) if block is None else _find_row_end(data, data.rfind(b"\n"), step=-1)
        data, rest = data[:end], data[end:]
        if data or (block is None and not rows):
            table = read_csv(header + data, path, drop_characters)
            yield _shift_rows(table, rows, lines)
            rows, lines = rows + table.frame.height, lines + data.count(b"\n")


def _split_header(blocks: Iterator[bytes]) -> tuple[bytes, bytes]:
    """Return the header line, and the part of the first block after it."""
    data = next(blocks, b"")
    if is_utf16(data):
        data += b"".join(blocks)
    data = to_utf8(data)
    blank = len(data) - len(data.lstrip(b"\r\n"))
    end = _find_row_end(data, data.find(b"\n", blank), step=1)
    return data[:end], data[end:]


def _find_row_end(data: bytes, at: int, step: int) -> int:
    """Find the position after the next line break outside quotes; 0 if there is none.

    Args:
        data: CSV text.
        at: Position of a line break.
        step: Direction: 1 for forwards, -1 for backwards.
    """
    while at >= 0 and data.count(b'"', 0, at) % 2:
        at = data.find(b"\n", at + 1) if step > 0 else data.rfind(b"\n", 0, at)
    return at + 1


def _shift_rows(table: Table, rows: int, lines: int) -> Table:
    """Shift row and line numbers of a table that is not at the start of its file."""
    numbers = pl.int_range(rows, rows + table.frame.height, eager=True)
    errors = [(None if line is None else line + lines, reason) for line, reason in table.errors]
    line_numbers = [line + lines for line in table.line_numbers]
    index = numbers if table.row_index is None else table.row_index
    return replace(table, row_index=index, line_numbers=line_numbers, errors=errors)


def read_parquet_blocks(
    path: LogPath,
    rows: int,
    drop_characters: str = ".",
    wanted_columns: Sequence[str] | None = None,
) -> Iterator[Table]:
    """Read Parquet in blocks of rows, with the same result as `read_parquet`.

    Raises:
        RecordError: The file is not Parquet, or is damaged.
    """
    start = 0
    try:
        with as_local_file(path) as local:
            scan = _select_wanted(
                pl.scan_parquet(local, glob=False), drop_characters, wanted_columns
            )
            for frame in scan.collect_batches(chunk_size=rows, maintain_order=True):
                yield _shift_rows(
                    _from_parquet(frame, drop_characters, wanted_columns), start, start
                )
                start += frame.height
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _parquet_error(error, path) from error


def read_parquet(
    data: bytes,
    path: LogPath,
    drop_characters: str = ".",
    wanted_columns: Sequence[str] | None = None,
) -> Table:
    """Read Parquet. Nested columns are flattened like JSON.

    Args:
        data: Contents of the file.
        path: The file, for messages.
        drop_characters: Characters removed from names.
        wanted_columns: Flat names of the columns to read, if any column is nested; None for all.

    Raises:
        RecordError: The file is not Parquet, or is damaged.
    """
    try:
        scan = _select_wanted(pl.scan_parquet(io.BytesIO(data)), drop_characters, wanted_columns)
        return _from_parquet(scan.collect(), drop_characters, wanted_columns)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _parquet_error(error, path) from error


def _parquet_error(error: Exception, path: LogPath) -> RecordError:
    reason = f"not a complete Parquet file ({_first_line(error)}); download it again"
    return RecordError(reason, file=path)


def _select_wanted(
    scan: pl.LazyFrame, drop_characters: str, wanted_columns: Sequence[str] | None
) -> pl.LazyFrame:
    """Select the columns that may contain wanted columns."""
    schema = scan.collect_schema()
    if wanted_columns is None or not any(kind.is_nested() for kind in schema.dtypes()):
        return scan
    return scan.select(
        n for n in schema.names() if _is_prefix(flatten_name(n, drop_characters), wanted_columns)
    )


def _is_prefix(name: str, wanted_columns: Sequence[str]) -> bool:
    return any(wanted.startswith(name) for wanted in wanted_columns)


def _from_parquet(
    frame: pl.DataFrame, drop_characters: str, wanted_columns: Sequence[str] | None = None
) -> Table:
    columns = to_text_columns(frame)
    if wanted_columns is not None and any(kind.is_nested() for kind in frame.dtypes):
        columns = [
            column
            for column in columns
            if flatten_name(column.name, drop_characters) in wanted_columns
        ]
    names = [column.name for column in columns]
    numbered = [column.alias(str(n)) for n, column in enumerate(columns)]
    index = None
    if names and names[0] in {"", "Unnamed: 0", "__index_level_0__"}:
        index = _to_integers(columns[0])
    if index is not None:
        names, numbered = names[1:], numbered[1:]
    lines = range(1, frame.height + 1)
    return _flatten_names(Table(pl.DataFrame(numbered), index, lines), names, drop_characters)


def to_text_columns(frame: pl.DataFrame) -> list[pl.Series]:
    """Convert columns to text. Nested columns become one column per leaf, with a dotted name.

    >>> [column.name for column in to_text_columns(pl.DataFrame({"a": [{"b": 1}], "c": [True]}))]
    ['a.b', 'c']
    """
    return [_to_text_column(leaf) for column in frame for leaf in _iter_leaf_columns(column)]


def _read_header(data: bytes) -> list[str]:
    # A quoted name may contain a line break, so the header may have several lines.
    head = io.StringIO(data[: 1 << 20].decode("utf-8", "replace"), newline="")
    return next((row for row in csv.reader(head) if row), [])


def _read_fast(data: bytes, width: int) -> tuple[pl.DataFrame, Sequence[int], ParseErrors] | None:
    """Read with Polars; None if Polars fails, or if it would silently fill short rows."""
    try:
        frame = pl.read_csv(data, infer_schema=False)
    except pl.exceptions.PolarsError:
        return None
    rows = frame.height + 1
    if frame.width != width or _count_separators(data) != (rows * (width - 1), rows):
        return None
    one_line_each = rows <= data.count(b"\n") + 1 <= rows + 1
    return (
        frame,
        range(2, rows + 1) if one_line_each else _find_line_numbers(data)[: frame.height],
        [],
    )


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


def _count_separators(data: bytes) -> tuple[int, int]:
    """Count commas and lines outside quotes."""
    ends = int(not data.endswith(b"\n"))
    if b'"' not in data:
        return data.count(b","), data.count(b"\n") + ends
    commas = lines = quotes = 0
    for start in range(0, len(data), _SCAN_BYTES):
        block = np.frombuffer(data, np.uint8, min(_SCAN_BYTES, len(data) - start), start)
        quoted = (np.cumsum(block == ord('"'), dtype=np.int32) + quotes) & 1
        outside = block[quoted == 0]
        commas += int(np.count_nonzero(outside == ord(",")))
        lines += int(np.count_nonzero(outside == ord("\n")))
        quotes = int(quoted[-1])
    return commas, lines + ends


def _read_exactly(data: bytes, width: int) -> tuple[pl.DataFrame, Sequence[int], ParseErrors]:
    """Read row by row with the standard library, to separate good rows from bad ones."""
    rows: list[list[str]] = []
    lines: list[int] = []
    errors: list[tuple[int | None, str]] = []
    numbered = _iter_rows(data)
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


def _iter_rows(data: bytes) -> Iterator[tuple[int, list[str] | str]]:
    """Yield the first line of each row that is not blank, and its cells or an error."""
    reader = csv.reader(io.StringIO(data.decode("utf-8", "replace"), newline=""), strict=True)
    line = 1
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error):
                yield line, "a quote is not closed; it extends to the end of the file"
            else:
                yield line, f"not CSV ({error})"
        else:
            if row:
                yield line, row
        line = reader.line_num + 1


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
    if kind in {pl.Binary, pl.Object} or kind.is_nested():
        texts = [None if cell is None else encode_json(cell).decode() for cell in column.to_list()]
        return pl.Series(column.name, texts, dtype=pl.String)
    return column.cast(pl.String)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


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
