"""Room on disk for what a run lays aside: a temporary folder that goes when the run ends."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import polars as pl
import polars.selectors as cs

from morpheus.columns import TIME
from morpheus.errors import TransientError


class SpillDir:
    """A temporary folder, made when it is first asked for, removed with all that is in it.

    Nobody else may read it.

    Args:
        beside: The folder that it lies in, hidden; by default where TMPDIR says.
    """

    def __init__(self, parent: Path | None = None) -> None:
        self._parent = parent
        self._temp_dir: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._temp_dir is not None:
            self._temp_dir.cleanup()

    @property
    def folder(self) -> Path:
        """Where it is.

        Raises:
            Unavailable: No folder can be made there.
        """
        if self._temp_dir is None:
            hidden = "." if self._parent else ""
            try:
                if self._parent is not None:
                    self._parent.mkdir(parents=True, exist_ok=True)
                self._temp_dir = tempfile.TemporaryDirectory(
                    prefix=f"{hidden}morpheus-", dir=self._parent, ignore_cleanup_errors=True
                )
            except OSError as error:
                raise _disk_full_error(
                    self._parent or Path(tempfile.gettempdir()), error
                ) from error
        return Path(self._temp_dir.name)


@contextmanager
def open_temp_file(folder: Path) -> Iterator[IO[bytes]]:
    """Make a file in a folder, which stays when it is written.

    Raises:
        Unavailable: The disk is full, or the folder is gone.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            yield file.file  # without what surrounds it, polars writes to it from its own code
    except OSError as error:
        raise _disk_full_error(folder, error) from error


def _disk_full_error(folder: Path, error: OSError) -> TransientError:
    return TransientError(
        f"{folder}: events cannot be laid aside there ({error.strerror or error}). "
        "Make room, some 200 MB for a million events, or name another folder: "
        "`TMPDIR=/folder morpheus ...`."
    )


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
