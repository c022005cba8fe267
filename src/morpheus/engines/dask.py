"""The Dask engine: the users of each portion pass the chain on a worker of a cluster."""

from __future__ import annotations

import time
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, groupby, islice
from operator import attrgetter
from sys import getsizeof
from typing import Protocol, TypeVar, runtime_checkable

from morpheus.cluster.task import announce
from morpheus.cluster.workers import Cluster, Handle
from morpheus.engines.fold import folded
from morpheus.engines.local import Local
from morpheus.engines.progress import Progress
from morpheus.engines.workers import Beforehand, run_in_workers
from morpheus.errors import UsageError
from morpheus.processes import Crew
from morpheus.records import Batch, Effort, Portion, Summary
from morpheus.scratch import Scratch
from morpheus.spill import Blob, pack
from morpheus.stage import Stage

Result = TypeVar("Result")
GPU, MEMORY = "GPU", "MEMORY"
"""Resources that workers may declare: `dask worker --resources "GPU=1 MEMORY=16e9"`."""
_SOON = 1 << 40
"""Weight of what lets go of memory: it is done before anything else."""
MANY = 250_000
"""Rows that a task holds as they come out; those after them are packed."""
BYTES = 10_000
"""Memory that an event takes while it is in work, about; measured in docs/scaling.md."""


@runtime_checkable
class Elsewhere(Portion, Protocol):
    """A portion that lies on a worker."""

    @property
    def weight(self) -> int:
        """How much work it is, in events."""

    def begin(
        self,
        work: Callable[..., Result],
        *needs: object,
        resources: Mapping[str, float] | None = None,
    ) -> Handle[Result]:
        """Begin a task on it, where it lies; see `Cluster.begin`."""


@dataclass(frozen=True)
class Packed:
    """A batch that takes as little room as it can: what comes out of a giant is held, too.

    Attributes:
        about: The batch without its rows.
        rows: These.
    """

    about: Batch
    rows: Blob = field(repr=False)

    @classmethod
    def of(cls, batch: Batch) -> Packed:
        """Pack a batch."""
        return cls(replace(batch, frame=batch.frame.clear()), pack(batch.frame))

    def batch(self) -> Batch:
        """It, unpacked."""
        return replace(self.about, frame=self.rows.read())


@dataclass(frozen=True)
class Passed:
    """Users who have passed the chain.

    Attributes:
        held: What came out.
        counted: What was counted while they were read.
        seconds: How long each took.
    """

    held: list[Batch | Packed] = field(repr=False)
    counted: Summary = field(repr=False)
    seconds: dict[str | None, float]

    def __sizeof__(self) -> int:
        """Bytes, for the worker that holds it."""
        return object.__sizeof__(self) + sum(map(_size, self.held))

    def batches(self) -> Iterator[Batch]:
        """What came out."""
        return (one.batch() if isinstance(one, Packed) else one for one in self.held)


