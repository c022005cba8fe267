"""`to-file`: rows as CSV, JSON lines or Parquet, written atomically.

Also what other file sinks share: checks of the output path, and the fixed list of columns.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO, BinaryIO, cast

import msgspec
import polars as pl
from polars.exceptions import PolarsError

from morpheus.columns import ROW, TS_ANOMALY
from morpheus.core.batch import EncodedChunk, OutputRows, RowBuffer, Table
from morpheus.core.stage import Outputs, Sink, StageContext, Transform, option
from morpheus.errors import UsageError
from morpheus.sinks.formats import (
    COMPRESSED_SUFFIXES,
    ENCODE_CHUNK_ROWS,
    FORMAT_BY_EXTENSION,
    ISO_TIMES,
    TIME_FORMATS,
    ParquetWriter,
    RowEncoder,
    RowWriter,
    TextWriter,
    empty_json,
    encode_csv_header,
    iter_chunks,
    open_compressed,
    write_csv,
    write_json_rows,
)
from morpheus.storage.atomic import (
    AppendedFile,
    AtomicWriter,
    FilePosition,
    open_output,
    parse_output,
)
from morpheus.storage.object_store import STDOUT, ObjectPath, head_object, list_dir
from morpheus.storage.spill import SpillDir, open_temp_file
from morpheus.text import quote_backtick

logger = logging.getLogger(__name__)

_MAX_NAMED = 5
"""Maximum number of columns that a warning names."""


def validate_output(
    filename: str,
    *,
    overwrite: bool,
    stage_name: str,
    option: str = "--filename",
    suffixes: Sequence[str] = (),
) -> None:
    """Reject an output that cannot be written, before any file is opened.

    Args:
        filename: A path, a URL of an object, or `-` for stdout.
        overwrite: An existing file may be replaced.
        stage_name: Name of the sink, for messages.
        option: The option that names the file, for messages.
        suffixes: Suffixes that the name may have; empty if the caller checks it.

    Raises:
        UsageError: The output is not a regular file, exists, has another suffix, or cannot be
            created.
        TransientError: The object store does not answer.
    """
    place = parse_output(filename, option)
    if suffixes and (place is None or place.suffix.lower() not in suffixes):
        raise UsageError(
            f"{stage_name}: {option}: `{filename}` has an unsupported extension. Use "
            f"{' or '.join(suffixes)}."
        )
    if isinstance(place, ObjectPath):
        _validate_object(place, filename, overwrite=overwrite, stage_name=stage_name, option=option)
    elif place is not None:
        _validate_file(place, overwrite=overwrite, stage_name=stage_name, option=option)


def list_outputs(filename: str) -> Outputs:
    """Return the outputs of a sink that writes one file, one object, or stdout."""
    place = parse_output(filename)
    return Outputs(stdout=True) if place is None else Outputs(files=(place,))


def _validate_object(
    path: ObjectPath, filename: str, *, overwrite: bool, stage_name: str, option: str
) -> None:
    """Reject an object that cannot be written."""
    if not path.key or filename.endswith("/"):
        raise UsageError(
            f"{option}: `{filename}` is a folder. Give an object in it, such as "
            f"`{option} {path / 'detections.csv'}`."
        )
    exists = head_object(path) is not None
    if not exists:
        list_dir(path.parent)  # fails if there is no such bucket
    if exists and not overwrite:
        raise UsageError(
            f"{option}: there is an object `{path}` already. Give `{stage_name} --overwrite` to "
            f"replace it, or another {option}."
        )


_EXAMPLES = {
    "--state": "state.db",
    "--status_file": "status.json",
    "--viz_file": "pipeline.svg",
}
"""Names for files of options that have no rows."""


def _validate_file(path: Path, *, overwrite: bool, stage_name: str, option: str) -> None:
    """Reject a file that cannot be written."""
    if path.is_dir():
        raise UsageError(
            f"{option}: `{path}` is a folder. Give a file in it, such as "
            f"`{option} {path / _EXAMPLES.get(option, 'detections.csv')}`."
        )
    if path.exists() and not path.is_file():
        raise UsageError(f"{option}: `{path}` is not a regular file. Give the name of a file.")
    if path.exists() and not overwrite:
        raise UsageError(
            f"{option}: there is a file `{path}` already. Give `{stage_name} --overwrite` to "
            f"replace it, or another {option}."
        )
    _validate_folder(path, option)


def _validate_folder(path: Path, option: str) -> None:
    """Reject a path in a folder where no file can be created."""
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise UsageError(f"{option}: `{folder}` is a file, not a folder. Give another {option}.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(
            f"{option}: folder `{folder}` is not writable. Give another {option}, or "
            f"`chmod u+w` the folder."
        )


class FixedColumns(msgspec.Struct):
    """Columns of a file: those of the first rows.

    Attributes:
        sink: Name of the sink, for messages.
        include_row_number: Include the running number of rows.
        columns: The columns; None before the first rows.
        left_out: Columns with values that the file does not get.
    """

    sink: str
    include_row_number: bool
    columns: list[str] | None = None
    left_out: set[str] = msgspec.field(default_factory=set)

    def conform(self, table: Table) -> Table:
        """Give rows the columns of the file. Missing columns are empty, others are dropped."""
        if not self.include_row_number and ROW in table:
            table = table.select(name for name in table.names if name != ROW)
        if self.columns is None:
            self.columns = table.names
        if table.names == self.columns:
            return table
        self._warn(table)
        existing = set(table.names)
        empty = [
            pl.repeat(None, table.height, dtype=pl.Null, eager=True).alias(name)
            for name in self.columns
            if name not in existing
        ]
        return table.with_columns(empty).select(self.columns)

    def _warn(self, table: Table) -> None:
        """Name each column with values that the file does not get, once."""
        known = self.left_out.union(self.columns or ())
        new = [name for name in table.names if name not in known]
        new = [name for name in new if table[name].null_count() < table.height]
        if not new:
            return
        self.left_out.update(new)
        names = ", ".join(map(quote_backtick, new[:_MAX_NAMED]))
        more = f" and {len(new) - _MAX_NAMED} more" if len(new) > _MAX_NAMED else ""
        logger.warning(
            "%s: values of %s%s are not written: the first rows decide the columns of the file, "
            "and have none there. Use `serialize --include` to choose the columns.",
            self.sink,
            names,
            more,
        )


@dataclass(frozen=True)
class EncodeRows(Transform):
    """Encodes rows for `to-file` where they are scored; rows of another schema are passed on.

    Attributes:
        write_rows: Encodes rows.
        schema: Columns and types of the rows to encode.
        temp_dir: Folder of the encoded rows, until `to-file` appends them to its file.
        include_index: Write the unnamed first column.
    """

    name = "to-file"
    takes = (OutputRows,)
    gives = OutputRows
    scope = "global"

    write_rows: RowEncoder
    schema: tuple[list[str], list[pl.DataType]]
    temp_dir: Path
    include_index: bool = True

    def open(self, context: StageContext) -> RowBuffer[OutputRows]:  # noqa: ARG002 - starts empty
        """Start without batches."""
        return RowBuffer()

    def process(self, batch: OutputRows, state: RowBuffer[OutputRows]) -> Iterator[OutputRows]:
        """Join small batches, which is faster to format."""
        if batch.table.schema_key != self.schema:
            yield from self.flush(state)
            yield batch
            return
        state.add(batch, batch.table.height)
        if state.has(ENCODE_CHUNK_ROWS):
            yield from self.flush(state)

    def flush(self, state: RowBuffer[OutputRows]) -> Iterator[OutputRows]:
        """Format the batches that wait."""
        yield from self._encode(state.take())

    def _encode(self, batches: list[OutputRows]) -> Iterator[EncodedChunk]:
        """Encode batches together; the text is attached to the last one."""
        for batch in batches[:-1]:
            yield batch.evolve(EncodedChunk, table=_keep_row_count(batch.table))
        for batch in batches[-1:]:
            table = Table.concat(encoded.table for encoded in batches)
            path = self._write_temp_file(table)
            yield batch.evolve(EncodedChunk, table=_keep_row_count(batch.table), path=path)

    def _write_temp_file(self, table: Table) -> Path:
        if not self.include_index:
            table = table.select(name for name in table.names if name != ROW)
        with open_temp_file(self.temp_dir) as file:
            for rows in iter_chunks(table):
                self.write_rows(rows, file)
        return Path(file.name)


def _keep_row_count(table: Table) -> Table:
    """Return as many rows, with only the columns that `RunMetrics` counts."""
    if TS_ANOMALY in table:
        return table.select([TS_ANOMALY])
    return Table(pl.Series(ROW, [None] * table.height, dtype=pl.Null).to_frame())


class _OpenFile(msgspec.Struct, frozen=True):
    """A file that is being written.

    Attributes:
        draft: The file under its temporary name.
        writer: Formats rows.
        columns: The columns that the first rows decide.
    """

    draft: AtomicWriter
    writer: RowWriter
    columns: FixedColumns


class OutputPosition(msgspec.Struct, frozen=True, array_like=True):
    """Where an endless run goes on with a file.

    Attributes:
        file: Up to where the file is complete.
        columns: Its columns; None before the first rows, and for formats without fixed columns.
    """

    file: FilePosition
    columns: list[str] | None = None


def validate_durable_output(stage_name: str, filename: str, kind: str) -> None:
    """Reject an output that an endless run with --state cannot continue.

    Args:
        stage_name: Name of the sink, for messages.
        filename: The file.
        kind: Its format.

    Raises:
        UsageError: It is an object or Parquet, which appears when it is complete.
    """
    if isinstance(parse_output(filename), ObjectPath):
        raise UsageError(
            f"{stage_name}: `{filename}` is an object, which appears when it is complete, and an "
            "endless run with --state never completes it. Give a file on this machine, or "
            f"`to-parquet --folder={filename.rpartition('/')[0]}`."
        )
    if kind == "parquet":
        raise UsageError(
            f"{stage_name}: `{filename}` is Parquet, which is only readable when complete, and an "
            "endless run with --state never completes it. Give `.csv` or `.jsonl`, or "
            "`to-parquet --folder=FOLDER`."
        )


def validate_first_start(place: Path, *, overwrite: bool, stage_name: str) -> None:
    """Reject a file of others when an endless run with --state opens it for the first time.

    That a file is wrong only if it is not continued, `Stage.validate` cannot know. An empty one can
    be of a run that was killed before it had saved that the file is its own.

    Args:
        place: The file.
        overwrite: It may be replaced.
        stage_name: Name of the sink, for messages.

    Raises:
        UsageError: There is a file with something in it.
    """
    is_empty = place.is_file() and not place.stat().st_size
    validate_output(str(place), overwrite=overwrite or is_empty, stage_name=stage_name)


class AppendedOutput:
    """A file of an endless run. Each part of the rows is on disk before the next one is taken.

    Args:
        place: The file.
        position: What `sync` has returned before; empty for a new file.
        compression: `.gz`, `.zst`, or empty. Each part is then compressed by itself; the parts
            one after the other are a file that every program can read.
    """

    def __init__(self, place: Path, position: Mapping[str, bytes], compression: str) -> None:
        data = position.get("")
        known = None if data is None else msgspec.msgpack.decode(data, type=OutputPosition)
        self.columns = None if known is None else known.columns
        self._file = AppendedFile(place, None if known is None else known.file)
        self._compression = compression
        self._part = BytesIO()
        self._end: FilePosition | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was written to the file."""
        return self._file.is_empty and not self._part.tell()

    def write(self, data: bytes) -> None:
        """Add to the part."""
        self._part.write(data)

    def sync(self, columns: list[str] | None = None) -> dict[str, bytes]:
        """Write the part to disk, and return the position after it."""
        if self._part.tell():
            self._file.write(self._pack(self._part.getvalue()))
            self._part = BytesIO()
        position = OutputPosition(self._end or self._file.sync(), columns)
        return {"": msgspec.msgpack.encode(position)}

    def finish(self, empty: bytes) -> None:
        """Complete the file for now.

        Args:
            empty: What a file without rows has. The next run replaces it: its rows decide the
                columns.
        """
        if self.is_empty:
            self._end = self._file.sync()
            self._file.write(self._pack(empty))
            self._file.sync()

    def _pack(self, data: bytes) -> bytes:
        packed = BytesIO()
        file = open_compressed(cast("BinaryIO", packed), self._compression)
        file.write(data)
        if file is not packed:
            file.close()
        return packed.getvalue()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _DurableFile(msgspec.Struct, frozen=True):
    """The file of an endless run.

    Attributes:
        output: The file.
        columns: The columns that its first rows decide.
        empty: Those of the first batch without rows.
        encode_rows: Formats rows.
        encode_header: Formats the header of a CSV file; None for JSON.
        empty_text: What a file without rows and header has.
    """

    output: AppendedOutput
    columns: FixedColumns
    empty: FixedColumns
    encode_rows: RowEncoder
    encode_header: Callable[[list[str]], bytes] | None
    empty_text: bytes

    def write(self, table: Table) -> None:
        """Format rows, after the header in a new file."""
        if not table.height:
            if self.empty.columns is None:
                self.empty.conform(table)
            return
        rows = self.columns.conform(table)
        if self.encode_header is not None and self.output.is_empty:
            self.output.write(self.encode_header(rows.names))
        text = BytesIO()
        self.encode_rows(rows, text)
        self.output.write(text.getvalue())

    def finish(self) -> None:
        """Complete the file for now: if it has no rows, it gets what an empty file has."""
        names = self.columns.columns or self.empty.columns
        if self.encode_header is None or names is None:
            self.output.finish(self.empty_text)
        else:
            self.output.finish(self.encode_header(names))


