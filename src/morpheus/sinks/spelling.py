"""Rows become text: the part of writing them that any process can do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import polars as pl

from morpheus.columns import RHYTHM, ROW
from morpheus.records import Rows, Spelt
from morpheus.scratch import file_in
from morpheus.sinks.formats import TEXT_ROWS, kind_of
from morpheus.stage import Stage


@dataclass(frozen=True)
class Spelling(Stage):
    """Turns rows into text, as `to-file` writes them; rows of another kind are handed on.

    Attributes:
        rows: Turns a few rows into bytes.
        kind: Columns and types of the rows that are spelt.
        folder: Where the text lies until it is written.
        index: Whether the unnamed first column is written.
    """

    name = "to-file"
    takes = (Rows,)
    gives = Rows
    scope = "run"

    rows: Callable[[pl.DataFrame, IO[bytes]], None]
    kind: tuple[list[str], list[pl.DataType]]
    folder: Path
    index: bool = True

    def __call__(self, batches: Iterator[Rows]) -> Iterator[Rows]:
        """Join small batches, which is faster."""
        held: list[Rows] = []
        for batch in batches:
            alike = kind_of(batch.frame) == self.kind
            if alike:
                held.append(batch)
            if not alike or sum(each.frame.height for each in held) >= TEXT_ROWS:
                yield from self._spelt(held)
                held = []
            if not alike:
                yield batch
        yield from self._spelt(held)

    def _spelt(self, held: list[Rows]) -> Iterator[Spelt]:
        """The text of all goes with the last."""
        for batch in held[:-1]:
            yield batch.become(Spelt, frame=_counted(batch.frame))
        for batch in held[-1:]:
            frames = [each.frame for each in held]
            text = self._text(pl.concat(frames))
            yield batch.become(Spelt, frame=_counted(batch.frame), text=text)

    def _text(self, frame: pl.DataFrame) -> Path:
        with file_in(self.folder) as file:
            for some in frame.iter_slices(TEXT_ROWS):
                self.rows(some if self.index else some.drop(ROW, strict=False), file)
        return Path(file.name)


def _counted(frame: pl.DataFrame) -> pl.DataFrame:
    """As many rows, with no more than `Summary` looks at."""
    if RHYTHM in frame.columns:
        return frame.select(RHYTHM)
    return pl.Series(ROW, [None] * frame.height, dtype=pl.Null).to_frame()
