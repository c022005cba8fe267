"""Where a sink's file is to appear."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import polars as pl
from polars.exceptions import PolarsError

from morpheus.columns import ROW, TS_ANOMALY
from morpheus.core.batch import EncodedChunk, OutputRows
from morpheus.core.stage import Outputs, Sink, StageContext, Transform, option
from morpheus.errors import UsageError
from morpheus.sinks.formats import (
    COMPRESSED_SUFFIXES,
    ENCODE_CHUNK_ROWS,
    FORMAT_BY_EXTENSION,
    ParquetWriter,
    RowWriter,
    TextWriter,
    encode_csv_header,
    schema_key,
    write_csv_rows,
    write_json_rows,
)
from morpheus.storage.atomic import AtomicWriter
from morpheus.storage.spill import SpillDir, open_temp_file


def validate_output_path(path: Path, *, overwrite: bool, stage_name: str) -> None:
    """Refuse, before any file is opened, a place that a sink cannot write to.

    Raises:
        UsageError: It is a folder or no regular file, is there already, or cannot be made.
    """
    if path.is_dir():
        raise UsageError(
            f"--filename: `{path}` is a folder. Give a file in it, such as "
            f"`--filename {path / 'detections.csv'}`."
        )
    if path.exists() and not path.is_file():
        raise UsageError(f"--filename: `{path}` is no regular file. Give the name of a file.")
    if path.exists() and not overwrite:
        raise UsageError(
            f"Cannot output classifications to '{path}'. File exists and overwrite = False. "
            f"Give `{stage_name} --overwrite`, or another --filename."
        )
    _validate_folder(path)


def _validate_folder(path: Path) -> None:
    """Refuse a folder that a file cannot be made in."""
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise UsageError(
            f"--filename: `{folder}` is a file, not a folder. Give another --filename."
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(
            f"--filename: folder `{folder}` cannot be written to. Give another --filename, or "
            f"`chmod u+w` the folder."
        )


logger = logging.getLogger(__name__)


@dataclass
class FixedColumns:
    """The columns of what a sink writes: those of its first rows.

    Attributes:
        sink: Its word, for the log.
        include_row_number: Whether the rows' running number is one of them.
        columns: The columns, once there are rows.
        warned: Whether it has been told that others were left out.
    """

    sink: str
    include_row_number: bool
    columns: list[str] | None = None
    warned: bool = False

    def conform(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Give rows the file's columns: those they lack are empty, others are left out."""
        if not self.include_row_number and ROW in frame.columns:
            frame = frame.drop(ROW)
        if self.columns is None:
            self.columns = frame.columns
        if frame.columns == self.columns:
            return frame
        self._warn(frame.columns)
        there = set(frame.columns)
        return frame.select(
            frame[name] if name in there else pl.Series(name, [None] * frame.height)
            for name in self.columns
        )

    def _warn(self, columns: list[str]) -> None:
        new = [name for name in columns if name not in (self.columns or ())]
        if new and not self.warned:
            self.warned = True
            logger.warning(
                "%s: %s came after the first rows, whose columns the file has, and is left out. "
                "Use `serialize --include` to choose the columns.",
                self.sink,
                ", ".join(repr(name) for name in new),
            )


@dataclass(frozen=True)
class EncodeRows(Transform):
    """Turns rows into text, as `to-file` writes them; rows of another kind are handed on.

    Attributes:
        write_rows: Turns a few rows into bytes.
        schema: Columns and types of the rows that are spelt.
        temp_dir: Where the text lies until it is written.
        include_index: Whether the unnamed first column is written.
    """

    name = "to-file"
    takes = (OutputRows,)
    gives = OutputRows
    scope = "global"

    write_rows: Callable[[pl.DataFrame, IO[bytes]], None]
    schema: tuple[list[str], list[pl.DataType]]
    temp_dir: Path
    include_index: bool = True

    def open(self, context: StageContext) -> list[OutputRows]:  # noqa: ARG002 - starts empty
        """Start without batches."""
        return []

    def process(self, batch: OutputRows, state: list[OutputRows]) -> Iterator[OutputRows]:
        """Join small batches, which is faster to format."""
        matches = schema_key(batch.frame) == self.schema
        if matches:
            state.append(batch)
        if not matches or sum(each.frame.height for each in state) >= ENCODE_CHUNK_ROWS:
            yield from self.flush(state)
        if not matches:
            yield batch

    def flush(self, state: list[OutputRows]) -> Iterator[OutputRows]:
        """Format the batches that wait."""
        yield from self._encode(state)
        state.clear()

    def _encode(self, batches: list[OutputRows]) -> Iterator[EncodedChunk]:
        """The text of all goes with the last."""
        for batch in batches[:-1]:
            yield batch.evolve(EncodedChunk, frame=_keep_row_count(batch.frame))
        for batch in batches[-1:]:
            frames = [each.frame for each in batches]
            text = self._write_temp_file(pl.concat(frames))
            yield batch.evolve(EncodedChunk, frame=_keep_row_count(batch.frame), path=text)

    def _write_temp_file(self, frame: pl.DataFrame) -> Path:
        with open_temp_file(self.temp_dir) as file:
            for some in frame.iter_slices(ENCODE_CHUNK_ROWS):
                self.write_rows(some if self.include_index else some.drop(ROW, strict=False), file)
        return Path(file.name)


