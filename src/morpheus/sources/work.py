"""The work of reading files, divided among worker processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import polars as pl

from morpheus.columns import TIME
from morpheus.processes import Crew
from morpheus.records import Reading
from morpheus.sources import times
from morpheus.sources.by_user import COPY
from morpheus.sources.census import Census, filled, with_values
from morpheus.sources.files import PACKED, Log, size_of
from morpheus.sources.flatten import Flattener
from morpheus.sources.gathering import Gathering
from morpheus.sources.log_files import LogFiles
from morpheus.sources.log_format import LogFormat
from morpheus.sources.reader import Reader
from morpheus.sources.union import tables
from morpheus.spill import Blob, write

_PACKED_BY = 8
"""What compression saves, about; what is not that small is only read in larger pieces."""


@dataclass(frozen=True)
class Work:
    """How files become frames: all that a worker has to know.

    Attributes:
        format: Of which kind of log they are.
        files: How each is read.
        user: Column of the user.
        wanted: The columns that pass from JSON, in order.
        only: Keep the events of this user; None for all.
        named: Keep only events that have a user.
        skip: Leave bad records out, and count them.
        everything: Pass on all columns of JSON.
        repeat: How often each file is read, later each time; see `repeated`.
    """

    format: LogFormat
    files: LogFiles
    user: str
    wanted: tuple[str, ...]
    only: str | None = None
    named: bool = False
    skip: bool = False
    everything: bool = False
    repeat: int = 1

    def frames(
        self, paths: Sequence[Log], reading: Reading, census: Census
    ) -> Iterator[pl.DataFrame]:
        """Read files, in their order, into frames of `INDEX`, text columns and `TIME`.

        Args:
            paths: The files.
            reading: Counts what becomes of the records.
            census: Told which columns have values.
        """
        form = self.format
        names, everything = form.decoded(self.wanted, self.user), self.everything
        flattener = Flattener(names, form.paths, form.leaves, form.dropped, everything=everything)
        reader = Reader(
            form,
            flattener,
            self.user,
            self.skip,
            reading,
            whole=self.repeat > 1,
            wanted=None if everything else self.wanted,
        )
        for frame in reader.frames(paths, self.files):
            census.filled |= filled(frame)
            yield self._kept(self._repeated(self._timely(frame, reading), reading), reading)

    def _timely(self, frame: pl.DataFrame, reading: Reading) -> pl.DataFrame:
        """Leave out, and count, what is outside the period."""
        if self.files.period is None:
            return frame
        kept = self.files.period.kept(frame)
        reading.outside += frame.height - kept.height
        return kept

    def _repeated(self, frame: pl.DataFrame, reading: Reading) -> pl.DataFrame:
        if self.repeat == 1:
            return frame
        copies = repeated(frame, self.repeat, self.format.time)
        reading.read += copies.height - frame.height
        return copies

    def _kept(self, frame: pl.DataFrame, reading: Reading) -> pl.DataFrame:
        user = pl.col(self.user)
        if self.format.kinds is not None and self.format.kinds[0] in frame.columns:
            column, wanted = self.format.kinds
            kept = frame.filter(pl.col(column).is_in(wanted) | pl.col(column).is_null())
            reading.other_kinds += frame.height - kept.height
            frame = kept
        if self.only is not None:
            kept = frame.filter(user == self.only)
            reading.other_users += frame.height - kept.height
            frame = kept
        if self.named:
            kept = frame.filter(user.is_not_null())
            reading.userless += frame.height - kept.height
            frame = kept
        return frame


def read_into(
    gathering: Gathering, work: Work, paths: Sequence[Log], reading: Reading, crew: Crew
) -> None:
    """Read files into a gathering, by workers where there is much to read.

    Raises:
        UsageError: A table lacks the user's column, or a file must not be read.
        BadRecord: A record cannot be read, and bad ones are not left out; the first in the order
            of files.
        Unavailable: The disk is full, or a worker was killed.
    """
    room = gathering.room
    sizes = [plain_size(path) for path in paths]
    if crew.workers == 1 or sum(sizes) < room.alone:
        for frame in work.frames(paths, reading, gathering.census):
            gathering.add(frame)
        return
    read = partial(_read, work, room.table, gathering.scratch.folder)
    for blobs, census, counted in crew.map(read, jobs_of(paths, sizes, room.job)):
        reading.add(counted)
        gathering.add_blobs(blobs, census)


def plain_size(path: Log) -> int:
    """Bytes of text that a file holds, about."""
    size = size_of(path)
    packed = path.suffix.lower() in {*PACKED, ".parquet"}
    return size * _PACKED_BY if packed else size


def jobs_of(paths: Sequence[Log], sizes: Sequence[int], least: int) -> Iterator[list[Log]]:
    """Put files together until they hold so many bytes."""
    job: list[Log] = []
    total = 0
    for path, size in zip(paths, sizes, strict=True):
        job.append(path)
        total += size
        if total >= least:
            yield job
            job, total = [], 0
    if job:
        yield job


def _read(
    work: Work, cells: int, folder: Path, paths: Sequence[Log]
) -> tuple[list[Blob], Census, Reading]:
    reading, census = Reading(), Census.nobody()
    blobs = write(folder, tables(counted(work, paths, reading, census), cells))
    return blobs, census, reading


def counted(
    work: Work, paths: Sequence[Log], reading: Reading, census: Census
) -> Iterator[pl.DataFrame]:
    """Read files into frames, of the columns with values; and add who is in them to a census."""
    for frame in work.frames(paths, reading, census):
        census.add(Census.of(frame, work.user))
        yield with_values(frame, work.user)


def repeated(frame: pl.DataFrame, times_over: int, time: str) -> pl.DataFrame:
    """Put later copies below the events of a file, each as long after the last as the file lasts.

    Args:
        frame: Events with `TIME` and, as text, the time as logged.
        times_over: How often the events are there in the end.
        time: Column of the time as logged, rewritten in the copies.
    """
    span = pl.col(TIME).max() - pl.col(TIME).min()
    copies = [frame.with_columns(pl.lit(0).alias(COPY))]
    for copy in range(1, times_over):
        later = frame.with_columns(pl.col(TIME) + span * copy, pl.lit(copy).alias(COPY))
        copies.append(later.with_columns(pl.col(TIME).dt.strftime(times.USUAL).alias(time)))
    return pl.concat(copies)
