"""`to-file`: rows into one file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from polars.exceptions import PolarsError

from morpheus.atomic import AtomicWriter
from morpheus.errors import UsageError
from morpheus.records import OutputRows, EncodedChunk
from morpheus.scratch import SpillDir
from morpheus.sinks.formats import (
    FORMAT_BY_EXTENSION,
    COMPRESSED_SUFFIXES,
    RowWriter,
    ParquetWriter,
    TextWriter,
    encode_csv_header,
    write_csv_rows,
    write_json_rows,
    schema_key,
)
from morpheus.sinks.head import FixedColumns
from morpheus.sinks.place import validate_output_path
from morpheus.sinks.spelling import EncodeRows
from morpheus.stage import Transform, option


@dataclass(frozen=True)
class ToFile(Transform):
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
    scope = "global"
    is_sink = True
    needs_model = False

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
    flush: bool = option(
        False,
        "Let rows be seen under the file's name as they come. The file is then not whole until the "
        "run ends, and stays if the run fails. Not for Parquet.",
        flag=True,
    )

    def validate(self) -> None:
        """Refuse a name that cannot be written to, and a format that there is none of."""
        if not self.filename:
            raise UsageError("to-file: no file is named. Give `--filename detections.csv`.")
        kind, _ = self._detect_format()
        if self.flush and kind == "parquet":
            raise UsageError(
                f"--flush: `{self.filename}` is Parquet, which can be read only when it is whole. "
                f"Leave out --flush, or write `.csv` or `.jsonl`."
            )
        path = Path(self.filename)
        validate_output_path(path, overwrite=self.overwrite, stage_name=self.name)

    def output_file(self) -> Path | None:
        """The file."""
        return Path(self.filename)

    def __call__(self, batches: Iterator[OutputRows]) -> Iterator[OutputRows]:
        """Write each batch, then hand it on."""
        head = FixedColumns(self.name, include_row_number=self.include_index_col)
        with AtomicWriter(Path(self.filename), PolarsError) as draft, self._make_writer(draft) as form:
            for batch in batches:
                with draft.guard_io():
                    if not isinstance(batch, EncodedChunk):
                        form.write(head.conform(batch.frame))
                    elif batch.path is not None:
                        form.append(batch.path)
                    if self.flush:
                        _publish(draft, form)
                yield batch
            with draft.guard_io():
                form.finish()

    def output_dir(self) -> Path:
        """Where the file is to appear."""
        return Path(os.path.realpath(self.filename)).parent

    def encoder(self, first: OutputRows, scratch: SpillDir) -> Transform | None:
        """Rows can become text anywhere, if they are like the first ones."""
        kind, _ = self._detect_format()
        if kind == "parquet":
            return None
        rows = write_csv_rows if kind == "csv" else write_json_rows
        return EncodeRows(rows, schema_key(first.frame), scratch.folder, include_index=self.include_index_col)

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
        return TextWriter(draft.file, packing, write_rows=write_csv_rows, encode_header=encode_csv_header)


def _publish(draft: AtomicWriter, writer: RowWriter) -> None:
    """Let all rows so far be seen under the file's name."""
    writer.flush()
    if not draft.committed:
        draft.commit()
