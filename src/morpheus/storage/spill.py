"""Tables spilled to disk or compressed in memory, and the temporary folder that holds them.

Spilled tables are Parquet with the time range kept beside them, so that a reader can skip a table
without opening it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import msgspec
import polars as pl
import polars.selectors as cs

from morpheus.columns import TIME
from morpheus.errors import TransientError
from morpheus.storage.atomic import TempFolder, make_folders


class SpillDir:
    """A temporary folder, created when first used and removed with its content at the end.

    Only its owner may read it (mode 0700). If the process is killed, a later run removes it.

    Args:
        parent: Folder to create it in, as a hidden folder. By default TMPDIR decides.
    """

    def __init__(self, parent: Path | None = None) -> None:
        self._parent = parent
        self._temp_dir: TempFolder | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._temp_dir is not None:
            self._temp_dir.close()

    @property
    def folder(self) -> Path:
        """Path of the folder.

        Raises:
            TransientError: The folder cannot be created.
        """
        if self._temp_dir is None:
            try:
                if self._parent is not None:
                    make_folders(self._parent)
                self._temp_dir = TempFolder(self._parent)
            except OSError as error:
                raise _disk_full_error(
                    self._parent or Path(tempfile.gettempdir()), error
                ) from error
        return self._temp_dir.path


@contextmanager
def open_temp_file(folder: Path) -> Iterator[IO[bytes]]:
    """Create a file with a new name in a folder (mode 0600). It stays after the block.

    Raises:
        TransientError: The disk is full, or the folder is gone.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            yield file.file  # a plain file: polars then writes to its descriptor directly
    except OSError as error:
        raise _disk_full_error(folder, error) from error


def _disk_full_error(folder: Path, error: OSError) -> TransientError:
    return TransientError(
        f"{folder}: events cannot be spilled there ({error.strerror or error}). "
        "Free disk space, about 200 MB for a million events, or choose another folder: "
        "`TMPDIR=/folder morpheus ...`."
    )


class SpilledTable(msgspec.Struct, frozen=True):
    """A table outside the working set.

    Attributes:
        data: Path of its Parquet file, or the content of such a file.
        num_rows: Number of rows.
        time_range: First and last time; None without rows or without times.
    """

    data: Path | bytes
    num_rows: int
    time_range: tuple[datetime, datetime] | None

    def __sizeof__(self) -> int:
        """Size in bytes, for the memory limits of a Dask worker."""
        in_memory = 0 if isinstance(self.data, Path) else len(self.data)
        return object.__sizeof__(self) + in_memory

    def read(
        self, predicate: pl.Expr | None = None, columns: Collection[str] | None = None
    ) -> pl.DataFrame:
        """Read the table.

        Args:
            predicate: Keep only the rows for which it holds. By default all.
            columns: Columns to read; missing ones are ignored. By default all. Needs `predicate`.
        """
        source = self.data if isinstance(self.data, Path) else BytesIO(self.data)
        if predicate is None:
            return pl.read_parquet(source, glob=False)
        # A lazy scan reads only the parts of the file that it needs.
        rows = pl.scan_parquet(source, glob=False).filter(predicate)
        if columns is not None:
            rows = rows.select(cs.by_name(*columns, require_all=False))
        return rows.collect()

    def overlaps(self, start: datetime | None, end: datetime | None) -> bool:
        """Return whether it may have rows with start <= time < end; None is no bound."""
        if self.time_range is None:
            return True
        first, last = self.time_range
        return (start is None or last >= start) and (end is None or first < end)


def spill_to_disk(folder: Path, frames: Iterable[pl.DataFrame]) -> list[SpilledTable]:
    """Write each table to a new file in a folder.

    Raises:
        TransientError: The disk is full, or the folder is gone.
    """
    return [_spill_frame(folder, frame) for frame in frames]


def spill_to_memory(frame: pl.DataFrame) -> SpilledTable:
    """Compress a table in memory, to keep it or to send it to another process."""
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
    """Remove the files of tables that are no longer needed."""
    for table in tables:
        if isinstance(table.data, Path):
            table.data.unlink(missing_ok=True)
