"""Rows laid aside until they are handed out: on disk, or packed in memory to be moved.

Each table is a Parquet file: equal texts are written once, so an event takes some 100 bytes, and to
read some users' rows passes over the others. Arrow streams are written in less time, but read in
several times as much.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path

import polars as pl
import polars.selectors as cs

from morpheus.columns import TIME
from morpheus.scratch import file_in


@dataclass(frozen=True)
class Blob:
    """A table laid aside.

    Attributes:
        place: Its file, or what would be in it.
        rows: Its rows.
        span: Its first and last time; None where it has no rows, or no times.
    """

    place: Path | bytes
    rows: int
    span: tuple[datetime, datetime] | None

    def __sizeof__(self) -> int:
        """Bytes, for the worker that holds it."""
        held = 0 if isinstance(self.place, Path) else len(self.place)
        return object.__sizeof__(self) + held

    def read(
        self, only: pl.Expr | None = None, columns: Collection[str] | None = None
    ) -> pl.DataFrame:
        """Read it back, or only the rows of which something holds, or some of its columns."""
        place = self.place if isinstance(self.place, Path) else BytesIO(self.place)
        if only is None:
            return pl.read_parquet(place, glob=False)
        # By its path: polars then looks at no more of the file than it needs.
        rows = pl.scan_parquet(place, glob=False).filter(only)
        if columns is not None:
            rows = rows.select(cs.by_name(*columns, require_all=False))
        return rows.collect()

    def meets(self, since: datetime | None, until: datetime | None) -> bool:
        """Whether it may have rows from a time on, and before another; None for no bound."""
        if self.span is None:
            return True
        first, last = self.span
        return (since is None or last >= since) and (until is None or first < until)


def write(folder: Path, frames: Iterable[pl.DataFrame]) -> list[Blob]:
    """Write tables into new files of a folder, in their order.

    Raises:
        Unavailable: The disk is full, or the folder is gone.
    """
    return [_written(folder, frame) for frame in frames]


def pack(frame: pl.DataFrame) -> Blob:
    """Lay a table aside in memory, as small as it can be moved or kept."""
    data = BytesIO()
    frame.write_parquet(data, compression="lz4", statistics=False)
    return Blob(data.getvalue(), frame.height, _span(frame))


def _written(folder: Path, frame: pl.DataFrame) -> Blob:
    data = BytesIO()
    frame.write_parquet(data, compression="uncompressed", statistics=False)
    with file_in(folder) as file:
        file.write(data.getbuffer())
    return Blob(Path(file.name), frame.height, _span(frame))


def _span(frame: pl.DataFrame) -> tuple[datetime, datetime] | None:
    times = frame.get_column(TIME, default=None)
    first, last = (None, None) if times is None else (times.min(), times.max())
    return (first, last) if isinstance(first, datetime) and isinstance(last, datetime) else None


def remove(blobs: Iterable[Blob]) -> None:
    """Remove from disk what is no longer needed."""
    for blob in blobs:
        if isinstance(blob.place, Path):
            blob.place.unlink(missing_ok=True)
