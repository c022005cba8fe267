"""Events of many files brought together, however many: in memory while they are few, else on disk.

What does not fit is laid aside as it is read, together with a census of its users. Once all is
read, the users are ranked and divided into parts that fit, and what was laid aside is sorted into
these parts. Then part after part is read back, put in order, and handed out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import polars as pl

from morpheus.columns import TIME
from morpheus.processes import Crew
from morpheus.scratch import Scratch
from morpheus.sources.census import PART, USER, Census, with_values
from morpheus.sources.shelves import Shelves
from morpheus.sources.union import names_of, tables, union
from morpheus.spill import Blob, remove, write


@dataclass(frozen=True)
class Room:
    """How much is in memory at a time. No result depends on it.

    Attributes:
        held: Cells of events that are held before the first are laid aside.
        part: Cells of the users that are handed out together, about, or sorted together.
        table: Cells of a table on disk, about.
        passes: Parts up to which all that is on disk is passed over for each.
        place: Parts whose events are sorted into one place, where there are more.
        job: Bytes of text that a worker reads in one go, at least.
        alone: Bytes of text that are read before workers would have started.
    """

    held: int = 8_000_000
    part: int = 3_000_000
    table: int = 1_600_000
    passes: int = 24
    place: int = 8
    job: int = 32_000_000
    alone: int = 100_000_000


@dataclass
class Gathering:
    """Events of one run, or of one round of a run, until all are there.

    Nothing depends on the order in which they are added. Columns without a value, of which logs
    have many, are left out until the events are handed out: the census knows their names.

    Args:
        user: Column of the user.
        room: How much is held.
        scratch: Where the rest is laid aside.
    """

    user: str
    room: Room
    scratch: Scratch
    census: Census = field(default_factory=Census.nobody)
    held: list[pl.DataFrame] = field(default_factory=list)
    blobs: list[Blob] = field(default_factory=list)
    cells: int = 0

    def add(self, frame: pl.DataFrame) -> None:
        """Add events: `INDEX`, text columns, `TIME`, in any order of columns and rows."""
        self.census.add(Census.of(frame, self.user))
        frame = with_values(frame, self.user)
        self.held.append(frame)
        self.cells += frame.height * frame.width
        if self.cells > (self.room.table if self.blobs else self.room.held):
            self._lay_aside()

    def add_blobs(self, blobs: Iterable[Blob], census: Census) -> None:
        """Add events that lie on disk."""
        self.census.add(census)
        self.blobs += blobs

    def gathered(self, first: tuple[str, ...] = ()) -> Gathered:
        """All that was added; begins anew.

        Args:
            first: Columns that come first, all others then by name; none to keep the files' order.
        """
        if self.blobs and self.census.rows * self.census.width <= self.room.held:
            self.held += [blob.read() for blob in self.blobs]
            remove(self.blobs)
            self.blobs = []
        if self.blobs and self.held:
            self._lay_aside()
        names = names_of(self.census, first)
        done = Gathered(self.user, self.census, names, self.held, self.blobs)
        self.census, self.held, self.blobs, self.cells = Census.nobody(), [], [], 0
        return done

    def _lay_aside(self) -> None:
        pieces = [
            frame.slice(start, step)
            for frame in self.held
            for step in [max(1, self.room.table // frame.width)]
            for start in range(0, frame.height, step)
        ]
        self.blobs += write(self.scratch.folder, tables(pieces, self.room.table))
        self.held, self.cells = [], 0


@dataclass
class Gathered:
    """Events that are all there, of which those of some users can be had.

    Attributes:
        user: Column of the user.
        census: Who is in them.
        names: All columns, in order.
        held: Events in memory.
        blobs: Events on disk.
        shelves: What was on disk, once it is sorted.
    """

    user: str
    census: Census
    names: list[str]
    held: list[pl.DataFrame]
    blobs: list[Blob]
    shelves: Shelves | None = None

    @property
    def cells(self) -> int:
        """Size, in cells."""
        return self.census.rows * self.census.width

    def divide(self, plan: pl.DataFrame, crew: Crew, room: Room, folder: Path) -> None:
        """Sort what is on disk, given the `PART` of each `USER`, unless it is read but a few times.

        To read it over and over, for some users each time, is quicker than to write it once more.
        So it is sorted into few places only, of as many parts as are worth it.
        """
        if not self.blobs or plan[PART].n_unique() <= room.passes:
            return
        places = plan.select(USER, pl.col(PART) // room.place)
        blobs, self.blobs = self.blobs, []
        held, table = (max(1, cells // self.census.width) for cells in (room.part, room.table))
        self.shelves = Shelves.filled(
            blobs, self.user, places, held=held, table=table, crew=crew, folder=folder
        )

    def where(self, users: pl.DataFrame) -> Where:
        """Where the events of these users are."""
        blobs = self.blobs if self.shelves is None else self.shelves.of(users)
        return Where(self.user, self.names, self.held, blobs)


@dataclass(frozen=True)
class Where:
    """Where events of some users are, and of others beside them; see `Gathered`."""

    user: str
    names: list[str]
    held: list[pl.DataFrame]
    blobs: list[Blob]

    def of(
        self, users: pl.DataFrame, since: datetime | None = None, until: datetime | None = None
    ) -> pl.DataFrame:
        """The events of these users, in no order; from a time on, and before another, if given."""
        return union(list(self.frames(users, since, until)), self.names)

    def frames(
        self,
        users: pl.DataFrame,
        since: datetime | None = None,
        until: datetime | None = None,
        *,
        columns: Collection[str] | None = None,
    ) -> Iterator[pl.DataFrame]:
        """The same, or some columns of it, table after table as they lie."""
        wanted = pl.col(self.user).is_in(users[USER].implode(), nulls_equal=True)
        if since is not None:
            wanted &= pl.col(TIME) >= since
        if until is not None:
            wanted &= pl.col(TIME) < until
        for frame in self.held:
            some = _only(frame, wanted)
            yield some.select(n for n in some.columns if columns is None or n in columns)
        for blob in self.blobs:
            if blob.meets(since, until):
                yield blob.read(wanted, columns)


def _only(frame: pl.DataFrame, wanted: pl.Expr) -> pl.DataFrame:
    rows = frame.select(wanted).to_series()
    return frame if rows.all() else frame.filter(rows)