def _keep_row_count(frame: pl.DataFrame) -> pl.DataFrame:
    """As many rows, with no more than `RunMetrics` looks at."""
    if TS_ANOMALY in frame.columns:
        return frame.select(TS_ANOMALY)
    return pl.Series(ROW, [None] * frame.height, dtype=pl.Null).to_frame()


@dataclass(frozen=True)
class _OpenFile:
    """A file that is being written.

    Attributes:
        draft: The file under its temporary name.
        writer: Formats rows.
        columns: The columns that the first rows decide.
    """

    draft: AtomicWriter
    writer: RowWriter
    columns: FixedColumns


@dataclass(frozen=True)
class ToFile(Sink):
    """Write the rows to a file, which appears whole or not at all.

    Takes rows and hands them on. The extension decides the format: `.csv`; `.json`, `.jsonl`,
    `.jsonlines` or `.ndjson`, one object a line; `.parquet`. With `.gz` or `.zst` behind it, text
    is packed. In CSV, text that a spreadsheet would run as a formula gets a `'` before it. The
    first rows decide the columns.

    Example: `to-file --filename=detections.csv --overwrite`
    """

    name = "to-file"
    takes = (OutputRows,)
    gives = OutputRows

    filename: str = option("", "File to write; its folder is made if there is none.", required=True)
    overwrite: bool = option(
        False,
        "Replace a file of that name, which stays until the new one is whole.",
        flag=True,
    )
    include_index_col: bool = option(
        True,
        "Write the unnamed first column, a running number for each user. JSON never has it.",
        names=("--include-index-col", "--include_index_col"),
    )
    file_type: str = option(
        "auto",
        "Format, whatever the extension is.",
        choices=("auto", "csv", "json", "parquet"),
    )
    flush_rows: bool = option(
        False,
        "Let rows be seen under the file's name as they come. The file is then not whole until the "
        "run ends, and stays if the run fails. Not for Parquet.",
        names=("--flush",),
        flag=True,
    )

    def validate(self) -> None:
        """Refuse a name that cannot be written to, and a format that there is none of."""
        if not self.filename:
            raise UsageError("to-file: no file is named. Give `--filename detections.csv`.")
        kind, _ = self._detect_format()
        if self.flush_rows and kind == "parquet":
            raise UsageError(
                f"--flush: `{self.filename}` is Parquet, which can be read only when it is whole. "
                f"Leave out --flush, or write `.csv` or `.jsonl`."
            )
        path = Path(self.filename)
        validate_output_path(path, overwrite=self.overwrite, stage_name=self.name)

    def outputs(self) -> Outputs:
        """The file, and the folder in which it appears."""
        folder = Path(os.path.realpath(self.filename)).parent
        return Outputs(files=(Path(self.filename),), folders=(folder,))

    def open(self, context: StageContext) -> _OpenFile:
        """Open the file under a temporary name."""
        enter = context.resources.enter_context
        draft = enter(AtomicWriter(Path(self.filename), PolarsError))
        columns = FixedColumns(self.name, include_row_number=self.include_index_col)
        return _OpenFile(draft, enter(self._make_writer(draft)), columns)

    def process(self, batch: OutputRows, state: _OpenFile) -> Iterator[OutputRows]:
        """Write the rows of a batch."""
        with state.draft.guard_io():
            if not isinstance(batch, EncodedChunk):
                state.writer.write(state.columns.conform(batch.frame))
            elif batch.path is not None:
                state.writer.append(batch.path)
            if self.flush_rows:
                _publish(state.draft, state.writer)
        yield batch

    def flush(self, state: _OpenFile) -> Iterator[OutputRows]:
        """Complete the file."""
        with state.draft.guard_io():
            state.writer.finish()
        return iter(())

    def encoder(self, first: OutputRows, spill: SpillDir) -> Transform | None:
        """Rows can be formatted anywhere, if they have the columns of the first ones."""
        kind, _ = self._detect_format()
        if kind == "parquet":
            return None
        rows = write_csv_rows if kind == "csv" else write_json_rows
        return EncodeRows(
            rows, schema_key(first.frame), spill.folder, include_index=self.include_index_col
        )

    def _detect_format(self) -> tuple[str, str]:
        """Format and packing."""
        name = Path(self.filename).name.lower()
        packing = next((end for end in COMPRESSED_SUFFIXES if name.endswith(end)), "")
        extension = Path(name.removesuffix(packing)).suffix
        kind = FORMAT_BY_EXTENSION.get(extension, "") if self._is_auto else self.file_type.lower()
        if not kind:
            raise UsageError(
                f"--filename: Unsupported extension '{extension}' with 'auto' type, in "
                f"`{self.filename}`. Use {', '.join(FORMAT_BY_EXTENSION)}, or `--file_type csv`."
            )
        if kind == "parquet" and packing:
            raise UsageError(
                f"--filename: `{self.filename}`: Parquet is packed already. Leave out `{packing}`."
            )
        return kind, packing

    @property
    def _is_auto(self) -> bool:
        return self.file_type.lower() == "auto"

    def _make_writer(self, draft: AtomicWriter) -> RowWriter:
        kind, packing = self._detect_format()
        if kind == "parquet":
            return ParquetWriter(draft.temp_path)
        if kind == "json":
            return TextWriter(draft.file, packing, write_rows=write_json_rows)
        return TextWriter(
            draft.file, packing, write_rows=write_csv_rows, encode_header=encode_csv_header
        )


def _publish(draft: AtomicWriter, writer: RowWriter) -> None:
    """Let all rows so far be seen under the file's name."""
    writer.flush()
    if not draft.committed:
        draft.commit()
