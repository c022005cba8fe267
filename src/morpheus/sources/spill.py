"""Rows laid aside on disk until they are handed out.

A file holds several tables behind each other, each a Parquet file of its own: equal texts are
written once, so an event takes some 100 bytes, and to read some users' rows passes over the others.
Arrow streams are written in less time, but read in several times as much.
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
        path: The file that holds it.
        start: Where in the file it begins.
        size: How many bytes long it is.
        rows: Its rows.
    """

    path: Path
    start: int
    size: int
    rows: int

    def read(self, only: pl.Expr | None = None) -> pl.DataFrame:
        """Read it back, or only the rows of which something holds."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            data = BytesIO(file.read(self.size))
        return (
            pl.read_parquet(data) if only is None else pl.scan_parquet(data).filter(only).collect()
        )


def write(folder: Path, frames: Iterable[pl.DataFrame]) -> list[Blob]:
    """Write tables into a new file of a folder, in their order.

    Raises:
        Unavailable: The disk is full, or the folder is gone.
    """
    blobs: list[Blob] = []
    with file_in(folder) as file:
        for frame in frames:
            data = BytesIO()
            frame.write_parquet(data, compression="uncompressed", statistics=False)
            blobs.append(Blob(Path(file.name), file.tell(), data.tell(), frame.height))
            file.write(data.getbuffer())
    return blobs


def remove(paths: Iterable[Path]) -> None:
    """Remove files whose tables are no longer needed."""
    for path in paths:
        path.unlink(missing_ok=True)
