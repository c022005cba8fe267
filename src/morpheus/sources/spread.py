"""Events spread over the workers of a cluster: read where they lie, then brought together by user.

Each job of files is read by a task, which tells who is in them; the events stay where they were
read. Once all is known, the users are ranked as on one machine, and packed into parts of like
weight. Then each job's events are divided by part, and Dask's shuffle brings each part together.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from sys import getsizeof
from typing import Any, TypeVar

import polars as pl

from morpheus.cluster.workers import Cluster, Handle
from morpheus.errors import UsageError
from morpheus.records import Events, Reading, Summary
from morpheus.sources.census import PART, RANK, ROWS, USER, Census, parted, ranked
from morpheus.sources.files import Log
from morpheus.sources.gathering import Room, Where
from morpheus.sources.ground import Recipe, derived
from morpheus.sources.portion import GatheredPortion
from morpheus.sources.shelves import divided
from morpheus.sources.survey import Draw, Survey
from morpheus.sources.union import names_of, tables
from morpheus.sources.work import Work, counted, jobs_of, plain_size
from morpheus.spill import Blob, pack

Result = TypeVar("Result")
Cell = tuple[bool, list[Blob]] | None
"""Tables of one part that one job of files has, and whether they are history; None for none."""

A_USER = 1_000
"""A user costs as much as so many events: a network is trained, however few they are."""
LIGHTEST, HEAVIEST = 20_000, 200_000
"""What a part of several users weighs, at least and at most, in events."""
EACH = 6
"""Parts for each worker: the last ones to be done should be small beside the whole."""
SMALLEST_JOB = 2_000_000
"""Bytes of text that are worth a task."""


@dataclass(frozen=True)
class Read:
    """What a job of files has become: tables, packed."""

    tables: list[Blob] = field(repr=False)
    census: Census
    reading: Reading

    def __sizeof__(self) -> int:
        """Bytes, for the worker that holds it."""
        return object.__sizeof__(self) + sum(map(getsizeof, self.tables))


@dataclass
class Spread:
    """Events of one set of files, on the workers that have read them.

    Attributes:
        user: Column of the user.
        census: Who is in them.
        names: All columns, in order.
        jobs: The tasks that read them.
    """

    user: str
    census: Census
    names: list[str]
    jobs: list[Handle[Read]]


@dataclass(frozen=True)
class SpreadPortion:
    """All events of some users, on the worker where Dask's shuffle has brought them together.

    Attributes:
        cluster: The workers.
        portion: The users, and what is done with their events.
        cells: The events, an array of `Cell`.
        weight: How much work it is, in events.
    """

    cluster: Cluster
    portion: GatheredPortion
    cells: Handle[Any]
    weight: int

    def begin(
        self,
        work: Callable[..., Result],
        *needs: object,
        resources: Mapping[str, float] | None = None,
    ) -> Handle[Result]:
        """Begin a task on the portion, where it lies; see `Cluster.begin`."""
        there, weight = partial(_at_portion, work, self.portion), self.weight
        return self.cluster.begin(there, self.cells, *needs, weight=weight, resources=resources)

    def events(self, summary: Summary) -> Iterator[Events]:
        """Fetch the events, for stages that have to see everybody's."""
        for whole in self.cluster.results([self.begin(_itself)]):
            yield from whole.events(summary)


