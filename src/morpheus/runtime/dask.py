"""The Dask runner: the users of each partition pass the pipeline on a worker of a cluster."""

from __future__ import annotations

import time
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from heapq import nlargest
from itertools import chain, groupby, islice
from operator import attrgetter
from sys import getsizeof
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from morpheus.core.batch import Batch, ClusterStats, Partition, RunMetrics
from morpheus.core.stage import find_output_folders
from morpheus.core.state import StateKey
from morpheus.errors import UsageError
from morpheus.runtime.chain import Segment
from morpheus.runtime.dask_cluster import Cluster, Future, log_task_started
from morpheus.runtime.local import (
    EncoderFactory,
    LocalRunner,
    load_states,
    read_partitions,
    run_in_workers,
    save_states,
)
from morpheus.runtime.pool import WorkerPool
from morpheus.runtime.states import MemoryStateStore, SavedStates, StateStore
from morpheus.storage.spill import SpillDir, SpilledTable, spill_to_memory
from morpheus.text import escape_control

if TYPE_CHECKING:
    from rich.text import Text

MAX_SLOWEST = 3
Clock = Callable[[], float]


@dataclass
class Progress:
    """How far a cluster has come.

    Attributes:
        tasks: How many there are.
        retries: Tells how often one had to be begun again.
        clock: Tells the time.
        tasks_done: How many tasks are done.
        users: How many users are done.
        events: How many events of theirs came out.
        slowest_users: Users who took longest, and their seconds.

    >>> clock = iter([0.0, 2.0]).__next__
    >>> progress = Progress(3, lambda: 1, clock)
    >>> progress.add({"ann": 0.25, "bob": 1.5}, events=300)
    >>> progress.line()
    '1 of 3 tasks, 2 users, 150 events/s, 1 begun again; slowest: bob 1.5 s, ann 0.2 s'
    """

    tasks: int
    retries: Callable[[], int]
    clock: Clock = time.monotonic
    tasks_done: int = 0
    users: int = 0
    events: int = 0
    slowest_users: list[tuple[str | None, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.started = self.clock()

    def add(self, seconds: Mapping[str | None, float], events: int) -> None:
        """Count a task's users and events."""
        self.tasks_done += 1
        self.users += len(seconds)
        self.events += events
        known = [*self.slowest_users, *seconds.items()]
        self.slowest_users = nlargest(MAX_SLOWEST, known, key=lambda one: (one[1], one[0] or ""))

    def status_line(self) -> str:
        """The line shown: control characters are written out, none reaches the terminal."""
        elapsed = self.clock() - self.started
        pace = self.events / elapsed if elapsed else 0.0
        again = f", {self.retries():,} begun again" if self.retries() else ""
        text = f"{self.tasks_done:,} of {self.tasks:,} tasks, {self.users:,} users, {pace:,.0f} events/s"
        names = ", ".join(
            f"{user or '(no user)'} {took:.1f} s" for user, took in self.slowest_users
        )
        return escape_control(f"{text}{again}" + (f"; slowest: {names}" if names else ""))

    def __rich__(self) -> Text:
        from rich.text import Text  # noqa: PLC0415 - only a terminal needs it

        return Text(self.status_line(), no_wrap=True, overflow="ellipsis")

    @contextmanager
    def display(self) -> Iterator[None]:
        """Show the line on a terminal, and nowhere else, until the block ends."""
        from rich.console import Console  # noqa: PLC0415 - as above
        from rich.live import Live  # noqa: PLC0415 - as above

        console = Console(stderr=True)
        if not console.is_terminal:
            yield
            return
        with Live(self, console=console, refresh_per_second=4, transient=True):
            yield


ResultT = TypeVar("ResultT")
GPU, MEMORY = "GPU", "MEMORY"
"""Resources that workers may declare: `dask worker --resources "GPU=1 MEMORY=16e9"`."""
_HIGH_PRIORITY = 1 << 40
"""Weight of what lets go of memory: it is done before anything else."""
INLINE_ROWS = 250_000
"""Rows that a task holds as they come out; those after them are packed."""
BYTES_PER_EVENT = 10_000
"""Memory that an event takes while it is in work, about; measured in docs/scaling.md."""


@runtime_checkable
class RemotePartition(Partition, Protocol):
    """A portion that lies on a worker."""

    @property
    def weight(self) -> int:
        """How much work it is, in events."""

    def submit(
        self,
        work: Callable[..., ResultT],
        *needs: object,
        resources: Mapping[str, float] | None = None,
    ) -> Future[ResultT]:
        """Begin a task on it, where it lies; see `Cluster.submit`."""


@dataclass(frozen=True)
class CompressedBatch:
    """A batch that takes as little room as it can: what comes out of a giant is held, too.

    Attributes:
        header: The batch without its rows.
        rows: These.
    """

    header: Batch
    rows: SpilledTable = field(repr=False)

    @classmethod
    def from_batch(cls, batch: Batch) -> CompressedBatch:
        """Pack a batch."""
        return cls(replace(batch, frame=batch.frame.clear()), spill_to_memory(batch.frame))

    def to_batch(self) -> Batch:
        """It, unpacked."""
        return replace(self.header, frame=self.rows.read())


@dataclass(frozen=True)
class PartitionResult:
    """Users who have passed the chain.

    Attributes:
        outputs: What came out.
        metrics: What was counted while they were read.
        user_seconds: How long each took.
        changed: States of the users, if they are saved.
    """

    outputs: list[Batch | CompressedBatch] = field(repr=False)
    metrics: RunMetrics = field(repr=False)
    user_seconds: dict[str | None, float]
    changed: dict[StateKey, bytes] = field(default_factory=dict, repr=False)

    def __sizeof__(self) -> int:
        """Bytes, for the worker that holds it."""
        return object.__sizeof__(self) + sum(map(_size_in_bytes, self.outputs))

    def iter_batches(self) -> Iterator[Batch]:
        """What came out."""
        return (one.to_batch() if isinstance(one, CompressedBatch) else one for one in self.outputs)


@dataclass(frozen=True)
class DaskRunner:
    """Runs a segment of a chain for every user, on the workers of a cluster.

    The heaviest portions are begun first, so that none is waited for alone at the end; what comes
    out keeps the users' order.
    """

    executor: Cluster
    store: StateStore | None = None

    def run_partitions(
        self,
        segment: Segment,
        partitions: Sequence[Partition],
        metrics: RunMetrics,
        encoder_factory: EncoderFactory,
    ) -> Iterator[Batch]:
        """Pass the users of each portion through the segment, where the portion lies.

        Args:
            segment: What is done with each user.
            partitions: All users, in the order in which they come out.
            metrics: Counted into as portions are done.
            encoder_factory: What else can be done where a portion lies; see `Transform.encoder`.
        """
        lying = [one for one in partitions if isinstance(one, RemotePartition)]
        if len(lying) < len(partitions):
            yield from self.run(segment, read_partitions(partitions, metrics, self.store))
            return
        for folder in find_output_folders(segment.stages):
            with SpillDir(folder) as probe:
                self.executor.check_shared_folder(probe.folder)
        begun = self._submit_all(segment, lying)
        progress = Progress(len(begun), lambda: self.executor.events.retries)
        with progress.display():
            first = self._peek_first(begun)
            encoder = None if first is None else encoder_factory(first)
            if first is not None and encoder is not None:
                # The sink has to know the columns before it gets formatted rows.
                yield first
                given = self.executor.scatter(encoder)
                begun = [
                    self.executor.submit(encode_on_worker, one, given, priority=_HIGH_PRIORITY)
                    for one in begun
                ]
            for passed in self.executor.results(begun, eager=encoder is not None):
                metrics.add_read_stats(passed.metrics)
                save_states(self.store, passed.changed)
                progress.add(passed.user_seconds, sum(map(_num_rows, passed.outputs)))
                yield from passed.iter_batches()
        metrics.cluster_stats = self._cluster_stats(progress)

    def run(self, segment: Segment, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Run the segment for the users of a stream that this process reads, on the workers."""
        groups = (list(group) for _, group in groupby(batches, key=attrgetter("user")))
        return run_in_workers(self.executor, segment, groups, self.store)

    def _submit_all(
        self, segment: Segment, partitions: Sequence[RemotePartition]
    ) -> list[Future[PartitionResult]]:
        many = len(partitions) >= self.executor.parallelism
        given = self.executor.scatter(segment, broadcast=many)
        long = sum(portion.weight for portion in partitions) / (2 * self.executor.parallelism)
        begun: dict[int, Future[PartitionResult]] = {}
        for number in sorted(range(len(partitions)), key=lambda at: -partitions[at].weight):
            portion = partitions[number]
            wanted = self._task_resources(segment, portion.weight)
            saved = load_states(self.store, portion)
            begun[number] = portion.submit(
                process_partition, given, number, INLINE_ROWS, saved, resources=wanted
            )
            if portion.weight > long:
                # While its events are fetched, a worker would begin with what it has there. One
                # that is half of what a worker has to do must not be late.
                self.executor.wait_started(number, begun[number])
        return [begun[number] for number in range(len(partitions))]

    def _task_resources(self, segment: Segment, weight: int) -> dict[str, float]:
        """What a task takes: what its stages say, and memory where workers say what they have."""
        wanted = dict(ChainMap(*(dict(stage.needs.resources) for stage in segment.stages)))
        for name in wanted:
            if not self.executor.resource_capacity(name):
                raise UsageError(
                    f"--engine dask: no worker says that it has a {name}. Start those that have "
                    f'one with `dask worker --resources "{name}=1" ...`, or give --device=auto.'
                )
        memory = self.executor.resource_capacity(MEMORY)
        return wanted | ({MEMORY: min(memory, float(weight * BYTES_PER_EVENT))} if memory else {})

    def _peek_first(self, futures: Sequence[Future[PartitionResult]]) -> Batch | None:
        """What the first rows will look like."""
        looks = (self.executor.submit(peek_schema, one, priority=_HIGH_PRIORITY) for one in futures)
        found = chain.from_iterable(self.executor.results([one]) for one in looks)
        return next((first for first in found if first is not None), None)

    def _cluster_stats(self, progress: Progress) -> ClusterStats:
        heard, slowest = self.executor.events, tuple(progress.slowest_users)
        return ClusterStats(
            self.executor.num_workers, heard.lost_workers, progress.tasks, heard.retries, slowest
        )


def process_partition(
    partition: Partition, segment: Segment, number: int, inline_rows: int, saved: SavedStates
) -> PartitionResult:
    """Pass a portion's users through the segment, as on one machine.

    Args:
        partition: The users.
        segment: What is done with each.
        number: Of the task.
        inline_rows: Rows that are held as they come out; those after them are compressed.
        saved: Saved states of the users.
    """
    log_task_started(number)
    metrics, seconds = RunMetrics(), dict[str | None, float]()
    store = MemoryStateStore.from_states(saved) if segment.saves else None
    events = read_partitions([partition], metrics, store)
    events = chain(list(islice(events, 1)), events)
    batches = _time_users(LocalRunner(WorkerPool(1), store).run(segment, events), seconds)
    outputs = list(_compress_large(batches, inline_rows))
    return PartitionResult(outputs, metrics, seconds, store.changed() if store else {})


def encode_on_worker(result: PartitionResult, encoder: Segment) -> PartitionResult:
    """Format rows with the encoder of the sink."""
    return replace(result, outputs=list(encoder.open().run(result.iter_batches())))


def peek_schema(result: PartitionResult) -> Batch | None:
    """What the first rows look like: a batch of none that counts for nothing."""
    for batch in result.iter_batches():
        return replace(batch, frame=batch.frame.clear(), card=None, filtered=0, candidates=None)
    return None


def _compress_large(
    batches: Iterator[Batch], inline_rows: int
) -> Iterator[Batch | CompressedBatch]:
    rows = 0
    for batch in batches:
        rows += batch.frame.height
        yield CompressedBatch.from_batch(batch) if rows > inline_rows else batch


def _num_rows(batch: Batch | CompressedBatch) -> int:
    return batch.rows.num_rows if isinstance(batch, CompressedBatch) else batch.frame.height


def _size_in_bytes(batch: Batch | CompressedBatch) -> int:
    return (
        getsizeof(batch.rows)
        if isinstance(batch, CompressedBatch)
        else int(batch.frame.estimated_size())
    )


def _time_users(batches: Iterator[Batch], seconds: dict[str | None, float]) -> Iterator[Batch]:
    """Take the time from one batch to the next."""
    begin = time.perf_counter()
    for batch in batches:
        took = time.perf_counter() - begin
        seconds[batch.user] = seconds.get(batch.user, 0.0) + took
        yield batch
        begin = time.perf_counter()