@dataclass(frozen=True)
class Dask:
    """Runs a segment of a chain for every user, on the workers of a cluster.

    The heaviest portions are begun first, so that none is waited for alone at the end; what comes
    out keeps the users' order.
    """

    crew: Cluster

    def run_portions(
        self,
        segment: Sequence[Stage],
        portions: Sequence[Portion],
        summary: Summary,
        beforehand: Beforehand,
    ) -> Iterator[Batch]:
        """Pass the users of each portion through the segment, where the portion lies.

        Args:
            segment: What is done with each user.
            portions: All users, in the order in which they come out.
            summary: Counted into as portions are done.
            beforehand: What else can be done where a portion lies; see `Stage.beforehand`.
        """
        lying = [one for one in portions if isinstance(one, Elsewhere)]
        if len(lying) < len(portions):
            events = chain.from_iterable(portion.events(summary) for portion in portions)
            yield from self.run(segment, events, endless=False)
            return
        for folder in filter(None, (stage.writes_into() for stage in segment)):
            with Scratch(folder) as probe:
                self.crew.check_shared(probe.folder)
        begun = self._begun(segment, lying)
        progress = Progress(len(begun), lambda: self.crew.tidings.retries)
        with progress.shown():
            first = self._first(begun)
            more = [stage for stage in [first and beforehand(first)] if stage]
            if first is not None and more:
                # Whoever takes over text has to be told of which columns it is.
                yield first
                given = self.crew.give(more)
                begun = [self.crew.begin(spelt, one, given, weight=_SOON) for one in begun]
            for passed in self.crew.results(begun, ahead=bool(more)):
                summary.add_readings(passed.counted)
                progress.add(passed.seconds, sum(map(_rows, passed.held)))
                yield from passed.batches()
        summary.effort = self._effort(progress)

    def run(
        self, segment: Sequence[Stage], batches: Iterator[Batch], *, endless: bool
    ) -> Iterator[Batch]:
        """Pass the users of a stream that this process reads: their events go with the tasks."""
        assert not endless  # noqa: S101 - Pipeline.check() has seen to it
        stages = [stage.anywhere() for stage in segment]
        groups = (list(group) for _, group in groupby(batches, key=attrgetter("user")))
        return run_in_workers(self.crew, stages, groups)

    def _begun(
        self, segment: Sequence[Stage], portions: Sequence[Elsewhere]
    ) -> list[Handle[Passed]]:
        many = len(portions) >= self.crew.workers
        given = self.crew.give([stage.anywhere() for stage in segment], everywhere=many)
        long = sum(portion.weight for portion in portions) / (2 * self.crew.workers)
        begun: dict[int, Handle[Passed]] = {}
        for number in sorted(range(len(portions)), key=lambda at: -portions[at].weight):
            portion = portions[number]
            wanted = self._resources(segment, portion.weight)
            begun[number] = portion.begin(passed, given, number, MANY, resources=wanted)
            if portion.weight > long:
                # While its events are fetched, a worker would begin with what it has there. One
                # that is half of what a worker has to do must not be late.
                self.crew.wait_begun(number, begun[number])
        return [begun[number] for number in range(len(portions))]

    def _resources(self, segment: Sequence[Stage], weight: int) -> dict[str, float]:
        """What a task takes: what its stages say, and memory where workers say what they have."""
        wanted = dict(ChainMap(*(dict(stage.resources()) for stage in segment)))
        for name in wanted:
            if not self.crew.declared(name):
                raise UsageError(
                    f"--engine dask: no worker says that it has a {name}. Start those that have "
                    f'one with `dask worker --resources "{name}=1" ...`, or give --device=auto.'
                )
        memory = self.crew.declared(MEMORY)
        return wanted | ({MEMORY: min(memory, float(weight * BYTES))} if memory else {})

    def _first(self, begun: Sequence[Handle[Passed]]) -> Batch | None:
        """What the first rows will look like."""
        looks = (self.crew.begin(first_of, one, weight=_SOON) for one in begun)
        found = chain.from_iterable(self.crew.results([one]) for one in looks)
        return next((first for first in found if first is not None), None)

    def _effort(self, progress: Progress) -> Effort:
        heard, slowest = self.crew.tidings, tuple(progress.slowest)
        return Effort(self.crew.nodes, heard.lost, progress.tasks, heard.retries, slowest)


def passed(portion: Portion, segment: Sequence[Stage], number: int, many: int) -> Passed:
    """Pass a portion's users through the segment, as on one machine.

    Args:
        portion: The users.
        segment: What is done with each.
        number: Of the task.
        many: Rows that are held as they come out; those after them are packed.
    """
    announce(number)
    counted, seconds = Summary(), dict[str | None, float]()
    events = portion.events(counted)
    events = chain(list(islice(events, 1)), events)
    batches = _timed(Local(Crew(1)).run(segment, events, endless=False), seconds)
    return Passed(list(_held(batches, many)), counted, seconds)


def spelt(done: Passed, more: Sequence[Stage]) -> Passed:
    """Pass what came out through what the sink lets others do."""
    return replace(done, held=list(folded(more, done.batches())))


def first_of(done: Passed) -> Batch | None:
    """What the first rows look like: a batch of none that counts for nothing."""
    for batch in done.batches():
        return replace(batch, frame=batch.frame.clear(), card=None, filtered=0, watched=None)
    return None


def _held(batches: Iterator[Batch], many: int) -> Iterator[Batch | Packed]:
    rows = 0
    for batch in batches:
        rows += batch.frame.height
        yield Packed.of(batch) if rows > many else batch


def _rows(one: Batch | Packed) -> int:
    return one.rows.rows if isinstance(one, Packed) else one.frame.height


def _size(one: Batch | Packed) -> int:
    return getsizeof(one.rows) if isinstance(one, Packed) else int(one.frame.estimated_size())


def _timed(batches: Iterator[Batch], seconds: dict[str | None, float]) -> Iterator[Batch]:
    """Take the time from one batch to the next."""
    begin = time.perf_counter()
    for batch in batches:
        took = time.perf_counter() - begin
        seconds[batch.user] = seconds.get(batch.user, 0.0) + took
        yield batch
        begin = time.perf_counter()