@dataclass
class Spreading:
    """The workers of a cluster, as a place where events lie.

    Attributes:
        recipe: What portions have in common.
        room: How much is in memory at a time.
        survey: How large a sample of everybody is.
        cluster: The workers.
        portions: What the users were divided into.
    """

    recipe: Recipe
    room: Room
    survey: Survey
    cluster: Cluster
    portions: list[SpreadPortion] = field(default_factory=list, init=False)

    def read(self, work: Work, paths: Sequence[Log], reading: Reading) -> Spread:
        """Read files, each job by whatever worker is free."""
        sizes = [plain_size(path) for path in paths]
        least = min(self.room.job, max(SMALLEST_JOB, sum(sizes) // (2 * self.cluster.workers)))
        places = [path.absolute() if isinstance(path, Path) else path for path in paths]
        task = partial(read_job, work, self.room.table)
        jobs = [self.cluster.begin(task, job) for job in jobs_of(places, sizes, least)]
        census = Census.nobody()
        for seen, became in self.cluster.results([self.cluster.begin(_seen, one) for one in jobs]):
            census.add(seen)
            reading.add(became)
        first = work.wanted if work.everything else ()
        return Spread(work.user, census, names_of(census, first), jobs)

    def divided(
        self,
        events: Spread,
        learnt: Spread | None,
        *,
        endless: bool,  # noqa: ARG002 - a cluster reads what ends
    ) -> list[SpreadPortion]:
        """Rank the users, pack them into parts, and bring each part together."""
        past = None if learnt is None else learnt.census
        users = ranked(events.census, past, last=True)
        users = users.with_columns(packed(users[ROWS].to_list(), self.cluster.workers))
        columns = self._brought(events, learnt, users.select(USER, PART))
        for some, cells in zip(users.partition_by(PART, maintain_order=True), columns, strict=True):
            present = Where(events.user, events.names, [], [])
            before = None if learnt is None else Where(learnt.user, learnt.names, [], [])
            piece = self._piece(some, events.census.width)
            portion = self.recipe.of(some.select(USER, RANK), present, before, piece)
            weight = int(some[ROWS].sum()) + A_USER * some.height
            self.portions.append(SpreadPortion(self.cluster, portion, cells, weight))
        return self.portions

    def sample(self, known: Spread, columns: Sequence[str], *, past: bool) -> pl.DataFrame:
        """Draw it of each portion, where it lies."""
        names = self.recipe.deriving.derived
        draw = self.survey.draw(known, columns, derived=names)
        task = partial(_drawn, draw, past, bool(names))
        samples = self.cluster.results([portion.begin(task) for portion in self.portions])
        return draw.done(draw.joined(samples))

    def _piece(self, users: pl.DataFrame, width: int) -> int | None:
        """Events at a time, of a user who is larger than the room; None for all."""
        fits = users.height > 1 or users[ROWS].sum() * width <= self.room.held
        return None if fits else max(1, self.room.part // width)

    def _brought(
        self, events: Spread, learnt: Spread | None, places: pl.DataFrame
    ) -> list[Handle[Any]]:
        """The cells of each part."""
        number = places[PART].n_unique()
        if not number:
            return []
        plan = self.cluster.give(places)
        both = [(events, False), *([] if learnt is None else [(learnt, True)])]
        rows = [
            self.cluster.begin(_divided, one, plan, known.user, number, history)
            for known, history in both
            for one in known.jobs
        ]
        for known, _ in both:
            known.jobs.clear()
        return self.cluster.turned(rows, number)


def packed(rows: Sequence[int], workers: int) -> pl.Series:
    """The part of each user: a user too heavy for company has one alone.

    >>> packed([5, 900_000, 7, 7], workers=2).to_list()
    [0, 1, 2, 2]
    """
    weights = [A_USER + each for each in rows]
    room = min(HEAVIEST, max(LIGHTEST, sum(weights) // (EACH * workers)))
    return pl.Series(PART, parted(weights, room), dtype=pl.Int64)


def read_job(work: Work, cells: int, paths: Sequence[Log]) -> Read:
    """Read the files of a job, and keep what is in them.

    Args:
        work: How.
        cells: Cells of a table, about.
        paths: The files.

    Raises:
        UsageError: One of them is not seen here.
    """
    gone = next((one for one in paths if isinstance(one, Path) and not one.exists()), None)
    if gone is not None:
        raise UsageError(
            f"--engine dask: `{gone}` is here, but not on worker {platform.node()}. Put the files "
            "where all machines see them under the same path."
        )
    reading, census = Reading(), Census.nobody()
    made = [pack(frame) for frame in tables(counted(work, paths, reading, census), cells)]
    return Read(made, census, reading)


def _seen(read: Read) -> tuple[Census, Reading]:
    return read.census, read.reading


def _divided(
    read: Read,
    places: pl.DataFrame,
    user: str,
    parts: int,
    history: bool,  # noqa: FBT001 - a task's needs
) -> list[Cell]:
    """The cells of one job's events, one a part."""
    cells: list[list[Blob]] = [[] for _ in range(parts)]
    for table in read.tables:
        for part, piece in zip(*divided(table.read(), user, places), strict=True):
            cells[part].append(pack(piece))
    return [(history, made) if made else None for made in cells]


def _at_portion(
    work: Callable[..., Result],
    portion: GatheredPortion,
    cells: Any,  # noqa: ANN401 - a numpy array of cells
    *needs: object,
) -> Result:
    """Do something with a portion whose events are there."""
    there: Mapping[bool, list[Blob]] = {True: [], False: []}
    for history, made in filter(None, cells.flat):
        there[history] += made
    present, past = _lying(portion.present, there[False], portion), portion.past
    past = None if past is None else _lying(past, there[True], portion)
    return work(replace(portion, present=present, past=past), *needs)


def _lying(where: Where, blobs: list[Blob], portion: GatheredPortion) -> Where:
    """Unpack all there is, or nothing yet of a user who comes in pieces."""
    if portion.piece is not None:
        return replace(where, blobs=blobs)
    return replace(where, held=[blob.read() for blob in blobs])


def _drawn(draw: Draw, past: bool, deriving: bool, portion: GatheredPortion) -> pl.DataFrame:  # noqa: FBT001 - as above
    """What a sample has of a portion, of its history or of its events."""
    where = portion.past if past else portion.present
    assert where is not None  # noqa: S101 - there is history where history is asked for
    whole = replace(portion, present=where, past=None)
    lying = chain(where.held, (blob.read() for blob in where.blobs))
    return draw.of(derived(whole) if deriving else lying)


def _itself(portion: GatheredPortion) -> GatheredPortion:
    return portion
