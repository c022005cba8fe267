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
from morpheus.scratch import open_temp_file


@dataclass(frozen=True)
class SpilledTable:
    """A table laid aside.

    Attributes:
        data: Its file, or what would be in it.
        num_rows: Its rows.
        time_range: Its first and last time; None where it has no rows, or no times.
    """

    data: Path | bytes
    num_rows: int
    time_range: tuple[datetime, datetime] | None

    def __sizeof__(self) -> int:
        """Bytes, for the worker that holds it."""
        held = 0 if isinstance(self.data, Path) else len(self.data)
        return object.__sizeof__(self) + held

    def read(
        self, predicate: pl.Expr | None = None, columns: Collection[str] | None = None
    ) -> pl.DataFrame:
        """Read it back, or only the rows of which something holds, or some of its columns."""
        place = self.data if isinstance(self.data, Path) else BytesIO(self.data)
        if predicate is None:
            return pl.read_parquet(place, glob=False)
        # By its path: polars then looks at no more of the file than it needs.
        rows = pl.scan_parquet(place, glob=False).filter(predicate)
        if columns is not None:
            rows = rows.select(cs.by_name(*columns, require_all=False))
        return rows.collect()

    def overlaps(self, start: datetime | None, end: datetime | None) -> bool:
        """Whether it may have rows from a time on, and before another; None for no bound."""
        if self.time_range is None:
            return True
        first, last = self.time_range
        return (start is None or last >= start) and (end is None or first < end)


def spill_to_disk(folder: Path, frames: Iterable[pl.DataFrame]) -> list[SpilledTable]:
    """Write tables into new files of a folder, in their order.

    Raises:
        Unavailable: The disk is full, or the folder is gone.
    """
    return [_spill_frame(folder, frame) for frame in frames]


def spill_to_memory(frame: pl.DataFrame) -> SpilledTable:
    """Lay a table aside in memory, as small as it can be moved or kept."""
    data = BytesIO()
    frame.write_parquet(data, compression="lz4", statistics=False)
    return SpilledTable(data.getvalue(), frame.height, _find_time_range(frame))


def _spill_frame(folder: Path, frame: pl.DataFrame) -> SpilledTable:
    data = BytesIO()
    frame.write_parquet(data, compression="uncompressed", statistics=False)
    with open_temp_file(folder) as file:
        file.write(data.getbuffer())
    return SpilledTable(Path(file.name), frame.height, _find_time_range(frame))


def _find_time_range(frame: pl.DataFrame) -> tuple[datetime, datetime] | None:
    times = frame.get_column(TIME, default=None)
    first, last = (None, None) if times is None else (times.min(), times.max())
    return (first, last) if isinstance(first, datetime) and isinstance(last, datetime) else None


def delete_spilled(tables: Iterable[SpilledTable]) -> None:
    """Remove from disk what is no longer needed."""
    for blob in tables:
        if isinstance(blob.data, Path):
            blob.data.unlink(missing_ok=True)
