"""Rows become text: the part of writing them that any process can do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import polars as pl

from morpheus.columns import TS_ANOMALY, ROW
from morpheus.records import OutputRows, EncodedChunk
from morpheus.scratch import open_temp_file
from morpheus.sinks.formats import ENCODE_CHUNK_ROWS, schema_key
from morpheus.stage import Transform


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

    def __call__(self, batches: Iterator[OutputRows]) -> Iterator[OutputRows]:
        """Join small batches, which is faster."""
        held: list[OutputRows] = []
        for batch in batches:
            alike = schema_key(batch.frame) == self.schema
            if alike:
                held.append(batch)
            if not alike or sum(each.frame.height for each in held) >= ENCODE_CHUNK_ROWS:
                yield from self._encode(held)
                held = []
            if not alike:
                yield batch
        yield from self._encode(held)

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