@dataclass(frozen=True)
class ToFile(Sink):
    """Write the rows to a file, atomically.

    Takes rows and passes them on. The extension decides the format: `.csv`; `.json`, `.jsonl`,
    `.jsonlines` or `.ndjson`, one object per line; `.parquet`. With `.gz` or `.zst` after it, text
    is compressed. In CSV, text that a spreadsheet would run as a formula is prefixed with `'`. The
    first rows decide the columns. Only you can read the file, unless `run --shared_files` is set.

    Example: `to-file --filename=detections.csv --overwrite`
    """

    name = "to-file"
    takes = (OutputRows,)
    gives = OutputRows

    filename: str = option(
        "",
        "File to write, on this machine or in an object store, or `-` for stdout. Missing folders "
        "are created.",
        required=True,
        location="any",
    )
    overwrite: bool = option(
        False,
        "Replace an existing file. It stays until the new one is complete.",
        flag=True,
    )
    include_index_col: bool = option(
        True,
        "Write the unnamed first column, a running number per user. JSON never has it.",
        names=("--include-index-col", "--include_index_col"),
    )
    file_type: str = option(
        "auto",
        "File format. Default: by the extension; CSV for stdout.",
        choices=("auto", "csv", "json", "parquet"),
    )
    json_times: str = option(
        ISO_TIMES,
        "Format of times in JSON: ISO 8601, or milliseconds since 1970, as NVIDIA Morpheus writes "
        "them.",
        choices=TIME_FORMATS,
    )
    flush_rows: bool = option(
        False,
        "Write rows to the file as they come. The file is then incomplete until the run ends, and "
        "stays if the run fails. Not for Parquet.",
        names=("--flush",),
        flag=True,
    )

    def validate(self) -> None:
        """Reject a file that cannot be written, and an unknown format."""
        if not self.filename:
            raise UsageError("to-file: no file given. Give `--filename detections.csv`.")
        kind, _ = self._detect_format()
        if self.flush_rows and kind == "parquet":
            raise UsageError(
                f"--flush: `{self.filename}` is Parquet, which is only readable when complete. "
                f"Remove --flush, or write `.csv` or `.jsonl`."
            )
        if self.flush_rows and isinstance(parse_output(self.filename), ObjectPath):
            raise UsageError(
                f"--flush: `{self.filename}` is an object, which appears when it is complete. "
                "Remove --flush, or write a file on this machine."
            )
        durable = self.options.durable
        if durable:
            validate_durable_output(self.name, self.filename, kind)
        validate_output(self.filename, overwrite=self.overwrite or durable, stage_name=self.name)

    def outputs(self) -> Outputs:
        """The file, and the folder in which it appears."""
        written = list_outputs(self.filename)
        folders = [Path(os.path.realpath(p)).parent for p in written.files if isinstance(p, Path)]
        return replace(written, folders=tuple(folders))

    def open(self, context: StageContext) -> _OpenFile | _DurableFile:
        """Open the file: under a temporary name, or on an endless run where it was."""
        enter = context.resources.enter_context
        place = parse_output(self.filename)
        if context.position is not None and isinstance(place, Path):
            return self._open_durable(place, context)
        streams = self.flush_rows or context.position is not None
        draft = enter(open_output(place, PolarsError, streams=streams))
        columns = FixedColumns(self.name, include_row_number=self.include_index_col)
        return _OpenFile(draft, enter(self._make_writer(draft)), columns)

    def _open_durable(self, place: Path, context: StageContext) -> _DurableFile:
        position = context.position or {}
        if not position:
            validate_first_start(place, overwrite=self.overwrite, stage_name=self.name)
        kind, compression = self._detect_format()
        output = AppendedOutput(place, position, compression)
        context.resources.callback(output.close)
        is_csv = kind == "csv"
        columns, empty = (
            FixedColumns(self.name, include_row_number=self.include_index_col) for _ in range(2)
        )
        columns.columns = output.columns
        return _DurableFile(
            output,
            columns,
            empty,
            write_csv if is_csv else self._write_json,
            encode_csv_header if is_csv else None,
            b"\n" if is_csv else empty_json(self.filename),
        )

    def process(self, batch: OutputRows, state: _OpenFile | _DurableFile) -> Iterator[OutputRows]:
        """Write the rows of a batch."""
        if isinstance(state, _DurableFile):
            state.write(batch.table)
            yield batch
            return
        with state.draft.guard_io():
            if not isinstance(batch, EncodedChunk):
                state.writer.write(state.columns.conform(batch.table))
            elif batch.path is not None:
                state.writer.append(batch.path)
            if self.flush_rows or self.options.durable:
                _publish(state.draft, state.writer)
        yield batch

    def flush(self, state: _OpenFile | _DurableFile) -> Iterator[OutputRows]:
        """Complete the file."""
        if isinstance(state, _DurableFile):
            state.finish()
        else:
            with state.draft.guard_io():
                state.writer.finish()
        return iter(())

    def sync(self, state: _OpenFile | _DurableFile) -> Mapping[str, bytes] | None:
        """Write the rows to disk. Without --flush, a file appears when the run ends."""
        if isinstance(state, _DurableFile):
            return state.output.sync(state.columns.columns)
        return {} if self.flush_rows or self.options.durable else None

    def encoder(self, first: OutputRows, spill: SpillDir) -> Transform | None:
        """Rows can be formatted anywhere, if they have the columns of the first ones."""
        kind, _ = self._detect_format()
        local = isinstance(parse_output(self.filename), Path)
        if kind == "parquet" or (not local and self.options.engine.lower() == "dask"):
            return None
        rows = write_csv if kind == "csv" else self._write_json
        return EncodeRows(
            rows, first.table.schema_key, spill.folder, include_index=self.include_index_col
        )

    def _detect_format(self) -> tuple[str, str]:
        """Return format and compression suffix."""
        name = Path(self.filename).name.lower()
        compression = next((end for end in COMPRESSED_SUFFIXES if name.endswith(end)), "")
        extension = Path(name.removesuffix(compression)).suffix
        kind = FORMAT_BY_EXTENSION.get(extension, "") if self._is_auto else self.file_type.lower()
        if self.filename == STDOUT and self._is_auto:
            kind = "csv"
        if not kind:
            raise UsageError(
                f"--filename: the extension `{extension}` of `{self.filename}` is not known. Use "
                f"{', '.join(FORMAT_BY_EXTENSION)}, or give `--file_type csv`."
            )
        if kind == "parquet" and compression:
            raise UsageError(
                f"--filename: `{self.filename}`: Parquet is already compressed. Remove "
                f"`{compression}`."
            )
        return kind, compression

    @property
    def _is_auto(self) -> bool:
        return self.file_type.lower() == "auto"

    @property
    def _write_json(self) -> RowEncoder:
        return partial(_write_json, times=self.json_times.lower())

    def _make_writer(self, output: AtomicWriter) -> RowWriter:
        kind, compression = self._detect_format()
        if kind == "parquet":
            return ParquetWriter(output.temp_path)
        if kind == "json":
            return TextWriter(
                output.file,
                compression,
                write_rows=self._write_json,
                empty=empty_json(self.filename),
            )
        return TextWriter(
            output.file,
            compression,
            write_rows=write_csv,
            encode_header=encode_csv_header,
            empty=b"\n",
        )


def _write_json(table: Table, file: IO[bytes], *, times: str) -> None:
    write_json_rows(table.to_frame(), file, times=times)


def _publish(output: AtomicWriter, writer: RowWriter) -> None:
    """Make all rows so far visible under the file's name."""
    writer.flush()
    if not output.committed:
        output.commit()
