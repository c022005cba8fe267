"""Rows laid aside on disk until they are handed out.

Each table is a Parquet file: equal texts are written once, so an event takes some 100 bytes, and to
read some users' rows passes over the others. Arrow streams are written in less time, but read in
several times as much.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import polars as pl

from morpheus.scratch import file_in


@dataclass(frozen=True)
class Blob:
    """A table on disk.

    Attributes:
        path: Its file.
        rows: Its rows.
    """

    path: Path
    rows: int

    def read(self, only: pl.Expr | None = None) -> pl.DataFrame:
        """Read it back, or only the rows of which something holds."""
        if only is None:
            return pl.read_parquet(self.path, glob=False)
        # By its path: polars then looks at no more of the file than it needs.
        return pl.scan_parquet(self.path, glob=False).filter(only).collect()


def write(folder: Path, frames: Iterable[pl.DataFrame]) -> list[Blob]:
    """Write tables into new files of a folder, in their order.

    Raises:
        Unavailable: The disk is full, or the folder is gone.
    """
    return [_written(folder, frame) for frame in frames]


def _written(folder: Path, frame: pl.DataFrame) -> Blob:
    data = BytesIO()
    frame.write_parquet(data, compression="uncompressed", statistics=False)
    with file_in(folder) as file:
        file.write(data.getbuffer())
    return Blob(Path(file.name), frame.height)


def remove(blobs: Iterable[Blob]) -> None:
    """Remove what is no longer needed."""
    for blob in blobs:
        blob.path.unlink(missing_ok=True)
