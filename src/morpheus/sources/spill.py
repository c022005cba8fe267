"""Rows laid aside on disk, in a temporary folder that goes when the run ends.

A file holds several tables behind each other, each a Parquet file of its own: equal texts are
written once, so an event takes some 70 bytes, and to read some users' rows passes over the others.
Arrow streams are written in less time, but read in several times as much.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Self

import polars as pl

from morpheus.errors import Unavailable


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


class Scratch:
    """A temporary folder, made when it is first asked for, removed with all that is in it.

    It lies where TMPDIR says, and nobody else may read it.
    """

    def __init__(self) -> None:
        self._made: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._made is not None:
            self._made.cleanup()

    @property
    def folder(self) -> Path:
        """Where it is.

        Raises:
            Unavailable: No folder can be made there.
        """
        if self._made is None:
            try:
                self._made = tempfile.TemporaryDirectory(
                    prefix="morpheus-", ignore_cleanup_errors=True
                )
            except OSError as error:
                raise _full(Path(tempfile.gettempdir()), error) from error
        return Path(self._made.name)


def write(folder: Path, frames: Iterable[pl.DataFrame]) -> list[Blob]:
    """Write tables into a new file of a folder, in their order.

    Raises:
        Unavailable: The disk is full, or the folder is gone.
    """
    blobs: list[Blob] = []
    try:
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            for frame in frames:
                data = BytesIO()
                frame.write_parquet(data, compression="lz4", statistics=False)
                blobs.append(Blob(Path(file.name), file.tell(), data.tell(), frame.height))
                file.write(data.getbuffer())
    except OSError as error:
        raise _full(folder, error) from error
    return blobs


def remove(paths: Iterable[Path]) -> None:
    """Remove files whose tables are no longer needed."""
    for path in paths:
        path.unlink(missing_ok=True)


def _full(folder: Path, error: OSError) -> Unavailable:
    return Unavailable(
        f"{folder}: events cannot be laid aside there ({error.strerror or error}). "
        "Make room, some 200 MB for a million events, or name another folder: "
        "`TMPDIR=/folder morpheus ...`."
    )
