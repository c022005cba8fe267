"""The columns that a sink's first rows decide."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import polars as pl

from morpheus.columns import ROW

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
