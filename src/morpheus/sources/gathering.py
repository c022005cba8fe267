"""Events of many files brought together, however many: in memory while they are few, else on disk.

What does not fit is laid aside as it is read, together with a census of its users. Once all is
read, the users are ranked and divided into parts that fit, and what was laid aside is sorted into
these parts. Then part after part is read back, put in order, and handed out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path

import polars as pl

from morpheus.columns import INDEX, TIME
from morpheus.processes import Crew
from morpheus.scratch import Scratch
from morpheus.sources.by_user import COPY
from morpheus.sources.census import PART, USER, Census, with_values
from morpheus.spill import Blob, remove, write


@dataclass(frozen=True)
class Room:
    """How much is in memory at a time. No result depends on it.

    Attributes:
        held: Cells of events that are held before the first are laid aside.
        part: Cells of the users that are handed out together, about.
        table: Cells that are laid aside, or sorted into parts, together.
        passes: Parts that lie on disk together, so that this is read so many times.
        job: Bytes of text that a worker reads in one go, at least.
        alone: Bytes of text that are read before workers would have started.
    """

    held: int = 8_000_000
    part: int = 3_000_000
    table: int = 1_600_000
    passes: int = 24
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
        places: Where each user is, once what is on disk is sorted.
        parts: What lies in each place.
    """

    user: str
    census: Census
    names: list[str]
    held: list[pl.DataFrame]
    blobs: list[Blob]
    places: pl.DataFrame | None = None
    parts: dict[int, list[Blob]] = field(default_factory=dict)

    @property
    def cells(self) -> int:
        """Size, in cells."""
        return self.census.rows * self.census.width

    def divide(self, plan: pl.DataFrame, crew: Crew, room: Room, folder: Path) -> None:
        """Sort what is on disk, given the `PART` of each `USER`, unless it is read but a few times.

        To read it over and over, for some users each time, is quicker than to write it once more.
        So it is sorted into few files only, of as many parts as are worth it.
        """
        places = plan.select(USER, pl.col(PART) // room.passes)
        if not self.blobs or places[PART].n_unique() == 1:
            return
        self.places, blobs = places, self.blobs
        self.blobs, self.parts = [], {part: [] for part in places[PART].unique()}
        step = max(1, room.table // (self.census.width or 1))
        jobs = list(_jobs(blobs, step))
        sort = partial(_divide, self.user, places, folder)
        for job, parts in zip(jobs, crew.map(sort, jobs), strict=True):
            remove(job)
            for part, blob in parts:
                self.parts[part].append(blob)

    def where(self, users: pl.DataFrame) -> Where:
        """Where the events of these users are."""
        blobs = self.blobs
        if self.places is not None:
            mine = self.places.join(users, on=USER, how="semi", nulls_equal=True)
            blobs = [blob for part in mine[PART].unique().sort() for blob in self.parts[part]]
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
        return join(list(self.frames(users, since, until)), self.names)

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


def tables(frames: Iterable[pl.DataFrame], cells: int) -> Iterator[pl.DataFrame]:
    """Join small frames, so that each is of so many cells at least, but for the last."""
    held: list[pl.DataFrame] = []
    for frame in frames:
        held.append(frame)
        if sum(one.height * one.width for one in held) >= cells:
            # What is yielded is held no longer here.
            held, joined = [], [join(held)]
            yield joined.pop()
    if held:
        yield join(held)


def join(frames: list[pl.DataFrame], names: list[str] | None = None) -> pl.DataFrame:
    """Put frames below each other, in an order of columns that does not depend on theirs."""
    names = names or _names(frozenset(tuple(frame.columns) for frame in frames))
    if not frames:
        texts = {name: pl.String for name in names if name not in {INDEX, TIME}}
        return pl.DataFrame(schema={INDEX: pl.Int64, **texts, TIME: pl.Datetime("us", "UTC")})
    whole = pl.concat(frames, how="diagonal", rechunk=True)
    there = set(whole.columns)
    absent = [pl.lit(None, pl.String).alias(n) for n in names if n not in there]
    copy = {COPY} & there
    return whole.with_columns(absent).select(INDEX, *names, TIME, *copy)


def names_of(census: Census, first: tuple[str, ...] = ()) -> list[str]:
    """All columns; those that come first, then the others by name, or as the files have them."""
    names = _names(census.headers)
    return list(dict.fromkeys([*first, *sorted(names)])) if first else names


def _names(headers: frozenset[tuple[str, ...]]) -> list[str]:
    """Those of the widest header, in its order, then those that others add."""
    known = sorted(headers, key=lambda header: (-len(header), header))
    names = dict.fromkeys(name for header in known for name in header)
    return [name for name in names if name not in {INDEX, TIME, COPY}]


def _jobs(blobs: list[Blob], rows: int) -> Iterator[list[Blob]]:
    """What is sorted into parts together: so many rows at most, or one table."""
    job: list[Blob] = []
    for blob in blobs:
        if job and sum(one.rows for one in job) + blob.rows > rows:
            yield job
            job = []
        job.append(blob)
    if job:
        yield job


def _divide(
    user: str, places: pl.DataFrame, folder: Path, blobs: list[Blob]
) -> list[tuple[int, Blob]]:
    frame = join([blob.read() for blob in blobs])
    parts, pieces = divided(frame, user, places)
    return list(zip(parts, write(folder, pieces), strict=True))


def divided(
    frame: pl.DataFrame, user: str, places: pl.DataFrame
) -> tuple[list[int], Iterator[pl.DataFrame]]:
    """Divide events by the `PART` of each `USER`: which parts there are, and what is of each."""
    names = frame.select(pl.col(user).alias(USER))
    parts = names.join(places, on=USER, how="left", nulls_equal=True, maintain_order="left")[PART]
    order = parts.arg_sort()
    frame, runs = frame[order], parts.gather(order).rle().struct.unnest()
    starts = runs["len"].cum_sum() - runs["len"]
    pieces = (frame.slice(at, length) for at, length in zip(starts, runs["len"], strict=True))
    return runs["value"].to_list(), pieces
